"""Exact tau while a small EAGLE-3 learns, under KL and under LK-λ: what the losses do to acceptance, step by step.

    python scripts/loss_steps.py     # two minutes; writes results/statistics/loss_steps.csv

The zoo's recipe: the same start, the same batches, 100 steps of KL for both, then 200 of each one's own loss. Every
ten steps the drafter is evaluated on the stored capture (`results/reference/capture`), which no loss has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import speceval
from speceval import zoo
from speceval.drafters.base import States
from speceval.files import write_whole
from speceval.zoo import eagle3, export, training
from speceval.zoo.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
CAPTURE = ROOT / "results" / "reference" / "capture"
OUT = ROOT / "results" / "statistics" / "loss_steps.csv"
LOSSES = {"KL": "kl", "LK-λ": "lk_lambda"}
EVERY, K = 10, 5


def main() -> None:
    """Train and store."""
    torch.set_num_threads(1)
    rows = [row for name, loss in LOSSES.items() for row in trained(name, loss)]
    write_whole(OUT, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))


def trained(name: str, loss: str) -> list[dict[str, Any]]:
    """A row for every `EVERY` steps of a training."""
    recipe, place = Recipe(), zoo.ensure([])["target"]
    target, own = export.load_target(place, recipe), export.load_own_text(place)
    capture = speceval.read_capture(CAPTURE)
    drafter, rows = eagle3.start(recipe, target, own), []

    def draft(tokens: Tensor, states: States, places: Tensor) -> Tensor:
        streams = [states.layers[layer] for layer in eagle3.AUX_LAYERS]
        embedded = F.embedding(tokens, states.embedding)
        return drafter(training.Batch(tokens, embedded, streams, states.final, places))

    def report(step: int, total: int) -> None:
        if step % EVERY and step != 1:
            return
        found = speceval.evaluate(draft, capture, K, draft_ids=drafter.draft_ids, overlap=True)
        tau = found.tau()
        assert found.alpha is not None and found.kl is not None
        rows.append({"loss": name, "step": step, "tau": tau.value, "low": tau.low, "high": tau.high})
        rows[-1] |= {f"alpha_{j}": value for j, value in enumerate(found.alpha, start=1)}
        rows[-1] |= {f"kl_{j}": value for j, value in enumerate(found.kl, start=1)}
        print(rows[-1], flush=True)

    training.train(recipe, loss, drafter, target, own, report)
    return rows


if __name__ == "__main__":
    main()
