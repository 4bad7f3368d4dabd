"""What only a GPU can show, in one go and offline: `python scripts/gpu_check.py [--dry] [--out FOLDER]`.

Writes gpu_check.json and gpu_check.md: the sampling kernels compiled, what the recorder costs at the vocabularies of
real models, and the V2 runner live: forced rates, the output's law, a run. What cannot be done here is named with its
reason. `--dry` does all of it in small, on a CPU with the kernels interpreted: it tries this script, not a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speceval.files import write_whole
from speceval.measure.fingerprint import environment

LIMIT = 240
"""Seconds that a part may take."""
VOCABULARIES, BATCHES, K = (128256, 151936, 201088), (1, 8, 64), 7
ZOO = ("--target", "zoo", "--draft", "lk-eagle3", "--runner", "v2")


class Skipped(Exception):
    """Why a part cannot be done here."""


def main() -> None:
    """Do the parts, print a line for each, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="In small, on a CPU.")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--only", default="", help="Parts, comma-separated.")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    rows = [attempt(name, options.dry) for name in chosen]
    content = {"dry": options.dry, "device": device(), "environment": environment().model_dump(), "parts": rows}
    write_whole(options.out / "gpu_check.json", json.dumps(content, indent=2) + "\n")
    write_whole(options.out / "gpu_check.md", markdown(content))
    print(f"written: {options.out / 'gpu_check.json'}, {options.out / 'gpu_check.md'}")


def attempt(name: str, dry: bool) -> dict[str, Any]:
    """One part: its result, or why there is none."""
    began = time.monotonic()
    row: dict[str, Any] = {"part": name, "status": "done", "note": "", "result": None}
    try:
        if not dry and device() == "cpu":
            raise Skipped("no GPU here (--dry tries the script on a CPU)")
        row["result"] = PARTS[name](dry)
    except Skipped as reason:
        row |= {"status": "skipped", "note": str(reason)}
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        row |= {"status": "failed", "note": str(error).strip().splitlines()[-1][:300]}
    row["seconds"] = round(time.monotonic() - began, 1)
    print(f"{name}: {row['status']} in {row['seconds']} s {row['note']}", flush=True)
    return row


def device() -> str:
    """Name of the GPU, or "cpu"."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def speceval(*words: str) -> dict[str, Any]:
    """The JSON object that a command prints. Raises RuntimeError with its last line."""
    command = [sys.executable, "-m", "speceval", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()[-300:]}") from None


def kernels(dry: bool) -> Any:
    """`verify --kernels`: V1's and V2's sampling code on this device, compiled where it is a GPU."""
    from speceval.exactness import kernels as alone

    table = alone.run_kernels([alone.INSTALLED], n=2000 if dry else alone.REQUESTS, check=0)
    columns = ["version", "runner", "engine", "drafting", "rejection", "tv", "p", "verdict", "note"]
    return json.loads(table[columns].to_json(orient="records"))


def recorder(dry: bool) -> list[dict[str, Any]]:
    """Milliseconds of the recorder for one step of V2, beside those of one softmax over the target's logits."""
    sizes = [(1000, 2)] if dry else [(width, batch) for width in VOCABULARIES for batch in BATCHES]
    return [recorder_cost(width, batch, "cpu" if dry else "cuda") for width, batch in sizes]


def recorder_cost(vocabulary: int, batch: int, where: str, repeats: int = 10) -> dict[str, Any]:
    """One size: `batch` requests with K drafts each."""
    import torch

    from vllm_patches.taps.overlap import Overlap
    from vllm_patches.taps.tap import Request, step_v2

    rows = batch * (K + 1)
    logits, q = torch.randn(rows, vocabulary, device=where), torch.randn(batch, K, vocabulary, device=where)
    tokens = torch.randint(0, vocabulary, (rows,), device=where)
    starts = torch.arange(0, rows + 1, K + 1, device=where)
    slots, heat = torch.arange(batch, device=where), torch.ones(batch, device=where)
    requests = [Request(str(number), K, 1.0) for number in range(batch)]

    def record() -> None:
        Overlap().hear(step_v2(logits, q, tokens, starts, slots, heat, requests))

    cost = {
        "recorder_ms": _milliseconds(record, repeats),
        "softmax_ms": _milliseconds(lambda: logits.softmax(-1), repeats),
    }
    return {"vocabulary": vocabulary, "batch": batch, "k": K, **cost}


def _milliseconds(call: Callable[[], Any], repeats: int) -> float:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    call()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return round(1000 * (time.perf_counter() - began) / repeats, 3)


def selftest(dry: bool) -> Any:
    """Forced acceptance rates come back on the live V2 runner."""
    report = speceval("selftest", "--runner", "v2", "--temp", "1", *(("--steps", "200") if dry else ()))
    return {name: report[name] for name in ("ok", "verdict", "tau")}


def law(dry: bool) -> Any:
    """The output of the live V2 runner against the target's own probabilities."""
    report = speceval("verify", *ZOO, *(("--samples", "300") if dry else ()))
    return {name: report[name] for name in ("verdict", "line", "smallest_bias")}


def run(dry: bool) -> Any:
    """A run on the live V2 runner: its books, and counts against p and q."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        size = ("--limit", "2") if dry else ("--seeds", "0-7")
        report = speceval("run", *ZOO, "--temp", "1", *size, "--out", f"{folder}/run")
    return {name: report.get(name) for name in ("problems", "suites", "fingerprint_hash") if name in report}


PARTS: dict[str, Callable[[bool], Any]] = {
    "recorder": recorder,
    "kernels": kernels,
    "selftest": selftest,
    "law": law,
    "run": run,
}


def markdown(content: dict[str, Any]) -> str:
    """The page: a line for each part, and its result."""
    lines = [f"# GPU check on {content['device']}{' (dry: nothing here is about a GPU)' if content['dry'] else ''}", ""]
    lines += ["| part | status | seconds | note |", "|---|---|---|---|"]
    lines += [f"| {row['part']} | {row['status']} | {row['seconds']} | {row['note']} |" for row in content["parts"]]
    for row in content["parts"]:
        if row["result"] is not None:
            lines += ["", f"## {row['part']}", "", "```json", json.dumps(row["result"], indent=1), "```"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
