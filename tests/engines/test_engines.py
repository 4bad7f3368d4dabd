"""Joining what a request received with the engine's record of its drafts."""

from speceval.engines.base import Counters, Step
from speceval.engines.vllm.align import align_steps, is_padded


def test_every_step_with_drafts_takes_its_record_in_order() -> None:
    assert align_steps([1, 3, 1, 4], [3, 3, 3], [2, 0, 3]) == [Step(3, 2, 3), Step(3, 0, 1), Step(3, 3, 4)]


def test_the_last_step_may_commit_less_than_it_emitted() -> None:
    assert align_steps([1, 3, 2], [3, 3], [2, 3]) == [Step(3, 2, 3), Step(3, 3, 2)]


def test_a_step_without_drafts_is_told_from_one_with_drafts() -> None:
    assert align_steps([1, 1, 3, 1], [3], [2]) == [Step(0, 0, 1), Step(3, 2, 3), Step(0, 0, 1)]


def test_a_record_that_fits_no_step_is_kept_for_the_books_to_name() -> None:
    assert align_steps([1, 2], [3, 3], [1, 2]) == [Step(3, 1, 2), Step(3, 2, 0)]


def test_a_request_of_one_token_has_no_steps() -> None:
    assert align_steps([1], [], []) == []


def test_a_prefill_filled_up_with_padding_is_no_round() -> None:
    """K=3, the prompt in the cache but for its last token: the first record is the padding's."""
    assert is_padded(1, 3, [1, 3], [3, 3], [0, 2])
    assert is_padded(1, 3, [1], [3], [0])
    assert not is_padded(5, 3, [1, 1, 3], [3, 3], [0, 2])  # nothing cached
    assert not is_padded(1, 3, [1, 1, 3], [3, 3], [0, 2])  # a first round that accepted nothing
    assert not is_padded(1, 3, [1, 3], [3], [2])
    assert not is_padded(1, 3, [1], [], [])


def test_padding_is_taken_out_of_the_engines_totals() -> None:
    counted = Counters(5, 15, 7, [4, 2, 1], steps_with_q=3, steps_padded=2)
    assert counted.without_padding(2, 3) == Counters(3, 9, 7, [4, 2, 1], steps_with_q=3)


def test_counters_since_an_earlier_reading() -> None:
    later, earlier = Counters(5, 15, 7, [4, 2, 1]), Counters(2, 6, 3, [2, 1, 0])
    assert later.minus(earlier) == Counters(3, 9, 4, [2, 1, 1])
    assert later.minus(Counters()) == later
