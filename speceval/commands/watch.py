"""`speceval watch`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speceval.commands import options

if TYPE_CHECKING:
    from speceval.api.watching import Watched


def watch(
    url: Annotated[str, typer.Argument(help="Address of a server, such as http://127.0.0.1:8000.")],
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 60.0,
    learn: Annotated[int, typer.Option(help="Slices from which it learns what is normal.")] = 60,
    baseline: Annotated[
        Path | None, typer.Option(help="File with what was learned: read if it is there, else written.")
    ] = None,
    margin: Annotated[str, typer.Option(help="Fall of tau that is let pass: 2% or 0.02.")] = "2%",
    false_alarms: Annotated[
        float, typer.Option(help="Chance of an alarm in a month without such a fall, at most.")
    ] = 0.05,
    seconds: Annotated[
        float | None, typer.Option("--for", help="Seconds after which it ends without an alarm [default: never].")
    ] = None,
    prometheus: Annotated[Path | None, typer.Option(help="Text file for Prometheus, new at each look.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Parquet file for the slices.")] = None,
) -> None:
    """Watch the acceptance of a server's own traffic, and raise an alarm when it has fallen beyond the margin.

    An alarm is one JSON object and exit code 1.
    """
    from speceval.api import watching
    from speceval.commands.check import _share
    from speceval.measure.output import terminal
    from speceval.measure.starting import OneLine

    with terminal() as console:
        live, said = OneLine(console, seconds=0.0), [""]

        def tell(seen: Watched) -> None:
            if (text := _line(seen, learn)) != said[0]:
                said[0] = text
                live.say(text)

        found = inspect.unwrap(watching.watch)(  # its errors name flags
            url,
            interval=interval,
            learn_slices=learn,
            baseline=baseline,
            margin=_share(margin, "--margin"),
            false_alarms=false_alarms,
            seconds=seconds,
            out=out,
            prometheus=prometheus,
            api_key_env=api_key_env,
            tell=tell,
        )
        live.clear()
    if found.alarm is not None:
        options.print_json("watch", found.alarm)
        raise typer.Exit(1)


def _line(seen: Watched, learn: int) -> str:
    """What is known now."""
    if seen.unreachable:
        return f"no answer: {seen.unreachable}"
    if not seen.slices:
        return "waiting for traffic"
    last = seen.slices[-1]
    rates = " ".join(f"{count / last.steps:.2f}" for count in last.positions)
    trend = spark([one.tau for one in seen.slices[-30:]])
    state = f"learning {len(seen.slices)}/{learn}"
    if seen.detector is not None:
        state = (
            f"learned {seen.detector.learned.tau:.3f}, score {seen.detector.score:.3g} of {seen.detector.threshold:.3g}"
        )
    again = f", {seen.restarts} restarts" if seen.restarts else ""
    return f"tau {last.tau:.3f} {trend} positions {rates} · {last.steps:,} steps · {state}{again}"


BARS = "▁▂▃▄▅▆▇█"


def spark(values: list[float]) -> str:
    """The values as a line of bars, between their least and their largest."""
    low, high = min(values), max(values)
    return "".join(BARS[int((value - low) / (high - low or 1) * (len(BARS) - 1))] for value in values)
