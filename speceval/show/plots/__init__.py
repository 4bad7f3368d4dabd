"""Figures of stored runs (matplotlib), one module each, with captions that say what the errors are.

`draw` gives any figure, `save` writes it; `positions` does both for the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import matplotlib

from speceval.estimate.comparison import require_comparable
from speceval.show.plots import along, conversation, forest, position, style, tau_k
from speceval.show.plots.style import Drawn, require_format, save
from speceval.store import StoredRun

OF_RUNS: dict[str, Callable[[Sequence[StoredRun]], Drawn]] = {
    "positions": position.draw,
    "tau-k": tau_k.draw,
    "forest": forest.draw,
    "along": along.draw,
    "context": along.draw_context,
    "conversations": conversation.draw,
}
__all__ = ["OF_RUNS", "Drawn", "draw", "positions", "require_format", "save"]


def draw(kind: str, runs: Sequence[StoredRun], allow: Collection[str] = ()) -> Drawn:
    """The figure of one kind (a key of `OF_RUNS`) of stored runs, and its caption. Raises `UserError`.

    A forest plot compares: runs whose protocols differ in more than the drafter and the fields in `allow` raise
    `NotComparable` (`comparison.require_comparable`), and what was allowed is in the caption. So do two runs'
    conversations, which are drawn without their differences instead.
    """
    style.require_one_kind(runs)
    allowed = require_comparable([run.meta.fingerprint for run in runs], allow) if kind == "forest" else []
    with matplotlib.rc_context(style.RC):
        figure, caption = conversation.draw(runs, allow) if kind == "conversations" else OF_RUNS[kind](runs)
    differences = [f"Runs differ in {'; '.join(allowed)}."] if allowed else []
    return Drawn(figure, style.plain(" ".join([caption, *differences, *style.notes(runs)])))


def positions(runs: Sequence[StoredRun], path: Path) -> None:
    """Write the figure of acceptance by draft position; `path`'s suffix (.png, .pdf) names the format."""
    save(draw("positions", runs).figure, path)
