"""What every drafter is, and what it is given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from speceval.errors import UserError


class Maps(Protocol):
    """The target's maps between tokens and states, each [vocabulary, hidden size], float32; made when they are used."""

    @property
    def embedding(self) -> Tensor:
        """Token embeddings."""

    @property
    def output(self) -> Tensor:
        """The output map: logits are a last state times this."""


@dataclass(frozen=True)
class States:
    """What the target said at each token of a batch; each [batch, time, hidden size], float32."""

    final: Tensor
    """The normed last state."""
    layers: dict[int, Tensor]
    """The residual stream after so many layers."""
    maps: Maps
    """Of the target."""

    @property
    def embedding(self) -> Tensor:
        """The target's token embeddings [vocabulary, hidden size]."""
        return self.maps.embedding

    @property
    def output(self) -> Tensor:
        """The target's output map [vocabulary, hidden size]."""
        return self.maps.output


class Drafter(Protocol):
    """Any callable that drafts."""

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterable[Tensor]:
        """Logits [batch, n, D] of draft positions 1, 2, …: a tensor with the positions first, or one by one."""


class Tensors(dict[str, Tensor]):
    """A checkpoint's tensors by name; the first that is missing is a `UserError`. `read`: names that were asked for."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, else `default`."""
        return self[name] if name in self else default  # noqa: SIM401

    def __missing__(self, name: str) -> Tensor:
        raise UserError(f"no tensor {name} in its files: the checkpoint is not complete")


class Loaded:
    """A drafter of a checkpoint: `config` is its config.json, `weights` its tensors by name."""

    draft_ids: Tensor | None = None
    """The target's ids of the tokens that it can draft [D]; None: all."""
    layers: tuple[int, ...] = ()
    """Whose residual streams it reads."""
    most: int | None = None
    """Draft positions that it has; None: any number."""
    spare: str = r"t2d|d2t|.*rotary_emb\.inv_freq"
    """Names of tensors that it may leave unread (a regular expression)."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        self.config, self.weights, self.k = config, Tensors(weights), k

    def weight(self, name: str) -> Tensor:
        """A matrix or vector of the checkpoint, float32. Raises `UserError` where it is missing."""
        return self.weights[f"{name}.weight"]

    def unread(self) -> list[str]:
        """Tensors that no draft has asked for so far, but for `spare` and those of positions that are not drafted."""
        numbers = {name: re.search(r"\.(\d+)\.", name) for name in self.weights if name not in self.weights.read}
        return [
            name
            for name, number in numbers.items()
            if not re.fullmatch(self.spare, name) and not (self.most and number and int(number[1]) >= self.k)
        ]


def pick(x: Tensor, places: Tensor) -> Tensor:
    """x [batch, time, size] at places [batch, n]: [batch, n, size]; beyond the end the last one's."""
    index = places.clamp(max=x.shape[1] - 1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
