"""Listener that replays given texts: the target re-emits them token by token while the drafter drafts along them.

A request names its text in `SamplingParams.extra_args[state.TEXT]`. Every token of the text starts a verify step:
nothing is ever accepted, so the step emits the text's next token alone, whatever was sampled. Drafts that have a
distribution q are set to the text's tokens, so that position j drafts given the text up to j - 1, as it does in a step
that has accepted so far. What is kept is the chance that the text's token at position j was an accepted draft,

    kept_j = min(1, q_j(x_j) / p_j(x_j)),

and 1 or 0 for drafts without a distribution, as they are the text's token or not. Derivation:
docs/measure/same-text.md. Beside it, of each start's next token, what tells whether the text has the target's law
(`of_law`).

At temperature 0 all drafts are certain. A place where nothing was drafted has no record: each record says which place
of the text it is of, so that such steps can be told apart though none accepts anything.

Both runners; V1 with synchronous scheduling and the patches that draft and keep q (`ledger`), V2 with eager steps: in a
CUDA graph of the drafter no draft could be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from vllm_patches.patches import v1_draft_sampling
from vllm_patches.pieces import softmax_pieces
from vllm_patches.state import TEXT
from vllm_patches.taps.recorder import Recorder
from vllm_patches.taps.tap import Step

NO_TOKEN = -1
Standing = tuple[list[int], int]
"""A request's text, and how many tokens are out."""


class Replay:
    """Where each request of the running step stands in its text, and what was kept. On the V1 runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._drafted = 0
        self._recorder = Recorder()

    def open(self) -> None:
        """Stand between the runner and what it samples, and between the drafter and what it draws."""
        sample = self._sample = self._runner._sample

        @wraps(sample)
        def _sample(*args: Any, **kwargs: Any) -> Any:
            output = sample(*args, **kwargs)
            self.emit(output.sampled_token_ids)
            return output

        self._runner._sample = _sample
        v1_draft_sampling.choose = self.draft

    def close(self) -> None:
        """Put both back as they were."""
        self._runner._sample = self._sample
        v1_draft_sampling.choose = None

    def texts(self, names: Sequence[str]) -> list[Standing]:
        """For each of the requests `names` its text ([] for a request without one) and how many tokens are out."""
        found = []
        for name in names:
            request = self._runner.requests[name]
            text = (request.sampling_params.extra_args or {}).get(TEXT, [])
            found.append((text, len(request.output_token_ids)))
        return found

    def hear(self, step: Step) -> None:
        """Record kept, place and `of_law` [5, R] of all drafts. Before the verifier runs: it may work in place.

        place: tokens that are out when the step begins, the same for all its drafts.
        """
        standing = list(zip(self.texts(step.names), step.counts, strict=False))
        due = [
            text[out + j] if out + j < len(text) else NO_TOKEN for (text, out), count in standing for j in range(count)
        ]
        due_tokens = torch.tensor(due, device=step.drafts.device)
        logits = step.logits[:]
        chances = kept(due_tokens, step.drafts, logits, None if step.q is None else step.q[:])
        places = torch.tensor([out for (_, out), count in standing for _ in range(count)]).to(chances)
        first = [j == 0 for count in step.counts for j in range(count)]
        starting = torch.tensor(first, device=due_tokens.device, dtype=torch.bool) & (due_tokens != NO_TOKEN)
        law = of_law(due_tokens, logits, starting.nonzero()[:, 0], step.greedy)
        self._recorder.add(step.names, step.counts, torch.cat([torch.stack([chances, places]), law.to(chances)]))

    def drain(self) -> dict[str, Any]:
        """`Recorder.drain`: kinds kept, place, p, rank, spread."""
        return self._recorder.drain()

    def emit(self, sampled: Tensor) -> None:
        """Put each text's next token in place of what was sampled, in place: [B, 1 or K + 1], -1 for nothing."""
        self._texts, self._drafted = self.texts(self._runner.input_batch.req_ids), 0
        for row, (text, out) in enumerate(self._texts[: len(sampled)]):
            if out < len(text):
                sampled[row] = NO_TOKEN
                sampled[row, 0] = text[out]

    def draft(self, drafts: Tensor) -> Tensor:
        """The text's tokens in place of the drafts [B * n] of the next n positions, where the text goes on."""
        each = len(drafts) // len(self._texts)
        start, self._drafted = self._drafted, self._drafted + each
        due = [
            text[place] if (place := out + 1 + start + j) < len(text) else NO_TOKEN
            for text, out in self._texts
            for j in range(each)
        ]
        forced = torch.tensor(due, device=drafts.device, dtype=drafts.dtype)
        return torch.where(forced == NO_TOKEN, drafts, forced)


