"""What a process may use of its machine, where a container or a batch system limits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from speceval.engines.vllm import room

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores with 64 GiB free; the folder is where its control groups are."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {80 << 20} kB\nMemAvailable:   {64 << 20} kB\n")
    for name, path in (("MEMORY", "meminfo"), ("OWN", "own"), ("GROUPS", "groups")):
        monkeypatch.setattr(room, name, tmp_path / path)
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: range(16), raising=False)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_without_control_groups_it_is_the_machine_s(machine: Path) -> None:
    assert (room.cores(), room.free_gibibytes()) == (16, 64)


def test_a_container_s_limits_are_obeyed_and_files_that_were_read_do_not_count(machine: Path) -> None:
    (machine / "own").write_text("0::/\n")
    own = machine / "groups"
    write(own, memory_max=str(8 * GIB), memory_current=str(6 * GIB), cpu_max="250000 100000")
    write(own, memory_stat=f"anon {GIB}\ninactive_file {5 * GIB}")
    assert (room.cores(), room.free_gibibytes()) == (3, 7)
    write(own, memory_current=str(14 * GIB))
    assert room.free_gibibytes() == 0
    write(own, memory_max="max", cpu_max="max 100000")
    assert (room.cores(), room.free_gibibytes()) == (16, 64)


def test_the_smallest_limit_of_all_groups_above_holds(machine: Path) -> None:
    (machine / "own").write_text("0::/job_7/step_0\n")
    write(machine / "groups" / "job_7" / "step_0", memory_max="max", memory_current="0", cpu_max="max 100000")
    write(machine / "groups" / "job_7", memory_max=str(9 * GIB), memory_current=str(GIB), cpu_max="400000 100000")
    assert (room.cores(), room.free_gibibytes()) == (4, 8)


def test_version_1_of_control_groups_is_read_also_where_a_container_sees_its_own_as_the_root(machine: Path) -> None:
    (machine / "own").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    memory, cpu = machine / "groups" / "memory", machine / "groups" / "cpu"
    write(memory, memory_limit_in_bytes=str(6 * GIB), memory_usage_in_bytes=str(GIB))
    write(cpu, **{"cpu_cfs_quota_us": "200000", "cpu_cfs_period_us": "100000"})
    assert (room.cores(), room.free_gibibytes()) == (2, 5)
    write(cpu, **{"cpu_cfs_quota_us": "-1"})
    assert room.cores() == 16
