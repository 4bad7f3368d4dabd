"""From stored runs to the plain data that the template shows, and to the page."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speceval.errors import UserError
from speceval.estimate import comparison, replay, speedup
from speceval.estimate.statistics import COVERS
from speceval.files import write_whole
from speceval.private import without_places
from speceval.protocol import flatten
from speceval.show.cells import plus_minus, z_value
from speceval.show.comparison import signed
from speceval.show.labels import labels
from speceval.show.notes import INTERPRETED, interpreted_in
from speceval.show.plots import style
from speceval.show.report import along, differences, samples, verification
from speceval.show.report.audits import Audit, audit
from speceval.show.report.figures import TITLES, pictures
from speceval.show.report.text import cut, visible
from speceval.show.tables import grade_note, lengths, suite_summary
from speceval.store import StoredRun
from speceval.store.schema import ABSENT, PatchState

State = Literal["result", "good", "look", "bad"]


@dataclass(frozen=True)
class Statement:
    """One line of the verdict."""

    state: State
    text: str


@dataclass(frozen=True)
class Column:
    """One suite of one run: a column of the tables."""

    run: str
    suite: str
    summary: dict[str, Any]
    speedups: dict[str, dict[str, Any]]
    """Speed-up over decoding without drafts by batch size, where it was timed."""


@dataclass(frozen=True)
class Shown:
    """One run with everything that the page says of it."""

    label: str
    run: StoredRun
    columns: list[Column]
    audits: list[Audit]
    verified: tuple[Path, dict[str, Any]] | None
    mismatches: list[str]
    """Where a verification named by the user does not fit the run."""
    outputs: dict[Any, list[samples.Turn]] | None


def write(runs: Sequence[StoredRun], path: Path, verify_file: Path | None = None, allow: Sequence[str] = ()) -> int:
    """Write the report of one or more runs to `path`, whole or not at all; returns its size in bytes.

    verify_file: a verify.json that speaks for the runs, else the newest that fits each is looked for. allow: fields of
    the fingerprint that may differ between runs that are compared. Raises `UserError`.
    """
    page = render(gather(runs, verify_file, allow)).encode()
    write_whole(path, page)
    return len(page)


def render(context: dict[str, Any]) -> str:
    """The page. Every value is escaped, and shown without control characters (`text.visible`)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("speceval.show.report", "."),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(plus_minus=plus_minus, signed=signed, cut=cut)
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    page = {"style": Markup(style), "policy": policy(style), **context}
    return environment.get_template("template.html.j2").render(page)


def policy(style: str) -> str:
    """What a browser may do with the page: apply this style, show pictures that are in it, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def gather(runs: Sequence[StoredRun], verify_file: Path | None = None, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the template names."""
    if not runs:
        raise UserError("no run: name the directory of one or more")
    style.require_one_kind(runs)
    replayed = replay.is_replay(runs[0])
    given = None if verify_file is None else (verify_file, verification.read(verify_file))
    picks = along.choose(runs[0]) if replayed else samples.choose(runs[0].turns)
    here, runs = runs, [run.published() for run in runs]
    shown = [_show(*each, picks, given) for each in zip(here, runs, labels(runs, form=cut), strict=True)]
    found = differences.find(runs, [one.label for one in shown], allow)
    drawn, left_out = pictures(runs, allow, compared=bool(found.rows))
    drafters = dict.fromkeys(cut(run.meta.spec.draft) for run in runs)
    return {
        "replayed": replayed,
        "length": "tau_committed" if replayed else "tau",
        "hardest": _hardest(here, shown) if replayed else [],
        "title": f"{', '.join(drafters)} on {cut(runs[0].meta.spec.target)}",
        "shown": shown,
        "columns": [column for one in shown for column in one.columns],
        "taus": lengths(*(column.summary for one in shown for column in one.columns)),
        "batches": list(dict.fromkeys(batch for one in shown for column in one.columns for batch in column.speedups)),
        "most_k": max(run.meta.spec.k for run in runs),
        "statements": _comparison_statements(found) + _statements(shown),
        "differences": found.rows,
        "covers": COVERS.replace("new seeds", "new texts") if replayed else COVERS,
        "pictures": drawn,
        "decision": next((picture for picture in drawn if picture.title == TITLES["forest"][0]), None),
        "not_drawn": left_out,
        "picks": picks,
        "rule": samples.RULE,
        "kinds": along.KINDS if replayed else samples.KINDS,
        "fields": _fields(shown),
        "patches": _patches(runs),
        "environments": [flatten(run.meta.environment.model_dump()) for run in runs],
        "commands": [shlex.join(run.meta.command) for run in runs],
    }


