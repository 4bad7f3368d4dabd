"""Three engines with a tiny target and an EAGLE-3 drafter, each in its own processes, run once for all tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.engine_jobs import ENGINES, finish, start


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of the target and of a drafter that knows 20 of its 24 tokens."""
    root = tmp_path_factory.mktemp("tiny")
    target = tiny.write_target(root / "target")
    return target, tiny.write_eagle3(root / "drafter", target, draft_vocab=20)


@pytest.fixture(scope="session")
def engines(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `engine_run.run`, by engine name; the engines run side by side."""
    root = tmp_path_factory.mktemp("engines")
    started = {name: start(root / name, checkpoints, *settings) for name, settings in ENGINES.items()}
    try:
        return {name: finish(root / name, process) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
