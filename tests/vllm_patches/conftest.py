"""Three engines with a tiny target and an EAGLE-3 drafter, each in its own processes, run once for all tests here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

PROMPT = [3, 7, 11, 5]
TEMPERATURES = [1.0, 0.7]

# name: (SPECEVAL_PATCHES, VLLM_ENABLE_V1_MULTIPROCESSING, requests at each temperature)
ENGINES = {"patched": ("1", "0", 12000), "stock": ("0", "0", 600), "multiprocess": ("1", "1", 32)}


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


def start(
    folder: Path, checkpoints: tuple[Path, Path], patches: str, multiprocessing: str, requests: int
) -> subprocess.Popen[bytes]:
    folder.mkdir()
    job = {
        "target": str(checkpoints[0]),
        "drafter": str(checkpoints[1]),
        "prompt": PROMPT,
        "k": 3,
        "max_tokens": 3,
        "max_num_seqs": 1024,
        "requests": requests,
        "temperatures": TEMPERATURES,
    }
    (folder / "job.json").write_text(json.dumps(job))
    environment = os.environ | {
        "SPECEVAL_PATCHES": patches,
        "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # One unbound thread each: threads that wait for each other on shared cores are several times slower.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    script = Path(__file__).with_name("engine_run.py")
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, script, folder / "job.json", folder / "result.json"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    log = folder / "log"
    assert process.wait(timeout=600) == 0, log.read_text()[-4000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result | {"log": log.read_text()}
