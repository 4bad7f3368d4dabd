"""What became of a drafter's checkpoint: which parameters it filled, and what vLLM decided while loading it.

vLLM starts with whatever its memory held where a checkpoint lacks a tensor, and some of its models do not tell what
they loaded (vllm/model_executor/models/llama_eagle3.py). So the parameters are marked before the drafter is loaded:
all bits of a mask are flipped, which is undone where they are still as marked afterwards. `watch` is called by vLLM's
loader (`guard.HOOKS`), `report` by the worker extension when the engine is up.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm_patches.refuse import MEASURED_SWITCH

MASK = 0x5A
"""Flipped in every byte of a parameter until it is loaded."""
SAMPLE = 4096
"""Rows of two embeddings or heads that are compared."""
SAME = 0.999
"""Cosine from which on an own embedding is called like the target's."""
_QUANTISED = re.compile(r"scales?(_\w+)?$|zero_points?$|qzeros$|g_idx$|weight_shape$")
"""Last parts of names that quantisation fills itself or may do without."""
_SPELLED = {"draft_id_to_target_id": "d2t"}
"""Parameters that checkpoints call otherwise."""
_OPTIONAL = {"mask_embedding": "has_separate_mask_embedding"}
"""Parameters that are read only where their module's flag says that the checkpoint brought them
(vllm/model_executor/models/qwen3_dflash.py, embed_input_ids)."""


@dataclass
class Loading:
    """The drafter that this process loaded last."""

    model: Any = None
    """Weak reference to it."""
    owners: dict[str, Any] = field(default_factory=dict)
    """Name of a parameter that was not filled -> weak reference to the module that held it."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of it that was not filled."""
    unseen: list[str] = field(default_factory=list)
    """Parameters that could not be marked."""
    biases: list[str] = field(default_factory=list)
    """Biases in the checkpoint that are not all zero."""
    odd: str = ""
    """What is wrong with the numbers of the checkpoint's tensors, as `not_finite` tells it."""
    kept: Any = None
    """The checkpoint's `t2d`: which of the target's tokens the drafter can propose."""


LAST = Loading()


def watch(original: Callable[..., Any]) -> Callable[..., Any]:
    """`DefaultModelLoader.load_weights` that sees which parameters of a drafter it fills."""

    def load_weights(self: Any, model: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(model_config, "runner_type", None) != "draft" or os.environ.get(MEASURED_SWITCH) != "1":
            return original(self, model, model_config, *args, **kwargs)
        global LAST
        LAST = Loading(weakref.ref(model))
        marked = {name: mark for name, parameter in model.named_parameters() if (mark := _mark(parameter))}
        LAST.unseen = [name for name, parameter in model.named_parameters() if name not in marked and parameter.numel()]
        offered = self.get_all_weights
        self.get_all_weights = lambda *given, **named: _overheard(offered(*given, **named))
        try:
            result = original(self, model, model_config, *args, **kwargs)
        finally:
            del self.get_all_weights
        for name, mark in marked.items():
            if share := mark.restore():
                LAST.shares[name] = share
                LAST.owners[name] = weakref.ref(_owner(model, name))
        # Now: on a CPU vLLM packs a layer's weights afterwards and leaves its parameter empty.
        LAST.odd = not_finite(
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name not in LAST.shares and not _QUANTISED.search(name)  # memory that nobody wrote need not be numbers
        )
        return result

    return load_weights


def forget() -> None:
    """Other weights have taken the place of those that were heard of."""
    LAST.kept, LAST.biases, LAST.odd = None, [], ""


def _overheard(weights: Any) -> Iterator[Any]:
    for name, tensor in weights:
        if name.endswith(".bias") and bool(tensor.any()):
            LAST.biases.append(name)
        if name.endswith("t2d"):
            LAST.kept = tensor.detach().cpu().bool()
        yield name, tensor


class _Mark:
    """A parameter with flipped bits, and what its rows looked like then. Costs two numbers a row, no copy."""

    def __init__(self, rows: Any, mask: int) -> None:
        self.rows, self.mask = rows, mask
        rows.bitwise_xor_(mask)
        self.sums, self.firsts = self._seen()

    def _seen(self) -> tuple[Any, Any]:
        import torch

        return self.rows.sum(1, dtype=torch.int64), self.rows[:, 0].clone()

    def restore(self) -> float:
        """Undo the flips where nothing was loaded; the share of rows where that is so."""
        sums, firsts = self._seen()
        untouched = (sums == self.sums) & (firsts == self.firsts)
        if untouched.all():
            self.rows.bitwise_xor_(self.mask)
        elif untouched.any():
            self.rows[untouched] = self.rows[untouched].bitwise_xor(self.mask)
        return float(untouched.float().mean())


def _mark(parameter: Any) -> _Mark | None:
    """None where the memory of a parameter cannot be seen as rows of integers: it is not there yet, say."""
    import torch

    data = parameter.data
    if data.is_meta or data.numel() == 0 or data.dtype == torch.bool or not data.is_contiguous():
        return None
    rows = data.reshape(-1, data.shape[-1]) if data.dim() > 1 else data.reshape(-1, 1)
    for kind in (torch.int64, torch.int32, torch.int16, torch.uint8):
        if rows.shape[1] * rows.element_size() % kind.itemsize == 0:
            try:
                mask = int.from_bytes(bytes([MASK] * kind.itemsize), "little")
                return _Mark(rows.view(kind), mask)
            except RuntimeError:  # an odd offset in memory
                continue
    return None


def _owner(model: Any, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])


