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
from speceval.store import StoredRun
from speceval.store.schema import RunMeta, Segment, Skipped

TAUS = {
    "tau": "tau",
    "tau_rb": "tau Rao–Blackwell",
    "tau_committed": "tau committed",
    "tau_paper": "tau paper",
    "tau_request_mean": "tau request mean",
}
"""Acceptance lengths by column name, with the label under which people read them."""

SCREENFUL = 20
"""Problems that are shown with a run; there can be one for every step."""

SEVERAL = 1.05
"""Engines that measured at a time, on average: from here on there was more than one."""

LOPSIDED = 0.1
"""An interval is shown by its bounds when its middle is off the value by more than this share of its half."""


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
    for tau, label in TAUS.items():
        if tau == "tau_rb" and all(suite[tau]["value"] is None for suite in suites.values()):
            continue  # nothing was recorded
        table.add_row(label, *(plus_minus(suite[tau]) for suite in suites.values()))
    if any(suite["undrafted_steps"] for suite in suites.values()):
        table.add_row("tau all steps", *(plus_minus(suite["tau_all_steps"]) for suite in suites.values()))
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
    return Group(
        Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in _notes(run, shown))
    )


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
    notes = [line] if (line := _speed(run.meta)) else []
    if found:
        notes.append("the server's totals have no interval: it told no request's steps, and others' are in them")
    notes += [
        *_load(shown["load"]),
        *_skipped(run.meta.skipped),
        *run.meta.notes,
        *_problems(shown["problems"]),
        f"run: {run.directory}",
    ]
    return Group(Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in notes))


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


LATE = 20
"""Milliseconds on average from which it is said that the harness was late."""


def _load(found: dict[str, Any] | None) -> list[str]:
    """What a reader must know of a run's times, and its throughput."""
    if found is None:
        return []
    arrivals = "each as soon as there is room" if found["rate"] == "inf" else f"{found['rate']:g} a second, at random"
    lines = [f"load: conversations begin {arrivals}; at most {found['max_concurrency']} requests at once."]
    whole = found["throughput"]
    if whole is None:
        return [*lines, "throughput: not told, the run was interrupted."]
    parts = (("request", "requests", 2), ("output", "output tokens", 1), ("total_token", "tokens with prompts", 1))
    told = ", ".join(f"{plus_minus(whole[f'{name}_throughput'], digits)} {what}" for name, what, digits in parts)
    lines.append(f"throughput: {told} a second, {whole['concurrency']:.1f} requests in flight on average.")
    if found["rate"] != "inf" and whole["held"]:
        lines.append(
            f"{whole['held']} of {whole['begun']} conversations were due while {found['max_concurrency']} were in "
            "flight and were sent later: the server did not keep up."
        )
    elif (whole["waited_ms"] or 0) > LATE:
        lines.append(f"conversations were sent {whole['waited_ms']:.0f} ms late on average: this machine is busy.")
    return lines


def _speed(meta: RunMeta) -> str:
    """Tokens per second of the run; empty if that is not known."""
    tokens, seconds = sum(segment.tokens for segment in meta.segments), meta.wall_seconds
    if not seconds:
        return ""
    engines = meta.engine_seconds / seconds
    each = "" if engines < SEVERAL else f" on each of {engines:.1f} engines"
    return f"{tokens / seconds:,.0f} tokens a second, {meta.spec.batch} requests at once{each}"


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
    notes = [
        "replay: expectations along given texts. Compare `tau committed` with that of other runs, but positions (of "
        "drafts within the text) with other replays only.",
        "± is half a 95 % interval over new prompts like these and new texts; unit: the conversation.",
        *_load(shown["load"]),
        *_without_drafts(run),
        *_fallbacks(run.meta.segments),
        *_unchecked(run),
        *run.meta.notes,
        *_problems(shown["problems"]),
        f"run: {run.directory}",
    ]
    return Group(Text(_title(shown), style="bold"), Fitting(table, by="columns"), *(Text(line) for line in notes))


