"""`speceval run --until 1%`: the rule of `speceval.estimate.stopping` applied to a run that grows.

Conversations run in a seeded random order, all seeds of one together. Short ones finish first, so a look takes no
account of whatever is finished: only the finished prefix of the order counts. When a suite is stopped, the turns in
flight are finished, because the engine has counted their steps, but conversations behind the stopping point are in no
table: `run.json` says how many they were. The decision depends on the prefix alone, so a resumed run decides alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from speceval.errors import UserError
from speceval.estimate import books
from speceval.estimate.acceptance import conversation_totals
from speceval.estimate.comparison import require_comparable
from speceval.estimate.stopping import ERROR, Decision, decide, grid, paired_estimate, tau_estimate
from speceval.protocol import RunSpec, digest
from speceval.store import REQUEST, Counts, Key, Store, StoredRun
from speceval.store.schema import Behind, Fingerprint, RunMeta, StoppedSuite, Stopping
from speceval.suites import Suite

AHEAD = 1
"""Conversations kept in flight for each request that the engine runs at once: more of them would be for nothing."""
RULE = "error spent by information, O'Brien-Fleming type"
SHUFFLE_SEED = 0
"""Of a run that names none: a suite's own order, such as by category, is no random sample."""


@dataclass(frozen=True)
class Goal:
    """What a run is to find out."""

    target: float
    """Relative half-width: of tau, or of its paired difference to `against`."""
    order: Mapping[str, Sequence[str]]
    """Conversation ids of each suite, in the order of the run."""
    seeds: tuple[int, ...]
    against: StoredRun | None = None


class Looks:
    """Looks at the suites of a run while conversations come in; `closed` are those that are known well enough."""

    def __init__(self, goal: Goal, store: Store) -> None:
        self.goal, self.store = goal, store
        self.closed: set[str] = set()
        self._prefix = dict.fromkeys(goal.order, 0)
        for suite in goal.order:
            self.finished(suite)

    def finished(self, suite: str) -> None:
        """To be called after a conversation of `suite` went into the store."""
        order, before = self.goal.order[suite], self._prefix[suite]
        now = before
        while now < len(order) and all((suite, order[now], seed) in self.store.done for seed in self.goal.seeds):
            now += 1
        self._prefix[suite] = now
        due = suite not in self.closed and any(before < look <= now for look in grid(len(order)))
        if due and decide_suite(self.goal, suite, _turns(self.store.counts), available=now).outcome != "goes on":
            self.closed.add(suite)


def decide_suite(goal: Goal, suite: str, turns: pd.DataFrame, available: int) -> Decision:
    """The decision on one suite from a run's turns, whose first `available` conversations of the order are whole."""
    order = goal.order[suite]
    turns = turns[turns["suite"] == suite]
    looks = grid(len(order))
    if goal.against is None:
        return decide(tau_estimate(*_terms(turns, order)), available, looks, goal.target)
    against = goal.against.turns
    common = _requests(turns).intersection(_requests(against))
    ours, theirs = (_terms(frame[_requests(frame).isin(common)], order) for frame in (turns, against))
    return decide(paired_estimate(*theirs, *ours), available, looks, goal.target, whole=100.0)


def report(goal: Goal, turns: pd.DataFrame) -> Stopping:
    """What run.json keeps of a run whose suites have all been stopped, from its turns before `counted`."""
    suites = {}
    for suite, order in goal.order.items():
        decision = decide_suite(goal, suite, turns, available=len(order))
        last = decision.looks[-1]
        mine = turns[turns["suite"] == suite]
        used = mine["conversation"].isin(order[: last.conversations])
        tokens, behind = (int(mine.loc[rows, "output_tokens"].sum()) for rows in (used, ~used))
        left = len(order) - last.conversations
        suites[suite] = StoppedSuite(
            outcome=decision.outcome,
            conversations=last.conversations,
            of=len(order),
            value=last.value,
            half_width=last.half_width,
            confidence=last.confidence,
            tokens=tokens,
            behind=Behind(requests=int((~used).sum()), tokens=behind),
            tokens_saved=max(0, round(tokens / last.conversations * left) - behind),
            looks=decision.looks,
        )
    return Stopping(
        rule=RULE,
        error=ERROR,
        target=goal.target,
        quantity="tau" if goal.against is None else "relative difference of tau",
        against=None if goal.against is None else goal.against.meta.name,
        suites=suites,
    )


def counted(goal: Goal, stopping: Stopping) -> set[Key]:
    """The conversations up to the stopping points: what the run's tables hold."""
    return {
        (suite, conversation, seed)
        for suite, order in goal.order.items()
        for conversation in order[: stopping.suites[suite].conversations]
        for seed in goal.seeds
    }


