"""A run in the shapes that others read: a hub page, a speculation profile, lm-evaluation-harness results."""

from __future__ import annotations

from collections.abc import Callable

from speceval.errors import UserError
from speceval.estimate import books, replay
from speceval.show.export.card import model_card
from speceval.show.export.lm_eval import lm_eval_json
from speceval.show.export.profile import profile_json
from speceval.store import StoredRun

FORMATS: dict[str, Callable[[StoredRun], str]] = {
    "model-card": model_card,
    "speculation-profile": profile_json,
    "lm-eval-style-json": lm_eval_json,
}

__all__ = ["FORMATS", "export"]


def export(run: StoredRun, kind: str) -> str:
    """A finished run's numbers as text of one kind (a key of `FORMATS`), checked against that kind's schema.

    What is exported travels without its run, so only sound ones are: raises `UserError` for a run that is unfinished,
    whose books do not balance, that measured nothing, whose acceptance was forced, or that is a replay.
    """
    books.require_positions(run, "export")
    drafted = run.steps["drafted"] > 0
    for fault, wrong in (
        ("is unfinished: finish it with the command that began it", not run.complete),
        ("has books that do not balance: `speceval show` says where", bool(run.meta.problems)),
        (
            "is a replay, which holds expectations and no counts: `speceval table` and `report` take it, `export` a "
            "run that generates",
            replay.is_replay(run),
        ),
        ("forced its acceptance: it measures no drafter", run.meta.spec.rejection == "synthetic"),
        ("measured nothing: no step has drafts", not drafted.any()),
    ):
        if wrong:
            raise UserError(f"{run.directory} {fault}")
    return FORMATS[kind](run)
