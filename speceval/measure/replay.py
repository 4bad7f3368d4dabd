"""The texts of a stored run, as the source of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speceval import catalog
from speceval.errors import UserError
from speceval.estimate import books
from speceval.estimate.replay import is_replay
from speceval.protocol import digest, flag
from speceval.store import OUTPUTS, StoredRun, read_lines
from speceval.store.layout import Texts

INHERITED = (
    *(
        "suites",
        "limit",
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


def source(run: StoredRun) -> dict[str, Any]:
    """What `launch.prepare` needs to replay `run`: its texts, their hash, and `INHERITED`. Raises `UserError`."""
    spec = run.meta.spec
    for fault, wrong in (
        ("is unfinished: finish it first", not run.complete),
        ("is a replay itself: name the run whose texts it used", is_replay(run)),
        (f"has no {OUTPUTS}: the texts are gone, make the run again", not (run.directory / OUTPUTS).exists()),
    ):
        if wrong:
            raise UserError(f"--replay {run.directory}: {fault}")
    found = texts(run.directory)
    return {
        "texts": found,
        "replay": digest(sorted((*key, list(tokens)) for key, tokens in found.items()))[:16],
        **spec.model_dump(mode="json", include=set(INHERITED)),
    }


def inherited(
    run: Path, target: str, draft: str, given: Mapping[str, Any], method: str | None = None
) -> dict[str, Any]:
    """`source` of the run below `run`, for a replay with another drafter. Raises `UserError`.

    `given`: the fields of `INHERITED` that the user named; what is not as the run has it is refused.
    """
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
        for row in read_lines(directory / OUTPUTS)
    }
