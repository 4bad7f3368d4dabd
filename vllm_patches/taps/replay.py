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
CUDA graph of the drafter no draft could be set. Neither waits for the device: V1's runner has told the host how many
tokens are out, V2's keeps that on the device, where the texts are laid beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from vllm_patches.patches import v1_draft_sampling, v2_draft_truncation
from vllm_patches.pieces import softmax_pieces
from vllm_patches.state import TEXT
from vllm_patches.taps.recorder import Recorder
from vllm_patches.taps.tap import Step, put, starts

NO_TOKEN = -1


class Standing(Protocol):
    """Where some requests [B] stand in their texts."""

    def due(self, counts: Sequence[int], ahead: int = 0) -> Tensor:
        """The texts' next tokens [sum(counts)], so many of each request, after those that are `ahead`.

        NO_TOKEN past the text and for a request without one.
        """

    def places(self, counts: Sequence[int]) -> Tensor:
        """How many tokens of its request are out [sum(counts)]."""


@dataclass(frozen=True)
class OnHost:
    """As the host knows it: the texts, and how many tokens of each are out."""

    texts: list[list[int]]
    out: list[int]
    device: torch.device

    def due(self, counts: Sequence[int], ahead: int = 0) -> Tensor:
        standing = zip(self.texts, self.out, counts, strict=False)
        places = [(text, out + ahead + j) for text, out, count in standing for j in range(count)]
        return put([text[place] if place < len(text) else NO_TOKEN for text, place in places], self.device)

    def places(self, counts: Sequence[int]) -> Tensor:
        return put([out for out, count in zip(self.out, counts, strict=False) for _ in range(count)], self.device)


@dataclass(frozen=True)
class OnDevice:
    """The same on the device: a table of texts, which of its rows the requests have [B], what is out of them [B]."""

    table: Tensor
    rows: Tensor
    out: Tensor

    def due(self, counts: Sequence[int], ahead: int = 0) -> Tensor:
        owner = self._owners(counts)
        place = self.out[owner] + ahead + put([j for count in counts for j in range(count)], owner.device)
        last = self.table.shape[1] - 1
        return self.table[self.rows[owner], place.clamp(max=last)].masked_fill(place > last, NO_TOKEN)

    def places(self, counts: Sequence[int]) -> Tensor:
        return self.out[self._owners(counts)]

    def _owners(self, counts: Sequence[int]) -> Tensor:
        return put([owner for owner, count in enumerate(counts) for _ in range(count)], self.rows.device)


class Replay:
    """Where each request of the running step stands in its text, and what was kept. On the V1 runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._drafted = 0
        self._requests = 0
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

    def standing(self, names: Sequence[str], device: torch.device) -> Standing:
        """Where the requests `names` stand now."""
        requests = [self._runner.requests[name] for name in names]
        texts = [(request.sampling_params.extra_args or {}).get(TEXT, []) for request in requests]
        return OnHost(texts, [len(request.output_token_ids) for request in requests], device)

    def hear(self, step: Step) -> None:
        """Record kept, place and `of_law` [5, R] of all drafts. Before the verifier runs: it may work in place.

        place: tokens that are out when the step begins, the same for all its drafts.
        """
        standing, logits = self.standing(step.names, step.drafts.device), step.logits[:]
        due = standing.due(step.counts)
        chances = kept(due, step.drafts, logits, None if step.q is None else step.q[:])
        law = of_law(due, logits, put(starts(step.counts), due.device), step.greedy)
        places = standing.places(step.counts).to(chances.dtype)
        self._recorder.add(step.names, step.counts, torch.cat([torch.stack([chances, places]), law.to(chances.dtype)]))

    def drain(self) -> dict[str, Any]:
        """`Recorder.drain`: kinds kept, place, p, rank, spread."""
        return self._recorder.drain()

    def emit(self, sampled: Tensor) -> None:
        """Put each text's next token in place of what was sampled, in place: [B, 1 or K + 1], -1 for nothing."""
        due = self._next(self._runner.input_batch.req_ids, sampled.device)[: len(sampled)]
        forced = due != NO_TOKEN
        sampled.masked_fill_(forced[:, None], NO_TOKEN)
        sampled[:, 0] = torch.where(forced, due.to(sampled.dtype), sampled[:, 0])

    def _next(self, names: Sequence[str], device: torch.device) -> Tensor:
        """What each of the requests emits now [B]; what they draft, from now on, follows it."""
        self._standing, self._requests, self._drafted = self.standing(names, device), len(names), 0
        return self._standing.due([1] * len(names))

    def draft(self, drafts: Tensor) -> Tensor:
        """The text's tokens in place of the drafts [B * n] of the next n positions, where the text goes on."""
        each = len(drafts) // self._requests
        due = self._standing.due([each] * self._requests, 1 + self._drafted).to(drafts.dtype)
        self._drafted += each
        return torch.where(due == NO_TOKEN, drafts, due)