def _show(
    here: StoredRun,
    run: StoredRun,
    label: str,
    picks: list[samples.Pick],
    given: tuple[Path, dict[str, Any]] | None,
) -> Shown:
    """`run` is what is shown of the run that lies `here`."""
    verified = given or verification.find(here)
    mismatches = verification.mismatches(here, given[1]) if given else []
    timed = speedup.summarise(run.meta.speedup) if run.meta.speedup else {}
    return Shown(
        label=label,
        run=run,
        columns=[Column(label, cut(suite), _summary(run, suite), timed.get(suite, {})) for suite in run.suites],
        audits=audit(run),
        verified=verified and (Path(without_places(str(verified[0]))), verified[1]),
        mismatches=[without_places(line) for line in mismatches],
        outputs=along.gather(here, picks) if replay.is_replay(run) else samples.gather(here, picks),
    )


def _summary(run: StoredRun, suite: str) -> dict[str, Any]:
    """`suite_summary`; of a replay with what its positions keep, and its places without drafts."""
    summary = suite_summary(run, suite)
    if not replay.is_replay(run):
        return summary
    rows = zip(summary["positions"], along.positions(run, suite, run.meta.spec.k), strict=True)
    undrafted = int((run.suite(suite)[0]["drafted"] == 0).sum())
    return summary | {"positions": [row | more for row, more in rows], "places_without_drafts": undrafted}


def _hardest(runs: Sequence[StoredRun], shown: list[Shown]) -> list[dict[str, Any]]:
    """Tables of places: where each run needs most steps, and where it loses most against the first."""
    tables = []
    for number, (run, one) in enumerate(zip(runs, shown, strict=True)):
        for suite in run.suites:
            tables.append(
                {
                    "title": f"{one.label}, {cut(suite)}: the stretches of {along.STRETCH} tokens that need most steps",
                    "value": "steps",
                    "places": along.hardest(run, suite),
                }
            )
            if number and suite in runs[0].suites and (places := along.lost(runs[0], run, suite)):
                title = f"{one.label}, {cut(suite)}: where it accepts fewer tokens than {shown[0].label}"
                tables.append({"title": title, "value": "tokens fewer", "places": places})
    return [table for table in tables if table["places"]]


FORCED = Statement("bad", "Acceptance was forced (synthetic rejection): these numbers measure no drafter.")

# -- the verdict -------------------------------------------------------------------------------------------------------


def _comparison_statements(found: differences.Differences) -> list[Statement]:
    lines = [Statement("look", f"{warning}.") for warning in found.few]
    lines += [Statement("result", f"{sentence}.") for sentence in found.sentences]
    lines += [_exact_change(row) for row in found.rows if row.quantity == "tau committed"]
    if found.refused:
        lines.append(Statement("bad", f"Not compared: {found.refused}."))
    return lines + [Statement("look", f"{caution[0].upper()}{caution[1:]}.") for caution in found.cautions]


def _exact_change(row: differences.Row) -> Statement:
    """Of two replays: what needs no interval."""
    found = row.compared
    a, b = (found[name]["value"] for name in ("tau_a", "tau_b"))
    if a is None or b is None:
        return Statement("look", f"On these texts of {row.suite} nothing is drafted.")
    change = 100 * (b / a - 1)
    return Statement(
        "result", f"{row.run}, on these texts of {row.suite}: {change:+.3f} %, exactly ({a:.4f}, {b:.4f})."
    )


def _statements(shown: list[Shown]) -> list[Statement]:
    """What holds for each run; what holds for several is said once, after their names."""
    holders: dict[Statement, list[str]] = {}
    for one in shown:
        for statement in _of_run(one, alone=len(shown) == 1):
            holders.setdefault(statement, []).append(one.label)
    everyone = [one.label for one in shown]
    return [
        statement if names == everyone else Statement(statement.state, f"{', '.join(names)}: {statement.text}")
        for statement, names in holders.items()
    ]


def _of_run(one: Shown, alone: bool) -> list[Statement]:
    if replay.is_replay(one.run):
        return _of_replay(one, alone)
    measured = [column.summary["tau"]["value"] is not None for column in one.columns]
    # Of several runs the differences are the result; each one's tau stands above them.
    taus = [_tau(one, column) for column, found in zip(one.columns, measured, strict=True) if alone or not found]
    forced = [FORCED] if one.run.meta.spec.rejection == "synthetic" else []
    times = [Statement("look", f"Speed-up: {INTERPRETED}.")] * bool(
        one.run.meta.speedup and interpreted_in(one.run.meta)
    )
    return [*forced, *taus, *times, *_books(one.run), *_agreement(one), _verified(one), _audited(one.audits)]


def _of_replay(one: Shown, alone: bool) -> list[Statement]:
    taus = [_along(one, column) for column in one.columns if alone or column.summary["tau_committed"]["value"] is None]
    if one.run.meta.problems:
        books = [Statement("bad", f"The replay is no measurement: {problem}.") for problem in one.run.meta.problems]
    elif not one.run.complete:
        books = [Statement("look", "The replay is unfinished: its books have not been checked yet.")]
    else:
        books = [Statement("good", "Every place of the texts has its record.")]
    if one.run.meta.spec.engine == "capture":
        told = "Measured on a capture: no engine ran. What one makes of this drafter a run or a live replay shows."
        return [*taus, *books, Statement("look", told), _audited(one.audits)]
    return [*taus, *books, _verified(one), _audited(one.audits)]


