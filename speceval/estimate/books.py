"""The books of a run: identities that must hold exactly, and what the engine counted itself.

`check` judges a run at its end. Files can be damaged, or edited, after it: whoever reads a stored run asks `read` for
it, or `problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval.errors import UserError
from speceval.estimate import rao_blackwell, replay
from speceval.estimate.identities import check_counters, reconcile
from speceval.protocol import RunSpec
from speceval.store import OUTPUTS, REQUEST, Key, StoredRun, is_recorded, read_lines, read_run
from speceval.store.schema import Counters, Evidence, RunMeta, Segment
from speceval.store.tables import OutputLine

ROUNDING = 1e-4
"""By how much a sum of float32 probabilities may exceed 1."""


COMPARED: tuple[Evidence, ...] = ("steps", "histogram")
"""Grades that give tau and positions of each conversation, and so can be compared and judged."""
NO_STEPS: tuple[Evidence, ...] = ("totals", "nothing")
"""Grades of evidence in which no request tells of its drafts."""


def read(directory: Path) -> StoredRun:
    """A stored run whose tables agree with themselves and with its record. Raises `UserError` for any other.

    What the run itself found wrong when it was measured (`meta.problems`) is told by whoever shows its numbers.
    """
    run = read_run(directory)
    require_sound(run)
    return run


def require_sound(run: StoredRun) -> None:
    """Raises `UserError` for a run whose tables, as they are now, do not agree with themselves or with its record.

    Also for one whose evidence is too coarse for anything but `show`.
    """
    evidence = run.meta.evidence
    if evidence not in COMPARED:
        raise UserError(
            f"{run.directory}: its evidence is {evidence}, which `speceval show` prints and nothing else can use: "
            "`speceval probe URL` says what would make the server tell more"
        )
    if broken := identities(run):
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise UserError(
            f"{run.directory}: the run's books do not balance ({broken[0]}{more}): `speceval validate` names all; "
            "measure it again"
        )


def require_order(run: StoredRun, what: str) -> None:
    """Raises `UserError` for a run whose steps are known by their number alone, not by their place in the text."""
    if run.meta.evidence != "steps":
        raise UserError(
            f"{run.directory}: {what} needs each step in its place, and the run's evidence is {run.meta.evidence}: "
            "measure a server that was started with --per-request-spec-decode-metrics detailed"
        )


def positions_known(run: StoredRun) -> bool:
    """Whether it is told which positions were drafted: by each step, or because all steps drafted K."""
    drafted = run.steps["drafted"]
    return run.meta.evidence == "steps" or bool(((drafted == 0) | (drafted == run.meta.spec.k)).all())


UNKNOWN_POSITIONS = (
    "its evidence is histogram and its steps drafted different numbers of tokens, so that which positions they drafted "
    "is not told"
)


def require_positions(run: StoredRun, what: str) -> None:
    """Raises `UserError` for a run whose acceptance by position is not known."""
    if not positions_known(run):
        raise UserError(
            f"{run.directory}: {what} needs acceptance by position, and {UNKNOWN_POSITIONS}: measure a server that was "
            "started with --per-request-spec-decode-metrics detailed"
        )


def problems(run: StoredRun) -> list[str]:
    """What is wrong with a stored run, one line each: found when it was measured, and identities that fail now."""
    return list(dict.fromkeys([*run.meta.problems, *identities(run)]))


def texts(run: StoredRun) -> list[str]:
    """What outputs.jsonl, where there is one, does not have as the tables say: a line each. Raises `UserError`."""
    path = run.directory / OUTPUTS
    if not run.complete or not path.exists():
        return []
    measured = dict(zip(map(tuple, run.turns[REQUEST].to_numpy()), run.turns["output_tokens"], strict=True))
    found: dict[tuple[Any, ...], int] = {}
    problems = []
    for row in read_lines(path, kind=OutputLine):
        key = tuple(row[name] for name in REQUEST)
        told = f"{OUTPUTS}: {key[0]}, conversation {key[1]}, seed {key[2]}, turn {key[3]}"
        if key in found:
            problems.append(f"{told}: stands there twice")
        elif key not in measured:
            problems.append(f"{told}: was not measured")
        elif len(row["token_ids"]) != measured[key]:
            problems.append(f"{told}: {len(row['token_ids'])} tokens, {measured[key]} were measured")
        found[key] = len(row["token_ids"])
    if lost := [key for key in measured if key not in found]:
        problems.append(f"{OUTPUTS}: lacks {len(lost)} of {len(measured)} turns")
    return problems


def require_texts(run: StoredRun) -> None:
    """Raises `UserError` for a run whose outputs.jsonl is not that of its tables."""
    if wrong := texts(run):
        raise UserError(f"{run.directory}: {wrong[0]}: `speceval validate` names all; make the run again")


def identities(run: StoredRun) -> list[str]:
    """Identities that the tables of a stored run violate, with each other or with run.json, one line each."""
    found = reconcile(run.steps, run.turns)
    found += _against_request(run) + _recorded(run.steps)
    if run.complete:
        found += _complete(run)
        checked, measured = run.checked
        if run.meta.stopping is None and checked == measured:
            meta = run.meta
            found += against_counters(run.turns, run.steps, meta.segments, meta.spec.k, meta.evidence)
    return found


def _against_request(run: StoredRun) -> list[str]:
    """Rows that nobody asked for."""
    spec = run.meta.spec
    longest = int(run.steps["drafted"].max()) if len(run.steps) else 0
    lines = [f"a step drafts {longest} tokens, K is {spec.k}"] if longest > spec.k else []
    for column, asked in (("suite", run.suites), ("seed", spec.seeds)):
        others = sorted(set(run.turns[column].unique()) - set(asked))
        lines += [f"{column} {other} is in the tables and was not asked for" for other in others]
    return lines


def _recorded(steps: pd.DataFrame) -> list[str]:
    """What the verifier saw and cannot have seen: r, alpha and kept are probabilities, up to rounding."""
    values = {str(name): steps[name].to_numpy() for name in steps if is_recorded(str(name))}
    outside = [
        name
        for name, column in values.items()
        if np.fmin.reduce(column, initial=0) < 0 or np.fmax.reduce(column, initial=0) > 1 + ROUNDING
    ]
    return [f"{', '.join(outside)}: outside 0 … 1, and probabilities"] if outside else []


def _complete(run: StoredRun) -> list[str]:
    """Conversations that a finished run has lost. One that was cut short before its first turn has no rows."""
    expected = _expected(run.meta) - len(run.meta.skipped)
    if run.conversations >= expected:
        return []
    return [f"the run is finished and has {run.conversations} conversations, not {expected}"]


def _expected(meta: RunMeta) -> int:
    """Conversations that the tables of a finished run hold, each seed counted."""
    if meta.stopping is None:
        return meta.conversations
    return len(meta.spec.seeds) * sum(suite.conversations for suite in meta.stopping.suites.values())


def strays(number: int) -> str:
    """What it means that so many accesses of interpreted kernels lay outside their tensors; empty for none."""
    if number == 0:
        return ""
    return f"vLLM's kernels read or wrote {number} times outside their tensors: what they made is unknown"


def check(
    turns: pd.DataFrame,
    steps: pd.DataFrame,
    spec: RunSpec,
    segments: Sequence[Segment],
    order: Sequence[Key],
    evidence: Evidence = "steps",
) -> list[str]:
    """What does not balance in a run whose conversations are all in, one line each; run.json keeps them.

    `turns`, `steps`: the tables of `store.frames`; `order`: the conversations in the order in which they came in, which
    tells the stretches (`segments`) apart.
    """
    problems = reconcile(steps, turns)
    for number, (segment, own_turns, own_steps) in enumerate(_stretches(turns, steps, segments, order), start=1):
        stretch = f"stretch {number} of {len(segments)}: " if len(segments) > 1 else ""
        problems += [stretch + line for line in against_counters(own_turns, own_steps, [segment], spec.k, evidence)]
    if strayed := strays(sum(segment.counters.kernel_strays for segment in segments if segment.counters is not None)):
        problems.append(strayed)
    for suite, rows in steps.groupby("suite", sort=False):
        found = rao_blackwell.agreement(rows)
        if found["agrees"] is False:
            problems.append(
                f"{suite}: accepted tokens are not what p and q say (z = {found['z']:+.1f}, {found['steps']} steps): "
                "the engine does not accept as it should, or p and q are not what it drew from"
            )
    if spec.replay is not None and (lost := replay.unrecorded(steps)):
        problems.append(f"{lost} replayed steps have lost their record: the expectations are wrong")
    if spec.replay is not None:
        for suite, rows in steps.groupby("suite", sort=False):
            problems += [f"{suite}: {line}: the expectations are of another law" for line in _of_law(rows)]
    return problems


def _of_law(steps: pd.DataFrame) -> list[str]:
    """What says that the replayed texts of a suite have not the target's law."""
    law, lines = replay.text_law(steps), []
    if law["agrees"] is False:
        lines.append(f"the texts have not the target's law (z = {law['z']:+.1f}, {law['tokens']} tokens)")
    if law["impossible"] > max(replay.MOST_IMPOSSIBLE * law["tokens"], 1):
        lines.append(
            f"{law['impossible']} of {law['tokens']} tokens of the texts are impossible for the target (p = 0)"
        )
    return lines


