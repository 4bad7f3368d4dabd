"""Runs against a baseline run: whether they may be compared, and what the comparison gives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from speceval.errors import NotComparable, UserError
from speceval.estimate import acceptance, books, load, replay, speedup
from speceval.estimate.statistics import holm
from speceval.protocol import flatten, ranges
from speceval.store import StoredRun
from speceval.store.schema import ABSENT, Fingerprint, differ

if TYPE_CHECKING:
    import pandas as pd

COMPARED = ("draft", "draft_args", "drafter", "engine.method", "engine.max_model_len", "method_patches", "served")
"""Fields of a fingerprint that come with the drafter (its own limit can lower `max_model_len`): free to differ."""

FOLLOWERS = {"drafting": ("engine.draft_sample_method",), "engine.runner": ("patches",)}
"""Fields that say the same as another one, or follow from it: allowed together with it."""


SAME_TAU = "tau is the same quantity in both, the order of steps is told in one alone"
"""Of runs whose servers told their drafts in grades that are compared (`books.COMPARED`)."""


def require_comparable(
    fingerprints: Sequence[Fingerprint], allow: Collection[str] = (), ignore: Collection[str] = ()
) -> list[str]:
    """Refuse runs whose protocols differ in more than the drafter; the first run is what the others are held against.

    allow: fields that may differ all the same, as dotted names ("sampling.temperature") or prefixes of them
    ("engine"). ignore: fields that do not matter to the caller, in the same form. Suites that not all runs have do not
    count (`common_suites`).

    Returns a line for each difference that only `allow` let through, for two grades of evidence that give one tau, and
    for the suites that are left out, to be shown with the results. Raises `NotComparable`, naming every other field
    with both values, or when no suite is in all runs; `UserError` when a name in `allow` is no field of any run.
    """
    common = common_suites(fingerprints)
    left_out = _left_out(fingerprints, common)
    flat = [_fields(fingerprint, common, whole=not left_out) for fingerprint in fingerprints]
    _require_known(allow, {name for fingerprint in fingerprints for name in fingerprint.flat()})
    allow = (*allow, *(follower for name in allow for follower in FOLLOWERS.get(name, ())))
    free = [*COMPARED, *ignore]
    if all((fingerprint.sampling.top_k, fingerprint.sampling.top_p) == (0, 1) for fingerprint in fingerprints):
        free.append("engine.draft_truncation")  # there is nothing to truncate
    if all(fingerprint.sampling.temperature == 0 for fingerprint in fingerprints):
        free.append("engine.draft_sample_method")  # a draw is the likeliest token
    refused: dict[str, list[str]] = {}
    lines = left_out
    for number, other in enumerate(flat[1:], start=2):
        for name in sorted(flat[0].keys() | other.keys()):
            a, b = flat[0].get(name, ABSENT), other.get(name, ABSENT)
            if not differ(name, a, b) or under(name, free):
                continue
            line = f"{name}: {_change(a, b)}" + (f" (run {number})" if len(flat) > 2 else "")
            if name == "evidence":
                lines.append(f"{line}: {SAME_TAU}")
                continue
            if under(name, allow):
                lines.append(line)
            else:
                refused.setdefault(name, []).append(line)
    if refused:
        differences = "; ".join(line for found in refused.values() for line in found)
        implied = {follower for name in refused for follower in FOLLOWERS.get(name, ())}
        flags = " ".join(f"--allow {name}" for name in refused if name not in implied)
        raise NotComparable(
            f"the runs differ in more than the drafter: {differences}: measure them under one protocol, or let it "
            f"through with {flags}"
        )
    return lines


def common_suites(fingerprints: Sequence[Fingerprint]) -> list[str]:
    """Suites that all runs have, in the first run's order. Raises `NotComparable` when there is none."""
    held = [list(fingerprint.suites) for fingerprint in fingerprints]
    common = [name for name in held[0] if all(name in names for names in held[1:])]
    if not common:
        raise NotComparable(
            f"the runs have no suite in common: {' | '.join(', '.join(names) for names in held)}: run one with the "
            "other's --suite"
        )
    return common


