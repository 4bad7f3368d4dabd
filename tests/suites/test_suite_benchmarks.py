"""The built-in benchmarks: the same conversations from files and from hub-shaped rows; pins that notice changes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speceval import suites
from speceval.errors import UserError
from speceval.suites import read

SIZES = {"mt_bench": 80, "humaneval": 164, "gsm8k": 1319}
FILES = {"mt_bench": "mt_bench_question.jsonl", "humaneval": "HumanEval.jsonl.gz", "gsm8k": "gsm8k_test.jsonl"}


def raw_rows(data_dir: Path, name: str) -> list[dict[str, Any]]:
    content = (data_dir / FILES[name]).read_bytes()
    if FILES[name].endswith(".gz"):
        content = gzip.decompress(content)
    return [json.loads(line) for line in content.splitlines()]


def hub_shaped(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the hub dataset's column names and order."""
    if name != "mt_bench":
        return dict(reversed(row.items()))
    return {
        "category": row["category"],
        "prompt": row["turns"],
        "reference": row.get("reference") or [],
        "prompt_id": row["question_id"],
    }


@pytest.mark.parametrize("name", list(SIZES))
def test_real_files_give_the_pinned_suite(data_dir: Path, name: str) -> None:
    suite = suites.load(name, data_dir)
    assert len(suite.conversations) == SIZES[name]
    assert len({conversation.id for conversation in suite.conversations}) == SIZES[name]
    assert suite.version == 1 and suite.max_tokens == 1024


