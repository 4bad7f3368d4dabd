"""Run `speceval verify` over drafting methods and conditions, and over mutants; write the tables of its page
docs/trust/is-it-exact.md.

    python scripts/verify_matrix.py            # results/verify/engine.csv: rows that are there are not run again
    python scripts/verify_matrix.py --mutants  # results/verify/mutants.csv, all in one engine
    python scripts/verify_matrix.py --tables   # only docs/trust/is-it-exact.md
    --only TEXT runs the rows whose name contains TEXT, --samples N overrides the number of continuations.
    --vllm DIR runs VERSIONS' rows on another vLLM: DIR holds an unpacked wheel.

The checkpoints are the tests' own: a Llama of 24 tokens and drafters for it, from fixed seeds.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from speceval.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "verify"
PAGE = ROOT / "docs" / "trust" / "is-it-exact.md"
sys.path.append(str(ROOT / "tests"))

SAMPLES = 40000
V2_SAMPLES = 20000
STOCK_SAMPLES = 4000
ENGINE = {
    "SPECEVAL_PATCHES": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # One unbound thread: threads that wait for each other on shared cores are several times slower.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
}
ENGINE_ARGS = ("dtype=float32", "enforce_eager=true", "max_model_len=256")
UNMUTATED_SEEDS = (0, 1, 2)
MUTANT_COLUMNS = (
    *("name", "verdict", "temperature", "top_k", "top_p", "greedy_share", "samples", "tests", "failed", "least_p"),
    *("least_p_test", "limit", "joint_tv", "joint_noise", "verified_tv", "verified_noise"),
)
CUT = ("--top-k", "8", "--top-p", "0.9")
BLOCKS = ("--engine-arg", "block_size=32")
PREEMPTION = (*BLOCKS, "--engine-arg", "num_gpu_blocks_override=120")
"""Room for 30 requests of the long prompt, which fills four blocks; each needs a fifth before it ends."""


VERSIONS = ("eagle3 T=1", "medusa T=1")
"""Rows that are run on other versions of vLLM as well."""
V2_VERSIONS = (
    *("eagle3 T=1, V2", "draft_model T=1, V2", "mtp T=1, V2", "eagle3 top-k 8, top-p 0.9, V2"),
    *("medusa T=1, V2", "mlp T=1, V2", "dflash T=1, V2", "dspark T=1, V2"),
)
"""The same for versions from V2_FIRST on."""
V2_METHODS = ("eagle3", "draft_model", "mtp", "medusa", "mlp", "dflash", "dflash2", "dspark")
HEADS = ("medusa", "mlp")
"""They have three heads, and vLLM's V2 runner has no drafter for them."""
V2_BATCH = "512"
"""Interpreted, a step of many requests takes little longer than one of few; of 1024 it had not room for all drafts."""
V2_PREEMPTION = (*BLOCKS, "--engine-arg", "num_gpu_blocks_override=960", "--engine-arg", "max_num_batched_tokens=2048")
"""Room for 240 requests of the long prompt, whose prefills are cut to what a step has room for."""
WORDS: dict[str, tuple[str, ...]] = {
    "cut": CUT,
    "seeded": ("--seeded",),
    "greedy": ("--greedy-share", "0.25"),
    "cached": ("--prefix-caching", *BLOCKS),
    "preempted": V2_PREEMPTION,
    "ahead": (),
}
"""What a word of V2_DESIGN adds; ahead: asynchronous scheduling."""
V2_DESIGN = (
    "eagle3 1.3 4 cut seeded ahead preempted",
    "draft_model 0.7 1 seeded ahead preempted greedy",
    "mtp 1 7 cut seeded ahead cached",
    "medusa 0.7 1 cut seeded cached greedy",
    "eagle 1 4 cut seeded ahead cached greedy",
    "mlp 0.7 3 seeded preempted greedy",
    "eagle3-cut 0.7 7 cut ahead",
    "eagle3 0.7 7 cached greedy",
    "mtp 0.7 4 cut ahead preempted greedy",
    "draft_model 1.3 7 cached greedy",
    "eagle 1.3 7",
    "medusa 1 3 preempted",
    "eagle3-cut 1.3 4 preempted greedy",
    "mlp 1.3 1 cut cached",
    "eagle3 1 1 cut seeded ahead",
    "draft_model 1 4 cut",
    "mtp 1.3 1 seeded greedy",
    "eagle 0.7 1 cut seeded preempted greedy",
    "eagle3-cut 1 1 seeded cached greedy",
    "medusa 1.3 3 cut",
    "mlp 1 3 cut greedy",
)
"""Method, temperature, K and words: any two values of two of these meet in a row, where vLLM lets them."""
V2_FIRST = Version("0.32")
"""The first vLLM whose V2 runner starts on a CPU."""
V2_LATER = Version("0.33")
"""The first with `later_rows`."""


