"""Estimates and intervals against closed forms, explicit sums and resampled documents."""

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


@pytest.mark.parametrize("kind", ["perplexity", "log_perplexity_difference", "accuracy_difference"])
def test_estimates_errors_and_intervals_are_those_of_resampled_documents(kind):
    random = np.random.default_rng(3)
    tokens, right = random.integers(150, 256, 80), (random.random(80) < 0.6).astype(float)
    dense = tokens * random.normal(3, 0.3, 80)
    sparse = dense + tokens * random.normal(0.1, 0.05, 80)
    other = np.where(random.random(80) < 0.2, 1 - right, right)
    total, size, arrays = {
        "perplexity": (dense, tokens, (dense, tokens)),
        "log_perplexity_difference": (sparse - dense, tokens, (sparse, dense, tokens)),
        "accuracy_difference": (other - right, np.ones(80), (other, right)),
    }[kind]
    estimate = getattr(statistics, kind)(*arrays)
    estimate = estimate if kind != "accuracy_difference" else estimate[0]
    drawn = random.integers(80, size=(4000, 80))
    resampled, value = total[drawn].sum(1) / size[drawn].sum(1), total.sum() / size.sum()
    if kind == "perplexity":
        resampled, value = np.exp(resampled), math.exp(value)
    assert estimate.value == pytest.approx(value) and estimate.stderr == pytest.approx(resampled.std(), rel=0.05)
    near = 0.05 * (estimate.high - estimate.low)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=near)


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


@pytest.mark.parametrize(("words", "estimate", "arrays"), [
    *(("0 or 1", statistics.accuracy, (values,)) for values in ([], [0.5, 1.0], [np.nan, 1.0], [2.0])),
    *(("finite", statistics.perplexity, pair) for pair in (([], []), ([np.nan], [5]), ([np.inf], [5]), ([3.0], [0]))),
])  # fmt: skip
def test_documents_that_are_no_answers_or_have_no_likelihood_are_refused(words, estimate, arrays):
    refused(words, estimate, *map(np.array, arrays))
