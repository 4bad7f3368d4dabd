"""The ledger's other rows: defects of vLLM that no symbol is replaced for. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unpatched:
    """A defect, and what keeps it out of every measurement."""

    id: str
    title: str
    """What is wrong in vLLM, in one sentence."""
    effect: str
    """What it does to a measurement."""
    state: str
    """"refused" (`refuse` rejects it), "accounted for" (`answer` says how) or "native" (vLLM fixed it)."""
    answer: str
    """What happens instead, in one sentence."""
    target: str
    """The place in vLLM."""
    runner: str
    versions: str
    """Versions of vLLM with the defect (PEP 440), as far as they were read."""
    upstream: tuple[str, ...]
    """Links to issues and pull requests; where there are none, our report under docs/upstream/."""
    tested_by: str


ROWS: tuple[Unpatched, ...] = (
    Unpatched(
        id="greedy-by-default",
        title="Drafts are argmaxes at any temperature unless draft_sample_method=probabilistic is asked for.",
        effect="Lossless, but measures p(argmax q) in place of sum min(p, q).",
        state="accounted for",
        answer="speceval always asks, reads the resolved value back and keeps it in the fingerprint.",
        target="vllm.config.speculative.SpeculativeConfig.draft_sample_method",
        runner="V1, V2",
        versions=">=0.24",
        upstream=("https://github.com/vllm-project/vllm/issues/20459",),
        tested_by="tests/measure/test_engine_runs.py",
    ),
    Unpatched(
        id="zero-drafts",
        title="One sequence within K tokens of max_model_len makes token id 0 the draft of the whole batch.",
        effect="Rounds that no drafter drafted for are counted: tau is too low.",
        state="accounted for",
        answer="speceval sends no request that could come so near: it cuts the conversation short there and says so.",
        target="vllm.v1.worker.gpu_model_runner.GPUModelRunner.sample_tokens",
        runner="V1",
        versions=">=0.24",
        upstream=("docs/upstream/v1-zero-drafts.md",),
        tested_by="tests/vllm_patches/test_no_rounds.py",
    ),
    Unpatched(
        id="padded-rounds",
        title="A prompt that the prefix cache holds but for one token is filled up with K drafts of id -1.",
        effect="One round with nothing accepted is counted for each such request: tau is too low.",
        state="accounted for",
        answer="speceval leaves those rounds out of the steps and counts them beside.",
        target="vllm.v1.core.sched.scheduler.Scheduler.schedule",
        runner="V1, V2",
        versions=">=0.28",
        upstream=("docs/upstream/v1-padded-rounds.md",),
        tested_by="tests/measure/test_engine_runs.py",
    ),
    Unpatched(
        id="v2-shared-noise",
        title="Draft tokens and the residual are drawn with the same noise, keyed by seed and position.",
        effect="Biased output (total variation 0.02 a token); acceptance is right.",
        state="native",
        answer="Every supported version draws them apart.",
        target="vllm.v1.worker.gpu.spec_decode",
        runner="V2",
        versions=">=0.24,<0.29",
        upstream=(
            "https://github.com/vllm-project/vllm/pull/47386",
            "https://github.com/vllm-project/vllm/pull/54282",
        ),
        tested_by="tests/exactness/kernels/test_kernel_verdicts.py",
    ),
    Unpatched(
        id="v2-block-reuse",
        title="Block verification reuses a position's uniform and draft noise in later rounds.",
        effect="Biased output and acceptance with rejection_sample_method=block.",
        state="refused",
        answer="Use the standard method, or vLLM 0.33.",
        target="vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils",
        runner="V2",
        versions=">=0.28,<0.33",
        upstream=("https://github.com/vllm-project/vllm/pull/46781",),
        tested_by="tests/exactness/kernels/test_kernel_verdicts.py",
    ),
    Unpatched(
        id="v1-block-ignored",
        title="The V1 runner ignores rejection_sample_method=block, verifies with the standard rule and drops q.",
        effect="Lossless, but acceptance is p(draft) in place of what was asked for.",
        state="refused",
        answer="Use the standard method.",
        target="vllm.v1.sample.rejection_sampler.RejectionSampler.__init__",
        runner="V1",
        versions=">=0.28",
        upstream=("docs/upstream/v1-block-ignored.md",),
        tested_by="tests/vllm_patches/test_refuse.py",
    ),
    Unpatched(
        id="v2-xpress-q",
        title="XPress drafters allocate q for probabilistic drafts and never write it.",
        effect="Every argmax draft is accepted as if q were uniform: the output is the drafter's.",
        state="refused",
        answer="Draft greedily.",
        target="vllm.v1.worker.gpu.spec_decode.xpress.speculator",
        runner="V2",
        versions=">=0.33",
        upstream=("docs/upstream/v2-xpress-q.md",),
        tested_by="tests/vllm_patches/test_refuse.py",
    ),
    Unpatched(
        id="v2-grammar-early",
        title="Drafts are cut at the first one that the grammar forbids, before the V2 verifier could see it.",
        effect="Biased output and too high an acceptance with structured outputs and probabilistic drafts.",
        state="refused",
        answer="The request is rejected: draft greedily, or use vLLM 0.32 (v2-grammar-drafts) or the V1 runner.",
        target="vllm.v1.core.sched.scheduler.Scheduler.update_draft_token_ids",
        runner="V2",
        versions=">=0.29,<0.32",
        upstream=("docs/upstream/v1-structured-drafts.md",),
        tested_by="tests/vllm_patches/test_guard.py",
    ),
    Unpatched(
        id="vocabulary-width",
        title="The Triton kernels index q with the target's vocabulary size, whatever the drafter's.",
        effect="q of other tokens and rows is read: biased output.",
        state="refused",
        answer="Use a drafter of the target's vocabulary, or draft greedily.",
        target="vllm.v1.sample.rejection_sampler.rejection_sample",
        runner="V1",
        versions=">=0.24",
        upstream=("docs/upstream/v1-vocabulary-width.md",),
        tested_by="tests/vllm_patches/test_refuse.py",
    ),
    Unpatched(
        id="v2-draft-truncation-graphs",
        title="The V2 runner draws drafts with the request's temperature alone where they are drawn in a CUDA graph.",
        effect="Lossless, but acceptance differs from that of truncated drafts (lower at small top-k).",
        state="refused",
        answer=(
            "A run with top-k or top-p says --no-draft-truncation, or --engine-arg enforce_eager=true, for which there "
            "is a patch from vLLM 0.32 on (v2-draft-truncation), or uses the V1 runner."
        ),
        target="vllm.v1.worker.gpu.spec_decode",
        runner="V2",
        versions=">=0.24",
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/measure/test_launch.py",
    ),
)


def table() -> str:
    """The rows as a Markdown table, as docs/trust/what-is-patched.md shows it."""
    head = "| id | state | what is wrong | effect | what happens | place | runner | vLLM | upstream | tested by |"
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *map(table_row, ROWS)])


def table_row(row: Unpatched) -> str:
    """One line of `table`."""
    links = " ".join(
        f"[{link.rsplit('/', 1)[1]}]({link.replace('docs/upstream', '../upstream')})" for link in row.upstream
    )
    cells = [f"`{row.id}`", row.state, row.title, row.effect, row.answer, f"`{row.target}`", row.runner, row.versions]
    return "| " + " | ".join([*cells, links, f"`{row.tested_by}`"]) + " |"
