"""Acceptance lengths and acceptance rates per position, from the step and turn tables of a run.

Pure functions on data frames; no engine is imported. Formulas with their sources: docs/trust/how-sure.md.

steps: one row per verify step: suite, conversation, seed, turn, step, drafted, accepted, committed.
turns: one row per request: suite, conversation, seed, turn, category, prompt_tokens, output_tokens,
       finish_reason, steps, undrafted_steps, padded_steps, drafted, accepted, excess.

A step without drafts (drafted = 0) is an ordinary decoding step: every estimator leaves it out, and it is
counted beside. So are padded steps, which vLLM fills up with drafts that nobody made: they have no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from speceval import store
from speceval.errors import UserError
from speceval.estimate import rao_blackwell, replay
from speceval.estimate.statistics import (
    LEAST_EFFECTIVE,
    Interval,
    cluster_warnings,
    detectable,
    effective_clusters,
    holm,
    paired_ratio_difference,
    proportion_interval,
    ratio_interval,
    variance_components,
)
from speceval.store import REQUEST

STEP_COLUMNS = list(store.STEP_COLUMNS)
TURN_COLUMNS = [name for name in store.TURN_COLUMNS if name not in ("category", "prompt_tokens", "cached_tokens")]
"""What the estimators need."""
FINISH_REASONS = ("stop", "length")
FEW_UNDRAFTED = 0.01
"""Share of decode steps without drafts that needs no word."""
PER_POSITION = "num_accepted_tokens_per_pos"
"""The counter that is a list, by position."""


def drafted_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """The rows that have drafts: what "steps" means in every estimator."""
    return steps[steps["drafted"] > 0]


def tau(steps: pd.DataFrame) -> float | None:
    """1 + ΣA / #steps, vLLM's acceptance length; None without drafted steps."""
    rows = drafted_steps(steps)
    return _divide(len(rows) + rows["accepted"].sum(), len(rows))


def tau_paper(steps: pd.DataFrame, k: int) -> float | None:
    """1 + K · ΣA / Σdrafted (LK Losses paper); `tau` when every step drafts K. None without drafted steps."""
    rows = drafted_steps(steps)
    return _divide(rows["drafted"].sum() + k * rows["accepted"].sum(), rows["drafted"].sum())


def tau_committed(steps: pd.DataFrame) -> float | None:
    """Committed tokens of drafted steps per drafted step. None without drafted steps."""
    rows = drafted_steps(steps)
    return _divide(rows["committed"].sum(), len(rows))


def undrafted_note(steps: pd.DataFrame) -> str | None:
    """What every view of tau must say where more than `FEW_UNDRAFTED` of the decode steps had no drafts; else None.

    Of a replay the same of the places of its texts, each a token.
    """
    undrafted, rows = int((steps["drafted"] == 0).sum()), len(steps)
    if undrafted <= FEW_UNDRAFTED * rows:
        return None
    clock = all_steps(steps).sum()
    what = "places of the texts" if replay.depth(steps) else "decode steps"
    return (
        f"{undrafted:,} of {rows:,} {what} had no drafts and are in no tau but that over all steps, which is "
        f"what a user's clock sees: {clock['tokens'] / clock['steps']:.3f} tokens a step"
    )


def tau_request_mean(turns: pd.DataFrame) -> float | None:
    """Unweighted mean over requests of the request's own tau; requests without drafted steps have none."""
    rows = turns[turns["steps"] > 0]
    return _divide((1 + rows["accepted"] / rows["steps"]).sum(), len(rows))


def positions(steps: pd.DataFrame, k: int) -> pd.DataFrame:
    """Counts and rates per draft position, one row per position 1 … K.

    Columns: position; accepted = #(A >= j); drafted = #(drafted >= j); reached = #(A >= j-1 and drafted
    >= j); unconditional u_j = accepted / drafted; conditional c_j = accepted / reached (NaN for 0 / 0).
    """
    rows = [[j, *(int(mask.sum()) for mask in _position_masks(steps, j))] for j in range(1, k + 1)]
    counts = pd.DataFrame(rows, columns=["position", "accepted", "drafted", "reached"])
    counts["unconditional"] = counts["accepted"] / counts["drafted"].where(counts["drafted"] > 0)
    counts["conditional"] = counts["accepted"] / counts["reached"].where(counts["reached"] > 0)
    return counts


