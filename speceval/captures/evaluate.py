"""kept_j of every place of every text, for any drafter: min(1, q_j(x_j) / p_j(x_j)), all places at once.

Draft position j of a place reads the text's own tokens before it, so that nothing of a step depends on another one:
K passes of the drafter over all texts are enough. Derivation: docs/measure/without-the-target.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from speceval.captures.folder import FINAL, Capture, Text, name_of
from speceval.captures.law import along as log_p_along
from speceval.captures.law import log_chance, log_law
from speceval.drafters.base import Drafter, States
from speceval.errors import UserError
from speceval.protocol import Drafting

if TYPE_CHECKING:
    import pandas as pd

    from speceval.store.schema import SamplingFacts

SCORES = {"cpu": 1 << 18}
"""Batch x places x tokens at once, which attention scores of every head take: on a CPU what its caches hold."""
MOST_SCORES = 1 << 24
"""On other devices."""
LOGITS = 1 << 26
"""Batch x places x vocabulary at once."""
CHECKED = 16
"""Tokens of the first text of each shard whose log p is worked out again."""
AGREES = {"exact": 1e-3, "rounded": 0.2}
"""Mean difference of log p, 1 at most, between what is kept and last state times output map, by how states are kept."""


@dataclass(frozen=True)
class Kept:
    """What a drafter would have kept along a text, for each place [places, K]."""

    text: Text
    kept: NDArray[np.float32]
    """NaN past the text, and where nothing was drafted."""
    drafted: NDArray[np.int64]
    """Drafts of each place [places]."""


@dataclass
class Overlap:
    """Sums over all places whose token is in the text, by draft position [K]."""

    places: list[int] = field(default_factory=list)
    alpha: list[float] = field(default_factory=list)
    """Σ_x min(p, q)."""
    kl: list[float] = field(default_factory=list)
    """KL(p || q) in nats, with p renormalised on what the drafter can draft."""

    def add(self, j: int, alpha: Tensor, kl: Tensor) -> None:
        """Values of draft position j (from 1) at some places."""
        for sums in (self.places, self.alpha, self.kl):
            sums.extend([0] * (j - len(sums)))
        self.places[j - 1] += len(alpha)
        self.alpha[j - 1] += float(alpha.sum())
        self.kl[j - 1] += float(kl.sum())


@dataclass(frozen=True)
class Question:
    """How drafts are drawn and verified."""

    k: int
    drafting: Drafting
    sampling: SamplingFacts
    truncated: bool = True
    """Whether top-k and top-p truncate q as p."""
    device: str = "cpu"


def require(k: int, device: str) -> None:
    """Raises `UserError` for a K that drafts nothing, and for a device that is not here, or holds no numbers."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k={k}: not a whole number from 1 on: that many draft positions")
    try:
        torch.zeros(1, device=torch.device(device)).cpu()
    except (RuntimeError, AssertionError, TypeError):
        raise UserError(f"--device {device}: torch has no such device here") from None


def along(
    drafter: Drafter,
    capture: Capture,
    question: Question,
    draft_ids: Tensor | None = None,
    overlap: Overlap | None = None,
) -> Iterator[Kept]:
    """What `drafter` keeps of each text, in no certain order; `overlap`: is filled meanwhile.

    `draft_ids`: the target's ids [D] of what it can draft; None: its own attribute of that name, or 0 … D - 1.
    Raises `UserError` for logits of another vocabulary, for fewer positions than K, and for what are no logits.
    """
    ids = getattr(drafter, "draft_ids", None) if draft_ids is None else draft_ids
    inside = None if ids is None else _inside(ids, capture, question.device)
    target = _Target(capture, question.device)
    _check_law(capture, target)
    for texts in batches(capture.texts, capture.manifest.vocab_size, question.device):
        batch = _Batch(capture, texts, target, question.k)
        yield from batch.kept(drafter, question, inside, overlap)


def certain(draft: Callable[[list[int], int], Iterator[list[int]]], texts: Iterable[Text], k: int) -> Iterator[Kept]:
    """The same for drafts without a distribution: `draft` gives those after tokens[:n], from n on, one place a time."""
    for text in texts:
        kept = np.full((text.places, k), np.nan, np.float32)
        drafted = np.zeros(text.places, np.int64)
        for place, tokens in enumerate(draft(text.tokens, text.prompt + 1)):
            due = text.tokens[text.prompt + 1 + place :][:k]
            drafted[place] = len(tokens)
            both = [float(a == b) for a, b in zip(tokens, due, strict=False)]
            kept[place, : len(both)] = both
        yield Kept(text, kept, drafted)


