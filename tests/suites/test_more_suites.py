"""Groups of categories, an even limit, parquet, placeholders, and the suites that use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import speceval
from speceval import suites
from speceval.errors import UserError
from speceval.suites import longcontext
from speceval.suites.load import SUITES_DIR
from speceval.suites.schema import SPEED_BENCH

ROWS = [
    {"question_id": 81 + i, "category": category, "turns": ["a", "b"][: 1 + (category == "writing")]}
    for i, category in enumerate(["writing", "writing", "writing", "math", "math", "qa"])
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def built_in(folder: Path, name: str, **changes: Any) -> Path:
    """A built-in suite's YAML without pins, in a folder of its own."""
    content = yaml.safe_load((SUITES_DIR / f"{name}.yaml").read_text())
    content.pop("pinned", None)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / f"{name}.yaml"


def test_spec_bench_s_file_is_the_same_as_built_in_and_as_a_user_s_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "question.jsonl", ROWS)
    own, ours = suites.load(str(path)), suites.load(str(built_in(tmp_path, "spec_bench", groups={})))
    assert (
        [one.id for one in own.conversations]
        == [one.id for one in ours.conversations]
        == [str(81 + i) for i in range(6)]
    )
    assert own.dataset_hash == ours.dataset_hash


def test_spec_bench_has_480_conversations_in_thirteen_categories_and_six_groups(tmp_path: Path) -> None:
    content = yaml.safe_load((SUITES_DIR / "spec_bench.yaml").read_text())
    assert len(content["groups"]) == 6 and sum(map(len, content["groups"].values())) == 13
    assert len((SUITES_DIR / "spec_bench.rows").read_text().splitlines()) == 480
    with pytest.raises(UserError, match=r"no file spec_bench_question.jsonl or question.jsonl .*hemingkx/Spec-Bench"):
        suites.load("spec_bench", tmp_path)


def test_a_stratified_limit_takes_the_categories_in_turn_and_a_shorter_one_is_a_prefix(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "q.jsonl", ROWS))
    even = [one.id for one in suites.load(path, limit=5, stratified=True).conversations]
    assert even == ["81", "84", "86", "82", "85"]
    assert even[:3] == [one.id for one in suites.load(path, limit=3, stratified=True).conversations]
    assert [one.id for one in suites.load(path, limit=3).conversations] == ["81", "82", "83"]
    shuffled = suites.load(path, limit=3, shuffle_seed=7, stratified=True).conversations
    assert {one.category for one in shuffled} == {"writing", "math", "qa"}


def test_a_stratified_run_is_another_run_and_says_so(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", ROWS)
    with pytest.raises(UserError, match=r"^stratified: says how limit is taken: give limit too, or leave it out$"):
        run(path, tmp_path / "run", stratified=True)
    even = run(path, tmp_path / "run", stratified=True, limit=3)
    assert even.meta.fingerprint.stratified and even.meta.spec.stratified
    with pytest.raises(UserError, match="holds another run"):
        run(path, tmp_path / "run", limit=3)


def test_groups_of_categories_have_rows_of_their_own(tmp_path: Path) -> None:
    jsonl(tmp_path / "question.jsonl", ROWS)
    stored = run(
        built_in(tmp_path, "spec_bench", groups={"talk": ["writing", "qa"], "sums": ["math"]}), tmp_path / "run"
    )
    assert stored.meta.groups == {"spec_bench": {"talk": ["writing", "qa"], "sums": ["math"]}}
    rows = {row.cells[0].text: row.cells[-1].text for row in speceval.table(stored, layout="categories").rows}
    assert rows == {"math": "2", "qa": "1", "writing": "3", "talk (group)": "4", "sums (group)": "2", "all": "6"}


def test_a_run_without_groups_is_written_as_before(tmp_path: Path) -> None:
    run(jsonl(tmp_path / "q.jsonl", ROWS), tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (
        "groups" not in content and "stratified" not in content["fingerprint"] and "stratified" not in content["spec"]
    )


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"a": ["chess"]}, "group 'a' of suite spec_bench: no row is of category 'chess'"),
        ({"a": ["qa"], "b": ["qa"]}, "field 'groups': category 'qa' stands there twice"),
        ({"a": "qa"}, "field 'groups.a': Input should be a valid list"),
    ],
)
def test_groups_that_are_wrong_are_one_line(tmp_path: Path, groups: dict[str, Any], says: str) -> None:
    jsonl(tmp_path / "question.jsonl", ROWS)
    with pytest.raises(UserError) as error:
        suites.load(str(built_in(tmp_path, "spec_bench", groups=groups)))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_file_gives_what_its_json_lines_give(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    packed, plain = (suites.load(str(path)) for path in (tmp_path / "q.parquet", jsonl(tmp_path / "q.jsonl", ROWS)))
    assert (packed.dataset_hash, packed.conversations) == (plain.dataset_hash, plain.conversations)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"bad.parquet: not a parquet file"):
        suites.load(str(tmp_path / "bad.parquet"))


def test_rows_of_speed_bench_that_are_placeholders_are_refused_with_the_mend(tmp_path: Path) -> None:
    text = SPEED_BENCH
    rows = [{"question_id": str(i), "category": "qa", "turns": [turn]} for i, turn in enumerate(["Why?", f"x {text}"])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "speed_bench.parquet")
    with pytest.raises(UserError, match=r"row 2, field 'turns': a placeholder, not a prompt: .*prepare_data.py"):
        suites.load("speed_bench", tmp_path)
    with pytest.raises(UserError, match=r"row 2, field 'turns': a placeholder, not a prompt: .*prepare_data.py"):
        suites.load(str(tmp_path / "speed_bench.parquet"))  # as a file of one's own
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "speed_bench.parquet")
    assert [one.id for one in suites.load("speed_bench", tmp_path).conversations] == ["0"]
    with pytest.raises(UserError, match=r"no file speed_bench.parquet .*prepare_data.py"):
        suites.load("speed_bench", tmp_path / "empty")


def test_long_contexts_are_made_here_the_same_each_time() -> None:
    one, again = suites.load("longcontext"), suites.load("longcontext")
    assert one.dataset_hash == again.dataset_hash
    assert len({conversation.turns[0] for conversation in one.conversations}) == 48
    for conversation in one.conversations:
        assert conversation.category == f"{round(len(conversation.turns[0]) / longcontext.CHARACTERS / 1000)}k"


def run(path: Path, out: Path, **fields: Any) -> speceval.Run:
    asked = {"temperature": 1, "engine": "simulated", "max_tokens": 8, "suites": [path], "out": out} | fields
    return speceval.run("zoo", "kl-eagle3", **asked)


@pytest.mark.parametrize("content", [b"\xe9\n", bytes(range(256))])
def test_a_file_of_pins_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    jsonl(tmp_path / "q.jsonl", ROWS)
    (tmp_path / "p.rows").write_bytes(content)
    pinned = {"rows": "p.rows", "dataset_hash": "0"}
    own = {"name": "x", "version": 1, "max_tokens": 8, "data": {"file": "q.jsonl"}, "pinned": pinned}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UserError, match=r"p.rows: not a file of pinned rows"):
        suites.load(str(tmp_path / "x.yaml"))
