"""The tables of docs/study.md and README that are made of the real model's stored runs (`scripts/smollm2/study.py`,
`scripts/real.py --study`).

`scripts/docs_numbers.py` writes them. Along one text each replay holds every draft position's chance, so that its K can
be cut afterwards: the law at K = 5 is that of the first five positions of a replay at K = 7.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval import Run, compare, read_run
from speceval.estimate import replay
from speceval.estimate.statistics import Interval, PairedDifference, holm, paired_ratio_difference, ratio_interval

sys.path.append(str(Path(__file__).parent))
import demo_tables as demo

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "results" / "smollm2"
CURVE = ROOT / "results" / "drafters" / "smollm2-135m-q4" / "curve.csv"
VERIFIED = STUDY / "verify"
FULL = ROOT / "results" / "reference" / "smollm2"
"""What `scripts/smollm2/study.py` stores: expected steps and committed tokens of every answer, by drafter."""
TEXTS = {1: ("T1", "T1-gsm8k"), 0: ("T0", "T0-gsm8k")}
"""By temperature: folders of `FULL`, each with its own suites."""
RESAMPLED = {0: "T1", 1: "T1-seed1", 2: "T1-seed2"}
"""By sampling seed: folders of `FULL` whose answers differ in it alone."""
SUITES = {"mt_bench": "MT-Bench", "humaneval": "HumanEval", "gsm8k": "GSM8K"}
PUBLISHED = ROOT / "results" / "published" / "lk_losses.csv"
PAPER_SETUPS = {
    ("EAGLE-3", "LK-α"): "LK-alpha",
    ("EAGLE-3", "LK-λ"): "LK-lambda eta=3",
    ("MEDUSA", "LK-λ"): "LK-lambda eta=10",
    ("MLP speculator", "LK-λ"): "LK-lambda eta=3",
}
"""What the paper's tables have of these. Its TV is trained from scratch, ours after KL: not the same."""
REPLAYED = {
    "kl-eagle3": ("EAGLE-3", "KL"),
    "tv-eagle3": ("EAGLE-3", "TV"),
    "lk-alpha-eagle3": ("EAGLE-3", "LK-α"),
    "lk-eagle3": ("EAGLE-3", "LK-λ"),
    "kl-eagle3-long": ("EAGLE-3, longer", "KL"),
    "lk-eagle3-long": ("EAGLE-3, longer", "LK-λ"),
    "kl-medusa": ("MEDUSA", "KL"),
    "lk-medusa": ("MEDUSA", "LK-λ"),
    "kl-mlp": ("MLP speculator", "KL"),
    "lk-mlp": ("MLP speculator", "LK-λ"),
}
"""Drafters along one text: architecture, whose first is what the others are held against, and loss."""
LONGER = {draft: f"{draft}-long" for draft in ("kl-eagle3", "lk-eagle3")}
"""Drafters that were trained longer as well, on more answers, and their names then."""
K = 5
PART = 32
"""Tokens of a part of an answer."""
SECOND = " seed 1"
"""Ends the name of a run of the second training seed in the curve."""


def blocks() -> dict[str, str]:
    """The blocks of docs/study.md."""
    return {
        "full": full_table(),
        "full-change": change_table(),
        "full-greedy": full_table(ks=(K,), temperature=0),
        "category": category_table(),
        "along": along_table(),
        "greedy": greedy_table(),
        "training-seeds": training_seeds_table(),
        "sampling-seeds": sampling_seeds_table(),
        "full-cost": cost_table(),
        "same-text": same_text_table(ks=(K,)),
        "tau-k": tau_k_table(),
        "study": free_table(),
        "verify": verify_table(),
        "curve": curve_table(),
        "seeds": seeds_table(),
        "longer": longer_table(),
        "curve-longer": longer_curve_table(),
    }


def replays(folder: Path = STUDY) -> dict[str, Run]:
    """The replays that are stored, by drafter."""
    paths = {draft: folder / f"{draft}-T1-replay" for draft in REPLAYED}
    runs = {draft: read_run(path) for draft, path in paths.items() if (path / "run.json").is_file()}
    return {draft: run for draft, run in runs.items() if run.meta.status == "complete"}


def totals(run: Run, k: int) -> pd.DataFrame:
    """Expected `committed` tokens and `steps` at K = k; index: suite and conversation."""
    deeper = [f"kept_{j}" for j in range(k + 1, replay.depth(run.steps) + 1)]
    steps = run.steps.drop(columns=deeper)
    of_suite = {suite: replay.conversation_totals(part) for suite, part in steps.groupby("suite", sort=False)}
    return pd.concat(of_suite, names=["suite"])


