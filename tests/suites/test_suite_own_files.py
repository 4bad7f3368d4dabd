"""A user's own suites: .jsonl and .yaml, and the one line for each way they can be wrong."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from speceval import suites
from speceval.errors import UserError


def jsonl(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_rows_with_turns_or_prompt_make_conversations(tmp_path: Path) -> None:
    suite = suites.load(
        jsonl(tmp_path, '{"turns": ["a {x}", "b"], "id": "p", "category": "c"}\n{"prompt": "q {prompt}"}\n')
    )
    first, second = suite.conversations
    assert (first.id, first.category, first.turns) == ("p", "c", ["a {x}", "b"])
    assert (second.id, second.category, second.turns) == ("0001", None, ["q {prompt}"])
    assert (suite.name, suite.version) == ("mine", 1)


def test_the_hash_is_of_content_not_of_spelling(tmp_path: Path) -> None:
    one = suites.load(jsonl(tmp_path, '{"prompt": "\\u00e9", "id": 1}\n')).dataset_hash
    assert suites.load(jsonl(tmp_path, '{"id":"1","turns":["é"],"more":2}\r\n\n')).dataset_hash == one
    assert suites.load(jsonl(tmp_path, '{"prompt": "e", "id": 1}\n')).dataset_hash != one


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty: no rows"),
        ("\n\n", "empty: no rows"),
        ('{"prompt": "x"}\n{"prompt": "y"\n', r"row 2: not JSON \(.*column"),
        ('{"prompt": "x"}\n[1]\n', "row 2: not a JSON object"),
        ('{"prompt": "x"}\n{"q": "y"}\n', "row 2, field 'turns or prompt': missing"),
        ('{"prompt": "x"}\n{"prompt": 3}\n', "row 2, field 'prompt': int instead of text"),
        ('{"turns": ["x"]}\n{"turns": ["x", 3]}\n', "row 2, field 'turns': turn 2 is int"),
        ('{"turns": ["x"]}\n{"turns": []}\n', "row 2, field 'turns': an empty list"),
        ('{"turns": ["x", " "]}\n', "row 1, field 'turns': turn 2 is empty"),
        ('{"prompt": "x", "id": 1}\n{"prompt": "y", "id": 1}\n', "row 2, field 'id': '1' is already row 1"),
        ('{"prompt": "x", "category": 4}\n', "row 1, field 'category': int instead of text"),
        ('{"prompt": "x", "id": 1.5}\n', "row 1, field 'id': float"),
        (b'{"prompt": "x"}\n{"prompt": "\xff"}\n', "row 2: not UTF-8"),
        ('{\n"prompt": "x"\n}\n', r"row 1: goes over several lines: one object a line, or an array of them"),
        ('{"question": "x", "answer": "y"}\n', r"missing .*; it has question, answer: a suite's YAML names another"),
        (b"\x28\xb5\x2f\xfd....", "packed with zstd, which is not read here: unpack it"),
        (b"PK\x03\x04....", "packed with zip"),
    ],
)
def test_bad_rows_get_one_line_with_file_row_and_field(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = jsonl(tmp_path, content)
    with pytest.raises(UserError, match=told) as caught:
        suites.load(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_but_our_line_is_printed_for_a_bad_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"prompt": "x"}\n{"prompt": "y"\n')
    code = f"from speceval import errors, suites\ntry: suites.load({path!r})\nexcept errors.UserError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.startswith(f"{path}: row 2: not JSON")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.csv", b'\xef\xbb\xbfprompt,id,category\r\n"a, ""b""\nc",0012,\r\n2024-01-01,,d\r\n'),
        ("own.tsv", b'prompt\tid\tcategory\n"a, ""b""\nc"\t0012\t\n2024-01-01\t\td\n'),
        ("own.csv", b'prompt;id;category\n"a, ""b""\nc";0012;\n;;\n\n2024-01-01;;d\n;;\n'),
        ("OWN.CSV.GZ", gzip.compress(mtime=0, data=b'prompt,id,category\n"a, ""b""\nc",0012,\n2024-01-01,,d\n')),
        (
            "own.JSONL",
            b'{"prompt":"a, \\"b\\"\\nc","id":"0012","category":""}\n{"prompt":"2024-01-01","category":"d"}\n',
        ),
    ],
)
def test_cells_of_a_table_stay_text_and_an_empty_one_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    suite = suites.load(str(tmp_path / name))
    assert suite.name.lower() == "own"
    assert suite.conversations == [
        suites.Conversation("0012", None, ['a, "b"\nc']), suites.Conversation("0001", "d", ["2024-01-01"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"prompt,id\na,1\nb\n", r"row 2: not as many cells as there are columns \(2\)"),
        (b"prompt\na,b\n", "row 1: not as many cells"),
        (b'prompt\na\n"b\n', r"row 2: not CSV \("),
        (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        (b"prompt\na\n\xe9\n", "row [12]: not UTF-8 text"),
        ("prompt\na\n".encode("utf-16"), "UTF-16 or UTF-32 text: save the file as UTF-8"),
        ("prompt\na\n".encode("utf-16-be"), "UTF-16 or UTF-32 text: save the file as UTF-8"),
        (b"prompt\n", "empty: no rows"),
        (b'messages\n"[{}]"\n', "row 1, field 'messages': JSON in a text"),
    ],
)
def test_bad_tables_get_one_line_with_file_and_row(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        suites.load(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


YAML = "name: mine\nversion: 3\ndata: {file: rows.jsonl}\nfields: {text: ask}\ncategory: math\nmax_tokens: 32\n"


def test_an_own_yaml_reads_its_data_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"ask": "1+1"}\n')
    (tmp_path / "mine.yaml").write_text(YAML + 'template: "Say {prompt} {now}"\nsystem: Be brief.\n')
    suite = suites.load(str(tmp_path / "mine.yaml"))
    assert (suite.name, suite.version, suite.max_tokens, suite.system) == ("mine", 3, 32, "Be brief.")
    assert suite.conversations == [suites.Conversation("0000", "math", ["Say 1+1 {now}"])]


def test_data_may_be_the_file_alone_also_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("name: mine\nversion: 1\ndata: ~/rows.jsonl\n")
    assert len(suites.load(str(tmp_path / "sub" / "mine.yaml")).conversations) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (YAML + "maxtokens: 3\n", "field 'maxtokens'"),
        (YAML + "template: no place\n", "field 'template': holds no {prompt}"),
        (YAML.replace("version: 3", "version: 0"), "field 'version'"),
        (YAML.replace("max_tokens: 32", "max_tokens: true"), "field 'max_tokens': .*integer"),
        (YAML.replace("version: 3", "version: 3.0"), "field 'version': .*integer"),
        (YAML, "no file rows.jsonl"),
        ("- 1\n", "not a suite"),
        ("a: [\n", "not YAML"),
    ],
)
def test_bad_yaml_gets_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        suites.load(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean gsm8k.*known: demo, gsm8k, humaneval, longcontext, mt_bench"):
        suites.load("gsm8")
    with pytest.raises(UserError, match="no such file"):
        suites.load("nowhere.jsonl")


def test_the_listing_shows_every_suite_without_reading_data() -> None:
    rows = {row["suite"]: row["conversations"] for row in suites.listing()}
    assert rows.keys() == set(suites.names())
    assert (rows["mt_bench"], rows["humaneval"], rows["gsm8k"]) == ("80", "164", "1319")


def test_importing_the_package_does_not_import_datasets() -> None:
    code = "import sys, speceval.suites; print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
