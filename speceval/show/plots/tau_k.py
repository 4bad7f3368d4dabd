"""tau against K: the whole curve from one run at the largest K, and separate runs beside it.

A step at K drafts d_1 … d_K. Where d_j and the chance to accept it do not depend on K, the first k drafts of the step
are what a step of K = k from the same place would have drafted, so it would have accepted min(A, k) of them:

    tau(k) = 1 + Σ min(A, k) / #steps = 1 + Σ_{j<=k} u_j   (the latter when every step drafts K)

That is exact given where the steps start. A run at K = k starts its steps elsewhere: after at most k accepted tokens.
With m_k(t) = E[min(A, k) | a step starts at t], the curve averages m_k over the starts of the run at K, the run at k
averages it over its own. They agree when m_k is the same everywhere, or has no correlation with being a start. Else the
short steps go on inside an easy stretch which one long step had jumped, so they start more often where acceptance is
high, and the curve lies too low for small k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from speceval.catalog.methods import find
from speceval.estimate import acceptance, replay
from speceval.estimate.statistics import ratio_interval
from speceval.protocol import digest
from speceval.show.plots import style
from speceval.store import StoredRun

APART = 0.1
"""Of the separate runs from the curve, in K."""


def has_curve(run: StoredRun) -> bool:
    """Whether a run at K tells about smaller K: the method drafts position by position, each verified on its own."""
    engine = run.meta.fingerprint.engine
    return find(engine.method).nests and engine.rejection_sample_method == "standard"


def totals(steps: pd.DataFrame, k: int) -> pd.DataFrame:
    """Per conversation (index, sorted) of one suite: steps with drafts, and Σ (1 + min(A, j)) in columns 1 … k."""
    rows = acceptance.drafted_steps(steps)
    emitted: dict[str | int, Any] = {j: 1 + np.minimum(rows["accepted"], j) for j in range(1, k + 1)}
    return pd.DataFrame({"steps": 1, **emitted}, index=rows.index).groupby(rows["conversation"]).sum()


def curve(steps: pd.DataFrame, k: int) -> list[dict[str, Any]]:
    """tau(1) … tau(k) of one suite's steps at K = k: rows {k, value, low, high, se}, 95 %, by conversation.

    Of a replay tau_committed, which is that of a replay at each k: it visits every start, so no start is missing.
    """
    if replay.depth(steps):
        along = [replay.conversation_totals(replay.up_to(steps, j)) for j in range(1, k + 1)]
        return [
            {"k": j, **ratio_interval(each["committed"], each["steps"], bounds=(1, j + 1)).as_dict()}
            for j, each in enumerate(along, start=1)
        ]
    by_conversation = totals(steps, k)
    return [
        {"k": j, **ratio_interval(by_conversation[j], by_conversation["steps"], bounds=(1, j + 1)).as_dict()}
        for j in range(1, k + 1)
    ]


def groups(runs: Sequence[StoredRun]) -> list[list[int]]:
    """Indices of runs that differ in K alone, each group by falling K: of one request and of the same weights."""
    found: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        fingerprint = run.meta.fingerprint
        weights = [fingerprint.target.weights, fingerprint.draft.weights]
        spec = run.meta.spec.model_dump(mode="json", exclude={"k", "seeds", "batch"})
        found.setdefault(digest([spec, weights]), []).append(index)
    return [sorted(group, key=lambda index: -runs[index].meta.spec.k) for group in found.values()]


def draw(runs: Sequence[StoredRun]) -> style.Drawn:
    """tau against K: each drafter's run at the largest K as a curve with a 95 % band, its other runs as points."""
    members = [[runs[index] for index in group] for group in groups(runs)]
    suites = style.common_suites(runs, len(members))
    labels = style.labels([group[0] for group in members], leave_out=("k",))
    figure, axes = style.panels(suites, sharey=True)
    for suite, axis in zip(suites, axes, strict=True):
        for index, (group, label) in enumerate(zip(members, labels, strict=True)):
            look = style.series(index)
            points = group
            if has_curve(group[0]):
                k, points = group[0].meta.spec.k, group[1:]
                rows = curve(style.steps(group[0], suite), k)
                places = [row["k"] for row in rows]
                style.estimates(axis, places, rows, band=True, label=f"{label}: curve from K={k}", **look)
            if points:
                separate = [(run.meta.spec.k, curve(style.steps(run, suite), run.meta.spec.k)[-1]) for run in points]
                places = [k + APART * (1 + index) for k, _ in separate]
                bars = {**look, "linestyle": "none", "markerfacecolor": "none", "markersize": 6}
                style.estimates(axis, places, [row for _, row in separate], label=f"{label}: separate runs", **bars)
        axis.set_xlabel("K, draft tokens of a step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel=style.length(runs), ylim=(1, None))
    style.legend(figure, axes[0])
    return style.Drawn(figure, _caption(runs, members))


def _caption(runs: Sequence[StoredRun], members: list[list[StoredRun]]) -> str:
    text = f"Acceptance length {style.length(runs)} against K ({style.settings(runs)}). "
    if style.replayed(runs):
        text += (
            "Curves: from one replay at the largest K, exact at every K on its texts, since what position j keeps does "
            "not depend on what is drafted after it. Points beside a curve: separate replays. "
        )
    elif any(has_curve(group[0]) for group in members):
        text += (
            "Curves: from the steps of one run at the largest K, tau(k) = 1 + mean of min(A, k). Exact for the steps "
            "of that run; a run at k starts its steps at other places of the text, so the curve equals its tau only if "
            "acceptance does not depend on where a step starts, and else lies mostly too low at small k. Points beside "
            "a curve: separate runs. "
        )
    if not all(has_curve(group[0]) for group in members):
        text += "Without a curve: drafters whose drafts or verification at a position depend on K. "
    return f"{text}Bands and bars: {style.interval(runs)}."