def table(kept: Sequence[Kept], k: int) -> pd.DataFrame:
    """A row for each place, sorted by text, as the table of steps of a replayed run."""
    import pandas as pd

    from speceval.store import REQUEST, recorded_columns

    names = recorded_columns(k, ("kept",))
    parts = [
        pd.DataFrame(one.kept, columns=names).assign(
            suite=one.text.key[0],
            conversation=one.text.key[1],
            seed=one.text.key[2],
            turn=one.text.key[3],
            step=range(1, one.text.places + 1),
            drafted=one.drafted,
            accepted=0,
            committed=1,
        )
        for one in sorted(kept, key=lambda one: one.text.key)
    ]
    columns = [*REQUEST, "step", "drafted", "accepted", "committed", *names]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def batches(texts: Sequence[Text], vocabulary: int, device: str = "cpu") -> Iterator[list[Text]]:
    """All texts with a place, those of about the same length together, as many as fit into memory."""
    batch: list[Text] = []
    scores = SCORES.get(torch.device(device).type, MOST_SCORES)
    for text in sorted((text for text in texts if text.places > 0), key=lambda text: -text.rows):
        most = max([text, *batch], key=lambda one: one.places).places
        size = (len(batch) + 1) * max([text, *batch], key=lambda one: one.rows).rows
        if batch and (size * most > scores or size * vocabulary > LOGITS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


class _Target:
    """What does not change from text to text, on the device: `drafters.base.Maps`."""

    def __init__(self, capture: Capture, device: str) -> None:
        self._capture, self.device = capture, device

    @cached_property
    def embedding(self) -> Tensor:
        return self._capture.embedding.to(self.device).float()

    @cached_property
    def output(self) -> Tensor:
        return self._capture.output.to(self.device).float()


class _Batch:
    """Some texts side by side, filled up at the end: K tokens and more follow every place."""

    def __init__(self, capture: Capture, texts: list[Text], target: _Target, k: int) -> None:
        self.texts, self.capture, device = texts, capture, target.device
        time, most = max(text.rows for text in texts) + k, max(text.places for text in texts)
        stored = [capture.states(text) for text in texts]
        self.tokens = torch.zeros(len(texts), time + 1, dtype=torch.long)
        self.log_p = torch.full((len(texts), time), torch.nan)
        for row, (text, states) in enumerate(zip(texts, stored, strict=True)):
            self.tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
            self.log_p[row, : text.rows] = states["log_p"]
        self.tokens, self.log_p = self.tokens.to(device), self.log_p.to(device)
        joined = {
            name: torch.stack([F.pad(states[name].float(), (0, 0, 0, time - len(states[name]))) for states in stored])
            for name in stored[0]
            if name != "log_p"
        }
        self.states = States(
            final=joined[FINAL].to(device),
            layers={layer: joined[name_of(layer)].to(device) for layer in capture.manifest.layers},
            maps=target,
        )
        first = torch.tensor([text.prompt - 1 for text in texts])
        count = torch.tensor([text.places for text in texts])
        offset = torch.arange(most)
        self.places = (first[:, None] + offset.minimum(count[:, None] - 1)).to(device)
        self.real = (offset < count[:, None]).to(device)
        self.rows = torch.tensor([text.rows for text in texts], device=device)

    def kept(
        self, drafter: Drafter, question: Question, inside: Tensor | None, overlap: Overlap | None
    ) -> Iterator[Kept]:
        """Of each text."""
        each = max(1, LOGITS // (len(self.texts) * self.capture.manifest.vocab_size))
        parts = [
            self._chunk(drafter, question, inside, overlap, at, each) for at in range(0, self.places.shape[1], each)
        ]
        kept = torch.cat(parts, dim=1).cpu().numpy()
        for row, text in enumerate(self.texts):
            yield Kept(text, kept[row, : text.places], np.full(text.places, question.k))

    def _chunk(
        self, drafter: Drafter, question: Question, inside: Tensor | None, overlap: Overlap | None, at: int, each: int
    ) -> Tensor:
        """kept [batch, places, K] of some places."""
        places, real = self.places[:, at : at + each], self.real[:, at : at + each]
        given = (self.tokens, self.places, self.states.final, *self.states.layers.values())
        before, found = [tensor._version for tensor in given], []
        drafts = _positions(drafter(self.tokens[:, :-1], self.states, places))
        for j, logits in enumerate(islice(drafts, question.k), start=1):
            due = places + j  # whose prediction is draft position j
            within = real & (due < self.rows[:, None])
            _check(logits, j, places, within, self.capture.manifest.vocab_size, inside)
            due = due.minimum(self.rows[:, None] - 1)
            token = self.tokens.gather(1, due + 1)
            chance = _chance(logits, token, self.log_p.gather(1, due), question, inside)
            found.append(chance.masked_fill(~within, torch.nan))
            if overlap is not None and within.any():
                self._overlap(overlap, j, logits, due, within, question, inside)
        if len(found) < question.k:
            raise UserError(f"k={question.k}: the drafter gives {len(found)} positions: ask for at most that many")
        if [tensor._version for tensor in given] != before:
            raise UserError("the drafter changes what it is given, which others read after it: have it change a copy")
        return torch.stack(found, dim=-1)

    def _overlap(
        self, overlap: Overlap, j: int, logits: Tensor, due: Tensor, within: Tensor, question: Question, inside: Any
    ) -> None:
        final = self.states.final.gather(1, due[..., None].expand(-1, -1, self.states.final.shape[-1]))[within]
        p = log_law(final @ self.states.output.T, question.sampling).exp()
        log_q = log_law(logits[within], question.sampling, question.truncated)
        ids = slice(logits.shape[-1]) if inside is None else (inside >= 0).nonzero()[:, 0]
        if inside is not None:
            log_q = log_q[:, inside[ids]]
        p = p[:, ids]
        share = p / p.sum(-1, keepdim=True).clamp_min(1e-20)
        divergence = (torch.special.xlogy(share, share) - torch.where(share > 0, share * log_q, 0.0)).sum(-1)
        overlap.add(j, torch.minimum(p, log_q.exp()).sum(-1), divergence)


def _chance(logits: Tensor, token: Tensor, log_p: Tensor, question: Question, inside: Tensor | None) -> Tensor:
    """That the text's token [batch, n] was an accepted draft: min(1, q/p); of greedy drafts whether it is the draft."""
    index = token if inside is None else inside[token]
    known = (index >= 0) & (index < logits.shape[-1])
    index = torch.where(known, index, 0)
    if question.drafting == "greedy" or question.sampling.temperature == 0:
        return ((logits.argmax(-1) == index) & known).float()
    log_q = log_chance(logits, index, question.sampling, question.truncated)
    return torch.where(known, (log_q - log_p).exp().clamp(max=1), 0.0).nan_to_num(0.0)


def _inside(ids: Any, capture: Capture, device: str) -> Tensor:
    """The drafter's id of each of the target's tokens [V]; -1 for what it cannot draft. Raises `UserError`."""
    size = capture.manifest.vocab_size
    try:
        ids = torch.as_tensor(ids).cpu()
    except (TypeError, ValueError, RuntimeError):
        ids = torch.zeros(0)
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool)
    if ids.ndim != 1 or not len(ids) or not whole or int(ids.min()) < 0 or len(ids.unique()) < len(ids):
        raise UserError(
            "draft_ids: not a list of different token ids of the target, one for each token that is drafted"
        )
    if int(ids.max()) >= size:
        raise UserError(
            f"the drafter drafts token {int(ids.max())}, the captured target has {size}: another vocabulary"
        )
    found = torch.full((size,), -1)
    found[ids.long()] = torch.arange(len(ids))
    return found.to(device)


def _check_law(capture: Capture, target: _Target) -> None:
    """Raises `UserError` where log p is not what last state, output map and sampling parameters say: some are others'.

    Of a few tokens of each shard.
    """
    allowed = AGREES["exact" if capture.manifest.storage is None else "rounded"]
    for text in capture.texts:
        if text.first_row > 0:
            continue
        states = capture.states(text)
        rows, tokens = slice(text.prompt - 1, text.prompt - 1 + CHECKED), text.tokens[text.prompt :][:CHECKED]
        kept = states["log_p"][rows].to(target.device)
        again = log_p_along(states[FINAL][rows], target.output, tokens, capture.sampling)
        change = torch.where(kept == again, 0.0, (kept - again).abs().clamp(max=1)).mean()
        if not change <= allowed:
            raise UserError(
                f"{capture.directory / capture.manifest.shards[text.shard].file}: log p is not what states, output map "
                f"and sampling parameters say ({float(change):.2g} apart): files of several captures: capture again"
            )


def _positions(drafts: Any) -> Iterable[Any]:
    """What a drafter has returned, one position after the other. Raises `UserError` for what has none."""
    try:
        return iter(drafts)
    except TypeError:
        raise UserError(f"the drafter gives {type(drafts).__name__}: {FORM}") from None


FORM = "give logits [K, batch, places, vocabulary], or an iterator of [batch, places, vocabulary]"
"""What an error says of a drafter's answer."""


def _check(logits: Any, j: int, places: Tensor, within: Tensor, vocabulary: int, inside: Tensor | None) -> None:
    """Raises `UserError` for what are no logits of draft position j."""
    if not isinstance(logits, Tensor):
        raise UserError(f"the drafter gives {type(logits).__name__} for draft position {j}: {FORM}")
    if tuple(logits.shape[:2]) != tuple(places.shape) or logits.ndim != 3:
        raise UserError(
            f"the drafter's logits have shape {list(logits.shape)}, for {list(places.shape)} places: {FORM}"
        )
    size = vocabulary if inside is None else int((inside >= 0).sum())
    if logits.shape[-1] != size:
        raise UserError(f"the drafter has {logits.shape[-1]} tokens, the captured target {size}: another vocabulary")
    if not logits.is_floating_point() or logits.device != places.device:
        kind = f"{logits.dtype} on {logits.device}"
        raise UserError(f"the drafter's logits are {kind}: give floating-point numbers on {places.device}")
    if not logits.amax(-1)[within].isfinite().all():
        raise UserError(f"the drafter's logits of draft position {j} are NaN, infinite, or all -infinity at some place")
