"""Estimates and intervals against closed forms, explicit sums, brute force and simulated truth."""

import math

import numpy as np
import pytest
from conftest import refused
from scipy.stats import binom, t

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


def test_errors_are_those_of_leaving_out_a_document():
    random = np.random.default_rng(3)
    nll, tokens = random.normal(700, 60, 12), random.integers(20, 256, 12)
    without = [np.delete(nll, i).sum() / np.delete(tokens, i).sum() for i in range(12)]
    error = math.sqrt(11 * np.var(without))
    estimate = statistics.perplexity(nll, tokens)
    assert estimate.stderr == pytest.approx(estimate.value * error)
    # Student's t with as many degrees as documents of equal size would have
    reach = t.ppf(0.975, tokens.sum() ** 2 / (tokens**2).sum() - 1) * error
    ends = math.exp(-reach) * estimate.value, math.exp(reach) * estimate.value
    assert (estimate.low, estimate.high) == pytest.approx(ends)
    # questions of an article are a document of that size
    right, articles = zeros_and_ones(20, 30), np.arange(30) % 7
    grouped = statistics.perplexity(np.bincount(articles, right), np.bincount(articles))
    assert statistics.accuracy(right, articles).stderr == pytest.approx(grouped.stderr / grouped.value)


def test_a_p_below_005_is_an_interval_without_zero():
    random = np.random.default_rng(6)
    found = set()
    for n in random.integers(2, 20, 200):
        tokens, gain = random.integers(20, 256, n), random.normal(0.5, 1, n)
        estimate, p_value = statistics.paired_difference(gain * tokens, 0 * tokens, tokens)
        assert (p_value < 0.05) == (estimate.low > 0 or estimate.high < 0)
        found.add(p_value < 0.05)
    assert found == {True, False}


SIMULATIONS = 1000
# as often as intervals that hold 95 % of the time do in all but one of 1,000 such tests
AS_OFTEN = binom.interval(0.999, SIMULATIONS, 0.95)


def coverage(draw):
    """How often the interval of `draw(random)`, a truth and an estimate, holds the truth."""
    random = np.random.default_rng(5)
    drawn = (draw(random) for _ in range(SIMULATIONS))
    return sum(estimate.low <= truth <= estimate.high for truth, estimate in drawn)


def texts(random, articles, lengths):
    """Tokens of articles, their nats on a dense model, 3.1 a token, and on a sparse one, 0.4 more, skewed."""
    tokens = {
        "windows": 255 * random.choice([1, 2, 3], articles, p=[0.3, 0.45, 0.25]),
        "wholes": np.exp(random.normal(7.5, 0.8, articles)).round() + 50,
    }[lengths]
    dense = tokens * (3.1 + random.normal(0, 0.35, articles))
    cost = random.gamma(11, 0.4 / 11, articles) + random.normal(0, 0.5, articles) / tokens**0.5
    return tokens, dense, dense + tokens * cost


@pytest.mark.parametrize("lengths", ["windows", "wholes"])
@pytest.mark.parametrize("articles", [8, 12, 32, 64])
def test_intervals_of_perplexities_hold_as_often_as_they_say(articles, lengths):
    def perplexity(random):
        tokens, dense, _ = texts(random, articles, lengths)
        return math.exp(3.1), statistics.perplexity(dense, tokens)

    def difference(random):
        tokens, dense, sparse = texts(random, articles, lengths)
        return 0.4, statistics.paired_difference(sparse, dense, tokens)[0]

    for draw in (perplexity, difference):
        assert AS_OFTEN[0] <= coverage(draw) <= AS_OFTEN[1]


def questions(random, articles, count):
    """Articles of questions, whether a dense model is right, half of the time, and a sparse one, less often.

    Articles are easy or hard, and the sparse model loses more in some of them than in others.
    """
    article = np.arange(articles) if articles == count else random.integers(articles, size=count)
    ease, loss = 0.5 + random.uniform(-0.35, 0.35, articles), random.uniform(0, 0.4, articles)
    dense = random.random(count) < ease[article]
    changed = random.random(count) < np.where(dense, loss[article], 0.06)
    return article, dense.astype(float), (dense ^ changed).astype(float)


@pytest.mark.parametrize(("articles", "count"), [(24, 24), (32, 100), (64, 100), (300, 300)])
def test_intervals_of_accuracies_hold_as_often_as_they_say(articles, count):
    def accuracy(random):
        article, dense, _ = questions(random, articles, count)
        return 0.5, statistics.accuracy(dense, article)

    def difference(random):  # right ones are lost in a fifth of cases, the others won in 6 % of them
        article, dense, sparse = questions(random, articles, count)
        return 0.5 * (0.06 - 0.2), statistics.accuracy_difference(sparse, dense, article)[0]

    # intervals of proportions hold more often than they say, because proportions of few questions take few values
    for draw in (accuracy, difference):
        assert AS_OFTEN[0] <= coverage(draw)
    article_of_each = coverage(lambda random: (0.5, statistics.accuracy(questions(random, articles, count)[1])))
    assert articles == count or article_of_each < AS_OFTEN[0], "without articles the test can not tell"


def test_signs_are_those_of_articles():
    articles = np.array([0, 0, 0, 1, 1, 2])
    dense, sparse = np.zeros(6), np.array([1.0, 1, 1, 1, 1, 0])
    # two articles are won, none is lost
    assert statistics.accuracy_difference(sparse, dense, articles)[1] == 0.5
    assert statistics.accuracy_difference(sparse, dense)[1] == 2 / 2**5


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


def test_equal_answers_differ_by_nothing_that_is_known_exactly():
    answers = zeros_and_ones(7, 20)
    estimate, p_value = statistics.accuracy_difference(answers, answers)
    assert (estimate.value, estimate.stderr, p_value) == (0, 0, 1) and estimate.low == -estimate.high < 0
    few = statistics.accuracy_difference(answers, answers, np.arange(20) % 4)[0]
    assert few.high > estimate.high


def test_one_document_has_a_value_and_no_interval():
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
