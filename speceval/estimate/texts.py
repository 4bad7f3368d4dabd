"""The gate on replays: two drafters on the same texts, where nothing is left to chance.

`tau_committed` of a replay is a number, the same each time (`estimate.replay`), so a loss on these texts is arithmetic:
no error, no "inconclusive". The one tolerance is the spread of floating-point sums, measured by replaying the
baseline's own weights again in batches of another size. What the loss is on prompts like these is another question,
with an error: `gate.check` on the tables of `count`. Docs: docs/measure/may-it-be-released.md.
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


@dataclass(frozen=True)
class SuiteTexts:
    """The verdict on the texts of one suite."""

    suite: str
    verdict: Verdict
    base_tau: float
    new_tau: float
    change_percent: float
    """100 (new / base - 1) of `tau_committed`, exact."""
    tolerance_percent: float | None
    """Largest change that the baseline's own weights showed in batches of another size; None: not measured."""
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
    v = replay.starts(steps, chances) * (steps["drafted"] > 0).to_numpy()
    left = steps.groupby(REQUEST, sort=False).cumcount(ascending=False).to_numpy() + 1
    before = np.hstack([np.ones((len(steps), 1)), chances[:, :-1]])
    columns: dict[str, Any] = {"steps": v}
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
    weights differ from themselves; a loss fails when it is above margin + spread. Raises `NotComparable` when a suite's
    texts are not the same.
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


def _tau(steps: pd.DataFrame) -> float:
    totals = replay.conversation_totals(steps).sum()
    return float(totals["committed"] / totals["steps"]) if totals["steps"] else 1.0


def _suite(name: str, base: pd.DataFrame, new: pd.DataFrame, margin: float, spread: float | None) -> SuiteTexts:
    keys = [*REQUEST, "step"]
    if len(base) != len(new) or not base[keys].reset_index(drop=True).equals(new[keys].reset_index(drop=True)):
        raise NotComparable(f"suite {name}: the texts are not the same: replay those of the baseline")
    lost = change(base, new)
    needed = pd.DataFrame(
        {"base": replay.conversation_totals(base)["steps"], "new": replay.conversation_totals(new)["steps"]}
    )
    more = (100 * (needed["new"] / needed["base"].where(needed["base"] > 0) - 1)).dropna().sort_values(ascending=False)
    return SuiteTexts(
        suite=name,
        verdict=Verdict.fail if lost < -(margin + (spread or 0.0)) else Verdict.ok,
        base_tau=_tau(base),
        new_tau=_tau(new),
        change_percent=100 * lost,
        tolerance_percent=None if spread is None else 100 * spread,
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