class ReplayV2(Replay):
    """The same on the V2 runner, which names a request by its place in its states and counts tokens on the device."""

    def open(self) -> None:
        """Stand where requests come in, where tokens are chosen and where drafts are drawn."""
        runner = self._runner
        places, device = runner.req_states.max_num_reqs, runner.req_states.device
        self._table = torch.full((places, 1), NO_TOKEN, device=device)
        self._prompts = torch.zeros(places, dtype=torch.int64, device=device)
        add, sample = runner.add_requests, runner.sample

        @wraps(add)
        def add_requests(scheduler_output: Any) -> None:
            add(scheduler_output)
            for new in scheduler_output.scheduled_new_reqs:
                text = (new.sampling_params.extra_args or {}).get(TEXT, [])
                self.come(runner.req_states.req_id_to_index[new.req_id], text, new.prompt_len)

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

    def come(self, place: int, text: Sequence[int], prompt: int) -> None:
        """A request has this place in vLLM's states from now on, also one that was preempted and is there again.

        `text` is to follow its `prompt` tokens.
        """
        if (more := len(text) - self._table.shape[1]) > 0:
            grown = self._table.new_full((len(self._table), max(more, self._table.shape[1])), NO_TOKEN)
            self._table = torch.cat([self._table, grown], dim=1)
        self._table[place] = NO_TOKEN
        self._table[place, : len(text)] = put(list(text), self._table.device)
        self._prompts[place] = prompt

    def standing(self, names: Sequence[str], device: torch.device) -> Standing:
        states = self._runner.req_states
        rows = put([states.req_id_to_index[name] for name in names], device)
        return OnDevice(self._table, rows, states.total_len.gpu[rows].long() - self._prompts[rows])

    def emit_v2(self, batch: Any, sampled: Tensor, number: Tensor, rejected: Tensor) -> None:
        """Put each text's next token in place of what was sampled, in place.

        `sampled` [B, 1 or K + 1], of which `number` [B] count (0: a chunk of a prompt) and after which `rejected` [B]
        drafts are taken back.
        """
        due = self._next(batch.req_ids, sampled.device)
        forced = (due != NO_TOKEN) & (number > 0)
        drafts = put((batch.cu_num_logits_np[1:] - batch.cu_num_logits_np[:-1] - 1).tolist(), sampled.device)
        sampled[:, 0] = torch.where(forced, due.to(sampled.dtype), sampled[:, 0])
        number.masked_fill_(forced, 1)
        rejected.copy_(torch.where(forced, drafts.to(rejected.dtype), rejected))


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
    """p, rank and spread [3, R] of the `tokens` [R] of those `rows`, NaN elsewhere and past the text.

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
        at = p.gather(1, tokens[own].clamp(min=0).long()[:, None])
        rank = p.mul(p > at).sum(1) + p.mul(p == at).sum(1) / 2
        found[:, own] = torch.stack(
            [at[:, 0], rank, ((1 - p.pow(3).sum(1, dtype=torch.float64)).clamp(min=0) / 12).to(p)]
        )
    return found.masked_fill(tokens == NO_TOKEN, torch.nan)


def draws_by_itself(speculator: Any) -> bool:
    """Whether V2's speculator samples drafts elsewhere than in `sample_draft`: each depends on the one before."""
    return v2_draft_truncation.row(speculator) != v2_draft_truncation.ROW and speculator.draft_logits is not None


def start(runner: Any) -> Replay:
    """A listener that replays every request which names a text from now on, until it is closed.

    Raises `NotImplementedError` for a V1 runner with async scheduling, and for a V2 runner with CUDA graphs or with a
    drafter whose sampled drafts cannot be set.
    """
    config = runner.vllm_config
    if config.use_v2_model_runner and not config.model_config.enforce_eager:
        raise NotImplementedError("replay on the V2 runner needs --engine-arg enforce_eager=true; or --runner v1")
    if not config.use_v2_model_runner and runner.use_async_scheduling:
        raise NotImplementedError("replay on the V1 runner needs --engine-arg async_scheduling=false")
    if config.use_v2_model_runner and draws_by_itself(runner.speculator):
        raise NotImplementedError("replay cannot set the drafts of a drafter that draws by itself: --drafting greedy")
    replay = ReplayV2(runner) if config.use_v2_model_runner else Replay(runner)
    replay.open()
    return replay
