"""A drafter measured on a capture, as an ordinary replayed run."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speceval import catalog, zoo
from speceval.captures import evaluate
from speceval.captures.evaluate import Kept, Question
from speceval.captures.folder import MANIFEST, Capture, key_of
from speceval.catalog.methods import default_drafting
from speceval.drafters import ngram
from speceval.drafters.load import ARGUMENTS, load, require, try_out
from speceval.drafters.suffix import Suffix
from speceval.errors import UserError
from speceval.estimate import books
from speceval.measure.content import checkpoint_changes, checkpoint_facts, draft_changes, require_unchanged
from speceval.measure.fingerprint import environment
from speceval.measure.weights import files_of, weights_hash
from speceval.private import masked
from speceval.protocol import RunSpec, make_spec
from speceval.store import Store, StoredRun, pack, read_meta, read_run, run_directory
from speceval.store.schema import Counters, Fingerprint, RunMeta, Segment, other_request

ENGINE = "capture"
"""What such a run names as its engine."""


def replay(
    capture: Capture,
    draft: str,
    k: int | None = None,
    drafting: str | None = None,
    method: str | None = None,
    draft_args: dict[str, Any] | None = None,
    draft_truncation: bool = True,
    device: str = "cpu",
    out: Path | None = None,
    command: Iterable[str] = (),
) -> StoredRun:
    """Measure a drafter on a capture; a finished one is read back. Raises `UserError`, and leaves nothing then."""
    found = catalog.resolve_draft(capture.manifest.target, draft, method)
    require(found.method, draft)
    spec = _spec(capture, found, k, drafting, method, draft_args or {}, draft_truncation)
    directory = out or run_directory(Path("results"), spec)
    if (directory / MANIFEST).exists():
        raise UserError(f"--out {directory}: holds a capture: name another directory")
    if (directory / "run.json").exists():
        meta = read_meta(directory)
        if other := other_request(meta, spec):
            raise UserError(f"--out {directory} holds another run ({'; '.join(other)}): name another directory")
        require_unchanged(directory, meta.status, _changes(capture, found, meta.fingerprint))
        if (known := read_run(directory)).complete:
            return known
    evaluate.require(spec.k, device)
    _require_target(capture)
    found = _fetched(capture.manifest.target, found, method)
    catalog.check_k(found, spec.k)
    begin = time.perf_counter()
    with torch.no_grad():
        kept = {one.text.key: one for one in _kept(capture, found, spec, device)}
    meta = _meta(capture, found, spec, device, command)
    with Store(directory) as store:
        store.write_meta(meta)
        for line in capture.lines:
            if key_of(line) not in store.done:
                store.append(_line(line, kept, spec.k))
        turns, steps = store.frames()
        counters = Counters(
            num_drafts=int(turns["steps"].sum()),
            num_draft_tokens=int(turns["drafted"].sum()),
            num_accepted_tokens_per_pos=[0] * spec.k,
        )
        tokens = int(turns["output_tokens"].sum())
        segment = Segment(
            conversations=len(store.done), tokens=tokens, seconds=time.perf_counter() - begin, counters=counters
        )
        meta.segments = [segment]
        meta.problems = books.check(turns, steps, spec, meta.segments, list(store.counts))
        meta.status = "inconsistent" if meta.problems else "complete"
        meta.finished = _now()
        store.finish(meta)
    return read_run(directory)


def _spec(
    capture: Capture,
    draft: catalog.Draft,
    k: int | None,
    drafting: str | None,
    method: str | None,
    draft_args: dict[str, Any],
    truncation: bool,
) -> RunSpec:
    source = capture.meta.spec
    chosen = k if k is not None else draft.default_k
    if chosen is None:
        raise UserError(f"--k is needed: nothing says how many tokens {draft.name} should draft a step")
    if unknown := sorted(draft_args.keys() - set(ARGUMENTS.get(draft.method, ()))):
        raise UserError(f"--draft-arg {unknown[0]}: has no meaning on a capture: leave it out")
    return make_spec(
        **source.model_dump(exclude={"engine", "engine_args", "runner", "until", "against", "record", "shard"})
        | {
            "draft": draft.name,
            "k": chosen,
            "drafting": drafting or default_drafting(draft.method, source.temperature),
            "draft_truncation": truncation,
            "replay": capture.manifest.replay,
            "engine": ENGINE,
            "engine_args": {},
            "method": method,
            "draft_args": draft_args,
        }
    )


def _changes(capture: Capture, draft: catalog.Draft, stored: Fingerprint) -> list[str]:
    """In what a stored replay differs from one that would begin now: the drafter, the captured target, its states."""
    states = stored.drafter.get("states", stored.engine.dtype), capture.manifest.dtype
    return [
        *checkpoint_changes("target", stored.target, capture.meta.fingerprint.target),
        *draft_changes(draft, stored.draft),
        *([f"states: {states[0]} -> {states[1]}"] if states[0] != states[1] else []),
    ]


def _require_target(capture: Capture) -> None:
    """Where the captured target is at hand, drafters of it are of the same weights. Raises `UserError`."""
    target, weights = capture.manifest.target, capture.meta.fingerprint.target.weights
    place = zoo.built("target") if target.source == "zoo" else files_of(target.model, target.revision)
    if target.source != "hub" and place is not None and weights != (now := weights_hash(str(place))):
        raise UserError(
            f"{capture.directory}: captured of a target with weights {weights}, {target.name} has {now} here: "
            "capture the target that the drafter is for"
        )


def _fetched(target: catalog.Target, draft: catalog.Draft, method: str | None) -> catalog.Draft:
    """The drafter with its files here. One that is kept packed is made with its target's configuration."""
    if draft.stored is None:
        return catalog.fetch_draft(target, draft)
    made = catalog.fetch(catalog.resolve(target.name, draft.name, method)).draft
    assert made is not None
    return made


