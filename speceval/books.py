"""The books of a run: identities that must hold exactly, and what the engine counted itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from speceval import acceptance, rao_blackwell, replay
from speceval.protocol import RunSpec
from speceval.schema import Counters, Segment
from speceval.store import Key


def check(
    turns: pd.DataFrame, steps: pd.DataFrame, spec: RunSpec, segments: Sequence[Segment], order: Sequence[Key]
) -> list[str]:
    """What does not balance in a run whose conversations are all in, one line each; run.json keeps them.

    `turns`, `steps`: the tables of `store.frames`; `order`: the conversations in the order in which they came in, which
    tells the stretches (`segments`) apart.
    """
    problems = acceptance.reconcile(steps, turns)
    for number, (segment, own_turns, own_steps) in enumerate(_stretches(turns, steps, segments, order), start=1):
        stretch = f"stretch {number} of {len(segments)}: " if len(segments) > 1 else ""
        problems += [stretch + line for line in against_counters(own_turns, own_steps, [segment], spec.k)]
    for suite, rows in steps.groupby("suite", sort=False):
        found = rao_blackwell.agreement(rows)
        if found["agrees"] is False:
            problems.append(
                f"{suite}: accepted tokens are not what p and q say (z = {found['z']:+.1f}, {found['steps']} steps): "
                "the engine does not accept as it should, or p and q are not what it drew from"
            )
    if spec.replay is not None and (lost := replay.unrecorded(steps)):
        problems.append(f"{lost} replayed steps have no drafts or no record: the expectations are wrong")
    return problems


def against_counters(turns: pd.DataFrame, steps: pd.DataFrame, segments: Sequence[Segment], k: int) -> list[str]:
    """The tables of some stretches against what the engine counted in them; nothing if it was not asked in one of them.

    Counters of an interrupted stretch also hold what its unfinished conversations have, which is known within bounds.
    """
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
    problems = acceptance.check_counters(steps, own, asdict(least), None if unlimited else asdict(most))
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
