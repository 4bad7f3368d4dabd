"""The gate on replays: two drafters on the same texts, where nothing is left to chance.

`tau_committed` of a replay is a number, the same each time (`estimate.replay`), so a loss on these texts is arithmetic:
no error, no "inconclusive". A place without drafts is a step of one token here. The one tolerance is the spread of
floating-point sums. It is measured on the target: both replays have its chance of every token of the texts, which no
drafter changes, so that what differs there is rounding (`target_rounding`); replays of the baseline's own weights in
batches of another size can add to it. What the loss is on prompts like these is another question, with an error:
`gate.check` on the tables of `count`. Docs: docs/measure/may-it-be-released.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from speceval.errors import NotComparable
from speceval.estimate import replay
from speceval.estimate.gate import Verdict
from speceval.store import REQUEST

WORST = 5
"""Places and conversations that a failed check names."""


@dataclass(frozen=True)
class Place:
    """Where accepted tokens were lost: a step that starts after `token` tokens of a text."""

    conversation: str
    seed: int
    turn: int
    token: int
    lost: float
    """Accepted tokens that a free run of the baseline expects there, less those of the new drafter."""


SIGNS = 24
"""Draws of the signs of rounding errors."""
SPREADS = 5.0
"""Standard deviations of what they make of tau that are let through."""


NO_ROUNDING = 0.1
"""Mean |Δ log p| in nats above which two targets are not the same: bfloat16 makes a fifth of it."""


@dataclass(frozen=True)
class Rounding:
    """How far the target's own numbers differ between two replays of the same texts."""

    mean: float
    """Of |Δ log p| over the texts' tokens, in nats."""
    largest: float
    tolerance: float
    """What errors of this size, of either sign, can make of `tau_committed`, as a share."""


@dataclass(frozen=True)
class SuiteTexts:
    """The verdict on the texts of one suite."""

    suite: str
    verdict: Verdict
    every_step: bool
    """Whether there are places without drafts, which count as steps of one token."""
    base_tau: float
    new_tau: float
    change_percent: float
    """100 (new / base - 1), exact."""
    tolerance_percent: float | None
    """What rounding can make of tau: `rounding`, or what `--again` showed where that is more; None: not measured."""
    rounding: Rounding | None
    """Measured on the target, where both replays have its chances."""
    texts: int
    conversations: list[tuple[str, float]]
    """Those that need most steps more, worst first, with how many in percent of their steps."""
    places: list[Place]
    """Where most was lost, worst first."""


@dataclass(frozen=True)
class TextsCheck:
    """The answer on these texts: the worst of the suites'."""

    verdict: Verdict
    suites: list[SuiteTexts]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def count(steps: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """`gate.count`'s table of one suite of a replay: what a free run along the texts expects, in fractions.

    Drafts at and past a text's last token commit nothing and are left out, so that steps + Σ_j accepted_j is what the
    steps commit, and its share of steps `tau_committed`.
    """
    chances, k = replay.survival(steps), replay.depth(steps)
    everywhere = replay.starts(steps, chances)
    v = everywhere * (steps["drafted"] > 0).to_numpy()
    left = steps.groupby(REQUEST, sort=False).cumcount(ascending=False).to_numpy() + 1
    before = np.hstack([np.ones((len(steps), 1)), chances[:, :-1]])
    columns: dict[str, Any] = {"steps": v, "undrafted": everywhere - v}
    for j in range(1, k + 1):
        inside = v * ((j < left) & steps[f"kept_{j}"].notna().to_numpy())
        columns |= {
            f"accepted_{j}": inside * chances[:, j - 1],
            f"drafted_{j}": inside,
            f"reached_{j}": inside * before[:, j - 1],
        }
    table = pd.DataFrame(columns).groupby(steps["conversation"].to_numpy(), sort=False).sum()
    for name in ("accepted", "drafted"):
        table[name] = table[[f"{name}_{j}" for j in range(1, k + 1)]].sum(axis=1)
    table["committed"] = table["steps"] + table["accepted"]
    return table.reindex(sorted(turns["conversation"].unique()), fill_value=0.0)


def check(
    base: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame], margin: float, spread: dict[str, float] | None = None
) -> TextsCheck:
    """Verdict on the texts that both hold; `base`, `new`: the table of steps of each suite of a replay.

    margin: the largest share of `tau_committed` that may be lost. spread: of each suite, the share by which the same
    weights differ from themselves; a loss fails when it is above margin + tolerance, the larger one of spread and
    `target_rounding`. Raises `NotComparable` when a suite's texts are not the same.
    """
    suites = [
        _suite(name, base[name], new[name], margin, None if spread is None else spread.get(name, 0.0))
        for name in base
        if name in new
    ]
    return TextsCheck(Verdict.fail if any(one.verdict is Verdict.fail for one in suites) else Verdict.ok, suites)


