"""Shards: each conversation in one of them, and together the run of one engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import speceval
from speceval import UserError
from speceval.cli import app


def run(folder: Path, shard: str | None = None, **fields: Any) -> speceval.Run:
    asked = {"temperature": 1, "engine": "simulated", "max_tokens": 12, "seeds": (0, 1), "suites": ["demo"]} | fields
    out = folder / (shard or "whole").replace("/", "-of-")
    return speceval.run("zoo", "kl-eagle3", shard=shard, out=out, **asked)


def test_shards_join_to_the_run_of_one_engine(tmp_path: Path) -> None:
    whole = run(tmp_path)
    shards = [run(tmp_path, f"{i}/3") for i in (3, 1, 2)]
    assert [shard.conversations for shard in shards] == [16, 16, 16]
    joined = speceval.merge(*(shard.directory for shard in shards), out=tmp_path / "joined")
    assert joined.turns.equals(whole.turns) and joined.steps.equals(whole.steps)
    assert joined.meta.spec == whole.meta.spec and joined.meta.fingerprint == whole.meta.fingerprint
    assert joined.meta.conversations == whole.meta.conversations and joined.meta.notes == whole.meta.notes
    texts = [(folder / "outputs.jsonl").read_text() for folder in (joined.directory, whole.directory)]
    assert sorted(texts[0].splitlines()) == sorted(texts[1].splitlines())
    assert speceval.validate(joined) == [] and len(joined.meta.segments) == 3
    seconds = [shard.meta.engine_seconds for shard in shards]
    assert joined.meta.engine_seconds == pytest.approx(sum(seconds), abs=1e-3)
    assert joined.meta.wall_seconds == pytest.approx(sum(seconds), abs=1e-3)  # one after another here
    assert speceval.compare(whole, joined)[0].difference.value == 0


def test_seeds_of_a_conversation_stay_together(tmp_path: Path) -> None:
    first, second = (run(tmp_path, f"{i}/2") for i in (1, 2))
    assert not set(first.turns["conversation"]) & set(second.turns["conversation"])
    assert set(first.turns["seed"]) == {0, 1}


def test_books_of_a_shard_that_do_not_balance_are_those_of_the_whole(tmp_path: Path) -> None:
    shards = [run(tmp_path, f"{i}/2").directory for i in (1, 2)]
    path = shards[1] / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems": ["lost"], "status": "inconsistent"}))
    joined = speceval.merge(*shards, out=tmp_path / "joined")
    assert joined.meta.problems == ["shard 2/2: lost"] and joined.meta.status == "inconsistent"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["1/3", "3/3"], r"^missing: shard 2/3: name all 3$"),
        (["1/9"], r"^missing: shard 2/9, 3/9, 4/9 and 5 others: name all 9$"),
        (["1/3", "2/3", "3/3", "1/3"], "are both shard 1/3$"),
        (["1/3", "2/2"], "2-of-2: is shard 2/2, the others are of 3$"),
        ([None], "whole: is no shard: it was measured without --shard|without shard"),
    ],
)
def test_what_is_not_all_of_one_run_is_refused_in_one_line(tmp_path: Path, names: list[Any], says: str) -> None:
    shards = [run(tmp_path, name).directory for name in names]
    with pytest.raises(UserError, match=says):
        speceval.merge(*shards, out=tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_shards_of_two_protocols_are_not_joined(tmp_path: Path) -> None:
    one, other = run(tmp_path, "1/2"), run(tmp_path, "2/2", max_tokens=13)
    with pytest.raises(UserError, match=r"are not of one run \(max_tokens: 12 -> 13\)$"):
        speceval.merge(one.directory, other.directory, out=tmp_path / "joined")


def test_a_conversation_that_two_shards_have_is_refused(tmp_path: Path) -> None:
    shards = [run(tmp_path, f"{i}/3").directory for i in (1, 2, 3)]
    shutil.copytree(shards[1], tmp_path / "copy")
    path = tmp_path / "copy" / "run.json"
    path.write_text(path.read_text().replace('"shard": "2/3"', '"shard": "3/3"'))
    with pytest.raises(UserError, match=r"2-of-3 and .*copy both have conversation \w+ of demo$"):
        speceval.merge(*shards[:2], tmp_path / "copy", out=tmp_path / "joined")


def test_a_shard_that_lacks_a_text_leaves_nothing_behind(tmp_path: Path) -> None:
    shards = [run(tmp_path, f"{i}/2").directory for i in (1, 2)]
    texts = shards[1] / "outputs.jsonl"
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="lacks 1 of"):
        speceval.merge(*shards, out=tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(UserError, match="not a directory"):
        speceval.merge(shards[0], run(tmp_path / "b", "2/2").directory, out=texts)


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    whole, shards = run(tmp_path), [run(tmp_path, f"{i}/2").directory for i in (1, 2)]
    with pytest.raises(UserError, match=r"holds a run: name another directory"):
        speceval.merge(*shards, out=whole.directory)


@pytest.mark.parametrize(
    "shard", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3", "", "1/99999999999", "١/٢", "9" * 5000 + "/2"]
)
def test_a_shard_that_is_none_is_one_line(tmp_path: Path, shard: str) -> None:
    with pytest.raises(UserError, match=r"^shard: must be i/n, such as 2/4 \(got"):
        run(tmp_path, shard=shard)


def test_a_shard_does_not_know_when_the_whole_may_stop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^until: has no meaning with shard"):
        run(tmp_path, "1/2", until=0.1)


def test_the_command_prints_the_whole(tmp_path: Path) -> None:
    shards = [str(run(tmp_path, f"{i}/2").directory) for i in (1, 2)]
    done = CliRunner().invoke(app, ["merge", *shards, "--out", str(tmp_path / "joined"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["checked_conversations"] == {"checked": 48, "measured": 48}