def conversation_totals(steps: pd.DataFrame) -> pd.DataFrame:
    """Drafted steps, and tokens drafted, accepted and committed in them, per conversation.

    Columns: steps, drafted, accepted, committed; index: conversation (all its seeds and turns), where it
    has drafted steps.
    """
    grouped = drafted_steps(steps).groupby("conversation", sort=False)
    totals = grouped[["drafted", "accepted", "committed"]].sum()
    totals.insert(0, "steps", grouped.size())
    return totals


def weight_of_conversations(steps: pd.DataFrame) -> tuple[int, float, float]:
    """Of one suite, also of a replay: conversations with drafts, how many alike they count as by what each has accepted
    (`statistics.effective_clusters`), and the share of tau's variance that one of them holds. For `cluster_warnings`.
    """
    if replay.depth(steps):
        totals = replay.conversation_totals(steps)
        tokens, count = totals["committed"], totals["steps"]
    else:
        totals = conversation_totals(steps)
        tokens, count = totals["steps"] + totals["accepted"], totals["steps"]
    pooled = ratio_interval(tokens, count)
    return pooled.clusters, min(float(effective_clusters(tokens - count)), pooled.clusters), pooled.share


def summarise(steps: pd.DataFrame, turns: pd.DataFrame, k: int, confidence: float = 0.95) -> dict[str, Any]:
    """Every estimator of one suite of one run with its conversation-clustered interval, as JSON-ready values.

    steps, turns: the two tables of one suite; k: the run's K; confidence: of all intervals. What the data
    leave undefined is None. Raises UserError when columns or values are missing, the tables hold several
    suites, or a step drafts more than k.
    """
    _check(steps, turns)
    _one_suite(steps, turns)
    most = int(steps["drafted"].max()) if len(steps) else 0
    if most > k:
        raise UserError(f"a step drafts {most} tokens but K is {k}: pass the K that the run used")
    intervals = _tau_intervals(steps, turns, k, confidence)
    return {
        "conversations": int(turns["conversation"].nunique()),
        "samples": len(turns[["conversation", "seed"]].drop_duplicates()),
        "turns": len(turns),
        "steps": len(drafted_steps(steps)),
        "undrafted_steps": int((steps["drafted"] == 0).sum()),
        "padded_steps": int(turns["padded_steps"].sum()),
        "drafted": int(steps["drafted"].sum()),
        "accepted": int(steps["accepted"].sum()),
        "committed": int(turns["output_tokens"].sum()),
        "excess": int(turns["excess"].sum()),
        "finish": {reason: int((turns["finish_reason"] == reason).sum()) for reason in FINISH_REASONS},
        **{name: interval.as_dict() for name, interval in intervals.items()},
        "tau_rb": rao_blackwell.tau_rb_interval(steps, k, confidence).as_dict(),
        "agreement": rao_blackwell.agreement(steps),
        "positions": _position_intervals(steps, k, confidence),
        "variance": variance(steps),
        "warnings": [
            *_warnings(intervals["tau"], conversation_totals(steps)["accepted"], turns),
            *_position_warnings(steps, k),
        ],
    }