def change(base: pd.DataFrame, new: pd.DataFrame) -> float:
    """new / base - 1 of `tau_committed`; 0 where neither drafts."""
    a, b = _tau(base), _tau(new)
    return b / a - 1


def target_rounding(base: pd.DataFrame, new: pd.DataFrame) -> Rounding | None:
    """What the target's rounding differs by between two replays of a suite, row by row; None where one lacks p.

    kept_j = min(1, q/p): an error d of log p moves it by the factor exp(-d). Signs are of chance, so tau is worked out
    `SIGNS` times with other ones, the same for all drafts of a token; the tolerance is `SPREADS` of its standard
    deviations, times the root of two, as the drafter's sums are rounded like the target's.
    """
    if "p_1" not in base or "p_1" not in new:
        return None
    p, other = base["p_1"].to_numpy(float), new["p_1"].to_numpy(float)
    both = (p > 0) & (other > 0)  # NaN is neither
    if not both.any():
        return None
    error = np.zeros(len(p))
    error[both] = found = np.abs(np.log(other[both]) - np.log(p[both]))
    if not found.any():
        return Rounding(0.0, 0.0, 0.0)
    names = [f"kept_{j}" for j in range(1, replay.depth(base) + 1)]
    kept, rng = base[names].to_numpy(float), np.random.default_rng(0)
    due = np.minimum(np.arange(len(base))[:, None] + np.arange(len(names)), len(base) - 1)  # the row of each draft's p
    taus = []
    for _ in range(SIGNS):
        moved = kept * np.exp(error * rng.choice((-1.0, 1.0), len(error)))[due]
        taus.append(
            _tau(base.assign(**dict(zip(names, np.where(kept < 1, np.minimum(moved, 1), kept).T, strict=True))))
        )
    spread = float(np.std(taus, ddof=1) / np.mean(taus))
    return Rounding(float(found.mean()), float(found.max()), float(SPREADS * np.sqrt(2) * spread))


def _steps(steps: pd.DataFrame) -> pd.Series:
    """Decode steps that a free run along the texts expects, by conversation."""
    return replay.decode_steps(steps, replay.depth(steps))


def _tau(steps: pd.DataFrame) -> float:
    """Tokens of a decode step: every place of a text is a token that one commits. 1 without places."""
    return len(steps) / float(_steps(steps).sum()) if len(steps) else 1.0


def _suite(name: str, base: pd.DataFrame, new: pd.DataFrame, margin: float, spread: float | None) -> SuiteTexts:
    keys = [*REQUEST, "step"]
    if len(base) != len(new) or not base[keys].reset_index(drop=True).equals(new[keys].reset_index(drop=True)):
        raise NotComparable(f"suite {name}: the texts are not the same: replay those of the baseline")
    lost = change(base, new)
    rounding = target_rounding(base, new)
    if rounding is not None and rounding.mean > NO_ROUNDING:
        raise NotComparable(
            f"suite {name}: the target gives the texts' tokens other chances than in the baseline (log p differs by "
            f"{rounding.mean:.2g} on average): that is no rounding but another target"
        )
    known = [share for share in (spread, None if rounding is None else rounding.tolerance) if share is not None]
    tolerance = max(known, default=None)
    more = (100 * (_steps(new) / _steps(base) - 1)).sort_values(ascending=False)
    return SuiteTexts(
        suite=name,
        verdict=Verdict.fail if lost < -(margin + (tolerance or 0.0)) else Verdict.ok,
        every_step=bool((base["drafted"] == 0).any() or (new["drafted"] == 0).any()),
        base_tau=_tau(base),
        new_tau=_tau(new),
        change_percent=100 * lost,
        tolerance_percent=None if tolerance is None else 100 * tolerance,
        rounding=rounding,
        texts=len(base[REQUEST].drop_duplicates()),
        conversations=[(str(each), float(value)) for each, value in more.head(WORST).items() if value > 0],
        places=worst_places(base, new),
    )


def worst_places(base: pd.DataFrame, new: pd.DataFrame) -> list[Place]:
    """Where `new` loses most accepted tokens of `base`, worst first: two replays of one suite's texts, row by row."""
    old, fresh = replay.survival(base), replay.survival(new)
    lost = replay.starts(base, old) * (old.sum(axis=1) - fresh.sum(axis=1))
    worst = [row for row in np.argsort(-lost, kind="stable")[:WORST] if lost[row] > 0]
    rows = base.iloc[worst][["conversation", "seed", "turn", "step"]]
    return [
        Place(str(conversation), int(seed), int(turn), int(step), float(lost[row]))
        for row, (conversation, seed, turn, step) in zip(worst, rows.itertuples(index=False), strict=True)
    ]
