"""The store survives what happens to long runs."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.records import content, run_meta, segment

from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.estimate.identities import reconcile
from speceval.protocol import RunSpec
from speceval.store import (
    JOURNAL,
    OUTPUTS,
    Store,
    list_runs,
    pack,
    read_meta,
    read_run,
    recorded_columns,
    run_directory,
    unpack,
    write_meta,
)
from speceval.store.schema import SCHEMA_VERSION, other_request

META, OVER = run_meta(status="running"), run_meta()


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
        store.finish(OVER)
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


def recorded(name: str, values: list[list[list[float]]] | None, kind: str = "recorded") -> dict[str, Any]:
    """A conversation of three steps, the middle one without drafts; `values` of the others, [2, kinds, K]."""
    line = conversation(name)
    line["turns"][0] |= {"steps": [(2, 1, 2), (0, 0, 1), (1, 0, 1)], "token_ids": [1, 2, 3, 4, 5]}
    if values is not None:
        line["turns"][0][kind] = pack(np.array(values, np.float32))
    return line


NAN = float("nan")
RATIO_ALPHA = [[[0.5, 1.0], [0.75, 0.25]], [[0.1, NAN], [0.2, NAN]]]


def test_what_the_verifier_saw_lies_beside_the_steps_that_drafted(tmp_path: Path) -> None:
    """Also among turns without a record, and the same before and after the tables are made."""
    with Store(tmp_path) as store:
        store.write_meta(META)
        store.append(recorded("b", None))
        store.append(recorded("a", RATIO_ALPHA))
        unfinished = read_run(tmp_path).steps
        store.finish(OVER)
    nothing = [NAN] * 4
    expected = [[0.5, 1.0, 0.75, 0.25], nothing, [0.1, NAN, 0.2, NAN], nothing, nothing, nothing]
    for steps in (unfinished, read_run(tmp_path).steps):
        assert steps["conversation"].tolist() == ["a"] * 3 + ["b"] * 3
        found = steps[recorded_columns(2)]
        assert set(found.dtypes.astype(str)) == {"float32"}
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "recorded" not in (tmp_path / OUTPUTS).read_text()


def test_what_is_kept_of_a_replayed_text_has_columns_of_its_own(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(recorded("a", [[[0.5, 1.0]], [[0.1, NAN]]], "kept"))
        _, steps = store.frames()
    assert steps.columns[-2:].tolist() == ["kept_1", "kept_2"]
    np.testing.assert_allclose(steps[["kept_1", "kept_2"]], [[0.5, 1.0], [NAN] * 2, [0.1, NAN]], rtol=1e-6)


def test_columns_of_what_was_recorded_are_in_one_order_whatever_came_first(tmp_path: Path) -> None:
    law = recorded("a", [[[0.5], [0.1], [0.2]]] * 2, "law")
    both = recorded("b", [[[0.5, 1.0]], [[0.1, NAN]]], "kept")
    both["turns"][0]["law"] = law["turns"][0]["law"]
    with Store(tmp_path) as store:
        store.append(law)
        store.append(both)
        _, steps = store.frames()
    assert steps.columns[-5:].tolist() == ["kept_1", "kept_2", "p_1", "rank_1", "spread_1"]


def test_a_run_without_a_record_has_no_such_columns(tmp_path: Path) -> None:
    assert not [name for name in read_run(finished(tmp_path / "run", "a")).steps if name[-1].isdigit()]


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 1, 1), (0, 2, 3)])
def test_a_record_survives_the_journal_bit_for_bit(shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    values[..., -1] = NAN
    text = pack(values)
    assert json.loads(json.dumps(text)) == text
    if shape[0]:
        np.testing.assert_array_equal(unpack(text, *shape[:2]), values)


def old_run(directory: Path, schema: int) -> Path:
    """A finished run as speceval of that schema wrote it."""
    finished(directory, "a", "b")
    turns = pd.read_parquet(directory / "turns.parquet")
    old = content(schema=schema)
    for name in ("until", "against", "replay", "record"):
        del old["spec"][name]
    del old["fingerprint"]["replay"]
    counters = {"num_drafts": 2, "num_draft_tokens": 6, "num_accepted_tokens": 2}
    if schema == 1:
        turns.drop(columns="padded_steps").to_parquet(directory / "turns.parquet", index=False)
        del old["spec"]["draft_truncation"], old["spec"]["rejection"], old["fingerprint"]["engine"]["draft_truncation"]
    else:
        turns.assign(padded_steps=[1, 0]).to_parquet(directory / "turns.parquet", index=False)
        old["spec"] |= {"draft_truncation": False, "rejection": "block"}
        counters |= dict.fromkeys(WORKER_COUNTERS, 7)
    old["segments"] = [segment(**counters)]
    (directory / "run.json").write_text(json.dumps(old))
    return directory


WORKER_COUNTERS = ("steps_with_q", "steps_one_hot", "steps_structured", "steps_padded")
"""What schema 1 did not count."""


def test_runs_of_schema_1_load_with_what_was_not_recorded_then_off_or_0(tmp_path: Path) -> None:
    run = read_run(old_run(tmp_path / "run", 1))
    expected = {"draft_truncation": True, "rejection": "standard", "record": False}
    assert run.meta.spec.model_dump().items() >= expected.items()
    assert (run.meta.spec.replay, run.meta.spec.until, run.meta.spec.against) == (None, None, None)
    assert run.turns["padded_steps"].tolist() == [0, 0]
    counters = run.meta.segments[0].counters
    assert [getattr(counters, name) for name in WORKER_COUNTERS] == [0] * len(WORKER_COUNTERS)
    assert counters.num_drafts == 2
    assert run.meta.fingerprint.engine.draft_truncation is True and run.meta.fingerprint.replay is None


def test_runs_of_schema_2_keep_what_they_recorded(tmp_path: Path) -> None:
    run = read_run(old_run(tmp_path / "run", 2))
    assert run.meta.spec.record is False
    assert (run.meta.spec.draft_truncation, run.meta.spec.rejection) == (False, "block")
    assert run.turns["padded_steps"].tolist() == [1, 0]
    assert {getattr(run.meta.segments[0].counters, name) for name in WORKER_COUNTERS} == {7}


@pytest.mark.parametrize("schema", [1, 2])
def test_old_runs_are_written_back_as_this_version_writes_them(tmp_path: Path, schema: int) -> None:
    run = read_run(old_run(tmp_path / "run", schema))
    write_meta(run.directory, run.meta)
    assert json.loads((run.directory / "run.json").read_text())["schema"] == SCHEMA_VERSION
    assert read_meta(run.directory) == run.meta


@pytest.mark.parametrize("schema", [1, 2])
def test_old_runs_are_summarised_without_rao_blackwell(tmp_path: Path, schema: int) -> None:
    run = read_run(old_run(tmp_path / "run", schema))
    found = acceptance.summarise(run.steps, run.turns, 3)
    assert found["tau"]["value"] == 2 and found["tau_rb"]["value"] is None and found["agreement"]["agrees"] is None
    json.dumps(found, allow_nan=False)


def test_the_stored_reference_runs_load() -> None:
    """All of them were written by schema 2."""
    directories = sorted((Path(__file__).parents[2] / "results" / "reference" / "demo-all").glob("*/run.json"))
    assert len(directories) == 40
    for path in directories[::13]:
        assert json.loads(path.read_text())["schema"] == 2
        run = read_run(path.parent)
        assert run.meta == read_meta(path.parent) and run.complete and run.conversations >= 24
        assert run.meta.spec.record is False and run.turns["padded_steps"].ge(0).all()
        found = acceptance.summarise(run.steps, run.turns, run.meta.spec.k)
        assert found["tau"]["value"] > 1 and found["tau_rb"]["value"] is None


STORED = sorted((Path(__file__).parents[2] / "results" / "reference").glob("*/*/run.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_every_stored_run_answers_to_its_name_and_to_its_spec(path: Path, tmp_path: Path) -> None:
    """Its own request, made today, is the same run, in its directory and in `results/` under its name."""
    stored = json.loads(path.read_text())
    asked = RunSpec(**stored["spec"])
    assert stored["name"] in (asked.name, *asked.older_names)
    meta = read_meta(path.parent)
    assert other_request(meta, asked) == other_request(meta, meta.spec) == []
    assert run_directory(tmp_path, asked) == tmp_path / asked.name
    (tmp_path / stored["name"]).symlink_to(path.parent)
    assert run_directory(tmp_path, asked) == tmp_path / stored["name"]
    for field, value in {"k": 1, "seeds": (7,), "batch": 3, "replay": "0123", "until": 0.5}.items():
        other = asked.model_copy(update={field: value})
        assert len(other_request(meta, other)) == 1
        assert run_directory(tmp_path, other) == tmp_path / other.name


def test_there_are_stored_runs() -> None:
    assert len(STORED) == 46


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


def test_a_journal_is_parsed_once_when_it_is_opened_and_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    original = json.loads

    def loads(text: Any) -> Any:
        parsed.append(text)
        return original(text)

    names = [f"{n:03}" for n in range(50)]
    with Store(tmp_path / "run") as store:
        store.write_meta(META)
        monkeypatch.setattr(json, "loads", loads)
        for name in names[:40]:
            store.append(conversation(name))
        assert parsed == []
    with Store(tmp_path / "run") as store:
        assert len(parsed) == 40 and store.counts["s", "000", 0] == [(1, 1)]
        for name in names[40:]:
            store.append(conversation(name))
        assert len(parsed) == 40
        turns, _ = store.frames()
        assert len(turns) == 50
        store.finish(OVER)
    assert len(parsed) == 40 + 50


def test_tables_that_were_asked_for_early_do_not_stay_as_they_were(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(conversation("a"))
        assert len(store.frames()[0]) == 1
        store.append(conversation("b"))
        assert len(store.frames()[0]) == 2


def test_a_part_of_the_conversations_is_finished_with_their_rows_texts_and_reasons_alone(tmp_path: Path) -> None:
    """As `--until` does: some have steps without drafts, are skipped, or come in another order."""
    lines = {name: recorded(name, RATIO_ALPHA) for name in "dbca"} | {"e": conversation("e")}
    for name in "ab":
        lines[name]["skipped"] = f"{name} was too long"
    with Store(tmp_path) as store:
        store.write_meta(META)
        for line in lines.values():
            store.append(line)
        store.finish(OVER, {("s", name, 0) for name in "ace"})
    run = read_run(tmp_path)
    assert run.turns["conversation"].tolist() == list("ace")
    assert run.steps["conversation"].tolist() == [*"aaaccc", *"ee"] and run.steps["step"].tolist() == [1, 2, 3] * 2 + [
        1,
        2,
    ]
    assert run.steps["ratio_1"].notna().tolist() == [True, False, True] * 2 + [False] * 2
    outputs = [json.loads(line)["conversation"] for line in (tmp_path / OUTPUTS).read_text().split("\n")[:-1]]
    assert outputs == list("ace")
    assert [(row.conversation, row.skipped) for row in run.meta.skipped] == [("a", "a was too long")]
    assert reconcile(run.steps, run.turns) == []


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


def test_a_disk_without_room_is_one_line_and_the_same_store_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match=r"run: cannot be written: .*the same command resumes") as raised:
        try:
            with Store(directory) as store:
                store.append(conversation("a"))
                room = (directory / "journal.jsonl").stat().st_size + 20
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
                store.append(conversation("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    with Store(directory) as store:
        assert [key[1] for key in store.done] == ["a"]
        store.append(conversation("b"))
        assert len(store.done) == 2


def test_a_table_that_cannot_be_written_leaves_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(tmp_path) as store:
        store.write_meta(META)
        store.append(conversation("a"))
        with monkeypatch.context() as patched:
            patched.setattr(pd.DataFrame, "to_parquet", full)
            with pytest.raises(OSError, match="No space"):
                store.finish(OVER)
        assert read_run(tmp_path).conversations == 1
        assert not list(tmp_path.glob(".*.tmp"))
        store.finish(OVER)
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
            store.write_meta(run_meta(created=created))
    assert [directory.name for directory, _ in list_runs(tmp_path)] == ["new", "old"]


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_stored_conversation(tmp_path: Path) -> None:
    """Kills a writer at five moments while it appends as fast as it can: every line that it reported is there."""
    script = (
        "import sys; sys.path[:0] = [sys.argv[2], sys.argv[2] + '/..']\n"
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
