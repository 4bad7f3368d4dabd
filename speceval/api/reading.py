"""`read_run`, `validate`, `compare`, `check` and `explain`: what judges stored runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from speceval.api.results import Comparison, Estimate, Explanation, Run
from speceval.api.words import errors_by_parameter
from speceval.errors import UserError
from speceval.estimate import acceptance, books, comparison, gate, parts, statistics, texts
from speceval.estimate import baseline as baselines
from speceval.estimate import explain as explaining
from speceval.show.gate import Report
from speceval.store import OUTPUTS, StoredRun, read_lines, thoughts
from speceval.store import read_run as read
from speceval.store.tables import OutputLine

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

Source = str | Path | StoredRun
"""A run, or its directory."""

LARGEST_MARGIN = 0.5


def read_run(directory: str | Path) -> Run:
    """Read a stored run, finished or not.

    Raises `UserError` when the directory holds none, or its files are damaged. Whether its counts agree with each other
    is another question: `validate`.
    """
    return Run.of(read(Path(directory)))


def sound(run: Source) -> Run:
    """A run, or the one in a directory, whose tables agree with its record. Raises `UserError` for any other."""
    if isinstance(run, str | Path):
        return Run.of(books.read(Path(run)))
    books.require_sound(run)
    return Run.of(run)


def validate(run: Source) -> list[str]:
    """What is wrong with a run, a line each; empty: nothing.

    Told are problems that the run itself met, and every identity that its tables violate now, with each other, with the
    request and with the engine's own counters (docs/trust/is-a-stored-run-sound.md). Raises `UserError` when the files
    cannot be read.
    """
    stored = run if isinstance(run, StoredRun) else read_run(run)
    return books.problems(stored) + books.texts(stored)


@errors_by_parameter()
def compare(
    *runs: Source, over: str | None = None, allow: Collection[str] = (), confidence: float = 0.95
) -> Comparison:
    """Compare runs with the first one, paired by conversation and seed.

    Args:
        runs: two or more.
        over: drafter whose run the others are compared with; None: the first run's.
        allow: fields of the protocol that may differ all the same ("drafting", "sampling.temperature").
        confidence: of all intervals.

    Raises:
        NotComparable: the protocols differ in more than the drafter and `allow`; names every field.
        UserError: one run alone, or a run whose books do not balance.
    """
    stored: list[StoredRun] = [sound(run) for run in runs]
    led = stored if over is None else comparison.led_by(stored, over)
    return Comparison(comparison.compare_runs(led, allow, confidence))


@errors_by_parameter()
def check(
    run: Source,
    baseline: Source,
    *,
    margin: float = 0.02,
    position_margin: float | None = None,
    allow: Collection[str] = (),
    only: str | None = None,
) -> Report:
    """Has the drafter lost more acceptance than a margin (docs/measure/may-it-be-released.md)?

    Args:
        run: the new run.
        baseline: a run, or a file of `speceval baseline`.
        margin: largest share of tau that may be lost, in (0, 0.5].
        position_margin: largest share of a draft position's rate that may be lost; None: what costs `margin` of tau.
        allow: fields of the protocol that may differ all the same.
        only: the part of the answers that counts: "thought", "answer", "output:256-1023", "context:8192-"; both must be
            runs then.

    Returns:
        `verdict` ("pass", "inconclusive" or "fail"), the command's `exit_code`, `suites` with bounds and reasons,
        `markdown()` for a pull request.

    Raises:
        NotComparable: the protocols differ in more than the drafter and `allow`.
        UserError: a margin that is no share, a run that is unfinished or whose books do not balance.
    """
    for name, share in (("margin", margin), ("position_margin", position_margin)):
        if share is not None and not 0 < share <= LARGEST_MARGIN:
            raise UserError(f"{name} {share:g}: not above 0 and at most {LARGEST_MARGIN:g}: write 2 % as 0.02")
    return judge(run, baseline, margin, position_margin, allow, only)


def judge(
    run: Source,
    baseline: Source,
    margin: float,
    position_margin: float | None,
    allow: Collection[str],
    only: str | None = None,
) -> Report:
    """`check` with margins that are known to be shares, for the command."""
    part = None if only is None else parts.parse(only, "--only")
    base, new = (_counted(each) if part is None else _counted_in(part, each) for each in (baseline, run))
    exact = isinstance(base, baselines.TextBaseline)
    if exact != isinstance(new, baselines.TextBaseline):
        sampled, replayed = (new, base) if exact else (base, new)
        raise UserError(
            f"{replayed.run}: a replay has no accepted tokens to count, and {sampled.run} was sampled: check a replay "
            "against a file of `speceval baseline REPLAY --texts`, a sampled run against one without"
        )
    ignore = ("seeds", *(ROUNDING if exact else ()))
    allowed = comparison.require_comparable([base.fingerprint, new.fingerprint], allow, ignore=ignore)
    if not (isinstance(base, baselines.TextBaseline) and isinstance(new, baselines.TextBaseline)):
        counted = gate.check(base.counts(), new.counts(), margin, position_margin)
        notes = _undrafted("baseline", baseline) + _undrafted("run", run)
        return Report(counted, base, new, allowed, notes=notes, only=only)
    on_texts = texts.check(base.steps(), new.steps(), margin, base.spread)
    rounding = max((one.tolerance_percent or 0.0 for one in on_texts.suites), default=0.0) / 100  # no loss there either
    statistical = gate.check(base.counts(), new.counts(), margin + rounding, position_margin)
    statistical = replace(statistical, margin_percent=100 * margin)
    return Report(statistical, base, new, allowed, on_texts, _around(run, on_texts))


ROUNDING = ("engine.max_num_seqs", "engine.max_num_batched_tokens")
"""Of a replay these change the order of sums alone, which its tolerance is for."""

AROUND = 40
"""Characters on each side of a place that are shown."""


def _around(run: Source, check: texts.TextsCheck) -> dict[tuple[str, texts.Place], str]:
    """The text near each place of a failed check, if the run's directory has it: found by its share of the tokens."""
    directory = run.directory if isinstance(run, StoredRun) else Path(run)
    places: dict[tuple[str, str, int, int], list[tuple[str, texts.Place]]] = defaultdict(list)
    for suite in check.suites:
        for place in suite.places:
            places[suite.suite, place.conversation, place.seed, place.turn].append((suite.suite, place))
    found = {}
    for line in read_lines(directory / OUTPUTS, kind=OutputLine) if (directory / OUTPUTS).exists() else ():
        for key in places.get((line["suite"], line["conversation"], line["seed"], line["turn"]), ()):
            middle = round(len(line["output"]) * key[1].token / max(len(line["token_ids"]), 1))
            found[key] = line["output"][max(middle - AROUND, 0) : middle + AROUND]
    return found


