"""Tables of stored runs, for people (rich) and for machines (one JSON object)."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speceval.errors import UserError
from speceval.estimate import acceptance, books, load, replay, speedup
from speceval.fitting import Fitting
from speceval.measure import until
from speceval.show import notes
from speceval.show.cells import plus_minus, rate_cell
from speceval.store import StoredRun

TAUS = {
    "tau": "tau",
    "tau_rb": "tau Rao–Blackwell",
    "tau_committed": "tau committed",
    "tau_paper": "tau paper",
    "tau_request_mean": "tau request mean",
}
"""Acceptance lengths by column name, with the label under which people read them."""


def lengths(*summaries: dict[str, Any]) -> dict[str, str]:
    """Those of `TAUS` that suites have, and where steps had no drafts the length over all of them."""
    undrafted = any(summary.get("undrafted_steps") for summary in summaries)
    named = TAUS | ({"tau_all_steps": "tau all steps"} if undrafted else {})
    there = {name for summary in summaries for name in named if name in summary and summary[name]["value"] is not None}
    return {name: label for name, label in named.items() if name in there}


def run_json(run: StoredRun) -> dict[str, Any]:
    """A run as one JSON-ready object: its request and state, then `suite_summary` of every suite.

    `problems` are `books.problems`; where they leave no numbers to make, `suites` is empty.
    """
    meta, spec, problems = run.meta, run.meta.spec, books.problems(run)
    return {
        "run": str(run.directory),
        "status": meta.status,
        "target": spec.target,
        "draft": spec.draft,
        "temperature": spec.temperature,
        "k": spec.k,
        "drafting": spec.drafting,
        "seeds": list(spec.seeds),
        "engine": spec.engine,
        "evidence": meta.evidence,
        "fingerprint": meta.fingerprint_hash,
        "forced": spec.rejection == "synthetic",
        "problems": problems,
        "notes": meta.notes,
        "wall_seconds": meta.wall_seconds,
        "engine_seconds": meta.engine_seconds,
        "checked_conversations": dict(zip(("checked", "measured"), run.checked, strict=True)),
        "stopping": meta.stopping.model_dump(mode="json") if meta.stopping else None,
        "suites": _summaries(run, problems),
        "speedup": speedup.summarise(meta.speedup) if meta.speedup else {},
        "totals": totals(run),
        "load": load_of(run),
    }


def load_of(run: StoredRun) -> dict[str, Any] | None:
    """Speed under load of a run with `--rate`, of all suites together and of each; None for any other run.

    `throughput` is None for a run that was interrupted: its time is not that of its requests.
    """
    if not len(load.timed(run.turns)):
        return None
    whole = run.complete and not any(segment.interrupted or not segment.seconds for segment in run.meta.segments)
    seconds, most = sum(segment.seconds for segment in run.meta.segments), run.meta.spec.batch * servers(run)
    return {
        "rate": run.meta.spec.rate,
        "max_concurrency": most,
        "throughput": load.throughput(run.turns, seconds, most) if whole else None,
        "interpreted": notes.interpreted_in(run.meta),
        "suites": {name: load.summarise(run.suite(name)[1]) for name in run.suites},
    }


def servers(run: StoredRun) -> int:
    """Servers that shared a run's requests."""
    return 1 + str(run.meta.spec.engine_args.get("url", "")).count(",")


def totals(run: StoredRun) -> dict[str, Any] | None:
    """tau and positions of a run whose server told its totals alone: no interval can be had. None for any other run."""
    counted = [segment.counters for segment in run.meta.segments if segment.counters is not None]
    if run.meta.evidence != "totals" or not counted:
        return None
    whole = counted[0]
    for other in counted[1:]:
        whole = whole.plus(other)
    steps = whole.num_drafts
    return {
        "steps": steps,
        "tau": 1 + whole.num_accepted_tokens / steps if steps else None,
        "positions": [count / steps if steps else None for count in whole.num_accepted_tokens_per_pos],
    }


def grade_note(run: StoredRun) -> str:
    """What every view must say of a run whose server did not tell each step; "" for any other."""
    if run.meta.evidence == "steps":
        return ""
    return f"The server told a {run.meta.evidence} of each request: tau is exact, the order of steps is not known."


def _summaries(run: StoredRun, problems: list[str]) -> dict[str, Any]:
    """`suite_summary` of every suite; of a run whose books do not balance, as far as that can be made."""
    try:
        return {name: suite_summary(run, name) for name in run.suites}
    except UserError as error:
        if not problems:
            raise
        problems.append(f"no numbers can be made of these tables: {error}")
        return {}


def suite_summary(run: StoredRun, suite: str) -> dict[str, Any]:
    """`acceptance.summarise` of one suite of a run; without `positions` where these are not known."""
    summarise = replay.summarise if replay.is_replay(run) else acceptance.summarise
    found = summarise(*run.suite(suite), run.meta.spec.k, until.confidence(run.meta, suite))
    return found if books.positions_known(run) else found | {"positions": []}


