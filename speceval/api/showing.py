"""`table`, `plot`, `report` and `export`: stored runs as others read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from speceval.api.reading import Source, sound
from speceval.api.results import Run
from speceval.api.words import errors_by_parameter
from speceval.errors import UserError
from speceval.show import layouts, render
from speceval.show.layouts import form
from speceval.store import StoredRun, directories

if TYPE_CHECKING:
    import pandas as pd

    from speceval.show.plots import Drawn

Sources = Source | Iterable[Source]

Layout = Literal["summary", "paper-main", "paper-arch", "paper-mean", "positions", "categories", "lengths", "load"]
Format = Literal["md", "csv", "latex", "html", "json"]
Kind = Literal["positions", "tau-k", "forest", "along", "context", "conversations"]
Shape = Literal["model-card", "speculation-profile", "lm-eval-style-json"]


class Table(form.Table):
    """A table of stored runs and published figures; a notebook shows it as HTML.

    `records` has every number behind it, with its interval and where it comes from (the fields of the CSV).
    """

    @classmethod
    def of(cls, table: form.Table) -> Table:
        """The same table."""
        return cls(**{field.name: getattr(table, field.name) for field in fields(form.Table)})

    @property
    def frame(self) -> pd.DataFrame:
        """`records` as a data frame."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=list(form.FIELDS))

    def text(self, format: Format) -> str:
        """The table as Markdown, CSV, LaTeX (booktabs), HTML or JSON."""
        return render.FORMATS[_known(format, render.FORMATS, "format")](self)

    def __str__(self) -> str:
        return self.text("md")

    def _repr_html_(self) -> str:
        return self.text("html")

    def _repr_markdown_(self) -> str:
        return self.text("md")


@overload
def table(runs: Sources, *, layout: Layout = ..., format: None = ..., over: str | None = ...) -> Table: ...


@overload
def table(runs: Sources, *, layout: Layout = ..., format: Format, over: str | None = ...) -> str: ...


@errors_by_parameter()
def table(
    runs: Sources, *, layout: Layout = "summary", format: Format | None = None, over: str | None = None
) -> Table | str:
    """Put runs, and what was published for them, into one table (docs/measure/make-tables.md).

    Args:
        runs: runs, their directories, folders of runs, and "published": the figures of the LK Losses paper. A `Run` is
            read again from its directory.
        layout: what is in rows and columns.
        format: None: an object; else its text in that format.
        over: drafter that changes are over, with "paper-arch" and "paper-mean"; None: the one trained with KL.

    Raises:
        UserError: nothing to show, a run whose books do not balance, an unknown name.
    """
    paths = [_directory(run) for run in _listed(runs)]
    if not paths:
        raise UserError("table: no runs: name a run or a folder of runs")
    built = Table.of(layouts.build(_known(layout, layouts.LAYOUTS, "layout"), paths, over))
    return built if format is None else built.text(format)


@errors_by_parameter()
def plot(
    runs: Sources, *, kind: Kind = "positions", path: str | Path | None = None, allow: Collection[str] = ()
) -> Drawn:
    """Draw stored runs for a paper (docs/measure/make-figures.md).

    Args:
        runs: runs, their directories, or folders of runs; the first is the one that others are compared with.
        kind: "positions" (acceptance by draft position), "tau-k" (tau against K), "forest" (differences), "along" (the
            output) or "conversations" (their spread).
        path: file to write as well, .png or .pdf.
        allow: fields of the protocol in which the runs of a forest plot may differ.

    Returns:
        `figure`, a matplotlib figure, and `caption`, which says what its intervals are.

    Raises:
        UserError: runs that this figure cannot show, an unknown kind, another suffix. NotComparable: a forest plot of
            runs whose protocols differ.
    """
    from speceval.show import plots

    stored = _stored(runs)
    if not stored:
        raise UserError("plot: no runs: name one")
    drawn = plots.draw(_known(kind, plots.OF_RUNS, "kind"), stored, allow)
    if path is not None:
        plots.save(drawn.figure, Path(path))
    return drawn


@errors_by_parameter({"--verify": "verification"})
def report(
    runs: Sources,
    path: str | Path,
    *,
    verification: str | Path | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Write one self-contained page about runs: verdict, tables, figures, audits, coloured outputs, protocol.

    Args:
        runs: runs, their directories, or folders of runs; the others are held against the first.
        path: the page to write.
        verification: the verify.json that speaks for the runs; None: looked for in results/verify.
        allow: fields of the protocol that may differ.

    Returns:
        `path`.

    Raises:
        UserError: nothing to show, a run whose books do not balance, a directory as `path`.
    """
    from speceval.show.report import write

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a directory: name the page, such as {path / 'report.html'}")
    verify_file = None if verification is None else Path(verification)
    write(_stored(runs), path, verify_file, list(allow))
    return path


@errors_by_parameter()
def export(run: Source, kind: Shape) -> str:
    """A finished run's numbers as text of a shape that others read (docs/measure/share-a-run.md).

    kind: "model-card" (a hub page), "speculation-profile" or "lm-eval-style-json". Raises `UserError` for a run that is
    unfinished, whose books do not balance, or that measured nothing, and for an unknown kind.
    """
    from speceval.show.export import FORMATS
    from speceval.show.export import export as exported

    return exported(sound(run), _known(kind, FORMATS, "kind"))


def _listed(runs: Sources) -> list[Source]:
    return [runs] if isinstance(runs, str | Path | StoredRun) else list(runs)


def _stored(runs: Sources) -> list[Run]:
    """The runs, those of folders among them."""
    stored: list[Run] = []
    for run in _listed(runs):
        if isinstance(run, StoredRun):
            stored.append(sound(run))
        else:
            stored += [sound(one) for one in directories(Path(run)) or [Path(run)]]
    return stored


def _directory(run: Source) -> Path:
    return run.directory if isinstance(run, StoredRun) else Path(run)


def _known(name: str, known: Iterable[Any], what: str) -> str:
    if name not in (names := list(known)):
        raise UserError(f"{what} {name!r}: there is {', '.join(map(repr, names))}")
    return name
