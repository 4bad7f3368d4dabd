"""Every command that README and docs show is understood; those that a simulated engine is enough for run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from speceval import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PLACES = {
    "results/*/": "results/A",
    "RUN": "results/A",
    "OTHER": "results/B",
    "results/RUN": "results/A",
    "results/OTHER": "results/B",
}
"""What the docs call any run."""
ANY = "--target zoo --draft lk-eagle3 --temp 1"
"""What the docs leave out as "…"."""


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's code, those that a backslash continues as one."""
    fenced = False
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ ")


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `speceval` that a page shows, without remarks, redirections and what is optional."""
    for line in lines(page):
        if not line.startswith("speceval "):
            continue
        words = re.split(r"  +| #| [>|] ", line)[0].removeprefix("speceval ")
        words = words.replace("run …", f"run {ANY}").replace("--target … --draft …", ANY)
        words = re.sub(r"(RUN|\.html|\*/)(…|\.\.\.)", r"\1", words.replace("[", "").replace("]", ""))
        yield [PLACES.get(word.partition("|")[0], word.partition("|")[0]) for word in shlex.split(words)]


EACH = {tuple(arguments): page.name for page in PAGES for arguments in commands(page) if arguments[0] in cli.COMMANDS}
SHOWN = [pytest.param([*words], id=f"{name}: {' '.join(words)[:70]}") for words, name in EACH.items()]
NEED_AN_ENGINE = (
    "verify",
    "selftest",
    "tune",
    "sweep",
    "demo",
    "merge",
    "capture",
    "replay",
    "serve",
    "probe",
    "watch",
)
"""Commands that a simulated engine cannot stand in for, or that need what a page made before; they are parsed alone."""


@pytest.mark.parametrize("arguments", SHOWN)
def test_every_command_that_the_docs_show_is_understood(arguments: list[str]) -> None:
    """Its options exist and take these values."""
    command = cli.Commands(name="speceval").get_command(None, arguments[0])
    with command.make_context(arguments[0], arguments[1:]):
        pass


def test_commands_are_found_and_a_wrong_one_is_not_understood() -> None:
    assert len(SHOWN) > 60
    command = cli.Commands(name="speceval").get_command(None, "run")
    with pytest.raises(cli.UsageError):
        command.make_context("run", ["--no-such-option"])


def call(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["speceval", *arguments])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the stored results, and two runs of a simulated engine called A and B."""
    place = tmp_path_factory.mktemp("docs")
    (place / "results").mkdir()
    for name in ("reference", "published"):
        (place / "results" / name).symlink_to(ROOT / "results" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, drafter in (("A", "kl-eagle3"), ("B", "lk-eagle3"), ("kl", "kl-eagle3")):
            asked = f"run --target zoo --draft {drafter} --temp 1 --engine simulated --seeds 0-1 --out results/{name}"
            assert call(patch, asked.split()) == 0
        assert call(patch, ["baseline", "results/A", "-o", "baseline.json"]) == 0
    return place


def runnable(arguments: list[str]) -> bool:
    """Whether it needs no engine of its own, no server, no hub and nothing that a page made before."""
    text = " ".join(arguments)
    if arguments[0] == "run":
        others = (
            "--suite mine",
            "--url",
            "--engine",
            "--against",
            "--shard",
            "--replay baseline",
            "--runner",
            "--ray",
            "-server",
        )
        return "--target zoo" in text and not any(other in text for other in others)
    others = ("results/losses", "results/mine", "results/whole", "baseline.json.gz", "-replay", " FIELD", "plot", "ls")
    return arguments[0] not in NEED_AN_ENGINE and not any(other in text for other in others)


@pytest.mark.parametrize("arguments", [shown for shown in SHOWN if runnable(shown.values[0])])
def test_what_needs_no_engine_of_its_own_runs(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """0, or the verdict that the command is there to give: fail, inconclusive."""
    monkeypatch.chdir(place)
    if arguments[0] == "run":
        arguments = [*arguments, "--engine", "simulated", *([] if "--replay" in arguments else ["--seeds", "0-1"])]
    code = call(monkeypatch, arguments)
    assert code == 0 or (code in (1, 2) and arguments[0] == "check"), capfd.readouterr().err