def _kept(capture: Capture, draft: catalog.Draft, spec: RunSpec, device: str) -> Iterator[Kept]:
    """What the drafter keeps of each text. Raises `UserError` that names it."""
    try:
        if draft.method == "ngram":
            least, most = ngram.lengths(spec.draft_args)
            drafts = partial(ngram.drafts, k=spec.k, least=least, most=most)
            yield from evaluate.certain(drafts, capture.texts, spec.k)
        elif draft.method == "suffix":
            yield from evaluate.certain(Suffix(spec.k, spec.draft_args), capture.one_by_one(), spec.k)
        else:
            question = Question(spec.k, spec.drafting, capture.sampling, spec.draft_truncation, device)
            yield from evaluate.along(_load(capture, draft, spec.k, device), capture, question)
    except UserError as error:
        raise UserError(f"--draft {draft.name}: {error}") from None


def _load(capture: Capture, draft: catalog.Draft, k: int, device: str) -> Any:
    directory = files_of(str(draft.model), draft.revision)
    if directory is None:
        raise UserError(f"its files are not here: download {draft.model} first")
    drafter = load(draft.method, directory, k, capture.manifest.target.sizes.num_hidden_layers, device)
    if drafter.most is not None and k > drafter.most:
        raise UserError(f"has {drafter.most} heads, --k is {k}")
    if missing := [layer for layer in drafter.layers if layer not in capture.manifest.layers]:
        kept = ", ".join(map(str, capture.manifest.layers)) or "none"
        raise UserError(
            f"reads layer {missing[0]}, {capture.directory} has {kept}: capture again with "
            f"--layers {','.join(map(str, drafter.layers))}"
        )
    try_out(drafter, capture.manifest.hidden_size, capture.manifest.vocab_size, device)
    return drafter


def _line(line: dict[str, Any], kept: dict[tuple[str, str, int, int], Kept], k: int) -> dict[str, Any]:
    """The journal's line of a conversation: that of the captured run, with this drafter's steps."""
    turns = []
    for turn in line["turns"]:
        own = {name: value for name, value in turn.items() if name not in ("prompt", "first_row")}
        found = kept.get((*key_of(line), turn["turn"]))
        drafted = np.zeros(len(turn["token_ids"]) - 1, np.int64) if found is None else found.drafted
        own["steps"] = [(int(count), 0, 1) for count in drafted]
        if found is not None and (drafted > 0).any():
            own["kept"] = pack(found.kept[drafted > 0][:, None, :])
        turns.append(own)
    return {name: value for name, value in line.items() if name not in ("order", "shard")} | {"turns": turns}


def _meta(capture: Capture, draft: catalog.Draft, spec: RunSpec, device: str, command: Iterable[str]) -> RunMeta:
    """The record of the captured run, with this drafter in the place of its own."""
    source = capture.meta
    engine = source.fingerprint.engine.model_copy(
        update={
            "method": draft.method,
            "k": spec.k,
            "draft_sample_method": "greedy" if spec.drafting == "deterministic" else spec.drafting,  # vLLM's word
            "draft_truncation": spec.draft_truncation,
        }
    )
    computed = {"computed": f"without the target, by torch {torch.__version__} on {torch.device(device).type}"}
    if capture.manifest.dtype != source.fingerprint.engine.dtype:
        computed["states"] = capture.manifest.dtype
    if draft.method == "suffix":
        computed["memory"] = "one text after another, as with --batch 1"
    fingerprint = source.fingerprint.model_copy(
        update={
            "draft": checkpoint_facts(draft),
            "drafting": spec.drafting,
            "engine": engine,
            "replay": spec.replay,
            "draft_args": spec.draft_args,
            "drafter": computed,
        }
    )
    return RunMeta(
        name=spec.name,
        status="running",
        created=_now(),
        command=[masked(part) for part in command] or ["speceval", *map(masked, sys.argv[1:])],
        spec=spec,
        fingerprint=fingerprint,
        fingerprint_hash=fingerprint.hash,
        conversations=len(capture.lines),
        environment=environment(),
        patches=source.patches,
        segments=[],
        problems=[],
        notes=[f"measured on a capture of {source.name}: no engine ran, the target's numbers are those of that one"],
        groups=source.groups,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
