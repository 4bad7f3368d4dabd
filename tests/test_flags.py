"""The flags of the commands that measure are the fields of the request, and choices are what the registries hold."""

from __future__ import annotations

import os
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
from speceval.commands.help import ALIASES, EXAMPLES, FEW
from speceval.errors import UserError
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
        *("--stratified", "--no-stratified", "--shard", "--rate"),
        *("--url", "--api-key-env", "--dialect", "--through-server"),
        *("--ray", "--replicas", "--gpus-per-replica"),
    },
    "verify": SHARED
    | ENGINE
    | {
        *("--samples", "--n-tokens", "--prompt", "--seeded", "--no-seeded", "--greedy-share", "--reference", "--bias"),
        *("--kernels", "--no-kernels", "--vllm"),
        *("--url", "--api-key-env", "--dialect"),
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
    told = help_of(command).partition("Examples:")[0].partition("What is measured:")[2]
    assert set(re.findall(r"^\s+(?:-\w, )?(--[a-z-]+)|/ (--no-[a-z-]+)", told, re.M)) == {
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
    assert f"  {old} " not in help_of(command)


def test_the_page_of_old_forms_lists_what_the_commands_read() -> None:
    rows = re.findall(r"^\| \d[\d.]+ \| (.*?) \|", OLD_FORMS, re.M)
    listed = [
        (words[0], flag) for row in rows for words in [row.strip("`").split()] for flag in re.findall(r"--[\w-]+", row)
    ]
    assert listed == [(command, old) for command, flags in options.OLD_FLAGS.items() for old in flags] != []


@pytest.mark.parametrize("rejection", ["synthetic", "fly"])
@pytest.mark.slow
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
    beside = bool(name) and len("|".join([*held, "added"])) <= options.LONGEST
    assert ("|" if beside else ",").join(held) in "".join(help_of(command).split())
    monkeypatch.setattr(module, registry, {**held, "added": lambda *_: "text"})
    assert ("|added>" if beside else ", added") in help_of(command)
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
    ground = ["speceval.cli", "speceval.errors", "speceval.private", "speceval.terminal"]
    assert printed == f"{ground} False False\n"


def test_a_flag_that_another_one_leaves_without_a_meaning_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    assert "--temp: has no meaning with --kernels" in complaint("verify", "--kernels", "--temp", "1")
    assert "--json: has no meaning with --kernels" in complaint("verify", "--kernels", "--json")


def parsed(command: str, *words: str) -> dict[str, Any]:
    """What a command makes of its words, before anything is done."""
    return dict(options.build(command, cli.COMMANDS[command]).make_context(command, list(words)).params)


NEEDED = ("--target", "zoo", "--draft", "ngram", "--temp", "1")
MEANT: dict[str, tuple[str, str, str]] = {
    "--temperature": ("run", "--temp", "0.5"),
    "--num-speculative-tokens": ("run", "--k", "3"),
    "--num_speculative_tokens": ("run", "--k", "3"),
    "--model": ("run", "--target", "x"),
    "--drafter": ("run", "--draft", "x"),
    "--speculative-model": ("run", "--draft", "x"),
    "--tasks": ("run", "--suite", "gsm8k"),
    "--suites": ("run", "--suite", "gsm8k"),
    "--dataset": ("run", "--suite", "gsm8k"),
    "--num-prompts": ("run", "--limit", "7"),
    "--base-url": ("run", "--url", "http://h"),
    "--seed": ("run", "--seeds", "7"),
    "--batch-size": ("run", "--batch", "7"),
    "--max-num-seqs": ("verify", "--batch", "7"),
    "--concurrency": ("run", "--batch", "7"),
    "--output": ("baseline", "--out", "x"),
    "--prompts": ("run", "--suite", "gsm8k"),
    "--request-rate": ("run", "--rate", "3"),
    "--max-concurrency": ("run", "--batch", "7"),
    "--output-path": ("run", "--out", "x"),
    "-o": ("run", "--out", "x"),
    "--max_tokens": ("run", "--max-tokens", "9"),
    "--engine_arg": ("run", "--engine-arg", "a=1"),
}


@pytest.mark.parametrize("other", MEANT)
def test_names_that_other_tools_have_for_a_flag_are_understood(other: str) -> None:
    command, flag_, value = MEANT[other]
    needed = ["RUN", "-o", "y"] if command == "baseline" else NEEDED
    assert parsed(command, *needed, other, value) == parsed(command, *needed, flag_, value) != parsed(command, *needed)
    assert parsed(command, *needed, f"{flag_}={value}") == parsed(command, *needed, flag_, value)


def test_every_other_name_is_tried_above_and_told_by_the_help() -> None:
    assert set(ALIASES) <= set(MEANT)
    told = " ".join(help_of("run").split())
    assert all(f"{alias} = {name}" in told for alias, name in ALIASES.items())


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("--temprature", "--temp?"), ("--drafts", "--draft"), ("--num-spec-tokens", "--k"),
     ("--batchsize", "--batch"), ("--no-recrod", "--no-record")],
)  # fmt: skip
def test_a_flag_that_is_misspelled_is_answered_with_the_one_that_may_be_meant(wrong: str, meant: str) -> None:
    line = complaint("run", *NEEDED, wrong, "1")
    assert f"No such option: {wrong}; did you mean {meant}" in line and "--max-tokens" not in line


