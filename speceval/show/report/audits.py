"""What can move tau, or make it mean something else, without showing in tau: counted and judged for one run.

Every audit has a value, a verdict (unremarkable or needs attention) and one line on what it means. The limits are
explained in docs/measure/one-page-report.md; they call for a look, they are no tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speceval import catalog
from speceval.estimate import replay
from speceval.estimate.statistics import LEAST_EFFECTIVE
from speceval.protocol import RunSpec
from speceval.store import StoredRun
from speceval.store.schema import Counters

TRUNCATED = 0.05
EXCESS = 0.02
FEW_STEPS = 0.01
"""From these shares on an audit calls for attention: truncated turns; tokens past the end; odd steps."""


@dataclass(frozen=True)
class Audit:
    """One row of the report's audits."""

    name: str
    value: str
    attention: bool
    meaning: str

    @property
    def verdict(self) -> str:
        """The judgement in words."""
        return "needs attention" if self.attention else "unremarkable"


def audit(run: StoredRun) -> list[Audit]:
    """All audits of a run, finished or not."""
    if run.meta.spec.replay is None:
        return [check(run) for check in AUDITS]
    return [check(run) for check in (ALONG_TEXTS if run.meta.spec.engine == "capture" else REPLAYED)]


def share(part: float, whole: float, unit: str) -> str:
    """ "5.2 % (5 of 96 turns)"; "none of 96 turns"; "no turns"."""
    if not whole:
        return f"no {unit}"
    if not part:
        return f"none of {whole:,} {unit}"
    return f"{percent(part / whole)} ({part:,} of {whole:,} {unit})"


def percent(rate: float) -> str:
    """Two digits or more: "0.021 %", "5.2 %", "100 %"."""
    return f"{100 * rate:.2g} %" if rate < 0.095 else f"{100 * rate:.0f} %"


def _above(part: float, whole: float, limit: float) -> bool:
    return bool(whole) and part / whole > limit


def _complete(run: StoredRun) -> Audit:
    planned, have = run.meta.conversations, run.conversations
    skipped = len(run.meta.skipped)
    value = f"{have:,} of {planned:,}" + (f", {skipped:,} cut short" if skipped else "")
    return Audit(
        "conversations in the store",
        value,
        have < planned or skipped > 0,
        "Conversations that are missing or lost turns are not in any number; which ones they are is no accident.",
    )


def _clusters(run: StoredRun) -> Audit:
    counts = run.turns.groupby("suite", sort=False)["conversation"].nunique()
    value = ", ".join(f"{suite} {count:,}" for suite, count in counts.items()) or "none"
    return Audit(
        "different conversations",
        value,
        bool((counts < LEAST_EFFECTIVE).any()) or counts.empty,
        f"Intervals rest on these, however many seeds there are. Below {LEAST_EFFECTIVE} they can be too narrow.",
    )


def _truncation(run: StoredRun) -> Audit:
    cut = run.turns["finish_reason"] == "length"
    value = share(int(cut.sum()), len(cut), "turns")
    by_suite = cut.groupby(run.turns["suite"], sort=False).mean()
    if len(by_suite) > 1:
        value += ": " + ", ".join(f"{suite} {percent(rate)}" for suite, rate in by_suite.items())
    return Audit(
        "truncation rate",
        value,
        bool((by_suite > TRUNCATED).any()),
        "Turns cut at max_tokens. The end of an answer is often easier to draft than its start, and is not measured.",
    )


def _excess(run: StoredRun) -> Audit:
    excess, emitted = int(run.turns["excess"].sum()), len(run.steps) + int(run.steps["accepted"].sum())
    return Audit(
        "tokens past the end of a turn",
        share(excess, emitted, "emitted tokens"),
        _above(excess, emitted, EXCESS),
        "Accepted in a turn's last step and thrown away. In tau, not in tau committed. Short answers have more.",
    )


def _short_drafts(run: StoredRun) -> Audit:
    drafted = run.steps["drafted"]
    short, k = int(((drafted > 0) & (drafted < _k(run))).sum()), _k(run)
    return Audit(
        "short drafts",
        share(short, int((drafted > 0).sum()), "steps with drafts"),
        _above(short, int((drafted > 0).sum()), FEW_STEPS),
        f"Steps that drafted fewer than K={k} tokens. They lower tau against tau paper.",
    )


def _undrafted(run: StoredRun) -> Audit:
    undrafted = int((run.steps["drafted"] == 0).sum())
    return Audit(
        "undrafted steps",
        share(undrafted, len(run.steps), "steps"),
        _above(undrafted, len(run.steps), FEW_STEPS),
        "Ordinary decoding steps. Left out of tau, but a user's clock has them.",
    )


def _padded(run: StoredRun) -> Audit:
    padded = int(run.turns["padded_steps"].sum())
    return Audit(
        "padded steps",
        share(padded, len(run.steps) + padded, "steps"),
        _above(padded, len(run.steps) + padded, FEW_STEPS),
        "Steps that vLLM filled up with drafts that nobody made. Left out of every number here, not of vLLM's log.",
    )


