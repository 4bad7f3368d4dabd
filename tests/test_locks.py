"""A file under a lock has one holder; a system without locks is told so in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speceval.errors import UserError
from speceval.locks import one_at_a_time, open_locked
from speceval.store import Store, list_runs
from speceval.zoo import build


def test_a_second_holder_is_turned_away_until_the_first_closes_the_file(tmp_path: Path) -> None:
    first = open_locked(tmp_path / "journal", "ab+", wait=False)
    with pytest.raises(BlockingIOError):
        open_locked(tmp_path / "journal", "ab+", wait=False)
    first.close()
    open_locked(tmp_path / "journal", "ab+", wait=True).close()


def test_without_posix_locks_measuring_is_refused_in_one_line_and_reading_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UserError, match="no POSIX file locks: use Linux or WSL"), Store(tmp_path / "run"):
        pass
    with pytest.raises(UserError, match="no POSIX file locks"), one_at_a_time(tmp_path / "zoo"):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert list(list_runs(tmp_path)) == []


def test_no_module_of_the_package_needs_posix_to_be_imported() -> None:
    """`import fcntl` at a module's head would be a traceback for who only reads runs."""
    root = Path(build.__file__).parents[1]
    heads = {path.name: path.read_text(encoding="utf-8").splitlines() for path in root.rglob("*.py")}
    posix = ("import fcntl", "import pwd", "import grp", "import resource", "import termios")
    assert [name for name, lines in heads.items() if any(line.startswith(posix) for line in lines)] == []
