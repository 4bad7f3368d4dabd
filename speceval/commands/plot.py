"""`speceval plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import UserError

if TYPE_CHECKING:
    from speceval.show.plots import Drawn
    from speceval.store import StoredRun

DIRECTORY = Path("results") / "plots"
FORMATS = (".png", ".pdf")
MOST = 8
"""Runs that a figure tells apart (`show.plots.style.COLOURS`)."""


def _kinds() -> list[str]:
    from speceval.show.plots import OF_RUNS

    return list(OF_RUNS)


def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs, or folders of runs."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Which figure [default: all that the runs allow].", **options.choices(_kinds))
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="With a forest plot: field that may differ between runs; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, .png or .pdf; a directory gets both [default: results/plots]."),
    ] = None,
) -> None:
    """Draw stored runs for a paper: acceptance by position, tau against K, differences, along the output.

    Prints each figure's caption, which says what its intervals are. The first run is the one that others are compared
    with. More than eight runs, as of a sweep, are drawn in a folder for each target, method, temperature and K.
    """
    from speceval.estimate import books
    from speceval.show import plots
    from speceval.store import directories

    if allow and kind not in (None, "forest"):
        raise UserError(f"--allow: has no meaning with --kind {kind}: leave it out")
    paths = list(dict.fromkeys(run for path in runs or [] for run in directories(path) or [path]))
    if not paths:
        raise UserError("which run? Name its directory: `speceval ls runs` lists them")
    stored = [books.read(path) for path in paths]
    if kind is not None:
        return write(plots.draw(kind, stored, allow or []), kind, out)
    if out is not None and out.suffix.lower() in FORMATS:
        raise UserError(f"-o {out}: all figures do not fit one file: name a directory, or --kind")
    whole = [run for run in stored if (run.steps["drafted"] > 0).any()] or stored
    for run in stored:
        if not any(run is other for other in whole):
            print(terminal.line(f"left out: {run.directory}: no step has drafts"))
    if len(whole) <= MOST:
        return write_all(whole, allow or [], out)
    written = 0
    for name, group in together(whole).items():
        try:
            write_all(group, allow or [], (out or DIRECTORY) / name)
            written += 1
        except UserError as error:
            print(terminal.line(f"{name}: left out: {error}"))
    if not written:
        raise UserError(f"none of {len(whole)} runs can be drawn")


def together(runs: list[StoredRun]) -> dict[str, list[StoredRun]]:
    """The runs of a sweep in groups that a figure can show, by a name for each: of one target, method and way to draft,
    at one temperature and K, at most `MOST` of them.
    """
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        spec, method = run.meta.spec, run.meta.fingerprint.engine.method
        target = spec.target.rstrip("/").rsplit("/", 1)[-1]
        groups.setdefault(f"{target}-{method}-T{spec.temperature:g}-{spec.drafting}-k{spec.k}", []).append(run)
    return {
        name if first == 0 else f"{name}-{first // MOST + 1}": group[first : first + MOST]
        for name, group in groups.items()
        for first in range(0, len(group), MOST)
    }


def write_all(stored: list[StoredRun], allow: list[str], out: Path | None) -> None:
    """Every figure that the runs allow, one line for each that they do not. Raises `UserError` when that is none."""
    from speceval.show import plots

    refused = []
    for name in plots.OF_RUNS:
        if name == "forest" and len(stored) == 1:
            continue
        try:
            drawn = plots.draw(name, stored, allow)
        except UserError as error:
            refused.append(f"{name}: left out: {error}")
        else:
            write(drawn, name, out)
    if len(refused) == len(plots.OF_RUNS) - (len(stored) == 1):
        raise UserError(refused[0].partition("left out: ")[2])
    for line in refused:
        print(terminal.line(line))


def write(drawn: Drawn, kind: str, out: Path | None) -> None:
    """Write one figure, as one file or in both formats, and print its caption."""
    from speceval.show import plots

    directory = out or DIRECTORY
    files = [out] if out is not None and out.suffix else [directory / f"{kind}{suffix}" for suffix in FORMATS]
    for file in files:
        plots.save(drawn.figure, file)
    options.output().print(
        f"{', '.join(map(str, files))}\n{drawn.caption}\n", markup=False, highlight=False, soft_wrap=True
    )
