"""A folder is searched for runs with an end: a whole disk, a loop or an unreadable folder gives one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speceval import folders
from speceval.errors import UserError
from speceval.show.report import verification
from speceval.store import directories
from speceval.store.read import runs_below


def put(*paths: Path) -> None:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
        (path / "run.json").write_text("{}")


def test_folders_at_any_depth_are_found_in_order(tmp_path: Path) -> None:
    put(tmp_path / "b", tmp_path / "a" / "x" / "y", tmp_path / "a" / "x")
    (tmp_path / "c").mkdir()
    assert directories(tmp_path) == [tmp_path / "a" / "x", tmp_path / "a" / "x" / "y", tmp_path / "b"]


def test_a_link_to_a_run_counts_once_and_no_link_is_searched(tmp_path: Path) -> None:
    put(tmp_path / "root" / "run", tmp_path / "other" / "linked", tmp_path / "disk" / "deep")
    for name, target in {
        "latest": tmp_path / "root" / "run",
        "x": tmp_path / "other" / "linked",
        "y": tmp_path / "other" / "linked",
        "disk": tmp_path / "disk",
        "up": tmp_path / "root",
        "self": Path("self"),
        "gone": Path("nowhere"),
    }.items():
        (tmp_path / "root" / name).symlink_to(target)
    assert directories(tmp_path / "root") == [tmp_path / "root" / "run", tmp_path / "root" / "x"]


def test_hidden_folders_are_searched_only_when_named(tmp_path: Path) -> None:
    put(tmp_path / ".cache" / "run")
    assert directories(tmp_path) == []
    assert directories(tmp_path / ".cache") == [tmp_path / ".cache" / "run"]


def test_a_name_that_is_nothing_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "gone", tmp_path / "file", Path("a\0b")):
        assert folders.holding(path, "run.json") == ([], {})


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As for a user without rights: tests may run as one who has all."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_may_not_be_read_is_named_and_stops_no_listing(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "run")
    (tmp_path / "secret").mkdir()
    unreadable(monkeypatch, "secret")
    assert runs_below(tmp_path)[1][tmp_path / "secret"] == "cannot be read: Permission denied"
    assert directories(tmp_path) == [tmp_path / "run", tmp_path / "secret"]  # reading it says why not


@pytest.mark.parametrize(
    "search", [directories, runs_below, lambda path: verification.find(None, path)], ids=["runs", "ls", "verify"]
)
def test_a_whole_disk_is_refused_in_one_line(tmp_path: Path, monkeypatch, search: Callable[[Path], Any]) -> None:
    for n in range(30):
        (tmp_path / f"{n % 5}" / f"{n}").mkdir(parents=True)
    monkeypatch.setattr(folders, "MOST_FOLDERS", 20)
    with pytest.raises(UserError, match=r"too much to look through for \w+\.json \(21 folders without one\): name a"):
        search(tmp_path)
    monkeypatch.setattr(folders, "MOST_FOLDERS", 100)
    monkeypatch.setattr(folders, "MOST_NAMES", 30)
    with pytest.raises(UserError, match="too much to look through"):
        search(tmp_path)


def test_any_number_of_runs_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "MOST_FOLDERS", 20)
    put(*(tmp_path / f"{n}" for n in range(50)))
    assert len(directories(tmp_path)) == 50