def compare(
    steps_a: pd.DataFrame,
    turns_a: pd.DataFrame,
    steps_b: pd.DataFrame,
    turns_b: pd.DataFrame,
    confidence: float = 0.95,
    pair_by: Literal["request", "conversation"] = "request",
) -> dict[str, Any]:
    """tau of run b against run a on one suite, paired by conversation, over the requests that both runs have.

    A request is (conversation, seed, turn); with pair_by="conversation" runs with other seeds are paired as well: all
    seeds of the conversations that both runs have count. Returns plain values: `conversations` (clusters of the test:
    those with drafted steps in both runs), `samples` and `turns` in both (of run a), `only_a` and `only_b` (requests
    left out); `tau_a`, `tau_b`, `difference` (b - a) and `relative_percent` (100 (b/a - 1)), each {value, low, high,
    se}; `p_value` of no difference, two-sided; `detectable_percent` (`statistics.detectable`); `tau_rb`, the same
    of the Rao-Blackwell estimates, None unless both runs recorded them; `tau_all_steps`, the same of the tokens of a
    decode step (`compare_all_steps`); `positions`
    (`compare_rates`); `pair_by`; `confidence`; `warnings`. Raises UserError when columns are missing, there are
    several suites, or nothing is in both runs.
    """
    _check(steps_a, turns_a)
    _check(steps_b, turns_b)
    _one_suite(steps_a, turns_a, steps_b, turns_b)
    key = REQUEST if pair_by == "request" else ["conversation"]
    requests_a, requests_b = _codes(key, turns_a, turns_b)
    shared_a, shared_b = np.isin(requests_a, requests_b), np.isin(requests_b, requests_a)
    if not shared_a.any():
        raise UserError(f"the two runs share no ({', '.join(key)}): run both on the same conversations and seeds")
    steps_a, steps_b = _steps_of(turns_a[shared_a], steps_a, key), _steps_of(turns_b[shared_b], steps_b, key)
    most = tuple(1 + float(steps["drafted"].max()) if len(steps) else np.inf for steps in (steps_a, steps_b))
    lengths = compare_lengths(*_shared_terms(steps_a, steps_b), confidence=confidence, most=most)
    shared = turns_a[shared_a]
    return {
        **lengths,
        "samples": len(shared[["conversation", "seed"]].drop_duplicates()),
        "turns": len(shared),
        "only_a": int((~shared_a).sum()),
        "only_b": int((~shared_b).sum()),
        "tau_rb": _compare_rb(steps_a, steps_b, confidence),
        "tau_all_steps": compare_all_steps(steps_a, steps_b, confidence),
        "positions": compare_rates(_position_counts(steps_a, steps_b), confidence),  # type: ignore[arg-type]
        "pair_by": pair_by,
        "confidence": confidence,
        "warnings": _compare_warnings(lengths, shared["conversation"].nunique()),
    }


def compare_scaled(
    steps_a: pd.DataFrame,
    turns_a: pd.DataFrame,
    steps_b: pd.DataFrame,
    turns_b: pd.DataFrame,
    scale: float,
) -> dict[str, float | None]:
    """tau of run b minus `scale` times that of run a, paired as `compare` does by request: value, low, high, se."""
    requests_a, requests_b = _codes(REQUEST, turns_a, turns_b)
    steps_a = _steps_of(turns_a[np.isin(requests_a, requests_b)], steps_a, REQUEST)
    steps_b = _steps_of(turns_b[np.isin(requests_b, requests_a)], steps_b, REQUEST)
    x_a, y_a, x_b, y_b = _shared_terms(steps_a, steps_b)
    return paired_ratio_difference(scale * x_a, y_a, x_b, y_b).difference.as_dict()