def same_text_table(folder: Path = STUDY, ks: Sequence[int] = (K, 7)) -> str:
    """tau of every drafter along the KL drafter's answers, and what its loss is worth."""
    runs = replays(folder)
    heads = [*SUITES.values(), "all", "Δ% over KL", "p (Holm)", "the paper's Δ%"]
    rows = [["architecture", "K", "loss", *heads]]
    lines: list[tuple[list[str], Interval | None, float | None]] = []
    for architecture in dict.fromkeys(architecture for architecture, _ in REPLAYED.values()):
        drafts = [draft for draft in runs if REPLAYED[draft][0] == architecture]
        for k in ks:
            mine = [draft for draft in drafts if replay.depth(runs[draft].steps) >= k]
            by_draft = {draft: totals(runs[draft], k) for draft in mine}
            for draft, of in by_draft.items():
                taus = [_tau(of.xs(suite), k) for suite in SUITES] + [_tau(of, k)]
                over = None if draft == mine[0] else _difference(by_draft[mine[0]], of)
                change, p = (None, None) if over is None else (over.relative_percent, over.p_value)
                lines.append(([architecture, str(k), REPLAYED[draft][1], *taus], change, p))
    for (cells, change, _), p in zip(lines, holm([p for *_, p in lines]), strict=True):
        theirs = paper_change(cells[0], cells[2])
        rows.append([*cells, "" if change is None else _change(change), "" if p is None else _p(p), theirs])
    text = next(iter(runs.values()))
    spec, engine = text.meta.spec, text.meta.fingerprint.engine
    tokens = int(text.turns["output_tokens"].sum())
    note = (
        f"Tokens committed a verify step at T=1, sampled drafts, along the same {tokens:,} tokens that the target said "
        f"to {spec.limit} conversations of each suite (answers of at most {spec.max_tokens} tokens), with 95 % "
        f"intervals over conversations. Only the drafts differ. vLLM {engine.vllm} on a CPU, "
        "`python scripts/real.py --study`; the runs are in `results/smollm2`."
    )
    return f"{markdown(rows)}\n\n{note}"


def paper_change(architecture: str, loss: str, suite: str | None = None, temperature: int = 1) -> str:
    """The change over KL that the paper has for Llama-3.1-8B, of a suite or of the mean over all; "" if none."""
    architecture = architecture.partition(",")[0]
    table = pd.read_csv(PUBLISHED)
    of_target = (table["target"] == "Llama-3.1-8B-Instruct") & (table["checkpoint"] == "ours")
    table = table[of_target & (table["T"] == temperature) & (table["drafter"].str.upper() == architecture.upper())]
    if suite is not None:
        table = table[table["dataset"] == SUITES[suite]]
    means = table.groupby("setup")["tau"].mean()
    setup = PAPER_SETUPS.get((architecture, loss), "")
    return "" if setup not in means else f"{100 * (means[setup] / means['KL'] - 1):+.1f} %"


def stored(draft: str, temperature: int = 1) -> pd.DataFrame | None:
    """The stored totals of a drafter on the texts of a temperature; None where there are none."""
    paths = [FULL / text / f"{draft}.parquet" for text in TEXTS[temperature]]
    tables = [_read(path) for path in paths if path.is_file()]
    return pd.concat(tables, ignore_index=True) if tables else None


def _read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).astype(dict.fromkeys(("suite", "conversation", "category"), str))


def of_conversations(table: pd.DataFrame, k: int = K, part: int = 0) -> pd.DataFrame:
    """Expected `steps` and `committed` tokens at K = k; index: suite and conversation. `part`: of the answers."""
    rows = table[(table["k"] == k) & (table["part"] == part)]
    return rows.groupby(["suite", "conversation"], sort=False)[["committed", "steps"]].sum()


def measured(temperature: int = 1) -> dict[str, pd.DataFrame]:
    """The totals of every drafter of `REPLAYED` that is stored."""
    tables = {draft: stored(draft, temperature) for draft in REPLAYED}
    return {draft: table for draft, table in tables.items() if table is not None}


def baseline(draft: str) -> str:
    """The drafter of the same architecture that the others are held against."""
    return next(name for name, (architecture, _) in REPLAYED.items() if architecture == REPLAYED[draft][0])


