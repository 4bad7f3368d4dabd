"""A drafter's method, K limits and sizes from its config.json, as vLLM 0.32 would read it.

Sources: vllm/config/speculative.py (`SpeculativeConfig.hf_config_override`, `__post_init__`),
vllm/transformers_utils/configs/{eagle,medusa,mlp_speculator}.py and configs/speculators/.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from speceval.errors import UserError

from .schema import Method, Sizes

# speculators_model_type -> vLLM method (configs/speculators/base.py, build_vllm_speculative_config)
_SPECULATORS: dict[str, Method] = {
    "eagle3": "eagle3",
    "peagle": "eagle3",
    "dflash": "dflash",
    "dflash2": "dflash",
    "dspark": "dspark",
}

# model_type of full models that vLLM loads as their MTP layers when they stand in a drafter's place.
_MTP_MODEL_TYPES = {
    "bailing_hybrid", "deepseek_v3", "deepseek_v32", "deepseek_v4", "deepseek_v41", "dots3_note", "ernie4_5_moe",
    "exaone4_5", "exaone_moe", "gemma4_assistant", "gemma4_unified_assistant", "glm5_next", "glm_moe_dsa", "hy_v3",
    "hy_v4", "inkling_mm_model", "inkling_model", "intern_s2_preview", "interns2_mobius", "kimi_k3", "longcat_flash",
    "minimax_m3_vl", "pangu_ultra_moe", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
    "qwen4_exp", "qwen4_exp_text", "step3p5", "step3p7",
}  # fmt: skip

_MTP_ARCHITECTURES = {
    "BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM", "BailingMoeV3VLForConditionalGeneration",
    "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "GlmOcrForConditionalGeneration", "MiMoForCausalLM",
    "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "MiMoV2OmniForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration",
}  # fmt: skip

# MTP only where the config counts MTP layers.
_MTP_IF_COUNTED = {"nemotron_h", "nemotron_h_puzzle"}

_MTP_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")

# vLLM takes the method from the path, whatever is asked for, unless eagle, eagle3, dflash or dspark is asked for.
PATH_METHODS: tuple[tuple[str, Method], ...] = (
    ("eagle-", "eagle"),
    ("eagle3", "eagle3"),
    ("dflash", "dflash"),
    ("dspark", "dspark"),
)


class Facts(NamedTuple):
    """What a drafter's config.json says."""

    method: Method
    default_k: int | None
    max_k: int | None
    k_unit: int
    engine_args: dict[str, Any]
    sizes: Sizes


def recognise(config: dict[str, Any], model: str) -> Facts:
    """Method, K limits and sizes of the drafter `model` (hub id or path; shown in errors, and last clue to EAGLE).

    Raises UserError if vLLM would not load it, or would take it for another method because of its path.
    """
    method = _method(config, model)
    _refuse_misleading_path(method, model)
    default_k, max_k, k_unit = _k_limits(config, method)
    return Facts(method, default_k, max_k, k_unit, _engine_args(config), sizes(config))