@dataclass(frozen=True)
class Row:
    """One verification: `options` of `speceval verify` besides the checkpoints."""

    name: str
    draft: str
    options: tuple[str, ...] = ()
    patches: bool = True
    vllm: str = ""
    """Directory of another vLLM than the installed one."""
    long: bool = False
    """Continue one prompt of 124 tokens, more than a block of the KV cache, in place of two short ones."""
    v2: bool = False
    """On the V2 runner, its kernels interpreted."""
    ahead: bool = False
    """With asynchronous scheduling."""

    @property
    def samples(self) -> int:
        """How many continuations: V1 as released gives itself away at once, interpreted kernels take their time."""
        return V2_SAMPLES if self.v2 else SAMPLES if self.patches else STOCK_SAMPLES


def plan() -> list[Row]:
    """All rows, those that say most first."""
    one = ("--temp", "1", "--batch", "64")
    stock = ("eagle3", "draft_model", "ngram", "medusa")
    rows = [Row(f"stock {draft}", draft, (*one, *own_k(draft), *stock_drafting(draft)), False) for draft in stock]
    methods = ("eagle", "eagle3", "eagle3-cut", "mtp", "draft_model", "ngram", "medusa", "mlp", "dflash")
    rows += [Row(f"{draft} T=1", draft, (*one, *own_k(draft))) for draft in methods]
    for draft in ("eagle3", "draft_model"):
        four = (*one, "--k", "4")
        rows += [
            Row(f"{draft} top-k 8, top-p 0.9", draft, (*four, *CUT)),
            Row(f"{draft} seeded", draft, (*four, "--seeded")),
            Row(f"{draft} K=1", draft, (*one, "--k", "1")),
            Row(f"{draft} K=7", draft, (*one, "--k", "7")),
            Row(f"{draft} a quarter greedy", draft, (*four, "--greedy-share", "0.25")),
            Row(f"{draft} preempted", draft, (*four, *PREEMPTION), long=True),
        ]
    for t in ("0.7", "1.3"):
        rows += [Row(f"{draft} T={t}", draft, ("--temp", t, "--batch", "64", *own_k(draft))) for draft in methods]
    rows += [
        Row(f"{draft} top-k 8, top-p 0.9, seeded", draft, (*one, *own_k(draft), *CUT, "--seeded")) for draft in methods
    ]
    rows += [
        Row("eagle3 T=1, batch 256", "eagle3", ("--temp", "1", "--k", "4", "--batch", "256")),
        Row("eagle3 T=1, drafts greedy", "eagle3", (*one, "--k", "4", "--drafting", "greedy")),
        Row("draft_model prefix caching", "draft_model", (*one, "--k", "4", "--prefix-caching", *BLOCKS), long=True),
        Row("eagle3 T=1, batch 1", "eagle3", ("--temp", "1", "--k", "4", "--batch", "1")),
    ]
    return rows + v2_rows()