def test_an_option_never_takes_the_next_option_for_its_value() -> None:
    for name, function in cli.COMMANDS.items():
        command: Any = options.build(name, function)
        for flag_ in (flag_ for option in command.params if options.takes_value(option) for flag_ in option.opts):
            for following in ("--help", "--replcas=2", ""):
                with pytest.raises(UserError) as refused:
                    command.make_context(name, [flag_, *filter(None, [following])])
                what = f"{following} is another option" if following else "nothing follows"
                assert str(refused.value).startswith(f"{flag_}: its value is missing, {what}; "), name
                assert flag_ in str(refused.value).partition("; ")[2]
    assert "its value is missing" in complaint("sweep", "f.yaml", "--ray", "--replicas", "2")
    assert parsed("run", *NEEDED, "--engine-arg=--odd")["engine_args"] == ["--odd"]
    assert parsed("run", *NEEDED[:-1], "-1")["temperature"] == -1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("sweep", "f.yaml", "2"), "unexpected '2': `sweep` takes FILE and options"),
        (("serve", "zoo", "x"), "unexpected 'zoo', 'x': `serve` takes options alone: --target zoo?"),
        (("run", *NEEDED, "--record", "yes"), "unexpected 'yes': --record takes no value"),
        (
            ("run", *NEEDED, "--suite", "a", "b"),
            "unexpected 'b': --suite takes one value; --suite <str>: Suites, comma-",
        ),
        (("ls",), "WHAT is missing: What to list: targets, "),
        (("check", "RUN"), "--baseline is missing: Run, or file of "),
        (("run", *NEEDED, "-tp", "2"), "No such option: -tp"),
        (("run", *NEEDED, "--TEMP", "2"), "No such option: --TEMP; did you mean --temp?"),
    ],
)
def test_what_is_too_much_or_missing_is_named(words: tuple[str, ...], line: str) -> None:
    with pytest.raises((UserError, cli.UsageError)) as refused:
        parsed(*words)
    assert line in getattr(refused.value, "format_message", refused.value.__str__)()


def test_a_shell_may_complete_a_line_that_is_half_typed() -> None:
    code = "import sys; from speceval import cli; sys.argv = ['speceval']; cli.main()"
    asked = {"_SPECEVAL_COMPLETE": "complete_bash", "COMP_WORDS": "speceval table x --layout ", "COMP_CWORD": "4"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == list(layouts.LAYOUTS) and not done.stderr


def test_a_url_is_no_path() -> None:
    for words in (
        ("run", *NEEDED, "--out", "s3://b/x"),
        ("ls", "runs", "--root=gs://b"),
        ("run", *NEEDED, "-o", "file:///x"),
    ):
        with pytest.raises(UserError, match="a URL, where a path on this machine is to be"):
            parsed(*words)
    assert parsed("run", *NEEDED, "--url", "http://h")["url"] == "http://h"


def test_a_value_that_a_later_one_replaces_is_named_unless_the_command_is_refused(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli.app, ["ls", "runs", "--root", "a", "--root", str(tmp_path), "--json"])
    assert listed.exit_code == 0 and listed.stderr == f"warning: --root {tmp_path} took the place of a\n"
    assert "warning" not in complaint("show", "a", "--json")
    assert "warning" not in complaint("ls", "runs", "--root", "a", "--root", __file__)
    assert "warning" not in CliRunner().invoke(cli.app, ["ls", "suites", "--root", "a", "--root", "a"]).stderr


@pytest.mark.parametrize("flag_", ["--tensor-parallel-size", "--enforce-eager", "--reasoning-parser"])
def test_an_argument_of_vllms_engine_is_answered_with_the_way_to_give_it(flag_: str) -> None:
    pytest.importorskip("vllm")
    name = flag_[2:].replace("-", "_")
    assert f"No such option: {flag_}; it is one of vLLM's: --engine-arg {name}=VALUE" in complaint(
        "run", *NEEDED, flag_
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_every_command_has_examples_that_parse_and_fits_80_columns(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "-h"], env={"COLUMNS": "80"})
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) <= 80
    assert EXAMPLES[command]
    for line in EXAMPLES[command]:
        assert f"  {line}\n" in result.output
        _, name, *words = line.split()
        assert name == command
        parsed(command, *words)


def test_help_fits_a_terminal_of_forty_columns_but_for_names_and_lines_to_copy() -> None:
    result = CliRunner().invoke(cli.app, ["show", "-h"], env={"COLUMNS": "40"})
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) < 40
    text = CliRunner().invoke(cli.app, ["run", "-h"], env={"COLUMNS": "40"}).output
    assert all(len(line) < 40 or line.lstrip().startswith(("--", "speceval ")) for line in text.splitlines())


def test_every_option_of_a_command_with_many_is_in_a_section() -> None:
    for name, function in cli.COMMANDS.items():
        command = options.build(name, function)
        if len(command.params) > FEW:
            assert [p.name for p in command.params if options.group(p.name) == "Options"] == [], name
