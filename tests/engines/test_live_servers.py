"""Two vLLM servers share a run and one is killed; a watched one comes back with a worse drafter. Minutes each."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.served import ENVIRONMENT

from speceval.engines.vllm.serving import answers, free_port
from speceval.store import read_run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]
SPEC = ("--target", "zoo", "--k", "5", "--temp", "1", "--batch", "4")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "speceval", *words]


@contextmanager
def serving(port: int, draft: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`speceval serve` in a group of its own, once it answers."""
    words = command("serve", *SPEC, "--draft", draft, "--port", str(port))
    with subprocess.Popen(words, env=ENVIRONMENT, cwd=folder, start_new_session=True) as server:
        try:
            deadline = time.monotonic() + 600
            while not answers(f"http://127.0.0.1:{port}"):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
            yield server
        finally:
            server.send_signal(signal.SIGTERM)


def killed(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_what_a_killed_server_had_is_finished_by_the_other_and_none_is_there_twice(tmp_path: Path) -> None:
    ports = [free_port("127.0.0.1", 0) for _ in range(2)]
    url = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    words = command("run", *SPEC, "--draft", "lk-eagle3", "--suite", "demo", "--url", url)
    with serving(ports[0], "lk-eagle3", tmp_path), serving(ports[1], "lk-eagle3", tmp_path) as second:
        done = subprocess.run([*words, "--out", str(tmp_path / "whole")], env=ENVIRONMENT, stdin=subprocess.DEVNULL)
        assert done.returncode == 0
        with subprocess.Popen([*words, "--seeds", "0-5", "--out", str(tmp_path / "killed")], env=ENVIRONMENT) as run:
            journal = tmp_path / "killed" / "journal.jsonl"
            while not journal.exists() or len(journal.read_text().splitlines()) < 20:
                assert run.poll() is None
                time.sleep(0.1)
            killed(second)
        assert run.returncode == 0
    whole, rest = read_run(tmp_path / "whole"), read_run(tmp_path / "killed")
    assert whole.conversations == 24 and whole.meta.problems == [] and whole.meta.segments[-1].counters is not None
    assert rest.conversations == 144 and rest.meta.problems == [] and rest.meta.segments[-1].counters is None
    assert not rest.turns.duplicated(["suite", "conversation", "seed", "turn"]).any()
    assert [note for note in rest.meta.notes if f":{ports[1]} was lost" in note]


def worse(drafter: Path, folder: Path) -> Path:
    """The drafter with noise of half its weights' spread."""
    shutil.copytree(drafter, folder)
    file, generator = folder / "model.safetensors", torch.Generator().manual_seed(1)
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.dtype.is_floating_point and weight.dim() == 2:
            weights[name] = weight + 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


class Traffic:
    """Four clients that ask for samples until `over`, whether somebody answers or not."""

    def __init__(self, port: int) -> None:
        self.over = threading.Event()
        self._url = f"http://127.0.0.1:{port}/v1/completions"
        for seed in range(4):
            threading.Thread(target=self._ask, args=(random.Random(seed),), daemon=True).start()

    def _ask(self, draw: random.Random) -> None:
        while not self.over.is_set():
            body: dict[str, Any] = {"model": "zoo", "prompt": [draw.randrange(2, 500) for _ in range(12)]}
            body |= {"max_tokens": 48, "temperature": 1.0, "seed": draw.randrange(1 << 30)}
            request = urllib.request.Request(self._url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=20).read()
            except OSError:
                self.over.wait(0.5)


def test_a_live_server_that_comes_back_with_a_worse_drafter_raises_the_alarm(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    """And one that comes back with the same does not."""
    port, table, page = free_port("127.0.0.1", 0), tmp_path / "slices.parquet", tmp_path / "watch.prom"
    words = command("watch", f"http://127.0.0.1:{port}", "--interval", "2", "--learn", "24")
    words += ["--baseline", str(tmp_path / "normal.json"), "--prometheus", str(page), "-o", str(table), "--for", "900"]

    def slices() -> int:
        return int(page.read_text().split("slices_total ")[1].split()[0]) if page.exists() else 0

    def until(count: int, watch: subprocess.Popen[str]) -> None:
        while slices() < count:
            assert watch.poll() is None
            time.sleep(0.2)

    traffic = Traffic(port)
    try:
        with serving(port, "lk-eagle3", tmp_path):
            watch = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
            until(28, watch)
        with serving(port, "lk-eagle3", tmp_path) as same:
            before = slices()
            until(before + 8, watch)
            killed(same)
        before = slices()
        with serving(port, str(worse(zoo["lk-eagle3"], tmp_path / "worse")), tmp_path):
            printed, _ = watch.communicate(timeout=300)
    finally:
        traffic.over.set()
        watch.kill()
    assert watch.returncode == 1
    told = json.loads(printed.splitlines()[-1])
    assert told["alarm"] is True and told["tau"] < told["limit"] and told["slices"] <= before + 12
    assert len(pd.read_parquet(table)) == told["slices"]
    assert "speceval_watch_alarm 1" in page.read_text() and "speceval_watch_restarts_total 2" in page.read_text()