def run_tables(run: StoredRun, shown: dict[str, Any] | None = None) -> RenderableType:
    """What `speceval show` prints: lengths, positions, and what a reader must know to trust them.

    `shown`: `run_json` of the run, if it is at hand.
    """
    shown = shown or run_json(run)
    if replay.is_replay(run):
        return _replay_tables(run, shown)
    if shown["evidence"] in books.NO_STEPS:
        return _coarse_tables(run, shown)
    suites = shown["suites"]
    table = Table("")
    for name in suites:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for tau, label in lengths(*suites.values()).items():
        table.add_row(label, *(plus_minus(suite[tau]) for suite in suites.values()))
    table.add_section()
    for index in range(shown["k"] if books.positions_known(run) else 0):
        if shown["evidence"] == "requests":
            break  # sums say nothing of positions
        rates = (rate_cell(suite["positions"][index]) for suite in suites.values())
        table.add_row(f"position {index + 1}", *rates)
    for batch in dict.fromkeys(batch for timed in shown["speedup"].values() for batch in timed):
        cells = (shown["speedup"].get(name, {}).get(batch) for name in suites)
        table.add_row(f"speed-up, batch {batch}", *(plus_minus(cell, 2) if cell else "n/a" for cell in cells))
    _add_times(table, shown)
    table.add_section()
    samples = f" x {len(shown['seeds'])}" if len(shown["seeds"]) > 1 else ""
    table.add_row("conversations", *(f"{suite['conversations']}{samples}" for suite in suites.values()))
    table.add_row("steps", *(f"{suite['steps']:,}" for suite in suites.values()))
    table.add_row("tokens", *(f"{suite['committed']:,}" for suite in suites.values()))
    below = notes.of_run(run, shown)
    return Group(Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in below))


def _coarse_tables(run: StoredRun, shown: dict[str, Any]) -> RenderableType:
    """The same where no request tells of its drafts: the server's totals, if there are any, and what was generated."""
    table = Table("")
    for name in (*shown["suites"], "server's totals") if shown["totals"] else shown["suites"]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    suites, found = shown["suites"].values(), shown["totals"]

    def row(label: str, cells: list[str], total: str = "") -> None:
        table.add_row(label, *cells, *([total] if found else []))

    if found:
        row("tau", ["not told"] * len(suites), "n/a" if found["tau"] is None else f"{found['tau']:.3f}")
        for index, rate in enumerate(found["positions"], start=1):
            row(f"position {index}", [""] * len(suites), "n/a" if rate is None else f"{rate:.3f}")
        row("steps", [""] * len(suites), f"{found['steps']:,}")
    else:
        row("tau", ["not reported by this server"] * len(suites))
    _add_times(table, shown, [""] if found else [])
    row("conversations", [f"{suite['conversations']}" for suite in suites])
    row("tokens", [f"{suite['committed']:,}" for suite in suites])
    below = [line] if (line := notes.speed(run.meta)) else []
    if found:
        below.append("the server's totals have no interval: it told no request's steps, and others' are in them")
    below += [
        *notes.of_load(shown["load"]),
        *notes.skipped(run.meta.skipped),
        *run.meta.notes,
        *notes.problems(shown["problems"]),
        f"run: {run.directory}",
    ]
    return Group(Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in below))


LOAD = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2el_ms": "E2EL"}
"""Times by column name, with the label under which people read them."""


def _add_times(table: Table, shown: dict[str, Any], more: list[str] = []) -> None:  # noqa: B006 (is not changed)
    """The rows of a run's times, if it has any; `more`: cells after those of the suites."""
    if shown["load"] is None:
        return
    suites = [shown["load"]["suites"][name] for name in shown["suites"]]
    table.add_section()
    for kind, label in LOAD.items():
        for name in ("mean", "median", "p99"):
            if name in suites[0][kind]:
                cells = (plus_minus(suite[kind][name], 1) for suite in suites)
                table.add_row(f"{label} {name.replace('p99', 'P99')} (ms)", *cells, *more)


def _replay_tables(run: StoredRun, shown: dict[str, Any]) -> RenderableType:
    """The same for a replay, which has no counts: everything in it is an expectation along the given texts."""
    table = Table("")
    for name in shown["suites"]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    suites = shown["suites"].values()
    table.add_row("tau committed", *(plus_minus(suite["tau_committed"]) for suite in suites))
    for index in range(shown["k"]):
        rates = (suite["positions"][index]["unconditional"] for suite in suites)
        table.add_row(f"position {index + 1}", *("n/a" if rate is None else f"{rate:.3f}" for rate in rates))
    table.add_row("conversations", *(f"{suite['conversations']}" for suite in suites))
    table.add_row("tokens of the texts", *(f"{suite['text_tokens']:,}" for suite in suites))
    table.add_row("their law: z", *(_law(suite["text_law"]) for suite in suites))
    table.add_row("impossible (p = 0)", *(f"{suite['text_law']['impossible']:,}" for suite in suites))
    below = [
        "replay: expectations along given texts. Compare `tau committed` with that of other runs, but positions (of "
        "drafts within the text) with other replays only.",
        "± is half a 95 % interval over new prompts like these and new texts; unit: the conversation.",
        *notes.of_load(shown["load"]),
        *notes.without_drafts(run),
        *notes.fallbacks(run.meta.segments),
        *notes.unchecked(run),
        *run.meta.notes,
        *notes.problems(shown["problems"]),
        f"run: {run.directory}",
    ]
    return Group(Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in below))


def _law(law: dict[str, Any]) -> str:
    """z of the test that texts have the target's law; "n/a" where there is none."""
    return "n/a" if law["z"] is None else f"{law['z']:+.1f}"


def _title(shown: dict[str, Any]) -> str:
    drafting = f"{shown['drafting']} drafting"
    unfinished = " · UNFINISHED" if shown["status"] == "running" else ""
    forced = " · FORCED ACCEPTANCE, NO MEASUREMENT" if shown["forced"] else ""
    engine = "" if shown["engine"] == "vllm" else f" · engine {shown['engine']}"
    return (
        f"{shown['target']} · {shown['draft']} · T={shown['temperature']:g} · K={shown['k']} · {drafting}{engine}"
        f"{unfinished}{forced}"
    )
