"""The store survives what happens to long runs."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speceval.errors import UserError
from speceval.store import JOURNAL, OUTPUTS, Store, list_runs, read_run

META: dict[str, Any] = {"status": "running", "spec": {"k": 3}}


def conversation(name: str, seed: int = 0) -> dict[str, Any]:
    turn = {
        "turn": 1,
        "user": "hello",
        "output": "h\u2028i",
        "token_ids": [1, 2, 3, 4],
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "padded_steps": 0,
        "finish_reason": "length",
        "stop_reason": None,
        "steps": [(3, 1, 2), (0, 0, 1)],
    }
    return {"suite": "s", "conversation": name, "seed": seed, "category": None, "turns": [turn]}


def finished(directory: Path, *names: str) -> Path:
    with Store(directory) as store:
        store.write_meta(META)
        for name in names:
            store.append(conversation(name))
        store.finish({**META, "status": "complete"})
    return directory


def test_tables_hold_what_was_appended(tmp_path: Path) -> None:
    run = read_run(finished(tmp_path / "run", "b", "a"))
    assert run.complete and run.conversations == 2
    assert run.turns["conversation"].tolist() == ["a", "b"]
    row = run.turns.iloc[0]
    counted = ("output_tokens", "steps", "undrafted_steps", "drafted", "accepted", "excess")
    assert tuple(int(row[name]) for name in counted) == (4, 1, 1, 3, 1, 0)
    assert run.steps[["drafted", "accepted", "committed"]].to_numpy().tolist() == [[3, 1, 2], [0, 0, 1]] * 2
    outputs = [json.loads(line) for line in (run.directory / OUTPUTS).read_text().split("\n")[:-1]]
    assert [row["conversation"] for row in outputs] == ["a", "b"] and outputs[0]["output"] == "h\u2028i"


def test_an_unfinished_run_reads_like_a_finished_one(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.write_meta(META)
        store.append(conversation("a"))
        run = read_run(tmp_path)
    assert not run.complete and run.conversations == 1


def test_a_torn_last_line_is_dropped_and_its_conversation_is_due_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(conversation("a"))
        store.append(conversation("b"))
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    with Store(tmp_path) as store:
        assert store.done == {("s", "a", 0)}
        store.append(conversation("b"))
    assert journal.read_text().count("\n") == 2


def test_no_conversation_can_be_stored_twice(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(conversation("a"))
        store.append(conversation("a", seed=1))
        with pytest.raises(ValueError, match="in the store already"):
            store.append(conversation("a"))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(UserError, match="another speceval"), Store(tmp_path):
        pass


def test_a_start_that_failed_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Store(tmp_path / "run"):
        raise RuntimeError("the engine did not start")
    assert not (tmp_path / "run").exists()


def test_a_table_that_cannot_be_written_leaves_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(tmp_path) as store:
        store.write_meta(META)
        store.append(conversation("a"))
        with monkeypatch.context() as patched:
            patched.setattr(pd.DataFrame, "to_parquet", full)
            with pytest.raises(OSError, match="No space"):
                store.finish({**META, "status": "complete"})
        assert read_run(tmp_path).conversations == 1
        assert not list(tmp_path.glob(".*.tmp"))
        store.finish({**META, "status": "complete"})
    assert read_run(tmp_path).complete


@pytest.mark.parametrize("written", ["{", "[]", '{"schema": 99}'])
def test_a_run_file_that_is_not_ours_is_named(tmp_path: Path, written: str) -> None:
    (tmp_path / "run.json").write_text(written)
    with pytest.raises(UserError, match=r"run\.json"):
        read_run(tmp_path)


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        read_run(tmp_path)


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name, created in (("old", "2026-01-01"), ("new", "2026-02-02")):
        with Store(tmp_path / name) as store:
            store.write_meta({**META, "created": created})
    assert [directory.name for directory, _ in list_runs(tmp_path)] == ["new", "old"]


def test_kill_9_at_any_moment_loses_no_stored_conversation(tmp_path: Path) -> None:
    """Kills a writer at five moments while it appends as fast as it can: every line that it reported is there."""
    script = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from test_store import Store, conversation\n"
        "with Store(__import__('pathlib').Path(sys.argv[1])) as store:\n"
        "    for n in range(100000):\n"
        "        if ('s', str(n), 0) not in store.done:\n"
        "            store.append(conversation(str(n)))\n"
        "            print(n, flush=True)\n"
    )
    reported = -1
    for lines in (1, 7, 20, 33, 50):
        command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                reported = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split()
            reported = int(rest[-1]) if rest else reported
        with Store(tmp_path) as store:
            assert {("s", str(n), 0) for n in range(reported + 1)} <= store.done
    lines_stored = (tmp_path / JOURNAL).read_text().split("\n")[:-1]
    names = [json.loads(line)["conversation"] for line in lines_stored]
    assert len(names) == len(set(names))
