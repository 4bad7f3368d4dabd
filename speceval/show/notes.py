"""What is said below a run's table."""

from __future__ import annotations

from typing import Any

from speceval.estimate import acceptance, books
from speceval.measure import until
from speceval.show.cells import plus_minus, z_value
from speceval.store import StoredRun
from speceval.store.schema import RunMeta, Segment, Skipped

SCREENFUL = 20
"""Problems that are shown with a run; there can be one for every step."""

SEVERAL = 1.05
"""Engines that measured at a time, on average: from here on there was more than one."""

LATE = 20
"""Milliseconds on average from which it is said that the harness was late."""


INTERPRETED = "V2's kernels are interpreted on a CPU: no times of vLLM's"


def interpreted(device: str | None, runner: str | None) -> bool:
    """Whether an engine's times say nothing of vLLM (`INTERPRETED`)."""
    return device == "cpu" and runner == "V2"


def interpreted_in(meta: RunMeta) -> bool:
    """Whether a run's times say nothing of vLLM."""
    engine = meta.fingerprint.engine
    return interpreted(engine.device, engine.runner)


def of_load(found: dict[str, Any] | None) -> list[str]:
    """What a reader must know of a run's times, and its throughput."""
    if found is None:
        return []
    arrivals = "each as soon as there is room" if found["rate"] == "inf" else f"{found['rate']:g} a second, at random"
    lines = [f"load: conversations begin {arrivals}; at most {found['max_concurrency']} requests at once."]
    lines += [f"load: {INTERPRETED}."] * found["interpreted"]
    whole = found["throughput"]
    if whole is None:
        return [*lines, "throughput: not told, the run was interrupted."]
    parts = (("request", "requests", 2), ("output", "output tokens", 1), ("total_token", "tokens with prompts", 1))
    told = ", ".join(f"{plus_minus(whole[f'{name}_throughput'], digits)} {what}" for name, what, digits in parts)
    lines.append(f"throughput: {told} a second, {whole['concurrency']:.1f} requests in flight on average.")
    if found["rate"] != "inf" and whole["held"]:
        lines.append(
            f"{whole['held']} of {whole['begun']} conversations were due while {found['max_concurrency']} were in "
            "flight and were sent later: the server did not keep up."
        )
    elif (whole["waited_ms"] or 0) > LATE:
        lines.append(f"conversations were sent {whole['waited_ms']:.0f} ms late on average: this machine is busy.")
    if whole["concurrency"] > SEVERAL:
        lines.append(
            "± of times and throughput is about other conversations alone: requests that run together delay each "
            "other, and repeated runs can scatter several times as much; tau's ± holds."
        )
    return lines


def speed(meta: RunMeta) -> str:
    """Tokens per second of the run, and what they are worth; empty if that is not known."""
    tokens, seconds = sum(segment.tokens for segment in meta.segments), meta.wall_seconds
    if not seconds:
        return ""
    engines = meta.engine_seconds / seconds
    each = "" if engines < SEVERAL else f" on each of {engines:.1f} engines"
    slow = f"; {INTERPRETED}" * interpreted_in(meta)
    return f"{tokens / seconds:,.0f} tokens a second, {meta.spec.batch} requests at once{each}{slow}"


def without_drafts(run: StoredRun) -> list[str]:
    """Of a replay: places of the texts where nothing was drafted."""
    lines = [(name, acceptance.undrafted_note(run.suite(name)[0])) for name in run.suites]
    return [f"{name}: {line}." for name, line in lines if line is not None]


def of_run(run: StoredRun, shown: dict[str, Any]) -> list[str]:
    notes = [
        "± is half a 95 % interval over new prompts like these and new samples of each; unit: the conversation.",
        "position j: share of the steps that draft token j which accept it (in brackets: of those that reach it).",
    ]
    for name, suite in shown["suites"].items():
        parts = [f"{suite['finish'].get('length', 0)} of {suite['turns']} turns ended at max_tokens"]
        if suite["undrafted_steps"]:
            parts.append(f"{suite['undrafted_steps']} steps without drafts left out")
        if suite["padded_steps"]:
            parts.append(f"{suite['padded_steps']} padded steps, which no drafter drafted for, left out")
        if suite["excess"]:
            parts.append(f"{suite['excess']} tokens past the end of a turn in tau, not in committed")
        notes.append(f"{name}: {'; '.join(parts)}.")
        if (line := acceptance.undrafted_note(run.suite(name)[0])) is not None:
            notes.append(f"{name}: {line}.")
    if shown["speedup"]:
        notes.append(
            "speed-up: tokens per second over the target's alone, in turns on this machine; its interval's unit: "
            "a block of conversations."
        )
        if interpreted_in(run.meta):
            notes.append(f"speed-up: {INTERPRETED}.")
        elif run.meta.fingerprint.engine.device == "cpu":
            notes.append(
                "speed-up: a CPU has little idle time for drafts to fill: the best K is small there (`speceval tune` "
                "finds it), and the gain shrinks with the batch."
            )
        notes += _in_flight(shown["speedup"])
    if shown["evidence"] == "histogram" and not books.positions_known(run):
        notes.append(f"positions: not shown, {books.UNKNOWN_POSITIONS}.")
    notes += of_load(shown["load"])
    recorded = {name: suite["agreement"] for name, suite in shown["suites"].items() if suite["agreement"]["steps"]}
    notes += [_agreement(name, found, shown["suites"][name]["steps"]) for name, found in recorded.items()]
    notes += _variance(shown["suites"])
    notes += until.notes(run.meta)
    notes += _warnings(shown["suites"]) + skipped(run.meta.skipped) + fallbacks(run.meta.segments)
    notes += unchecked(run) + run.meta.notes
    notes += problems(shown["problems"])
    notes.append(f"run: {run.directory}")
    return notes


