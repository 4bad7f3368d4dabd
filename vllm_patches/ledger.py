"""The ledger: one row for each place where vLLM is patched. Data only; `apply` and `state` read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_patches.methods import TRANSPORT
from vllm_patches.versions import CHECKED, FIRST, RELEASES

ANY = "any"
"""`Patch.device` of a row that every platform needs, `Patch.runner` of one that both runners need."""

V2_CHECKED = f">=0.32,<={RELEASES[-1]}"
"""The same for rows of the V2 runner, which was read from the version on that starts it on a CPU."""


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
    """`Platform.device_type` that needs the patch, or ANY; any other platform is left alone."""
    sampling_only: bool
    """True if only temperature > 0 is wrong without the patch."""
    versions: str
    """Versions of vLLM the row was checked for (PEP 440)."""
    parameters: tuple[str, ...]
    """The symbol's parameters, `name` or `name=default`, in order; a version may add some with defaults after them."""
    sources: Mapping[str, str]
    """vLLM version -> `source_hash` of the unpatched symbol; any of them is accepted within `versions`."""
    upstream: tuple[str, ...]
    """Links to issues and pull requests; where there are none, our report under docs/upstream/."""
    tested_by: str
    until: str
    """When the row can go."""
    runner: str = "V1"
    """Model runner that uses the symbol: "V1", "V2" or ANY."""
    methods: tuple[str, ...] = ()
    """Drafting methods (vLLM's `speculative_config.method`) that need the patch; empty: all of them."""
    optional: bool = False
    """Whether an engine is right without it until somebody asks for what the row is about, and the asking is checked:
    `draft_truncation` is read back, a request with a grammar stopped (`guard`)."""
    grammar: bool = False
    """Whether only requests with a grammar notice it: what is measured without one is measured with it as well."""
    native: str = ""
    """Versions of vLLM that do it right themselves (PEP 440); they are left alone."""

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
        replacement="vllm_patches.patches.cpu_expand",
        device="cpu",
        sampling_only=True,
        versions=CHECKED,
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
        replacement="vllm_patches.patches.cpu_seeded_chunk",
        device="cpu",
        sampling_only=True,
        versions=CHECKED,
        parameters=("self", "grammar_output"),
        sources={
            "0.29.0": "e764887f827c2fb2",
            "0.30.0": "e764887f827c2fb2",
            "0.31.0": "047e6a4738dead56",
            "0.32.0": "047e6a4738dead56",
            "0.33.0": "047e6a4738dead56",
        },
        upstream=("https://github.com/vllm-project/vllm/pull/10097", "docs/upstream/cpu-seeded-chunk.md"),
        tested_by="tests/vllm_patches/test_cpu_seeded_chunk.py",
        until="`_bookkeeping_sync` no longer calls `set_offset` on CPU generators",
    ),
    Patch(
        id="cpu-rejection",
        title=(
            "The CPU kernels of the rejection step do not know padded drafts (id -1): they read and write out of "
            "bounds at that index and accept such drafts."
        ),
        effect="The first token after a prefix-cache hit of the whole prompt is biased.",
        module="vllm.v1.sample.rejection_sampler",
        symbol="rejection_sample",
        replacement="vllm_patches.patches.cpu_rejection",
        device="cpu",
        sampling_only=True,
        versions=CHECKED,
        parameters=(
            "draft_token_ids",
            "num_draft_tokens",
            "max_spec_len",
            "cu_num_draft_tokens",
            "draft_probs",
            "target_logits",
            "bonus_token_ids",
            "sampling_metadata",
            "synthetic_mode=False",
            "synthetic_conditional_rates=None",
            "use_fp64_gumbel=False",
        ),
        sources={
            "0.29.0": "72e71d9b92b78bab",
            "0.30.0": "dd7297cb744d9a77",
            "0.31.0": "dd7297cb744d9a77",
            "0.32.0": "dd7297cb744d9a77",
            "0.33.0": "10358c381d84f8fd",
        },
        upstream=("https://github.com/vllm-project/vllm/pull/46533",),
        tested_by="tests/vllm_patches/test_cpu_rejection.py",
        until="`rejection_random_sample` and `sample_recovered_tokens` of the CPU backend reject id -1",
    ),
    Patch(
        id="v1-missing-q",
        title=(
            "If one request of a batch has no cached draft distribution, the V1 runner verifies the whole batch as if "
            "its drafts were certain."
        ),
        effect="Lossless, but acceptance falls from sum min(p, q) to sum p q, for most steps under prefix caching.",
        module="vllm.v1.worker.gpu_model_runner",
        symbol="GPUModelRunner._get_spec_decode_draft_probs",
        replacement="vllm_patches.patches.v1_missing_q",
        device=ANY,
        sampling_only=True,
        versions=CHECKED,
        parameters=("self", "spec_decode_metadata"),
        sources={
            "0.29.0": "944db527e0dd2e82",
            "0.30.0": "944db527e0dd2e82",
            "0.31.0": "944db527e0dd2e82",
            "0.32.0": "944db527e0dd2e82",
            "0.33.0": "944db527e0dd2e82",
        },
        upstream=("https://github.com/vllm-project/vllm/pull/44869",),
        tested_by="tests/vllm_patches/test_missing_q.py",
        until="a release keeps q by request",
    ),
    Patch(
        id="v1-draft-streams",
        title=(
            "Drafts of seeded requests come from the global random state, and requests with a grammar draft from q "
            "although the scheduler cuts their drafts at the first forbidden one."
        ),
        effect="Seeded runs differ from one another; structured outputs are biased at temperature > 0.",
        module="vllm.v1.worker.gpu_model_runner",
        symbol="GPUModelRunner.propose_draft_token_ids",
        replacement="vllm_patches.patches.v1_drafting",
        device=ANY,
        sampling_only=True,
        versions=CHECKED,
        parameters=(
            "self",
            "scheduler_output",
            "sampled_token_ids",
            "sampling_metadata",
            "hidden_states",
            "sample_hidden_states",
            "aux_hidden_states",
            "spec_decode_metadata",
            "common_attn_metadata",
            "slot_mappings",
        ),
        sources={
            "0.29.0": "a60269aca9de4e25",
            "0.30.0": "a60269aca9de4e25",
            "0.31.0": "a60269aca9de4e25",
            "0.32.0": "a60269aca9de4e25",
            "0.33.0": "9db461529ab7e17c",
        },
        upstream=("docs/upstream/v1-draft-seeds.md", "docs/upstream/v1-structured-drafts.md"),
        tested_by="tests/vllm_patches/test_draft_streams.py",
        until="the proposers take per-request generators, and the scheduler keeps a forbidden draft for the verifier",
    ),
    Patch(
        id="v1-draft-sampling",
        title="Drafts are drawn with the request's temperature alone: without its top-k, its top-p and its seed.",
        effect=(
            "Lossless, but at small top-k acceptance is up to 16 % below that of truncated drafts; seeded runs differ."
        ),
        module="vllm.v1.spec_decode.llm_base_proposer",
        symbol="SpecDecodeBaseProposer._sample_from_logits",
        replacement="vllm_patches.patches.v1_draft_sampling",
        device=ANY,
        sampling_only=True,
        versions=CHECKED,
        parameters=("self", "logits", "sampling_metadata"),
        sources={
            "0.29.0": "37f15d2a34491b50",
            "0.30.0": "37f15d2a34491b50",
            "0.31.0": "37f15d2a34491b50",
            "0.32.0": "37f15d2a34491b50",
            "0.33.0": "37f15d2a34491b50",
        },
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/vllm_patches/test_draft_streams.py",
        until="drafts are drawn with all of the request's sampling parameters",
    ),
    Patch(
        id="v1-chunk-token",
        title=(
            "Where a prompt is read in pieces, EAGLE and MTP drafters are given the prompt's last token at the end of "
            "each piece but the last, in place of the piece's next one."
        ),
        effect=(
            "Lossless, but every later draft of such a request attends to what was made of the wrong token, at any "
            "temperature: tau of the zoo's EAGLE-3 moves by -0.6 to +0.3 % where prompts are cut often."
        ),
        module="vllm.v1.spec_decode.llm_base_proposer",
        symbol="SpecDecodeBaseProposer.prepare_next_token_ids_padded",
        replacement="vllm_patches.patches.v1_chunk_token",
        device=ANY,
        sampling_only=False,
        versions=CHECKED,
        parameters=("self", "sampled_token_ids", "requests", "gpu_input_batch", "discard_request_mask"),
        sources={
            "0.29.0": "2faf49d742d26d11",
            "0.30.0": "609fd756f6bac1cb",
            "0.31.0": "bf1490e5069ca564",
            "0.32.0": "bf1490e5069ca564",
            "0.33.0": "bf1490e5069ca564",
        },
        upstream=("docs/upstream/v1-chunk-token.md",),
        tested_by="tests/vllm_patches/test_chunk_token.py",
        until="`prepare_next_token_ids_padded` takes the token after the tokens that the step has read",
        methods=("eagle", "eagle3", "mtp"),
    ),
    Patch(
        id="v1-medusa",
        title="MEDUSA's drafts are the heads' argmaxes at any temperature, and the drafting option is ignored.",
        effect="Lossless, but measures p(argmax q) in place of sum min(p, q).",
        module="vllm.v1.spec_decode.medusa",
        symbol="MedusaProposer.propose",
        replacement="vllm_patches.patches.v1_medusa",
        device=ANY,
        sampling_only=True,
        versions=f">={FIRST},<0.33",
        parameters=(
            "self",
            "num_speculative_tokens",
            "target_hidden_states",
            "sampling_metadata",
            "slot_mappings=None",
        ),
        sources={
            "0.29.0": "29ab949a2aee0f87",
            "0.30.0": "29ab949a2aee0f87",
            "0.31.0": "29ab949a2aee0f87",
            "0.32.0": "29ab949a2aee0f87",
        },
        upstream=("https://github.com/vllm-project/vllm/issues/20459",),
        tested_by="tests/vllm_patches/test_heads.py",
        until="no version before 0.33 is supported: 0.33 has no MEDUSA, there `vllm_patches.drafters` drafts",
        methods=("medusa",),
    ),
    Patch(
        id="cpu-rotary",
        title="The CPU kernel rotates queries of shape [tokens, heads, size] wrongly when there are several heads.",
        effect="DeepSeek models and their MTP layers compute something else at any temperature: tau 1.14 for 2.5.",
        module="vllm.model_executor.layers.rotary_embedding.base",
        symbol="RotaryEmbedding.forward_cpu",
        replacement="vllm_patches.patches.cpu_rotary",
        device="cpu",
        sampling_only=False,
        versions=CHECKED,
        parameters=("self", "positions", "query", "key=None"),
        sources={
            "0.29.0": "b749c83b4c38da1e",
            "0.30.0": "b749c83b4c38da1e",
            "0.31.0": "b749c83b4c38da1e",
            "0.32.0": "b749c83b4c38da1e",
            "0.33.0": "b749c83b4c38da1e",
        },
        upstream=("docs/upstream/cpu-rotary.md",),
        tested_by="tests/vllm_patches/test_mtp.py",
        until="`rotary_embedding` of the CPU extension agrees with `forward_native` for 3-D queries",
        runner=ANY,
        methods=("mtp",),
    ),
    Patch(
        id="empty-top-k",
        title="A verify step without any draft token takes the maximum of an empty top-k tensor.",
        effect="With top-k and without top-p the engine dies (`max(): Expected reduction dim`) at its first such step.",
        module="vllm.v1.sample.rejection_sampler",
        symbol="apply_sampling_constraints",
        replacement="vllm_patches.patches.empty_top_k",
        device="cpu",
        sampling_only=True,
        versions=CHECKED,
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
    Patch(
        id="v2-draft-truncation",
        title="The V2 runner draws drafts with the request's temperature alone, without its top-k and top-p.",
        effect=(
            "Lossless, but acceptance differs from that of truncated drafts (lower at small top-k). The row works with "
            "enforce_eager; elsewhere a run with top-k or top-p must say --no-draft-truncation."
        ),
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        symbol="DraftModelSpeculator.sample_draft",
        replacement="vllm_patches.patches.v2_draft_truncation",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=(
            "self",
            "hidden_states",
            "sample_src_positions",
            "idx_mapping",
            "temperature",
            "seeds",
            "draft_step",
            "draft_logits",
            "spec_step_idx=0",
        ),
        sources={"0.32.0": "f729e99b44320e54", "0.33.0": "f8c982c90ba2c1f7"},
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/vllm_patches/test_v2_draft_truncation.py",
        until="drafts are drawn with all of the request's sampling parameters",
        runner="V2",
        optional=True,
    ),
    Patch(
        id="v2-dspark-truncation",
        title="The V2 runner draws drafts with the request's temperature alone: DSpark, which draws by itself.",
        effect="As `v2-draft-truncation`.",
        module="vllm.v1.worker.gpu.spec_decode.dspark.speculator",
        symbol="DSparkSpeculator._sample_logits",
        replacement="vllm_patches.patches.v2_dspark_truncation",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=("self", "logits", "idx_map", "sample_pos", "step"),
        sources={"0.32.0": "0dacfe599291618c", "0.33.0": "0dacfe599291618c"},
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/vllm_patches/test_v2_block_drafters.py",
        until="drafts are drawn with all of the request's sampling parameters",
        runner="V2",
        methods=("dspark",),
        optional=True,
    ),
    Patch(
        id="v2-candidate-truncation",
        title="The V2 runner draws drafts with the request's temperature alone: DFlash 2, LiLiCorr (from candidates).",
        effect="As `v2-draft-truncation`.",
        module="vllm.v1.worker.gpu.spec_decode.dflash2.speculator",
        symbol="DFlash2Speculator._generate_draft",
        replacement="vllm_patches.patches.v2_candidate_truncation",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=(
            "self",
            "num_reqs",
            "num_tokens_padded",
            "attn_metadata",
            "slot_mappings",
            "num_tokens_across_dp",
        ),
        sources={"0.32.0": "a4d9bb8487784629", "0.33.0": "a4d9bb8487784629"},
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/vllm_patches/test_v2_block_drafters.py",
        until="drafts are drawn with all of the request's sampling parameters",
        runner="V2",
        methods=("dflash",),
        optional=True,
    ),
    Patch(
        id="v2-sampling-states",
        title="The V2 runner tells its drafter the requests' temperatures and seeds, not their top-k and top-p.",
        effect="`v2-draft-truncation` needs them.",
        module="vllm.v1.worker.gpu.sample.states",
        symbol="SamplingStates.__init__",
        replacement="vllm_patches.patches.v2_sampling_states",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=("self", "max_num_reqs", "vocab_size"),
        sources={"0.32.0": "f2ea2da2f3d8914a", "0.33.0": "f2ea2da2f3d8914a"},
        upstream=("https://github.com/vllm-project/vllm/issues/56724",),
        tested_by="tests/vllm_patches/test_v2_draft_truncation.py",
        until="`v2-draft-truncation` can go",
        runner="V2",
        optional=True,
    ),
    Patch(
        id="v2-grammar-drafts",
        title="Under a grammar the V2 verifier takes the first draft that the grammar forbids for no draft at all.",
        effect="Structured outputs with sampled drafts are biased: that token comes from p, not from max(0, p - q).",
        module="vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        symbol="RejectionSampler.__call__",
        replacement="vllm_patches.patches.v2_grammar_drafts",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=("self", "logits", "input_batch", "draft_logits=None", "invalid_drafts=None"),
        sources={"0.32.0": "e0a7285807218ef3", "0.33.0": "e0a7285807218ef3"},
        upstream=("docs/upstream/v1-structured-drafts.md",),
        tested_by="tests/vllm_patches/test_v2_structured_drafts.py",
        until="`grammar_invalid_drafts` leaves a draft that its masked row excludes to the verifier",
        runner="V2",
        optional=True,
        grammar=True,
    ),
    Patch(
        id="v2-grammar-cut",
        title="Without asynchronous scheduling that draft is cut from the request before the V2 verifier could see it.",
        effect="`v2-grammar-drafts` needs its place.",
        module="vllm.v1.core.sched.scheduler",
        symbol="Scheduler.update_draft_token_ids",
        replacement="vllm_patches.patches.v2_grammar_cut",
        device=ANY,
        sampling_only=True,
        versions=V2_CHECKED,
        parameters=("self", "draft_token_ids"),
        sources={"0.32.0": "f05dcf1d78912b36", "0.33.0": "f05dcf1d78912b36"},
        upstream=("docs/upstream/v1-structured-drafts.md",),
        tested_by="tests/vllm_patches/test_v2_structured_drafts.py",
        until="the scheduler keeps a forbidden draft for the verifier",
        runner="V2",
        optional=True,
        grammar=True,
    ),
    Patch(
        id="v2-heads",
        title="The V2 runner has no drafter for MEDUSA and the MLP speculator: `vllm_patches.speculator` is one.",
        effect="The engine does not start.",
        module="vllm.v1.worker.gpu.spec_decode",
        symbol="init_speculator",
        replacement="vllm_patches.patches.v2_heads",
        device=ANY,
        sampling_only=False,
        versions=V2_CHECKED,
        parameters=("vllm_config", "device", "req_states"),
        sources={"0.32.0": "e86cedd1d4c3e0e2", "0.33.0": "bad8b92d97584fbe"},
        upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu/spec_decode/__init__.py",),
        tested_by="tests/vllm_patches/test_v2_heads.py",
        until="the V2 runner drafts with them, from their own distributions",
        runner="V2",
        methods=(TRANSPORT,),
    ),
    Patch(
        id="v2-custom-class",
        title="vLLM's configuration refuses drafters that are classes wherever the V2 runner is asked for.",
        effect="`v2-heads` needs them.",
        module="vllm.config.vllm",
        symbol="VllmConfig._get_v2_model_runner_unsupported_features",
        replacement="vllm_patches.patches.v2_custom_class",
        device=ANY,
        sampling_only=False,
        versions=V2_CHECKED,
        parameters=("self",),
        sources={"0.32.0": "cb1a79994bd3ad51", "0.33.0": "12959e9a858a849b"},
        upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/config/vllm.py",),
        tested_by="tests/vllm_patches/test_v2_heads.py",
        until="`v2-heads` can go",
        runner="V2",
        methods=(TRANSPORT,),
    ),
)


