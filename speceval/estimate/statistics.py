"""Confidence intervals for ratios of sums when the sampling unit is the conversation.

Every number of `acceptance` is a ratio of sums, R = Σ_c x_c / Σ_c y_c, over conversations (clusters) c.
The turns, seeds and steps of one conversation are correlated, so errors come from the spread between
conversations:

    e_c = (x_c - R y_c) / Σ y        se² = G/(G-1) · Σ_c e_c²

with G the number of conversations: the delta method (linearisation) for the ratio estimator (Cochran
1977, Sampling Techniques, 3rd ed., ch. 6), which is the cluster-robust variance with the finite-cluster
correction G/(G-1) (Cameron and Miller 2015, J. Human Resources 50(2), 317-372).

(R - true R) / se is not Student t with G-1 degrees of freedom when a few conversations hold most of Σ y or
the e_c are skewed. So the degrees of freedom are those of se² (`_degrees_of_freedom`) and the skewness is
taken out by Hall's transformation (`_skewed_quantile`). Differences between two runs rest on smaller terms with
heavier tails, whose skewness is itself uncertain: there the wider of Hall's and Student's bound counts on each
side, with no more degrees of freedom than the terms' own tails leave (`cautious`). What that is worth:
docs/trust/how-sure.md. Nothing here knows what is being counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtr, stdtrit  # incomplete beta inverse; Student t: cdf, quantile

Floats = NDArray[np.float64]

COVERS = (
    "The interval covers new prompts like these and new seeds; the sampling unit is the conversation "
    "(its turns, seeds and steps count as one cluster)."
)

RARE = 0.08
"""Share of the prompts that a small sample must not miss: a kind of prompt, or where a loss falls."""

LEAST_EFFECTIVE = 36
"""Effective conversations (`effective_clusters`) from which a share RARE of them is missed by fewer than 5 % of
samples: (1 - 0.08)^36 = 0.0497. Below it no error rate holds (docs/trust/how-sure.md)."""

LARGE_SHARE = 1 / 3
"""Share of the variance from which one conversation is named."""

NO_SPREAD = 1e-12
"""A standard error up to here, relative to the value, is rounding."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; a field that the data do not determine is None."""

    value: float | None
    low: float | None
    high: float | None
    se: float | None
    clusters: int
    """Clusters that carry information: those with a denominator above zero."""
    df: float
    """Degrees of freedom of the Student t quantile: at most clusters - 1; 0 without an interval."""
    skew: float = 0.0
    """Skewness of the estimate (`Estimates.skew`)."""
    share: float = 0.0
    """Largest share of the variance that one cluster holds (`Estimates.share`)."""
    cautious: bool = False
    """Whether the bounds are those of a difference (`estimate_bounds`)."""

    def as_dict(self) -> dict[str, float | None]:
        """`value`, `low`, `high` and `se`, ready for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "se": self.se}


@dataclass(frozen=True)
class PairedDifference:
    """Ratio b against ratio a, paired by cluster."""

    difference: Interval
    """R_b - R_a."""
    relative_percent: Interval
    """100 (R_b / R_a - 1)."""
    p_value: float | None
    """Two-sided, of no difference; None when the clusters do not determine it."""


@dataclass(frozen=True)
class VarianceComponents:
    """Where the variance of a ratio's estimate comes from; all in the ratio's units."""

    se: float
    """Standard error over new clusters and new samples: `ratio_interval`'s."""
    se_samples: float
    """Standard error over new samples of these very clusters."""
    df_samples: float
    """Degrees of freedom of `se_samples`: samples - clusters."""
    sd_clusters: float
    """Spread between clusters, were each sampled without end: se² = sd_clusters² / clusters + sd_samples² / samples."""
    sd_samples: float
    """Spread between the samples of one cluster."""
    cluster_share: float
    """Share of se² that more samples of the same clusters cannot remove, 0 to 1."""


def effective_clusters(weights: ArrayLike) -> Floats:
    """Number of equal clusters that say as much as these: (Σ w)² / Σ w² over the last axis.

    weights: what each cluster holds, at least 0; without any weight they count as they are. Kish 1965, Survey Sampling.
    """
    w = np.asarray(weights, float)
    squares = np.square(w).sum(-1)
    return np.where(squares > 0, w.sum(-1) ** 2 / np.where(squares > 0, squares, 1), w.shape[-1])


