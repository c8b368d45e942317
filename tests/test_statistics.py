"""Estimates and intervals against closed forms, explicit sums, brute force and simulated truth."""

import math

import numpy as np
import pytest
from conftest import refused

from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics


def zeros_and_ones(ones, n):
    return np.repeat([1.0, 0.0], [ones, n - ones])


@pytest.mark.parametrize(
    ("ones", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_interval_at_known_values(ones, n, low, high):
    estimate = statistics.accuracy(zeros_and_ones(ones, n))
    assert estimate.value == ones / n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
    assert estimate.low <= estimate.value <= estimate.high


def test_perplexity_is_the_exponential_of_summed_nll_over_summed_tokens():
    nll, tokens = np.array([30.0, 50.0, 10.0]), np.array([10, 20, 5])
    estimate = statistics.perplexity(nll, tokens)
    assert estimate.value == pytest.approx(math.exp(90 / 35))
    assert estimate.low < estimate.value < estimate.high


def test_bootstrap_against_a_loop_over_resamples():
    random = np.random.default_rng(3)
    nll, tokens = random.normal(700, 60, 40), random.integers(200, 256, 40)
    resampled = []
    for _ in range(3000):
        drawn = random.integers(40, size=40)
        resampled.append(sum(nll[drawn]) / sum(tokens[drawn]))
    estimate = statistics.perplexity(nll, tokens)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert math.log(estimate.low) == pytest.approx(low, abs=0.01)
    assert math.log(estimate.high) == pytest.approx(high, abs=0.01)


def test_paired_bootstrap_of_accuracy_against_a_loop_over_resamples():
    random = np.random.default_rng(4)
    dense = (random.random(150) < 0.6).astype(float)
    correct = np.where(random.random(150) < 0.2, 1 - dense, dense)
    resampled = [(correct - dense)[random.integers(150, size=150)].mean() for _ in range(4000)]
    estimate, _ = statistics.accuracy_difference(correct, dense)
    assert estimate.value == pytest.approx((correct - dense).mean())
    assert estimate.stderr == pytest.approx((correct - dense).std(ddof=1) / math.sqrt(150))
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.015)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(5)
    covered = {"perplexity": 0, "log difference": 0, "accuracy": 0, "accuracy difference": 0}
    for _ in range(200):
        tokens = random.integers(150, 256, 60)
        dense = tokens * random.normal(3, 0.3, 60)
        sparse = dense + tokens * random.normal(0.1, 0.05, 60)
        right = (random.random(120) < 0.6).astype(float)
        other = np.where(random.random(120) < 0.3, (random.random(120) < 0.6), right).astype(float)
        intervals = {
            "perplexity": (math.exp(3), statistics.perplexity(dense, tokens)),
            "log difference": (0.1, statistics.log_perplexity_difference(sparse, dense, tokens)),
            "accuracy": (0.6, statistics.accuracy(right)),
            "accuracy difference": (0.0, statistics.accuracy_difference(other, right)[0]),
        }
        for name, (truth, estimate) in intervals.items():
            covered[name] += estimate.low <= truth <= estimate.high
    for name, count in covered.items():
        assert 0.89 <= count / 200 <= 0.99, f"{name} covers {count} of 200"


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 3), (1, 9), (12, 4), (0, 6)])
def test_mcnemar_is_twice_the_binomial_tail(won, lost):
    correct = np.array([1.0] * won + [0.0] * lost + [1.0] * 10)
    dense = np.array([0.0] * won + [1.0] * lost + [1.0] * 10)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    _, p_value = statistics.accuracy_difference(correct, dense)
    assert p_value == pytest.approx(min(1.0, 2 * tail))


def test_holm_is_the_step_down_of_its_definition():
    p_values = [0.01, 0.04, 0.03, 0.005]
    # sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, none below the one before
    assert statistics.holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(statistics.holm([0.6, 0.9])) == [1.0, 1.0] and list(statistics.holm([0.2])) == [0.2]


def test_equal_answers_differ_by_nothing():
    answers = zeros_and_ones(7, 20)
    assert statistics.accuracy_difference(answers, answers) == ((0.0, 0.0, 0.0, 0.0, 20), 1.0)


def test_one_document_has_a_value_and_no_bootstrap_interval():
    assert statistics.perplexity(np.array([20.0]), np.array([10])) == (pytest.approx(math.exp(2)), None, None, None, 1)
    assert statistics.accuracy(np.array([1.0])).stderr is None
    assert statistics.accuracy_difference(np.array([1.0]), np.array([0.0]))[0] == (1.0, None, None, None, 1)


@pytest.mark.parametrize("dense", [["a", "b"], ["a", "b", "d"], ["a", "a", "b"]])
def test_other_documents_are_refused_in_one_sentence(dense):
    with pytest.raises(ArtifactError, match="^shadow 50: its 3 documents are not the .* same documents$"):
        statistics.require_paired(np.array(["a", "b", "c"]), np.array(dense), lambda: "shadow 50")


@pytest.mark.parametrize("values", [[], [0.5, 1.0], [np.nan, 1.0], [2.0]])
def test_accuracies_that_are_not_zeros_and_ones_are_refused(values):
    refused("0 or 1", statistics.accuracy, np.array(values))


@pytest.mark.parametrize(("nll", "tokens"), [([], []), ([np.nan], [5]), ([np.inf], [5]), ([3.0], [0])])
def test_windows_without_likelihood_or_tokens_are_refused(nll, tokens):
    refused("finite", statistics.perplexity, np.array(nll), np.array(tokens))