def _shared_terms(
    steps_a: pd.DataFrame, steps_b: pd.DataFrame
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Numerators and denominators of both runs' tau, per conversation that has drafted steps in both."""
    totals_a, totals_b = conversation_totals(steps_a).align(conversation_totals(steps_b), join="inner")
    return (*_tau_terms(totals_a), *_tau_terms(totals_b))


def compare_lengths(
    numerator_a: ArrayLike,
    denominator_a: ArrayLike,
    numerator_b: ArrayLike,
    denominator_b: ArrayLike,
    confidence: float = 0.95,
    most: tuple[float, ...] = (np.inf, np.inf),
) -> dict[str, Any]:
    """An acceptance length Σ numerator / Σ denominator of run b against run a, from paired sums per conversation.

    All arrays have shape (conversations,); `most`: tokens that a step of each run can emit. Returns `conversations`,
    `tau_a`, `tau_b`, `difference`, `relative_percent`, `p_value`, `detectable_percent` and `warnings` as `compare`
    does.
    """
    paired = paired_ratio_difference(
        numerator_a, denominator_a, numerator_b, denominator_b, confidence, most=max(most) - 1
    )
    pairs = (numerator_a, denominator_a), (numerator_b, denominator_b)
    tau_a, tau_b = (ratio_interval(*pair, confidence, bounds=(1, top)) for pair, top in zip(pairs, most, strict=True))
    return {
        "conversations": paired.difference.clusters,
        "tau_a": tau_a.as_dict(),
        "tau_b": tau_b.as_dict(),
        "difference": paired.difference.as_dict(),
        "relative_percent": paired.relative_percent.as_dict(),
        "p_value": paired.p_value,
        "detectable_percent": detectable(paired.relative_percent),
        "warnings": cluster_warnings(paired.difference.clusters, _effective(pairs), paired.difference.share),
    }


def _effective(pairs: Iterable[tuple[ArrayLike, ArrayLike]]) -> float:
    """The fewer effective conversations of two runs, by what they have above one token a step."""
    above = (np.maximum(np.subtract(tokens, steps), 0) for tokens, steps in pairs)
    return min(float(effective_clusters(weights)) for weights in above)


def compare_rates(
    counts: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]], confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Rates of run b against run a for j = 1, 2, …, from (accepted_a, tried_a, accepted_b, tried_b) of each position.

    Arrays have shape (conversations,); only conversations that tried it in both runs count. `p_adjusted` is Holm's over
    the positions. Of the steps with drafts (`compare`) the differences add up to that of tau where both have one K.
    """
    rows: list[dict[str, Any]] = []
    for position, arrays in enumerate(counts, start=1):
        x_a, y_a, x_b, y_b = (np.asarray(array, float) for array in arrays)
        both = (y_a > 0) & (y_b > 0)
        paired = paired_ratio_difference(x_a, y_a, x_b, y_b, confidence, most=1)
        a, b = (_divide(x[both].sum(), y[both].sum()) for x, y in ((x_a, y_a), (x_b, y_b)))
        difference = paired.difference.as_dict()
        rows.append({"position": position, "a": a, "b": b, "difference": difference, "p_value": paired.p_value})
    adjusted = holm([row["p_value"] for row in rows])
    return [row | {"p_adjusted": p} for row, p in zip(rows, adjusted, strict=True)]


def _tau_terms(totals: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numerator and denominator of `tau` per conversation."""
    return (totals["steps"] + totals["accepted"]).to_numpy(), totals["steps"].to_numpy()


def _tau_intervals(steps: pd.DataFrame, turns: pd.DataFrame, k: int, confidence: float) -> dict[str, Interval]:
    """The acceptance lengths; a step emits 1 … K+1 tokens, which bounds them all."""
    totals = conversation_totals(steps)
    requests = turns[turns["steps"] > 0]
    own_tau = (1 + requests["accepted"] / requests["steps"]).groupby(requests["conversation"], sort=False)
    terms = {
        "tau": _tau_terms(totals),
        "tau_paper": (totals["drafted"] + k * totals["accepted"], totals["drafted"]),
        "tau_committed": (totals["committed"], totals["steps"]),
        "tau_request_mean": (own_tau.sum(), own_tau.size()),
    }
    every = all_steps(steps)
    terms["tau_all_steps"] = (every["tokens"], every["steps"])
    return {
        name: ratio_interval(x, y, confidence, bounds=(1, k + 1))  # type: ignore[arg-type]
        for name, (x, y) in terms.items()
    }


def variance(steps: pd.DataFrame, k: int | None = None) -> dict[str, float] | None:
    """Where the variance of tau comes from (`statistics.variance_components`); None unless there are several seeds.

    `k`: of tau paper at this K instead.
    """
    if steps["seed"].nunique() < 2:
        return None
    rows = drafted_steps(steps)
    conversation, names = pd.factorize(rows["conversation"])
    seed, seeds = pd.factorize(rows["seed"])
    sample = conversation * len(seeds) + seed
    count = np.bincount(sample, minlength=len(names) * len(seeds))
    accepted = np.bincount(sample, rows["accepted"], minlength=len(count))
    drafted = count if k is None else np.bincount(sample, rows["drafted"], minlength=len(count))
    numerator = drafted + (1 if k is None else k) * accepted
    found = variance_components(numerator, drafted, np.repeat(np.arange(len(names)), len(seeds)))
    return asdict(found) if found else None


