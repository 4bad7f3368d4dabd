"""Turn what the user typed into a `Pair`. Catalog names need no network; other hub ids need their config.json."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

from speceval.errors import UserError, meant

from . import package, stored
from .fit import check_fit
from .hub import cached, hub_config, local_config
from .methods import METHODS
from .recognise import recognise, sizes
from .schema import Draft, DraftEntry, Pair, Target, TargetEntry, load_entries
from .tensors import tensor_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def resolve(target: str, draft: str | None, method: str | None = None) -> Pair:
    """The checkpoints behind `--target` and `--draft` (None: no speculation).

    A target is a catalog name or alias (any case), a hub id, or a directory; a drafter likewise, or `ngram`, `suffix`
    or `mtp` (the target's own MTP layers). Names and hub ids may end in `@revision`. Catalog names win over directories
    of the same name. `method`: the drafting method of a checkpoint that does not tell.

    Raises UserError: unknown name (with near names), drafter of another target, sizes that do not fit, no hub.
    """
    found = _find_target(target)
    return Pair(target=found, draft=None if draft is None else resolve_draft(found, draft, method))


def resolve_draft(target: Target, draft: str, method: str | None = None) -> Draft:
    """The checkpoint behind `--draft` for a target that is known; raises as `resolve` does."""
    if method is not None and method not in METHODS:
        raise UserError(f"--method {method}: unknown{meant(method, METHODS, 3, 0.5)}; known: {', '.join(METHODS)}")
    found = _find_draft(draft, target, method)
    if method is not None and found.method != method:
        raise UserError(f"--method {method}: {found.name} is known to be {found.method}: leave it out")
    check_fit(target, found)
    return found


def listing(kind: Literal["targets", "drafters"]) -> list[dict[str, str]]:
    """Rows for `speceval ls`: one per catalog target, or one per target and drafter. All values are text."""
    if kind == "targets":
        return [
            {
                "target": entry.name,
                "aliases": ", ".join(entry.aliases),
                "model": entry.model,
                "drafters": ", ".join(_drafters_of(entry)),
                "hardware": entry.hardware or "",
            }
            for entry in load_entries().values()
        ]
    return [
        {
            "target": entry.name,
            "draft": name,
            "method": drafter.method,
            "K": str(drafter.default_k),
            "model": drafter.stored or drafter.model or "",
            "note": _listed_note(drafter),
        }
        for entry in load_entries().values()
        for name, drafter in _drafters_of(entry).items()
    ]


def _listed_note(drafter: Draft) -> str:
    unconfirmed = "" if drafter.confirmed else "hub id not confirmed"
    return "; ".join(part for part in (unconfirmed, drafter.note) if part)


# -- targets -----------------------------------------------------------------------------------------------------------


def _find_target(typed: str) -> Target:
    entry = _entry(typed)
    if entry is not None:
        return _catalog_target(entry, typed)
    if _is_directory(typed):
        directory = Path(typed).expanduser().resolve()
        return _foreign_target(typed, "local", str(directory), None, local_config(directory))
    if _HUB_ID.fullmatch(typed):
        model, revision = _split_revision(typed)
        config, commit = hub_config(model, revision)
        return _foreign_target(typed, "hub", model, commit, config)
    if _looks_like_path(typed):
        raise UserError(f"target '{typed}': no such directory")
    known = [name for entry in load_entries().values() for name in (entry.name, *entry.aliases)]
    raise UserError(
        f"unknown target '{typed}'{meant(typed, known, 3, 0.5)}; known: {', '.join(load_entries())}; "
        "a hub id (organisation/name) or a directory works too"
    )


def _entry(typed: str) -> TargetEntry | None:
    """The catalog entry with this name, alias or hub id, in any case."""
    wanted = _split_revision(typed)[0].lower()
    for entry in load_entries().values():
        if wanted in (name.lower() for name in (entry.name, entry.model, *entry.aliases)):
            return entry
    return None


def _catalog_target(entry: TargetEntry, typed: str) -> Target:
    revision = _split_revision(typed)[1]
    if revision and entry.source != "hub":
        raise UserError(f"target '{typed}': {entry.name} is built here and has no revisions")
    return Target(
        name=f"{entry.name}@{revision}" if revision else entry.name,
        source=entry.source,
        model=entry.model if entry.package is None else str(package.place(entry.name, entry.package)),
        package=entry.package,
        without_hub=entry.without_hub,
        revision=revision or entry.revision,
        chat_template_kwargs=entry.chat_template_kwargs,
        answer_marker=entry.answer_marker,
        note="; ".join(part for part in (entry.hardware, entry.chat_template_note) if part) or None,
        sizes=entry.sizes,
    )


def _foreign_target(
    name: str, source: Literal["hub", "local"], model: str, revision: str | None, config: dict[str, Any]
) -> Target:
    """A target outside the catalog. It inherits template arguments and answer marker from its model family."""
    family = next(
        (e for e in load_entries().values() if e.answer_marker and e.model_type == config.get("model_type")), None
    )
    return Target(
        name=name,
        source=source,
        model=model,
        revision=revision,
        chat_template_kwargs=family.chat_template_kwargs if family else {},
        answer_marker=family.answer_marker if family else None,
        note=family.chat_template_note if family else None,
        sizes=sizes(config),
    )


# -- drafters ----------------------------------------------------------------------------------------------------------


def _find_draft(typed: str, target: Target, method: str | None) -> Draft:
    if typed in METHODS and METHODS[typed].bare:
        return _bare_draft(typed, target)
    entry = _entry(target.name) or _entry(target.model)
    drafters = _drafters_of(entry) if entry else {}
    for name, drafter in drafters.items():
        if _is_called(typed, name, drafter, entry):
            return _at_revision(drafter, typed)
    if _is_directory(typed):
        directory = Path(typed).expanduser().resolve()
        return _foreign_draft(typed, "local", str(directory), None, local_config(directory), method)
    elsewhere = _elsewhere(typed)
    if elsewhere and (entry is not None or not _HUB_ID.fullmatch(typed)):
        raise UserError(_wrong_target(typed, target, elsewhere))
    if elsewhere:
        return _at_revision(next(iter(elsewhere.values())), typed)
    if _HUB_ID.fullmatch(typed):
        model, revision = _split_revision(typed)
        config, commit = hub_config(model, revision)
        return _foreign_draft(typed, "hub", model, commit, config, method)
    if _looks_like_path(typed):
        raise UserError(f"drafter '{typed}': no such directory")
    known = [*drafters, *_bare_methods(target)]
    raise UserError(
        f"unknown drafter '{typed}' for target '{target.name}'{meant(typed, known, 3, 0.5)}; "
        f"known: {', '.join(known)}; "
        "a hub id (organisation/name) or a directory works too"
    )


def _bare_methods(target: Target) -> list[str]:
    """Methods that `--draft` may name for this target; those of layers in the target if it has them."""
    return [row.name for row in METHODS.values() if row.bare and (not row.k_in_layers or target.sizes.mtp_layers)]


def _bare_draft(name: str, target: Target) -> Draft:
    if METHODS[name].k_in_layers:
        if not target.sizes.mtp_layers:
            raise UserError(f"drafter '{name}': target '{target.name}' has no MTP layers")
        return Draft(
            name=name,
            source=target.source,
            model=target.model,
            revision=target.revision,
            method=name,
            k_unit=target.sizes.mtp_layers,
            sizes=target.sizes,
        )
    return Draft(name=name, source="none", model=None, method=name)


def _drafters_of(entry: TargetEntry) -> dict[str, Draft]:
    if entry.source == "zoo":
        return _zoo_drafters()
    return {name: _catalog_draft(name, drafter, entry) for name, drafter in entry.drafters.items()}


def _zoo_drafters() -> dict[str, Draft]:
    from speceval import zoo

    return {
        name: Draft.model_validate(
            {"name": name, "source": "zoo", "model": name, "method": method}
            | {"default_k": zoo.DEFAULT_K[name], "max_k": zoo.MAX_K[name]}
        )
        for name, method in zoo.DRAFTERS.items()
    }


def _catalog_draft(name: str, entry: DraftEntry, target: TargetEntry) -> Draft:
    model, file = entry.model, None
    if entry.source == "stored":
        assert target.package is not None, f"{target.name}: stored drafters are for packaged targets"
        file = entry.model
        model = str(stored.place(name, file, package.place(target.name, target.package)))
    return Draft(
        name=name,
        source=entry.source,
        model=model,
        stored=file,
        revision=entry.revision,
        method=entry.method,
        default_k=entry.k,
        max_k=entry.max_k,
        confirmed=entry.confirmed,
        note=entry.note,
    )


def _foreign_draft(
    name: str,
    source: Literal["hub", "local"],
    model: str,
    revision: str | None,
    config: dict[str, Any],
    method: str | None,
) -> Draft:
    directory = cached(model, revision) if source == "hub" else Path(model)
    facts = recognise(config, model, method, partial(tensor_names, directory))
    return Draft(
        name=name,
        source=source,
        model=model,
        revision=revision,
        method=facts.method,
        default_k=facts.default_k,
        max_k=facts.max_k,
        k_unit=facts.k_unit,
        engine_args=facts.engine_args,
        sizes=facts.sizes,
    )


def _at_revision(drafter: Draft, typed: str) -> Draft:
    revision = _split_revision(typed)[1]
    if revision is None:
        return drafter
    if drafter.source != "hub":
        raise UserError(f"drafter '{typed}': {drafter.name} is built here and has no revisions")
    return drafter.model_copy(update={"name": f"{drafter.name}@{revision}", "revision": revision})


def _is_called(typed: str, name: str, drafter: Draft, entry: TargetEntry | None) -> bool:
    listed = entry.drafters.get(name) if entry else None
    file = [drafter.stored, drafter.stored.rpartition("/")[2]] if drafter.stored else []
    names = (name, drafter.model or name, *file, *(listed.aliases if listed else ()))
    return _split_revision(typed)[0].lower() in (other.lower() for other in names)


def _elsewhere(typed: str) -> dict[str, Draft]:
    """Catalog drafters called `typed`, by the name of their target."""
    return {
        entry.name: drafter
        for entry in load_entries().values()
        for name, drafter in _drafters_of(entry).items()
        if _is_called(typed, name, drafter, entry)
    }


def _wrong_target(typed: str, target: Target, elsewhere: dict[str, Draft]) -> str:
    entry = _entry(target.name) or _entry(target.model)
    known = ", ".join([*(_drafters_of(entry) if entry else {}), *_bare_methods(target)])
    owners = ", ".join(f"{owner} ({drafter.stored or drafter.model})" for owner, drafter in elsewhere.items())
    return f"drafter '{typed}' belongs to {owners}, not to target '{target.name}'; known for it: {known}"


# -- shared ------------------------------------------------------------------------------------------------------------


def _split_revision(typed: str) -> tuple[str, str | None]:
    name, _, revision = typed.partition("@")
    return name, revision or None


def _is_directory(typed: str) -> bool:
    """Whether a directory of this name is there; an empty name is none, "." is."""
    try:
        return bool(typed.strip()) and Path(typed).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, no path
        return False


def _looks_like_path(typed: str) -> bool:
    return "/" in typed or typed.startswith((".", "~"))
