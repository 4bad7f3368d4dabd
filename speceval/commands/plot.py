"""`speceval plot`."""

from __future__ import annotations

from enum import StrEnum
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


class Kind(StrEnum):
    """Figures."""

    positions = "positions"
    tau_k = "tau-k"
    forest = "forest"
    along = "along"
    conversations = "conversations"
    known_bad = "known-bad"
    gaussian = "gaussian"


def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Directories of runs; with --kind known-bad that of a kernels.csv."),
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="Which figure [default: all that the runs allow].")] = None,
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
    with.
    """
    from speceval.estimate import books
    from speceval.show import plots

    if allow and kind not in (None, Kind.forest):
        raise UserError(f"--allow: has no meaning with --kind {kind.value}: leave it out")
    paths = list(dict.fromkeys(runs or []))
    if kind is Kind.gaussian:
        if paths:
            raise UserError("--kind gaussian draws no run: leave the directories out")
        return write(plots.draw_gaussian(), kind, out)
    if kind is Kind.known_bad:
        if len(paths) > 1:
            raise UserError("--kind known-bad draws one table: name one directory")
        return write(plots.draw_known_bad(*paths), kind, out)
    if not paths:
        raise UserError("which run? Name its directory: `speceval ls runs` lists them")
    stored = [books.read(path) for path in paths]
    if kind is not None:
        return write(plots.draw(kind, stored, allow or []), kind, out)
    if out is not None and out.suffix.lower() in FORMATS:
        raise UserError(f"-o {out}: all figures do not fit one file: name a directory, or --kind")
    write_all(stored, allow or [], out)


def write_all(stored: list[StoredRun], allow: list[str], out: Path | None) -> None:
    """Every figure that the runs allow, one line for each that they do not. Raises `UserError` when that is none."""
    from speceval.show import plots

    refused = []
    for name in plots.OF_RUNS:
        if name == Kind.forest and len(stored) == 1:
            continue
        try:
            drawn = plots.draw(name, stored, allow)
        except UserError as error:
            refused.append(f"{name}: left out: {error}")
        else:
            write(drawn, Kind(name), out)
    if len(refused) == len(plots.OF_RUNS) - (len(stored) == 1):
        raise UserError(refused[0].partition("left out: ")[2])
    for line in refused:
        print(terminal.line(line))


def write(drawn: Drawn, kind: Kind, out: Path | None) -> None:
    """Write one figure, as one file or in both formats, and print its caption."""
    from speceval.show import plots

    directory = out or DIRECTORY
    files = [out] if out is not None and out.suffix else [directory / f"{kind.value}{suffix}" for suffix in FORMATS]
    for file in files:
        plots.save(drawn.figure, file)
    options.output().print(
        f"{', '.join(map(str, files))}\n{drawn.caption}\n", markup=False, highlight=False, soft_wrap=True
    )
