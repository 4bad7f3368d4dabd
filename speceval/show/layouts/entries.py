"""What tables are made of: one entry per drafter, temperature and suite, measured or published."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from speceval.catalog.methods import METHODS, default_drafting, find
from speceval.catalog.schema import load_entries
from speceval.errors import UserError
from speceval.estimate import acceptance, books, replay, speedup
from speceval.estimate.statistics import cluster_warnings
from speceval.private import without_places
from speceval.protocol import differing
from speceval.show import published
from speceval.show.notes import INTERPRETED, interpreted_in
from speceval.show.published import Figure
from speceval.show.tables import grade_note, suite_summary
from speceval.store import StoredRun, directories
from speceval.zoo.recipe import METHODS as ZOO_METHODS

KL = "KL"
"""Setup that Δ% is over unless told otherwise: trained with the KL divergence."""

OWN_SETUPS = {"kl": KL, "tv": "TV", "lk-alpha": "LK-alpha", "lk": "LK-lambda eta=3"}
"""First part of the name of a drafter that was trained here -> its loss, as the paper's rows call it."""


@dataclass(frozen=True)
class Entry:
    """tau of one drafter at one temperature on one suite. Exactly one of `run` and `figure` is set."""

    target: str
    architecture: str
    setup: str
    """The loss, or the public checkpoint's name in the source; the drafter's name where neither is known."""
    drafter: str
    """What the row is called."""
    k: int
    temperature: float
    drafting: str
    """"probabilistic", "greedy" or "deterministic"."""
    suite: str
    run: StoredRun | None = None
    figure: Figure | None = None
    name: str = ""
    """A run's own name of the suite."""
    apart: str = ""
    """Where another run has an entry of these names: what their requests differ in, else the end of its directory."""

    @property
    def label(self) -> str:
        """The drafter's name, and where it bears it with others the run."""
        return f"{self.drafter} ({self.apart})" if self.apart else self.drafter

    @property
    def measured(self) -> bool:
        """Whether it comes from a run."""
        return self.run is not None

    @property
    def times_notes(self) -> tuple[str, ...]:
        """What a reader must know of its times."""
        return (f"{INTERPRETED}.",) if self.run is not None and interpreted_in(self.run.meta) else ()

    @property
    def usual_drafting(self) -> bool:
        """Whether drafts are sampled above temperature 0, or have no distribution to sample from."""
        return self.drafting in ("deterministic", default_drafting("", self.temperature))

    @property
    def replayed(self) -> bool:
        """Whether it comes from a run along given texts."""
        return self.run is not None and replay.is_replay(self.run)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Every estimator of a measured entry."""
        assert self.run is not None
        return suite_summary(self.run, self.name)

    @cached_property
    def published(self) -> Figure | None:
        """The published figure that a measured entry repeats."""
        return published.repeated(self.run.meta, self.name) if self.run else self.figure

    def tau(self, definition: str) -> dict[str, float | None]:
        """value, low and high of an acceptance length; a published one has its value alone."""
        if self.figure is not None:
            return {"value": self.figure.tau, "low": None, "high": None}
        found: dict[str, float | None] = self.summary[definition]
        return found

    @cached_property
    def speedup(self) -> dict[str, float | None]:
        """value, low and high of the speed-up over decoding without drafts; None where it is not known.

        Of a run: at `speedup_batch`.
        """
        if self.figure is not None:
            return {"value": self.figure.speedup, "low": None, "high": None}
        if self.speedup_batch is None:
            return {"value": None, "low": None, "high": None}
        return self._speedups[str(self.speedup_batch)]

    @cached_property
    def undrafted(self) -> str | None:
        """What must be said of a measured entry that has many steps without drafts (`acceptance.undrafted_note`)."""
        return acceptance.undrafted_note(self.run.suite(self.name)[0]) if self.run else None

    @property
    def speedup_batch(self) -> int | None:
        """The smallest batch size at which a run was timed; None where it was not."""
        return min(map(int, self._speedups), default=None)

    @cached_property
    def _speedups(self) -> dict[str, dict[str, Any]]:
        timed = self.run.meta.speedup if self.run else None
        return speedup.summarise(timed).get(self.name, {}) if timed else {}

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies every number of the entry, by the names of `form.FIELDS`."""
        return {
            "target": self.target,
            "architecture": self.architecture,
            "setup": self.setup,
            "drafter": self.drafter,
            "k": self.k,
            "temperature": self.temperature,
            "drafting": self.drafting,
            "suite": self.suite,
            "source": self.figure.source if self.figure else "measured",
            "run": str(self.run.directory) if self.run else None,
        }

    @property
    def run_notes(self) -> tuple[str, ...]:
        """What a reader must know to trust a measured entry."""
        if self.run is None:
            return ()
        meta, notes = self.run.meta, []
        if not self.run.complete:
            notes.append("The run is not finished.")
        if meta.problems:
            notes.append("The run's books do not balance: `speceval show` says where.")
        if told := grade_note(self.run):
            notes.append(told)
        if meta.spec.limit is not None:
            notes.append("Measured on a part of the suite.")
        if meta.spec.shard is not None:
            notes.append(f"A shard ({meta.spec.shard}) of a run: `speceval merge` joins them.")
        return tuple(notes)


