"""Ray: what is refused before anything starts, and that two actors, killed in mid-run, give what one engine gives."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import speceval
from speceval import UserError
from speceval.cli import app
from speceval.measure.job import prepare
from speceval.measure.replicas.hand_out import HandOut
from speceval.measure.replicas.on_ray import Cluster, RayPool, carried, connected, room

RUN = ("run", "--target", "zoo", "--draft", "kl-eagle3", "--temp", "1", "--engine", "simulated")


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


NODES = [node(CPU=8, GPU=8), node(CPU=4, GPU=3), node(alive=False, CPU=4, GPU=8), node(CPU=2)]


@pytest.mark.parametrize(
    ("asked", "gpus", "replicas"), [(2, 1, 2), (None, 1, 11), (None, 2, 5), (None, 4, 2), (14, 0, 14)]
)
def test_as_many_replicas_run_as_are_asked_for_or_have_room(asked: int | None, gpus: int, replicas: int) -> None:
    assert room(Cluster("a", asked, gpus), gpus, NODES) == replicas


@pytest.mark.parametrize(
    ("asked", "gpus", "says"),
    [
        (12, 1, "12 replicas of 1 GPU asked for, the cluster has room for 11 (GPUs of its machines: 8, 3, 0)"),
        (6, 2, "6 replicas of 2 GPUs asked for, the cluster has room for 5"),
        (None, 9, "1 replica of 9 GPUs asked for, the cluster has room for 0"),
        (6, 2, ": see --replicas, --gpus-per-replica"),
        (15, 0, "15 replicas of 1 CPU asked for, the cluster has room for 14"),
    ],
)
def test_more_than_the_cluster_has_is_refused(asked: int | None, gpus: int, says: str) -> None:
    with pytest.raises(UserError) as error:
        room(Cluster("a", asked, gpus), gpus, NODES)
    assert says in str(error.value)


def test_a_cluster_without_accelerators_is_said_to_have_cpus() -> None:
    with pytest.raises(UserError, match=r"room for 0 .*: --gpus-per-replica 0 takes CPUs"):
        room(Cluster("a"), 1, [node(CPU=8)])


def test_a_replica_has_the_accelerators_that_its_engine_is_shared_among(tmp_path: Path) -> None:
    args = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}
    job = prepare(target="zoo", draft="kl-eagle3", suite_names=["demo"], temperature=1, engine_args=args, out=tmp_path)
    assert (Cluster("a").gpus_of(job), Cluster("a", gpus=3).gpus_of(job)) == (8, 3)


def test_replicas_get_the_variables_that_matter_and_no_secrets() -> None:
    ours = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "SPECEVAL_DATA_DIR": "/d", "PYTHONPATH": "/p"}
    others = {"HF_TOKEN": "hf_x", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/h", "VLLM_API_KEY": "k"}
    assert carried(ours | others) == ours


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: nothing answers there"),
        (("--ray", "soon"), "--ray soon: must be auto, local or the address of a cluster, host:port"),
        (("--replicas", "2"), "--replicas: has no meaning without --ray"),
        (("--ray", "local", "--replicas", "0"), "--replicas 0: at least 1"),
        (("--ray", "local", "--replicas", "99999999"), "--replicas 99999999: at least 1, at most 10,000"),
        (("--ray", "local", "--gpus-per-replica", "-1"), "--gpus-per-replica -1: 0 (a CPU) or more"),
        (("--ray", "local", "--gpus-per-replica", "0"), "--replicas is needed with --gpus-per-replica 0"),
        (("--ray", "local", "--speedup"), "--speedup: is timed on one engine, without --ray"),
        (("--ray", "local", "--url", "http://127.0.0.1:1"), "--ray: --engine server measures what runs already"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    command = RUN[:-2] if "--url" in options else RUN
    done = CliRunner().invoke(app, [*command, *options, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other_service() -> Iterator[str]:
    """The address of a web server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield "{}:{}".format(*server.getsockname())


def test_another_service_at_the_address_is_told_at_once(other_service: str) -> None:
    with pytest.raises(UserError, match="what answers there is no Ray cluster"), connected(Cluster(other_service)):
        pass


def killing(pool: RayPool, hand_out: HandOut, at: tuple[int, ...]) -> Callable[[], None]:
    """Kills a replica that has conversations in hand whenever so many are in, each time another one."""
    pids, waiting = pool.pids(), list(at)

    def changed() -> None:
        if waiting and hand_out.progress.done >= waiting[0]:
            waiting.pop(0)
            os.kill(pids.pop(), signal.SIGKILL)

    return changed


def both(tmp_path: Path, asked: dict[str, Any], deaths: tuple[int, ...]) -> tuple[speceval.Run, speceval.Run]:
    """What two replicas make of a run, one of them killed at each of `deaths`, and what one engine does."""
    job = prepare(target="zoo", draft="lk-eagle3", suite_names=["demo"], out=tmp_path / "many", **asked)
    with connected(Cluster("local", 2, 0)) as ray, ray.pool(0) as pool:
        with pytest.raises(UserError, match="2 replicas of 5 GPUs asked for"):
            ray.room(5)
        hand_out = HandOut([job], pool)
        hand_out.changed = killing(pool, hand_out, deaths)
        (work,) = hand_out.run()
    assert work.error is None and len(hand_out.lost) == len(deaths), (work.error, hand_out.lost)
    one = speceval.run("zoo", "lk-eagle3", suites=["demo"], out=tmp_path / "one", **asked)
    return speceval.read_run(tmp_path / "many"), one


def require_equal(many: speceval.Run, one: speceval.Run) -> None:
    assert many.turns.equals(one.turns) and many.steps.equals(one.steps)
    assert len({(run.directory / "outputs.jsonl").read_text() for run in (many, one)}) == 1
    assert speceval.validate(many) == [] and many.checked[0] == many.checked[1]


@pytest.mark.slow
def test_two_actors_killed_in_mid_run_give_what_one_engine_gives(tmp_path: Path) -> None:
    asked = {"temperature": 1, "engine": "simulated", "max_tokens": 40, "seeds": tuple(range(40)), "batch": 1}
    many, one = both(tmp_path, asked, (100, 300))
    require_equal(many, one)
    assert sum(segment.conversations for segment in many.meta.segments) == 960


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_two_vllm_engines_killed_in_mid_run_give_the_tokens_of_one(
    zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    many, one = both(tmp_path, {"temperature": 1, "seeds": (0, 1), "batch": 1}, (6, 16))
    require_equal(many, one)
