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

V1 runner, synchronous scheduling. Needs the patches that draft and keep q (`ledger`).
"""

from __future__ import annotations

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


class Replay:
    """Where each request of the running step stands in its text, and what was kept."""

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

    def texts(self) -> list[tuple[list[int], int]]:
        """For each request of the batch its text ([] for a request without one) and how many tokens are out."""
        found = []
        for name in self._runner.input_batch.req_ids:
            request = self._runner.requests[name]
            text = (request.sampling_params.extra_args or {}).get(TEXT, [])
            found.append((text, len(request.output_token_ids)))
        return found

    def hear(self, step: Step) -> None:
        """Record kept, place and `of_law` [5, R] of all drafts. Before the verifier runs: it may work in place.

        place: tokens that are out when the step begins, the same for all its drafts.
        """
        standing = list(zip(self.texts(), step.counts, strict=False))
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
        self._texts, self._drafted = self.texts(), 0
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

    Raises `NotImplementedError` for V2 and async scheduling.
    """
    if runner.vllm_config.use_v2_model_runner or runner.use_async_scheduling:
        raise NotImplementedError("replay needs the V1 runner without async scheduling: --runner v1")
    replay = Replay(runner)
    replay.open()
    return replay
