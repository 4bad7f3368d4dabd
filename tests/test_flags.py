"""The flags of the commands that measure are the fields of the request, and choices are what the registries hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from speceval import cli, protocol
from speceval.commands import options
from speceval.protocol import Flag, RunSpec, flag
from speceval.show import export as exports
from speceval.show import layouts, listings, plots, render

SHARED = {
    "--runner",
    *("--target", "--draft", "--k", "--temp", "--engine-arg", "--trust-remote-code", "--no-trust-remote-code"),
    *("--batch", "--out", "--json", "--help"),
}
ENGINE = {
    *("--top-p", "--top-k", "--drafting", "--draft-truncation", "--no-draft-truncation", "--rejection"),
    *("--prefix-caching", "--no-prefix-caching", "--method", "--draft-arg"),
}
FLAGS = {
    "run": SHARED
    | ENGINE
    | {
        *("--suite", "--limit", "--shuffle-seed", "--max-tokens", "--seeds", "--until", "--against", "--replay"),
        *("--record", "--no-record", "--template-arg", "--speedup", "--no-speedup", "--speedup-batch", "--data-dir"),
        "--engine",
        *("--stratified", "--no-stratified", "--shard"),
        *("--url", "--api-key-env"),
    },
    "verify": SHARED
    | ENGINE
    | {
        *("--samples", "--n-tokens", "--prompt", "--seeded", "--no-seeded", "--greedy-share", "--reference", "--bias"),
        *("--kernels", "--no-kernels", "--vllm"),
    },
    "selftest": SHARED | {"--rates", "--tau", "--steps", "--samples", "--runs"},
}


OLD_FORMS = (Path(__file__).resolve().parents[1] / "docs" / "start" / "old-forms.md").read_text()


def help_of(*command: str) -> str:
    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def complaint(*arguments: str) -> str:
    """The one line on stderr of a command that exits with 4."""
    done = subprocess.run([sys.executable, "-m", "speceval", *arguments], capture_output=True, text=True)
    assert done.returncode == cli.EXIT_BAD_INPUT and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.stderr


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_has_the_flags_that_users_know(command: str) -> None:
    options = help_of(command).partition("Options:")[2]
    assert set(re.findall(r"^\s+(?:-\w, )?(--[a-z-]+)|/ (--no-[a-z-]+)", options, re.M)) == {
        ("", name) if name.startswith("--no-") else (name, "") for name in FLAGS[command]
    }


def test_every_field_of_the_request_has_a_flag_of_run_with_its_description() -> None:
    told = " ".join(help_of("run").split())
    for name, field in RunSpec.model_fields.items():
        assert f"{flag(name).name} " in told, name
        assert field.description and field.description in told, name


def test_a_new_field_is_a_flag_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(RunSpec):
        warm_up: Annotated[tuple[int, ...], Flag("--warm", "numbers", "1")] = Field(default=(1,), description="New.")
        dry: bool = Field(default=False, description="Newer.")

    monkeypatch.setattr(protocol, "RunSpec", More)
    seen: dict[str, Any] = {}

    @options.of_spec("warm_up", "dry", "temperature", temperature=0.5)
    def command(request: dict[str, Any], mine: int = 3) -> None:
        seen.update(request, mine=mine)

    built = options.build("command", command)
    built([], standalone_mode=False)
    assert seen == {"warm_up": (1,), "dry": False, "temperature": 0.5, "mine": 3}
    built(["--warm", "2,5-6", "--dry", "--temp", "1", "--mine", "4"], standalone_mode=False)
    assert seen == {"warm_up": (2, 5, 6), "dry": True, "temperature": 1.0, "mine": 4}


@pytest.mark.parametrize(
    ("command", "old"), [(name, old) for name in options.OLD_FLAGS for old in options.OLD_FLAGS[name]]
)
def test_an_old_flag_works_and_names_the_new_one(command: str, old: str, capsys: pytest.CaptureFixture[str]) -> None:
    new = options.OLD_FLAGS[command][old]
    needed = ["--target", "zoo", "--draft", "ngram", "--temp", "1"] if command == "run" else ["published"]
    value = [] if new.endswith("speedup") else ["7"]

    def values(*words: str) -> dict[str, Any]:
        return dict(options.build(command, cli.COMMANDS[command]).make_context(command, [*needed, *words]).params)

    renamed = values(new, *value)
    assert capsys.readouterr().err == ""
    assert renamed != values() if value else renamed["speedup"] is not old.startswith("--no-")
    assert values(old, *value) == renamed
    assert capsys.readouterr().err == f"warning: {old} is now called {new}; the old name goes in 0.3.0\n"
    if value:
        assert values(f"{old}=7") == renamed
    assert re.search(rf"^\| .*`(?:{command} )?{old}`.*{new}`", OLD_FORMS, re.M), "docs/start/old-forms.md lists it"
    assert f"{old} " not in help_of(command)


def test_the_page_of_old_forms_lists_what_the_commands_read() -> None:
    rows = re.findall(r"^\| \d[\d.]+ \| (.*?) \|", OLD_FORMS, re.M)
    listed = [
        (words[0], flag) for row in rows for words in [row.strip("`").split()] for flag in re.findall(r"--[\w-]+", row)
    ]
    assert listed == [(command, old) for command, flags in options.OLD_FLAGS.items() for old in flags] != []


@pytest.mark.parametrize("rejection", ["synthetic", "fly"])
def test_a_method_that_is_refused_is_not_offered_and_says_why(rejection: str) -> None:
    for command in ("run", "verify"):
        assert "<standard|block>" in help_of(command) and rejection not in help_of(command)
        line = complaint(command, "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--rejection", rejection)
        assert f"--rejection {rejection}: " in line and "loss" in line


@pytest.mark.parametrize("value", ["odd", "deterministic"])
@pytest.mark.parametrize(
    ("name", "offered"), [("--rejection", "'standard', 'block'"), ("--drafting", "'probabilistic', 'greedy'")]
)
def test_what_nobody_offers_is_answered_with_what_is_offered(name: str, offered: str, value: str) -> None:
    line = complaint("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", name, value)
    assert f"{name}" in line and f"'{value}' is not one of {offered}" in line


REGISTRIES = [
    ("table", "--layout", layouts, "LAYOUTS", ["RUN"]),
    ("table", "--format", render, "FORMATS", ["RUN"]),
    ("export", "--as", exports, "FORMATS", ["RUN"]),
    ("plot", "--kind", plots, "OF_RUNS", []),
    ("ls", "", listings, "LISTINGS", []),
]


@pytest.mark.parametrize(("command", "name", "module", "registry", "more"), REGISTRIES)
def test_a_choice_is_what_the_registry_holds(
    command: str, name: str, module: Any, registry: str, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = getattr(module, registry)
    assert ("|" if name else ", ").join(held) in " ".join(help_of(command).split())
    monkeypatch.setattr(module, registry, {**held, "added": lambda *_: "text"})
    assert ("|added>" if name else ", added.") in help_of(command)
    line = complaint(command, *more, *([name] if name else []), "odd")
    assert "'odd' is not one of " in line and all(f"'{one}'" in line for one in held)


def test_the_list_of_commands_imports_neither_the_request_nor_a_registry() -> None:
    code = """
import sys
from typer.testing import CliRunner
from speceval import cli
assert "Measure a drafter" in CliRunner().invoke(cli.app, ["--help"]).output
ours = {name for name in sys.modules if name.startswith("speceval.") and not name.startswith("speceval.commands")}
print(sorted(ours), "pydantic" in sys.modules, "pandas" in sys.modules)
"""
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed == "['speceval.cli', 'speceval.errors', 'speceval.private', 'speceval.terminal'] False False\n"


def test_a_flag_that_another_one_leaves_without_a_meaning_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    assert "--temp: has no meaning with --kernels" in complaint("verify", "--kernels", "--temp", "1")
    assert "--json: has no meaning with --kernels" in complaint("verify", "--kernels", "--json")