# ---------------------------------------------------------------------------------------------------- the report


def report(runner: Any, config: Any) -> dict[str, Any]:
    """What vLLM made of the drafter of a worker's model runner, as plain data.

    "unfilled": parameters (by the checkpoint's names) that are used and that it did not fill; "unused": biases that it
    has and the model has not; "wrong": what cannot be meant; "seen": whether that is known; "decided": by
    vLLM, on loading.
    """
    speculative = config.speculative_config
    found: dict[str, Any] = {"unfilled": [], "unused": [], "wrong": "", "seen": True, "decided": {}}
    if speculative is None:
        return found
    decided = found["decided"] = _options(speculative)
    drafter: Any = getattr(getattr(runner, "drafter", None) or getattr(runner, "speculator", None), "model", None)
    if not hasattr(drafter, "named_parameters"):
        return found  # a drafter of ours has looked itself, n-gram and suffix have no weights
    found["seen"] = LAST.model is not None and LAST.model() is drafter and not LAST.unseen
    found["unfilled"] = [*_unfilled(drafter)]
    found["unused"] = [] if any(name.endswith(".bias") for name, _ in drafter.named_parameters()) else LAST.biases
    found["wrong"] = LAST.odd
    settings = speculative.draft_model_config.hf_config
    target: Any = getattr(runner, "model", None)
    target = target.get_language_model() if hasattr(target, "get_language_model") else target
    decided["drafter"] = type(drafter).__name__
    decided |= _shared(drafter, target, "embedding", ("model.embed_tokens", "model.embedding"))
    decided |= _shared(drafter, target, "head", ("lm_head",))
    decided |= _layers(target, settings, speculative.method)
    full, cut = config.model_config.get_vocab_size(), getattr(settings, "draft_vocab_size", None)
    if cut is not None and cut < full:
        decided["draft_vocabulary"] = cut
        if decided.get("head") == "the target's" and _has_rows(_part(drafter, "lm_head")):
            found["unfilled"].append("lm_head.weight")
        if (offsets := getattr(drafter, "draft_id_to_target_id", None)) is not None and not found["unfilled"]:
            found["wrong"] = found["wrong"] or map_fault(offsets, full, LAST.kept)
    return found


def not_finite(tensors: Iterable[tuple[str, Any]]) -> str:
    """The first of these named tensors with numbers that are none: it drafts noise. Empty if there is none."""
    import torch

    for name, tensor in tensors:
        numbers = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) and not tensor.is_meta
        if numbers and not tensor.isfinite().all():
            return f"its tensor {name} holds NaN or infinity"
    return ""


