"""The command line. Imports nothing heavy at start: `speceval --help` answers at once."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from speceval import __version__, terminal
from speceval.commands.capture import capture, replay
from speceval.commands.check import baseline, check
from speceval.commands.compare import compare
from speceval.commands.explain import explain
from speceval.commands.export import export
from speceval.commands.merge import merge
from speceval.commands.options import build, narrow
from speceval.commands.plot import plot
from speceval.commands.probe import probe
from speceval.commands.report import report
from speceval.commands.run import run
from speceval.commands.selftest import selftest
from speceval.commands.serve import serve
from speceval.commands.stored import list_, show
from speceval.commands.sweep import demo, sweep
from speceval.commands.table import table
from speceval.commands.tune import tune
from speceval.commands.validate import validate
from speceval.commands.verify import verify
from speceval.commands.watch import watch
from speceval.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NOT_COMPARABLE,
    EXIT_OWN_FAULT,
    EXIT_TERMINATED,
    NotComparable,
    UserError,
)
from speceval.private import masked

COME_WITH_VLLM = ("torch", "transformers", "vllm")
"""Packages that a plain installation lacks: commands that read stored runs do without."""

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""Every complaint of the option parser; typer names no public class for it."""

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "sweep": sweep,
    "merge": merge,
    "capture": capture,
    "replay": replay,
    "tune": tune,
    "verify": verify,
    "selftest": selftest,
    "serve": serve,
    "probe": probe,
    "watch": watch,
    "show": show,
    "validate": validate,
    "compare": compare,
    "table": table,
    "check": check,
    "baseline": baseline,
    "demo": demo,
    "explain": explain,
    "plot": plot,
    "report": report,
    "export": export,
    "ls": list_,
}


class Commands(TyperGroup):
    """The commands, each built when it is used: their list needs the first lines of their docstrings alone."""

    def __init__(self, **attributes: Any) -> None:
        heads = {name: TyperCommand(name, help=inspect.getdoc(function)) for name, function in COMMANDS.items()}
        super().__init__(**attributes | {"commands": heads})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, None if there is none."""
        return build(cmd_name, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        narrow(formatter)
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        width = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl([(name, head.get_short_help_str(width)) for name, head in self.commands.items()])


app = typer.Typer(
    cls=Commands,
    help="Measure how many draft tokens a target model accepts in vLLM's speculative decoding.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"speceval {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point: bad input and broken files become one line and an exit code."""
    sys.stdout = terminal.Harmless(stdout := sys.stdout)
    try:
        _refuse_empty(sys.argv[1:])
        code = app(sys.argv[1:] or ["--help"], prog_name="speceval", standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except NotComparable as error:
        _exit(EXIT_NOT_COMPARABLE, f"error: {error}")
    except UserError as error:
        _exit(EXIT_BAD_INPUT, f"error: {error}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in COME_WITH_VLLM:
            _own_fault()
        from speceval import engines

        mend = engines.find("vllm").installation
        _exit(EXIT_BAD_INPUT, f"error: {error.name} is not installed, it comes with vLLM: {mend}")
    except (typer.Abort, KeyboardInterrupt):
        from speceval.interrupts import exit_code

        _exit(exit_code())
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _exit(EXIT_BAD_INPUT, f"error: cannot read or write{place}: {error.strerror or error}")
    except UsageError as error:
        _exit(EXIT_BAD_INPUT, f"error: {error.format_message()}")
    except Exception:
        _own_fault()
    finally:
        sys.stdout = stdout


def process() -> None:
    """Entry point of a process: `main`, and SIGTERM is obeyed like Ctrl-C; nothing that hangs keeps it from ending."""
    from speceval import interrupts

    interrupts.install()
    try:
        main()
    except SystemExit as end:
        if end.code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            interrupts.leave(end.code)
        raise


def _refuse_empty(arguments: list[str]) -> None:
    """Nothing takes an empty text, and as a path it would mean the working directory: a variable that was not set."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.strip() or re.fullmatch(r"--[\w-]+=\s*", argument):
            name = argument.partition("=")[0] or (before if before.startswith("-") else "an argument")
            raise UserError(f"{name.strip() or 'an argument'}: empty: is a variable not set?")


def _own_fault() -> None:
    """The exception that nobody expected, as text that no terminal obeys, without secrets."""
    terminal.Harmless(sys.stderr).write(masked(traceback.format_exc()))
    _exit(EXIT_OWN_FAULT, "error: a fault of speceval's own: please report it with the lines above")


def _exit(code: int, line: str = "") -> None:
    if line:
        terminal.say(line)
    # A stdout that cannot be written would raise again at shutdown.
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    sys.exit(code)


if __name__ == "__main__":
    process()