def _position_masks(steps: pd.DataFrame, j: int) -> tuple[NDArray[np.bool_], ...]:
    """Which steps accept position j, draft it, and reach it."""
    accepted, drafted = steps["accepted"].to_numpy(), steps["drafted"].to_numpy()
    return accepted >= j, drafted >= j, (accepted >= j - 1) & (drafted >= j)


def _position_intervals(steps: pd.DataFrame, k: int, confidence: float) -> list[dict[str, Any]]:
    cluster, ids = pd.factorize(steps["conversation"])
    expected = rao_blackwell.position_intervals(steps, k, confidence)
    rows = []
    for j in range(1, k + 1):
        accepted, drafted, reached = (
            np.bincount(cluster[mask], minlength=len(ids)) for mask in _position_masks(steps, j)
        )
        unconditional = proportion_interval(accepted, drafted, confidence)
        conditional = proportion_interval(accepted, reached, confidence)
        rows.append(
            {
                "position": j,
                "accepted": int(accepted.sum()),
                "drafted": int(drafted.sum()),
                "reached": int(reached.sum()),
                "unconditional": unconditional.value,
                "conditional": conditional.value,
                "unconditional_low": unconditional.low,
                "unconditional_high": unconditional.high,
                "conditional_low": conditional.low,
                "conditional_high": conditional.high,
                "unconditional_rb": expected[j - 1].value,
                "unconditional_rb_low": expected[j - 1].low,
                "unconditional_rb_high": expected[j - 1].high,
            }
        )
    return rows


def _warnings(pooled: Interval, accepted: ArrayLike, turns: pd.DataFrame) -> list[str]:
    """accepted: tokens of each conversation."""
    found = cluster_warnings(pooled.clusters, float(effective_clusters(accepted)), pooled.share)
    if pooled.se is not None and pooled.se <= 1e-12:
        found.append("every conversation has the same tau: the interval's zero width is no proof of certainty")
    without = int((turns["steps"] == 0).sum())
    if without and pooled.clusters:
        found.append(f"{without} of {len(turns)} requests have no drafted step and no tau of their own")
    return found


def _position_warnings(steps: pd.DataFrame, k: int) -> list[str]:
    """Which positions fewer conversations carry than an interval needs, where all together are enough."""
    cluster, ids = pd.factorize(steps["conversation"])
    least = float(effective_clusters(np.bincount(cluster, steps["accepted"], minlength=len(ids)))) if len(ids) else 0.0
    if least < LEAST_EFFECTIVE:
        return []
    few = {}
    for j in range(1, k + 1):
        accepted = np.bincount(cluster[_position_masks(steps, j)[0]], minlength=len(ids))
        if (effective := float(effective_clusters(accepted))) < LEAST_EFFECTIVE:
            few[j] = effective
    if not few:
        return []
    which = f"position{'s' if len(few) > 1 else ''} {', '.join(map(str, few))}"
    return [
        f"{which}: what is accepted there lies in conversations that count as {min(few.values()):.0f} "
        f"(fewer than {LEAST_EFFECTIVE}): these intervals can be too narrow"
    ]


def _compare_rb(steps_a: pd.DataFrame, steps_b: pd.DataFrame, confidence: float) -> dict[str, Any] | None:
    """`compare_lengths` of the Rao-Blackwell estimates; None unless both runs have a record."""
    rows_a, rows_b = (rao_blackwell.conversation_totals_rb(steps) for steps in (steps_a, steps_b))
    a, b = rows_a.align(rows_b, join="inner")
    if a.empty:
        return None
    return compare_lengths(a["steps"] + a["expected"], a["steps"], b["steps"] + b["expected"], b["steps"], confidence)


