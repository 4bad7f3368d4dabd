"""Steps of replayed requests, which accept nothing: a record says which places of the text had drafts."""

import pytest

from speceval.engines.base import Step
from speceval.engines.vllm.align import align_steps, replayed_steps


def test_drafts_stand_at_the_places_that_their_records_name() -> None:
    steps = replayed_steps([1, 1, 1, 1, 1], [2, 3], [2.0, 4.0])
    assert steps == [Step(0, 0, 1), Step(2, 0, 1), Step(0, 0, 1), Step(3, 0, 1)]
    assert steps != align_steps([1, 1, 1, 1, 1], [2, 3], [0, 0])  # which takes the first that fit


def test_a_text_of_one_token_and_one_without_any_draft_have_no_records() -> None:
    assert replayed_steps([1], [], []) == []
    assert replayed_steps([1, 1, 1], [], []) == [Step(0, 0, 1)] * 2


@pytest.mark.parametrize(
    ("commits", "drafted", "places"),
    [
        ([1, 1, 1], [2], [3.0]),
        ([1, 1, 1], [2], [0.0]),
        ([1, 1, 1], [2, 2], [1.0, 1.0]),
        ([1, 1, 1], [2, 2], [2.0, 1.0]),
        ([1, 2, 1], [2], [1.0]),
        ([1, 1, 1], [2, 2], [1.0]),
    ],
    ids=["past the text", "in the prompt", "twice", "backwards", "two tokens at once", "a record is missing"],
)
def test_what_is_no_replay_s_record_is_none(commits: list[int], drafted: list[int], places: list[float]) -> None:
    assert replayed_steps(commits, drafted, places) is None
