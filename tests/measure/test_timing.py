"""How conversations are cut into blocks to be timed."""

from pathlib import Path

import pytest

from speceval.errors import UserError
from speceval.measure import timing
from speceval.measure.job import Job
from speceval.suites import Conversation, Suite


def suite(size: int) -> Suite:
    conversations = [Conversation(id=str(number), category="c", turns=["hello"]) for number in range(size)]
    return Suite("demo", 1, "hash", conversations, 16, None, "{prompt}", "here")


def test_a_block_is_a_conversation_at_batch_1_and_twice_the_batch_otherwise() -> None:
    assert [len(block) for block in timing.blocks(suite(10), 1)] == [1] * 10
    assert [[one.id for one in block] for block in timing.blocks(suite(10), 2)] == [list("0123"), list("4567")]
    assert len(timing.blocks(suite(1000), 1)) == timing.MOST_BLOCKS


def test_too_few_blocks_for_an_error_are_refused_before_any_engine_starts(tmp_path: Path) -> None:
    job = Job(None, None, None, [suite(20)], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="too few for 8 blocks at batch 2"):
        timing.measure(job, (2,), tmp_path / "log")
    assert not any(tmp_path.iterdir())
