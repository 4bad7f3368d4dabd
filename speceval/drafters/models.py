"""A whole language model as the drafter: it reads the tokens and nothing of the target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from speceval.drafters.base import States, pick
from speceval.errors import UserError


class LanguageModel:
    """Draft position j of place i is the model's prediction of x_{i+j+1} after reading all tokens up to x_{i+j}."""

    draft_ids: Tensor | None = None
    layers: tuple[int, ...] = ()
    most: int | None = None

    def __init__(self, directory: Path, k: int, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is missing is told below, in one line
        model: Any
        model, told = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        for what in ("missing", "mismatched", "unexpected"):  # transformers would draw the first two at random
            if names := sorted(map(str, told.get(f"{what}_keys", ()))):
                raise UserError(f"{what} tensor {names[0]} in its files: the checkpoint is not the model's")
        self._model, self.k = model.to(device).eval(), k

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        state = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        for j in range(1, self.k + 1):
            yield self._model.get_output_embeddings()(pick(state, places + j))
