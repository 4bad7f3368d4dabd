"""Files are written whole or not at all, and a fault in one is said in one line."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from speceval.errors import UserError
from speceval.files import Strict, first_error, write_whole
from speceval.foreign import read_yaml

ROOT = Path(__file__).resolve().parent.parent


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), lambda path: path.write_text("ä\n", encoding="utf-8")])
def test_text_bytes_and_a_function_s_output_are_written_into_new_folders(tmp_path: Path, content) -> None:
    write_whole(tmp_path / "a" / "b" / "file", content)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "ä\n".encode()
    assert names(tmp_path / "a" / "b") == ["file"]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write_whole(file, fail)
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\udcff")
    assert file.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = (
        "import sys, time, pathlib; from speceval.files import write_whole\n"
        "def slow(path): path.write_text('half'); print('half', flush=True); time.sleep(60)\n"
        "write_whole(pathlib.Path(sys.argv[1]), slow)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert file.read_text() == "old"


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """Each has a temporary file of its own: neither writes into what the other is about to rename."""
    file = tmp_path / "file"
    code = (
        "import sys, pathlib; from speceval.files import write_whole\n"
        "for _ in range(100): write_whole(pathlib.Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), letter], cwd=ROOT) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            seen.add(file.read_text())
        time.sleep(0.001)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000} and names(tmp_path) == ["file"]


def test_permissions_are_those_of_the_file_or_the_user_s_usual(tmp_path: Path) -> None:
    write_whole(tmp_path / "new", "x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    write_whole(tmp_path / "new", "y")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a directory: name a file in it"):
        write_whole(tmp_path, "x")


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\xff"])
def test_what_is_no_yaml_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'x.yaml'}: not YAML: ")) as raised:
        read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(raised.value)


class Inner(Strict):
    number: float


class Outer(Strict):
    inner: tuple[Inner, ...]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"inner": [{"number": 1}, {"number": "x"}]}, "field 'inner.1.number': Input should be a valid number"),
        ({"inner": [], "more": 1}, "field 'more': there is no such field"),
        ({"inner": [{"number": "nan"}]}, "field 'inner.0.number': Input should be a finite number"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_the_first_fault_names_its_field(data: object, says: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate(data)
    assert first_error(raised.value).startswith(says)


def test_strict_data_cannot_be_changed() -> None:
    inner = Inner(number=1)
    with pytest.raises(ValidationError):
        inner.number = 2  # type: ignore[misc]


def test_nothing_else_writes_under_a_temporary_name() -> None:
    """One way to replace a file: a second one would have its own leftovers and forget to flush."""
    sources = [path for room in ("speceval", "scripts") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    temporary = re.compile(r"\.(part|partial|tmp)\"\)|os\.replace\(")
    found = {path.relative_to(ROOT).as_posix() for path in sources if temporary.search(path.read_text())}
    assert found == {"speceval/files.py", "scripts/gate_zoo.py"}  # the latter replaces a folder