def suites_of(table: pd.DataFrame) -> list[str]:
    """Those that a drafter was measured on, in the order of `SUITES`."""
    return [suite for suite in SUITES if (table["suite"] == suite).any()]


def full_table(ks: Sequence[int] = (K, 7), temperature: int = 1) -> str:
    """tau of every drafter along the target's own answers to the whole suites, and what its loss is worth."""
    tables = measured(temperature)
    suites = [suite for suite in SUITES if any(suite in suites_of(table) for table in tables.values())]
    heads = [*(SUITES[suite] for suite in suites), "all", "Δ% over KL", "p (Holm)", "the paper's Δ%"]
    rows = [["architecture", "K", "loss", *heads]]
    lines: list[tuple[list[str], str, Interval | None, float | None]] = []
    architectures = dict.fromkeys(REPLAYED[draft][0] for draft in tables)
    for architecture, k in ((architecture, k) for architecture in architectures for k in ks):
        for draft, table in tables.items():
            if REPLAYED[draft][0] != architecture or table["k"].max() < k:
                continue
            own, kl = of_conversations(table, k), of_conversations(tables[baseline(draft)], k)
            taus = [_tau(own.xs(suite), k) if suite in suites_of(table) else "–" for suite in suites]
            over = None if draft == baseline(draft) else _difference(kl, own)
            change, p = (None, None) if over is None else (over.relative_percent, over.p_value)
            lines.append(([architecture, str(k), REPLAYED[draft][1], *taus, _tau(own, k)], draft, change, p))
    for (cells, draft, change, _), p in zip(lines, holm([p for *_, p in lines]), strict=True):
        theirs = "" if change is None else paper_change(*REPLAYED[draft], temperature=temperature)
        rows.append([*cells, "" if change is None else _change(change), "" if p is None else _p(p), theirs])
    return f"{markdown(rows)}\n\n{_provenance(temperature)}"


def _provenance(temperature: int) -> str:
    turns, words = [], []
    for text in TEXTS[temperature]:
        path = FULL / text / "text.json"
        if not path.is_file():
            continue
        record, of_text = json.loads(path.read_text()), pd.read_parquet(FULL / text / "text.parquet")
        turns.append(of_text)
        for suite in record["spec"]["suites"]:
            rows = of_text[of_text["suite"] == suite]
            more = ", both turns" if rows["turn"].max() > 1 else ""
            words.append(f"{rows['conversation'].nunique():,} conversations of {SUITES[suite]}{more}")
    tokens = int(pd.concat(turns)["output_tokens"].sum())
    spec, engine = record["spec"], record["fingerprint"]["engine"]
    kind = "sampled" if temperature else "greedy"
    return (
        f"Tokens committed a verify step at T={temperature}, {kind} drafts, along the same {tokens:,} tokens that the "
        f"target said to {'; '.join(words)} (answers of at most {spec['max_tokens']} tokens), with 95 % intervals over "
        f"conversations. Only the drafts differ. vLLM {engine['vllm']} on a CPU, sampling seed {spec['seeds'][0]}, "
        "`python scripts/smollm2/study.py WORK`; what is kept of the runs is in `results/reference/smollm2`."
    )


def change_table(k: int = K) -> str:
    """What each loss is worth over KL in each suite, the paper's figure beside it."""
    tables = measured()
    suites = [suite for suite in SUITES if any(suite in suites_of(table) for table in tables.values())]
    rows = [["architecture", "loss", *(cell for suite in suites for cell in (SUITES[suite], "paper"))]]
    for draft, table in tables.items():
        if draft == baseline(draft):
            continue
        cells = []
        for suite in suites:
            pair = [of_conversations(of[of["suite"] == suite], k) for of in (tables[baseline(draft)], table)]
            ours = _change(_difference(*pair).relative_percent) if len(pair[1]) else "–"
            cells += [ours, paper_change(*REPLAYED[draft], suite)]
        rows.append([*REPLAYED[draft], *cells])
    return markdown(rows)


