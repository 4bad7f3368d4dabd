"""A process of the engine that dies ends a run in seconds, with one line, and the same command resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.pairs import PROMPTS, write_pair

from speceval.store import read_run

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.long]

SECONDS = 60
"""vLLM gives its other processes about ten of an idle machine to end."""


def below(pid: int) -> dict[int, str]:
    """Processes that this one and its children have started -> their command, parents first."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for path in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                if f"\nPPid:\t{parent}\n" in path.read_text() and "\nState:\tZ" not in path.read_text():
                    waiting.append(int(path.parent.name))
                    found[waiting[-1]] = (path.parent / "cmdline").read_text().replace("\0", " ")
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("PPid:\t")[2].split()[0])


def last_worker(run: int) -> int:
    return [child for child, command in below(run).items() if "Worker" in command][-1]


def engine_core(run: int) -> int:
    return parent(last_worker(run))


CASES: dict[str, tuple[str, str, Callable[[int], int]]] = {
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
    others = below(run.pid)
    os.kill(choice(run.pid), signal.SIGKILL)
    _, complaint = run.communicate(timeout=SECONDS)
    assert run.returncode == 4
    told = complaint.splitlines()[-1]
    assert told.startswith("error: vLLM failed while generating: a process of its engine has ended"), complaint
    assert "the same command resumes" in told
    assert all(line.startswith("starting vllm") for line in complaint.splitlines()[:-1]), complaint
    time.sleep(2)
    assert [command for child, command in others.items() if Path(f"/proc/{child}").exists()] == []

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