def table() -> str:
    """The ledger as a Markdown table, as docs/trust/what-is-patched.md shows it."""
    head = "| id | what is wrong | effect | replaced symbol | needed on | vLLM | upstream | tested by | can go when |"
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *map(table_row, LEDGER)])


def table_row(patch: Patch) -> str:
    """One line of `table`."""
    cells = [
        f"`{patch.id}`",
        patch.title,
        patch.effect,
        f"`{patch.target}`",
        needed_on(patch),
        f"{patch.versions} (read: {', '.join(patch.sources)})"
        + (f"; native in {patch.native}" if patch.native else ""),
        " ".join(
            f"[{link.rsplit('/', 1)[1]}]({link.replace('docs/upstream', '../upstream')})" for link in patch.upstream
        ),
        f"`{patch.tested_by}`",
        patch.until,
    ]
    return "| " + " | ".join(cells) + " |"


def needed_on(patch: Patch) -> str:
    """Who needs the row, e.g. "V1, cpu, temperature > 0, medusa"."""
    conditions = [
        "V1 and V2" if patch.runner == ANY else patch.runner,
        patch.device if patch.device != ANY else "",
        *patch.methods,
    ]
    if patch.sampling_only:
        conditions.insert(2, "temperature > 0")
    return ", ".join(condition for condition in conditions if condition)