def _without_drafts(run: StoredRun) -> list[str]:
    """Of a replay: places of the texts where nothing was drafted."""
    undrafted, places = int((run.steps["drafted"] == 0).sum()), len(run.steps)
    if undrafted <= acceptance.FEW_UNDRAFTED * places:
        return []
    return [f"{undrafted:,} of {places:,} places had no drafts: each is a step of one token, in no number here."]


def _law(law: dict[str, Any]) -> str:
    """z of the test that texts have the target's law; "n/a" where there is none."""
    return "n/a" if law["z"] is None else f"{law['z']:+.1f}"


def plus_minus(interval: dict[str, Any], digits: int = 3) -> str:
    """A value with its interval: "2.314 ± 0.018", "1.020 [1.000, 1.051]" when lopsided, "n/a" without a value."""
    if interval["value"] is None:
        return "n/a"
    if interval["low"] is None:
        return f"{interval['value']:.{digits}f}"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    half = (high - low) / 2
    if abs(low + half - value) > max(0.5 * 10**-digits, LOPSIDED * half):
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def z_value(z: float) -> str:
    """A z-value with its sign, "+0.0" from either side."""
    return f"{round(z, 1) + 0:+.1f}"


def rate_cell(position: dict[str, Any]) -> str:
    """One position's unconditional rate and, in brackets, the conditional one: "0.351 (0.646)"."""
    rates = (position["unconditional"], position["conditional"])
    unconditional, conditional = ("n/a" if rate is None else f"{rate:.3f}" for rate in rates)
    return f"{unconditional} ({conditional})"


def _title(shown: dict[str, Any]) -> str:
    drafting = f"{shown['drafting']} drafting"
    unfinished = " · UNFINISHED" if shown["status"] == "running" else ""
    forced = " · FORCED ACCEPTANCE, NO MEASUREMENT" if shown["forced"] else ""
    engine = "" if shown["engine"] == "vllm" else f" · engine {shown['engine']}"
    return (
        f"{shown['target']} · {shown['draft']} · T={shown['temperature']:g} · K={shown['k']} · {drafting}{engine}"
        f"{unfinished}{forced}"
    )


def _notes(run: StoredRun, shown: dict[str, Any]) -> list[str]:
    notes = [
        "± is half a 95 % interval over new prompts like these and new samples of each; unit: the conversation.",
        "position j: share of steps that accept draft token j (in brackets: of the steps that reach it).",
    ]
    for name, suite in shown["suites"].items():
        parts = [f"{suite['finish'].get('length', 0)} of {suite['turns']} turns ended at max_tokens"]
        if suite["undrafted_steps"]:
            parts.append(f"{suite['undrafted_steps']} steps without drafts left out")
        if suite["padded_steps"]:
            parts.append(f"{suite['padded_steps']} padded steps, which no drafter drafted for, left out")
        if suite["excess"]:
            parts.append(f"{suite['excess']} tokens past the end of a turn in tau, not in committed")
        notes.append(f"{name}: {'; '.join(parts)}.")
        if (line := acceptance.undrafted_note(run.suite(name)[0])) is not None:
            notes.append(f"{name}: {line}.")
    if shown["speedup"]:
        notes.append(
            "speed-up: tokens per second over the target's alone, in turns on this machine; its interval's unit: "
            "a block of conversations."
        )
        notes += _in_flight(shown["speedup"])
    if shown["evidence"] == "histogram" and not books.positions_known(run):
        notes.append(f"positions: not shown, {books.UNKNOWN_POSITIONS}.")
    notes += _load(shown["load"])
    recorded = {name: suite["agreement"] for name, suite in shown["suites"].items() if suite["agreement"]["steps"]}
    notes += [_agreement(name, found, shown["suites"][name]["steps"]) for name, found in recorded.items()]
    notes += _variance(shown["suites"])
    notes += until.notes(run.meta)
    notes += _warnings(shown["suites"]) + _skipped(run.meta.skipped) + _fallbacks(run.meta.segments)
    notes += _unchecked(run) + run.meta.notes
    notes += _problems(shown["problems"])
    notes.append(f"run: {run.directory}")
    return notes