def compare_all_steps(steps_a: pd.DataFrame, steps_b: pd.DataFrame, confidence: float = 0.95) -> dict[str, Any] | None:
    """`compare_lengths` of the tokens per decode step, with drafts or without; None where nearly all have drafts."""
    if not (undrafted_note(steps_a) or undrafted_note(steps_b)):
        return None
    a, b = all_steps(steps_a).align(all_steps(steps_b), join="inner")
    return compare_lengths(a["tokens"], a["steps"], b["tokens"], b["steps"], confidence)


def all_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Decode steps, with drafts or without, and the tokens that they commit, per conversation (index).

    Of a replay those that a free run along its texts expects: every place is a token that one of them commits.
    """
    of = steps.groupby("conversation", sort=False)
    if k := replay.depth(steps):
        return pd.DataFrame({"tokens": of.size(), "steps": replay.decode_steps(steps, k)})
    return pd.DataFrame({"tokens": of["committed"].sum(), "steps": of.size()})


def _position_counts(steps_a: pd.DataFrame, steps_b: pd.DataFrame) -> Iterator[tuple[NDArray[Any], ...]]:
    """#(A >= j) and steps with drafts per conversation of both runs, for the positions that both draft.

    Of all of these steps: among those that draft position j, a drafter that drafts it in hard steps too would seem
    worse.
    """
    rows = drafted_steps(steps_a), drafted_steps(steps_b)
    cluster, ids = pd.factorize(pd.concat([own["conversation"] for own in rows]))
    owners = cluster[: len(rows[0])], cluster[len(rows[0]) :]
    k = min((int(own["drafted"].max()) if len(own) else 0) for own in rows)
    for j in range(1, k + 1):
        yield tuple(
            np.bincount(owner[mask], minlength=len(ids))
            for owner, own in zip(owners, rows, strict=True)
            for mask in (own["accepted"].to_numpy() >= j, slice(None))
        )


def _compare_warnings(lengths: dict[str, Any], shared: int) -> list[str]:
    clusters, found = lengths["conversations"], list(lengths["warnings"])
    if clusters > 1 and lengths["p_value"] is None:
        found.append("every conversation shows the same difference: without spread there is no p-value")
    if shared > clusters > 0:
        found.append(f"{shared - clusters} conversations have no drafted step in one of the runs and are left out")
    return found


def _codes(columns: list[str], *frames: pd.DataFrame) -> list[NDArray[np.int64]]:
    """For each frame a number per row, equal where the columns' values are equal, in all frames alike."""
    numbers = np.zeros(sum(map(len, frames)), np.int64)
    for column in columns:
        values, names = pd.factorize(pd.concat([frame[column] for frame in frames], ignore_index=True))
        numbers = numbers * len(names) + values
    return np.split(numbers, np.cumsum([len(frame) for frame in frames])[:-1])


def _steps_of(turns: pd.DataFrame, steps: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The rows of `steps` that belong to these turns."""
    if int((turns["steps"] + turns["undrafted_steps"]).sum()) == len(steps):
        return steps  # all of them: comparing a million names takes longer than the estimates
    of_turns, of_steps = _codes(key, turns, steps)
    return steps[np.isin(of_steps, of_turns)]


def _request_index(frame: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(frame[REQUEST])


def _divide(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator else None


def _check(steps: pd.DataFrame, turns: pd.DataFrame) -> None:
    for name, frame, columns in (("steps", steps, STEP_COLUMNS), ("turns", turns, TURN_COLUMNS)):
        absent = [column for column in columns if column not in frame]
        if absent:
            raise UserError(f"the {name} table lacks the column(s) {', '.join(absent)}: record the run again")
        empty = [column for column in columns if frame[column].isna().any()]
        if empty:
            raise UserError(f"the {name} table has empty values in {', '.join(empty)}: record the run again")


def _one_suite(*frames: pd.DataFrame) -> None:
    suites = sorted({str(suite) for frame in frames for suite in frame["suite"].unique()})
    if len(suites) > 1:
        raise UserError(f"one suite at a time: the tables hold {', '.join(suites)}; select one")
