"""Replicas as actors of a Ray cluster. Imports Ray when it is connected to.

Tensor, pipeline and expert parallelism stay vLLM's: a replica is one engine, whose accelerators are on one machine.
With `distributed_executor_backend=ray` vLLM asks the cluster for them itself, on several machines if need be.
"""

from __future__ import annotations

import contextlib
import math
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
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of gRPC, which Ray speaks, begins with; the answer begins with such a frame too (RFC 9113, 3.4).
Ray itself asks another service for minutes."""
CARRIED = ("CUDA_", "HF_", "MKL_", "NCCL_", "OMP_", "SPECEVAL_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "VLLM_")
"""What the names of variables begin with that a replica gets as they are here. Ray carries none by itself."""
PLACES = ("PYTHONPATH",)
"""Further ones."""
SHARED_BY = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Arguments of vLLM that say among how many accelerators an engine is shared."""
DEVICES = "CUDA_VISIBLE_DEVICES"
"""Which accelerators a replica has is Ray's to say."""


MOST_REPLICAS = 10_000
"""Engines that one run may ask a cluster for."""


@dataclass(frozen=True)
class Cluster:
    """What is asked of Ray."""

    address: str
    replicas: int | None = None
    """None: as many as have room."""
    gpus: int | None = None
    """Of each replica; 0: a CPU. None: as many as its engine's arguments share the target among."""

    def __post_init__(self) -> None:
        if self.replicas is not None and not 1 <= self.replicas <= MOST_REPLICAS:
            raise UserError(f"--replicas {self.replicas}: at least 1, at most {MOST_REPLICAS:,}")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(f"--gpus-per-replica {self.gpus}: 0 (a CPU) or more")
        if self.gpus == 0 and self.replicas is None:
            raise UserError("--replicas is needed with --gpus-per-replica 0")

    def gpus_of(self, job: Job) -> int:
        """Accelerators of each replica that measures `job`."""
        if self.gpus is not None:
            return self.gpus
        sizes = (job.spec.engine_args.get(name, 1) for name in SHARED_BY)
        return math.prod(size for size in sizes if isinstance(size, int))


class RayPool:
    """The `hand_out.Pool` of actors, each with so many accelerators."""

    def __init__(self, ray: Any, size: int, gpus: int) -> None:
        self.size = size
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
        """End every replica."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)

    def pids(self) -> list[int]:
        """Process of each replica."""
        return list(self._ray.get([actor.pid.remote() for actor in self._actors]))

    def _new(self) -> Any:
        environment = {"env_vars": carried(os.environ)}
        actor = self._ray.remote(Replica).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_task_retries=0, runtime_env=environment
        )
        return actor.remote()


class Connection:
    """A cluster that answers."""

    def __init__(self, ray: Any, cluster: Cluster, ours: bool) -> None:
        """ours: whether it is to be closed with what needs it."""
        self._ray, self._cluster, self._ours = ray, cluster, ours

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends."""
        if self._ours:
            self._ours = False
            self._ray.shutdown()

    def room(self, gpus: int) -> int:
        """Replicas with so many accelerators that are to run. Raises `UserError` if there is no room for them."""
        return room(self._cluster, gpus, self._ray.nodes())

    @contextmanager
    def pool(self, gpus: int, apart: bool = False) -> Iterator[RayPool]:
        """Replicas with so many accelerators; `apart`: which their engines take for themselves."""
        pool = RayPool(self._ray, self.room(gpus), 0 if apart else gpus)
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def connected(cluster: Cluster) -> Iterator[Connection]:
    """A connection to a cluster. Raises `UserError` in one line; nothing has been started then."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray: Ray is not installed: pip install 'speceval[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _initialise(ray, cluster.address)
    connection = Connection(ray, cluster, ours)
    try:
        yield connection
    finally:
        connection.close()


def room(cluster: Cluster, gpus: int, nodes: Sequence[dict[str, Any]]) -> int:
    """Replicas with so many accelerators that the cluster is to run. Raises `UserError` if it has no room for them.

    nodes: as `ray.nodes` lists them.
    """
    name, each = ("GPU", gpus) if gpus else ("CPU", 1)
    has = [int(node["Resources"].get(name, 0)) for node in nodes if node["Alive"]]
    most = sum(count // each for count in has)
    asked = cluster.replicas if cluster.replicas is not None else max(most, 1)
    if asked > most:
        wanted = f"{asked} replica{'' if asked == 1 else 's'} of {each} {name}{'' if each == 1 else 's'}"
        mend = "--gpus-per-replica 0 takes CPUs" if gpus and not any(has) else "see --replicas, --gpus-per-replica"
        raise UserError(
            f"--ray {cluster.address}: {wanted} asked for, the cluster has room for {most} "
            f"({name}s of its machines: {', '.join(map(str, has))}): {mend}"
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
        with socket.create_connection((host, int(port)), SECONDS) as connection:
            connection.sendall(HELLO)
            answer = connection.recv(9)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"--ray {address}: nothing answers there ({reason}): is it the address of the cluster?"
        ) from None
    if answer[3:4] != b"\x04" and not os.environ.get("RAY_USE_TLS"):
        raise UserError(f"--ray {address}: what answers there is no Ray cluster")