def undrafted(entries: Iterable[Entry]) -> list[str]:
    """A line for each measured entry that has many steps without drafts."""
    return [
        f"{one.label}, {one.suite}, K={one.k}, T={one.temperature:g}: {one.undrafted}."
        for one in entries
        if one.undrafted is not None
    ]


def few_conversations(entries: Iterable[Entry]) -> list[str]:
    """What must be said of each suite whose measured intervals rest on too few conversations, or on one of them."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for entry in entries:
        if entry.run is not None:
            weight = acceptance.weight_of_conversations(entry.run.suite(entry.name)[0])
            if weight[0]:  # else there is no interval: no steps are known, or none has drafts
                found.setdefault(entry.suite, []).append(weight)
    lines = []
    for suite, weights in found.items():
        clusters, effective, _ = min(weights, key=lambda weight: weight[1])
        share = max(share for *_, share in weights)
        who = suite if len(weights) == 1 else f"{suite}, in some rows"
        lines += [f"{who}: {warning}." for warning in cluster_warnings(clusters, effective, share)]
    return lines


def collect(paths: Iterable[Path]) -> list[Entry]:
    """The entries of run directories, folders of runs (searched to any depth) and folders of published figures.

    `published` names the package's own figures, wherever it is installed, unless there is such a path.
    In the order of the tables, whatever the order of `paths`. Replays, which hold expectations and no counts, are left
    out unless they are all there is. Raises `UserError` when a path holds neither runs nor figures, or a file without.
    """
    entries: list[Entry] = []
    runs: dict[Path, Path] = {}
    for path in map(published.named, paths):
        if published.is_publication(path):
            if not (figures := published.load(path).rows):
                raise UserError(f"{path}: its file of figures has no rows")
            entries += [from_figure(figure) for figure in figures]
            continue
        if not (below := directories(path)):
            raise UserError(f"{path}: no runs here and no published figures: `speceval ls runs` lists runs")
        runs |= {directory.resolve(): directory for directory in below}
    read = [books.read(directory) for directory in runs.values()]
    sampled = [run for run in read if not replay.is_replay(run)]
    entries += [entry for run in (sampled if sampled or entries else read) for entry in from_run(run)]
    return sorted(_told_apart(entries), key=_order())


SAID = ("target", "draft", "k", "temperature", "drafting", "suites", "runner")
"""Fields of a request that tables name anyway, or as what the engine took."""


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with what they differ in, or the run's directory, for those that have the same names."""
    bearers: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        if entry.run:
            bearers.setdefault((*row_key(entry), entry.temperature, entry.drafting, entry.suite), []).append(entry)
    apart: dict[int, str] = {}
    for group in bearers.values():
        runs = [entry.run for entry in group if entry.run]
        told = differing([run.meta.spec for run in runs], SAID) if len(runs) > 1 else [""]
        runners = [run.meta.fingerprint.engine.runner for run in runs]
        if len(set(runners)) > 1:
            told = [f"{runner} runner {more}".strip() for runner, more in zip(runners, told, strict=True)]
        places = told if len(set(told)) == len(told) else [str(run.directory) for run in runs]
        apart |= {id(entry): without_places(place) for entry, place in zip(group, places, strict=True)}
    return [replace(entry, apart=apart.get(id(entry), "")) for entry in entries]


