"""The regression gate: has a drafter lost more acceptance than a margin, against a baseline on the same conversations?

One-sided non-inferiority, paired by conversation (docs/measure/may-it-be-released.md). Two hypotheses about the
relative change of tau:

    pass   rejects "the loss is the margin or more" at 5 %: the one-sided 95 % lower bound is above -margin
    fail   rejects "the loss is the margin or less" at 5 %, of tau or of a position (`_adjust`)

so at a loss of exactly the margin each is said in at most 5 % of cases from 36 effective conversations on, and
`inconclusive` in the rest. That has to hold too when few prompts carry the loss: a pass needs enough conversations to
have met them (`LEAST_EFFECTIVE`), and an error no smaller than such a loss would give (`_error_of_a_rare_loss`). Where
a drafter has no drafts in many steps, all decode steps count (`over_all_steps`): one that drafts more often would else
seem worse. Pure: counts in, verdict out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit  # Student t: quantile

from speceval.errors import NotComparable
from speceval.estimate.acceptance import FEW_UNDRAFTED, conversation_totals, drafted_steps
from speceval.estimate.statistics import (
    LEAST_EFFECTIVE,
    NO_SPREAD,
    RARE,
    Estimates,
    Floats,
    Interval,
    as_estimates,
    cluster_warnings,
    effective_clusters,
    estimate_bounds,
    holm,
    p_value_below,
    paired_ratio_difference,
)

Test = TypeVar("Test")

LEVEL = 0.05
"""Chance of a wrong `pass`, and of a wrong `fail`, at a loss of exactly the margin."""

DOUBT = 0.005
"""Chance that a tau which is the same counts as risen (`_p_position`): a loss behind a gain is then harder to see."""

POWER = 0.80
"""Chance of a verdict with the number of conversations that an inconclusive check asks for."""

MOST_CONVERSATIONS = 1_000_000
"""Where more would be needed, the estimate lies at the margin and no number is given."""

LEAST_ACCEPTED = 20
"""A position is tested when the baseline accepted so many drafts there, and the new run reached it as often."""


class Verdict(StrEnum):
    """From best to worst."""

    ok = "pass"
    inconclusive = "inconclusive"
    fail = "fail"


EXIT_CODES = {Verdict.ok: 0, Verdict.fail: 1, Verdict.inconclusive: 2}


@dataclass(frozen=True)
class PositionCheck:
    """One draft position: its acceptance rate, new run against baseline, over one mix of conversations.

    Of the steps that reach it; where tau has risen beyond doubt, of all steps (`_p_position`). A conversation weighs as
    both runs have such steps in it (`_standardised`): pooled over all conversations the rate of an unchanged position
    falls when an earlier one gains in the hard ones.
    """

    position: int
    base: float | None
    new: float | None
    change_percent: float | None
    """100 (new / base - 1)."""
    tau_percent: float | None
    """What that change does to tau if later positions keep theirs among the steps that reach them, in percent of it."""
    margin_percent: float
    """Largest loss of the rate that may be: one that costs the margin of tau by itself, or as asked for."""
    p_value: float | None
    """Of a loss of at most the margin; None where too few drafts reached the position, or it could lose all."""
    p_adjusted: float | None
    """For all tests of the check: `_adjust`."""
    failed: bool


@dataclass(frozen=True)
class SuiteCheck:
    """The verdict on one suite, and what it rests on."""

    suite: str
    verdict: Verdict
    tau_verdict: Verdict
    """The same without the positions."""
    reason: str
    conversations: int
    """Conversations with drafted steps in both runs: what is compared."""
    effective: float
    """How many alike they count as, by the drafts that the baseline accepted: `statistics.effective_clusters`."""
    only_base: int
    only_new: int
    """Conversations of one run alone: left out."""
    every_step: bool
    """Whether tau is over all decode steps (`over_all_steps`), not those with drafts alone."""
    base_tau: float | None
    new_tau: float | None
    change_percent: dict[str, float | None]
    """100 (new tau / base tau - 1): `value`, `se`, and `low`, `high`, each a one-sided 95 % bound."""
    pass_bound: float | None
    """The lower bound that a pass needs above -margin: `low`, or lower where a rare loss could be missed."""
    p_value: float | None
    """Of a loss of tau of at most the margin."""
    p_adjusted: float | None
    needed: int | None
    """Conversations, in all, that would settle an inconclusive check with 80 % power; None where no number would."""
    positions: list[PositionCheck]
    warnings: list[str]


@dataclass(frozen=True)
class Check:
    """The gate's answer: the worst of the suites' verdicts."""

    verdict: Verdict
    margin_percent: float
    suites: list[SuiteCheck]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 inconclusive."""
        return EXIT_CODES[self.verdict]

    def as_json(self) -> dict[str, Any]:
        """Plain values, None for what the data leave undetermined."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    """Counts of one run on the compared conversations, as arrays; the last axis is the conversation."""

    steps: Floats
    tokens: Floats
    """steps + accepted: `tokens` / `steps` is tau."""
    accepted: Floats
    """#(A >= j), shape (K, conversations)."""
    reached: Floats
    """#(A >= j-1 and drafted >= j), shape (K, conversations)."""


