"""Estimates over documents and paired differences, each with a 95 % interval.

Everything is a mean over documents or a ratio of two means. The document is the unit of resampling,
because the tokens of one article are not independent. Differences to dense are paired: both models read
the same documents, so the difficulty of a document cancels out.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, t

from shadowcore.errors import ArtifactError

CONFIDENCE = 0.95
RESAMPLES = 4000
SEED = 0  # one seed for every interval: a table does not change when rows are added to it
Z = norm.ppf((1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
    """A number with its standard error and interval; None where one document allows none."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int


def accuracy(correct: np.ndarray) -> Estimate:
    """Mean of `correct` (n,) of zeros and ones, with the Wilson score interval (Wilson 1927)."""
    correct = _binary(correct)
    n, mean = len(correct), float(correct.mean())
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    # the ends touch 0 and 1 exactly when the mean does; rounding may not put them beyond
    low, high = min(max(centre - reach, 0.0), mean), max(min(centre + reach, 1.0), mean)
    return Estimate(mean, _mean_error(correct), float(low), float(high), n)


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Token perplexity exp(sum nll / sum tokens) over documents: `nll` (n,) in nats, `tokens` (n,) scored.

    The standard error is the delta method's, the interval a bootstrap over documents.
    """
    log = _ratio(nll, tokens)
    value = float(np.exp(log.value))
    if log.stderr is None:
        return log._replace(value=value)
    return Estimate(value, value * log.stderr, float(np.exp(log.low)), float(np.exp(log.high)), log.n)


def accuracy_difference(correct: np.ndarray, dense: np.ndarray) -> tuple[Estimate, float]:
    """Mean of `correct - dense` (n,), documents paired, and McNemar's exact two-sided p (McNemar 1947)."""
    correct, dense = _binary(correct), _binary(dense)
    gain, n = correct - dense, len(correct)
    won, lost = int((gain > 0).sum()), int((gain < 0).sum())
    p_value = _mcnemar(won, lost)
    if n == 1:
        return Estimate(float(gain[0]), None, None, None, n), p_value
    return Estimate(float(gain.mean()), _mean_error(gain), *_paired_interval(won, lost, n), n), p_value


@lru_cache(maxsize=2**16)
def _mcnemar(won: int, lost: int) -> float:
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


@lru_cache(maxsize=2**16)
def _paired_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """Bootstrap interval of (won - lost) / n: resampling documents that are won, lost or equal draws three counts."""
    counts = np.random.default_rng(SEED).multinomial(n, [won / n, lost / n, (n - won - lost) / n], RESAMPLES)
    return _percentiles((counts[:, 0] - counts[:, 1]) / n)


def normal_p(difference: float, stderr: float) -> float:
    """Two-sided p of a difference whose standard error is known, as if it were normal; nan where it is not known."""
    if stderr == 0:
        return float(difference == 0)
    return float(2 * norm.sf(abs(difference) / stderr))


def paired_p(difference: Estimate) -> float | None:
    """Two-sided p of a mean paired difference by Student's t over its n documents; None without a standard error."""
    if difference.stderr is None:
        return None
    if difference.stderr == 0:
        return float(difference.value == 0)
    return float(2 * t.sf(abs(difference.value) / difference.stderr, difference.n - 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Step-down adjusted p-values (n,): the chance of any false finding among them stays below one (Holm 1979)."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = stepped.clip(max=1)
    return adjusted


def log_perplexity_difference(nll: np.ndarray, dense: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Log-perplexity of a condition minus dense, nats per token, documents paired: all arrays (n,)."""
    return _ratio(np.asarray(nll, float) - np.asarray(dense, float), tokens)


def require_paired(documents: np.ndarray, dense: np.ndarray, where: Callable[[], str]) -> None:
    """Raise ArtifactError, naming `where`, unless a condition and dense hold the same documents in the same order."""
    if not np.array_equal(documents, dense):
        shared = len(np.intersect1d(documents, dense))
        raise ArtifactError(
            f"{where()}: its {len(documents)} documents are not the {len(dense)} of dense ({shared} in common); "
            "evaluate both on the same documents"
        )


def _ratio(total: np.ndarray, size: np.ndarray) -> Estimate:
    """sum(total) / sum(size) over documents (Cochran 1977, section 2.11, for the standard error)."""
    total, size = np.asarray(total, float), np.asarray(size, float)
    n = len(total)
    if not n or not np.isfinite(total).all() or not (size > 0).all():
        raise ArtifactError("perplexity: documents need finite log-likelihoods and at least one scored token each")
    value = float(total.sum() / size.sum())
    if n == 1:
        return Estimate(value, None, None, None, n)
    residual = total - value * size
    stderr = float(np.sqrt((residual**2).sum() / (n * (n - 1))) / size.mean())
    drawn, drawn_sizes = _resamples(size.tobytes())
    low, high = _percentiles(total[drawn].sum(1) / drawn_sizes)
    return Estimate(value, stderr, low, high, n)


@lru_cache(maxsize=2)
def _resamples(sizes: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Places of the documents in every resample (RESAMPLES, n), and the sum of their sizes; sizes: float64."""
    size = np.frombuffer(sizes)
    drawn = np.random.default_rng(SEED).integers(len(size), size=(RESAMPLES, len(size)))
    return drawn, size[drawn].sum(1)


def _percentiles(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _mean_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _binary(correct: np.ndarray) -> np.ndarray:
    correct = np.asarray(correct, float)
    if not len(correct) or not np.isin(correct, (0.0, 1.0)).all():
        raise ArtifactError("accuracy: documents need a value of 0 or 1 each, and there must be one")
    return correct
