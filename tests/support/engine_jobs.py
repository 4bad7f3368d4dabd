"""The engines that the tests here ask: what each runs, starting one and reading its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import live

PROMPT = [3, 7, 11, 5]
TEMPERATURES = [1.0, 0.7]

# name: (SPECEVAL_PATCHES, VLLM_ENABLE_V1_MULTIPROCESSING, requests at each temperature)
ENGINES = {"patched": ("1", "0", 12000), "stock": ("0", "0", 600), "multiprocess": ("1", "1", 32)}


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
    asked = {"SPECEVAL_PATCHES": patches, "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}
    environment = os.environ | live.ENVIRONMENT | asked
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
