"""Replay: the acceptance of a drafter along given texts, with every chance but the texts' own integrated out.

The output of speculative decoding has the target's law whatever the drafter, so drafters can be compared on the same
text x. Given the text, position j of a step that starts at s was an accepted draft with probability kept_j(s) =
min(1, q_j(x)/p_j(x)) once the positions before it were, so P(A >= j | s, x) = prod_{i<=j} kept_i(s). A replayed run
holds kept_j for every start s of every text (`vllm_patches.taps.replay`); where a free run's steps start follows from

    v(1) = 1,    v(s + 1 + a) += v(s) P(A = a | s, x),

the chance that s is a start. Derivation, limits and measured gain: docs/measure/same-text.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from speceval.estimate.statistics import ratio_interval
from speceval.store import REQUEST, StoredRun

Floats = NDArray[np.float64]

DISAGREEMENT = 5.0
"""|z| from which a text has not the target's law: one false alarm in 1.7 million sound replays."""
SHIFT = 0.01
"""Mean shift of the ranks, in their own spread, that is none: what another dtype of the sums can make."""
ROUNDING = 1e-7
"""How far float32 may put a token's rank off, in the same direction in every step."""
FEW_TOKENS = 200
"""Below this many tokens z is not normal enough to be judged."""
MOST_IMPOSSIBLE = 0.001
"""Share of tokens with p = 0 that rounding may make."""


def is_replay(run: StoredRun) -> bool:
    """Whether the run replays another's texts."""
    return run.meta.spec.replay is not None


def depth(steps: pd.DataFrame) -> int:
    """The largest draft position of a replay's record; 0 for a run that is none."""
    return sum(name.startswith("kept_") for name in steps.columns)


def survival(steps: pd.DataFrame) -> Floats:
    """P(A >= j | start, text), shape [rows, depth]; 0 past the end of the text."""
    kept = steps[[f"kept_{j}" for j in range(1, depth(steps) + 1)]].to_numpy(float)
    return np.cumprod(np.nan_to_num(kept, nan=0.0), axis=1)


def starts(steps: pd.DataFrame, chances: Floats) -> Floats:
    """v, shape [rows]: the chance that a free run would start a step at each row, given the text.

    Rows are sorted by request and step, `chances` is `survival`. All requests advance together, place by place.
    """
    request = steps.groupby(REQUEST, sort=False).ngroup().to_numpy()
    first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]]) if len(request) else np.zeros(0, int)
    length = np.diff(np.r_[first, len(request)])
    exactly = np.hstack([np.ones((len(steps), 1)), chances]) - np.hstack([chances, np.zeros((len(steps), 1))])
    v = np.zeros(len(steps))
    v[first] = 1.0
    for place in range(int(length.max(initial=0))):
        rows = first[length > place] + place
        left = length[length > place] - place
        for accepted in range(exactly.shape[1]):
            inside = left > accepted + 1
            v[rows[inside] + accepted + 1] += v[rows[inside]] * exactly[rows[inside], accepted]
    return v


def expected(steps: pd.DataFrame) -> pd.DataFrame:
    """The rows with what a free run along the texts expects of each: `steps` that start there, drafts `accepted`.

    Accepted drafts that the text has a token after: each is one that the step commits besides its last one. Steps
    without drafts are left out, as everywhere: 0 of both.
    """
    chances = survival(steps)
    v = starts(steps, chances) * (steps["drafted"] > 0)
    left = steps.groupby(REQUEST, sort=False).cumcount(ascending=False).to_numpy() + 1  # of the text
    inside = np.arange(1, chances.shape[1] + 1) < left[:, None]
    return steps.assign(steps=v, accepted=v * (chances * inside).sum(axis=1))


def conversation_totals(steps: pd.DataFrame) -> pd.DataFrame:
    """Expected steps with drafts, and tokens committed in them: tau_committed = Σ committed / Σ steps.

    Columns: steps, committed; index: conversation.
    """
    totals = expected(steps).groupby("conversation", sort=False)[["steps", "accepted"]].sum()
    return totals.assign(committed=totals["steps"] + totals["accepted"])[["steps", "committed"]]


def up_to(steps: pd.DataFrame, k: int) -> pd.DataFrame:
    """The same replay at K = k: kept_j does not depend on what is drafted after it."""
    return steps.drop(columns=[f"kept_{j}" for j in range(k + 1, depth(steps) + 1)])


