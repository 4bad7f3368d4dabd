"""What a run is made of, told by content and without an engine: and whether a stored run is still made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speceval import catalog, zoo
from speceval.errors import UserError
from speceval.measure.weights import UNKNOWN, config_hash, template_hash, tokenizer_hash, weights_hash
from speceval.protocol import RunSpec, digest
from speceval.store.schema import ABSENT, Checkpoint, Fingerprint, SuiteFacts, differences
from speceval.suites import Suite

HASHES = ("weights", "config", "tokenizer", "chat_template")
"""Fields of a `Checkpoint` that say what is in it."""


def target_facts(target: catalog.Target, spec: RunSpec, loaded: bool = True) -> Checkpoint:
    """The target, with the tokenizer that the engine is told to take."""
    if not loaded:
        return checkpoint_facts(target, loaded)
    model, revision = target.model, target.revision
    if isinstance(spec.engine_args.get("tokenizer"), str):
        model, revision = spec.engine_args["tokenizer"], spec.engine_args.get("tokenizer_revision")
    return checkpoint_facts(target).model_copy(
        update={"tokenizer": tokenizer_hash(model, revision), "chat_template": template_hash(model, revision)}
    )


def checkpoint_facts(checkpoint: catalog.Target | catalog.Draft, loaded: bool = True) -> Checkpoint:
    """A checkpoint without the place where this machine keeps it; what is not `loaded` here has no content to tell."""
    model, revision = checkpoint.model, checkpoint.revision
    return Checkpoint(
        name=checkpoint.name,
        model=model if checkpoint.source == "hub" else checkpoint.source,
        revision=revision,
        weights=weights_hash(model, revision) if model and loaded else None,
        config=config_hash(model, revision) if model and loaded else None,
    )


def suite_facts(suite: Suite, spec: RunSpec) -> SuiteFacts:
    """A suite as it is run."""
    return SuiteFacts(
        version=suite.version,
        dataset=suite.dataset_hash,
        conversations=len(suite.conversations),
        max_tokens=spec.max_tokens or suite.max_tokens,
        form=digest([suite.template, suite.system or None]),
    )


def changes(
    spec: RunSpec, target: catalog.Target, draft: catalog.Draft, suites: Sequence[Suite], stored: Fingerprint
) -> list[str]:
    """In what a stored run differs from one that would begin now: weights, configuration, tokenizer, template, prompts.

    Needs no network; what cannot be seen from here, or was not told by an earlier version, is taken for unchanged.
    """
    lines = []
    if (place := _place(target, "target")) is not None:
        now = target_facts(target.model_copy(update={"model": place}), spec)
        lines += checkpoint_changes("target", stored.target, now)
    lines += draft_changes(draft, stored.draft)
    for suite in suites:
        if (before := stored.suites.get(suite.name)) is not None:
            differ = differences(before, suite_facts(suite, spec))
            lines += [f"suites.{suite.name}.{line}" for line in differ if not line.startswith(f"form: {ABSENT}")]
    return lines


def draft_changes(draft: catalog.Draft, stored: Checkpoint) -> list[str]:
    """In what a drafter differs from the one that a stored run has, as far as it is here."""
    if (place := _place(draft, draft.name)) is None:
        return []
    return checkpoint_changes("draft", stored, checkpoint_facts(draft.model_copy(update={"model": place})))


def checkpoint_changes(side: str, before: Checkpoint, now: Checkpoint) -> list[str]:
    """In which of `HASHES` two checkpoints differ; what one does not tell is taken for the same."""
    values = [(name, getattr(before, name), getattr(now, name)) for name in HASHES]
    return [f"{side}.{name}: {a} -> {b}" for name, a, b in values if a != b and not {a, b} & {None, UNKNOWN}]


def require_unchanged(directory: Path, status: str, changes: Sequence[str]) -> None:
    """Raises `UserError` for a stored run that is no longer what it would be now, for these reasons."""
    if changes:
        state = "cannot resume" if status == "running" else "holds a finished run"
        raise UserError(
            f"{directory}: {state}, and what it was made of has changed since ({'; '.join(changes)}): nothing was "
            "measured: name another --out, or undo the change"
        )


def _place(checkpoint: catalog.Target | catalog.Draft, name: str) -> str | None:
    """Where a checkpoint is; None for one that has no weights, or whose place is not built."""
    if checkpoint.source != "zoo" or checkpoint.model is None or Path(checkpoint.model).is_dir():
        return checkpoint.model
    built = zoo.built(name)
    return None if built is None else str(built)