def category_table(k: int = K) -> str:
    """tau of EAGLE-3 in each of MT-Bench's categories, and what each loss is worth there."""
    tables = {draft: table for draft, table in measured().items() if REPLAYED[draft][0] == "EAGLE-3"}
    others = [draft for draft in tables if draft != baseline(draft)]
    rows = [["category", "conversations", "tau, KL", *(f"{REPLAYED[draft][1]} over KL" for draft in others)]]
    mt_bench = {draft: table[table["suite"] == "mt_bench"] for draft, table in tables.items()}
    in_order = mt_bench[baseline(others[0])].sort_values("conversation", key=lambda ids: ids.astype(int))
    for category in dict.fromkeys(in_order["category"]):
        of = {draft: of_conversations(table[table["category"] == category], k) for draft, table in mt_bench.items()}
        kl = of[baseline(others[0])]
        changes = [_change(_difference(kl, of[draft]).relative_percent) for draft in others]
        rows.append([str(category), str(len(kl)), _tau(kl, k), *changes])
    return markdown(rows)


def along_table() -> str:
    """tau by the place in the answer where a step starts, all suites together."""
    tables = measured()
    parts = sorted({int(part) for part in tables["kl-eagle3"]["part"] if part})
    rows = [["drafter", *(f"tokens {PART * (part - 1) + 1}–{PART * part}" for part in parts)]]
    for draft, table in tables.items():
        rows.append([f"`{draft}`", *(_tau(of_conversations(table, K, part), K) for part in parts)])
        if draft != baseline(draft):
            kl = tables[baseline(draft)]
            pairs = [(of_conversations(kl, K, part), of_conversations(table, K, part)) for part in parts]
            rows.append(["Δ% over KL", *(_change(_difference(*pair).relative_percent) for pair in pairs)])
    return markdown(rows)


def longer_table(k: int = K) -> str:
    """tau of the drafters of `LONGER` along the same answers, what their loss is worth, and the longer training."""
    tables = {draft: stored(draft) for short, long in LONGER.items() for draft in (short, long)}
    of = {draft: of_conversations(table, k) for draft, table in tables.items() if table is not None}
    heads = [*SUITES.values(), "all", "Δ% over KL", "Δ% over the short training"]
    rows = [["training", "loss", *heads]]
    for name, pair in (("short", list(LONGER)), ("long", list(LONGER.values()))):
        for short, draft in zip(LONGER, pair, strict=True):
            own, kl = of[draft], of[pair[0]]
            of_suites = own.index.unique("suite")
            taus = [_tau(own.xs(suite), k) if suite in of_suites else "–" for suite in SUITES]
            changes = ["" if a is own else _change(_difference(a, own).relative_percent) for a in (kl, of[short])]
            rows.append([name, REPLAYED[short][1], *taus, _tau(own, k), *changes])
    return markdown(rows)


def longer_curve_table(every: int = 400) -> str:
    """Held-out acceptance of the drafters of `LONGER`: every so many steps, and in the end."""
    curve = pd.read_csv(CURVE)
    curve = curve[curve["run"].str.contains("-long")]
    last = curve.groupby("run")["step"].transform("max")
    return _curve(curve[(curve["step"] % every == 0) | (curve["step"] == last)])


def greedy_table(k: int = K) -> str:
    """Sampled and greedy drafts of the same drafters at T=1, and what the loss is worth with each."""
    modes = {"sampled": "", "greedy": "-greedy"}
    found = {(mode, loss): stored(f"{loss}-eagle3{end}") for mode, end in modes.items() for loss in ("kl", "lk")}
    tables = {name: table for name, table in found.items() if table is not None}
    suites = [suite for suite in SUITES if all(suite in suites_of(table) for table in tables.values())]
    heads = (f"{SUITES[suite]}: {what}" for suite in suites for what in ("KL", "LK-λ", "Δ%"))
    rows = [["drafts", *heads]]
    for mode in modes:
        cells = []
        for suite in suites:
            pair = [of_conversations(tables[mode, loss], k).loc[[suite]] for loss in ("kl", "lk")]
            cells += [*(_tau(one, k) for one in pair), _change(_difference(*pair).relative_percent)]
        rows.append([mode, *cells])
    return markdown(rows)


