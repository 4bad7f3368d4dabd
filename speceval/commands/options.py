"""Options that several commands share, and how their values are read and printed. Imports nothing heavy."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval import terminal
from speceval.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


class DraftingChoice(StrEnum):
    """Ways to draw draft tokens that a user can ask for."""

    probabilistic = "probabilistic"
    greedy = "greedy"


class RejectionChoice(StrEnum):
    """vLLM's ways to verify drafts."""

    standard = "standard"
    block = "block"
    synthetic = "synthetic"
    fly = "fly"


TargetName = Annotated[str, typer.Option(help="Catalog name, hub id or directory of the target.")]
DraftName = Annotated[str, typer.Option(help="Catalog name, hub id or directory of the drafter; ngram, suffix.")]
Temperature = Annotated[float, typer.Option(help="Temperature of the target, and of sampled drafts.")]
K = Annotated[int | None, typer.Option(help="Draft tokens of a step [default: the drafter's own].")]
TopP = Annotated[float, typer.Option(help="Nucleus of the target; 1 is off.")]
TopK = Annotated[int, typer.Option(help="Top-k of the target; 0 is off.")]
Drafting = Annotated[
    DraftingChoice | None, typer.Option(help="[default: probabilistic at temperatures above 0, else greedy]")
]
DraftTruncation = Annotated[bool, typer.Option(help="Truncate q by top-k and top-p as p is.")]
Rejection = Annotated[
    RejectionChoice, typer.Option(help="Verify by standard or block; synthetic and fly are not lossless: refused.")
]
Batch = Annotated[int, typer.Option(help="Requests that the engine runs at once.")]
PrefixCaching = Annotated[bool, typer.Option(help="Let the engine reuse prefixes.")]
EngineArg = Annotated[list[str] | None, typer.Option(help="Argument of vllm.LLM, key=value; may be repeated.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with a checkpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RunDirectory = Annotated[Path, typer.Argument(help="Directory of a run.")]


def output() -> Console:
    """Where tables go."""
    return terminal.console()


def print_json(output: str, content: dict[str, Any]) -> None:
    """Print a command's one JSON object; `output`: its kind, a key of `schema.OUTPUTS`."""
    import json

    from speceval.store.schema import versioned

    print(json.dumps(versioned(output, content), allow_nan=False))  # ASCII: no terminal obeys it


def given(ctx: typer.Context, parameter: str) -> bool:
    """Whether the user set an option on the command line."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def only(ctx: typer.Context, flag: str, allowed: tuple[str, ...]) -> None:
    """Refuse options that `flag` leaves without a meaning."""
    for parameter in ctx.params:
        if parameter not in allowed and given(ctx, parameter):
            name = "json" if parameter == "as_json" else parameter.replace("_", "-")
            raise UserError(f"--{name}: has no meaning with {flag}: leave it out")


def split(names: str) -> list[str]:
    """Comma-separated names."""
    return [name.strip() for name in names.split(",") if name.strip()]


MOST_NUMBERS = 10_000
"""Of a list such as --seeds; a run takes no more of them."""


def seeds(text: str, flag: str = "--seeds") -> tuple[int, ...]:
    """ "0,1,5-7" as (0, 1, 5, 6, 7). Raises `UserError`, also for more than `MOST_NUMBERS`."""
    ranges = [re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part) for part in split(text)]
    bounds = [(int(match[1]), int(match[2] or match[1])) for match in ranges if match]
    if not ranges or len(bounds) < len(ranges) or any(low > high for low, high in bounds):
        raise UserError(f"{flag} {text[:80]}: not a list of whole numbers such as 0,1,2 or 0-7")
    if (count := sum(high - low + 1 for low, high in bounds)) > MOST_NUMBERS:
        raise UserError(f"{flag} {text[:80]}: {count:,} numbers, at most {MOST_NUMBERS:,} are taken")
    return tuple(number for low, high in bounds for number in range(low, high + 1))


def percent(text: str, flag: str) -> float | None:
    """ "1%" as 0.01; None for nothing."""
    if not text:
        return None
    try:
        return float(text.strip().removesuffix("%")) / (100 if "%" in text else 0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{flag} {text}: not a percentage such as 1% or 0.5%") from None


def pairs(items: list[str] | None, flag: str) -> dict[str, Any]:
    """ "key=value" items; the value is read as YAML (numbers, true, {a: 1}), anything else is a string.

    Raises `UserError`, also for a value that JSON could not hold.
    """
    from speceval.foreign import NotYaml, parse_yaml, plain

    found: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not re.fullmatch(r"\w[\w.-]*", key) or not equals:
            raise UserError(f"{flag} {item[:80]}: not of the form key=value")
        try:
            read = parse_yaml(value, f"{flag} {key}")
        except NotYaml:
            read = plain(value, f"{flag} {key}")
        found[key.replace("-", "_")] = read
    return found
