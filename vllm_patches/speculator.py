"""The drafters of `drafters` as the V2 runner drafts (cf. vllm/v1/worker/gpu/spec_decode/speculator.py). Imports vLLM.

Its own base class keeps the draft logits, which stand for q, and draws from them with noise keyed by seed and position;
truncation (`v2-draft-truncation`), watermarks and replay act there, as they do on vLLM's own drafters. Heads attend to
nothing and write no cache: one draft is a few small products, made eagerly beside the target's CUDA graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from vllm_patches import drafters
from vllm_patches.drafters import Heads


class HeadsSpeculator(DraftModelSpeculator):
    """Drafts from the target's last hidden states with the class that `speculative_config.model` names.

    Raises ValueError, which vLLM passes on, for a checkpoint that does not fit, and with prefill context parallelism,
    where no worker has the hidden states of all tokens.
    """

    heads: Heads

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        if vllm_config.parallel_config.prefill_context_parallel_size > 1:
            raise ValueError(f"{self.speculative_config.model}: not with prefill context parallelism")
        self.step = torch.zeros((), dtype=torch.int64, device=device)

    def load_draft_model(self, target_model: Any, target_attn_layer_names: set[str]) -> None:
        """There is no model of vLLM's: nothing for it to shard, to compile or to give a cache to."""
        kind: type[Heads] = getattr(drafters, self.speculative_config.model.rpartition(".")[2])
        self.heads = kind(self.vllm_config)
        self.heads.move(self.device, self.dtype)

    def set_attn(self, *arguments: Any) -> None:
        """Nothing attends."""

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Nothing is captured."""

    def capture(self) -> None:
        """Nothing is captured."""

    def compute_draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        """`sample_draft` asks for the logits of what it is given, which are logits already."""
        return hidden_states

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Tensor,
        aux_hidden_states: Any,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """Drafts [B, K] of the B requests of the batch, -1 beyond `num_speculative_tokens`.

        Drafts of a request whose prompt is not read to its end (`num_sampled` 0) are made like the others and not used.
        """
        requests = input_batch.num_reqs
        self._copy_request_inputs(requests, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        k = self.num_speculative_steps if num_speculative_tokens is None else num_speculative_tokens
        self.draft_tokens[:requests, k:] = -1
        if k:
            newest = input_batch.query_start_loc[1 : requests + 1].long() - 1 - num_rejected[:requests]
            tokens = last_sampled.view(-1)[input_batch.idx_mapping[:requests]]
            draw = Draw(self, input_batch.positions[newest])
            self.draft_tokens[:requests, :k] = self.heads.draft(last_hidden_states[newest], tokens, k, draw)[0]
        return self.draft_tokens[:requests]


class Draw:
    """Draws the drafts of one position after the other, as `drafters.Sample` asks.

    `positions` [B]: of the tokens that the hidden states are of. The newest token is one further on, and a draw is
    keyed by the position before its own, as vLLM's drafters do.
    """

    def __init__(self, speculator: HeadsSpeculator, positions: Tensor) -> None:
        self._speculator, self._source, self._step = speculator, positions + 1, 0

    def __call__(self, logits: Tensor) -> tuple[Tensor, None]:
        """Draft tokens [B] from logits [B, V]; vLLM's own table keeps q."""
        own, step = self._speculator, self._step
        self._step += 1
        own.step.fill_(step)
        kept = own.draft_logits
        drafts = own.sample_draft(
            logits if kept is None else logits.to(kept.dtype),
            self._source + step,
            own.idx_mapping[: len(logits)],
            own.temperature,
            own.seeds,
            own.step,
            kept,
            step,
        )
        return drafts, None