class ReplayV2(Replay):
    """The same on the V2 runner, whose batch and counts of tokens are on the device: they are read back each step."""

    def open(self) -> None:
        """Stand where requests come in, where tokens are chosen and where drafts are drawn."""
        runner, self._given, self._out = self._runner, dict[str, list[int]](), dict[str, int]()
        add, sample = runner.add_requests, runner.sample

        @wraps(add)
        def add_requests(scheduler_output: Any) -> None:
            for name in scheduler_output.finished_req_ids:
                self._given.pop(name, None)
                self._out.pop(name, None)
            for new in scheduler_output.scheduled_new_reqs:
                self._given[new.req_id] = (new.sampling_params.extra_args or {}).get(TEXT, [])
                # One that was preempted comes again, and reads what was out like a prompt.
                self._out[new.req_id] = len(new.prefill_token_ids) - new.prompt_len
            add(scheduler_output)

        @wraps(sample)
        def sampled(hidden_states: Tensor, input_batch: Any, *args: Any) -> Any:
            output, number, rejected = sample(hidden_states, input_batch, *args)
            self.emit_v2(input_batch, output.sampled_token_ids, number, rejected)
            return output, number, rejected

        runner.add_requests, runner.sample = add_requests, sampled
        if hasattr(runner.speculator, "sample_draft"):
            draw = runner.speculator.sample_draft

            @wraps(draw)
            def sample_draft(*args: Any, **kwargs: Any) -> Tensor:
                drafts: Tensor = draw(*args, **kwargs)
                return drafts if runner.speculator.draft_logits is None else self.draft(drafts)

            runner.speculator.sample_draft = sample_draft

    def close(self) -> None:
        """Put vLLM's own methods back."""
        for owner, name in ((self._runner, "add_requests"), (self._runner, "sample")):
            delattr(owner, name)
        vars(self._runner.speculator).pop("sample_draft", None)

    def texts(self, names: Sequence[str]) -> list[Standing]:
        return [(self._given.get(name, []), self._out.get(name, 0)) for name in names]

    def emit_v2(self, batch: Any, sampled: Tensor, number: Tensor, rejected: Tensor) -> None:
        """Put each text's next token in place of what was sampled, in place.

        `sampled` [B, 1 or K + 1], of which `number` [B] count (0: a chunk of a prompt) and after which `rejected` [B]
        drafts are taken back.
        """
        self._texts, self._drafted = self.texts(batch.req_ids), 0
        tokens, drafts = number.tolist(), (batch.cu_num_logits_np[1:] - batch.cu_num_logits_np[:-1] - 1).tolist()
        for row, (text, out) in enumerate(self._texts):
            if tokens[row] and out < len(text):
                sampled[row, 0], number[row], rejected[row] = text[out], 1, drafts[row]
                tokens[row] = 1
            self._out[batch.req_ids[row]] = out + tokens[row]


def kept(tokens: Tensor, drafts: Tensor, logits: Tensor, q: Tensor | None) -> Tensor:
    """[R]: the chance that each of the text's `tokens` [R] was an accepted draft; NaN past the text.

    NaN also for drafts that were none (id -1).

    `drafts` [R] are what was drafted in their places, `logits` [R, V] the target's, q [R, V] or None (drafts without a
    distribution: kept if and only if they are the text's).
    """
    place = tokens.clamp(min=0).long()[:, None]
    p = logits.softmax(-1, dtype=torch.float32).gather(1, place)[:, 0]
    proposed = (tokens == drafts).to(p.dtype) if q is None else q.gather(1, place)[:, 0]
    chance = (proposed / p).clamp(max=1).nan_to_num(0)
    return chance.masked_fill((tokens == NO_TOKEN) | (drafts < 0), torch.nan)


def of_law(tokens: Tensor, logits: Tensor, rows: Tensor, greedy: Tensor | bool) -> Tensor:
    """p, rank and spread [3, R] of the `tokens` [R] of those `rows`, NaN elsewhere.

    p is the chance that the target, `logits` [R, V], gives the token. rank is the mass of all likelier tokens and half
    the mass of those as likely: of a token that was drawn from p it has mean 1/2, and its variance is at most spread =
    (1 - sum_x p(x)^3) / 12. A `greedy` row ([R], or all) gives its argmax for certain.
    """
    found = torch.full((3, len(tokens)), torch.nan, device=logits.device)
    certain = torch.full_like(tokens, greedy, dtype=torch.bool) if isinstance(greedy, bool) else greedy
    for part, p in softmax_pieces(logits, rows):
        own = rows[part]
        cold = certain[own][:, None]
        p = torch.where(cold, p == p.amax(1, keepdim=True), p)
        p = p / p.sum(1, keepdim=True)
        at = p.gather(1, tokens[own].long()[:, None])
        rank = p.mul(p > at).sum(1) + p.mul(p == at).sum(1) / 2
        found[:, own] = torch.stack(
            [at[:, 0], rank, ((1 - p.pow(3).sum(1, dtype=torch.float64)).clamp(min=0) / 12).to(p)]
        )
    return found


def start(runner: Any) -> Replay:
    """A listener that replays every request which names a text from now on, until it is closed.

    Raises `NotImplementedError` for a V1 runner with async scheduling and a V2 runner with CUDA graphs.
    """
    config = runner.vllm_config
    if config.use_v2_model_runner and not config.model_config.enforce_eager:
        raise NotImplementedError("replay on the V2 runner needs --engine-arg enforce_eager=true; or --runner v1")
    if not config.use_v2_model_runner and runner.use_async_scheduling:
        raise NotImplementedError("replay on the V1 runner needs --engine-arg async_scheduling=false")
    replay = ReplayV2(runner) if config.use_v2_model_runner else Replay(runner)
    replay.open()
    return replay
