"""Figures that others published, and which of them a run repeats: the data of `results/published`.

The loader checks every row; the source's oddities come with it as footnotes and nothing is corrected.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from speceval.catalog.methods import default_drafting, find
from speceval.catalog.schema import load_entries
from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_yaml
from speceval.paths import data_directory
from speceval.protocol import RunSpec
from speceval.store.schema import RunMeta
from speceval.suites.load import SUITES_DIR
from speceval.suites.schema import read_suite_file

MANIFEST = "source.yaml"
NAME = "published"
"""What a command line may say for the package's own figures."""


class Figure(Strict, populate_by_name=True):
    """One published acceptance length: a row of `lk_losses.csv`."""

    target: str
    architecture: str = Field(alias="drafter")
    k: int = Field(alias="K", gt=0)
    setup: str
    """The loss, or the name under which the source lists a public checkpoint."""
    checkpoint: str
    temperature: float = Field(alias="T", ge=0)
    suite: str = Field(alias="dataset")
    """As the source names it."""
    tau: float = Field(ge=1)
    speedup: float | None = Field(gt=0)
    """Times faster than without speculation; None where the source prints none."""
    source: str

    @property
    def place(self) -> tuple[str, str, int, str, float, str]:
        """What no other figure has: target, architecture, K, setup, temperature, suite."""
        return self.target, self.architecture, self.k, self.setup, self.temperature, self.suite


class Footnote(Strict):
    """What a reader must know about the figures that agree with every field of `where`."""

    where: dict[str, str | float]
    text: str


class Publication(Strict):
    """A folder of published figures: `source.yaml` and the files that it names."""

    kind: Literal["published"]
    title: str
    source: str
    rows: tuple[Figure, ...]
    definition: str
    """The estimator of `acceptance.summarise` that the source's tau is."""
    decimals: int
    suites: dict[str, str]
    """Our suite -> the source's name of it."""
    footnotes: tuple[Footnote, ...]

    def row_notes(self, figure: Figure) -> tuple[str, ...]:
        """Footnotes that concern the figure's whole row: its target, architecture or setup."""
        return self._notes(figure.model_dump(exclude={"suite"}))

    def notes(self, figure: Figure) -> tuple[str, ...]:
        """Footnotes of this figure alone."""
        return self._notes(figure.model_dump())

    def mean_notes(self, figure: Figure) -> tuple[str, ...]:
        """Footnotes of the mean over the suites that this figure is part of."""
        return self._notes(figure.model_dump() | {"suite": "mean"})

    def _notes(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return tuple(
            note.text
            for note in self.footnotes
            if ("suite" in note.where) == ("suite" in facts)
            and all(facts.get(name) == value for name, value in note.where.items())
        )


def is_publication(directory: Path) -> bool:
    """Whether `directory` holds published figures."""
    return (directory / MANIFEST).is_file()


def named(path: Path) -> Path:
    """The directory that is meant: of NAME, where no such path exists, the package's own figures."""
    return data_directory("published") if str(path) == NAME and not path.exists() else path


@lru_cache
def load(directory: Path | None = None) -> Publication:
    """The figures in `directory`, by default the package's own. Raises `UserError` naming file, line and field."""
    directory = directory or data_directory("published")
    path = directory / MANIFEST
    try:
        manifest = read_yaml(path)
        figures, _ = manifest.pop("figures"), manifest.pop("means", None)
        return Publication.model_validate(manifest | {"rows": _read_figures(directory / figures)})
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: must hold fields, and in 'figures' the name of a CSV file") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from None


def repeated(meta: RunMeta, suite: str) -> Figure | None:
    """The published figure that a run's suite repeats, None if there is none: `figure_of`, and its data are the
    benchmark's own.
    """
    figure = figure_of(meta.spec, suite)
    return figure if figure is not None and is_benchmark(meta, suite) else None


def figure_of(spec: RunSpec, suite: str) -> Figure | None:
    """The published figure that a request repeats on a suite, None if there is none.

    It repeats one when the catalog says which row of the source its drafter is, and target, K
    and temperature agree, top-k and top-p are off, drafts are sampled above temperature 0 and verified one by one (as
    the source's were), and the suite is called as the benchmark.
    """
    publication = load()
    target = load_entries().get(spec.target)
    drafter = target.drafters.get(spec.draft) if target else None
    if drafter is None or suite not in publication.suites:
        return None
    if (spec.top_p, spec.top_k, spec.rejection) != (1, 0, "standard"):
        return None
    if spec.drafting != default_drafting(drafter.method, spec.temperature):
        return None
    wanted = (
        spec.target,
        find(drafter.method).display,
        spec.k,
        drafter.paper_setup,
        spec.temperature,
        publication.suites[suite],
    )
    return next((figure for figure in publication.rows if figure.place == wanted), None)


def is_benchmark(meta: RunMeta, suite: str) -> bool:
    """Whether a run's suite has the data of the benchmark of that name: a user's file may bear it too."""
    if suite not in load().suites:
        return False
    pinned = read_suite_file(SUITES_DIR / f"{suite}.yaml").pinned
    return pinned is not None and meta.fingerprint.suites[suite].dataset == pinned.dataset_hash


def _read_figures(path: Path) -> list[Figure]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not CSV: {error}") from None
    figures: dict[tuple[Any, ...], Figure] = {}
    for number, row in enumerate(rows, start=2):
        try:
            figure = Figure.model_validate(row | {"speedup": row.get("speedup") or None})
        except ValidationError as error:
            raise UserError(f"{path}: line {number}: {first_error(error)}") from None
        if figures.setdefault(figure.place, figure) is not figure:
            raise UserError(f"{path}: line {number}: a second figure for {', '.join(map(str, figure.place))}")
    return list(figures.values())