def decode_steps(steps: pd.DataFrame, k: int) -> pd.Series:
    """Expected steps after the prefill of a free run at K = k, which may be smaller than the replay's; by conversation.

    With a smaller k: of drafters whose first k drafts do not know K (`catalog.methods.DraftingMethod.nests`). Steps
    without drafts count too. Unlike a free run's at the larger K, where these steps start follows from k.
    """
    v = starts(steps, survival(steps)[:, :k])
    return steps.assign(v=v).groupby("conversation", sort=False)["v"].sum()


def position_totals(steps: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """For j = 1 … depth, per conversation: expected `accepted` and `drafted`, of drafts within the text, and `steps`.

    `steps`: those with drafts whose text has a token for position j, whether they draft it or not.
    """
    chances = survival(steps)
    v = starts(steps, chances)
    left = steps.groupby(REQUEST, sort=False).cumcount(ascending=False).to_numpy() + 1  # of the text
    for j in range(1, depth(steps) + 1):
        drafts = steps[f"kept_{j}"].notna().to_numpy()
        could = drafts | ((steps["drafted"] > 0).to_numpy() & (j <= left))
        sums = steps.assign(accepted=v * chances[:, j - 1], drafted=v * drafts, steps=v * could)
        yield sums.groupby("conversation", sort=False)[["accepted", "drafted", "steps"]].sum()


def text_law(steps: pd.DataFrame) -> dict[str, Any]:
    """Whether the texts have the target's law, by the chances that it gives their tokens.

    Of a token that was drawn from p, `rank` has mean 1/2 and a variance of at most `spread` whatever came before, so
    the sum of rank - 1/2 over the root of the summed spreads is a martingale's z. Texts of a lower temperature or a
    sharper model rank lower, of a higher one higher. `impossible`: tokens with p = 0, which no target emits (rounding
    at the edge of top-k and top-p may make a few). `agrees` is False from |z| = `DISAGREEMENT` on, if the mean shift is
    also `SHIFT` of its own spread or more: far less is rounding. z and agrees are None below `FEW_TOKENS` tokens, or
    where nothing is left to chance.
    """
    if "p_1" not in steps:
        return {"tokens": 0, "impossible": 0, "z": None, "agrees": None}
    there = steps["p_1"].notna().to_numpy()
    p, rank, spread = (steps[name].to_numpy(float)[there] for name in ("p_1", "rank_1", "spread_1"))
    tokens, variance = len(p), float(spread.sum())
    found: dict[str, Any] = {"tokens": tokens, "impossible": int((p <= 0).sum())}
    if tokens < FEW_TOKENS or variance <= 0:
        return found | {"z": None, "agrees": None}
    z = float((rank - 0.5).sum() / np.hypot(np.sqrt(variance), ROUNDING * tokens))
    return found | {"z": z, "agrees": bool(abs(z) < max(DISAGREEMENT, SHIFT * np.sqrt(tokens)))}


EMPTY = pd.DataFrame({"accepted": [], "drafted": []}, dtype=float)
"""Of a position that no text has a record of."""


def unrecorded(steps: pd.DataFrame) -> int:
    """Steps with drafts whose record is lost. Such a replay is no measurement: they count as if nothing were accepted.

    A step without drafts has none to lose: it is one token, in a free run too.
    """
    drafts = steps["drafted"] > 0
    return int((drafts & steps["kept_1"].isna()).sum()) if depth(steps) else int(drafts.sum())


def summarise(steps: pd.DataFrame, turns: pd.DataFrame, k: int, confidence: float = 0.95) -> dict[str, Any]:
    """`tau_committed` and u_j of one suite of a replay with their conversation-clustered intervals, JSON-ready."""
    totals = conversation_totals(steps)
    tau = ratio_interval(totals["committed"], totals["steps"], confidence, bounds=(1, k + 1))
    sums = [*position_totals(steps), *[EMPTY] * (k - depth(steps))]
    rates = [ratio_interval(each["accepted"], each["drafted"], confidence, bounds=(0, 1)) for each in sums]
    positions = [
        {
            "position": j,
            "unconditional": rate.value,
            "unconditional_low": rate.low,
            "unconditional_high": rate.high,
        }
        for j, rate in enumerate(rates, start=1)
    ]
    return {
        "conversations": int(turns["conversation"].nunique()),
        "turns": len(turns),
        "text_tokens": int(turns["output_tokens"].sum()),
        "expected_steps": float(totals["steps"].sum()),
        "text_law": text_law(steps),
        "tau_committed": tau.as_dict(),
        "positions": positions,
    }
