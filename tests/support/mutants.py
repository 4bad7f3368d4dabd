"""One-line mutants of the verifier and the drafter: each breaks one condition of exact sampling on purpose.

A mutant edits the source of a live function and swaps its code, so that whoever holds the function runs the mutant.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Edit = tuple[str, str, str, str]
"""Module, function, a piece of its source that occurs once, and what stands there instead."""

REJECT, DRAFT = "vllm_patches.patches.cpu_rejection", "vllm_patches.patches.v1_draft_sampling"
ACCEPT = "random = accept(drafts, at_drafts(target_logits, drafts), draft_probs, uniform)"
RECOVERY_NOISE = "own = uniforms(rejecting.tolist(), generators, 1, target_logits.device)"
DRAW = "drafts = draw(q, metadata.generators, each)"
KEEP_NOISE: Edit = (
    DRAFT,
    "draw",
    "return invert(q",
    'globals().setdefault("NOISE", []).append(uniform)\n    return invert(q',
)
NOISE = f'torch.stack(__import__("sys").modules["{DRAFT}"].NOISE[-max_spec_len:], 1)'
"""The uniforms of the step's drafts [rows of the drafting step, K]; most requests keep their row until they verify."""


@dataclass(frozen=True)
class Mutant:
    """`condition`: number in the list of docs/trust/is-it-exact.md. `asked`: what the run needs for the mutant to
    matter."""

    name: str
    condition: int
    edits: tuple[Edit, ...]
    asked: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


MUTANTS = (
    Mutant(
        "temperature dropped by the verifier",
        1,
        (
            (
                "vllm_patches.patches.cpu_expand",
                "expand_batch_to_tokens",
                "x.masked_fill(x == replace_from, replace_to)",
                "torch.ones_like(x)",
            ),
        ),
        {"temperature": 0.7},
    ),
    Mutant(
        "top-k dropped by the verifier",
        1,
        (("vllm_patches.patches.cpu_expand", "expand_batch_to_tokens", "x == replace_from, replace_to", "x > 1, 23"),),
        {"top_k": 8, "top_p": 0.9},
    ),
    Mutant(
        "q from the row before",
        2,
        (
            (
                "vllm_patches.patches.v1_missing_q",
                "get_spec_decode_draft_probs",
                "for row in rows])",
                "for row in rows]).roll(1, 0)",
            ),
        ),
    ),
    Mutant(
        "temperature dropped by the drafter, not for q",
        2,
        (
            (
                DRAFT,
                "sample",
                "logits = logits.float().div_",
                "plain = logits.softmax(-1)\n    logits = logits.float().div_",
            ),
            (DRAFT, "sample", DRAW, DRAW.replace("(q,", "(plain,")),
        ),
        {"temperature": 0.7},
    ),
    Mutant(
        "top-k on q in name only",
        2,
        (
            (
                DRAFT,
                "sample",
                "logits = truncate(logits",
                "full, logits = logits.softmax(-1), truncate(logits",
            ),
            (DRAFT, "sample", DRAW, DRAW.replace("(q,", "(full,")),
        ),
        {"top_k": 8, "top_p": 0.9},
    ),
    Mutant(
        "top-k on the drafts but not on q",
        2,
        (
            (
                DRAFT,
                "sample",
                "logits = truncate(logits",
                "full, logits = logits.softmax(-1), truncate(logits",
            ),
            (DRAFT, "sample", DRAW, DRAW.replace("drafts =", "drafts, q =") + ", full"),
        ),
        {"top_k": 8, "top_p": 0.9},
    ),
    Mutant(
        "d2t off by one for the token, not for q",
        2,
        ((DRAFT, "sample", DRAW, f"{DRAW}.add(1).clamp(max=q.shape[1] - 1)"),),
    ),
    Mutant(
        "noise shared by draft and recovery",
        3,
        (
            KEEP_NOISE,
            (
                REJECT,
                "rejection_sample",
                RECOVERY_NOISE,
                f"{RECOVERY_NOISE}\n        if len(rejecting):\n            shared = {NOISE}"
                "\n            own = shared[rejecting % len(shared), lengths[rejecting]]",
            ),
        ),
    ),
    Mutant(
        "noise shared by draft and acceptance",
        3,
        (
            KEEP_NOISE,
            (
                REJECT,
                "rejection_sample",
                ACCEPT,
                f"owner = torch.repeat_interleave(counts)\n        if len(owner):\n            shared = {NOISE}"
                "\n            place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]"
                f"\n            uniform = shared[owner % len(shared), place]\n        {ACCEPT}",
            ),
        ),
    ),
    Mutant(
        "p cut to the drafter's vocabulary",
        4,
        (
            (
                REJECT,
                "rejection_sample",
                ACCEPT,
                "cut = 0 if draft_probs is None else draft_probs.amax(0) == 0"
                "\n        target_logits = target_logits.masked_fill(torch.as_tensor(cut).bool(), -torch.inf)"
                f"\n        {ACCEPT}",
            ),
        ),
    ),
    Mutant(
        "greedy and sampled rows mixed up",
        5,
        (
            (
                REJECT,
                "rejection_sample",
                "sampling_metadata.temperature == 0",
                "(sampling_metadata.temperature == 0).roll(1)",
            ),
        ),
        settings={"greedy_share": 0.25},
    ),
    Mutant(
        "residual without clamping: abs(p - q)",
        0,
        ((REJECT, "recover", "p.sub_(kept).clamp_(min=0)", "p.sub_(kept).abs_()"),),
    ),
    Mutant("residual without q: p", 0, ((REJECT, "recover", "p.sub_(kept).clamp_(min=0)", "p"),)),
    Mutant(
        "residual of the step's last row",
        0,
        (
            (
                REJECT,
                "rejection_sample",
                "(cu_num_draft_tokens - counts + lengths)[rejecting]",
                "(cu_num_draft_tokens - 1)[rejecting]",
            ),
        ),
    ),
    Mutant(
        "bonus from the row before",
        0,
        (
            (
                "vllm.v1.sample.rejection_sampler",
                "RejectionSampler.forward",
                "bonus_logits_indices = metadata.bonus_logits_indices",
                "bonus_logits_indices = metadata.bonus_logits_indices - 1",
            ),
        ),
    ),
    Mutant(
        "accepted 10 % too easily", 0, ((REJECT, "accept", "at_p > uniform * at_q", "at_p > 0.9 * uniform * at_q"),)
    ),
    Mutant(
        "drafts kept after a rejected one", 0, ((REJECT, "rejection_sample", "by_request.cumprod(1)", "by_request"),)
    ),
)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """While open, the functions run the mutant's code."""
    kept = []
    try:
        for module, name, old, new in mutant.edits:
            function = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            kept.append((function, function.__code__))
            function.__code__ = edited(function, old, new)
        yield
    finally:
        for function, code in reversed(kept):
            function.__code__ = code


SOURCES: dict[Any, str] = {}
"""Source of functions that carry an edit already: a second one is made on top of it."""


def edited(function: Any, old: str, new: str) -> Any:
    """The function's code with one piece of its source replaced."""
    code = function.__code__
    source = SOURCES.get(code) or textwrap.dedent(inspect.getsource(code))
    assert source.count(old) == 1, (function.__qualname__, old, source.count(old))
    source = source.replace(old, new)
    scope: dict[str, Any] = dict(function.__globals__)
    exec(compile("from __future__ import annotations\n" + source, function.__code__.co_filename, "exec"), scope)
    changed = scope[function.__name__].__code__
    SOURCES[changed] = source
    return changed
