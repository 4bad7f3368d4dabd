"""The texts of a stored run, as the source of a replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speceval import catalog
from speceval.errors import UserError
from speceval.estimate import baseline as baselines
from speceval.estimate import books
from speceval.estimate.baseline import Baseline, TextBaseline
from speceval.estimate.comparison import under
from speceval.estimate.replay import is_replay
from speceval.measure.weights import UNKNOWN
from speceval.protocol import UNWRITTEN, RunSpec, digest, flag
from speceval.store import OUTPUTS, StoredRun, read_lines
from speceval.store.layout import Texts
from speceval.store.schema import ABSENT, Fingerprint, differ
from speceval.store.tables import OutputLine

INHERITED = (
    *(
        "suites",
        "limit",
        "stratified",
        "shuffle_seed",
        "max_tokens",
        "seeds",
        "temperature",
        "top_p",
        "top_k",
        "chat_template_kwargs",
    ),
)
"""Fields of a `RunSpec` that a replay takes from the run whose texts it uses."""


OF_LAW = (
    "target",
    "chat_template",
    "chat_template_kwargs",
    "prompts",
    "suites",
    "sampling",
    "engine.dtype",
    "engine.quantization",
    "engine.kv_cache_dtype",
)
"""Fields of a fingerprint, or prefixes of them, that the law of a text depends on."""


def require_law(made: Fingerprint, now: Fingerprint) -> None:
    """Raises `UserError` where texts of a run with the fingerprint `made` cannot have the target's law in this one.

    What one of them does not know is left to the test on the texts themselves (`estimate.replay.text_law`).
    """
    before, after = made.flat(), now.flat()
    names = [name for name in sorted(before.keys() | after.keys()) if under(name, OF_LAW)]
    pairs = [(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]
    other = [
        f"{name}: {a} -> {b}"
        for name, a, b in pairs
        if differ(name, a, b) and not any(x in (None, UNKNOWN) for x in (a, b))
    ]
    if other:
        raise UserError(
            f"--replay: the texts were made otherwise and have another law here ({'; '.join(other)}): nothing was "
            "measured: replay them as they were made, or make the run again"
        )


def source(run: StoredRun) -> dict[str, Any]:
    """What `job.prepare` needs to replay `run`: texts, hash, fingerprint and `INHERITED`. Raises `UserError`."""
    spec = run.meta.spec
    first = next(iter(run.meta.problems), None)
    for fault, wrong in (
        ("is unfinished: finish it first", not run.complete),
        ("is a replay itself: name the run whose texts it used", is_replay(run)),
        (f"its books do not balance, its texts need not have the target's law ({first})", first is not None),
        (f"has no {OUTPUTS}: the texts are gone, make the run again", not (run.directory / OUTPUTS).exists()),
    ):
        if wrong:
            raise UserError(f"--replay {run.directory}: {fault}")
    books.require_texts(run)
    return _along(texts(run.directory), spec.model_dump(mode="json"), run.meta.fingerprint)


def source_of_file(baseline: Baseline | TextBaseline, path: Path) -> dict[str, Any]:
    """The same from a baseline file that keeps texts. Raises `UserError` for one that does not, or is incomplete."""
    if not isinstance(baseline, TextBaseline):
        raise UserError(f"--replay {path}: keeps no texts: write it with `speceval baseline RUN --texts`")
    if missing := [name for name in (*INHERITED, "target") if name not in {*baseline.asked, *UNWRITTEN}]:
        raise UserError(f"--replay {path}: field 'asked' has no {missing[0]}: write the baseline again")
    found = {(one.suite, one.conversation, one.seed, one.turn): tuple(one.token_ids) for one in baseline.texts}
    along = _along(found, baseline.asked, baseline.fingerprint)
    if along["replay"] != baseline.fingerprint.replay:
        raise UserError(f"--replay {path}: its texts are not those that its numbers are of: write the baseline again")
    return along


def digest_of(found: Mapping[tuple[str, str, int, int], Sequence[int]]) -> str:
    """Hash of texts, as a replay's request has it."""
    return digest(sorted((*key, list(tokens)) for key, tokens in found.items()))[:16]


def _along(found: Texts, asked: Mapping[str, Any], fingerprint: Fingerprint) -> dict[str, Any]:
    defaults = {name: RunSpec.model_fields[name].get_default(call_default_factory=True) for name in UNWRITTEN}
    whole = defaults | dict(asked)
    return {
        "texts": found,
        "source": fingerprint,
        "replay": digest_of(found),
        **{name: whole[name] for name in INHERITED},
    }


def inherited(
    run: Path, target: str, draft: str, given: Mapping[str, Any], method: str | None = None
) -> dict[str, Any]:
    """`source` of the run below `run`, or of a baseline file, for a replay with another drafter. Raises `UserError`.

    `given`: the fields of `INHERITED` that the user named; what is not as the run has it is refused.
    """
    if run.is_file():
        kept = baselines.read(run)
        fixed, name = source_of_file(kept, run), kept.asked["target"] if isinstance(kept, TextBaseline) else ""
    else:
        stored = books.read(run)
        fixed, name = source(stored), stored.meta.spec.target
    pair = catalog.resolve(target, draft, method)
    if pair.target.name != name:
        raise UserError(f"--target {target}: the texts of {run} are of {name}: name that target, or another run")
    for field, value in given.items():
        if (list(value) if isinstance(value, tuple) else value) != fixed[field]:
            raise UserError(
                f"{flag(field).name}: the run that is replayed has {fixed[field]}: leave it out, or name another run"
            )
    return fixed


def texts(directory: Path) -> Texts:
    """Token ids of every turn of a finished run."""
    return {
        (row["suite"], row["conversation"], row["seed"], row["turn"]): tuple(row["token_ids"])
        for row in read_lines(directory / OUTPUTS, kind=OutputLine)
    }