def from_run(run: StoredRun) -> list[Entry]:
    """One entry for each suite of a run."""
    spec = run.meta.spec
    names = published.load().suites
    architecture, setup = _kind(run)
    return [
        Entry(
            target=spec.target,
            architecture=architecture,
            setup=setup,
            drafter=spec.draft,
            k=spec.k,
            temperature=spec.temperature,
            drafting=spec.drafting,
            suite=names.get(suite, suite) if published.is_benchmark(run.meta, suite) else suite,
            run=run,
            name=suite,
        )
        for suite in run.suites
    ]


def from_figure(figure: Figure) -> Entry:
    """The entry of a published figure; its drafts are sampled above temperature 0."""
    return Entry(
        target=figure.target,
        architecture=figure.architecture,
        setup=figure.setup,
        drafter=figure.setup.removesuffix(" (dagger)").removesuffix(" (ddagger)"),  # our own marks say it
        k=figure.k,
        temperature=figure.temperature,
        drafting=default_drafting("", figure.temperature),
        suite=figure.suite,
        figure=figure,
    )


def with_published(entries: Sequence[Entry]) -> list[Entry]:
    """`entries` and the published figures that their runs repeat, each once, in the tables' order."""
    figures = dict.fromkeys(entry.figure for entry in entries if entry.figure)
    repeated = dict.fromkeys(entry.published for entry in entries if entry.measured and entry.published)
    added = [from_figure(figure) for figure in repeated if figure not in figures]
    return sorted([*entries, *added], key=_order())


def refuse_twice(entries: Iterable[Entry]) -> None:
    """Raises `UserError` when two runs want the same cell, naming both."""
    seen: dict[Hashable, Entry] = {}
    for entry in entries:
        place = (*row_key(entry), entry.temperature, entry.drafting, entry.suite)
        other = seen.setdefault(place, entry)
        if other is not entry and entry.run and other.run:
            what = f"{entry.drafter} at T={entry.temperature:g} on {entry.suite}"
            raise UserError(f"{other.run.directory} and {entry.run.directory} both measure {what}: name one of them")


def row_key(entry: Entry) -> tuple[Hashable, ...]:
    """Entries with equal keys share a row where suites and temperatures are columns."""
    greedy = entry.temperature > 0 and not entry.usual_drafting
    return entry.target, entry.architecture, entry.k, entry.setup, entry.drafter, greedy, entry.measured


def _kind(run: StoredRun) -> tuple[str, str]:
    """Architecture and setup of a run's drafter, as far as catalog, zoo and engine tell."""
    spec, method = run.meta.spec, run.meta.fingerprint.engine.method
    target = load_entries().get(spec.target)
    listed = target.drafters.get(spec.draft) if target else None
    loss, _, name = spec.draft.rpartition("-")
    if listed:
        own = OWN_SETUPS.get(loss) if listed.source == "stored" else None
        return find(listed.method).display, listed.paper_setup or own or spec.draft
    if spec.target == "zoo" and name in ZOO_METHODS:
        return find(ZOO_METHODS[name]).display, OWN_SETUPS.get(loss, spec.draft)
    return find(str(method)).display, spec.draft


def _order() -> Any:
    """Sort key of entries: the source's order of targets, setups and suites, what it does not know after by name."""
    rows = published.load().rows
    targets = _ranks(row.target for row in rows)
    setups = _ranks((row.target, row.setup) for row in rows)
    losses = _ranks(row.setup for row in rows)
    suites = _ranks(row.suite for row in rows)
    architectures = _ranks(row.display for row in METHODS.values())

    def rank(known: dict[Any, int], *names: Any) -> int:
        return next((known[name] for name in names if name in known), len(known))

    def key(entry: Entry) -> tuple[Any, ...]:
        return (
            rank(targets, entry.target),
            entry.target,
            rank(architectures, entry.architecture),
            entry.architecture,
            rank(setups, (entry.target, entry.setup)),
            rank(losses, entry.setup),
            entry.setup,
            entry.k,
            not entry.measured,
            entry.drafter,
            entry.temperature,
            not entry.usual_drafting,
            rank(suites, entry.suite),
            entry.suite,
            str(entry.run.directory) if entry.run else "",
        )

    return key


def _ranks(names: Iterable[Any]) -> dict[Any, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(names))}
