"""What only a GPU can show, offline: `python scripts/gpu_check.py [--dry] [--out FOLDER] [--at-once N]`.

Writes gpu_check.json and gpu_check.md: the sampling kernels compiled; what recorder and patches cost at the
vocabularies of real models; the V2 runner live with CUDA graphs: forced rates, the output's law, the same run twice,
eager and on the V1 runner, another drafter. What cannot be done here is named with its reason. `--dry` does all of it
in small, on a CPU with the kernels interpreted: it tries this script, not a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from speceval.commands.options import pairs
from speceval.files import write_whole
from speceval.measure.fingerprint import environment

OUT = Path("results/gpu-check")
"""Not where the project keeps what it has seen on a GPU (results/gpu)."""
LIMIT = 240
"""Seconds that a part may take."""
VOCABULARIES, BATCHES, K = (128256, 151936, 201088), (1, 8, 64), 7
ZOO = ("--target", "zoo", "--draft", "lk-eagle3")
GRAPHS = ("--engine-arg", "enforce_eager=false")
EXTRA: list[str] = []
"""`--engine-arg` of the command line, for every engine."""


class Skipped(Exception):
    """Why a part cannot be done here."""


def main() -> None:
    """Do the parts, print a line for each, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="In small, on a CPU.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"Folder of both files [default: {OUT}].")
    parser.add_argument("--only", default="", help="Parts, comma-separated: " + ", ".join(PARTS))
    parser.add_argument("--at-once", type=int, default=1, help="Engines that run at the same time.")
    parser.add_argument("--engine-arg", action="append", default=[], help="key=value, for every engine.")
    options = parser.parse_args()
    EXTRA[:] = [word for pair in options.engine_arg for word in ("--engine-arg", pair)]
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"--only {unknown[0]}: the parts are {', '.join(PARTS)}")
    rows = [attempt(name, options.dry) for name in chosen if name in ALONE]
    with ThreadPoolExecutor(options.at_once) as pool:
        rows += pool.map(lambda name: attempt(name, options.dry), [name for name in chosen if name not in ALONE])
    content = {
        "dry": options.dry,
        "device": device(),
        "command": ["python", "scripts/gpu_check.py", *sys.argv[1:]],
        "environment": environment().model_dump(),
        "agreement": agreement({row["part"]: row["result"] for row in rows if row["result"] is not None}),
        "parts": rows,
    }
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


def patches(dry: bool) -> list[dict[str, Any]]:
    """Milliseconds to draw one draft token of each request: V1 stock and patched, and V2's truncation alone."""
    sizes = [(1000, 2)] if dry else [(width, batch) for width in VOCABULARIES for batch in BATCHES]
    return [patches_cost(width, batch, "cpu" if dry else "cuda") for width, batch in sizes]


def patches_cost(vocabulary: int, batch: int, where: str, repeats: int = 10) -> dict[str, Any]:
    """One size: `batch` requests with top-k 8 and top-p 0.9, one draft token each."""
    import torch
    from vllm.v1.spec_decode.llm_base_proposer import compute_probs_and_sample_next_token

    from vllm_patches.patches.v1_draft_sampling import sample
    from vllm_patches.patches.v2_draft_truncation import truncated

    logits = torch.randn(batch, vocabulary, device=where)
    top_k = torch.full((batch,), 8, dtype=torch.int32, device=where)
    top_p, heat = torch.full((batch,), 0.9, device=where), torch.ones(batch, device=where)
    places = torch.arange(batch, device=where)
    metadata = SimpleNamespace(
        temperature=heat, top_k=top_k, top_p=top_p, generators={}, all_random=True, all_greedy=False
    )
    states = SimpleNamespace(top_k=SimpleNamespace(gpu=top_k), top_p=SimpleNamespace(gpu=top_p))
    calls: dict[str, Callable[[], Any]] = {
        "v1_stock_ms": lambda: compute_probs_and_sample_next_token(logits.clone(), metadata),
        "v1_patched_ms": lambda: sample(logits.clone(), metadata, truncated=False),
        "v1_patched_truncated_ms": lambda: sample(logits.clone(), metadata),
        "v2_truncation_ms": lambda: truncated(logits, places, heat, states),
    }
    return {"vocabulary": vocabulary, "batch": batch, **{name: _milliseconds(c, repeats) for name, c in calls.items()}}


