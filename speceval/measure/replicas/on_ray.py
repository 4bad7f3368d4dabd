"""Replicas as actors of a Ray cluster. Imports Ray when it is connected to.

Tensor, pipeline and expert parallelism stay vLLM's: a replica is one engine, whose accelerators are on one machine.
With `distributed_executor_backend=ray` vLLM asks the cluster for them itself, on several machines if need be.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from speceval.errors import UserError
from speceval.measure.job import Job
from speceval.measure.replicas.hand_out import Event, Lost
from speceval.measure.replicas.replica import Replica
from speceval.private import is_secret
from speceval.store import Key

LOCAL = ("auto", "local")
"""Addresses: the cluster of this machine if there is one, else a new one; always a new one."""
SECONDS = 5.0
"""An address that does not answer within is wrong."""
CARRIED = ("CUDA_", "HF_", "MKL_", "NCCL_", "OMP_", "SPECEVAL_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "VLLM_")
"""What the names of variables begin with that a replica gets as they are here. Ray carries none by itself."""
PLACES = ("PYTHONPATH",)
"""Further ones."""
DEVICES = "CUDA_VISIBLE_DEVICES"
"""Which accelerators a replica has is Ray's to say."""


@dataclass(frozen=True)
class Cluster:
    """What is asked of Ray."""

    address: str
    replicas: int | None = None
    """None: as many as have room."""
    gpus: int = 1
    """Of each replica; 0: a CPU."""

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 1:
            raise UserError(f"--replicas {self.replicas}: at least 1")
        if self.gpus < 0:
            raise UserError(f"--gpus-per-replica {self.gpus}: 0 (a CPU) or more")
        if self.gpus == 0 and self.replicas is None:
            raise UserError("--replicas is needed with --gpus-per-replica 0")


class RayPool:
    """The `hand_out.Pool` of actors."""

    def __init__(self, ray: Any, size: int, gpus: int, ours: bool) -> None:
        """ours: whether the connection is."""
        self.size, self._ours = size, ours
        self._ray, self._gpus = ray, gpus
        self._actors = [self._new() for _ in range(size)]
        self._calls: dict[Any, int] = {}
        self._jobs: dict[int, tuple[Job, Any]] = {}

    def turn_to(self, replica: int, job: Job) -> None:
        """Have `Replica.turn_to` called."""
        if id(job) not in self._jobs:
            # The run that a difference is about is the driver's alone.
            self._jobs[id(job)] = job, self._ray.put(replace(job, against=None))
        self._calls[self._actors[replica].turn_to.remote(self._jobs[id(job)][1])] = replica

    def advance(self, replica: int, keys: Sequence[Key]) -> None:
        """Have `Replica.advance` called."""
        self._calls[self._actors[replica].advance.remote(list(keys))] = replica

    def next(self, seconds: float) -> tuple[int, Event] | None:
        """Which replica is done, and with what; None if none is within so many seconds."""
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if not ready:
            return None
        replica = self._calls.pop(ready[0])
        try:
            return replica, self._ray.get(ready[0])
        except self._ray.exceptions.RayError as error:
            # Not Ray's own restart: calls to an actor that comes back raise until it is there.
            with contextlib.suppress(Exception):
                self._ray.kill(self._actors[replica])
            self._actors[replica] = self._new()
            return replica, Lost(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

    def close(self) -> None:
        """End every replica, and the connection."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def pids(self) -> list[int]:
        """Process of each replica."""
        return list(self._ray.get([actor.pid.remote() for actor in self._actors]))

    def _new(self) -> Any:
        environment = {"env_vars": carried(os.environ)}
        actor = self._ray.remote(Replica).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_task_retries=0, runtime_env=environment
        )
        return actor.remote()


@contextmanager
def connected(cluster: Cluster, engine_args: dict[str, Any] | None = None) -> Iterator[RayPool]:
    """A pool on a cluster that has room for it. Raises `UserError` in one line; nothing has been started then."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray: Ray is not installed: pip install 'speceval[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _initialise(ray, cluster.address)
    try:
        # vLLM's own executor on Ray takes its accelerators itself.
        apart = (engine_args or {}).get("distributed_executor_backend") == "ray"
        size = room(cluster, ray.nodes())
        pool = RayPool(ray, size, 0 if apart else cluster.gpus, ours)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if ours and ray.is_initialized():
            ray.shutdown()


def room(cluster: Cluster, nodes: Sequence[dict[str, Any]]) -> int:
    """Replicas that the cluster is to run. Raises `UserError` if it has no room for them.

    nodes: as `ray.nodes` lists them.
    """
    name, each = ("GPU", cluster.gpus) if cluster.gpus else ("CPU", 1)
    has = [int(node["Resources"].get(name, 0)) for node in nodes if node["Alive"]]
    most = sum(count // each for count in has)
    asked = cluster.replicas if cluster.replicas is not None else max(most, 1)
    if asked > most:
        raise UserError(
            f"--ray {cluster.address}: {asked} replicas of {each} {name}{'s' if each > 1 else ''} are asked for, and "
            f"the cluster has room for {most} ({sum(has)} {name}s on {len(has)} machines): --replicas, "
            "--gpus-per-replica"
        )
    return asked


def carried(environment: Any) -> dict[str, str]:
    """The variables that replicas get. No secrets: Ray shows them to whoever sees the cluster."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(CARRIED) or name in PLACES) and name != DEVICES and not is_secret(name)
    }


def _initialise(ray: Any, address: str) -> None:
    """Connect. Raises `UserError`."""
    if address not in LOCAL:
        _require_answer(address)
    # Ray starts its processes at niceness 15 unless told otherwise; on a cluster that runs it is too late to say so.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = {} if address == "auto" else {"address": address}
    new = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(**where, **new, logging_level="ERROR", log_to_driver=True)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"--ray {address}: cannot be connected to: {type(error).__name__}: {line}") from None


def _require_answer(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise UserError(f"--ray {address[:80]}: must be auto, local or the address of a cluster, host:port")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"--ray {address}: nothing answers there ({reason}): is it the address of the cluster?"
        ) from None
