"""The whole path on real vLLM: the commands that users type, with the zoo."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from speceval.engines.vllm.start import ZOO_ENVIRONMENT
from speceval.estimate import acceptance, rao_blackwell, replay
from speceval.estimate.identities import check_counters, reconcile
from speceval.estimate.statistics import paired_ratio_difference
from speceval.store import StoredRun, read_run, recorded_columns
from speceval.suites import load

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ZOO = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1")


def speceval(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speceval", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def run(directory: Path, *arguments: str, **environment: str) -> StoredRun:
    done = speceval(*ZOO, *arguments, "--out", str(directory), cwd=directory.parent, **environment)
    assert done.returncode == 0, done.stderr
    return read_run(directory)


def tokens(stored: StoredRun) -> dict[tuple[str, int, int], list[int]]:
    rows = [json.loads(line) for line in (stored.directory / "outputs.jsonl").open(encoding="utf-8")]
    return {(row["conversation"], row["seed"], row["turn"]): row["token_ids"] for row in rows}


@pytest.fixture(scope="module")
def sampled(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    """The demo suite at T=1 with sampled drafts, four samples of each prompt."""
    return run(tmp_path_factory.mktemp("runs") / "sampled", "--seeds", "0-3", "--batch", "64")


def test_sampled_drafts_are_accepted_and_the_books_balance(sampled: StoredRun) -> None:
    assert sampled.meta.status == "complete" and sampled.meta.problems == []
    assert sampled.conversations == 24 * 4
    assert reconcile(sampled.steps, sampled.turns) == []
    assert acceptance.tau(sampled.steps) > 1.5


def test_the_settings_in_the_fingerprint_are_the_engine_s_own(sampled: StoredRun) -> None:
    engine = sampled.meta.fingerprint.engine
    expected = {"method": "eagle3", "draft_sample_method": "probabilistic", "rejection_sample_method": "standard"}
    assert engine.model_dump().items() >= expected.items()
    assert engine.generation_config == "vllm" and engine.prefix_caching is False
    assert "cpu-expand" in sampled.meta.fingerprint.patches


def test_counters_of_a_tampered_store_do_not_agree(sampled: StoredRun) -> None:
    """The cross-check with vLLM's own counters can fail: one accepted token more is seen at its position."""
    (segment,) = sampled.meta.segments
    assert segment.counters is not None and not segment.interrupted
    counters = asdict(segment.counters)
    assert check_counters(sampled.steps, counters) == []
    assert counters["steps_with_q"] == len(acceptance.drafted_steps(sampled.steps)) and counters["steps_one_hot"] == 0
    steps = sampled.steps.copy()
    row = steps.index[(steps["drafted"] > 0) & (steps["accepted"] == 1)][0]
    steps.loc[row, "accepted"] = 2
    assert len(check_counters(steps, counters)) == 2


def test_every_step_has_a_record_that_agrees_with_the_counts(sampled: StoredRun) -> None:
    """|z| < 5: a false alarm of 6e-7."""
    rows = acceptance.drafted_steps(sampled.steps)
    record = rows[recorded_columns(sampled.meta.spec.k)].to_numpy()
    assert not np.isnan(record).any() and record.min() >= 0 and record.max() <= 1 + 1e-5
    found = rao_blackwell.agreement(sampled.steps)
    assert found["steps"] == len(rows) and found["agrees"] is True


@pytest.fixture(scope="module")
def replayed(sampled: StoredRun) -> StoredRun:
    """The same drafter along the texts of `sampled`."""
    return run(sampled.directory.parent / "replayed", "--batch", "64", "--replay", str(sampled.directory))


def test_a_replay_emits_the_source_s_tokens_and_records_every_draft_within_the_text(
    sampled: StoredRun, replayed: StoredRun
) -> None:
    assert replayed.meta.problems == [] and tokens(replayed) == tokens(sampled)
    assert (replayed.steps["committed"] == 1).all() and (replayed.steps["accepted"] == 0).all()
    k = replayed.meta.spec.k
    kept = replayed.steps[recorded_columns(k, ("kept",))].to_numpy()
    left = replayed.steps.groupby(replay.REQUEST).cumcount(ascending=False).to_numpy() + 1
    assert (np.isnan(kept) == (np.arange(k) >= left[:, None])).all()
    assert np.nanmin(kept) >= 0 and np.nanmax(kept) <= 1


