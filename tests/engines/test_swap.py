"""A drafter exchanged in a live engine: when, and that nothing tells it from an engine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import swapped

from speceval.catalog import Draft, Target
from speceval.engines.base import Order
from speceval.engines.simulated import SimulatedEngine
from speceval.engines.vllm.start import swappable
from speceval.measure.job import prepare
from speceval.measure.kept import Kept, expected


def draft(folder: Path, name: str, method: str = "eagle3", **config: Any) -> Draft:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps({"hidden_size": 8, "_name_or_path": name} | config))
    return Draft(name=name, source="local", model=str(folder / name), method=method)


def order(drafter: Draft, **changes: Any) -> Order:
    return replace(
        Order("vllm", Target(name="t", source="hub", model="m"), drafter, 3, "probabilistic", 1.0), **changes
    )


def test_drafters_of_one_configuration_are_swapped_whatever_comes_with_a_request(tmp_path: Path) -> None:
    before = order(draft(tmp_path, "a"))
    assert swappable(before, order(draft(tmp_path, "b")))
    assert swappable(before, order(draft(tmp_path, "b"), temperature=0.5, top_k=8, top_p=0.9))


@pytest.mark.parametrize(
    "changes", [{"k": 4}, {"batch": 2}, {"rejection": "block"}, {"runner": "v1"}, {"engine_args": {"dtype": "half"}}]
)
def test_what_is_fixed_at_the_start_is_not_swapped(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not swappable(order(draft(tmp_path, "a")), order(draft(tmp_path, "b"), **changes))


def test_how_drafts_are_drawn_and_what_is_recorded_is_exchanged_on_the_v1_runner(tmp_path: Path) -> None:
    """V2 has made its buffers; a GPU's own choice of the runner is not known before it starts."""
    a, b = draft(tmp_path, "a"), draft(tmp_path, "b")
    for changes in ({"record": True}, {"replay": True}):
        assert swappable(order(a), order(b, **changes)) and swappable(order(b, **changes), order(a))
    drawn = {"runner": "v1", "drafting": "greedy"}
    assert swappable(order(a, runner="v1"), order(b, **drawn)) and swappable(order(b, **drawn), order(a, runner="v1"))
    assert not swappable(order(a, runner="v2"), order(a, runner="v2", drafting="greedy"))
    blocks = {"runner": "v1", "rejection": "block"}
    assert not swappable(order(a, **blocks), order(a, **blocks, drafting="greedy"))


def test_other_shapes_methods_and_drafters_with_a_memory_are_not_swapped(tmp_path: Path) -> None:
    before = order(draft(tmp_path, "a"))
    assert not swappable(before, order(draft(tmp_path, "b", hidden_size=16)))
    assert not swappable(before, order(draft(tmp_path, "c", "medusa")))
    suffix = order(Draft(name="suffix", source="none", model=None, method="suffix"), drafting="deterministic")
    ngram = order(Draft(name="ngram", source="none", model=None, method="ngram"), drafting="deterministic")
    assert not swappable(suffix, suffix) and swappable(ngram, ngram)


def test_an_engine_is_kept_until_a_run_needs_another_or_fails_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(SimulatedEngine, "close", lambda self: closed.append(self))

    def job(drafter: str, k: int = 3) -> Any:
        return prepare(
            target="zoo", draft=drafter, temperature=1, suite_names=["demo"], k=k, engine="simulated", limit=1
        )

    with closing(Kept()) as kept:
        with kept.use(job("kl-eagle3")) as first:
            pass
        with kept.use(job("lk-eagle3")) as second:
            assert second is first
        with kept.use(job("lk-eagle3")) as third:
            assert third is first and closed == []
        with kept.use(job("lk-eagle3", k=4)) as fourth:
            assert fourth is not first and closed == [first]
        with pytest.raises(RuntimeError), kept.use(job("kl-eagle3", k=4)):
            raise RuntimeError
        assert closed == [first, fourth] and kept.how == {"start": 2, "swap": 2, "same": 1}


def test_a_swap_that_fails_is_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedEngine, "swap", lambda self, order: False)

    def job(drafter: str) -> Any:
        return prepare(target="zoo", draft=drafter, temperature=1, suite_names=["demo"], k=3, engine="simulated")

    with closing(Kept()) as kept:
        with kept.use(job("kl-eagle3")) as first:
            pass
        with kept.use(job("lk-eagle3")) as second:
            assert second is not first and first._closed
    assert kept.how == {"start": 2, "swap": 0, "same": 0}


def test_engines_of_two_kinds_have_nothing_to_exchange(tmp_path: Path) -> None:
    a, b = order(draft(tmp_path, "a")), order(draft(tmp_path, "b"))
    assert (expected(a, b), expected(a, a), expected(a, replace(b, engine="simulated"))) == ("swap", "same", "start")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(("eagle3", "0", "5"), marks=pytest.mark.long),
        ("eagle3", "1", "5"),
        *(pytest.param((kind, "1", "5", "v2"), marks=pytest.mark.long) for kind in ("eagle3", "medusa", "mlp")),
    ],
    ids=" ".join,
)
def test_tokens_steps_and_records_of_a_swapped_drafter_are_those_of_an_engine_of_its_own(
    zoo: dict[str, Path], tmp_path: Path, setting: tuple[str, ...]
) -> None:
    script, (kind, *rest) = Path(swapped.__file__), setting
    places = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, tmp_path / "result.json", f"kl-{kind}", f"lk-{kind}", *rest],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["how"] == {"start": 1, "swap": 2, "same": 0}
    assert told["swapped"] == told["own"] != told["before"] == told["back"]