@pytest.mark.parametrize("name", list(SIZES))
def test_hub_rows_and_local_rows_are_the_same_suite(data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    local = suites.load(name, data_dir)
    rows = [hub_shaped(name, row) for row in raw_rows(data_dir, name)]
    monkeypatch.setattr(read, "online", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(rows))
    hub = suites.load(name)
    assert hub.source.startswith("hub dataset")
    assert hub.dataset_hash == local.dataset_hash
    assert hub.conversations == local.conversations


def test_ids_and_turns_are_those_of_the_benchmarks(data_dir: Path) -> None:
    mt_bench = suites.load("mt_bench", data_dir).conversations
    assert (mt_bench[0].id, mt_bench[-1].id, mt_bench[0].category) == ("81", "160", "writing")
    assert all(len(conversation.turns) == 2 for conversation in mt_bench)
    assert suites.load("humaneval", data_dir).conversations[3].id == "HumanEval/3"
    gsm8k = suites.load("gsm8k", data_dir).conversations
    assert (gsm8k[0].id, gsm8k[-1].id) == ("0000", "1318")
    assert gsm8k[0].turns[0].endswith("within \\boxed{}.")


def test_a_humaneval_prompt_with_braces_reaches_the_model_unchanged(data_dir: Path) -> None:
    rows = {row["task_id"]: row["prompt"] for row in raw_rows(data_dir, "humaneval")}
    conversations = suites.load("humaneval", data_dir).conversations
    assert any("{" in prompt for prompt in rows.values())
    assert all(f"```python\n{rows[each.id]}\n```" in each.turns[0] for each in conversations)


Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def edited(rows: list[dict[str, Any]], index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**row, **fields} if position == index else row for position, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        ("gsm8k", lambda rows: edited(rows, 16, question="Something else?"), "row 17, field 'question' differs"),
        ("gsm8k", lambda rows: rows[:500], "500 rows, suite gsm8k version 1 has 1319"),
        ("gsm8k", lambda rows: rows[1:], r"row 1 is row 2 of .* \(1318 rows instead of 1319\)"),
        ("gsm8k", lambda rows: rows + rows[:1], "1320 rows"),
        ("mt_bench", lambda rows: rows[1::-1] + rows[2:], "row 1 is row 2 of .* reordered"),
        ("mt_bench", lambda rows: edited(rows, 2, category="jokes"), "row 3, field 'category' differs"),
        ("mt_bench", lambda rows: edited(rows, 2, turns=rows[2]["turns"][:1]), "row 3, field 'turns' differs"),
        ("gsm8k", lambda rows: edited(rows, 16, question=None), "row 17, field 'question': missing"),
        ("gsm8k", lambda rows: edited(rows, 16, question="  "), "row 17, field 'question': turn 1 is empty"),
    ],
)
def test_changed_files_are_named_with_row_and_field(
    data_dir: Path, tmp_path: Path, name: str, edit: Edit, told: str
) -> None:
    rows = edit(raw_rows(data_dir, name))
    (tmp_path / FILES[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=told) as caught:
        suites.load(name, tmp_path)
    assert FILES[name] in str(caught.value) and "\n" not in str(caught.value)


def test_a_reencoded_but_equal_file_is_accepted(data_dir: Path, tmp_path: Path) -> None:
    rows = raw_rows(data_dir, "humaneval")
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert suites.load("humaneval", tmp_path) != suites.load("humaneval", data_dir)  # the source differs
    assert suites.load("humaneval", tmp_path).dataset_hash == suites.load("humaneval", data_dir).dataset_hash


def test_a_truncated_gzip_file_is_named(data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / FILES["humaneval"], tmp_path / FILES["humaneval"])
    content = (tmp_path / FILES["humaneval"]).read_bytes()
    (tmp_path / FILES["humaneval"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged gzip"):
        suites.load("humaneval", tmp_path)


def test_shuffle_is_reproducible_and_a_shorter_limit_is_a_prefix(data_dir: Path) -> None:
    ids = [each.id for each in suites.load("gsm8k", data_dir, limit=50, shuffle_seed=7).conversations]
    assert ids == [each.id for each in suites.load("gsm8k", data_dir, limit=90, shuffle_seed=7).conversations][:50]
    assert ids[:3] == ["1197", "1270", "0140"]  # fixed for ever: stored runs name their seed only
    other = [each.id for each in suites.load("gsm8k", data_dir, limit=50, shuffle_seed=8).conversations]
    assert ids != other


def test_limit_and_shuffle_leave_the_dataset_hash_alone(data_dir: Path) -> None:
    whole = suites.load("mt_bench", data_dir)
    assert suites.load("mt_bench", data_dir, limit=3, shuffle_seed=1).dataset_hash == whole.dataset_hash
    assert len(suites.load("mt_bench", data_dir, limit=1000).conversations) == 80
    with pytest.raises(UserError, match="at least 1"):
        suites.load("mt_bench", data_dir, limit=0)


def test_offline_without_data_dir_names_the_file_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(read, "online", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"--data-dir DIR where DIR holds gsm8k_test\.jsonl"):
        suites.load("gsm8k")


def test_a_data_dir_without_the_file_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file mt_bench_question\.jsonl"):
        suites.load("mt_bench", tmp_path)


def test_the_environment_names_a_folder_and_what_is_not_in_it_comes_from_the_hub(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(data_dir / FILES["gsm8k"], tmp_path / FILES["gsm8k"])
    monkeypatch.setattr(read, "online", lambda: False)
    monkeypatch.setenv("SPECEVAL_DATA_DIR", str(tmp_path))
    assert suites.load("gsm8k", limit=1).source == str(tmp_path / FILES["gsm8k"])
    with pytest.raises(UserError, match="hub cannot be reached"):
        suites.load("mt_bench")
    with pytest.raises(UserError, match=f"no file .* in {tmp_path / 'other'}"):
        suites.load("gsm8k", tmp_path / "other")


def test_nothing_is_written_beside_the_data(data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / FILES["gsm8k"], tmp_path / FILES["gsm8k"])
    suites.load("gsm8k", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILES["gsm8k"]]


def test_the_demo_suite_has_24_conversations_in_three_categories() -> None:
    suite = suites.load("demo")
    assert len(suite.conversations) == 24
    assert {each.category for each in suite.conversations} == {"code", "chat", "math"}
    assert suite.max_tokens == 96