def v2_rows() -> list[Row]:
    """Those on the V2 runner: each method alone, V2 as released beside it, and V2_DESIGN."""
    one = ("--temp", "1", "--batch", V2_BATCH)
    cut = "eagle3 top-k 8, top-p 0.9"
    rows = [Row(f"{draft} T=1", draft, (*one, *own_k(draft))) for draft in V2_METHODS]
    cut_row = Row(cut, "eagle3", (*one, "--k", "4", *CUT))
    stock = [replace(row, name=f"stock {row.name}", patches=False) for row in rows if row.draft not in HEADS]
    # As released, V2 does not truncate q.
    whole_q = (*cut_row.options, "--no-draft-truncation")
    stock.append(replace(cut_row, name=f"stock {cut}", options=whole_q, patches=False))
    rows.append(cut_row)
    rows += stock + [designed(line) for line in V2_DESIGN]
    return [replace(row, name=f"{row.name}, V2", v2=True, options=(*row.options, "--runner", "v2")) for row in rows]


def designed(line: str) -> Row:
    """The row of a line of V2_DESIGN."""
    draft, t, k, *words = line.split()
    options = [option for word in words for option in WORDS[word]]
    return Row(
        f"{draft} T={t} K={k} {' '.join(words)}".rstrip(),
        draft,
        ("--temp", t, "--batch", V2_BATCH, "--k", k, *options),
        long=bool({"cached", "preempted"} & set(words)),
        ahead="ahead" in words,
    )


def versions(directory: str) -> list[Row]:
    """The rows for another version of vLLM."""
    (package,) = Path(directory).glob("vllm*.dist-info")
    version = package.name.removesuffix(".dist-info").split("-")[1].split("+")[0]
    wanted = VERSIONS + (V2_VERSIONS if Version(version) >= V2_FIRST else ())
    rows = [row for row in plan() if row.name in wanted]
    rows += later_rows() if Version(version) >= V2_LATER else []
    return [replace(row, name=f"{row.name}, vLLM {version}", vllm=directory) for row in rows]


def later_rows() -> list[Row]:
    """Those of what vLLM has, or has right, from V2_LATER on: block verification, and XPress drafters, which draft
    argmaxes and as released are verified by a q that nobody wrote."""
    options = ("--temp", "1", "--batch", V2_BATCH, "--k", "4", "--runner", "v2")
    return [
        Row("eagle3 T=1, block verification, V2", "eagle3", (*options, "--rejection", "block"), v2=True),
        Row("xpress T=1, drafts greedy, V2", "xpress", (*options, "--drafting", "greedy"), v2=True),
        Row("stock xpress T=1, V2", "xpress", options, False, v2=True),
    ]


def own_k(draft: str) -> tuple[str, ...]:
    """K: MEDUSA and MLP speculators have three heads. n-gram's long prompt makes every token of a reference dear."""
    if draft == "ngram":
        return ("--k", "4", "--n-tokens", "5")
    return ("--k", "3" if draft in HEADS else "4")


def stock_drafting(draft: str) -> tuple[str, ...]:
    """vLLM's own MEDUSA can only take the argmax."""
    return ("--drafting", "greedy") if draft == "medusa" else ()