def check_counts(
    new: Mapping[str, pd.DataFrame],
    baseline: Mapping[str, pd.DataFrame],
    *,
    margin: float = 0.02,
    position_margin: float | None = None,
) -> gate.Check:
    """`check` on tables of counts per conversation (`Run.counts`), whatever they were counted from.

    new, baseline: suite -> table. Nothing is known of their protocols: that they are comparable is the caller's to say.
    Raises `NotComparable` when no suite, or no conversation of a suite, is in both.
    """
    return gate.check(baseline, new, margin, position_margin)


@errors_by_parameter()
def explain(run: Source) -> Explanation:
    """What other tools and the paper would have called this run's tau, and why each number differs.

    Source of every formula: docs/trust/other-tools.md. Raises `UserError` for a run whose books do not balance, and for
    a replay.
    """
    return Explanation(explaining.explain_run(sound(run)))


def ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, bounds: tuple[float, float] | None = None, confidence: float = 0.95
) -> Estimate:
    """Σ numerator / Σ denominator with the interval of every number here: the entry, a conversation, is the unit.

    numerator, denominator: sums per conversation, shape (conversations,). bounds: the values that the ratio can take.
    Source: docs/trust/how-sure.md.
    """
    found = statistics.ratio_interval(numerator, denominator, confidence, *([] if bounds is None else [bounds]))
    return Estimate.of(found)


def ratio_difference(
    numerator_a: ArrayLike,
    denominator_a: ArrayLike,
    numerator_b: ArrayLike,
    denominator_b: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Ratio b less ratio a (see `ratio`), paired: entry i of all four arrays is the same conversation."""
    arrays = (numerator_a, denominator_a, numerator_b, denominator_b)
    return Estimate.of(statistics.paired_ratio_difference(*arrays, confidence=confidence).difference)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for each other (Holm): below 0.05, all such differences are real but for a chance of 5 %.

    None for a difference that was not tested.
    """
    return statistics.holm(p_values)


def _undrafted(name: str, source: Source) -> list[str]:
    """What must be said of steps without drafts, where the steps are at hand: a baseline's file has none."""
    if not isinstance(source, StoredRun):
        if not Path(source).is_dir():
            return []
        source = books.read(Path(source))
    lines = [(suite, acceptance.undrafted_note(source.suite(suite)[0])) for suite in source.suites]
    return [f"{suite}, {name}: {line}." for suite, line in lines if line is not None]


def _counted_in(part: parts.Part, source: Source) -> baselines.Baseline:
    """A run as the gate sees the steps of a part of its answers. Raises `UserError`."""
    run = sound(source) if isinstance(source, StoredRun) or Path(source).is_dir() else None
    if run is None:
        raise UserError(f"{source}: a file has no single steps, which --only {part} needs: name the run")
    books.require_order(run, f"--only {part}")
    whole = baselines.Baseline.of(run)
    told = thoughts(run.directory) if part.kind in ("thought", "answer") else {}
    suites = {}
    for name in run.suites:
        steps, turns = run.suite(name)
        chosen = parts.of_part(part, steps, turns, told)
        if not len(acceptance.drafted_steps(chosen)):
            raise UserError(f"{run.directory}: {name} has no steps in --only {part}")
        suites[name] = baselines.SuiteCounts.of(gate.count(chosen, turns, run.meta.spec.k))
    return whole.model_copy(update={"suites": suites})


def _counted(source: Source) -> baselines.Baseline | baselines.TextBaseline:
    if isinstance(source, StoredRun):
        return baselines.of_run(sound(source))
    return baselines.load(Path(source))