def against_counters(
    turns: pd.DataFrame, steps: pd.DataFrame, segments: Sequence[Segment], k: int, evidence: Evidence = "steps"
) -> list[str]:
    """The tables of some stretches against what the engine counted in them; nothing if it was not asked in one of them.

    Counters of an interrupted stretch also hold what its unfinished conversations have, which is known within bounds.
    """
    if evidence in NO_STEPS:
        return []
    counters, least, most = Counters(), Counters(), Counters()
    unlimited = False
    for segment in segments:
        if segment.counters is None:
            return []
        counters = counters.plus(segment.counters)
        least = least.plus(segment.unfinished_least or Counters())
        most = most.plus(segment.unfinished_most or Counters())
        unlimited |= segment.interrupted and segment.unfinished_most is None
    padded = int(turns["padded_steps"].sum())
    own = asdict(counters.without_padding(padded, k))
    problems = check_counters(steps, own, asdict(least), None if unlimited else asdict(most))
    if not unlimited and (unknown := counters.steps_padded - padded - most.steps_padded) > 0:
        problems.append(
            f"{unknown} steps that vLLM filled up with padding could not be told from rounds: tau is too low"
        )
    return problems


def _stretches(
    turns: pd.DataFrame, steps: pd.DataFrame, segments: Sequence[Segment], order: Sequence[Key]
) -> Iterator[tuple[Segment, pd.DataFrame, pd.DataFrame]]:
    """Each stretch with the rows of its conversations."""
    if len(segments) == 1:
        yield segments[0], turns, steps
        return
    begins = [segment.first for segment in segments]
    numbers = np.searchsorted(begins, np.arange(len(order)), side="right") - 1
    number_of = dict(zip(order, numbers.tolist(), strict=True))
    of_turns = np.array(
        [number_of[key] for key in zip(turns["suite"], turns["conversation"], turns["seed"], strict=True)]
    )
    of_steps = np.repeat(of_turns, turns["steps"] + turns["undrafted_steps"])
    for number, segment in enumerate(segments):
        yield segment, turns[of_turns == number], steps[of_steps == number]
