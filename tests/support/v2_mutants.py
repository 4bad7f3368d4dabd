"""Mutants of the live V2 runner, and `speceval verify` on each: `python v2_mutants.py NAME RESULT.json [SAMPLES]`.

Each breaks vLLM's own code in this process, after the engine's modules are there and before it starts.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from speceval.exactness import Settings
from speceval.exactness.run import examine
from speceval.measure import launch
from speceval.measure.job import prepare
from speceval.measure.start import start_engine
from vllm_patches import interpreted
from vllm_patches.interpreted import simt


def modules() -> tuple[Any, Any, Any]:
    """The drafter's, the verifier's and the noise's."""
    from vllm.v1.worker.gpu.sample import gumbel
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler, speculator

    return speculator, rejection_sampler, gumbel


def other_q(change: Callable[[Any, Any], Any]) -> Callable[[], None]:
    """The verifier takes another q than the drafts were drawn from: `change` of the draft logits and temperatures."""

    def plant() -> None:
        _, verifier, _ = modules()
        right = verifier.rejection_sample

        def rejection_sample(logits: Any, q: Any, *args: Any, **kwargs: Any) -> Any:
            return right(logits, change(q, args[6]), *args, **kwargs)

        verifier.rejection_sample = rejection_sample

    return plant


def other_token() -> None:
    """The drafter's token is one further on than the one that was drawn."""
    drafter, _, _ = modules()
    right = drafter.gumbel_sample

    def gumbel_sample(logits: Any, *args: Any, **kwargs: Any) -> Any:
        return (right(logits, *args, **kwargs) + 1) % logits.shape[-1]

    drafter.gumbel_sample = gumbel_sample


def unwritten_q() -> None:
    """Drafts are argmaxes, and the store of q stays as it was allocated: what XPress drafters of vLLM 0.33 do."""
    drafter, _, _ = modules()
    drafter.gumbel_sample = lambda logits, *args, **kwargs: logits.argmax(-1)


def shared_noise() -> None:
    """Drafts are drawn with the noise that a rejected one is replaced with."""
    _, _, gumbel = modules()
    gumbel._DRAFT_NOISE_SALT = type(gumbel._DRAFT_NOISE_SALT)(0)


def half_truncated(drafts: bool) -> Callable[[], None]:
    """Of the drafts and q, one is truncated and the other is not: the drafts, or q."""

    def plant() -> None:
        from vllm_patches.patches import v2_draft_truncation as patch

        drafter, _, _ = modules()
        right, truncated = drafter.gumbel_sample, patch.truncated
        kept: list[Any] = []

        def half(logits: Any, *args: Any) -> Any:
            whole, cut = logits.clone(), truncated(logits, *args)
            kept.append(whole if drafts else cut)
            return cut if drafts else whole

        def gumbel_sample(logits: Any, idx: Any, *args: Any, logits_cache: Any = None, **kwargs: Any) -> Any:
            tokens = right(logits, idx, *args, logits_cache=logits_cache, **kwargs)
            column = kwargs["logits_cache_col"]
            logits_cache[idx, column.expand(len(idx)) if column.dim() == 0 else column, : logits.shape[-1]] = kept.pop()
            return tokens

        patch.truncated, drafter.gumbel_sample = half, gumbel_sample

    return plant


def stray() -> None:
    """A kernel of the verifier reads and writes one row too many."""
    _, verifier, _ = modules()
    kernel, right = verifier._gather_draft_sampled_kernel, "block < num_logits"
    source = inspect.getsource(kernel.function)
    assert source.count(right) == 1
    kernel._body = simt.parse(source.replace(right, "block <= num_logits"))


def one_noise() -> None:
    """All drafts of a step are drawn by our own speculator with the noise of its first position."""
    interpreted.prepare()
    from vllm_patches.speculator import Draw

    right = Draw.__call__

    def call(self: Any, logits: Any) -> Any:
        drawn = right(self, logits)
        self._source = self._source - 1
        return drawn

    Draw.__call__ = call  # type: ignore[method-assign]


def nothing() -> None:
    """No mutant."""


MUTANTS: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "none": (nothing, {}),
    "q of another slot": (other_q(lambda q, heat: q.roll(1, 0)), {}),
    "temperature dropped for q": (other_q(lambda q, heat: q * heat[:, None, None]), {"temperature": 0.7}),
    "noise shared by draft and recovery": (shared_noise, {}),
    "token one off, q not": (other_token, {}),
    "block verification of 0.32, as released": (nothing, {"rejection": "block"}),
    "argmax drafts, q never written": (unwritten_q, {}),
    "top-k on the drafts, not on q": (half_truncated(drafts=True), {"top_k": 8}),
    "top-k on q in name only": (half_truncated(drafts=False), {"top_k": 8}),
    "MEDUSA as it is": (nothing, {"draft": "lk-medusa"}),
    "MEDUSA with one noise for all positions": (one_noise, {"draft": "lk-medusa"}),
    "MLP speculator with one noise for all positions": (one_noise, {"draft": "lk-mlp"}),
    "MLP speculator with q of another slot": (other_q(lambda q, heat: q.roll(1, 0)), {"draft": "lk-mlp"}),
}
"""Name -> what plants it, and what is asked for so that it matters. Block verification needs SPECEVAL_PATCHES=0."""


def run(name: str, samples: int | None) -> dict[str, Any]:
    plant, asked = MUTANTS[name]
    fields = {"draft": "lk-eagle3", "temperature": 1.0, "batch": 256, "runner": "v2"} | asked
    job = launch.fetch(prepare(target="zoo", suite_names=["demo"], **fields))
    interpreted.prepare()
    plant()
    settings = Settings() if samples is None else Settings(samples=samples)
    with closing(start_engine(job)) as engine:
        return examine(engine, job, settings, lambda *_: None).as_json()


if __name__ == "__main__":
    chosen, destination, *size = sys.argv[1:]
    Path(destination).write_text(json.dumps(run(chosen, int(size[0]) if size else None)))