def confidence(meta: RunMeta, suite: str) -> float:
    """Nominal confidence with which intervals of this run have to be made so that they hold with 95 %."""
    if meta.stopping is None:
        return 1 - ERROR
    nominal = meta.stopping.suites[suite].confidence
    assert nominal is not None  # the look that stops spends all that is left
    return nominal


def notes(meta: RunMeta) -> list[str]:
    """What `speceval show` says about the stopping of a run, one line a suite."""
    if (target := meta.spec.until) is None:
        return []
    if meta.stopping is None:
        return [f"--until {target:.3g}: unfinished, and short conversations finish first: wait for the end."]
    stopping, lines = meta.stopping, []
    for suite, stopped in stopping.suites.items():
        width = "no interval" if stopped.half_width is None else f"± {100 * stopped.half_width:.2f} %"
        of = "of tau"
        if stopping.against is not None and stopped.value is not None:
            width, of = f"{stopped.value:+.2f} {width}", f"of tau against {stopping.against}"
        lines.append(
            f"{suite}: {stopped.outcome} ({width} {of}, asked: {100 * stopping.target:g} %) after "
            f"{stopped.conversations:,} of {stopped.of:,} conversations and {len(stopped.looks)} looks; about "
            f"{stopped.tokens_saved:,} tokens saved. Intervals are corrected for the looks."
        )
    return lines


def ask(fields: dict[str, Any], against: Path | None, replayed: bool) -> tuple[dict[str, Any], StoredRun | None]:
    """A request's fields with what `--until` and `--against` entail, and the run it is held against.

    Raises `UserError` when they have no meaning together, or `against` is no finished run.
    """
    if fields.get("until") is None:
        if against is not None:
            raise UserError(f"--against {against}: says what --until is about: give --until too, or leave it out")
        return fields, None
    if replayed:
        raise UserError("--until: has no meaning with --replay, which is limited to the texts that are there")
    if fields.get("shuffle_seed") is None:
        fields = {**fields, "shuffle_seed": SHUFFLE_SEED}
    if against is None:
        return fields, None
    reference = books.read(against)
    if not reference.complete:
        raise UserError(f"--against {against}: is unfinished: finish it first")
    return {**fields, "against": identity(reference)}, reference


def identity(run: StoredRun) -> str:
    """Name and hash of a stored run's protocol and data."""
    totals = conversation_totals(run.steps).sort_index().reset_index().to_numpy().tolist()
    return f"{run.meta.name}:{digest([run.meta.fingerprint_hash, totals])[:12]}"


def goal(spec: RunSpec, suites: Sequence[Suite], against: StoredRun | None) -> Goal | None:
    """What a run is to find out; None for a run that ends with its suites."""
    if spec.until is None:
        return None
    order = {suite.name: [conversation.id for conversation in suite.conversations] for suite in suites}
    return Goal(spec.until, order, spec.seeds, against)


def restrict(suites: Sequence[Suite], against: StoredRun) -> list[Suite]:
    """The suites with the conversations that `against` has too. Raises `UserError` when that leaves one empty."""
    kept = []
    for suite in suites:
        theirs = set(against.suite(suite.name)[1]["conversation"])
        conversations = [conversation for conversation in suite.conversations if conversation.id in theirs]
        if not conversations:
            raise UserError(f"--against {against.directory}: has no conversation of {suite.name}: name another run")
        kept.append(replace(suite, conversations=conversations))
    return kept


def check_against(against: StoredRun, fingerprint: Fingerprint) -> None:
    """Raises `NotComparable` when a run of this fingerprint differs from `against` in more than the drafter.

    Order and number of conversations do not count: they are paired by name, and suite version, dataset and template
    fix their prompts.
    """
    sizes = (f"suites.{suite}.conversations" for suite in fingerprint.suites)
    ignore = ("limit", "stratified", "shuffle_seed", "prompts", *sizes)
    require_comparable([against.meta.fingerprint, fingerprint], ignore=ignore)


def _turns(counts: Mapping[Key, Sequence[Counts]]) -> pd.DataFrame:
    """What a growing run's turns (`Store.counts`) have in common with those of a finished one, as far as tau needs."""
    rows = [
        (*key, number, accepted, steps)
        for key, turns in counts.items()
        for number, (accepted, steps) in enumerate(turns, start=1)
    ]
    return pd.DataFrame(rows, columns=[*REQUEST, "accepted", "steps"])


def _terms(turns: pd.DataFrame, order: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numerator and denominator of tau per conversation, in the order of the run; 0 where there are no steps."""
    totals = turns.groupby("conversation")[["steps", "accepted"]].sum().reindex(list(order), fill_value=0)
    return (totals["steps"] + totals["accepted"]).to_numpy(), totals["steps"].to_numpy()


def _requests(frame: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(frame[REQUEST])
