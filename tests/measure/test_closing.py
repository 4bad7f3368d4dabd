"""Whoever starts an engine closes it: at the end, on an error and on Ctrl-C."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import speceval
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError
from speceval.exactness import run as verification
from speceval.measure import launch, timing
from speceval.measure.job import Job, prepare


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedEngine]:
    """Every engine that is started meanwhile."""
    engines: list[SimulatedEngine] = []
    after = SimulatedEngine.__post_init__

    def noted(self: SimulatedEngine) -> None:
        engines.append(self)
        after(self)

    monkeypatch.setattr(SimulatedEngine, "__post_init__", noted)
    return engines


def job(directory: Path) -> Job:
    return prepare(
        target="zoo",
        draft="lk-eagle3",
        temperature=1.0,
        suite_names=["demo"],
        limit=8,
        max_tokens=8,
        engine="simulated",
        out=directory / "run",
    )


def run(directory: Path) -> Any:
    return launch.run(job(directory), lambda *_: nullcontext(lambda: None), lambda _: nullcontext())


def ctrl_c(*_: Any) -> Any:
    signal.raise_signal(signal.SIGINT)
    return 0, []


def broken(*_: Any) -> Any:
    raise UserError("it broke")


ENDINGS: dict[str, tuple[str, Any, type[BaseException] | None]] = {
    "well": ("warm_up", lambda self: None, None),
    "other settings": ("missing_patches", lambda self: ["p: off"], UserError),
    "no tokenizer": ("facts", broken, UserError),
    "broken step": ("step", broken, UserError),
    "ctrl-c": ("step", ctrl_c, KeyboardInterrupt),
    "ctrl-c at the start": ("warm_up", lambda self: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_closes_its_engine_however_it_ends(
    ending: str, tmp_path: Path, opened: list[SimulatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    member, what, error = ENDINGS[ending]
    monkeypatch.setattr(SimulatedEngine, member, what)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error) if error else nullcontext():
            run(tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [engine._closed for engine in opened] == [True]


@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt])
def test_a_verification_closes_its_engine(
    error: type[BaseException] | None,
    tmp_path: Path,
    opened: list[SimulatedEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def examine(engine: SimulatedEngine, *_: Any) -> str:
        assert not engine._closed
        if error is not None:
            raise error
        return "report"

    monkeypatch.setattr(verification, "examine", examine)
    settings = verification.Settings(reference="exact")
    with pytest.raises(error) if error else nullcontext():
        verification.verify(job(tmp_path), settings, tmp_path / "v", lambda *_: None, lambda _: nullcontext())
    assert [engine._closed for engine in opened] == [True]


def test_timing_closes_both_engines_also_when_it_is_left_early(tmp_path: Path, opened: list[SimulatedEngine]) -> None:
    assert len(list(timing.time_blocks(job(tmp_path), [1]))) == 8
    left = timing.time_blocks(job(tmp_path), [1])
    next(iter(left))
    assert [engine._closed for engine in opened] == [True, True, False, False]
    left.close()
    assert [engine._closed for engine in opened] == [True] * 4
    assert [len(engine.conditional) for engine in opened] == [5, 0, 5, 0]


def test_a_second_engine_that_does_not_start_leaves_the_first_one_closed(
    tmp_path: Path, opened: list[SimulatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speceval.engines.base.Order.alone", broken)
    with pytest.raises(UserError):
        list(timing.time_blocks(job(tmp_path), [1]))
    assert [engine._closed for engine in opened] == [True]


@pytest.mark.parametrize("what", ["sweep", "tune"])
def test_an_engine_s_last_words_are_in_its_log(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM in a process of its own tells how it is stopped, when the last run has long been printed."""
    monkeypatch.setattr(SimulatedEngine, "close", lambda self: print("shutdown: complete", flush=True))
    if what == "sweep":
        common = {"target": "zoo", "suites": ["demo"], "engine": "simulated", "max_tokens": 8, "limit": 2}
        content = {"name": "s", "common": common, "axes": {"draft": ["kl-eagle3", "lk-eagle3"], "temperature": [1]}}
        (tmp_path / "s.yaml").write_text(json.dumps(content))
        speceval.sweep(tmp_path / "s.yaml", out=tmp_path / "out")
    else:
        asked = {"engine": "simulated", "max_tokens": 8, "confirm": False, "bursts": 3, "answers": 2}
        speceval.tune("zoo", ["kl-eagle3"], batches=(1,), ks=(2,), out=tmp_path / "out", **asked)
    assert "shutdown" not in "".join(capfd.readouterr())
    assert any("shutdown: complete" in log.read_text() for log in (tmp_path / "out").rglob("engine.log"))
