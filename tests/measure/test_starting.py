"""While an engine starts a reader sees what it is doing, and for how long, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from speceval import terminal
from speceval.exactness.command import teller
from speceval.exactness.run import STARTING
from speceval.measure import starting
from speceval.measure.starting import OneLine, Starting, phase

LOG = """
INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config
INFO [gpu_model_runner.py:68] Starting to load model meta-llama/Llama-3.1-8B-Instruct...
Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:04<00:04,  2.0s/it]
Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:08<00:00,  2.0s/it]
INFO [gpu_model_runner.py:75] Loading drafter model...
Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]
INFO [backends.py:1] Dynamo bytecode transform time: 5.17 s
INFO [gpu_worker.py:2] Available KV cache memory: 10.00 GiB
Capturing CUDA graphs (decode, FULL):  33%|███▎      | 1/3
INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 20.37 s
"""
LINES = [line for line in LOG.splitlines() if line]
DOES = [
    "reading the configuration", "loading the target", "loading the target, 0 %", "loading the target, 50 %",
    "loading the target", "loading the drafter", "loading the drafter, 0 %", "compiling", "laying out the KV cache",
    "capturing CUDA graphs, 33 %", "nearly ready",
]  # fmt: skip


@pytest.mark.parametrize("count", range(len(LINES) + 1))
def test_the_last_lines_of_the_log_say_what_an_engine_does(count: int) -> None:
    assert phase("\n".join(LINES[:count])) == (DOES[count - 1] if count else "")


class Screen(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LOOK_SECONDS", 0.01)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("tty", [True, False])
def test_what_it_does_is_told_with_the_time_that_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tty: bool
) -> None:
    monkeypatch.setattr(starting.OneLine.__init__, "__defaults__", (0.02,))
    path = tmp_path / "engine.log"
    path.write_text("Loading drafter model of an earlier start\n")
    monkeypatch.setenv("TERM", "xterm")
    signs = Starting(terminal.console(screen := Screen(tty)), "vllm")
    signs.begin(path)
    time.sleep(0.1)
    with path.open("a") as file:
        file.write("\n".join(LINES[:4]))
    time.sleep(0.2)
    signs.over()
    signs.over()
    text = screen.getvalue()
    assert "starting vllm (0:00)" in text and "starting vllm: loading the target, 50 % (0:00)" in text
    assert "drafter" not in text
    if tty:
        assert "\n" not in text and text.endswith("\r\x1b[2K")
    else:
        assert "\r" not in text and "\x1b" not in text and text.endswith("\n")


@pytest.mark.usefixtures("often")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_that_goes_with_its_run_leaves_no_traceback(tmp_path: Path) -> None:
    signs = Starting(terminal.console(Screen(False)), "vllm")
    path = tmp_path / "engine.log"
    path.touch()
    signs.begin(path)
    path.unlink()
    time.sleep(0.1)
    assert signs._thread is not None and signs._thread.is_alive()
    signs.over()


@pytest.mark.usefixtures("often")
def test_a_short_start_says_nothing_in_a_pipe_and_nothing_is_said_once_progress_begins(tmp_path: Path) -> None:
    signs, begun = Starting(terminal.console(screen := Screen(False)), "vllm"), []

    @contextmanager
    def watch(progress: Any, spec: Any) -> Iterator[Any]:
        begun.append(signs._thread)
        yield lambda: None

    with signs.log(tmp_path / "engine.log"):
        thread = signs._thread
        assert thread is not None and thread.is_alive()
        with signs.until(watch)(None, None):  # type: ignore[arg-type]
            assert begun == [None] and not thread.is_alive()
    assert screen.getvalue() == ""


def test_a_line_on_a_terminal_is_written_over_and_cut_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    screen = Screen(True)
    line = OneLine(terminal.console(screen))
    for text in ("one", "w" * 50):
        line.say(text)
    line.clear()
    line.clear()
    assert screen.getvalue() == "one\r\x1b[2K" + "w" * 19 + "\r\x1b[2K"


def test_a_verification_on_a_terminal_has_one_line_of_progress_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen, calls = Screen(True), []
    tell = teller(OneLine(terminal.console(screen)), lambda: calls.append("begin"), lambda: calls.append("over"))
    tell(STARTING, 0, 1)
    for done in (0, 10, 20):
        tell("drawing", done, 20)
    tell("computing the target's probabilities", 0, 1)
    text = screen.getvalue()
    assert calls == ["begin", "over", "over"]
    assert "\n" not in text and re.search(r"drawing 0/20 continuations\r\x1b\[2K.*20/20 continuations\r\x1b\[2K", text)
