"""What `speceval verify` says and returns, without an engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support.pairs import write_pair
from support.simulated import Chain, plan, simulate

from speceval import cli
from speceval.errors import UserError
from speceval.exactness import EXIT_CODES, Report, Verdict, command, run
from speceval.exactness.checks import TOKENS, VERIFIED, exact_checks
from speceval.exactness.command import teller, write
from speceval.exactness.run import Settings, cost
from speceval.exactness.verdict import tables
from speceval.measure.job import prepare
from speceval.measure.output import output_to
from speceval.measure.starting import OneLine
from speceval.store.schema import OUTPUTS

SETTINGS = {"target": "t", "draft": "d", "temperature": 0.7, "samples": 2000, "tokens": 6}
ENGINE = {"method": "eagle3", "k": 3, "vllm": "0.32.0", "runner": "V1", "device": "cpu"}


def report(bias: float, fault: str = "") -> Report:
    asked = plan(2000, temperature=0.7)
    checks = exact_checks(asked, simulate(asked, 3, 1, fault), Chain(), 3, 1e-9)  # type: ignore[arg-type]
    return Report(
        SETTINGS, ENGINE, ["cpu-expand: not active"], "exact probabilities", checks, 1e-9, bias, {"padded": 2}
    )


def test_the_verdict_follows_from_the_tests_and_from_the_bias_they_could_see() -> None:
    assert report(bias=0.1).verdict is Verdict.exact
    assert report(bias=0.001).verdict is Verdict.unsettled
    assert report(bias=0.1, fault="no temperature").verdict is Verdict.biased
    assert [EXIT_CODES[v] for v in (Verdict.exact, Verdict.biased, Verdict.unsettled)] == [0, 1, 2]


def test_not_enough_samples_names_the_number_that_would_be() -> None:
    """As many times the samples as the square of the bias that must be seen, with a little room."""
    short = report(bias=0.02)
    needed = int(short.line().rsplit(" ", 1)[1])
    assert 1.0 < needed / (2000 * (short.smallest_bias / 0.02) ** 2) < 1.2


def test_a_bias_over_groups_of_tokens_is_called_that() -> None:
    """What is seen from then is a distance between laws over groups, which may be less than that over tokens."""
    found = report(bias=0.1)
    assert "groups" not in found.line()
    folded = [replace(c, groups=64) if c.where == VERIFIED and c.kind == TOKENS else c for c in found.checks]
    assert (
        "in total variation over 64 random groups of tokens would have been seen"
        in replace(found, checks=folded).line()
    )
    assert "over 64 random groups of tokens would have gone" in replace(found, checks=folded, bias=0.001).line()


def test_size_and_best_sight_are_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    job = prepare(target="zoo", draft="lk-eagle3", temperature=1.0, suite_names=["demo"], k=5)
    assert cost(job, Settings(samples=300)).startswith(
        "300 continuations of up to 9 tokens of 3 prompts (2,700 tokens, "
    )
    alone = cost(job, Settings(reference="two-sample"))
    assert "60,000 continuations" in alone and "as many by the target alone first" in alone
    assert "sees a bias from 0.011 at best (--bias 0.02)" in alone
    teller(OneLine(Console(file=sys.stdout, force_terminal=False)))("300 continuations", 0, 0)
    assert capsys.readouterr().out == "verify: 300 continuations\n"


def test_the_tables_show_every_test_the_missing_patches_and_the_verdict() -> None:
    found = report(bias=0.1)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(tables(found))
    shown = console.export_text()
    assert "patch missing: cpu-expand: not active" in shown and "padded: 2" in shown and "exact: none of" in shown
    assert all(check.where in shown for check in found.checks)


def test_the_file_is_the_report_as_json(tmp_path: Path) -> None:
    import json

    write(report(bias=0.1), tmp_path)
    stored = json.loads((tmp_path / "verify.json").read_text())
    assert stored["schema"] == OUTPUTS["verify"]
    assert stored["verdict"] == "exact" and stored["tests"] == len([c for c in stored["checks"] if "p" in c])
    assert [path.name for path in tmp_path.iterdir()] == ["verify.json"]


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell = teller(OneLine(Console(file=sys.stdout, force_terminal=False)))
    for done in (0, 50, 100):
        tell("drawing", done, 100)
    assert capsys.readouterr().out.splitlines() == [
        "verify: drawing 0/100 continuations",
        "verify: drawing 100/100 continuations",
    ]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--temp", "0"], "--temp 0: greedy decoding samples nothing"),
        (["--samples", "10"], "--samples 10: at least 100 for 3 prompts"),
        (["--samples", "130", *["--prompt", "3 7"] * 7], "--samples 130: at least 140 for 7 prompts"),
        (["--n-tokens", "1"], "--n-tokens 1: at least 2"),
        (["--greedy-share", "1"], "--greedy-share 1: from 0"),
        (["--greedy-share", "0.5", "--reference", "two-sample"], "--greedy-share: greedy requests"),
        (["--bias", "0"], "--bias 0: between 0 and 1"),
        (["--prompt", ""], "--prompt: empty"),
        (["--k", "0"], "K must be at least 1"),
        (["--vllm", "x.whl"], "--vllm: goes with --kernels"),
        (["--target", ""], "--target: empty: is a variable not set"),
        (["--kernels"], "--target: has no meaning with --kernels"),
        (["--rejection", "fly"], "--rejection fly: is not lossless"),
        (["--rejection", "synthetic"], "not lossless, nothing to measure"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_4(
    options: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target, draft = write_pair(tmp_path, "eagle3")
    arguments = ["speceval", "verify", "--target", target, "--draft", draft, "--k", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == cli.EXIT_BAD_INPUT
    assert len(error) == 1 and part in error[0]
    assert not (tmp_path / "out").exists()


def test_a_refused_verify_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("no")

    monkeypatch.setattr(run, "cost", lambda *_: "")
    monkeypatch.setattr(run, "_mode", refuse)  # the first that is asked once the log is open
    job = prepare(target="zoo", draft="lk-eagle3", temperature=1, suite_names=["demo"], k=3, engine="simulated")
    with pytest.raises(UserError, match="no"):
        run.verify(job, Settings(samples=1000), tmp_path / "out", lambda *_: None, output_to)
    assert list(tmp_path.iterdir()) == []


def test_a_verify_that_is_interrupted_says_what_the_same_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "verify", interrupt)
    asked = {"target": "zoo", "draft": "lk-eagle3", "temperature": 1.0, "k": 3, "engine": "simulated"}
    with pytest.raises(KeyboardInterrupt):
        command.execute(Settings(samples=1000), tmp_path / "out", True, **asked)
    assert "interrupted: verify keeps no samples; the same command starts again" in capfd.readouterr().err
