"""Estimates over documents and paired differences, each with a 95 % interval.

Everything is a mean over documents or a ratio of two means. Documents are independent of each other, but questions from
one article are not, because they are easy or hard together. Differences to dense are paired: both models saw the same
documents, so what makes a document hard cancels out. tests/test_statistics.py simulates how often intervals hold.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, t

from shadowcore.errors import ArtifactError

CONFIDENCE = 0.95
TAIL = (1 + CONFIDENCE) / 2
Z = norm.ppf(TAIL)


class Estimate(NamedTuple):
    """A number with its standard error and interval; None where one document allows none."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int


class Ratio(NamedTuple):
    """sum(total) / sum(size) over documents; degrees: of freedom, fewer where few documents are most of the text."""

    value: float
    stderr: float | None
    degrees: float


def accuracy(correct: np.ndarray, articles: np.ndarray | None = None) -> Estimate:
    """Mean of `correct` (n,) of zeros and ones, with the Wilson score interval (Wilson 1927).

    articles (n,): numbers of the articles that the questions are from; None: each is from another one.
    """
    correct = _binary(correct)
    mean = float(correct.mean())
    n, stderr = _independent(correct, articles)
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    # the ends touch 0 and 1 exactly when the mean does; rounding may not put them beyond
    low, high = min(max(centre - reach, 0.0), mean), max(min(centre + reach, 1.0), mean)
    return Estimate(mean, stderr, float(low), float(high), len(correct))


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Token perplexity exp(sum nll / sum tokens) over documents: `nll` (n,) in nats, `tokens` (n,) scored.

    The standard error is the delta method's; the interval is that of the logarithm.
    """
    log, _ = _mean_per_token(nll, tokens)
    value = float(np.exp(log.value))
    if log.stderr is None:
        return log._replace(value=value)
    return Estimate(value, value * log.stderr, float(np.exp(log.low)), float(np.exp(log.high)), log.n)


def accuracy_difference(
    correct: np.ndarray, dense: np.ndarray, articles: np.ndarray | None = None
) -> tuple[Estimate, float]:
    """Mean of `correct - dense` (n,), questions paired, and its two-sided p.

    The interval is that of Agresti & Min (2005). p is McNemar's exact one (1947), which is a sign test; where an
    article has several questions, the signs are those of articles.
    """
    correct, dense = _binary(correct), _binary(dense)
    gain, n = correct - dense, len(correct)
    of_articles = gain if articles is None else np.bincount(_numbered(articles), gain)
    p_value = _sign_test(int((of_articles > 0).sum()), int((of_articles < 0).sum()))
    value = float(gain.mean())
    independent, stderr = _independent(gain, articles)
    if stderr is None:
        return Estimate(value, None, None, None, n), p_value
    # as if half a question more were won, half a question lost, and one equal
    won, lost = (((gain == sign).mean() * independent + 0.5) / (independent + 2) for sign in (1, -1))
    reach = Z * np.sqrt((won + lost - (won - lost) ** 2) / (independent + 2))
    low, high = (float(np.clip(won - lost + end, -1, 1)) for end in (-reach, reach))
    return Estimate(value, stderr, low, high, n), p_value


@lru_cache(maxsize=2**16)
def _sign_test(won: int, lost: int) -> float:
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def _independent(values: np.ndarray, articles: np.ndarray | None) -> tuple[float, float | None]:
    """How many independent values have a mean as certain as that of `values` (n,), and the standard error of the mean.

    At most n; by the design effect and the degrees of freedom (Korn & Graubard 1998). Values that are all equal count
    once an article. The standard error is None for one article.
    """
    n = len(values)
    numbers = np.arange(n) if articles is None else _numbered(articles)
    mean = _ratio(np.bincount(numbers, values), np.bincount(numbers))
    articles_count = int(numbers.max()) + 1
    if articles_count == n or not mean.stderr:
        return float(articles_count), mean.stderr
    design = (Z / t.ppf(TAIL, mean.degrees)) ** 2
    return float(min(n, values.var() / mean.stderr**2 * design)), mean.stderr


def _numbered(articles: np.ndarray) -> np.ndarray:
    """Numbers from 0 in the order of first appearance, so that sums do not depend on what articles are called."""
    _, first, places = np.unique(articles, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def two_sided_p(difference: float, stderr: float, degrees: float = np.inf) -> float:
    """Student's p; by default that of a normal, as if the error were known; nan where there is none."""
    return float(2 * t.sf(abs(difference) / stderr, degrees)) if stderr else float(difference == 0)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Step-down adjusted p-values (n,): the chance of any false finding among them stays below one (Holm 1979)."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = stepped.clip(max=1)
    return adjusted


def paired_difference(ones: np.ndarray, others: np.ndarray, sizes: np.ndarray) -> tuple[Estimate, float | None]:
    """sum(ones - others) / sum(sizes) of pairs (all (n,)), as nats per token, and Student's p; None for one pair."""
    return _mean_per_token(np.asarray(ones, float) - np.asarray(others, float), sizes)


def interval(value: Any, stderr: Any, degrees: Any = np.inf) -> tuple[Any, Any]:
    """The ends of Student's 95 % interval of numbers or arrays; by default as if the error were known (normal)."""
    reach = t.ppf(TAIL, degrees) * stderr
    return value - reach, value + reach


def require_paired(documents: np.ndarray, dense: np.ndarray, where: Callable[[], str]) -> None:
    """Raise ArtifactError, naming `where`, unless a condition and dense hold the same documents in the same order."""
    if not np.array_equal(documents, dense):
        shared = len(np.intersect1d(documents, dense))
        raise ArtifactError(
            f"{where()}: its {len(documents)} documents are not the {len(dense)} of dense ({shared} in common); "
            "evaluate both on the same documents"
        )


def _mean_per_token(nats: np.ndarray, tokens: np.ndarray) -> tuple[Estimate, float | None]:
    """sum(nats) / sum(tokens) over documents with Student's interval, and the p of zero; None for one document."""
    nats, tokens = np.asarray(nats, float), np.asarray(tokens, float)
    n = len(nats)
    if not n or not np.isfinite(nats).all() or not (tokens > 0).all():
        raise ArtifactError("perplexity: documents need finite log-likelihoods and at least one scored token each")
    value, stderr, degrees = _ratio(nats, tokens)
    if stderr is None:
        return Estimate(value, None, None, None, n), None
    ends = map(float, interval(value, stderr, degrees))
    return Estimate(value, stderr, *ends, n), two_sided_p(value, stderr, degrees)


def _ratio(total: np.ndarray, size: np.ndarray) -> Ratio:
    """The ratio with the standard error of the jackknife over documents (Tukey 1958)."""
    n, all_sizes = len(total), size.sum()
    value = float(total.sum() / all_sizes)
    if n == 1:
        return Ratio(value, None, 0)
    without = (value * size - total) / (all_sizes - size)  # what leaving a document out changes
    stderr = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    return Ratio(value, stderr, max(1.0, float(all_sizes**2 / (size**2).sum() - 1)))


def _binary(correct: np.ndarray) -> np.ndarray:
    correct = np.asarray(correct, float)
    if not len(correct) or not np.isin(correct, (0.0, 1.0)).all():
        raise ArtifactError("accuracy: documents need a value of 0 or 1 each, and there must be one")
    return correct
