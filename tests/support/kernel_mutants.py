"""One-line mutants of vLLM's own sampling code, and whether the verifier sees them.

`python kernel_mutants.py [--n N] [--vllm SOURCE] [NAME ...]` prints one JSON object per mutant, with `--table` a
Markdown table; `--except NAME ...` runs all others. It runs in a process of its own, because it loads vLLM's files
beside whatever vLLM is installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from speceval.exactness.kernels import REQUESTS, load, worker
from speceval.exactness.kernels.judge import judge
from speceval.exactness.kernels.sources import Source, find
from speceval.exactness.kernels.toy import make_toy

V1P, V1G = worker.Cell("V1", "probabilistic", "standard"), worker.Cell("V1", "greedy", "standard")
V2P, V2G = worker.Cell("V2", "probabilistic", "standard"), worker.Cell("V2", "greedy", "standard")
V1PAD, V2PAD = worker.Cell("V1", "padded", "standard"), worker.Cell("V2", "padded", "standard")


@dataclass(frozen=True)
class Mutant:
    """Replace `old`, which must occur in the file, by `new`: at its first place after `after`."""

    name: str
    condition: str
    """What it breaks, by the conditions of docs/trust/which-vllm-is-exact.md."""
    cell: worker.Cell
    file: str
    old: str
    new: str
    after: str = ""


@dataclass(frozen=True)
class Mutated(Source):
    """A source with one mutant applied."""

    mutant: Mutant | None = None

    def read(self, path: str) -> str | None:
        text = super().read(path)
        if text is None or self.mutant is None or path != self.mutant.file:
            return text
        start = text.find(self.mutant.after)
        if start < 0 or self.mutant.old not in text[start:]:
            raise ValueError(f"{self.mutant.name}: {path} of vLLM {self.version} has no {self.mutant.old!r}")
        return text[:start] + text[start:].replace(self.mutant.old, self.mutant.new, 1)


MUTANTS = (
    Mutant("target without temperature", "1 parameters", V1P, load.V1_REJECTION,
           "src_val == replace_from, replace_to, src_val", "src_val == src_val, replace_to, src_val"),
    Mutant("draft sampled without temperature", "2 q", V2P, load.V2_GUMBEL, "logits = logits / temp", "logits = logits",
           "def gumbel_noised_argmax"),
    Mutant("draft of the proposer without temperature", "2 q", V1P, load.V1_PROPOSER,
           "next_token_ids = sample_with_exponential_noise(probs.clone(), q)",
           "next_token_ids = sample_with_exponential_noise((logits * temperature.view(-1, 1)).softmax(-1), q)"),
    Mutant("q of the previous draft position", "2 q", V2P, load.V2_REJECTION,
           "+ draft_step * draft_logits_stride_1", "+ tl.maximum(draft_step - 1, 0) * draft_logits_stride_1"),
    Mutant("q of the next row", "2 q", V1P, load.V1_REJECTION, "+ (start_idx + pos) * vocab_size",
           "+ (end_idx - 1 - pos) * vocab_size", "draft_prob = tl.load("),
    Mutant("q of another request", "2 q", V2P, load.V2_REJECTION, "tl.load(idx_mapping_ptr + req_idx).to(tl.int64)",
           "req_idx.to(tl.int64)", "def _rejection_kernel"),
    Mutant("residual from q of another position", "2 q", V2P, load.V2_REJECTION,
           "+ resample_idx * draft_logits_stride_1", "+ 0 * draft_logits_stride_1"),
    Mutant("noise shared by draft and residual", "3 noise", V2P, load.V2_SPECULATOR, "is_drafting=True",
           "is_drafting=False"),
    Mutant("one uniform for all positions", "3 noise", V2P, load.V2_REJECTION, "u = tl_rand32(seed, pos,",
           "u = tl_rand32(seed, pos * 0,"),
    Mutant("noise repeats every round", "3 noise", V2P, load.V2_GUMBEL, "u = murmur3_uniform32(seed, pos, keys)",
           "u = murmur3_uniform32(seed, pos % 2, keys)"),
    Mutant("residual abs(p - q) instead of max(0, p - q)", "law", V1P, load.V1_REJECTION,
           "prob = tl.maximum(target_prob - draft_prob, 0.0)",
           "prob = tl.maximum(target_prob - draft_prob, draft_prob - target_prob)"),
    Mutant("recovered token from p instead of the residual", "law", V2P, load.V2_REJECTION,
           "ratio = tl.exp(draft_log_probs - target_log_probs)",
           "ratio = tl.exp(draft_log_probs - target_log_probs) * 0.0"),
    Mutant("rejected token kept in a one-hot residual", "law", V2G, load.V2_REJECTION, "block != rejected_draft_token",
           "block >= 0", "def _resample_kernel"),
    Mutant("rejected token kept in a one-hot residual, V1", "law", V1G, load.V1_REJECTION,
           "(vocab_mask & (vocab_offset != draft_token_id))", "vocab_mask"),
    Mutant("acceptance a tenth too eager", "law", V2P, load.V2_REJECTION,
           "accepted = target_logprob > tl.log(u) + draft_logprob",
           "accepted = target_logprob > tl.log(u * 0.9) + draft_logprob"),
    Mutant("acceptance without q", "law", V1P, load.V1_REJECTION, "target_prob / draft_prob >= uniform_prob",
           "target_prob >= uniform_prob"),
    Mutant("bonus token from the row before", "law", V2P, load.V2_REJECTION,
           "target_logits_ptr + resample_token_idx * target_logits_stride + block",
           "target_logits_ptr + (resample_token_idx - is_bonus) * target_logits_stride + block",
           "def _resample_kernel"),
    Mutant("greedy requests accept every draft", "5 mixed batch", V2P, load.V2_REJECTION,
           "accepted = target_argmax == draft_sampled", "accepted = target_argmax >= 0"),
    Mutant("greedy requests are sampled", "5 mixed batch", V1P, load.V1_REJECTION, "if is_greedy:", "if 0 > 1:",
           "def rejection_random_sample_kernel"),
    Mutant("padding is accepted", "padding", V1PAD, load.V1_REJECTION, "if draft_token_id < 0:",
           "if draft_token_id < -1:"),
    Mutant("padding does not end the step", "padding", V2PAD, load.V2_REJECTION, "verifying &= is_valid_draft",
           "verifying &= True"),
)  # fmt: skip
UNCHANGED = tuple(
    Mutant(f"unchanged {c.runner} {c.drafting}", "none", c, "", "", "") for c in (V1P, V1G, V2P, V2G, V1PAD, V2PAD)
)


def judge_mutant(source: Source, mutant: Mutant, requests: int) -> dict[str, object]:
    """What the verifier says about the cell that the mutant touches."""
    fields = {name: getattr(source, name) for name in ("name", "version", "kind", "root")}
    mutated = Mutated(**fields, mutant=mutant)
    with tempfile.TemporaryDirectory() as directory:
        load.forget()
        modules = load.load(mutated, Path(directory), "simt")
        job = {"requests": requests, "seed": 0}
        sample = worker.measure(mutant.cell, mutated, modules, make_toy(), "cpu", job, False)
    result = judge(sample, make_toy())
    cell = f"{mutant.cell.runner} {mutant.cell.drafting}"
    about = {"name": mutant.name, "condition": mutant.condition, "cell": cell, "version": source.version}
    return {**about, "tv": result.tv, "z": result.z, "p": result.p, "verdict": result.verdict}


def main() -> None:
    """See the module's docstring."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--n", type=int, default=REQUESTS)
    parser.add_argument("--vllm", default="installed")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--except", nargs="+", default=[], dest="left_out")
    options = parser.parse_args()
    source = find(options.vllm)
    everything = [m for m in (*MUTANTS, *UNCHANGED) if m.name not in options.left_out]
    chosen = [m for m in everything if not options.names or m.name in options.names]
    if options.table:
        print(
            "| mutant of vLLM's code | breaks | cell | TV | acceptance z | p | verdict |\n|---|---|---|---|---|---|---|"
        )
    for mutant in chosen:
        result = judge_mutant(source, mutant, options.n)
        if options.table:
            p = "< 1e-300" if result["p"] == 0 else f"{result['p']:.1g}"
            print(
                "| {name} | {condition} | {cell} | {tv:.3f} | {z:+.1f} | {p} | {verdict} |".format(**{**result, "p": p})
            )
        else:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
