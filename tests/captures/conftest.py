"""A run of a tiny target and its capture, without vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import calling, tiny, tiny_engine

DRAFTERS = {
    "eagle": tiny.write_eagle,
    "eagle3": tiny.write_eagle3,
    "medusa": tiny.write_medusa,
    "mlp_speculator": tiny.write_mlp_speculator,
    "mtp": tiny.write_mtp,
    "draft_model": tiny.write_draft_model,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""
    tiny_engine.offered(monkeypatch)
    return calling.caller(monkeypatch, capfd)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, with a target and a drafter of each method in it, and a suite."""
    monkeypatch.chdir(tmp_path)
    target = tiny.write_target(Path("target"))
    for name, write in DRAFTERS.items():
        write(Path(name), target)
    tiny.write_eagle3(Path("narrow"), target, draft_vocab=16)
    turns = [["one", "and two"], ["other"], ["last one"]]
    Path("own.jsonl").write_text("".join(json.dumps({"turns": each}) + "\n" for each in turns))
    return tmp_path


@pytest.fixture
def free(call, models: Path) -> Callable[..., Path]:
    """Makes a finished run."""

    def run(*options: str, name: str = "free") -> Path:
        target = ("--target", "./target", "--draft", "./eagle3", "--method", "eagle3", "--k", "3", "--engine", "tiny")
        own = ("--suite", "own.jsonl", "--max-tokens", "9", "--out", name)
        code, _, err = call("run", *target, *own, *(options or ("--temp", "1")))
        assert code == 0, err
        return Path(name)

    return run


@pytest.fixture
def captured(call, free) -> Path:
    """A capture at temperature 1."""
    code, _, err = call("capture", free(), "-o", "cap", "--layers", "1,2,3")
    assert code == 0, err
    return Path("cap")
