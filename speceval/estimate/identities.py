"""What must hold exactly between steps, requests and an engine's own counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from speceval.errors import UserError
from speceval.estimate.acceptance import FINISH_REASONS, PER_POSITION, _check, _request_index, drafted_steps
from speceval.protocol import MOST_K
from speceval.store import REQUEST


def reconcile(steps: pd.DataFrame, turns: pd.DataFrame) -> list[str]:
    """Identities that hold exactly for every request; returns the violations, one line each.

    A line names the request, e.g. "mt_bench 81 seed 0 turn 2: ...". Empty list: everything agrees.
    Checked: the turn's steps, undrafted_steps, drafted and accepted are sums over its step rows; 0 <=
    accepted <= drafted; every step commits 1 + accepted, only the last may commit fewer, at least 1;
    output_tokens = 1 (the prefill's) + Σ committed; excess = Σ (1 + accepted - committed); steps are
    numbered 1 … n; finish_reason is known; each step row has one turn row. Raises UserError when columns or
    values are missing.
    """
    _check(steps, turns)
    duplicates = turns[turns.duplicated(REQUEST)]
    if len(duplicates):  # the other identities need one turn row per request
        return [f"{_name(row)}: more than one turn row" for row in duplicates.to_dict("records")]
    request = _owners(steps, turns)
    found = []
    if (request < 0).any():
        orphans = steps[request < 0].drop_duplicates(REQUEST)
        found = [f"{_name(row)}: step rows without a turn row" for row in orphans.to_dict("records")]
        steps, request = steps[request >= 0], request[request >= 0]
    return found + _step_violations(steps, request) + _turn_violations(steps, turns, request)


def check_counters(
    steps: pd.DataFrame,
    counters: Mapping[str, Any],
    least: Mapping[str, Any] | None = None,
    most: Mapping[str, Any] | None = None,
) -> list[str]:
    """Compare the table's totals with the engine's own counters; returns one line per difference.

    counters: num_drafts, num_draft_tokens, num_accepted_tokens (int) and num_accepted_tokens_per_pos
    (list of int, entry j-1 for position j), as vLLM's SpecDecodingStats names them
    (vllm/v1/spec_decode/metrics.py). They must be equal, unless the engine also counted what is in no
    table: at least `least`, and at most `most` (with `least` alone there is no limit). Raises UserError on a
    missing counter.
    """
    ours: dict[str, int] = {
        "num_drafts": len(drafted_steps(steps)),
        "num_draft_tokens": int(steps["drafted"].sum()),
        "num_accepted_tokens": int(steps["accepted"].sum()),
    }
    missing = [name for name in (*ours, PER_POSITION) if name not in counters]
    if missing:
        raise UserError(f"the engine's counters lack {', '.join(missing)}: record them with the run's statistics on")
    theirs, low = _named(counters), _named(least or {})
    high = None if least is not None and most is None else _named(most or {})
    deepest = min(MOST_K, max(int(steps["accepted"].max()) if len(steps) else 0, len(counters[PER_POSITION])))
    ours |= {_position(j): int((steps["accepted"] >= j).sum()) for j in range(1, deepest + 1)}
    lines = []
    for name, own in ours.items():
        beside = theirs.get(name, 0) - own
        at_least, at_most = low.get(name, 0), None if high is None else high.get(name, 0)
        if beside < at_least or (at_most is not None and beside > at_most):
            lines.append(f"{name}: step rows give {own}{_beside(at_least, at_most)}, the engine counted {own + beside}")
    return lines


def _position(j: int) -> str:
    return f"{PER_POSITION}[{j - 1}]"


def _named(counters: Mapping[str, Any]) -> dict[str, int]:
    """Every counter by a name of its own, the positions too."""
    plain = {name: int(count) for name, count in counters.items() if name != PER_POSITION}
    return plain | {_position(j): int(n) for j, n in enumerate(counters.get(PER_POSITION, ()), start=1)}


def _beside(least: int, most: int | None) -> str:
    """What unfinished conversations add, in words."""
    if least == most:
        return f" and unfinished conversations {least}" if least else ""
    return f" and unfinished conversations {least} " + ("or more" if most is None else f"to {most}")


def _owners(steps: pd.DataFrame, turns: pd.DataFrame) -> NDArray[np.intp]:
    """Row number in `turns` of the request of each step, -1 where there is none."""
    count = (turns["steps"] + turns["undrafted_steps"]).to_numpy()
    if count.min(initial=0) >= 0 and count.sum() == len(steps):  # as stored: the steps of one turn after another
        owners = np.repeat(np.arange(len(turns)), count)
        if all((turns[name].array.take(owners) == steps[name].array).all() for name in REQUEST):
            return owners
    return _request_index(turns).get_indexer(_request_index(steps))


def _repeated(request: NDArray[np.intp], number: NDArray[Any]) -> NDArray[np.bool_]:
    """Which steps have a number that an earlier one of the request has."""
    follows = (request[1:] == request[:-1]) & (number[1:] > number[:-1]) | (request[1:] > request[:-1])
    if follows.all():
        return np.zeros(len(number), bool)
    return pd.DataFrame({"request": request, "number": number}).duplicated().to_numpy()


def _step_violations(steps: pd.DataFrame, request: NDArray[np.intp]) -> list[str]:
    """Identities inside one step row, or between a step and its place in the request."""
    drafted, accepted, committed = (steps[name].to_numpy() for name in ("drafted", "accepted", "committed"))
    number = steps["step"].to_numpy()
    last_number = np.zeros(request.max(initial=-1) + 1, number.dtype)
    np.maximum.at(last_number, request, number)
    last = number == last_number[request]
    emitted = 1 + accepted
    failures = [
        ((accepted < 0) | (accepted > drafted), "accepts {accepted} of {drafted} drafted tokens"),
        (
            ~last & (committed != emitted),
            "commits {committed} tokens, not 1 + {accepted} accepted, and is not the last",
        ),
        (
            last & ((committed < 1) | (committed > emitted)),
            "is the last and commits {committed} tokens, outside 1 … 1 + {accepted} accepted",
        ),
        (_repeated(request, number), "appears twice"),
        (number < 1, "has no number from 1 on"),
    ]
    return [
        f"{_name(row)}: step {row['step']} " + text.format(**row)
        for mask, text in failures
        if mask.any()
        for row in steps[mask].to_dict("records")
    ]


def _turn_violations(steps: pd.DataFrame, turns: pd.DataFrame, request: NDArray[np.intp]) -> list[str]:
    """Identities between a turn row and the sums over its step rows."""
    drafted, accepted, committed = (steps[name].to_numpy() for name in ("drafted", "accepted", "committed"))

    def total(values: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(request, weights=values, minlength=len(turns)).astype(np.int64)

    rows, with_drafts, all_drafted, all_accepted, all_committed = (
        np.bincount(request, minlength=len(turns)),
        *map(total, (drafted > 0, drafted, accepted, committed)),
    )
    last_number = np.zeros(len(turns), np.int64)
    np.maximum.at(last_number, request, steps["step"].to_numpy())
    identities = [  # what is recorded, the same from the step rows
        ("steps", turns["steps"], "#(drafted > 0)", with_drafts),
        ("undrafted_steps", turns["undrafted_steps"], "#(drafted = 0)", rows - with_drafts),
        ("drafted", turns["drafted"], "Σ drafted", all_drafted),
        ("accepted", turns["accepted"], "Σ accepted", all_accepted),
        ("output_tokens", turns["output_tokens"], "1 + Σ committed", 1 + all_committed),
        ("excess", turns["excess"], "Σ (1 + accepted - committed)", rows + all_accepted - all_committed),
        ("the last step's number", last_number, "#(step rows)", rows),
    ]
    found = [
        f"{_name(turns.iloc[i])}: {name} is {np.asarray(recorded)[i]} but {formula} is {counted[i]}"
        for name, recorded, formula, counted in identities
        for i in np.flatnonzero(np.asarray(recorded) != counted)
    ]
    unknown = turns[~turns["finish_reason"].isin(FINISH_REASONS)]
    return found + [
        f"{_name(row)}: finish_reason {row['finish_reason']!r} is none of {', '.join(FINISH_REASONS)}"
        for row in unknown.to_dict("records")
    ]


def _name(row: Mapping[Any, Any] | pd.Series) -> str:
    return f"{row['suite']} {row['conversation']} seed {row['seed']} turn {row['turn']}"
