"""Other weights for the drafter of a live engine: the target stays, and a swap takes a moment where a start takes long.

Everything but the weights is fixed when an engine starts: K, the method, shapes, the target layers that are read. So
both checkpoints must have the same configuration. What cannot be swapped raises, and may leave the drafter in pieces:
the engine must not be used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from vllm_patches import loading
from vllm_patches.drafters import Heads, fetch, read_weights

REMEMBERED = "_enable_probabilistic_draft_probs"
"""Attribute of vLLM's V1 drafters (vllm/v1/spec_decode/llm_base_proposer.py): whether drafts are drawn from q."""


def swap(runner: Any, config: Any, before: str, after: str) -> None:
    """Give the drafter of a model runner (V1 or V2) the weights of checkpoint `after`; it has those of `before`.

    before, after: directories or hub ids ("id@revision" for one revision). `config`: the engine's VllmConfig. Raises
    ValueError where a layer would keep its old weights or where the target's own would change.
    """
    drafter = getattr(runner, "drafter", None) or getattr(runner, "speculator", None)
    if drafter is None:  # an earlier stage of a pipeline
        return
    weights = read_weights(fetch(after))
    heads = getattr(drafter, "heads", drafter)  # the V2 runner's drafter has them
    if isinstance(heads, Heads):
        heads.take(weights, after)
        return
    if fault := loading.not_finite(weights.items()):
        raise ValueError(f"{after}: {fault}")
    model = drafter.model
    if shared := _shared_layers(model, runner.get_model()):
        weights = _without_shared(weights, read_weights(fetch(before)), tuple(name.split(".")[-1] for name in shared))
    _reload(model, weights, config, shared)
    loading.forget()


def draw(runner: Any, config: Any, how: str) -> str:
    """Have a V1 model runner draw its drafts from q ("probabilistic") or take its argmax ("greedy") from now on.

    The runner and its drafters look at the configuration at every step; vLLM's own remember what it said at first. The
    configuration is held against the same rules as at a start. Returns why that cannot be, or nothing.
    """
    from vllm_patches.refuse import check_config
    from vllm_patches.state import vllm_version

    if config.use_v2_model_runner:
        return "the V2 runner has made its buffers for the other way"
    speculative = config.speculative_config
    before, speculative.draft_sample_method = speculative.draft_sample_method, how
    if reason := check_config(config, str(vllm_version())):
        speculative.draft_sample_method = before
        return reason
    drafter = getattr(runner, "drafter", None)
    if hasattr(drafter, REMEMBERED):
        setattr(drafter, REMEMBERED, how == "probabilistic" and speculative.rejection_sample_method == "standard")
    return ""


def _reload(model: Any, weights: Mapping[str, torch.Tensor], config: Any, shared: Collection[str]) -> None:
    # Loading alone would not do: processed layers have given their parameters away.
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import layerwise

    with set_current_vllm_config(config), torch.inference_mode():
        layerwise.initialize_layerwise_reload(model)
        model.load_weights(iter(weights.items()))
        kept = [name for name in _waiting(model) if name not in shared]
        layerwise.finalize_layerwise_reload(model, config.speculative_config.draft_model_config)
    if kept:
        raise ValueError(f"the checkpoint has no weights for {', '.join(kept)}")


def _waiting(model: Any) -> Iterator[str]:
    """Layers with parameters of which none has been loaded."""
    from vllm.model_executor.model_loader.reload import layerwise

    for name, layer in model.named_modules():
        info = layerwise.get_layerwise_info(layer)
        nothing = info.can_load() and not info.load_numel and bool(info.load_numel_total)
        if nothing and not layerwise.is_deferred_attention_layer(layer) and dict(layer.named_parameters(recurse=False)):
            yield name


def _shared_layers(model: Any, target: Any) -> list[str]:
    """Names of the layers of `model` that hold tensors of the target's."""
    places = {parameter.data_ptr() for parameter in target.parameters() if parameter.numel()}
    return [
        name
        for name, layer in model.named_modules()
        if any(p.numel() and p.data_ptr() in places for p in layer.parameters(recurse=False))
    ]


def _without_shared(
    after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], layers: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """The tensors of `after` without those of the shared layers, which would be loaded into the target.

    Raises ValueError unless both checkpoints have the same there.
    """
    ends = tuple(f".{layer}.weight" for layer in layers)
    for name in after.keys() | before.keys():
        equal = name in after and name in before and torch.equal(after[name], before[name])
        if f".{name}".endswith(ends) and not equal:
            raise ValueError(f"{name} is the target's own in one checkpoint and not in the other")
    return {name: tensor for name, tensor in after.items() if not f".{name}".endswith(ends)}
