"""`speceval check` and `speceval baseline`: the regression gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import UserError

LARGEST_MARGIN = 0.5


def check(
    run: options.RunDirectory,
    baseline: Annotated[Path, typer.Option(help="Run, or file of `speceval baseline`, to compare with.")],
    margin: Annotated[str, typer.Option(help="Largest loss of tau that passes: 2% or 0.02.")] = "2%",
    position_margin: Annotated[
        str | None,
        typer.Option(help="Largest loss of a position's rate [default: what costs the margin of tau by itself]."),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Field of the protocol that may differ; may be repeated.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Part of the answers that counts: thought, answer, output:256-1023, context:8192-."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown summary to this file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a run against a baseline: has the drafter lost more acceptance than the margin?

    Of two replays of the same texts the answer on these texts is exact, and decides.
    Exit code 0 pass, 1 fail, 2 inconclusive, 3 runs that are not comparable, 4 bad input.
    """
    from speceval.api import reading
    from speceval.files import write_whole
    from speceval.show.gate import junit as junit_xml

    share = _share(margin, "--margin")
    position_share = None if position_margin is None else _share(position_margin, "--position-margin")
    report = reading.judge(run, baseline, share, position_share, allow or (), only)
    for path, content in ((junit, junit_xml(report)), (markdown, report.markdown().encode())):
        if path is not None:
            write_whole(path, content)
            terminal.wrote(path)
    if as_json:
        options.print_json("check", report.as_json())
    else:
        options.output().print(report)
    raise typer.Exit(report.exit_code)


def baseline(
    run: options.RunDirectory,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; compressed if it ends in .gz.")],
    texts: Annotated[
        bool, typer.Option("--texts", help="Of a replay: keep its texts, so that `run --replay FILE` is exact.")
    ] = False,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="With --texts: the same replay in another --batch, which tells rounding; may be repeated."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the file to keep beside released weights: counts per conversation and the protocol, and texts if asked."""
    from speceval.estimate import baseline as baselines
    from speceval.estimate import books

    if again and not texts:
        raise UserError("--again: tells how replays of the same texts differ: add --texts")
    stored = books.read(run)
    written: baselines.Baseline | baselines.TextBaseline
    if texts:
        written = baselines.TextBaseline.of(stored, [books.read(other) for other in again or ()])
    else:
        written = baselines.Baseline.of(stored)
    size = baselines.write(written, out)
    if as_json:
        facts = {"file": str(out), "bytes": size, "run": written.run, "draft_weights": written.weights.draft}
        options.print_json("baseline", facts)
    terminal.wrote(out)


def _share(text: str, flag: str) -> float:
    """ "2%" or "0.02" as 0.02. Raises `UserError`, also for what is no sane margin."""
    number = text.strip()
    try:
        share = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise UserError(f"{flag} {text}: not a share: write it as 2% or 0.02") from None
    if not 0 < share <= LARGEST_MARGIN:
        raise UserError(f"{flag} {text}: not above 0 and at most {LARGEST_MARGIN:.0%}: write 2 % as 2% or 0.02")
    return share
