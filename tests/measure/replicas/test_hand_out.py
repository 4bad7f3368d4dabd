"""Conversations handed out to replicas: none lost, none twice, whatever dies, and the numbers of one engine."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pools import Here

import speceval
from speceval import UserError
from speceval.engines.base import Order
from speceval.engines.simulated import SimulatedEngine
from speceval.measure.job import Job, prepare
from speceval.measure.replicas.hand_out import HandOut, choose
from speceval.measure.replicas.work import Work
from speceval.store import read_run

ASKED: dict[str, Any] = {"temperature": 1, "engine": "simulated", "max_tokens": 12, "seeds": (0, 1), "batch": 2}


def job(out: Path, draft: str = "kl-eagle3", **changes: Any) -> Job:
    return prepare(target="zoo", draft=draft, suite_names=["demo"], out=out, **(ASKED | changes))


def one_engine(out: Path, **changes: Any) -> speceval.Run:
    return speceval.run("zoo", "kl-eagle3", suites=["demo"], out=out, **(ASKED | changes))


def same(a: speceval.Run, b: speceval.Run) -> bool:
    tables = a.turns.equals(b.turns) and a.steps.equals(b.steps) and a.meta.fingerprint == b.meta.fingerprint
    return tables and len({(run.directory / "outputs.jsonl").read_text() for run in (a, b)}) == 1


def measured(asked: Job, pool: Here) -> speceval.Run:
    (work,) = HandOut([asked], pool).run()
    assert work.error is None, work.error
    return speceval.read_run(asked.directory)


def test_replicas_give_what_one_engine_gives_and_each_answers_for_its_part(tmp_path: Path) -> None:
    pool = Here(3)
    run = measured(job(tmp_path / "many"), pool)
    assert same(run, one_engine(tmp_path / "one")) and speceval.validate(run) == []
    segments = run.meta.segments
    assert len(segments) == 3 and all(segment.counters is not None for segment in segments)
    assert sum(segment.conversations for segment in segments) == 48 == len(pool.dealt)
    assert sum(segment.counters.num_drafts for segment in segments) == len(run.steps)
    assert min(Counter(replica for replica, _ in pool.dealt).values()) > 10
    assert run.meta.wall_seconds is not None and run.meta.wall_seconds < 0.6 * run.meta.engine_seconds  # side by side
    told = json.loads(speceval.export(run, "lm-eval-style-json"))["total_evaluation_time_seconds"]
    assert float(told) == run.meta.wall_seconds


def test_what_a_dead_replica_had_is_measured_again_once(tmp_path: Path) -> None:
    deaths = {9: 0, 30: 1}  # after so many conversations were dealt, this replica

    def dies(replica: int, keys: list[Any]) -> bool:
        for count, which in list(deaths.items()):
            if len(pool.dealt) >= count and replica == which:
                del deaths[count]
                return True
        return False

    pool = Here(2, dies)
    run = measured(job(tmp_path / "many"), pool)
    assert deaths == {} and len(pool.dealt) > 48
    assert same(run, one_engine(tmp_path / "one")) and speceval.validate(run) == [] and run.checked == (48, 48)
    assert len(run.meta.segments) == 4 and sum(one.conversations for one in run.meta.segments) == 48
    assert "2 times a replica was lost; what it had in hand was measured again" in run.meta.notes


def test_a_conversation_that_kills_every_replica_stops_the_run_with_its_name(tmp_path: Path) -> None:
    pool = Here(2, lambda replica, keys: any("07" in key[1] for key in keys))
    (work,) = HandOut([job(tmp_path / "run")], pool).run()
    assert "was lost 5 times with its replica: killed" in str(work.error) and "07" in str(work.error)


def test_replicas_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    (work,) = HandOut([job(tmp_path / "run", seeds=tuple(range(20)))], Here(2, lambda replica, keys: True)).run()
    assert "every replica was lost 5 times in a row: killed" in str(work.error) or "was lost 5 times" in str(work.error)


def test_replicas_that_are_not_alike_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, lengths = SimulatedEngine.open, iter((1 << 20, 1 << 19))

    def unlike(order: Order) -> SimulatedEngine:
        return replace(honest(order), max_model_len=next(lengths))

    monkeypatch.setattr(SimulatedEngine, "open", staticmethod(unlike))
    (work,) = HandOut([job(tmp_path / "run")], Here(2)).run()
    assert work.error is not None and "replica 2 differs from the others" in work.error and "524288" in work.error


def interrupted(asked: Job, at: int, copy: Path | None = None) -> None:
    """Ctrl-C once so many conversations are in; `copy`: its directory as it is then, as a kill would leave it."""
    hand_out = HandOut([asked], Here(2, late=12))

    def changed() -> None:
        if hand_out.progress.done >= at:
            if copy is not None and not copy.exists():
                shutil.copytree(asked.directory, copy)
            raise KeyboardInterrupt

    hand_out.changed = changed
    with pytest.raises(KeyboardInterrupt):
        list(hand_out.run())


def test_one_engine_finishes_what_replicas_began_and_the_other_way_round(tmp_path: Path) -> None:
    whole = one_engine(tmp_path / "one")
    interrupted(job(tmp_path / "run"), 10)
    assert read_run(tmp_path / "run").meta.status == "running"
    run = one_engine(tmp_path / "run")
    assert same(run, whole) and speceval.validate(run) == [] and run.checked == (48, 48)
    interrupted(job(tmp_path / "again"), 10)
    interrupted(job(tmp_path / "again"), 30)
    run = measured(job(tmp_path / "again"), Here(2))
    assert same(run, whole) and speceval.validate(run) == [] and len(run.meta.segments) == 5


def test_what_a_kill_left_is_finished_and_only_what_was_not_counted_is_unchecked(tmp_path: Path) -> None:
    interrupted(job(tmp_path / "run"), 20, copy=tmp_path / "killed")
    for finish in (lambda asked: measured(asked, Here(2)), lambda asked: one_engine(asked.directory)):
        shutil.copytree(tmp_path / "killed", tmp_path / "copy")
        run = finish(job(tmp_path / "copy"))
        assert same(run, one_engine(tmp_path / "one")) and speceval.validate(run) == []
        assert all(one.conversations for one in run.meta.segments[:2])
        stored = sum(one.conversations for one in run.meta.segments[:2])
        assert stored >= 20 and run.checked == (48 - stored, 48)
        shutil.rmtree(tmp_path / "copy")


def test_until_is_decided_for_all_replicas_together(tmp_path: Path) -> None:
    asked = {"until": 0.2, "batch": 1, "max_tokens": 40}
    run = measured(job(tmp_path / "many", **asked), Here(2))
    alone = one_engine(tmp_path / "one", **asked)
    decided = [one.meta.stopping.suites["demo"] for one in (run, alone)]
    assert decided[0].outcome == decided[1].outcome == "target reached" and decided[0].looks == decided[1].looks
    assert run.steps.equals(alone.steps) and run.turns.equals(alone.turns)


def test_a_replica_turns_to_the_next_run_while_others_finish(tmp_path: Path) -> None:
    jobs = [job(tmp_path / str(number), draft, seeds=(0,)) for number, draft in enumerate(("kl-eagle3", "lk-eagle3"))]
    hand_out = HandOut(jobs, Here(2))
    assert [work.error for work in hand_out.run()] == [None, None]
    assert all(read_run(one.directory).complete for one in jobs) and hand_out.how["start"] == 2


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(order: Order) -> Any:
        raise UserError("no room")

    jobs = [job(tmp_path / "a", seeds=(0,)), job(tmp_path / "b", seeds=(0,), k=4)]
    honest = SimulatedEngine.open
    chosen = staticmethod(lambda order: refused(order) if order.k == 4 else honest(order))
    monkeypatch.setattr(SimulatedEngine, "open", chosen)
    told = {work.job.directory.name: work.error for work in HandOut(jobs, Here(2)).run()}
    assert told == {"a": None, "b": "no room"} and not (tmp_path / "b").exists()


def works(tmp_path: Path, **changes: Any) -> dict[str, Work]:
    asked = {"same": {}, "swap": {"draft": "lk-eagle3"}, "start": {"k": 4}}
    return {name: Work(job(tmp_path / name, **(fields | changes))) for name, fields in asked.items()}


def test_a_replica_goes_where_its_engine_serves_then_where_nobody_is_then_where_most_is_left(tmp_path: Path) -> None:
    runs = works(tmp_path)
    engine = runs["same"].order
    everything = list(runs.values())
    assert choose(engine, everything) is runs["same"]
    runs["same"].done = True
    assert choose(engine, everything) is runs["swap"]
    runs["swap"].in_hand[7] = set(runs["swap"].pending)
    runs["swap"].pending.clear()  # all that is left of it is in somebody's hands
    assert choose(engine, everything) is runs["start"]
    runs["start"].in_hand[8] = set()
    assert choose(engine, everything) is runs["start"] and choose(None, everything) is runs["start"]
    runs["start"].done = True
    assert choose(engine, everything) is None


def test_a_new_engine_is_one_that_no_other_replica_has(tmp_path: Path) -> None:
    runs = works(tmp_path)
    runs["same"].in_hand[7] = set()
    everything = list(runs.values())
    assert choose(None, everything) is runs["swap"]
    assert choose(None, everything, [runs["same"].order]) is runs["start"]


def test_shares_are_small_where_little_is_left(tmp_path: Path) -> None:
    hand_out = HandOut([job(tmp_path / "run", batch=32, seeds=(0,))], Here(4))
    list(hand_out.run())
    dealt = Counter(replica for replica, _ in hand_out._pool.dealt)  # type: ignore[attr-defined]
    assert max(dealt.values()) <= 12 and len(dealt) == 4  # not 24 for the first, whose engine has room for 32