def training_seeds_table(k: int = K) -> str:
    """tau of EAGLE-3 from both training seeds on the same texts, and what each loss is worth in each."""
    drafts = [draft for draft in REPLAYED if REPLAYED[draft][0] == "EAGLE-3"]
    both = {draft: (stored(draft), stored(f"{draft}-seed1")) for draft in drafts}
    of = {
        draft: [of_conversations(table, k) for table in pair if table is not None]
        for draft, pair in both.items()
        if all(table is not None for table in pair)
    }
    common = functools.reduce(pd.Index.intersection, (one.index for pair in of.values() for one in pair))
    of = {draft: [one.loc[common] for one in pair] for draft, pair in of.items()}
    heads = ("seed 0: tau", "seed 1: tau", "seed 1 over seed 0", "seed 0: Δ% over KL", "seed 1: Δ% over KL")
    rows = [["loss", *heads]]
    for draft, pair in of.items():
        kl = of[drafts[0]]
        changes = [_change(_difference(*two).relative_percent) for two in zip(kl, pair, strict=True)]
        spread = _change(_difference(*pair).relative_percent)
        cells = [*(_tau(one, k) for one in pair), spread, *(["", ""] if draft == drafts[0] else changes)]
        rows.append([REPLAYED[draft][1], *cells])
    return markdown(rows)


def sampling_seeds_table(k: int = K) -> str:
    """tau of EAGLE-3 along answers of other sampling seeds, and what each loss is worth along each and along all."""
    drafts = [draft for draft in REPLAYED if REPLAYED[draft][0] == "EAGLE-3"]
    paths = {draft: [FULL / folder / f"{draft}.parquet" for folder in RESAMPLED.values()] for draft in drafts}
    of: dict[str, list[pd.DataFrame]] = {}
    for draft in (draft for draft in drafts if all(path.is_file() for path in paths[draft])):
        each = [of_conversations(_read(path), k) for path in paths[draft]]
        of[draft] = [*each, functools.reduce(pd.DataFrame.add, each)]  # a conversation's answers are one unit
    names = [*(f"seed {seed}" for seed in RESAMPLED), "all"]
    rows = [["loss", *(f"{name}: {what}" for name in names for what in ("tau", "Δ% over KL"))]]
    for draft, answers in of.items():
        cells = []
        for kl, own in zip(of[drafts[0]], answers, strict=True):
            cells += [_tau(own, k), "" if draft == drafts[0] else _change(_difference(kl, own).relative_percent)]
        rows.append([REPLAYED[draft][1], *cells])
    return markdown(rows)


def cost_table() -> str:
    """What the whole took: of each text's making, its capture, and a replay of each kind."""
    rows = [
        [
            "text",
            "tokens",
            "read, with prompts",
            "captured in",
            "size",
            "a replay: EAGLE-3, K=7",
            "MEDUSA, K=5",
        ]
    ]
    for text in (text for texts in TEXTS.values() for text in texts):
        folder = FULL / text
        if not (folder / "capture.json").is_file():
            continue
        capture = json.loads((folder / "capture.json").read_text())
        size = capture["head_bytes"] + sum(shard["bytes"] for shard in capture["shards"])
        read = sum(shard["rows"] for shard in capture["shards"])
        replays = [_seconds(folder / f"{draft}.json") for draft in ("kl-eagle3", "kl-medusa")]
        tokens = int(pd.read_parquet(folder / "text.parquet")["output_tokens"].sum())
        rows.append(
            [
                *(f"`{text}`", f"{tokens:,}", f"{read:,} tokens", f"{capture['seconds']:.0f} s"),
                *(f"{size / 1e6:.0f} MB", *replays),
            ]
        )
    return markdown(rows)


def _seconds(record: Path) -> str:
    if not record.is_file():
        return "–"
    return f"{sum(segment['seconds'] for segment in json.loads(record.read_text())['segments']):.0f} s"


def tau_k_table() -> str:
    """tau of each drafter at every K, all suites together, from one replay of it."""
    tables = measured()
    most = int(max(table["k"].max() for table in tables.values()))
    rows = [["drafter", *(f"K={k}" for k in range(1, most + 1))]]
    for draft, table in tables.items():
        of_k = {k: of_conversations(table, k).sum() for k in range(1, int(table["k"].max()) + 1)}
        taus = [f"{of_k[k]['committed'] / of_k[k]['steps']:.3f}" if k in of_k else "" for k in range(1, most + 1)]
        rows.append([f"`{draft}`", *taus])
    return markdown(rows)


