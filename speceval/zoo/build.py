"""Build what is missing of the zoo and cache it: <cache>/zoo/<digest>/{target, kl-eagle3, ...}."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from speceval.errors import UserError
from speceval.locks import one_at_a_time
from speceval.zoo import text
from speceval.zoo.recipe import PLANS, TARGET, Recipe

WORKERS = 2  # drafters trained at a time, one thread each
NOT_TRAINING = ("__init__.py", "__main__.py", "build.py")  # sources that cannot change a weight


def ensure(names: Sequence[str], recipe: Recipe | None = None) -> dict[str, Path]:
    """Build what is missing of the target and the drafters `names`; return the directory of each.

    The key "target" is always there. Finished parts are never rebuilt; a part gets its name only when it is complete.
    Raises UserError for an unknown drafter, a missing torch, or a cache that cannot be written.
    """
    recipe = recipe or Recipe()
    for name in names:
        if name not in PLANS and name != TARGET:
            raise UserError(f"no drafter {name!r} in the zoo: choose from {', '.join(PLANS)}")
    root = zoo_root(recipe)
    wanted = dict.fromkeys([TARGET, *names])
    paths = {name: root / name for name in wanted}
    if not all(path.is_dir() for path in paths.values()):
        if importlib.util.find_spec("torch") is None:
            raise UserError("the zoo needs torch to be built: install speceval with the extra cpu or gpu")
        with one_at_a_time(root, "the zoo"):
            _build([name for name, path in paths.items() if not path.is_dir()], recipe, root)
    return paths


def zoo_root(recipe: Recipe) -> Path:
    """Where the parts of this recipe are kept: under $SPECEVAL_CACHE, else the user's cache directory."""
    return cache_root() / "zoo" / digest(recipe)


def cache_root() -> Path:
    """What speceval keeps between runs: $SPECEVAL_CACHE, else under the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.environ.get("SPECEVAL_CACHE") or Path(base) / "speceval"
    return Path(cache).expanduser().absolute()


def built(name: str) -> Path | None:
    """The directory of the target ("target") or a drafter, if it has been built here."""
    path = zoo_root(Recipe()) / name
    return path if path.is_dir() else None


def digest(recipe: Recipe) -> str:
    """Hash of everything that the weights depend on: recipe, training code, text, and versions."""
    state = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in NOT_TRAINING:
            state.update(path.name.encode() + b"\0" + path.read_bytes())
    state.update(text.library_digest().encode())
    versions = [platform.machine(), platform.python_version(), version("torch"), version("tokenizers")]
    state.update(" ".join(versions).encode())
    return state.hexdigest()[:16]


def _build(names: list[str], recipe: Recipe, root: Path) -> None:
    bars = (TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*bars, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        if TARGET in names:
            _build_part(TARGET, recipe, root, progress)
        with ThreadPoolExecutor(WORKERS) as pool:
            drafters = [name for name in names if name != TARGET]
            list(pool.map(lambda name: _build_part(name, recipe, root, progress), drafters))


def _build_part(name: str, recipe: Recipe, root: Path, progress: Progress) -> None:
    if (root / name).is_dir():
        return  # another process built it while this one waited for the lock
    task = progress.add_task(f"train {name}", total=None)
    temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        job = {"name": name, "recipe": asdict(recipe), "target": str(root / TARGET), "out": str(temporary)}
        _run_worker(job, lambda done, total: progress.update(task, completed=done, total=total))
        temporary.chmod(0o755)
        temporary.rename(root / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_worker(job: dict, report: Callable[[int, int], None]) -> None:
    command = [sys.executable, "-m", "speceval.zoo.worker", json.dumps(job)]
    # Threads that wait for each other spin for a short while only: unlimited, a busy machine takes many times as long.
    environment = {**os.environ, "GOMP_SPINCOUNT": "20000"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                done, total = line.split()
                report(int(done), int(total))
        except BaseException:
            process.terminate()
            raise
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"training {job['name']} failed:\n{errors.read()[-4000:]}")
