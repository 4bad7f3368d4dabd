"""Train one part of the zoo into a directory. Run as a process of its own: `python -m speceval.zoo.worker JSON`.

A process, so that the thread count and the random state are this part's alone, and the caller never imports torch.
Progress goes to stdout as lines "done total".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from speceval.zoo import draft, eagle3, export, medusa, mlp, mtp, text, training
from speceval.zoo import target as target_module
from speceval.zoo.recipe import PLANS, TARGET, Recipe
from speceval.zoo.target import Report
from speceval.zoo.training import Drafter

ARCHITECTURES: dict[str, tuple[Callable[..., Drafter], Callable[..., None]]] = {
    "eagle3": (eagle3.start, export.save_eagle3),
    "medusa": (medusa.start, export.save_medusa),
    "mlp": (mlp.start, export.save_mlp),
    "mtp": (mtp.start, export.save_mtp),
    "draft": (draft.start, export.save_draft),
}
"""Architecture -> (drafter before training, of recipe, target and the target's own text; writer of its checkpoint)."""


def train_part(name: str, recipe: Recipe, target_dir: Path, out: Path, report: Report) -> None:
    """Train `name` (the target or a drafter) and write its checkpoint into the existing directory `out`.

    `target_dir` is the finished target's directory; not read for the target itself.
    """
    torch.use_deterministic_algorithms(True)
    if name == TARGET:
        torch.set_num_threads(recipe.target_threads)
        _train_target(recipe, out, report)
    else:
        torch.set_num_threads(1)  # drafters train side by side
        _train_drafter(name, recipe, target_dir, out, report)


def _train_target(recipe: Recipe, out: Path, report: Report) -> None:
    groups = text.exchanges(recipe)
    documents = text.documents(groups, recipe.seed + 1)
    tokenizer = text.train_tokenizer(documents, recipe.vocab_size)
    stream = torch.tensor([token for ids in text.encode(tokenizer, documents) for token in ids])
    target = target_module.train(recipe, stream, report)
    prompts = text.encode(tokenizer, text.prompts(groups, recipe.seed + 2))
    tokens, sampled = target_module.sample(target, prompts, recipe.rows, recipe.row_length, recipe.seed + 3)
    export.save_target(out, recipe, target, tokenizer)
    export.save_own_text(out, tokens, sampled)


def _train_drafter(name: str, recipe: Recipe, target_dir: Path, out: Path, report: Report) -> None:
    architecture, loss = PLANS[name]
    start, save = ARCHITECTURES[architecture]
    target, own = export.load_target(target_dir, recipe), export.load_own_text(target_dir)
    drafter = start(recipe, target, own)
    training.train(recipe, loss, drafter, target, own, report)
    save(out, recipe, drafter)


def main() -> None:
    """Read the job from the command line and do it."""
    job = json.loads(sys.argv[1])
    out = Path(job["out"])

    def report(done: int, total: int) -> None:
        print(done, total, flush=True)

    train_part(job["name"], Recipe(**job["recipe"]), Path(job["target"]), out, report)
    for path in out.iterdir():  # on disk before the directory gets its final name
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