def free_table(folder: Path = STUDY) -> str:
    """Free runs, suite by suite: both drafters, and n-gram where it was run."""
    rows = [["condition", "suite", "`kl-eagle3`", "`lk-eagle3`", "Δ% of lk over kl", "p (Holm)"]]
    for condition in ("T0", "T1"):
        runs = [read_run(folder / f"{draft}-{condition}") for draft in demo.DRAFTERS]
        for row in compare(*runs):
            taus = [f"{tau.value:.3f} [{tau.low:.3f}, {tau.high:.3f}]" for tau in (row.tau_a, row.tau_b)]
            worth = "–" if row.p_adjusted is None else f"{row.p_adjusted:.2f}"
            rows.append([condition.replace("T", "T="), row.suite, *taus, demo.change(row.relative_percent), worth])
    spec, engine = runs[0].meta.spec, runs[0].meta.fingerprint.engine
    note = (
        f"Acceptance length tau of {spec.limit} conversations a suite, answers of at most {spec.max_tokens} tokens, "
        f"K={spec.k}, sampling seed {spec.seeds[0]}, one training seed. vLLM {engine.vllm} on a CPU; the runs are in "
        "`results/smollm2`."
    )
    return f"{markdown(rows)}\n\n{note}"


def curve_table() -> str:
    """Held-out acceptance of the stored drafters while they were trained."""
    curve = pd.read_csv(CURVE)
    return _curve(curve[~curve["run"].str.contains(f"{SECOND}|-long")])


def _curve(points: pd.DataFrame) -> str:
    rows = [["training", "step", "tau", "alpha of position 1", "kept up to position 2", "3"]]
    for row in points.to_dict("records"):
        numbers = [f"{row[name]:.3f}" for name in ("tau", "alpha_1", "kept_2", "kept_3")]
        rows.append([str(row["run"]), str(row["step"]), *numbers])
    return markdown(rows)


def seeds_table() -> str:
    """Held-out tau at the end of training with each loss, of both training seeds, and its change over KL."""
    curve = pd.read_csv(CURVE)
    last = curve[curve["run"].str.contains("-eagle3") & ~curve["run"].str.contains("stored|-long")]
    tau = last[last["step"] == last["step"].max()].set_index("run")["tau"].to_dict()
    rows = [["loss", *(f"seed {seed}: tau, Δ% over KL" for seed in (0, 1))]]
    for loss, file in (("KL", "kl"), ("TV", "tv"), ("LK-α", "lk-alpha"), ("LK-λ", "lk-lambda")):
        cells = []
        for suffix in ("", SECOND):
            own, kl = tau.get(f"{file}-eagle3{suffix}"), tau[f"kl-eagle3{suffix}"]
            cells.append(
                "–" if own is None else f"{own:.3f}" + ("" if loss == "KL" else f", {100 * (own / kl - 1):+.1f} %")
            )
        rows.append([loss, *cells])
    return markdown(rows)


def verify_table() -> str:
    """What `speceval verify` said of this target."""
    rows = [["what", "K", "T", "top-p", "patches", "verdict", "smallest bias seen", "continuations", "acceptance", "s"]]
    for path in sorted(VERIFIED.glob("*/verify.json")):
        report = json.loads(path.read_text())
        settings, biased = report["settings"], report["verdict"] == "biased"
        rows.append(
            [
                *(f"`{settings['draft']}`", str(settings["k"]), f"{settings['temperature']:g}"),
                *(f"{settings['top_p']:g}", "off" if report["missing"] else "on", f"**{report['verdict']}**"),
                *(
                    "" if biased else f"{report['smallest_bias']:.3f}",
                    f"{settings['samples']:,} × {settings['tokens']} tokens",
                ),
                *(_accepted(report), f"{sum(report['seconds'].values()):.0f}"),
            ]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with its first row as heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _accepted(report: dict[str, Any]) -> str:
    rates = (c for c in report["checks"] if c["kind"] == "accepted" and c["where"] == "all drafts")
    return next((f"{rate['observed']:.3f}" for rate in rates), "–")


def _tau(of: Any, k: int) -> str:
    tau = ratio_interval(of["committed"], of["steps"], bounds=(1, k + 1))
    if tau.value is None or tau.low is None or tau.high is None or np.isnan(tau.low):
        return "–" if tau.value is None else f"{tau.value:.3f}"
    return f"{tau.value:.3f} [{tau.low:.3f}, {tau.high:.3f}]"


def _difference(a: pd.DataFrame, b: pd.DataFrame) -> PairedDifference:
    a, b = a.align(b, join="inner")
    return paired_ratio_difference(a["committed"], a["steps"], b["committed"], b["steps"])


def _change(relative: Interval) -> str:
    return f"{relative.value:+.1f} % [{relative.low:+.1f}, {relative.high:+.1f}]"


def _p(p: float) -> str:
    return "< 1e-9" if p < 1e-9 else f"{p:.2f}" if p >= 0.01 else f"{p:.1e}"