@dataclass(frozen=True)
class _Compared:
    """One suite before its verdict."""

    base: _Run
    new: _Run
    only_base: int
    only_new: int
    undrafted: int
    """Conversations of both runs without drafted steps in one."""
    every_step: bool
    effective: float
    change: Interval
    pass_bound: float | None
    p_tau: float | None
    position_margins: list[float]
    risen: bool
    """Whether tau rose beyond doubt."""
    p_positions: list[float | None]


def count(steps: pd.DataFrame, turns: pd.DataFrame, k: int) -> pd.DataFrame:
    """Counts per conversation of one suite of a run: all that the gate needs.

    Index: conversation, sorted (those of `turns`: one without drafted steps has zeros). Columns: steps (with drafts),
    undrafted (steps without), drafted, accepted, committed, then for j = 1 … k accepted_j = #(A >= j), drafted_j =
    #(drafted >= j) and reached_j = #(A >= j-1 and drafted >= j).
    """
    rows = drafted_steps(steps)
    cluster, ids = pd.factorize(rows["conversation"])
    shape = (len(ids), k + 1, k + 1)  # conversation, drafted, accepted
    cell = np.ravel_multi_index((cluster, rows["drafted"].to_numpy(), rows["accepted"].to_numpy()), shape)
    table = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    columns: dict[str, Any] = {f"accepted_{j}": table[:, :, j:].sum((1, 2)) for j in range(1, k + 1)}
    columns |= {f"drafted_{j}": table[:, j:, :].sum((1, 2)) for j in range(1, k + 1)}
    columns |= {f"reached_{j}": table[:, j:, j - 1 :].sum((1, 2)) for j in range(1, k + 1)}
    counts = conversation_totals(steps).join(pd.DataFrame(columns, index=ids))
    counts = counts.reindex(sorted(turns["conversation"].unique()), fill_value=0)
    undrafted = steps.loc[steps["drafted"] == 0, "conversation"].value_counts()
    counts.insert(1, "undrafted", undrafted.reindex(counts.index, fill_value=0))
    return counts.astype("int64")


