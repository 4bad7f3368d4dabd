"""The tables of docs/study.md and README that are made of the real model's stored runs (`scripts/real.py --study`).

`scripts/docs_numbers.py` writes them. Along one text each replay holds every draft position's chance, so that its K can
be cut afterwards: the law at K = 5 is that of the first five positions of a replay at K = 7.
"""

from __future__ import annotations

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
SUITES = {"mt_bench": "MT-Bench", "humaneval": "HumanEval", "gsm8k": "GSM8K"}
PUBLISHED = ROOT / "results" / "published" / "lk_losses.csv"
PAPER_SETUPS = {
    ("EAGLE-3", "LK-α"): "LK-alpha",
    ("EAGLE-3", "LK-λ"): "LK-lambda eta=3",
    ("MEDUSA", "LK-λ"): "LK-lambda eta=10",
}
"""What the paper's tables have of these. Its TV is trained from scratch, ours after KL: not the same."""
REPLAYED = {
    "kl-eagle3": ("EAGLE-3", "KL"),
    "tv-eagle3": ("EAGLE-3", "TV"),
    "lk-alpha-eagle3": ("EAGLE-3", "LK-α"),
    "lk-eagle3": ("EAGLE-3", "LK-λ"),
    "kl-medusa": ("MEDUSA", "KL"),
    "lk-medusa": ("MEDUSA", "LK-λ"),
}
"""Drafters along one text: architecture, whose first is what the others are held against, and loss."""
K = 5
SECOND = " seed 1"
"""Ends the name of a run of the second training seed in the curve."""


def blocks() -> dict[str, str]:
    """The blocks of docs/study.md."""
    return {
        "same-text": same_text_table(),
        "tau-k": tau_k_table(),
        "study": free_table(),
        "verify": verify_table(),
        "curve": curve_table(),
        "seeds": seeds_table(),
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


def paper_change(architecture: str, loss: str) -> str:
    """The change over KL that the paper has for Llama-3.1-8B at T=1, of the mean over the three suites; "" if none."""
    table = pd.read_csv(PUBLISHED)
    table = table[(table["target"] == "Llama-3.1-8B-Instruct") & (table["T"] == 1) & (table["checkpoint"] == "ours")]
    table = table[table["drafter"].str.upper() == architecture]
    means = table.groupby("setup")["tau"].mean()
    setup = PAPER_SETUPS.get((architecture, loss))
    return "" if setup is None else f"{100 * (means[setup] / means['KL'] - 1):+.1f} %"


def tau_k_table(folder: Path = STUDY) -> str:
    """tau of each drafter at every K, from one replay of it."""
    runs = replays(folder)
    most = max(replay.depth(run.steps) for run in runs.values())
    rows = [["drafter", *(f"K={k}" for k in range(1, most + 1))]]
    for draft, run in runs.items():
        of_k = {k: totals(run, k).sum() for k in range(1, replay.depth(run.steps) + 1)}
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
    rows = [["training", "step", "tau", "alpha of position 1", "kept up to position 2", "3"]]
    for row in pd.read_csv(CURVE).to_dict("records"):
        if SECOND in str(row["run"]):
            continue
        numbers = [f"{row[name]:.3f}" for name in ("tau", "alpha_1", "kept_2", "kept_3")]
        rows.append([str(row["run"]), str(row["step"]), *numbers])
    return markdown(rows)


def seeds_table() -> str:
    """Held-out tau at the end of training with each loss, of both training seeds, and its change over KL."""
    curve = pd.read_csv(CURVE)
    last = curve[curve["run"].str.contains("-eagle3") & ~curve["run"].str.contains("stored")]
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
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1e}"