def _along(one: Shown, column: Column) -> Statement:
    summary, spec = column.summary, one.run.meta.spec
    tau = summary["tau_committed"]
    if tau["value"] is None:
        return Statement("bad", f"Nothing was measured on {column.suite}: no place has drafts.")
    new = "" if tau["low"] is None else f" On prompts like these: {plus_minus(tau)} (95 % interval)."
    return Statement(
        "result",
        f"Along these texts of {column.suite} a step is expected to commit {tau['value']:.4f} tokens at K={spec.k}, "
        f"T={spec.temperature:g}, {spec.drafting} drafts: a number, the same each time "
        f"({summary['conversations']:,} conversations, {summary['text_tokens']:,} tokens).{new}",
    )


def _audited(audits: list[Audit]) -> Statement:
    loud = [found.name for found in audits if found.attention]
    if not loud:
        return Statement("good", "No audit needs attention.")
    return Statement("look", f"{len(loud)} of {len(audits)} audits need attention: {', '.join(loud)}.")


def _tau(one: Shown, column: Column) -> Statement:
    summary, spec = column.summary, one.run.meta.spec
    if summary["tau"]["value"] is None:
        return Statement("bad", f"Nothing was measured on {column.suite}: no step has drafts.")
    interval = "" if summary["tau"]["low"] is None else " (95 % interval)"
    return Statement(
        "result",
        f"On {column.suite} a step emits {plus_minus(summary['tau'])} tokens{interval} at K={spec.k}, "
        f"T={spec.temperature:g}, {spec.drafting} drafts: {summary['conversations']:,} conversations, "
        f"{summary['steps']:,} steps.",
    )


def _books(run: StoredRun) -> list[Statement]:
    told = grade_note(run)
    return _balance(run) + ([Statement("look", told)] if told else [])


def _balance(run: StoredRun) -> list[Statement]:
    if run.meta.problems:
        return [Statement("bad", f"The books do not balance: {problem}.") for problem in run.meta.problems]
    if not run.complete:
        return [Statement("look", "The run is unfinished: its books have not been checked yet.")]
    checked, measured = run.checked
    if checked < measured:
        return [
            Statement(
                "look",
                "The books balance: drafted, accepted and committed tokens reconcile with each other. "
                f"{checked:,} of {measured:,} conversations were held against the engine's own counters.",
            )
        ]
    return [
        Statement(
            "good",
            "The books balance: drafted, accepted and committed tokens reconcile with each other and with the engine's "
            "own counters.",
        )
    ]


def _agreement(one: Shown) -> list[Statement]:
    """Counts against p and q, where the run has recorded them."""
    lines = []
    for column in one.columns:
        found = column.summary["agreement"]
        if found["z"] is None:
            continue
        word = "what p and q say" if found["agrees"] else "not what p and q say: the engine or the recorder is wrong"
        text = f"Accepted tokens on {column.suite} are {word} (z = {z_value(found['z'])}, {found['steps']:,} steps)."
        lines.append(Statement("good" if found["agrees"] else "bad", text))
    return lines


def _verified(one: Shown) -> Statement:
    if one.verified is None:
        if one.run.meta.spec.temperature == 0:
            return Statement("look", "Not verified: greedy decoding samples nothing that could be tested.")
        return Statement("look", f"Not verified on this engine: run {verification.command(one.run)}")
    _, found = one.verified
    if one.mismatches:
        return Statement("look", f"The verification is of another engine or request: {'; '.join(one.mismatches)}.")
    states: dict[str, State] = {"exact": "good", "biased": "bad"}
    return Statement(states.get(found["verdict"], "look"), f"Engine verified: {found['line']}.")


# -- protocol ----------------------------------------------------------------------------------------------------------


def _fields(shown: list[Shown]) -> list[dict[str, Any]]:
    """Every field of the fingerprints, with each run's value and whether they differ."""
    flat = [one.run.meta.fingerprint.flat() for one in shown]
    names = sorted({name for fields in flat for name in fields})
    rows = {name: [fields.get(name, ABSENT) for fields in flat] for name in names}
    return [
        {"name": name, "values": [_field(value) for value in values], "differs": any(v != values[0] for v in values)}
        for name, values in rows.items()
    ]


def _field(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return "none" if value is None else comparison.shorten(value)


def _patches(runs: Sequence[StoredRun]) -> dict[str, dict[str, Any]]:
    """Every patch that a run's worker told of: its title and its state in each run."""
    told = [{patch.id: patch for patch in run.meta.patches} for run in runs]
    titles = {name: patch.title for patches in told for name, patch in patches.items()}
    return {
        name: {"title": title, "states": [_patch_state(patches.get(name)) for patches in told]}
        for name, title in titles.items()
    }


def _patch_state(patch: PatchState | None) -> str:
    if patch is None:
        return ABSENT
    return f"{patch.state}: {patch.reason}" if patch.reason else patch.state