def run(row: Row, samples: int | None) -> dict[str, Any] | None:
    """The row's result as one line of engine.csv; None if the engine did not run."""
    from support import live  # type: ignore[import-not-found]
    from support.pairs import NGRAM_PROMPT, PROMPTS, write_pair  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        target, draft = write_pair(Path(folder), row.draft)
        speceval = [str(ROOT / "tests" / "support" / "ahead_run.py")] if row.ahead else ["-m", "speceval"]
        command = [sys.executable, *speceval, "verify", "--target", target, "--draft", draft, *row.options]
        command += ["--samples", str(samples or row.samples), "--json", "--out", str(Path(folder) / "out")]
        for prompt in (NGRAM_PROMPT,) if row.long or row.draft == "ngram" else PROMPTS:
            command += ["--prompt", prompt]
        for argument in ENGINE_ARGS:
            command += ["--engine-arg", argument]
        environment = os.environ | ENGINE | {"SPECEVAL_PATCHES": str(int(row.patches))}
        if row.ahead and row.v2:
            environment |= live.V2
        if row.vllm:
            environment["PYTHONPATH"] = os.pathsep.join([row.vllm, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):
        print(f"{row.name}: did not run: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return line(row.name, row.patches, json.loads(done.stdout.splitlines()[-1]))


def line(name: str, patches: bool, report: dict[str, Any]) -> dict[str, Any]:
    """One row of engine.csv from a report."""
    checks, settings = report["checks"], report["settings"]
    tested = [check for check in checks if "p" in check]
    worst = min(tested, key=lambda check: check["p"])
    by_place = {(check["kind"], check["where"]): check for check in checks}
    joint, verified = by_place["joint law", "first tokens"], by_place["tokens", "all verified"]
    accepted = [check for check in tested if check["kind"] == "accepted" and check["where"] != "all drafts"]
    drafted = "; ".join(
        f"{c['where'][6:]}: {c['observed']:.4f} {c['expected']:.4f} {c['n']} {c.get('z', 0.0):+.2f}" for c in accepted
    )
    return {
        "name": name,
        "verdict": report["verdict"],
        "patches": "on" if patches else "off",
        "vllm": report["engine"]["vllm"],
        "runner": report["engine"]["runner"],
        "method": report["engine"]["method"],
        "drafting": settings["drafting"],
        "temperature": settings["temperature"],
        "top_k": settings["top_k"],
        "top_p": settings["top_p"],
        "k": settings["k"],
        "batch": settings["batch"],
        "seeded": settings["seeded"],
        "greedy_share": settings["greedy_share"],
        "samples": settings["samples"],
        "tokens": settings["tokens"],
        "tests": report["tests"],
        "failed": report["failed"],
        "least_p": f"{worst['p']:.3g}" if worst["p"] > 0 else "<1e-300",
        "least_p_test": f"{worst['kind']} ({worst['where']})",
        "limit": f"{report['alpha']:.3g}",
        "joint_tv": f"{joint['tv']:.4f}",
        "joint_noise": f"{joint['noise']:.4f}",
        "verified_tokens": verified["n"],
        "verified_tv": f"{verified['tv']:.4f}" if "tv" in verified else "",
        "verified_noise": f"{verified['noise']:.4f}" if "noise" in verified else "",
        "smallest_bias": f"{report['smallest_bias']:.4f}",
        "largest_z": f"{max((abs(c.get('z', math.inf)) for c in accepted), default=math.nan):.2f}",
        "acceptance": drafted,
        "steps_without_drafts": report["counts"]["steps_without_drafts"],
        "preemptions": report["counts"]["preemptions"],
        "seconds": round(sum(report["seconds"].values())),
    }


def run_rows(options: argparse.Namespace) -> None:
    """Every row of `plan` that is not in engine.csv yet."""
    file = RESULTS / "engine.csv"
    rows = versions(options.vllm) if options.vllm else plan()
    todo = [row for row in rows if row.name not in names(file) and options.only in row.name]
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(run, row, options.samples) for row in todo]):
            found = done.result()
            if found is not None:
                append(file, found)
                print(f"{found['name']}: {found['verdict']}, p {found['least_p']}, {found['seconds']} s", flush=True)