def compare_runs(runs: Sequence[StoredRun], allow: Collection[str] = (), confidence: float = 0.95) -> dict[str, Any]:
    """Every run against the first one, suite by suite, as JSON-ready values.

    `runs`: what each is (number from 1, drafter, drafting mode …); `comparisons`: per common suite and run, `suite`,
    `run` (its number) and `acceptance.compare`'s values, with `p_adjusted`, Holm's over all of them; `tau_rb` and
    `tau_all_steps` have their own, over all of their kind; `speedups` per run; `allowed`: the lines of
    `require_comparable`. Raises as that does, and `UserError` for a single run.
    """
    if len(runs) < 2:
        raise UserError("compare: one run is nothing to compare: name two or more")
    fingerprints = [run.meta.fingerprint for run in runs]
    allowed = require_comparable(fingerprints, allow)
    compared: list[dict[str, Any]] = [
        {"suite": suite, "run": number} | _compare_suite(runs[0], run, suite, confidence)
        for suite in common_suites(fingerprints)
        for number, run in enumerate(runs[1:], start=2)
    ]
    for rows in (compared, *([row[name] for row in compared if row[name]] for name in ("tau_rb", "tau_all_steps"))):
        for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_adjusted"] = p
    return {
        "runs": [_facts(number, run) for number, run in enumerate(runs, start=1)],
        "allowed": allowed,
        "confidence": confidence,
        "comparisons": compared,
        "speedups": [
            {"run": number} | _compare_speedups(runs[0], run, confidence)
            for number, run in enumerate(runs[1:], start=2)
        ],
    }


def led_by(runs: Sequence[StoredRun], drafter: str) -> list[StoredRun]:
    """The drafter's run, then the others. Raises `UserError` unless there is one."""
    named = [run for run in runs if run.meta.spec.draft == drafter]
    if len(named) != 1:
        drafters = ", ".join(dict.fromkeys(run.meta.spec.draft for run in runs))
        raise UserError(f"--over {drafter}: {len(named) or 'no'} runs are of that drafter, one is needed: {drafters}")
    return [*named, *(run for run in runs if run is not named[0])]


def _compare_speedups(a: StoredRun, b: StoredRun, confidence: float) -> dict[str, Any]:
    """`rows` of `speedup.compare`, none where not both were timed; `refused`: why they do not compare, or None."""
    timed_a, timed_b = (run.meta.speedup for run in (a, b))
    if not timed_a or not timed_b:
        return {"rows": [], "refused": None}
    try:
        return {"rows": speedup.compare(timed_a, timed_b, confidence), "refused": None}
    except NotComparable as error:
        return {"rows": [], "refused": str(error)}


def _facts(number: int, run: StoredRun) -> dict[str, Any]:
    names = {"target", "draft", "k", "temperature", "drafting", "seeds"}
    return {
        "number": number,
        "run": str(run.directory),
        **run.meta.spec.model_dump(mode="json", include=names),
        "status": run.meta.status,
        **run.meta.fingerprint.engine.model_dump(include={"device", "runner"}),
        "replay": replay.is_replay(run),
        "problems": run.meta.problems,
    }


def _compare_suite(a: StoredRun, b: StoredRun, suite: str, confidence: float) -> dict[str, Any]:
    """`acceptance.compare` of one suite; of two replays the same of what they expect."""
    (steps_a, turns_a), (steps_b, turns_b) = a.suite(suite), b.suite(suite)
    if replay.is_replay(a) != replay.is_replay(b):
        raise NotComparable("a replay has no counts to compare with those of a run: compare it with another replay")
    if replay.is_replay(a):
        return compare_replays(steps_a, steps_b, confidence)
    seeds_a, seeds_b = set(turns_a["seed"]), set(turns_b["seed"])
    pair_by: Literal["request", "conversation"] = "conversation" if seeds_a.isdisjoint(seeds_b) else "request"
    try:
        found = acceptance.compare(steps_a, turns_a, steps_b, turns_b, confidence, pair_by=pair_by)
    except UserError as error:
        raise type(error)(f"suite {suite}: {error}") from None
    if not all(map(books.positions_known, (a, b))):
        found["positions"] = []
    return found | {"undrafted": _undrafted(steps_a, steps_b), "load": load.compare(turns_a, turns_b, confidence)}