def _in_flight(speedups: dict[str, dict[str, Any]]) -> list[str]:
    """How many requests there were while a batch was timed, where it was not as many as it says."""
    lines = []
    for suite, batches in speedups.items():
        for batch, timed in batches.items():
            if timed["running"] is None:
                part = "the number in flight was not recorded, its blocks were not full to the end"
            elif timed["running"] < FULL * int(batch):
                part = f"{timed['running']:.1f} requests in flight on average"
            else:
                continue
            if int(batch) > 1:
                lines.append(f"{suite}, speed-up at batch {batch}: {part}.")
    return lines


FULL = 0.95
"""Share of a batch in flight from which it counts as full."""


def _agreement(suite: str, found: dict[str, Any], steps: int) -> str:
    """Whether counting and Rao-Blackwell tell the same."""
    if found["z"] is None:
        return f"{suite}: {found['steps']} steps have a record of p and q: too few to hold against the counts."
    word = "agree" if found["agrees"] else "DISAGREE: the engine or the recorder is wrong"
    return (
        f"{suite}: counts and Rao–Blackwell {word} (z = {z_value(found['z'])}, from the {found['steps']:,} of "
        f"{steps:,} steps whose p and q were recorded)."
    )


def _variance(suites: dict[str, dict[str, Any]]) -> list[str]:
    """What more seeds could still do, for suites that have several."""
    lines = []
    for name, suite in suites.items():
        if found := suite.get("variance"):
            share = found["cluster_share"]
            lines.append(
                f"{name}: of the variance of tau's estimate {100 * share:.0f} % is between prompts, the rest sampling "
                f"(standard error {found['se']:.3f}, for new seeds of these prompts {found['se_samples']:.3f}): more "
                f"seeds can narrow the interval by {100 * (1 - share**0.5):.0f} % at most."
            )
    return lines


def _warnings(suites: dict[str, dict[str, Any]]) -> list[str]:
    """Each warning once, after the suites that it holds for."""
    holders: dict[str, list[str]] = {}
    for name, suite in suites.items():
        for warning in suite["warnings"]:
            holders.setdefault(warning, []).append(name)
    return [f"{', '.join(names)}: {warning}." for warning, names in holders.items()]


def problems(problems: list[str]) -> list[str]:
    """A line each, up to a screenful."""
    lines = [f"PROBLEM: {problem}" for problem in problems[:SCREENFUL]]
    left = len(problems) - len(lines)
    return [*lines, f"PROBLEM: {left:,} more: `speceval validate` names all."] if left else lines


def unchecked(run: StoredRun) -> list[str]:
    """How much of a finished run the engine's counters say nothing about, if anything."""
    checked, measured = run.checked
    if not run.complete or checked >= measured:
        return []
    return [
        f"{checked:,} of {measured:,} conversations were held against the engine's counters: the others were measured "
        "by an engine that was killed before it could be asked."
    ]


def fallbacks(segments: list[Segment]) -> list[str]:
    """How many steps were verified with another q than the one drafted with."""
    counters = [segment.counters for segment in segments if segment.counters is not None]
    one_hot, structured = sum(c.steps_one_hot for c in counters), sum(c.steps_structured for c in counters)
    with_q = sum(c.steps_with_q for c in counters)
    total, lines = with_q + one_hot + structured, []
    if one_hot:
        lines.append(
            f"{one_hot:,} of {total:,} steps had lost q and were verified as if their drafts were certain: lossless, "
            "but they accept less."
        )
    if structured:
        lines.append(f"{structured:,} of {total:,} steps had a grammar and drafted argmaxes.")
    return lines


def skipped(rows: list[Skipped]) -> list[str]:
    """One line for each suite that lost turns, with the first reason."""
    lines = []
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        first = f"{mine[0].conversation}: {mine[0].skipped}"
        lines.append(f"{suite}: {len(mine)} conversations cut short (first: {first}).")
    return lines