def run_mutants(samples: int | None, only: str) -> None:
    """Every mutant at the command's default number of continuations, one after the other on one engine."""
    os.environ.update(ENGINE)
    from support.mutants import MUTANTS, mutated  # type: ignore[import-not-found]
    from support.pairs import PROMPTS, write_pair

    from speceval.exactness import Settings
    from speceval.exactness.run import examine
    from speceval.measure import launch
    from speceval.measure.job import prepare
    from speceval.measure.start import start_engine

    file = RESULTS / "mutants.csv"
    all_runs = [(f"none, seed {seed}", None, seed) for seed in UNMUTATED_SEEDS] + [(m.name, m, 0) for m in MUTANTS]
    todo = [one for one in all_runs if one[0] not in names(file) and only in one[0]]
    with tempfile.TemporaryDirectory() as folder:
        target, draft = write_pair(Path(folder), "eagle3-cut")
        job = prepare(
            target=target,
            draft=draft,
            temperature=1.0,
            suite_names=["demo"],
            k=4,
            batch=256,
            record=False,
            engine_args={"dtype": "float32", "enforce_eager": True, "max_model_len": 256},
        )
        job = launch.fetch(job)
        with closing(start_engine(job)) as engine:
            for name, mutant, seed in todo:
                asked = mutant.asked if mutant else {}
                settings = Settings(prompts=PROMPTS, seed=seed, **(mutant.settings if mutant else {}))
                settings = replace(settings, samples=samples or settings.samples)
                with mutated(mutant) if mutant else nullcontext():
                    changed = replace(job, spec=job.spec.model_copy(update=asked))
                    report = examine(engine, changed, settings, lambda *_: None).as_json()
                found = line(name, True, report)
                append(
                    file,
                    {"condition": mutant.condition if mutant else ""} | {key: found[key] for key in MUTANT_COLUMNS},
                )
                print(f"{name}: {found['verdict']}, p = {found['least_p']} ({found['least_p_test']})", flush=True)


def names(file: Path) -> set[str]:
    """Rows that are in a file already."""
    return {row["name"] for row in read(file)}


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row; the file is replaced as a whole, so that an interrupt leaves it as it was."""
    rows = [*read(file), row]
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, fieldnames=list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, content.getvalue())


def write_tables() -> None:
    """Put the tables of the results that are there between their markers in docs/trust/is-it-exact.md."""
    page = PAGE.read_text(encoding="utf-8")
    for mark, table in (("engine", engine_table()), ("mutants", mutants_table())):
        if not (RESULTS / f"{mark}.csv").exists():
            continue
        begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    write_whole(PAGE, page)


def engine_table() -> str:
    """results/verify/engine.csv in Markdown, in the order of `plan`."""
    order = {row.name: index for index, row in enumerate(plan())}
    lines = [
        "| condition | patches | continuations | verdict | TV joint (noise) | TV verified tokens (noise) | seen from "
        "| least p of tests | acceptance: largest abs. z |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(read(RESULTS / "engine.csv"), key=lambda row: order.get(row["name"], len(order))):
        lines.append(
            f"| {row['name'].removeprefix('stock ')}, K={row['k']}, batch {row['batch']} | {row['patches']} "
            f"| {int(row['samples']):,} x {row['tokens']} | {row['verdict']} "
            f"| {row['joint_tv']} ({row['joint_noise']}) | {row['verified_tv']} ({row['verified_noise']}) "
            f"| {row['smallest_bias']} "
            f"| {row['least_p']} of {row['tests']} | {row['largest_z']} |"
        )
    return "\n".join(lines)


def mutants_table() -> str:
    """results/verify/mutants.csv in Markdown."""
    lines = [
        "| mutant | condition | verdict | least p | test with the least p | failed tests |",
        "|---|---|---|---|---|---|",
    ]
    for row in read(RESULTS / "mutants.csv"):
        lines.append(
            f"| {row['name']} | {row['condition']} | {row['verdict']} | {row['least_p']} | {row['least_p_test']} "
            f"| {row['failed']} of {row['tests']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--vllm", default="", metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, help="engines at a time")
    options = parser.parse_args()
    if options.mutants:
        run_mutants(options.samples, options.only)
    elif not options.tables:
        run_rows(options)
    write_tables()


if __name__ == "__main__":
    main()
