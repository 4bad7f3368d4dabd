"""A process of the engine that dies ends a run in seconds, with one line, and the same command resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.pairs import PROMPTS, write_pair

from speceval.store import read_run

pytestmark = [pytest.mark.slow, pytest.mark.engine]

SECONDS = 60
"""vLLM gives its other processes about ten of an idle machine to end."""

Choice = Callable[[psutil.Process], psutil.Process]


def last_worker(run: psutil.Process) -> psutil.Process:
    return [child for child in run.children(recursive=True) if "Worker" in child.name() + " ".join(child.cmdline())][-1]


def engine_core(run: psutil.Process) -> psutil.Process:
    return last_worker(run).parent()


CASES: dict[str, tuple[str, str, Choice]] = {
    "the engine's own process": ("1", "1", engine_core),
    "a worker behind it": ("1", "1", last_worker),
    "one of two workers": ("0", "2", last_worker),
}
"""VLLM_ENABLE_V1_MULTIPROCESSING, tensor_parallel_size, and who dies."""


def command(root: Path, workers: str) -> list[str]:
    target, draft = write_pair(root, "eagle3-cut")
    (root / "words.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    arguments = ("dtype=float32", "enforce_eager=true", "max_model_len=256", f"tensor_parallel_size={workers}")
    words = [sys.executable, "-m", "speceval", "run", "--target", target, "--draft", draft, "--k", "4", "--temp", "1"]
    words += ["--suite", str(root / "words.jsonl"), "--seeds", "0-999", "--max-tokens", "100", "--batch", "16"]
    return words + ["--out", "run"] + [word for argument in arguments for word in ("--engine-arg", argument)]


def start(root: Path, multiprocessing: str, workers: str) -> tuple[subprocess.Popen[str], Path]:
    """A run that measures: a conversation is in its journal."""
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}
    run = subprocess.Popen(
        command(root, workers), cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = root / "run" / "journal.jsonl"
    before = journal.stat().st_size if journal.exists() else 0
    while run.poll() is None and not (journal.exists() and journal.stat().st_size > before):
        time.sleep(0.1)
    assert run.poll() is None, run.communicate()[1]
    return run, journal


@pytest.mark.parametrize("case", CASES)
def test_a_process_that_dies_ends_the_run_with_one_line_and_the_same_command_resumes(tmp_path: Path, case: str) -> None:
    multiprocessing, workers, choice = CASES[case]
    run, journal = start(tmp_path, multiprocessing, workers)
    others = psutil.Process(run.pid).children(recursive=True)
    choice(psutil.Process(run.pid)).kill()
    _, complaint = run.communicate(timeout=SECONDS)
    assert run.returncode == 4
    told = complaint.splitlines()[-1]
    assert told.startswith("error: vLLM failed while generating: a process of its engine has ended"), complaint
    assert "the same command resumes" in told and complaint.count("\n") == 2
    psutil.wait_procs(others, timeout=10)
    assert not [child for child in others if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    kept = journal.read_text().splitlines()
    run, journal = start(tmp_path, multiprocessing, workers)
    for _ in range(2):
        run.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    run.communicate(timeout=SECONDS)
    assert run.returncode == 143
    stored = read_run(tmp_path / "run")
    assert journal.read_text().splitlines()[: len(kept)] == kept
    assert len(stored.meta.segments) == 2 and stored.meta.segments[0].conversations == len(kept)
