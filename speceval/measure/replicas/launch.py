"""From a request to a finished run, or a sweep's, on the replicas of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

from speceval import engines
from speceval.errors import UserError
from speceval.measure import launch
from speceval.measure.job import Job
from speceval.measure.output import Watch
from speceval.measure.replicas.hand_out import HandOut
from speceval.measure.replicas.on_ray import Cluster, connected
from speceval.measure.replicas.work import Work
from speceval.store import StoredRun, read_run

Log = Callable[[Path], AbstractContextManager[None]]


def run(job: Job, cluster: Cluster, watch: Watch, log: Log) -> StoredRun:
    """`launch.run` on replicas. Raises `UserError`; whatever ends it leaves a store that the same call resumes."""
    launch.fetch(job)  # here too: what cannot be had is known now, and replicas on this machine find it
    for work in run_all([job], cluster, watch, log, job.directory / "engine.log"):
        if work.error is not None:
            raise UserError(work.error)
    return read_run(job.directory)


def run_all(jobs: Sequence[Job], cluster: Cluster, watch: Watch, log: Log, log_file: Path) -> Iterator[Work]:
    """Measure runs that are not measured yet, and tell of each when it is finished or given up.

    Those that need most accelerators for a replica come first, then the others: a pool has replicas of one size.
    log_file: where the output of all replicas goes. Raises `UserError` before anything has started.
    """
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        check(job)
        groups.setdefault(cluster.gpus_of(job), []).append(job)
    with connected(cluster) as ray:
        for gpus in groups:
            ray.room(gpus)  # of all of them, before the first begins
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log(log_file), closing(ray):  # what replicas still have to say is said by then
            for gpus, group in sorted(groups.items(), reverse=True):
                # vLLM's own executor on Ray takes its accelerators itself, from several machines if need be.
                apart = group[0].spec.engine_args.get("distributed_executor_backend") == "ray"
                with ray.pool(gpus, apart) as pool:
                    hand_out = HandOut(group, pool)
                    with watch(hand_out.progress, group[0].spec) as changed:
                        hand_out.changed = changed
                        yield from hand_out.run()


def check(job: Job) -> None:
    """Raises `UserError` for what replicas cannot measure."""
    if job.spec.rate is not None:
        raise UserError("--rate: is the load on one server: leave --ray out")
    if not engines.find(job.spec.engine).replicates:
        raise UserError(f"--ray: --engine {job.spec.engine} measures what runs already: leave --ray out")