def test_a_replay_expects_what_the_free_run_counts(sampled: StoredRun, replayed: StoredRun) -> None:
    """Paired by conversation; |z| < 5."""
    free = acceptance.conversation_totals(sampled.steps)
    expected = replay.conversation_totals(replayed.steps).reindex(free.index)
    found = paired_ratio_difference(free["committed"], free["steps"], expected["committed"], expected["steps"])
    assert abs(found.difference.value) < 5 * found.difference.se


@pytest.mark.long
@pytest.mark.parametrize("draft", ["lk-eagle3", "lk-medusa", "ngram"])
def test_at_temperature_0_a_replay_expects_exactly_what_the_free_run_counts(
    zoo: dict[str, Path], tmp_path: Path, draft: str
) -> None:
    """Nothing is left to chance there, and n-gram drafts in some places only. On other rounding a near tie may turn."""
    options = ("--draft", draft, "--temp", "0", "--k", "3", "--batch", "8")
    free = run(tmp_path / "free", *options)
    replayed = run(tmp_path / "replayed", *options, "--replay", str(free.directory))
    assert replayed.meta.problems == [] and tokens(replayed) == tokens(free)
    counted = acceptance.conversation_totals(free.steps)
    expected = replay.conversation_totals(replayed.steps).reindex(counted.index)
    assert (replayed.steps["drafted"] == 0).any() == (draft == "ngram")
    for name in ("steps", "committed"):
        assert expected[name].sum() == pytest.approx(counted[name].sum(), rel=0.003)


def contradictions(free: StoredRun, replayed: pd.DataFrame) -> tuple[int, int]:
    """Drafts of the free run, and how many of them the replay contradicts.

    An accepted draft x has min(1, p(x)/q(x)) = 1 or min(1, q(x)/p(x)) = 1, both from the same p and q; a token that was
    recovered in its place has p(x) > q(x), so that it is kept with less than certainty.
    """
    k = replay.depth(replayed)
    kept_names, ratio_names = recorded_columns(k, ("kept",)), recorded_columns(k)[:k]
    steps = free.steps.rename(columns={"step": "number"})
    steps["step"] = steps.groupby(replay.REQUEST)["committed"].cumsum() - steps["committed"] + 1  # its first token
    both = steps.merge(replayed[[*replay.REQUEST, "step", *kept_names]], on=[*replay.REQUEST, "step"], validate="1:1")
    assert len(both) == len(steps)
    kept, ratio = both[kept_names].to_numpy(), both[ratio_names].to_numpy()
    position, accepted = np.arange(k), both["accepted"].to_numpy()[:, None]
    within = ~np.isnan(kept)
    was_accepted, was_recovered = within & (position < accepted), within & (position == accepted)
    wrong = was_accepted & (ratio < 0.999) & (kept < 0.999) | was_recovered & (kept == 1)
    return int((was_accepted | was_recovered).sum()), int(wrong.sum())


def test_a_replay_sees_the_p_and_q_of_the_free_run_at_each_token(sampled: StoredRun, replayed: StoredRun) -> None:
    drafts, wrong = contradictions(sampled, replayed.steps)
    assert drafts > 3000 and wrong <= 2  # rounding: p and q come from batches of another shape


@pytest.mark.parametrize("shift", ["position", "row"])
def test_a_replay_shifted_by_one_is_contradicted(sampled: StoredRun, replayed: StoredRun, shift: str) -> None:
    steps, names = replayed.steps.copy(), recorded_columns(replayed.meta.spec.k, ("kept",))
    if shift == "position":
        steps[names] = steps[[*names[1:], names[-1]]].to_numpy()
    else:
        steps[names] = steps.groupby(replay.REQUEST)[names].shift(-1)
    drafts, wrong = contradictions(sampled, steps)
    assert wrong > 0.1 * drafts