def over_all_steps(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts with the steps without drafts among the steps; a draft that was not made counts as not accepted.

    So every step that accepts all before it reaches position j, and tau is what a user's clock sees.
    """
    every = counts["steps"] + counts["undrafted"]
    reached = {f"reached_{j}": counts[f"accepted_{j - 1}"] if j > 1 else every for j in range(1, _k(counts) + 1)}
    return counts.assign(steps=every, **reached)


def check(
    base: Mapping[str, pd.DataFrame],
    new: Mapping[str, pd.DataFrame],
    margin: float,
    position_margin: float | None = None,
) -> Check:
    """Verdict on a new run against a baseline; `base` and `new` give `count`'s table of each suite.

    margin: the largest share of tau that may be lost, in (0, 1). position_margin: the largest share of its rate that a
    position may lose, in (0, 1]; by default what costs `margin` of tau by itself. Suites and conversations
    of one side alone are left out. Raises `NotComparable` when no suite, or no conversation of a suite, is in both, and
    where one has many steps without drafts and the other does not tell (`undrafted`).
    """
    common = [suite for suite in base if suite in new]
    if not common:
        raise NotComparable(f"no suite in common: {', '.join(base)} | {', '.join(new)}: run the baseline's suites")
    compared = {suite: _compare(suite, base[suite], new[suite], margin, position_margin) for suite in common}
    taus = _adjust({suite: found.p_tau for suite, found in compared.items()})
    positions = _adjust(
        {(suite, j): p for suite, found in compared.items() for j, p in enumerate(found.p_positions, start=1)}
    )
    suites = []
    for suite, found in compared.items():
        rows = _positions(found, [positions[suite, j] for j in range(1, len(found.p_positions) + 1)])
        suites.append(_judge(suite, found, margin, taus[suite], rows, LEVEL / 2 / len(common)))
    worst = max((suite.verdict for suite in suites), key=list(Verdict).index)
    return Check(worst, 100 * margin, suites)


def _position_margins(base: _Run, margin: float) -> list[float]:
    """The share of its rate that each position may lose: what would cost `margin` of tau by itself.

    tau = 1 + Σ_i u_i with u_i = c_1 … c_i, so a share d of c_j costs d · Σ_{i>=j} u_i. Where no position gained, a loss
    of tau within `margin` leaves every position within its own, its c_j and its u_j: testing positions adds no other
    kind of false alarm. 1 where the whole position is worth less.
    """
    allowed = margin * float(base.tokens.sum())
    return [min(1.0, allowed / tokens) if tokens else 1.0 for tokens in _tokens_from(base)]


def conversations_needed(gap: float, spread: float, level: float, tested: float | None = None) -> int | None:
    """Conversations with which a one-sided t test at `level` sees a distance of `gap` in `POWER` of cases.

    spread: standard error times the square root of its number of conversations, in the unit of `gap`; tested: the same
    of the error that the test uses, where that is another. None when the number is beyond `MOST_CONVERSATIONS`. Solves
    n = ((tested t_{n-1, 1-level} + spread t_{n-1, power}) / gap)².
    """
    tested = spread if tested is None else tested
    if gap <= 0 or tested / gap > math.sqrt(MOST_CONVERSATIONS):
        return None
    n = 30.0
    for _ in range(50):
        reach = tested * stdtrit(max(n - 1, 1), 1 - level) + spread * stdtrit(max(n - 1, 1), POWER)
        n = max((reach / gap) ** 2, 2.0)
    return math.ceil(n) if n <= MOST_CONVERSATIONS else None


def _compare(
    suite: str, base: pd.DataFrame, new: pd.DataFrame, margin: float, position_margin: float | None
) -> _Compared:
    """Pair two tables of counts by conversation and test tau and every position against their margins."""
    common = base.index.intersection(new.index)
    if common.empty:
        raise NotComparable(f"suite {suite}: no conversation in common: run the baseline's conversations")
    every_step = _has_few_drafts(base) or _has_few_drafts(new)
    if every_step:
        if not ("undrafted" in base and "undrafted" in new):
            raise NotComparable(
                f"suite {suite}: many steps of one had no drafts, and the other does not tell of its own: write the "
                "baseline again (`speceval baseline`)"
            )
        base, new = over_all_steps(base), over_all_steps(new)
    k = min(_k(base), _k(new))
    both = (base["steps"].reindex(common) > 0) & (new["steps"].reindex(common) > 0)
    old, fresh = (_arrays(counts.reindex(common[both]), k) for counts in (base, new))
    change = paired_ratio_difference(
        old.tokens, old.steps, fresh.tokens, fresh.steps, confidence=1 - 2 * LEVEL
    ).relative_percent
    effective = min(float(effective_clusters(old.tokens - old.steps)), change.clusters)
    risen = change.se is not None and bool(risen_beyond_doubt(as_estimates(change)))
    margins = _position_margins(old, margin) if position_margin is None else [position_margin] * k
    return _Compared(
        base=old,
        new=fresh,
        only_base=len(base) - len(common),
        only_new=len(new) - len(common),
        undrafted=int((~both).sum()),
        every_step=every_step,
        effective=effective,
        change=change,
        pass_bound=_pass_bound(change, margin, effective),
        p_tau=p_value_below(change, -100 * margin),
        position_margins=margins,
        risen=risen,
        p_positions=[_p_position(old, fresh, j, lost, risen) for j, lost in enumerate(margins, start=1)],
    )


def risen_beyond_doubt(change: Estimates) -> NDArray[np.bool_]:
    """Whether the one-sided lower bound at `DOUBT` of a change is above 0, elementwise."""
    return np.asarray(estimate_bounds(change, 1 - 2 * DOUBT, cautious=True)[0] > 0)


def _has_few_drafts(counts: pd.DataFrame) -> bool:
    """Whether more than `FEW_UNDRAFTED` of the decode steps had no drafts."""
    undrafted = counts["undrafted"].sum() if "undrafted" in counts else 0
    return bool(undrafted > FEW_UNDRAFTED * (counts["steps"].sum() + undrafted))


def _error_of_a_rare_loss(margin: float, effective: float) -> float:
    """Standard error of a change of tau by -`margin`, in percent, when a share RARE of the conversations carries it.

    How many of them a sample holds is binomial: their mean loss has the variance margin² (1/RARE - 1) / effective.
    Where the sample holds too few of them its own spread is smaller, and tells nothing of that.
    """
    return 100 * margin * math.sqrt((1 / RARE - 1) / effective) if effective else math.inf


def _pass_bound(change: Interval, margin: float, effective: float) -> float | None:
    """Lower bound of the change with no smaller an error than a rare loss of the margin has."""
    if change.se is None or change.low is None:
        return None
    found = as_estimates(change)
    error = np.maximum(found.se, _error_of_a_rare_loss(margin, effective))
    low, _ = estimate_bounds(found._replace(se=error), 1 - 2 * LEVEL, cautious=True)
    return min(change.low, float(low))


def _p_position(base: _Run, new: _Run, j: int, margin: float, risen: bool) -> float | None:
    """p-value of "position j lost at most the share `margin` of its rate", None where that is not tested.

    A drafter that gains at position 1 in the hard steps of a conversation lets more hard steps reach position 2, whose
    rate among those falls though nothing became worse. Such a gain takes nothing from the share of all steps that
    accept position 2. So that has to have fallen too; it is no further chance of a false alarm, so its p-value is
    not corrected for there being K positions. Where tau has `risen` beyond doubt, that share alone is asked, and may
    lose the margin.
    """
    both = (base.reached[j - 1] > 0) & (new.reached[j - 1] > 0)
    enough = min(base.accepted[j - 1, both].sum(), new.reached[j - 1, both].sum()) >= LEAST_ACCEPTED
    if not enough or margin >= 1:
        return None
    of_all = _p_loss(base, new, j, margin if risen else 0.0, every=True)
    if risen or of_all is None:
        return of_all
    of_reached = _p_loss(base, new, j, margin, every=False)
    return None if of_reached is None else max(of_reached, of_all / len(base.accepted))


def _p_loss(base: _Run, new: _Run, j: int, margin: float, every: bool) -> float | None:
    """p-value of "the rate lost at most the share `margin`": of `every` step, or of those that reach position j.

    Tests c_new - (1 - margin) c_base >= 0 for the standardised rates, which is linear in both: the error of their
    quotient is 0 where the new run accepted nothing. The contrast is at least 0 where no conversation lost more than
    the margin, whatever happened at other positions.
    """
    base_accepted, new_accepted, weight = _standardised(base, new, j, every)
    return p_value_below(paired_ratio_difference((1 - margin) * base_accepted, weight, new_accepted, weight).difference)


def _standardised(base: _Run, new: _Run, j: int, every: bool) -> tuple[Floats, Floats, Floats]:
    """Accepted drafts of position j per conversation, baseline and new run, had both had it tried `weight` times.

    weight = n_b n_n / (n_b + n_n) for n_b and n_n trials (Mantel and Haenszel 1959, J. National Cancer Institute 22,
    719-748): the rates of a conversation are compared within it, each by what both runs tell of it. Trials are the
    steps that reach the position, or `every` step.
    """
    trials = [run.steps if every else run.reached[j - 1] for run in (base, new)]
    total = trials[0] + trials[1]
    weight = trials[0] * trials[1] / np.where(total > 0, total, 1)
    base_accepted, new_accepted = (
        weight * run.accepted[j - 1] / np.where(count > 0, count, 1)
        for run, count in zip((base, new), trials, strict=True)
    )
    return base_accepted, new_accepted, weight


def _adjust(p_values: Mapping[Test, float | None]) -> dict[Test, float | None]:
    """Adjusted p-values of one of the two families, the suites' taus and all positions: twice Holm's.

    Each family has half of `LEVEL`, so both together raise a false alarm in at most `LEVEL` of cases. Were there one
    family only, tau would stand back behind all the positions and lose power.
    """
    doubled = [None if p is None else min(1.0, 2 * p) for p in holm(list(p_values.values()))]
    return dict(zip(p_values, doubled, strict=True))


def _judge(
    suite: str, found: _Compared, margin: float, p_adjusted: float | None, positions: list[PositionCheck], level: float
) -> SuiteCheck:
    """The verdict on one suite; p_adjusted: of tau; level: the strictest at which tau may have to fail."""
    change, needed = found.change, None
    failed = [f"position {row.position} lost {-(row.change_percent or 0):.1f} %" for row in positions if row.failed]
    if _significant(p_adjusted):
        tau_verdict = Verdict.fail
        failed.insert(0, f"tau lost {-(change.value or 0):.2f} %")
    elif found.pass_bound is not None and found.pass_bound > -100 * margin and found.effective >= LEAST_EFFECTIVE:
        tau_verdict, reason = Verdict.ok, f"the change of tau is at least {found.pass_bound:+.2f} %"
    else:
        tau_verdict = Verdict.inconclusive
        needed, reason = _what_would_settle(found, margin, level)
    if failed:
        needed, reason = None, f"{', '.join(failed)}: more than the margin"
        if found.effective < LEAST_EFFECTIVE:
            reason += (
                f"; of so few conversations (they count as {found.effective:.0f}) more than {100 * LEVEL:.0f} % of "
                "fails can be wrong"
            )
    return SuiteCheck(
        suite=suite,
        verdict=Verdict.fail if failed else tau_verdict,
        tau_verdict=tau_verdict,
        reason=reason,
        conversations=change.clusters,
        effective=found.effective,
        every_step=found.every_step,
        only_base=found.only_base,
        only_new=found.only_new,
        base_tau=_ratio(found.base.tokens, found.base.steps),
        new_tau=_ratio(found.new.tokens, found.new.steps),
        change_percent=change.as_dict(),
        pass_bound=found.pass_bound,
        p_value=found.p_tau,
        p_adjusted=p_adjusted,
        needed=needed,
        positions=positions,
        warnings=_warnings(found),
    )


def _positions(found: _Compared, adjusted: list[float | None]) -> list[PositionCheck]:
    rows = []
    tokens = float(found.base.tokens.sum())
    for j, (margin, p, beyond) in enumerate(
        zip(found.position_margins, found.p_positions, _tokens_from(found.base), strict=True), start=1
    ):
        *accepted, weight = _standardised(found.base, found.new, j, found.risen)
        base, new = (_ratio(count, weight) for count in accepted)
        change = 100 * (new / base - 1) if base and new is not None else None
        rows.append(
            PositionCheck(
                position=j,
                base=base,
                new=new,
                change_percent=change,
                tau_percent=change * beyond / tokens if change is not None else None,
                margin_percent=100 * margin,
                p_value=p,
                p_adjusted=adjusted[j - 1],
                failed=_significant(adjusted[j - 1]),
            )
        )
    return rows


def _significant(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


def _what_would_settle(found: _Compared, margin: float, level: float) -> tuple[int | None, str]:
    """Conversations that would settle an inconclusive check if its estimate were the truth, and the words for it."""
    change = found.change
    if change.value is None or change.se is None or change.low is None:
        return None, cluster_warnings(change.clusters)[0]
    above = change.value + 100 * margin
    bounds = f"the change of tau lies between {change.low:+.2f} and {change.high:+.2f} %"
    if change.low > -100 * margin:  # what stands in the way of a pass is a loss that the sample may have missed
        alike = f" that count as {found.effective:.0f}" if round(found.effective) < change.clusters else ""
        bounds += (
            f", but {change.clusters} conversations{alike} are too few for a pass: a loss of {100 * margin:g} % that "
            f"{100 * RARE:.0f} % of the prompts carry can look like that"
        )
    root = math.sqrt(change.clusters)
    if above > 0:  # a pass stands alone, and allows for a rare loss
        tested = max(change.se, _error_of_a_rare_loss(margin, found.effective))
        needed = conversations_needed(above, change.se * root, LEVEL, tested * root)
    else:
        needed = conversations_needed(-above, change.se * root, level)
    if needed is None:
        return None, f"{bounds}, and its estimate so near the margin that no number of conversations would settle it"
    needed = max(needed, change.clusters + 1, math.ceil(change.clusters * LEAST_EFFECTIVE / found.effective))
    towards, more = (Verdict.ok if above > 0 else Verdict.fail), needed - change.clusters
    return needed, (
        f"{bounds}: {more:,} more conversations of this spread, {needed:,} in all, would settle it in "
        f"{100 * POWER:.0f} % of cases (as {towards}, if the change is {change.value:+.2f} %); every further check "
        f"adds its own {100 * LEVEL:.0f} % of wrong answers"
    )


def _warnings(found: _Compared) -> list[str]:
    lines = cluster_warnings(found.change.clusters, found.effective, found.change.share)
    if found.change.se is not None and found.change.se <= NO_SPREAD and abs(found.change.value or 0) > NO_SPREAD:
        lines.append("every conversation shows the same change: the bounds' zero width is no proof of certainty")
    if found.risen:
        lines.append("tau has risen, so positions are judged by their share of all steps, not of those that reach them")
    if found.every_step:
        lines.append(
            "many steps had no drafts, so tau and the positions here are of all decode steps, which is what a user's "
            "clock sees"
        )
    if found.undrafted and found.change.clusters:
        lines.append(f"{found.undrafted} conversations have no drafted step in one of the runs and are left out")
    return lines


def _arrays(counts: pd.DataFrame, k: int) -> _Run:
    table = counts.to_numpy(float).T
    row = {str(name): number for number, name in enumerate(counts.columns)}
    accepted, reached = ([row[f"{name}_{j}"] for j in range(1, k + 1)] for name in ("accepted", "reached"))
    steps = table[row["steps"]]
    return _Run(steps, steps + table[row["accepted"]], table[accepted], table[reached])


def _tokens_from(run: _Run) -> list[float]:
    """Accepted tokens of position j and all later ones, for j = 1 … K."""
    totals: list[float] = np.cumsum(run.accepted.sum(1)[::-1])[::-1].tolist()
    return totals


def _ratio(numerator: Floats, denominator: Floats) -> float | None:
    return float(numerator.sum() / denominator.sum()) if denominator.sum() else None


def _k(counts: pd.DataFrame) -> int:
    return sum(str(column).startswith("reached_") for column in counts.columns)