def sizes(config: dict[str, Any]) -> Sizes:
    """The sizes in a target's or drafter's config.json, looked up in its nested parts too."""
    top = _flatten(config)
    aux = top.get("eagle_aux_hidden_state_layer_ids") or (top.get("eagle_config") or {}).get(
        "eagle_aux_hidden_state_layer_ids"
    )
    verifier = ((config.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path")
    return Sizes(
        hidden_size=_integer(top, "hidden_size", "emb_dim"),
        vocab_size=_integer(top, "vocab_size"),
        num_hidden_layers=_integer(top, "num_hidden_layers"),
        draft_vocab_size=_integer(top, "draft_vocab_size", "truncated_vocab_size"),
        target_hidden_size=_integer(top, "target_hidden_size"),
        aux_layers=tuple(layer for layer in aux or () if isinstance(layer, int)),
        mtp_layers=_integer(top, *_MTP_COUNTS),
        verifier=verifier if isinstance(verifier, str) else None,
    )


def _method(config: dict[str, Any], model: str) -> Method:
    if "speculators_model_type" in config or "speculators_config" in config:
        return _speculators_method(config, model)
    model_type = str(config.get("model_type", ""))
    architectures = [str(name) for name in config.get("architectures") or []]
    by_type = _method_by_type(config, model_type, architectures)
    if by_type is not None:
        return by_type
    if _has_eagle3_fields(config):
        return "eagle3"
    for part, method in PATH_METHODS:
        if part in model.lower():
            return method
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures):
        return "draft_model"
    raise UserError(
        f"'{model}': its config.json is of no drafter that vLLM loads "
        f"(model_type '{model_type}', architectures {architectures})"
    )


def _speculators_method(config: dict[str, Any], model: str) -> Method:
    kind = str(config.get("speculators_model_type"))
    if kind not in _SPECULATORS:
        known = ", ".join(sorted(_SPECULATORS))
        raise UserError(f"'{model}': speculators_model_type '{kind}' in config.json is none that vLLM loads ({known})")
    return _SPECULATORS[kind]


def _method_by_type(config: dict[str, Any], model_type: str, architectures: list[str]) -> Method | None:
    """The method that model_type and architectures alone decide, else None."""
    first = architectures[0] if architectures else ""
    lower = [name.lower() for name in architectures]
    if model_type == "medusa" or "MedusaModel" in architectures or "medusa_num_heads" in config:
        return "medusa"
    if model_type == "mlp_speculator" or first == "MLPSpeculatorPreTrainedModel":
        return "mlp_speculator"
    if any("eagle3" in name or "peagle" in name for name in lower):
        return "eagle3"
    if any("dspark" in name for name in lower):
        return "dspark"
    if any("dflash" in name for name in lower) or first in ("LiLiCorrDraftModel", "MuseGlimmerAssistantModel"):
        return "dflash"
    if model_type == "eagle":
        return "eagle3" if config.get("method") == "eagle3" else "eagle"
    if first.startswith("Eagle"):
        return "eagle"
    if _is_mtp(config, model_type, first):
        return "mtp"
    return None


def _is_mtp(config: dict[str, Any], model_type: str, architecture: str) -> bool:
    if model_type.endswith("_mtp") or "MTP" in architecture:
        return True
    if model_type in _MTP_IF_COUNTED:
        return bool(sizes(config).mtp_layers)
    return model_type in _MTP_MODEL_TYPES or architecture in _MTP_ARCHITECTURES


def _has_eagle3_fields(config: dict[str, Any]) -> bool:
    """Early EAGLE-3 checkpoints name a plain LlamaForCausalLM; these fields give them away."""
    fields = ("draft_vocab_size", "eagle_config", "eagle_aux_hidden_state_layer_ids", "target_hidden_size")
    return any(config.get(field) is not None for field in fields)


def _refuse_misleading_path(method: Method, model: str) -> None:
    if method in ("eagle", "eagle3", "dflash", "dspark"):
        return
    for part, taken_for in PATH_METHODS:
        if part in model.lower():
            raise UserError(
                f"'{model}': a {method} drafter, but vLLM takes it for {taken_for} because its path holds '{part}': "
                "rename or link the directory"
            )


def _k_limits(config: dict[str, Any], method: Method) -> tuple[int | None, int | None, int]:
    """(default K, largest K or None, unit that a K above it must be a multiple of)."""
    if method == "medusa":
        heads = _integer(config, "num_heads", "medusa_num_heads")
        return heads, heads, 1
    if method == "mlp_speculator":
        n_predict = _integer(config, "n_predict")
        return n_predict, n_predict, 1
    if method == "mtp":
        return None, None, sizes(config).mtp_layers or 1
    proposals = (config.get("speculators_config") or {}).get("proposal_methods") or [{}]
    return _integer(proposals[0], "speculative_tokens"), None, 1


def _engine_args(config: dict[str, Any]) -> dict[str, Any]:
    architectures = config.get("architectures") or [""]
    parallel = config.get("speculators_model_type") == "peagle" or "peagle" in str(architectures[0]).lower()
    return {"parallel_drafting": True} if parallel else {}


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    """The config's own fields over those of its nested language model (multimodal, speculators, EAGLE wrapper)."""
    nested: dict[str, Any] = {}
    for part in ("text_config", "transformer_layer_config", "model"):
        if isinstance(config.get(part), dict):
            nested |= config[part]
    return nested | {key: value for key, value in config.items() if value is not None}


def _integer(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