def _undrafted(steps_a: pd.DataFrame, steps_b: pd.DataFrame) -> dict[str, str | None]:
    """What must be said of steps without drafts, of each run."""
    return {side: acceptance.undrafted_note(steps) for side, steps in (("a", steps_a), ("b", steps_b))}


def compare_replays(steps_a: pd.DataFrame, steps_b: pd.DataFrame, confidence: float = 0.95) -> dict[str, Any]:
    """tau_committed and the rates per position that two replays of the same texts expect, paired by conversation."""
    a, b = replay.conversation_totals(steps_a).align(replay.conversation_totals(steps_b), join="inner")
    pairs = zip(replay.position_totals(steps_a), replay.position_totals(steps_b), strict=False)
    aligned = (one.align(other, join="inner") for one, other in pairs)
    counts = ((x["accepted"], x["steps"], y["accepted"], y["steps"]) for x, y in aligned)
    lengths = acceptance.compare_lengths(a["committed"], a["steps"], b["committed"], b["steps"], confidence)
    return {
        **lengths,
        "samples": len(steps_a[["conversation", "seed"]].drop_duplicates()),
        "only_a": 0,
        "only_b": 0,
        "undrafted": _undrafted(steps_a, steps_b),
        "tau_rb": None,
        "tau_all_steps": acceptance.compare_all_steps(steps_a, steps_b, confidence),
        "positions": acceptance.compare_rates(counts, confidence),
        "pair_by": "request",
        "confidence": confidence,
    }


def _fields(fingerprint: Fingerprint, common: Sequence[str], whole: bool) -> dict[str, Any]:
    """What is held against another run: dotted fields, of the common suites only, without empty dictionaries.

    Unless all runs hold the `whole` of their suites, the hash over all prompts says nothing: each suite's version,
    dataset and limit and the template remain.
    """
    kept = fingerprint.model_dump(mode="json")
    kept["suites"] = {name: facts for name, facts in kept["suites"].items() if name in common}
    if not whole:
        kept["prompts"] = {}
    kept["evidence"] = fingerprint.evidence
    kept["patches"] = sorted(set(fingerprint.patches) - set(fingerprint.method_patches))
    return {name: value for name, value in flatten(kept).items() if value != {}}


def _left_out(fingerprints: Sequence[Fingerprint], common: Sequence[str]) -> list[str]:
    names = dict.fromkeys(name for fingerprint in fingerprints for name in fingerprint.suites if name not in common)
    return [f"suites left out, not in all runs: {', '.join(names)}"] if names else []


def _require_known(allow: Collection[str], known: Collection[str]) -> None:
    for name in allow:
        if not any(under(field, (name,)) for field in known):
            tops = ", ".join(sorted({field.partition(".")[0] for field in known}))
            raise UserError(
                f"--allow {name}: no such field of a run's fingerprint; there are {tops} (and x.y below them)"
            )


def under(name: str, prefixes: Collection[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _change(a: Any, b: Any) -> str:
    """ "old -> new"; of two lists of names only what is in one of them."""
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(item, str) for item in (*a, *b)):
        parts = [f"-{item}" for item in a if item not in b] + [f"+{item}" for item in b if item not in a]
        return " ".join(parts)
    return f"{shorten(a)} -> {shorten(b)}"


def shorten(value: Any) -> str:
    """A field's value for one line: whole numbers as ranges, "0-99 (100)"; hashes by their first 12 digits."""
    if isinstance(value, list) and len(value) > 1 and all(type(item) is int for item in value):
        return f"{ranges(sorted(value))} ({len(value)})"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