def map_fault(d2t: Any, vocabulary: int, t2d: Any = None) -> str:
    """What is wrong with a map from draft to target tokens, whose entries are target id - draft id; empty if nothing.

    d2t: [draft vocabulary]; t2d: [vocabulary], true where a target token can be proposed, None if the checkpoint has
    none.
    """
    import torch

    d2t = d2t.detach().cpu().long()
    ids = d2t + torch.arange(len(d2t))
    inside = bool(((ids >= 0) & (ids < vocabulary)).all())
    if inside and len(ids.unique()) == len(ids) and (t2d is None or len(t2d) < vocabulary or bool(t2d[ids].all())):
        return ""
    as_ids = bool(((d2t >= 0) & (d2t < vocabulary)).all()) and len(d2t.unique()) == len(d2t)
    if as_ids:
        return "its d2t holds the target's token ids, vLLM adds each to the draft id: store target id - draft id"
    return "its d2t does not map each draft token to a target token of its own"


def _options(speculative: Any) -> dict[str, Any]:
    """Options that move what is drafted and that vLLM may have set itself."""
    names = {
        "ngram": ("prompt_lookup_min", "prompt_lookup_max"),
        "ngram_gpu": ("prompt_lookup_min", "prompt_lookup_max"),
        "suffix": (
            "suffix_decoding_max_tree_depth",
            "suffix_decoding_max_cached_requests",
            "suffix_decoding_max_spec_factor",
            "suffix_decoding_min_token_prob",
        ),
    }.get(speculative.method, ("parallel_drafting", "quantization"))
    values = {name: getattr(speculative, name, None) for name in names}
    return {name: value for name, value in values.items() if value not in (None, False)}


def _unfilled(drafter: Any) -> Iterator[str]:
    """Those that the drafter still uses: what vLLM replaced by the target's own is not among them."""
    for name, share in LAST.shares.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = drafter.get_submodule(path)
        except AttributeError:
            continue
        if module is not LAST.owners[name]() or not hasattr(module, leaf) or _QUANTISED.search(leaf):
            continue
        if leaf in _OPTIONAL and not getattr(module, _OPTIONAL[leaf], True):
            continue
        spelled = name.replace(leaf, _SPELLED.get(leaf, leaf))
        yield spelled if share > 0.999 else f"{share:.0%} of {spelled}"


def _shared(drafter: Any, target: Any, what: str, paths: tuple[str, ...]) -> dict[str, Any]:
    """Whether the drafter's part is the target's, and if not how like it is."""
    mine, theirs = (next(filter(None, (_part(model, path) for path in paths)), None) for model in (drafter, target))
    if mine is None:
        return {}
    if mine is theirs or (theirs is not None and getattr(mine, "weight", mine) is getattr(theirs, "weight", None)):
        return {what: "the target's"}
    cosine = _cosine(getattr(mine, "weight", None), getattr(theirs, "weight", None))
    return {what: "its own"} | ({} if cosine is None else {f"{what}_cosine": cosine})


def _has_rows(head: Any) -> bool:
    """Whether this worker's shard of a head has tokens: of a small vocabulary it may be padding, all heads' alike."""
    shard = getattr(head, "shard_indices", None)
    return shard is None or shard.num_org_elements > 0


def _part(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def _cosine(mine: Any, theirs: Any) -> float | None:
    """Mean cosine of the rows of two matrices of one shape, to two places."""
    import torch

    if not all(
        isinstance(each, torch.Tensor) and each.dim() == 2 and each.is_floating_point() for each in (mine, theirs)
    ):
        return None
    if mine.shape != theirs.shape or mine.numel() == 0:
        return None
    step = max(1, len(mine) // SAMPLE)
    rows = (each.detach()[::step].float() for each in (mine, theirs))
    return round(float(torch.nn.functional.cosine_similarity(*rows, dim=1).mean()), 2) + 0.0


def _layers(target: Any, settings: Any, method: str) -> dict[str, Any]:
    """EAGLE-3: the target's layers that the drafter reads, and whether its configuration names them."""
    layers = _part(target, "model.aux_hidden_state_layers") or getattr(target, "aux_hidden_state_layers", None)
    if method != "eagle3" or not layers:
        return {}
    key = "eagle_aux_hidden_state_layer_ids"
    named = getattr(settings, key, None) or (getattr(settings, "eagle_config", None) or {}).get(key)
    return {"auxiliary_layers": list(layers), "auxiliary_layers_named": bool(named)}
