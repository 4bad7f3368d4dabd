"""A drafter's method, K limits and sizes from its config.json, as vLLM 0.32 would read it.

Sources: vllm/config/speculative.py (`SpeculativeConfig.hf_config_override`, `__post_init__`),
vllm/transformers_utils/configs/{eagle,medusa,mlp_speculator}.py and configs/speculators/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from speceval.errors import UserError
from speceval.protocol import MOST_K

from .config import Config
from .methods import METHODS, DraftingMethod, Method, find
from .schema import Sizes

_PARALLEL_TOKENS = ("pard_token", "ptd_token_id")
"""Fields that name the token which stands for a draft position that is computed along with the others."""
_MTP_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


MOST_LAYERS = 100_000
"""Of a model, many times what any has: the engine makes lists of them."""


class Facts(NamedTuple):
    """What a drafter's config.json says."""

    method: Method
    default_k: int | None
    max_k: int | None
    k_unit: int
    engine_args: dict[str, Any]
    sizes: Sizes


def recognise(
    content: Mapping[str, Any], model: str, method: Method | None = None, tensors: Callable[[], Collection[str]] = list
) -> Facts:
    """Method, K limits and sizes of the drafter `model` (hub id or path; shown in errors, and a clue to EAGLE).

    `method`: what it is, where that is known; `tensors`: gives the names of those at hand. Raises UserError
    if vLLM would not load it, or would take it for another method because of its path, and for fields that hold another
    kind of value than they should.
    """
    config = Config.of(content, f"config.json of {model}")
    method = method or _method(config, model, tensors)
    _refuse_misleading_path(method, model)
    default_k, max_k, k_unit = _k_limits(config, method)
    return Facts(method, default_k, max_k, k_unit, _engine_args(config, method), sizes(config))


def sizes(content: Mapping[str, Any]) -> Sizes:
    """The sizes in a target's or drafter's config.json, looked up in its nested parts too."""
    config = Config.of(content, "config.json")
    top = config.flat()
    aux = "eagle_aux_hidden_state_layer_ids"
    return Sizes(
        hidden_size=top.integer("hidden_size", "emb_dim", least=1),
        vocab_size=top.integer("vocab_size", least=1),
        num_hidden_layers=top.integer("num_hidden_layers", most=MOST_LAYERS),
        draft_vocab_size=top.integer("draft_vocab_size", "truncated_vocab_size"),
        target_hidden_size=top.integer("target_hidden_size", least=1),
        aux_layers=top.integers(aux, MOST_LAYERS) or top.part("eagle_config").integers(aux, MOST_LAYERS),
        mtp_layers=top.integer(*_MTP_COUNTS, most=MOST_LAYERS),
        verifier=config.part("speculators_config").part("verifier").text("name_or_path"),
    )


def _method(config: Config, model: str, tensors: Callable[[], Collection[str]]) -> Method:
    if "speculators_model_type" in config or "speculators_config" in config:
        return _speculators_method(config, model)
    named = next(_named(config, model), None)
    if named is not None:
        return named.name
    architectures = config.texts("architectures")
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures):
        names = tensors()
        if not any(_is(name, ("fc.weight", "*.fc.weight")) for name in names):
            return "draft_model"
        # A layer that joins embeddings and the target's states: a head that its config.json does not call one.
        return "eagle3" if any("d2t" in name or "midlayer." in name for name in names) else "eagle"
    raise UserError(
        f"'{model}': its config.json is of no drafter that vLLM loads "
        f"(model_type '{config.text('model_type') or ''}', architectures {architectures}); --method says what it is"
    )


def _speculators_method(config: Config, model: str) -> Method:
    kind = str(config.text("speculators_model_type"))
    by_kind = {known: row.name for row in METHODS.values() for known in row.speculators_types}
    if kind not in by_kind:
        known = ", ".join(sorted(by_kind))
        raise UserError(f"'{model}': speculators_model_type '{kind}' in config.json is none that vLLM loads ({known})")
    return by_kind[kind]


def _named(config: Config, model: str) -> Iterator[DraftingMethod]:
    """The methods that a config.json could be of, surest first."""
    rows, model_type = METHODS.values(), (config.text("model_type") or "").lower()
    architectures = [name.lower() for name in config.texts("architectures")]
    if model_type == "eagle" and config.text("method") in METHODS:  # vLLM's own wrapper says it
        yield METHODS[config["method"]]
    yield from (row for row in rows if _has(config, row.own_fields))
    yield from (row for row in rows if any(_is(name, row.architectures) for name in architectures))
    yield from (row for row in rows if _is(model_type, row.model_types))
    for row in rows:
        if not row.full_models.isdisjoint([model_type, *architectures]):
            yield row
        if model_type in row.counted_models and sizes(config).mtp_layers:
            yield row
    yield from (row for row in rows if _has(config, row.hints))
    yield from (row for row in rows if row.path_part and row.path_part in model.lower())


def _has(config: Config, fields: tuple[str, ...]) -> bool:
    return any(field in config for field in fields)


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_misleading_path(method: Method, model: str) -> None:
    """vLLM takes the method from the path, whatever is asked for, unless one of those methods is asked for."""
    if find(method).path_part:
        return
    for row in METHODS.values():
        if row.path_part and row.path_part in model.lower():
            raise UserError(
                f"'{model}': a {method} drafter, but vLLM takes it for {row.name} because its path holds "
                f"'{row.path_part}': rename or link the directory"
            )


def _k_limits(config: Config, method: Method) -> tuple[int | None, int | None, int]:
    """(default K, largest K or None, unit that a K above it must be a multiple of)."""
    row = find(method)
    if row.k_fields:
        heads = config.integer(*row.k_fields, most=MOST_K)
        return heads, heads, 1
    if row.k_in_layers:
        return None, None, sizes(config).mtp_layers or 1
    proposals = config.part("speculators_config").parts("proposal_methods")
    return (proposals[0].integer("speculative_tokens", least=1, most=MOST_K) if proposals else None), None, 1


def _engine_args(config: Config, method: Method) -> dict[str, Any]:
    """`parallel_drafting` for those trained for it: P-EAGLE, and draft models with a token for it (PARD)."""
    architectures = [name.lower() for name in config.texts("architectures")]
    parallel = config.text("speculators_model_type") == "peagle" or "peagle" in "".join(architectures[:1])
    if method in ("eagle", "eagle3", "draft_model"):  # the methods that vLLM lets draft so
        parallel |= any(config.integer(name) is not None for name in _PARALLEL_TOKENS)
    return {"parallel_drafting": True} if parallel else {}