def _one_hot(run: StoredRun) -> Audit:
    lost = _counted(run, lambda counters: counters.steps_one_hot)
    known = _counted(run, lambda counters: counters.steps_with_q + counters.steps_one_hot + counters.steps_structured)
    return Audit(
        "steps that lost q",
        share(lost, known, "counted steps") if known else "not counted (no sampled drafts)",
        lost > 0,
        "Verified as if their drafts were certain: lossless, but they accept less.",
    )


def _structured(run: StoredRun) -> Audit:
    structured = _counted(run, lambda counters: counters.steps_structured)
    return Audit(
        "steps under a grammar",
        f"{structured:,}",
        structured > 0,
        "They draft argmaxes whatever the drafting mode: another quantity.",
    )


def _preemptions(run: StoredRun) -> Audit:
    count = _counted(run, lambda counters: counters.preemptions)
    return Audit(
        "preemptions",
        f"{count:,}",
        count > 0,
        "Requests thrown out of a full cache and computed again. The law is the same; engines have got this wrong. "
        "A smaller batch avoids them.",
    )


def _resumed(run: StoredRun) -> Audit:
    stretches = run.meta.segments
    value = "no"
    if len(stretches) > 1:
        value = f"{len(stretches)} stretches: {', '.join(f'{s.conversations:,}' for s in stretches)} conversations"
    checked, measured = run.checked
    unchecked = run.complete and checked < measured
    if unchecked:
        value += f"; {checked:,} of {measured:,} conversations were held against the engine's counters"
    return Audit(
        "resumed",
        value,
        unchecked,
        "Conversations in flight at an interruption were generated again: the same law, other tokens than in one go. "
        "An engine that is killed takes its counters with it.",
    )


def _cache_hits(run: StoredRun) -> Audit:
    cached, prompt = int(run.turns["cached_tokens"].sum()), int(run.turns["prompt_tokens"].sum())
    asked = run.meta.spec.prefix_caching
    return Audit(
        "cache hits",
        share(cached, prompt, "prompt tokens") + (", prefix caching on" if asked else ", prefix caching off"),
        cached > 0,
        "Prompt tokens taken from the prefix cache. The drafter may then miss its own state for them and accept less.",
    )


def _own_k(run: StoredRun) -> Audit:
    k, own = _k(run), own_k(run.meta.spec)
    return Audit(
        "K against the trained block",
        f"K={k}, the drafter's own is {own if own is not None else 'not known'}",
        own is not None and k > own,
        "Beyond the K that the drafter was trained or published with, later positions are extrapolated. "
        "tau at another K is another number.",
    )


def _quantity(run: StoredRun) -> Audit:
    spec = run.meta.spec
    greedy = spec.drafting == "greedy" and spec.temperature > 0
    return Audit(
        "drafting mode",
        f"{spec.drafting} at T={spec.temperature:g}",
        greedy,
        "Greedy drafts at a temperature above 0 are accepted with p(argmax q), not Σ min(p, q): another quantity.",
    )


AUDITS = (
    _complete, _clusters, _quantity, _own_k, _truncation, _excess, _short_drafts, _undrafted, _padded,
    _one_hot, _structured, _preemptions, _resumed, _cache_hits,
)  # fmt: skip


def _places(run: StoredRun) -> Audit:
    undrafted = int((run.steps["drafted"] == 0).sum())
    return Audit(
        "places without drafts",
        share(undrafted, len(run.steps), "places"),
        _above(undrafted, len(run.steps), FEW_STEPS),
        "Each is a step of one token there, and in no number here.",
    )


def _law(run: StoredRun) -> Audit:
    laws = {suite: replay.text_law(run.suite(suite)[0]) for suite in run.suites}
    known = {suite: law for suite, law in laws.items() if law["z"] is not None}
    return Audit(
        "law of the texts",
        ", ".join(f"{suite} z = {law['z']:+.1f}" for suite, law in known.items()) or "not tested here",
        any(law["agrees"] is False for law in known.values()),
        "Whether the target could have said these texts, by the chances that it gives their tokens. Fewer than "
        f"{replay.FEW_TOKENS} tokens are not judged, nor what a capture holds: its run was.",
    )


ALONG_TEXTS = (_complete, _clusters, _quantity, _own_k, _truncation, _places, _law)
REPLAYED = (*ALONG_TEXTS, _one_hot, _structured, _preemptions, _resumed)
"""Of a replay; where an engine ran also what it can have done to it."""


def own_k(spec: RunSpec) -> int | None:
    """K that a catalog drafter was trained or published with; None for others. Needs no network."""
    rows = catalog.listing("drafters")
    found = [row["K"] for row in rows if (row["target"], row["draft"]) == (spec.target, spec.draft)]
    return int(found[0]) if found and found[0].isdigit() else None


def _k(run: StoredRun) -> int:
    return run.meta.spec.k


def _counted(run: StoredRun, counter: Callable[[Counters], int]) -> int:
    """One of the engine's own counters over all stretches of the run, as far as they have any."""
    return sum(counter(segment.counters) for segment in run.meta.segments if segment.counters is not None)
