"""Rows of one's own are read as they stand in the file: their text, their forms, and what is done with the rest."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from speceval import suites
from speceval.errors import UserError
from speceval.suites import Suite


def write(tmp_path: Path, *rows: Any, name: str = "mine.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}


def load(tmp_path: Path, *rows: Any) -> Suite:
    return suites.load(str(write(tmp_path, *rows)))


def turns(suite: Suite) -> list[list[str]]:
    return [conversation.turns for conversation in suite.conversations]


# ---------------------------------------------------------------------------------------------------- text is text


def test_text_stays_as_it_is_whatever_other_rows_hold(tmp_path: Path) -> None:
    texts = ["2024-05-01", "12:30", "1e5", "0012", "true", "null", "[1, 2]", '{"a": "b"}', '"quoted"', "a\u2028b\x85c"]
    suite = load(tmp_path, {"turns": ["one", "two"]}, *({"turns": text} for text in texts))
    assert turns(suite) == [["one", "two"], *([text] for text in texts)]


def test_ids_are_read_as_written_text_or_whole_numbers_of_any_size(tmp_path: Path) -> None:
    ids = ["0012", 12, "2024-05-01", "true", 2**64, 10**40, -3, "1e3", "[]"]
    suite = load(tmp_path, *({"id": each, "prompt": "x"} for each in ids))
    assert [conversation.id for conversation in suite.conversations] == [str(each) for each in ids]


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path: Path) -> None:
    odd = [None, 1, "a", [1, "b", None], {"c": [{}]}, 2.5, float("nan"), 10**30, "\ud83d", True, [[]], {"d": {"e": 1}}]
    suite = load(tmp_path, *({"prompt": "x", "meta": value} for value in odd))
    assert len(suite.conversations) == len(odd)


def test_a_column_may_appear_after_ten_megabytes(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 100_000, "note": None} for _ in range(110)]
    suite = load(tmp_path, *rows, {"prompt": "y", "note": "text", "late": 1, "id": "last"})
    assert suite.conversations[-1].id == "last" and len(suite.conversations) == 111


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a \ud83d b"}, r"field 'prompt': turn 1 has half an emoji .*\\ud83d\) at position 3"),
        ({"turns": ["a", "\udc00"]}, r"field 'turns': turn 2 has half an emoji"),
        ({"prompt": "x", "id": "\ud800"}, r"field 'id': the text has half an emoji"),
        ({"prompt": "x", "category": "c\udfff"}, r"field 'category': the text has half an emoji"),
        ({"prompt": "x", "system": "\ud83d"}, r"field 'system': the text has half an emoji"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, r"field 'messages': message 1 has half an emoji"),
    ],
)
def test_half_a_character_is_refused_where_it_would_reach_the_tokenizer(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.jsonl: row 2, {told}"):
        load(tmp_path, {"prompt": "whole \U0001f600"}, row)


# ---------------------------------------------------------------------------------------------------- files

ROWS = [{"prompt": "one", "id": 1}, {"prompt": "zwei é", "id": "b"}]


def _lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + _lines()),
        ("a.jsonl", _lines().replace(b"\n", b"\r\n\r\n")),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode() + b"\n\n"),
        ("a.ndjson", _lines()),
        ("a.jsonl", b"".join(codecs.BOM_UTF8 + line for line in _lines().splitlines(keepends=True))),
        ("a.jsonl.gz", gzip.compress(_lines(), mtime=0)),
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("a.jsonl.xz", lzma.compress(_lines())),
    ],
)
def test_json_lines_and_arrays_give_the_same_suite_packed_or_not(tmp_path: Path, name: str, content: bytes) -> None:
    whole = load(tmp_path, *ROWS)
    (tmp_path / name).write_bytes(content)
    found = suites.load(str(tmp_path / name))
    assert (found.name, found.conversations, found.dataset_hash) == ("a", whole.conversations, whole.dataset_hash)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"', r"row 2: not JSON \(.*column"),
        ('[{"prompt": "a"},\n {"prompt" "b"}]', r"row 2: not JSON \(.*line 2, column 12"),
        ('[{"prompt": "a"} {"prompt": "b"}]', r"row 1: not JSON \(Expecting ','"),
        ('[{"prompt": "a"}, "b"]', 'row 2: not a JSON object such as {"prompt"'),
        ('{\n "prompt": "a"\n}', "row 1: goes over several lines: one object a line"),
        ('[{"prompt": "a"}, {"q": 1}]', "row 2, field 'turns or prompt': missing"),
        ("[]", "empty: no rows"),
        ('[{"prompt": "a"}] {"prompt": "b"}', "stands behind the end of the array"),
        ('{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}', "row 2, field 'prompt': stands there twice"),
        ('{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "row 1: objects or lists too deep"),
        ('{"prompt": ' + "1" * 5000 + "}", "row 1, field 'prompt': Long instead of text"),
        ('{"messages": "[{\\"role\\": \\"user\\"}]"}', "row 1, field 'messages': JSON in a text instead of a list"),
        ('{"conversations": "[]"}', "row 1, field 'conversations': JSON in a text"),
        ('{"conversation": " {}"}', "row 1, field 'conversation': JSON in a text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_row(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        suites.load(str(tmp_path / "mine.json"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_whole_numbers_of_any_length_are_ids_or_stand_in_columns_that_nobody_reads(tmp_path: Path) -> None:
    long = "1" * 5000
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "id": {long}}}\n{{"prompt": "b", "n": {long}}}\n')
    assert [row.id for row in suites.load(str(tmp_path / "a.jsonl")).conversations] == [long, "0001"]


@pytest.mark.parametrize("name", ["", " "])
def test_a_suite_has_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_text(f"name: '{name}'\nversion: 1\ndata: {{file: a.jsonl}}\n")
    with pytest.raises(UserError, match="field 'name': empty"):
        suites.load(str(tmp_path / "a.yaml"))


# ---------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("row", "expected", "system"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"], None),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
            ["a"],
            "s",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": None, "reasoning": "r"},
                    {"role": "user", "content": "b"},
                    {"role": "assistant", "content": "z"},
                ]
            },
            ["a", "b"],
            None,
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "z"}], "system": "s"},
            ["a"],
            "s",
        ),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}], "id": "q_0"},
            ["a"],
            "s",
        ),
        ({"conversation": [{"role": "User", "content": "a"}, {"role": "Assistant", "content": "b"}]}, ["a"], None),
        ({"instruction": "Add", "input": "1+1", "output": "2"}, ["Add\n1+1"], None),
        ({"instruction": "Add", "input": "", "output": "", "system": ""}, ["Add"], None),
        ({"instruction": "c", "history": [["a", "x"], ["b", "y"]], "system": "s"}, ["a", "b", "c"], "s"),
        ({"turns": [{"text": "a"}, {"text": "b", "delay": 100}]}, ["a", "b"], None),
        ({"prompt": "a", "system_prompt": "s"}, ["a"], "s"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            ["a\nb"],
            None,
        ),
        ({"prompt": "a", "messages": None}, ["a"], None),
        ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}]}, ["a"], "s"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "bing", "value": "z"}]}, ["a"], None),
        (
            {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [SYSTEM, USER]}},
            ["a"],
            "s",
        ),
    ],
)
def test_the_forms_of_other_programs_are_played(tmp_path: Path, row: Any, expected: Any, system: str | None) -> None:
    (conversation,) = load(tmp_path, row).conversations
    assert (conversation.turns, conversation.system) == (expected, system)


def test_a_line_of_a_batch_file_is_known_by_its_own_id_and_what_its_request_holds_besides_is_named(
    tmp_path: Path,
) -> None:
    suite = load(tmp_path, {"custom_id": "q", "body": {"model": "m", "messages": [USER], "max_tokens": 3}})
    assert [conversation.id for conversation in suite.conversations] == ["q"]
    assert suite.notes == ("mine: its rows hold what nothing uses: model, max_tokens",)


def test_pieces_of_conversations_in_a_sharegpt_file_are_left_out_and_counted(tmp_path: Path) -> None:
    human, gpt = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
    rows = [{"id": f"x_{n}", "conversations": held} for n, held in enumerate(([human, gpt], [], [gpt, human], [human]))]
    suite = load(tmp_path, *rows)
    assert [conversation.id for conversation in suite.conversations] == ["x_0", "x_3"]
    assert "mine: 2 rows hold no conversation that a user begins: they are left out" in suite.notes
    with pytest.raises(UserError, match="no row has a conversation that a user begins"):
        load(tmp_path, *rows[1:3])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [{"role": "assistant", "content": "z"}]}, "field 'messages': message 1 is the assistant's"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "message 2 is the user's, where one of the assistant"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}]},
            "message 2 is a system prompt",
        ),
        ({"messages": [{"role": "tool", "content": "t"}]}, "message 1 has the role 'tool', which is not played"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'content': a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": []}]}, "message 1, field 'content': list instead of text"),
        ({"messages": [{"role": "user", "content": "a", "text": "b"}]}, "message 1 has 'content' and 'text': which"),
        ({"messages": [{"role": "user", "from": "gpt", "content": "a"}]}, "message 1 has 'role' and 'from': which"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content"),
        ({"messages": [{"role": "system", "content": "s"}]}, "no message of the user"),
        ({"messages": [{"role": "user", "content": "a"}, "b"]}, "message 2 is str instead of an object"),
        ({"messages": []}, "field 'messages': an empty list"),
        ({"conversations": [{"from": "human", "value": " "}]}, "field 'conversations': message 1 is empty"),
        ({"instruction": "a", "input": 3}, "field 'input': int instead of text"),
        ({"instruction": "a", "history": ["b"]}, "field 'history': not a list"),
        (
            {"system": "s", "messages": [{"role": "system", "content": "t"}, {"role": "user", "content": "a"}]},
            "field 'system': the messages have a system prompt too",
        ),
        ({"prompt": "a", "system": ["s"]}, "field 'system': list instead of text"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "fields 'prompt' and 'messages': both hold"),
        ({"prompt": "a", "instruction": "b"}, "fields 'prompt' and 'instruction': both hold"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "field 'tools': cannot be given to a request"),
        ({"prompt": "a", "images": ["x.png"]}, "field 'images': cannot be given to a request"),
    ],
)
def test_what_cannot_be_played_is_refused_with_row_and_field(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UserError, match="row 2") as caught:
        load(tmp_path, {"prompt": "x"}, row)
    assert told in str(caught.value)


def test_a_row_s_own_system_prompt_opens_the_conversation_and_goes_before_the_suite_s(tmp_path: Path) -> None:
    write(tmp_path, {"prompt": "a", "system": "own"}, {"prompt": "b"}, name="rows.jsonl")
    (tmp_path / "s.yaml").write_text("name: s\nversion: 1\ndata: {file: rows.jsonl}\nsystem: suite's\n")
    suite = suites.load(str(tmp_path / "s.yaml"))
    opened = [suite.opening(conversation) for conversation in suite.conversations]
    assert [[message["content"] for message in opening] for opening in opened] == [["own"], ["suite's"]]


def test_a_system_prompt_is_part_of_the_content_and_without_one_the_hash_is_what_it_was(tmp_path: Path) -> None:
    plain, with_system = load(tmp_path, {"prompt": "a"}), load(tmp_path, {"prompt": "a", "system": "s"})
    assert plain.dataset_hash == "f5964e3983dae5b9d401d3ca8497b6fb0b59841a5f1a9db61ce7c6f45feb07b2"
    other = load(tmp_path, {"prompt": "a", "system": "t"})
    assert len({suite.dataset_hash for suite in (plain, with_system, other)}) == 3


def test_spec_bench_s_question_id_is_the_id(tmp_path: Path) -> None:
    suite = load(tmp_path, {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": []})
    assert suite.conversations[0].id == "81" and suite.notes == ()


# ---------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "a", "output_tokens": 5, "max_tokens": 3},
            "rows hold what nothing uses: output_tokens, max_tokens",
        ),
        ({"turns": [{"text": "a", "delay": 1}], "session_id": "s"}, "nothing uses: session_id, delay"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}], "temperature": 0}, "uses: temperature, name"),
        ({"instruction": "a", "output": "z", "text": "t"}, "nothing uses: text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"t": 1}}]}]},
            "nothing uses: cache_control",
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "z"}]}, "1 recorded answers"),
        ({"instruction": "a", "output": "z"}, "1 recorded answers are not used: the target answers itself"),
        ({"prompt": "a"} | {f"c{i:02}": i for i in range(30)}, "c09 and 20 more"),
    ],
)
def test_what_rows_hold_and_nothing_uses_is_named(tmp_path: Path, row: Any, told: str) -> None:
    assert told in "; ".join(load(tmp_path, row).notes)


def test_repeated_prompts_are_told_since_they_are_no_new_ones(tmp_path: Path) -> None:
    path = write(tmp_path, *({"prompt": f"question {row % 3}"} for row in range(60)))
    (note,) = suites.load(str(path)).notes
    assert "60 conversations have 3 different prompts" in note and "too narrow" in note
    assert suites.load(str(path), limit=3).notes == ()


def test_empty_columns_and_those_of_the_benchmarks_are_not_named(tmp_path: Path, data_dir: Path) -> None:
    assert load(tmp_path, {"prompt": "a", "tools": [], "images": None, "reference": "", "meta": {}}).notes == ()
    assert [suites.load(name, data_dir).notes for name in ("mt_bench", "humaneval", "gsm8k")] == [(), (), ()]


def test_columns_that_a_yaml_names_are_read_and_of_several_the_first(tmp_path: Path) -> None:
    row = {"ask": "a", "prompt": "b", "who": "7", "sys": "s"}
    write(tmp_path, row, name="rows.jsonl")
    fields = "fields: {text: [ask, prompt], id: who, system: sys}\n"
    (tmp_path / "s.yaml").write_text(f"name: s\nversion: 1\ndata: {{file: rows.jsonl}}\n{fields}")
    suite = suites.load(str(tmp_path / "s.yaml"))
    assert suite.conversations == [suites.Conversation("7", None, ["a"], "s")]
    assert suite.notes == ("s: its rows hold what nothing uses: prompt",)
