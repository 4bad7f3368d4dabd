"""`speceval.tune` and `speceval tune`, on an engine of known acceptance."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import speceval
from speceval import UserError
from speceval.cli import app
from speceval.estimate.statistics import ratio_interval
from speceval.estimate.tuning import Measured, Setting
from speceval.measure import tune as bursting
from speceval.measure.beside import Beside
from speceval.measure.job import prepare
from speceval.measure.output import output_to

pytestmark = pytest.mark.slow


ASKED: dict[str, Any] = {"engine": "simulated", "max_tokens": 8, "confirm": False, "bursts": 3, "answers": 24}


def test_every_drafter_k_and_batch_is_told_beside_the_target_alone(tmp_path: Path) -> None:
    tuned = speceval.tune(
        "zoo", ["kl-eagle3", "lk-eagle3"], batches=(1, 2), ks=(1, 3), out=tmp_path, plot=tmp_path / "h.png", **ASKED
    )
    told = {(rate.setting.draft, rate.setting.k, rate.batch) for rate in tuned.rates}
    drafted = {(draft, k, batch) for draft in ("kl-eagle3", "lk-eagle3") for k in (1, 3) for batch in (1, 2)}
    assert told == drafted | {("none", 0, 1), ("none", 0, 2)}
    stored = json.loads((tmp_path / "tune.json").read_text())
    assert stored == tuned.as_json() and (tmp_path / "h.png").stat().st_size > 1000
    assert tuned.best(2).batch == 2
    with pytest.raises(UserError, match="batch 3: was not tried"):
        tuned.best(3)


def test_without_ks_each_drafter_goes_as_far_as_it_can(tmp_path: Path) -> None:
    tuned = speceval.tune("zoo", ["kl-eagle3"], batches=(1,), out=tmp_path, **ASKED)
    assert [rate.setting.k for rate in tuned.rates] == [*range(1, 9), 0]


def test_of_several_k_each_drafter_takes_those_that_it_can(tmp_path: Path) -> None:
    tuned = speceval.tune("zoo", ["kl-medusa", "kl-eagle3"], batches=(1,), ks=(6, 7), out=tmp_path, **ASKED)
    settings = {(rate.setting.draft, rate.setting.k) for rate in tuned.rates if rate.setting.k}
    assert settings == {("kl-medusa", 6), ("kl-eagle3", 6), ("kl-eagle3", 7)}
    for ks, says in (((7,), "kl-medusa' drafts at most K=6"), ((0, 6), "K must be at least 1")):
        with pytest.raises(speceval.UserError, match=says):
            speceval.tune("zoo", ["kl-medusa", "kl-eagle3"], batches=(1,), ks=ks, out=tmp_path, **ASKED)


def measured(draft: str, ks: tuple[int, ...], out: Path, **asked: Any) -> Measured:
    jobs = {
        Setting(draft, k): prepare(
            target="zoo", draft=draft, k=k, temperature=1, suite_names=["demo"], engine="simulated", out=out, batch=2
        )
        for k in ks
    }
    return bursting.measure(jobs, (2,), 3, 48, output_to, **asked)


def test_one_replay_at_the_largest_k_tells_acceptance_at_every_k(tmp_path: Path) -> None:
    """Each draft is accepted with 0.7 once the one before is. The texts' own noise is within four standard errors."""
    found = measured("kl-eagle3", (1, 2, 4), tmp_path)
    assert found.sources["kl-eagle3"]["how"] == "one replay at K=4"
    for setting, tried in found.tried.items():
        table = tried.accepted
        tau = ratio_interval(table["tokens"] - table["turns"], table["steps"])
        inside = sum(0.7**j for j in range(setting.k + 1))
        ends = 1 - setting.k / 2 / (table["tokens"].sum() / table["turns"].sum())  # a step past the end is cut
        assert tau.value is not None and tau.se is not None
        assert abs(tau.value - inside * ends) < 4 * tau.se + 0.05
    fewer = [tried.accepted["steps"].sum() for tried in found.tried.values()]
    assert fewer == sorted(fewer, reverse=True)
    one_run = measured("kl-eagle3", (1,), tmp_path)
    assert one_run.sources["kl-eagle3"]["how"] == "a run for each K"
    tokens = {found.sources["kl-eagle3"]["tokens"], one_run.sources["kl-eagle3"]["tokens"]}
    assert max(tokens) < 1.5 * min(tokens)  # of three K, and of one


def test_a_drafter_whose_drafts_know_k_and_an_engine_that_cannot_replay_get_a_run_for_each_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ngram = measured("ngram", (1, 2), tmp_path)
    assert ngram.sources["ngram"]["how"] == "a run for each K"
    assert all(len(tried.accepted) == 24 for tried in ngram.tried.values())

    def cannot(*_: Any) -> Any:
        raise UserError("no replay here")

    monkeypatch.setattr(bursting, "replayed", cannot)
    eagle = measured("kl-eagle3", (1, 2), tmp_path)
    assert "no replay here" in eagle.sources["kl-eagle3"]["how"]
    assert all(len(tried.accepted) == 24 for tried in eagle.tried.values())


