"""Building and caching: deterministic, atomic, resumed, keyed by the recipe."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.zoo_miniature import MINIATURE

from speceval.errors import UserError
from speceval.zoo import DRAFTERS, build, ensure, text
from speceval.zoo.recipe import METHODS, Recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEVAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a handful of modules only: parsing the whole library would take most of a test's time."""
    files = [path for path in text.library_files() if path.stem in ("textwrap", "shlex", "calendar")]
    monkeypatch.setattr(text, "library_files", lambda: files)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def train(name: str, recipe: Recipe, root: Path) -> dict[str, bytes]:
    import torch

    from speceval.zoo.worker import train_part

    threads = torch.get_num_threads()
    try:
        (root / name).mkdir(parents=True)
        train_part(name, recipe, root / "target", root / name, lambda done, total: None)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    return contents(root / name)


@pytest.mark.usefixtures("few_files")
def test_training_twice_gives_identical_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name in ("target", *DRAFTERS):
        assert train(name, MINIATURE, tmp_path / "a") == train(name, MINIATURE, tmp_path / "b")
    other = train("target", dataclasses.replace(MINIATURE, seed=1), tmp_path / "c")
    assert other["model.safetensors"] != contents(tmp_path / "a" / "target")["model.safetensors"]
    weights = {contents(tmp_path / "a" / name)["model.safetensors"] for name in DRAFTERS}
    assert len(weights) == len(DRAFTERS), "two drafters are the same"


@pytest.mark.usefixtures("few_files")
def test_losses_share_their_warm_up(tmp_path: Path) -> None:
    warm = dataclasses.replace(MINIATURE, loss_steps=0)
    train("target", warm, tmp_path)
    for architecture in METHODS:
        start = train(f"kl-{architecture}", warm, tmp_path)
        for loss, same in (("lk", True), ("lk-alpha", True), ("tv", False)):
            assert (train(f"{loss}-{architecture}", warm, tmp_path) == start) is same, (loss, architecture)


def test_every_recipe_field_moves_the_cache() -> None:
    plain = build.digest(MINIATURE)
    assert build.digest(MINIATURE) == plain
    for field in dataclasses.fields(Recipe):
        changed = dataclasses.replace(MINIATURE, **{field.name: getattr(MINIATURE, field.name) + 1})
        assert build.digest(changed) != plain, field.name


def test_training_code_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "zoo"
    sources.mkdir()
    for path in Path(build.__file__).parent.glob("*.py"):
        (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "__file__", str(sources / "build.py"))
    plain = build.digest(MINIATURE)
    assert plain == build.digest(MINIATURE)
    (sources / "losses.py").write_text("# changed")
    assert build.digest(MINIATURE) != plain


@pytest.mark.slow
def test_killed_build_leaves_no_half_checkpoint_and_resumes_after_the_target() -> None:
    root = build.zoo_root(MINIATURE)
    command = (
        "import sys; sys.path.insert(0, sys.argv[1]); from support.zoo_miniature import MINIATURE;"
        "from speceval.zoo import ensure; ensure(['kl-eagle3'], MINIATURE)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(Path(__file__).parents[1])], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not ((root / "target").is_dir() and list(root.glob(".part-*"))):
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "kl-eagle3").exists()
    built = (root / "target" / "model.safetensors").stat().st_mtime_ns

    paths = ensure(["kl-eagle3"], MINIATURE)
    assert paths["target"] == root / "target"
    assert (root / "target" / "model.safetensors").stat().st_mtime_ns == built
    assert set(contents(paths["kl-eagle3"])) == {"config.json", "model.safetensors"}
    assert not list(root.glob(".part-*"))


@pytest.mark.slow
def test_failed_training_leaves_nothing_and_shows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = dataclasses.replace(MINIATURE, heads=5)
    with pytest.raises(RuntimeError, match="training target failed"):
        ensure([], impossible)
    assert [path.name for path in build.zoo_root(impossible).iterdir()] == [".lock"]


def test_unknown_drafter_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"no drafter 'kl-eagle9'.*kl-eagle3"):
        ensure(["kl-eagle9"])


def test_unwritable_cache_names_the_variable_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECEVAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SPECEVAL_CACHE"):
        ensure([], MINIATURE)


def test_importing_the_zoo_imports_no_torch() -> None:
    code = "import sys, speceval.zoo; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