def _in_flight(speedups: dict[str, dict[str, Any]]) -> list[str]:
    """How many requests there were while a batch was timed, where it was not as many as it says."""
    lines = []
    for suite, batches in speedups.items():
        for batch, timed in batches.items():
            if timed["running"] is None:
                part = "the number in flight was not recorded, its blocks were not full to the end"
            elif timed["running"] < FULL * int(batch):
                part = f"{timed['running']:.1f} requests in flight on average"
            else:
                continue
            if int(batch) > 1:
                lines.append(f"{suite}, speed-up at batch {batch}: {part}.")
    return lines


FULL = 0.95
"""Share of a batch in flight from which it counts as full."""


def _agreement(suite: str, found: dict[str, Any], steps: int) -> str:
    """Whether counting and Rao-Blackwell tell the same."""
    if found["z"] is None:
        return f"{suite}: {found['steps']} steps have a record of p and q: too few to hold against the counts."
    word = "agree" if found["agrees"] else "DISAGREE: the engine or the recorder is wrong"
    return (
        f"{suite}: counts and Rao–Blackwell {word} (z = {z_value(found['z'])}, from the {found['steps']:,} of "
        f"{steps:,} steps whose p and q were recorded)."
    )


def _variance(suites: dict[str, dict[str, Any]]) -> list[str]:
    """What more seeds could still do, for suites that have several."""
    lines = []
    for name, suite in suites.items():
        if found := suite.get("variance"):
            share = found["cluster_share"]
            lines.append(
                f"{name}: of the variance of tau's estimate {100 * share:.0f} % is between prompts, the rest sampling "
                f"(standard error {found['se']:.3f}, for new seeds of these prompts {found['se_samples']:.3f}): more "
                f"seeds can narrow the interval by {100 * (1 - share**0.5):.0f} % at most."
            )
    return lines


def _warnings(suites: dict[str, dict[str, Any]]) -> list[str]:
    """Each warning once, after the suites that it holds for."""
    holders: dict[str, list[str]] = {}
    for name, suite in suites.items():
        for warning in suite["warnings"]:
            holders.setdefault(warning, []).append(name)
    return [f"{', '.join(names)}: {warning}." for warning, names in holders.items()]


def _problems(problems: list[str]) -> list[str]:
    """A line each, up to a screenful."""
    lines = [f"PROBLEM: {problem}" for problem in problems[:SCREENFUL]]
    left = len(problems) - len(lines)
    return [*lines, f"PROBLEM: {left:,} more: `speceval validate` names all."] if left else lines


def _unchecked(run: StoredRun) -> list[str]:
    """How much of a finished run the engine's counters say nothing about, if anything."""
    checked, measured = run.checked
    if not run.complete or checked >= measured:
        return []
    return [
        f"{checked:,} of {measured:,} conversations were held against the engine's counters: the others were measured "
        "by an engine that was killed before it could be asked."
    ]


def _fallbacks(segments: list[Segment]) -> list[str]:
    """How many steps were verified with another q than the one drafted with."""
    counters = [segment.counters for segment in segments if segment.counters is not None]
    one_hot, structured = sum(c.steps_one_hot for c in counters), sum(c.steps_structured for c in counters)
    with_q = sum(c.steps_with_q for c in counters)
    total, lines = with_q + one_hot + structured, []
    if one_hot:
        lines.append(
            f"{one_hot:,} of {total:,} steps had lost q and were verified as if their drafts were certain: lossless, "
            "but they accept less."
        )
    if structured:
        lines.append(f"{structured:,} of {total:,} steps had a grammar and drafted argmaxes.")
    return lines


def _skipped(rows: list[Skipped]) -> list[str]:
    """One line for each suite that lost turns, with the first reason."""
    lines = []
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        first = f"{mine[0].conversation}: {mine[0].skipped}"
        lines.append(f"{suite}: {len(mine)} conversations cut short (first: {first}).")
    return lines
