"""The bootstrap over conversations: the cross-check of `ratio_interval`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from speceval.estimate.statistics import Interval, ratio_interval


def bootstrap_ratio_interval(x: ArrayLike, y: ArrayLike, replicates: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of Σx / Σy over clusters, 95 %: numerators and denominators, shapes (G,).

    Resamples G clusters with replacement (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13); se is
    the replicates' standard deviation, without the G/(G-1) correction. Deterministic in `seed`.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    clusters = len(y)
    draws = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=replicates)
    ratios = (draws @ x) / (draws @ y)
    low, high = map(float, np.quantile(ratios, [0.025, 0.975]))
    return replace(ratio_interval(x, y), low=low, high=high, se=float(ratios.std(ddof=1)))