def cluster_warnings(clusters: int, effective: float | None = None, share: float = 0.0) -> list[str]:
    """What to say about intervals that rest on this many clusters (empty: nothing).

    effective: `effective_clusters` of the accepted tokens [default: all alike]; share: `Interval.share`.
    """
    if clusters == 0:
        return ["nothing was measured: no step has drafts"]
    if clusters == 1:
        return ["one conversation: an interval needs at least two"]
    effective = clusters if effective is None else min(effective, clusters)
    found = []
    if effective < LEAST_EFFECTIVE:
        alike = round(effective) == clusters
        counted = "" if alike else f" that count as {effective:.0f}, since some accept far more than others"
        found.append(
            f"only {clusters} conversations{counted}: fewer than {LEAST_EFFECTIVE} can miss a kind of prompt that is "
            f"{100 * RARE:.0f} % of them, so intervals can be too narrow and differences look too sure"
        )
    if share > LARGE_SHARE and clusters > 2:
        found.append(
            f"one conversation holds {100 * share:.0f} % of the variance: without it the result may be another"
        )
    return found


class Estimates(NamedTuple):
    """Ratios of sums with what their intervals need, each of shape (...)."""

    value: Floats
    """NaN where no cluster has a denominator."""
    se: Floats
    """NaN below two clusters."""
    clusters: Floats
    """Clusters with a denominator above zero."""
    df: Floats
    """Degrees of freedom of se²: clusters - 1 when all weigh the same, fewer when some outweigh the others."""
    skew: Floats
    """Σ e³ / (Σ e²)^1.5 of the linearised terms: the estimate's own skewness."""
    df_terms: Floats
    """Degrees of freedom of se² that the tails of the terms leave: 2 / (Σ e⁴ / (Σ e²)² - 1/G), at least 1."""
    share: Floats
    """Largest e² / Σ e²: the share of the variance that one cluster holds."""

    @property
    def cautious_df(self) -> Floats:
        """The smaller of both degrees of freedom."""
        return np.fmin(self.df, self.df_terms)


def ratio_estimates(numerator: ArrayLike, denominator: ArrayLike) -> Estimates:
    """Ratio of sums and its clustered error over the last axis.

    numerator, denominator: shape (..., clusters). Clusters whose denominator is zero carry no information and
    do not count.
    """
    ratio, influence, weights = _linearise(numerator, denominator)
    return _estimates(ratio, influence, weights)


