"""Does a drafter belong to a target, and can it draft K tokens? Compares the sizes their config.json files state."""

from __future__ import annotations

from speceval.errors import DoesNotFit, UserError

from .methods import find
from .schema import Draft, Target, load_entries


def check_fit(target: Target, draft: Draft) -> None:
    """Raise UserError in one line if the drafter was plainly made for another target.

    Sizes that either side does not state are not compared, so a catalog pair passes without reading anything.
    """
    for problem in (
        _verifier(target, draft),
        _hidden_size(target, draft),
        _vocabulary(target, draft),
        _layers(target, draft),
    ):
        if problem:
            raise UserError(f"drafter '{draft.name}' is not for target '{target.name}': {problem}")


def check_heads(target: Target, draft: Draft) -> None:
    """Raise UserError for MEDUSA heads as the first were published: without sizes, for which vLLM takes its defaults.

    Only for a drafter whose config.json was read.
    """
    sizes = {"vocab_size": target.sizes.vocab_size, "hidden_size": target.sizes.hidden_size}
    missing = [name for name in sizes if draft.method == "medusa" and getattr(draft.sizes, name) is None]
    if missing:
        values = ", ".join(f"{name} {sizes[name] or 'of the target'}" for name in missing)
        raise UserError(
            f"drafter '{draft.name}': MEDUSA heads whose config.json does not say {' and '.join(missing)}, for which "
            f"vLLM would take those of another model: add {values} to it"
        )


def check_k(draft: Draft, k: int) -> None:
    """Raise UserError if the drafter cannot draft K = `k` tokens a step."""
    if not isinstance(k, int) or isinstance(k, bool):  # from a file
        raise UserError(f"K must be a whole number, not {k!r}")
    if k < 1:
        raise UserError(f"K must be at least 1, not {k}")
    if draft.max_k is not None and k > draft.max_k:
        raise DoesNotFit(f"drafter '{draft.name}' drafts at most K={draft.max_k} tokens a step, not {k}", "draft", "k")
    if k > draft.k_unit and k % draft.k_unit:
        layers = f"drafter '{draft.name}' has {draft.k_unit} MTP layers: K={k} must be a multiple of that"
        raise DoesNotFit(layers, "draft", "k")


def _verifier(target: Target, draft: Draft) -> str | None:
    """gpt-oss-20b and -120b agree in every size; only the verifier named in the drafter's config tells them apart."""
    named = draft.sizes.verifier
    if named is None:
        return None
    owners = {entry.model.lower(): entry.name for entry in load_entries().values()}
    owner = owners.get(named.lower())
    if owner is None or target.model.lower() not in owners or owners[target.model.lower()] == owner:
        return None
    return f"its config.json names the target {named}"


def _hidden_size(target: Target, draft: Draft) -> str | None:
    if not find(draft.method).reads_hidden_states or draft.sizes.target_hidden_size is not None:
        field, size = "target_hidden_size", draft.sizes.target_hidden_size
    else:
        field, size = "hidden_size", draft.sizes.hidden_size
    return _differ(field, size, "hidden_size", target.sizes.hidden_size)


def _vocabulary(target: Target, draft: Draft) -> str | None:
    problem = _differ("vocab_size", draft.sizes.vocab_size, "vocab_size", target.sizes.vocab_size)
    reduced, full = draft.sizes.draft_vocab_size, target.sizes.vocab_size
    if problem is None and reduced is not None and full is not None and reduced > full:
        return f"its draft_vocab_size {reduced} is larger than the target's vocab_size {full}"
    return problem


def _layers(target: Target, draft: Draft) -> str | None:
    count = target.sizes.num_hidden_layers
    if count is None:
        return None
    beyond = [layer for layer in draft.sizes.aux_layers if layer > count]
    return f"it reads layer {beyond[0]} of a target with {count} layers" if beyond else None


def _differ(draft_field: str, draft_size: int | None, target_field: str, target_size: int | None) -> str | None:
    if draft_size is None or target_size is None or draft_size == target_size:
        return None
    return f"its {draft_field} is {draft_size}, the target's {target_field} is {target_size}"
