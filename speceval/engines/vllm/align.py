"""What a request received, step by step, joined with vLLM's own record of its drafts."""

from __future__ import annotations

from collections.abc import Sequence

from speceval.engines.base import Step


def is_padded(uncached: int, k: int, commits: list[int], drafted: list[int], accepted: list[int]) -> bool:
    """Whether a request's first record is no round: its prefill, filled up with `k` drafts that nobody made.

    vLLM does that when the prefix cache leaves one token of the prompt (`uncached`) to compute (v1/core/sched/
    scheduler.py, "Pad new decode requests"). Such a step commits one token, and the request has as many records as
    commits. Other arguments as in `align_steps`.
    """
    return (
        uncached == 1
        and commits[:1] == [1]
        and (drafted[:1], accepted[:1]) == ([k], [0])
        and len(drafted) >= len(commits)
    )


def align_steps(commits: list[int], drafted: list[int], accepted: list[int]) -> list[Step]:
    """Join what a request received, step by step, with the engine's record of its drafts.

    `commits`: tokens received at each engine step, the prefill's first; `drafted`, `accepted`: one entry for each step
    that verified drafts, in order. A step that fits the next entry takes it; any other must be a step without drafts,
    which commits one token. Entries that fit nowhere are kept as steps with 0 committed tokens, for
    `acceptance.reconcile` to name.
    """
    steps: list[Step] = []
    record = 0
    for index, committed in enumerate(commits[1:], start=1):
        last = index == len(commits) - 1
        left = len(drafted) - record
        fits = left > 0 and (committed == 1 + accepted[record] or (last and committed <= accepted[record]))
        if fits:
            steps.append(Step(drafted[record], accepted[record], committed))
            record += 1
        else:
            steps.append(Step(0, 0, committed))
    steps.extend(Step(d, a, 0) for d, a in zip(drafted[record:], accepted[record:], strict=True))
    return steps


def replayed_steps(commits: list[int], drafted: list[int], places: Sequence[float]) -> list[Step] | None:
    """Steps of a replayed request: every step commits one token, and those at `places` had drafts, `drafted` of them.

    `commits` as in `align_steps`; a place is the number of tokens that were out when the step began, from 1. None when
    this is no replay's record: a step committed more, or a place is outside the text or comes twice.
    """
    steps = [Step(0, 0, 1) for _ in commits[1:]]
    numbers = [int(place) for place in places]
    ordered = all(a < b for a, b in zip([0, *numbers], [*numbers, len(steps) + 1], strict=True))
    if any(count != 1 for count in commits) or len(numbers) != len(drafted) or not ordered:
        return None
    for number, count in zip(numbers, drafted, strict=True):
        steps[number - 1] = Step(count, 0, 1)
    return steps