def estimate_bounds(estimates: Estimates, confidence: float = 0.95, cautious: bool = False) -> tuple[Floats, Floats]:
    """Lower and upper bound, elementwise; raises ValueError when confidence is outside (0, 1).

    cautious: on each side the wider of Hall's bound and of Student's, with `Estimates.cautious_df`.

    Hall 1992 (J. Royal Statistical Society B 54(1), 221-228): with a = `skew` and T = (estimate - truth) / se,
    g(T) = T + a T²/3 + a² T³/27 + a/6 has the skewness taken out; it is compared with Student t and inverted.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    quantile = stdtrit(estimates.cautious_df if cautious else estimates.df, (1 + confidence) / 2)
    low, high = (_skewed_quantile(q, estimates.skew) for q in (quantile, -quantile))
    if cautious:
        low, high = np.fmax(low, quantile), np.fmin(high, -quantile)
    return estimates.value - low * estimates.se, estimates.value - high * estimates.se


def effective_bounds(estimates: Estimates, trials: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Korn and Graubard's bounds of a rate (see `proportion_interval`), elementwise; trials: Σ denominators."""
    p, n = estimates.value, np.asarray(trials, float)
    tail = (1 + confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        shrink = (stdtrit(n - 1, tail) / stdtrit(estimates.cautious_df, tail)) ** 2
        effective = np.minimum(n, p * (1 - p) / estimates.se**2 * shrink)
    effective = np.where((p <= 0) | (p >= 1), estimates.clusters, effective)
    successes, failures = p * effective, (1 - p) * effective
    low = np.where(p <= 0, 0.0, betaincinv(successes, failures + 1, 1 - tail))
    high = np.where(p >= 1, 1.0, betaincinv(successes + 1, failures, tail))
    return low, high


def ratio_interval(
    numerator_by_cluster: ArrayLike,
    denominator_by_cluster: ArrayLike,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Interval of Σ numerator / Σ denominator (formula and sources: module docstring, `estimate_bounds`).

    Both arrays have shape (G,). Clusters whose denominator is zero carry no information and leave G. The
    interval is cut to `bounds`, the values that the ratio can take at all, which costs no coverage. One
    cluster gives a value without interval, none gives nothing. Raises ValueError when the shapes differ, a
    denominator is negative or confidence is outside (0, 1).
    """
    x, y = _vectors(numerator_by_cluster, denominator_by_cluster)
    found = ratio_estimates(x, y)
    low, high = np.clip(estimate_bounds(found, confidence), *bounds)
    return _interval(found, low, high)


def proportion_interval(
    numerator_by_cluster: ArrayLike, denominator_by_cluster: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Interval of a ratio of counts, 0 <= numerator <= denominator, inside [0, 1] also at extreme rates.

    Korn and Graubard 1998 (Survey Methodology 24(2), 193-201): the clustered standard error is turned
    into an effective number of independent trials n* = p(1-p)/se², shrunk by (t_{n-1}/t_df)² and
    capped at n; the interval is Clopper and Pearson's for p·n* successes of n*. df is `Estimates.cautious_df`: where
    few clusters ever succeed, they alone tell the error. Where every cluster has
    rate 0 (or 1) se says nothing and each cluster counts as one trial. Shapes and errors as
    `ratio_interval`.
    """
    x, y = _vectors(numerator_by_cluster, denominator_by_cluster)
    found = ratio_estimates(x, y)
    return _interval(found, *effective_bounds(found, y.sum(), confidence))


def paired_estimates(
    a_num: ArrayLike, a_den: ArrayLike, b_num: ArrayLike, b_den: ArrayLike, relative: bool
) -> Estimates:
    """R_b - R_a, or 100 (R_b/R_a - 1) if `relative`, over the last axis; entry c of all four belongs to one cluster.

    The clustered error is that of the difference of the two ratios' linearised terms e_c, so what a
    cluster has in common in both runs cancels: e_b - e_a for the difference, 100 (e_b - (R_b/R_a) e_a) /
    R_a for the relative one (delta method; Cochran 1977, ch. 6, comparison of two ratios). Clusters without a
    denominator in either run are left out; the relative difference is NaN or infinite where R_a = 0.
    """
    a_y, b_y = np.asarray(a_den, float), np.asarray(b_den, float)
    both = (a_y > 0) & (b_y > 0)
    ratio_a, influence_a, weights_a = _linearise(a_num, np.where(both, a_y, 0))
    ratio_b, influence_b, weights_b = _linearise(b_num, np.where(both, b_y, 0))
    weights = (weights_a + weights_b) / 2
    if not relative:
        return _estimates(ratio_b - ratio_a, influence_b - influence_a, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        relation = (ratio_b / ratio_a)[..., None]
        influence = 100 * (influence_b - relation * influence_a) / ratio_a[..., None]
    return _estimates(100 * (relation[..., 0] - 1), influence, weights)


def paired_ratio_difference(
    a_num: ArrayLike,
    a_den: ArrayLike,
    b_num: ArrayLike,
    b_den: ArrayLike,
    confidence: float = 0.95,
    most: float = np.inf,
) -> PairedDifference:
    """R_b - R_a and 100 (R_b/R_a - 1) (`paired_estimates`) with cautious bounds; all four arrays of shape (G,).

    The p-value is that of the difference. The relative difference has no value where R_a = 0. Bounds are cut to what
    can be: a difference to `most` either way, a relative one of ratios that are never negative to -100 %. Raises
    ValueError when shapes differ or a denominator is negative.
    """
    a_x, a_y, b_x, b_y = _vectors(a_num, a_den, b_num, b_den)
    negative = min(a_x.min(initial=0), b_x.min(initial=0)) < 0

    def interval(relative: bool) -> Interval:
        found = paired_estimates(a_x, a_y, b_x, b_y, relative)
        limits = (-np.inf if negative else -100, np.inf) if relative else (-most, most)
        bounds = np.clip(estimate_bounds(found, confidence, cautious=True), *limits)
        return replace(_interval(found, *bounds), df=float(found.cautious_df), cautious=True)

    difference = interval(relative=False)
    if a_x[(a_y > 0) & (b_y > 0)].sum() == 0:
        relative = Interval(None, None, None, None, difference.clusters, 0.0)
    else:
        relative = interval(relative=True)
    return PairedDifference(difference, relative, _two_sided_p(difference))


def variance_components(numerator: ArrayLike, denominator: ArrayLike, cluster: ArrayLike) -> VarianceComponents | None:
    """How much of a ratio's variance lies between clusters and how much between the samples of a cluster.

    numerator, denominator: shape (samples,); cluster: which one each sample belongs to, shape (samples,). One-way
    random effects on the linearised terms e_cs = (x_cs - R y_cs) / Σ y, by the method of moments (Searle, Casella and
    McCulloch 1992, Variance Components, ch. 3): with n_c samples of cluster c,

        samples' part of se²: Σ_c n_c/(n_c - 1) · Σ_s (e_cs - mean_c)²        clusters' part: the rest, at least 0

    A cluster with one sample takes the mean of the others' parts per sample. Samples without denominator are left out.
    None when no cluster has two samples, with fewer than two clusters, or without any spread. Raises ValueError as
    `ratio_interval`.
    """
    x, y = _vectors(numerator, denominator)
    owner = np.unique(np.asarray(cluster)[y > 0], return_inverse=True)[1]
    x, y = x[y > 0], y[y > 0]
    counts = np.bincount(owner)
    if len(counts) < 2 or counts.max() < 2:
        return None
    terms = (x - x.sum() / y.sum() * y) / y.sum()
    within = np.bincount(owner, (terms - (np.bincount(owner, terms) / counts)[owner]) ** 2)
    several = counts > 1
    own = within[several] / (counts[several] - 1)  # variance of one term
    samples_part = (counts[several] * own).sum() + (~several).sum() * own.mean()
    total = len(counts) / (len(counts) - 1) * np.square(np.bincount(owner, terms)).sum()
    if total <= NO_SPREAD**2:
        return None
    clusters_part = max(total - samples_part, 0.0)
    return VarianceComponents(
        se=float(np.sqrt(total)),
        se_samples=float(np.sqrt(samples_part)),
        df_samples=float(len(y) - len(counts)),
        sd_clusters=float(np.sqrt(clusters_part * len(counts))),
        sd_samples=float(np.sqrt(samples_part * len(y))),
        cluster_share=float(clusters_part / total),
    )


def tail(estimates: Estimates, limit: float = 0.0) -> Floats:
    """One-sided p-value of "the truth is not below `limit`" of a difference, elementwise; goes with cautious bounds.

    For "the truth is not above" give the negative estimates and limit (`mirrored`).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t: Floats = (estimates.value - limit) / estimates.se
        found: Floats = stdtr(estimates.cautious_df, np.fmax(t, _without_skew(t, estimates.skew)))
    return found


def mirrored(estimates: Estimates) -> Estimates:
    """The estimates of minus the quantity."""
    return estimates._replace(value=-estimates.value, skew=-estimates.skew)


def p_value_below(difference: Interval, limit: float = 0.0) -> float | None:
    """One-sided p-value of "the truth is not below `limit`", the one that goes with the interval's upper bound.

    difference: of `paired_ratio_difference`. None when the clusters do not determine it; without any spread 1, and
    below the limit 0, if so many clusters agree that a rare one would have been among them (`LEAST_EFFECTIVE`).
    """
    if difference.value is None or difference.se is None:
        return None
    if _without_spread(difference):
        if difference.value - limit >= -NO_SPREAD:
            return 1.0
        return 0.0 if difference.clusters >= LEAST_EFFECTIVE else None
    return float(tail(as_estimates(difference), limit))


def as_estimates(interval: Interval) -> Estimates:
    """The fields of an interval that has an error, for the functions that take arrays."""
    fields = (interval.value, interval.se, interval.clusters, interval.df, interval.skew, np.inf, interval.share)
    return Estimates(*(np.asarray(field, float) for field in fields))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 6, 1979, 65-70), in the order given.

    None stays None and does not count as a test.
    """
    tested = {index: p for index, p in enumerate(p_values) if p is not None}
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (index, p) in enumerate(sorted(tested.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def detectable(difference: Interval, level: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true difference that one two-sided test at `level` finds with `power`, given the error of `difference`.

    (critical value + t_{df, power}) · se (Bloom 1995, Evaluation Review 19(5), 547-556), with the critical value of the
    test in use on the side where it is larger; None without se, or without any spread, which promises nothing.
    """
    if difference.value is None or difference.se is None or _without_spread(difference):
        return None
    none = as_estimates(difference)._replace(value=np.asarray(0.0))
    low, high = estimate_bounds(none, 1 - level, cautious=True)
    critical = float(np.maximum(-low, high))
    return critical + float(stdtrit(np.float64(difference.df), power)) * float(difference.se)


def _linearise(numerator: ArrayLike, denominator: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Ratio of sums, each cluster's linearised term e_c (they add up to zero), its weight y_c / Σ y."""
    y = np.asarray(denominator, float)
    x = np.where(y > 0, numerator, 0.0)
    total = y.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no cluster has a denominator
        ratio = x.sum(-1, keepdims=True) / total
        return ratio[..., 0], (x - ratio * y) / total, y / total


def _estimates(value: Floats, influence: Floats, weights: Floats) -> Estimates:
    """Error, degrees of freedom and skewness from linearised terms that add up to zero."""
    clusters = (weights > 0).sum(-1).astype(float)
    squares = np.square(influence).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        se = np.sqrt(clusters / (clusters - 1) * squares)
        skew = np.where(squares > 0, (influence**3).sum(-1) / squares**1.5, 0.0)
        excess = (influence**4).sum(-1) / squares**2 - 1 / clusters
        df_terms = np.where(excess > 0, np.fmax(2 / excess, 1.0), np.inf)
        share = np.where(squares > 0, np.square(influence).max(-1, initial=0) / squares, 0.0)
    return Estimates(value, se, clusters, _degrees_of_freedom(weights), skew, df_terms, share)


def _degrees_of_freedom(weights: Floats) -> Floats:
    """Degrees of freedom of Σ e_c² when the clusters' own ratios scatter alike: weights w_c, shape (..., clusters).

    Satterthwaite's 2 E[V]² / Var[V] of the quadratic form V = Σ w_c² (r_c - R)², r_c independent with one variance
    (Bell and McCaffrey 2002, Survey Methodology 28(2), 169-181, for this one regressor); G - 1 for equal weights, at
    least 1. With S_k = Σ w^k: (S_2 + S_2² - 2 S_3)² / (S_4 + 4 S_2 S_4 - 4 S_5 + S_2⁴ - 4 S_2² S_3 + 2 S_3²).
    """
    s2, s3, s4, s5 = ((weights**power).sum(-1) for power in (2, 3, 4, 5))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (s2 + s2**2 - 2 * s3) ** 2 / (s4 + 4 * s2 * s4 - 4 * s5 + s2**4 - 4 * s2**2 * s3 + 2 * s3**2)
    return np.where((weights > 0).sum(-1) > 1, np.fmax(found, 1.0), 0.0)


def _without_skew(t: Floats, skew: Floats) -> Floats:
    """Hall's g(T): see `estimate_bounds`."""
    return t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6


def _skewed_quantile(quantile: ArrayLike, skew: ArrayLike) -> Floats:
    """The T with g(T) = `quantile`: g(T) = ((1 + a T/3)³ - 1)/a + a/6."""
    a, q = np.asarray(skew, float), np.asarray(quantile, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 3 / a * (np.cbrt(1 + a * (q - a / 6)) - 1)
    return np.where(np.abs(a) > 1e-6, found, q)


def _without_spread(estimate: Interval) -> bool:
    assert estimate.value is not None and estimate.se is not None
    return estimate.se <= NO_SPREAD * max(1.0, abs(estimate.value))


def _two_sided_p(estimate: Interval) -> float | None:
    """Of a value of zero; agrees with the interval. Without any spread: 1 for zero, else None (undetermined)."""
    if estimate.value is None or estimate.se is None:
        return None
    if _without_spread(estimate):
        return 1.0 if abs(estimate.value) <= NO_SPREAD else None
    found = as_estimates(estimate)
    return min(1.0, 2 * min(float(tail(found)), float(tail(mirrored(found)))))


def _interval(estimates: Estimates, low: ArrayLike, high: ArrayLike) -> Interval:
    """Plain floats; None for what this many clusters leave undetermined."""
    value, se, clusters, df, skew, _, share = (float(field) for field in estimates)
    count = int(clusters)
    if count < 2:
        return Interval(value if count else None, None, None, None, count, 0.0)
    return Interval(value, float(np.asarray(low)), float(np.asarray(high)), se, count, df, skew, share)


def _vectors(*arrays: ArrayLike) -> list[Floats]:
    """Numerators and denominators in turn, as float arrays of one shape (G,)."""
    vectors = [np.asarray(a, float) for a in arrays]
    if vectors[0].ndim != 1 or len({v.shape for v in vectors}) > 1:
        raise ValueError(f"need arrays of one shape (G,), got {', '.join(str(v.shape) for v in vectors)}")
    if any((denominator < 0).any() for denominator in vectors[1::2]):
        raise ValueError("denominators must not be negative")
    return vectors