@pytest.mark.parametrize("beside", [True, False])
def test_the_target_alone_is_timed_beside_each_engine_or_before_and_after_all(tmp_path: Path, beside: bool) -> None:
    found = measured("kl-eagle3", (1, 2), tmp_path, beside=beside)
    bursts = [burst for tried in found.tried.values() for burst in tried.bursts[2]]
    assert len(bursts) == 6 and all((burst.alone_seconds is not None) == beside for burst in bursts)
    assert all(burst.steps == 2 * bursting.BURST for burst in bursts)  # a full batch
    assert len(found.alone.get(2, [])) == (0 if beside else 2)


def test_the_engine_of_the_target_alone_says_in_one_line_what_ails_it(tmp_path: Path) -> None:
    job = prepare(
        target="zoo", draft="kl-eagle3", k=1, temperature=1, suite_names=["demo"], out=tmp_path, engine="simulated",
        engine_args={"end": 3},
    )  # fmt: skip
    with pytest.raises(UserError, match="end: 3 is no chance"):
        Beside(job, tmp_path / "log")
    with pytest.raises(UserError, match="end: 3 is no chance"):
        bursting.measure({Setting("kl-eagle3", 1): job}, (1,), 3, 8, output_to)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]  # what was refused leaves no logs of its own
    alone = Beside(replace(job, spec=job.spec.model_copy(update={"engine_args": {}})), tmp_path / "log")
    alone._process.kill()
    with pytest.raises(UserError, match=r"the engine of the target alone has ended, .*log says why") as ended:
        alone.steps(1)
    assert ended.value.__cause__ is not None  # so that the log stays
    alone.close()


BUSY = """
from pathlib import Path
from speceval.measure.beside import Beside
from speceval.measure.job import prepare
asked = dict(target="zoo", draft="kl-eagle3", k=1, temperature=1, suite_names=["demo"], engine="simulated")
alone = Beside(prepare(out=Path({out!r}), **asked), Path({out!r}, "log"))
print(alone._process.pid, flush=True)
alone.answers(100_000)
"""


def test_a_killed_command_leaves_no_engine_of_the_target_alone_behind(tmp_path: Path) -> None:
    """It is in the middle of something that takes minutes."""
    command = [sys.executable, "-c", BUSY.format(out=str(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        child = int(killed.stdout.readline())
        time.sleep(0.5)
        killed.kill()
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--draft", "nobody", "--batch", "1"), "unknown drafter 'nobody'"),
        (("--draft", "kl-eagle3", "--batch", "0"), "--batch: batch sizes are whole numbers from 1"),
        (("--draft", "kl-eagle3", "--batch", "1", "--bursts", "2"), "--bursts 2: at least 3 of each"),
        (("--draft", "kl-eagle3", "--batch", "x"), "--batch x: not a list of whole numbers"),
        (("--draft", "kl-eagle3", "--batch", "1", "--answers", "1"), "--answers 1: at least 2"),
        (("--draft", "kl-eagle3", "--batch", "1", "--answers", "999999999"), "at most 100,000"),
        (("--draft", "kl-eagle3", "--batch", "1", "--plot", "x.gif"), "x.gif: figures are written as .png or .pdf"),
        (("--draft", "kl-eagle3", "--batch", "1", "--engine", "server"), "--engine server: engines are started and"),
        (("--draft", ",", "--batch", "1"), "--draft ,: holds no name"),
        (("--draft", "kl-medusa", "--batch", "1", "--k", "0"), "K must be at least 1"),
        (
            ("--draft", "kl-eagle3", "--batch", "1", "--answers", "2", "--runner", "v2"),
            "runner to 'simulated', asked for",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    command = ["tune", "--target", "zoo", "--engine", "simulated", "--out", str(tmp_path / "out"), *arguments]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("where", ["speceval.measure.tune.measure", "speceval.api.tuning._confirm"])
def test_ctrl_c_is_answered_with_what_the_same_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    command = ["tune", "--target", "zoo", "--engine", "simulated", "--draft", "kl-eagle3", "--batch", "1", "--k", "2"]
    command += ["--max-tokens", "8", "--bursts", "3", "--answers", "8", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130 and not (tmp_path / "tune.json").exists()
    assert done.stderr.splitlines()[-1] == "interrupted: tune keeps no timings; the same command starts again"


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    command = ["tune", "--target", "zoo", "--engine", "simulated", "--draft", "kl-eagle3", "--batch", "1", "--k", "2"]
    command += ["--max-tokens", "8", "--bursts", "3", "--answers", "8", "--no-confirm", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "Tokens per second" in done.stdout and "kl-eagle3" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["schema"] == 1 and len(told["rates"]) == 2
