"""The ledger: one row for each place where vLLM is patched. Data only; `apply` and `state` read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """One patched symbol of vLLM. A row that no longer fits the installed vLLM is refused, never forced."""

    id: str
    title: str
    """What is wrong in vLLM, in one sentence."""
    effect: str
    """What it does to a measurement."""
    module: str
    symbol: str
    """The patched name in `module`, dotted for a class attribute."""
    replacement: str
    """Module of this package whose `replace(original)` returns the callable to put in place of the symbol."""
    device: str
    """`Platform.device_type` that needs the patch; any other platform is left alone."""
    sampling_only: bool
    """True if only temperature > 0 is wrong without the patch."""
    versions: str
    """Versions of vLLM the row was checked for (PEP 440)."""
    parameters: tuple[str, ...]
    """The symbol's parameters, `name` or `name=default`, in order."""
    sources: Mapping[str, str]
    """vLLM version -> `source_hash` of the unpatched symbol; any of them is accepted within `versions`."""
    upstream: tuple[str, ...]
    tested_by: str
    until: str
    """When the row can go."""

    @property
    def target(self) -> str:
        """Full dotted name of the patched symbol."""
        return f"{self.module}.{self.symbol}"


LEDGER: tuple[Patch, ...] = (
    Patch(
        id="cpu-expand",
        title=(
            "The CPU backend expands per-request temperature, top-k and top-p to draft rows into a temporary "
            "int64 copy that is never copied back, so the verifier reads uninitialised memory."
        ),
        effect="At temperature > 0 the output does not follow the target and acceptance is meaningless.",
        module="vllm.v1.sample.rejection_sampler",
        symbol="expand_batch_to_tokens",
        replacement="vllm_patches.cpu_expand",
        device="cpu",
        sampling_only=True,
        versions=">=0.29,<=0.33.0",
        parameters=("x", "cu_num_tokens", "num_tokens", "replace_from=0", "replace_to=0"),
        sources={
            "0.29.0": "66705fcbad69285d",
            "0.30.0": "fc8500e16a9adcf5",
            "0.31.0": "ef896c2fe058ae70",
            "0.32.0": "ef896c2fe058ae70",
            "0.33.0": "ef896c2fe058ae70",
        },
        upstream=(
            "https://github.com/vllm-project/vllm/issues/55005",
            "https://github.com/vllm-project/vllm/pull/42638",
        ),
        tested_by="tests/vllm_patches/test_cpu_expand.py",
        until="a release fixes `_expand_kernel_impl` in `vllm/utils/cpu_triton_utils.py`",
    ),
    Patch(
        id="cpu-seeded-chunk",
        title=(
            "A request with its own seed whose prompt is prefilled in more than one chunk rewinds its generator by an "
            "offset that CPU generators do not have."
        ),
        effect="The engine dies (`CPU Generator does not use offset`) as soon as a step's token budget cuts a prompt.",
        module="vllm.v1.worker.gpu_model_runner",
        symbol="GPUModelRunner.sample_tokens",
        replacement="vllm_patches.cpu_seeded_chunk",
        device="cpu",
        sampling_only=True,
        versions=">=0.29,<=0.33.0",
        parameters=("self", "grammar_output"),
        sources={
            "0.29.0": "e764887f827c2fb2",
            "0.30.0": "e764887f827c2fb2",
            "0.31.0": "047e6a4738dead56",
            "0.32.0": "047e6a4738dead56",
            "0.33.0": "047e6a4738dead56",
        },
        upstream=("https://github.com/vllm-project/vllm/pull/10097",),
        tested_by="tests/vllm_patches/test_cpu_seeded_chunk.py",
        until="`_bookkeeping_sync` no longer calls `set_offset` on CPU generators",
    ),
    Patch(
        id="empty-top-k",
        title="A verify step without any draft token takes the maximum of an empty top-k tensor.",
        effect="With top-k and without top-p the engine dies (`max(): Expected reduction dim`) at its first such step.",
        module="vllm.v1.sample.rejection_sampler",
        symbol="apply_sampling_constraints",
        replacement="vllm_patches.empty_top_k",
        device="cpu",
        sampling_only=True,
        versions=">=0.29,<=0.33.0",
        parameters=("logits", "cu_num_draft_tokens", "sampling_metadata"),
        sources={
            "0.29.0": "07477e9bd0a88efc",
            "0.30.0": "07477e9bd0a88efc",
            "0.31.0": "795f8ae5d3f2ab57",
            "0.32.0": "795f8ae5d3f2ab57",
            "0.33.0": "795f8ae5d3f2ab57",
        },
        upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/ops/topk_topp_sampler.py",),
        tested_by="tests/vllm_patches/test_empty_top_k.py",
        until="`apply_top_k_only` in `vllm/v1/sample/ops/topk_topp_sampler.py` accepts no rows",
    ),
)


def table() -> str:
    """The ledger as a Markdown table, as docs/patches.md shows it."""
    head = "| id | what is wrong | effect | replaced symbol | needed on | vLLM | upstream | tested by | can go when |"
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *map(table_row, LEDGER)])


def table_row(patch: Patch) -> str:
    """One line of `table`."""
    cells = [
        f"`{patch.id}`",
        patch.title,
        patch.effect,
        f"`{patch.target}`",
        patch.device + (", temperature > 0" if patch.sampling_only else ""),
        f"{patch.versions} (read: {', '.join(patch.sources)})",
        " ".join(f"[{link.rsplit('/', 1)[1]}]({link})" for link in patch.upstream),
        f"`{patch.tested_by}`",
        patch.until,
    ]
    return "| " + " | ".join(cells) + " |"