@pytest.mark.long
def test_greedy_drafts_are_another_quantity(sampled: StoredRun, tmp_path: Path) -> None:
    """Sampled and greedy drafting differ by more than six standard errors on the same prompts."""
    greedy = run(tmp_path / "greedy", "--seeds", "0-3", "--batch", "64", "--drafting", "greedy")
    assert greedy.meta.fingerprint.engine.draft_sample_method == "greedy"
    difference = acceptance.compare(greedy.steps, greedy.turns, sampled.steps, sampled.turns)["difference"]
    assert abs(difference["value"]) > 6 * difference["se"]


@pytest.mark.long
def test_the_same_seed_at_batch_1_gives_the_same_tokens_and_the_same_tau_recorded_or_not(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--limit", "6", "--max-tokens", "32", "--batch", "1")
    first, second = run(tmp_path / "a", *options), run(tmp_path / "b", *options, "--no-record")
    assert tokens(first) == tokens(second)
    assert "ratio_1" in first.steps and "ratio_1" not in second.steps
    assert first.steps[list(second.steps)].equals(second.steps) and first.turns.equals(second.turns)
    other = run(tmp_path / "c", *options, "--seeds", "1")
    assert list(tokens(other).values()) != list(tokens(first).values())


def test_no_sampling_default_of_the_checkpoint_leaks_in(zoo: dict[str, Path], tmp_path: Path) -> None:
    """A generation_config that would make every run greedy changes nothing."""
    options = ("--limit", "4", "--max-tokens", "32", "--batch", "1", "--k", "5", "--suite", "demo")
    options += ("--engine-arg", "dtype=float32", "--engine-arg", "enforce_eager=true")
    outputs = []
    for name, trap in (("plain", {}), ("trap", {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "do_sample": True})):
        target = tmp_path / name / "target"
        shutil.copytree(zoo["target"], target)
        (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **trap}))
        arguments = ("run", "--target", "target", "--draft", str(zoo["lk-eagle3"]), "--temp", "1", *options)
        done = speceval(*arguments, "--out", "run", cwd=tmp_path / name, **ZOO_ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        outputs.append(tokens(read_run(tmp_path / name / "run")))
    assert outputs[0] == outputs[1]


def test_padded_rounds_of_cached_prompts_are_left_out_and_counted(zoo: dict[str, Path], tmp_path: Path) -> None:
    """The target drafts for itself, so that every real round accepts all K; the padded ones would accept nothing.

    A prompt is padded when all but its last token is cached, so when its length is one more than full blocks. Target
    and drafter compute p in batches of another shape, so that rounding may reject a draft once in a million.
    """
    words = [{"turns": ["a" * length]} for length in range(1, 34)]
    (tmp_path / "lengths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    arguments = ("run", "--target", "zoo", "--draft", str(zoo["target"]), "--temp", "1", "--k", "3", "--batch", "1")
    options = ("--suite", "lengths.jsonl", "--seeds", "0-1", "--max-tokens", "12", "--prefix-caching")
    done = speceval(*arguments, *options, "--engine-arg", "block_size=32", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = read_run(tmp_path / "run")
    counters = stored.meta.segments[0].counters
    assert stored.turns["padded_steps"].sum() == counters.steps_padded > 0
    assert counters.num_drafts == len(acceptance.drafted_steps(stored.steps)) + counters.steps_padded
    assert stored.meta.problems == []
    assert "padded steps" in done.stdout
    drafted = acceptance.drafted_steps(stored.steps)
    assert (drafted["drafted"] - drafted["accepted"]).sum() < 3  # one padded round would lack all three


def test_without_the_patch_a_sampled_run_on_a_cpu_is_refused(zoo: dict[str, Path], tmp_path: Path) -> None:
    done = speceval(*ZOO, "--limit", "1", "--out", "run", cwd=tmp_path, SPECEVAL_PATCHES="0")
    assert done.returncode == 4
    assert "cpu-expand: switched off" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_setting_that_vllm_refuses_is_one_line_that_names_the_log(zoo: dict[str, Path], tmp_path: Path) -> None:
    done = speceval(*ZOO, "--limit", "1", "--engine-arg", "no_such_argument=1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 4 and "no_such_argument" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "run.json").exists()


def test_real_prompts_run_with_both_turns_of_mt_bench(zoo: dict[str, Path], data_dir: Path, tmp_path: Path) -> None:
    suites = ("--suite", "mt_bench,humaneval,gsm8k", "--data-dir", str(data_dir), "--limit", "3")
    stored = run(tmp_path / "real", *suites, "--max-tokens", "48")
    assert stored.turns.groupby("suite").size().to_dict() == {"mt_bench": 6, "humaneval": 3, "gsm8k": 3}
    assert sorted(stored.turns.query("suite == 'mt_bench'")["turn"]) == [1, 1, 1, 2, 2, 2]
    rows = [json.loads(line) for line in (stored.directory / "outputs.jsonl").open(encoding="utf-8")]
    assert {row["turn"] for row in rows if row["suite"] == "mt_bench"} == {1, 2}
    assert stored.meta.problems == [] and stored.meta.skipped == []


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_kill_9_and_then_resume_gives_the_same_set_once(zoo: dict[str, Path], tmp_path: Path, kills: int) -> None:
    """Random moments, fixed seed: each kill comes once a few more conversations are in the journal."""
    chance = random.Random(20)
    options = ("--seeds", "0-5", "--batch", "8")
    command = [sys.executable, "-m", "speceval", *ZOO, *options, "--out", "run"]
    journal = tmp_path / "run" / "journal.jsonl"
    for _ in range(kills):
        _signal_after(chance.randint(1, 25), signal.SIGKILL, command, journal)
    resumed = run(tmp_path / "run", *options)
    stored = [(conversation, seed) for conversation, seed, _ in tokens(resumed)]
    assert sorted(stored) == sorted((c.id, seed) for c in load("demo").conversations for seed in range(6))
    assert resumed.meta.problems == []
    *killed, last = resumed.meta.segments
    assert [segment.counters for segment in killed] == [None] * kills and last.counters is not None
    assert resumed.checked == (last.conversations, 24 * 6)


@pytest.mark.long
def test_after_ctrl_c_the_counters_are_what_was_stored_and_what_was_in_flight(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--seeds", "0-5", "--batch", "8")
    obey = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    start = f"{obey}; runpy.run_module('speceval', run_name='__main__')"
    command = [sys.executable, "-c", start, *ZOO, *options, "--out", "run"]
    for lines in (20, 40):
        assert _signal_after(lines, signal.SIGINT, command, tmp_path / "run" / "journal.jsonl") == 130
    resumed = run(tmp_path / "run", *options)
    assert resumed.meta.problems == [] and resumed.checked == (24 * 6, 24 * 6)
    first, second, last = resumed.meta.segments
    for segment in (first, second):
        assert segment.interrupted and segment.unfinished_least is not None and segment.unfinished_most is not None
        in_flight = segment.unfinished_least.num_accepted_tokens
        assert in_flight == segment.unfinished_most.num_accepted_tokens > 0  # to be equal, not merely bounded
    assert not last.interrupted


def _signal_after(lines: int, number: signal.Signals, command: list[str], journal: Path) -> int:
    """Send a running command a signal once so many more conversations are in the journal; returns its exit code."""
    wanted = _lines(journal) + lines
    with subprocess.Popen(
        command, cwd=journal.parent.parent, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while _lines(journal) < wanted and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be stopped"
        process.send_signal(number)
    return process.returncode


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.long
def test_the_target_alone_is_timed_beside_the_drafter(zoo: dict[str, Path], tmp_path: Path) -> None:
    timed = run(tmp_path / "timed", "--limit", "8", "--max-tokens", "8", "--batch", "8", "--speedup")
    timings = timed.meta.speedup.timings
    assert [row.block for row in timings] == list(range(8)) and {row.batch for row in timings} == {1}
    assert all(row.alone_seconds > 0 and row.drafted_seconds > 0 for row in timings)
    assert all(1 <= row.alone_tokens <= 8 and 1 <= row.drafted_tokens <= 8 for row in timings)
    shown = speceval("show", str(timed.directory), cwd=tmp_path)
    assert "speed-up, batch 1" in shown.stdout