def live(dry: bool) -> dict[str, Any]:
    """The recorder in live steps of the V2 runner: a Llama of 8 billion random weights and an EAGLE-3 head, K = 7."""
    if dry:
        raise Skipped("too large for a CPU")
    done = subprocess.run([sys.executable, __file__, "--live", *EXTRA], capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def live_cost(rounds: int = 4, batch: int = 64, tokens: int = 96) -> dict[str, Any]:
    """Seconds of the same generation with and without the recorder, in turns, in this process."""
    import os

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    from vllm import LLM, SamplingParams

    from vllm_patches.worker import EXTENSION, OVERLAP, drain_tap, start_tap, stop_tap

    common: dict[str, Any] = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    common |= {"vocab_size": 128256, "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5}
    common |= {"head_dim": 128, "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False}
    head = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 32000}
    with tempfile.TemporaryDirectory() as folder:
        for name, own in (("target", {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32}), ("head", head)):
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps({**common, **own}))
        speculative = {"method": "eagle3", "model": f"{folder}/head", "num_speculative_tokens": K}
        llm = LLM(
            model=f"{folder}/target",
            speculative_config={**speculative, "draft_sample_method": "probabilistic"},
            skip_tokenizer_init=True,
            load_format="dummy",
            worker_extension_cls=EXTENSION,
            max_num_seqs=batch,
            max_model_len=1024,
            gpu_memory_utilization=0.6,
            **pairs(EXTRA[1::2], "--engine-arg"),
        )
        prompts = [{"prompt_token_ids": list(range(10 + number, 42 + number))} for number in range(batch)]
        sampling = [
            SamplingParams(temperature=1.0, seed=number, max_tokens=tokens, ignore_eos=True, detokenize=False)
            for number in range(batch)
        ]

        def generate() -> tuple[float, int]:
            began = time.perf_counter()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            return time.perf_counter() - began, hash(tuple(tuple(row.outputs[0].token_ids) for row in outputs))

        generate()
        spent: dict[str, list[float]] = {"with": [], "without": []}
        texts = set()
        for _ in range(rounds):
            for key, values in spent.items():
                if key == "with":
                    start_tap(llm, OVERLAP)
                seconds, text = generate()
                if key == "with":
                    drain_tap(llm, OVERLAP)
                    stop_tap(llm, OVERLAP)
                values.append(round(seconds, 4))
                texts.add(text)
    ratios = sorted(a / b for a, b in zip(spent["with"], spent["without"], strict=True))
    same = {"batch": batch, "tokens": tokens, "k": K, "vocabulary": 128256, "same_tokens": len(texts) == 1}
    return {**same, "seconds": spent, "ratio": round(ratios[len(ratios) // 2], 4)}


def selftest(dry: bool) -> Any:
    """Forced acceptance rates come back on the live V2 runner."""
    report = speceval("selftest", "--runner", "v2", "--temp", "1", *(("--steps", "200") if dry else GRAPHS), *EXTRA)
    return {name: report[name] for name in ("ok", "verdict", "tau")}


def law(*words: str, dry: bool) -> Any:
    """The output of a live runner against the target's own probabilities."""
    with tempfile.TemporaryDirectory() as folder:
        size = ("--samples", "300") if dry else ()
        report = speceval("verify", *words, *size, *EXTRA, "--out", f"{folder}/verify")
    return {name: report[name] for name in ("verdict", "line", "smallest_bias", "tests", "failed")}


def run(*words: str, dry: bool) -> Any:
    """A run on a live runner: its books, counts against p and q, and a hash of what every step did."""
    from speceval import read_run

    with tempfile.TemporaryDirectory() as folder:
        size = ("--limit", "2") if dry else ("--seeds", "0-7")
        report = speceval("run", "--temp", "1", *words, *size, *EXTRA, "--out", f"{folder}/run")
        steps = read_run(f"{folder}/run").steps
        columns = ["drafted", "accepted", "committed"]
        digest = hashlib.sha256(steps[columns].to_csv(index=False).encode()).hexdigest()[:16]
    suite = report["suites"]["demo"]
    names = ("conversations", "steps", "tau", "tau_rb", "agreement")
    return {"problems": report["problems"], "digest": digest, **{name: suite[name] for name in names}}


def agreement(results: dict[str, Any]) -> dict[str, Any]:
    """What the runs say of one another: the same steps, or the same law."""
    found: dict[str, Any] = {}
    for other in ("again", "eager"):
        if "run" in results and other in results:
            found[f"run and {other}: the same steps"] = results["run"]["digest"] == results[other]["digest"]
    if "run" in results and "v1" in results:
        a, b = (results[name]["tau_rb"] for name in ("run", "v1"))
        found["run and v1: difference of tau_rb"] = round(a["value"] - b["value"], 4)
        if a["se"] and b["se"]:
            found["run and v1: z, as if they were independent"] = round(
                (a["value"] - b["value"]) / (a["se"] ** 2 + b["se"] ** 2) ** 0.5, 2
            )
    return found


V2, V1 = ("--runner", "v2"), ("--runner", "v1")
TRUNCATED = ("--temp", "0.7", "--top-k", "8", "--top-p", "0.9")


def _on_v2(part: Callable[..., Any], *words: str) -> Callable[[bool], Any]:
    return lambda dry: part(*ZOO, *V2, *words, *(() if dry else GRAPHS), dry=dry)


PARTS: dict[str, Callable[[bool], Any]] = {
    "recorder": recorder,
    "patches": patches,
    "live": live,
    "kernels": kernels,
    "selftest": selftest,
    "law": _on_v2(law),
    "law-draft": _on_v2(law, "--draft", "lk-draft"),
    "law-top": _on_v2(law, *TRUNCATED, "--no-draft-truncation"),
    "law-truncated": lambda dry: law(*ZOO, *V2, *TRUNCATED, dry=dry),
    "law-v1": lambda dry: law(*ZOO, *V1, *(() if dry else GRAPHS), dry=dry),
    "run": _on_v2(run),
    "again": _on_v2(run),
    "eager": lambda dry: run(*ZOO, *V2, dry=dry),
    "v1": lambda dry: run(*ZOO, *V1, *(() if dry else GRAPHS), dry=dry),
}
"""The live parts use CUDA graphs, but for `eager` and for `law-truncated`, whose patch needs eager steps."""
ALONE = ("recorder", "patches", "live", "kernels")
"""Timed, or without an engine: one after the other, before the others."""


def markdown(content: dict[str, Any]) -> str:
    """The page: a line for each part, and its result."""
    lines = [f"# GPU check on {content['device']}{' (dry: nothing here is about a GPU)' if content['dry'] else ''}", ""]
    lines += ["| part | status | seconds | note |", "|---|---|---|---|"]
    lines += [f"| {row['part']} | {row['status']} | {row['seconds']} | {row['note']} |" for row in content["parts"]]
    lines += ["", *(f"- {what}: {value}" for what, value in content["agreement"].items())]
    for row in content["parts"]:
        if row["result"] is not None:
            lines += ["", f"## {row['part']}", "", "```json", json.dumps(row["result"], indent=1), "```"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--live"]:
        EXTRA[:] = sys.argv[2:]
        print(json.dumps(live_cost()))
    else:
        main()
