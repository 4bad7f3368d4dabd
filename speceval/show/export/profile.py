"""`speculation_profile.json`, schema version 1.0, as NVIDIA Model-Optimizer's pull requests 2247 and 2313-2316 propose.

The field names and the two conversions (acceptance length to draft position, a survival function without gaps) follow
`examples/specdec_bench/specdec_bench/speculation_profile.py` of those pull requests; docs/measure/share-a-run.md says
what was chosen where they leave room.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
from pydantic import Field, model_validator

from speceval.catalog.methods import find
from speceval.estimate import acceptance
from speceval.files import Strict
from speceval.show.export.names import checkpoint
from speceval.store import REQUEST, StoredRun

CONDITIONS = ("vllm", "runner", "device", "dtype", "quantization")
"""Facts of the engine that are among the conditions."""
TOLERANCE = 0.02
DIGITS = 6


class Consistency(Strict):
    """The mean that the marginals imply (1 + their sum) against the measured one."""

    implied_mean_accept_length: float
    reported_mean_accept_length: float
    abs_delta: float
    tolerance: float
    passed: bool


class Monotonicity(Strict):
    """A survival function does not rise."""

    passed: bool
    violations: list[dict[str, float]]


class Validation(Strict):
    """The proposal's own two checks."""

    mean_consistency: Consistency
    marginal_monotonicity: Monotonicity


class Profile(Strict):
    """One `speculation_profile.json`. Rates have one entry per draft position, None under block verification."""

    schema_version: Literal["1.0"] = "1.0"
    measured: Literal[True] = True
    producer: Literal["speceval"] = "speceval"
    method: str
    draft_checkpoint: dict[str, Any]
    target_model: dict[str, Any]
    num_speculative_tokens: int = Field(ge=1)
    block_size: int | None = None
    max_supported_k: int = Field(ge=1)
    verification_method: Literal["longest_prefix", "block"]
    conditional_accept_rates: list[float] | None
    marginal_accept_rates: list[float] | None
    vectors_unavailable_reason: str | None = None
    mean_accept_length: float = Field(ge=1)
    mean_accept_length_per_request: float = Field(ge=1)
    accept_length_model: Literal["chain_analytic", "measured_per_k"]
    accept_length_by_k: dict[str, float]
    acceptance_length_histogram: dict[str, int]
    per_category: dict[str, dict[str, float | int]] | None
    measurement_conditions: dict[str, Any]
    validation: Validation | None

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        """What consumers rely on and do not check themselves."""
        for rates in (self.conditional_accept_rates, self.marginal_accept_rates):
            if (rates is None) != (self.verification_method == "block"):
                raise ValueError("rates are there exactly under longest-prefix verification")
            if rates is not None and (
                len(rates) != self.num_speculative_tokens or not all(0 <= rate <= 1 for rate in rates)
            ):
                raise ValueError("rates are probabilities, one per draft position")
        if self.validation and not (
            self.validation.mean_consistency.passed and self.validation.marginal_monotonicity.passed
        ):
            raise ValueError("mean and marginals contradict each other")
        return self


def profile_json(run: StoredRun) -> str:
    """The profile of a run as JSON text: ASCII, without NaN."""
    return json.dumps(profile(run).model_dump(), indent=2, allow_nan=False) + "\n"


def profile(run: StoredRun) -> Profile:
    """The profile of a run that has steps with drafts, all suites pooled: it describes the checkpoint, not a suite."""
    run = run.published()
    k, fingerprint = run.meta.spec.k, run.meta.fingerprint
    engine = fingerprint.engine
    rows = acceptance.drafted_steps(run.steps)
    block = engine.rejection_sample_method == "block"
    marginal = [float((rows["accepted"] >= j).mean()) for j in range(1, k + 1)]
    mean = _rounded(1 + float(rows["accepted"].mean()))
    lengths = (1 + rows["accepted"]).value_counts().sort_index()
    return Profile(
        method=engine.method,
        draft_checkpoint=checkpoint(fingerprint.draft),
        target_model=checkpoint(fingerprint.target),
        num_speculative_tokens=k,
        max_supported_k=k,
        verification_method="block" if block else "longest_prefix",
        conditional_accept_rates=None if block else _conditional(marginal),
        marginal_accept_rates=None if block else [_rounded(rate) for rate in marginal],
        vectors_unavailable_reason="block verification gives no longest-prefix distribution" if block else None,
        mean_accept_length=mean,
        mean_accept_length_per_request=_rounded(acceptance.tau_request_mean(run.turns) or 1.0),
        accept_length_model="chain_analytic" if find(engine.method).chain and not block else "measured_per_k",
        accept_length_by_k={str(k): mean},
        acceptance_length_histogram={str(length): int(count) for length, count in lengths.items()},
        per_category=_per_category(run),
        measurement_conditions=_conditions(run),
        validation=None if block else _validation(mean, marginal),
    )


def _conditional(marginal: list[float]) -> list[float]:
    """P(position j accepted | all before it were): ratios of the marginals; 0 where nothing gets that far."""
    return [_rounded(rate / before) if before else 0.0 for before, rate in pairwise([1.0, *marginal])]


def _validation(mean: float, marginal: list[float]) -> Validation:
    implied = 1 + sum(marginal)
    rises = [
        {"position": float(index), "value": rate, "previous": before}
        for index, (before, rate) in enumerate(pairwise(marginal), start=1)
        if rate > before
    ]
    return Validation(
        mean_consistency=Consistency(
            implied_mean_accept_length=_rounded(implied),
            reported_mean_accept_length=mean,
            abs_delta=_rounded(abs(implied - mean)),
            tolerance=TOLERANCE,
            passed=abs(implied - mean) <= TOLERANCE,
        ),
        marginal_monotonicity=Monotonicity(passed=not rises, violations=rises),
    )


def _per_category(run: StoredRun) -> dict[str, dict[str, float | int]] | None:
    """Mean acceptance length and steps by category, its suite before it where there are several; None for one."""
    categories = run.turns[[*REQUEST, "category"]].assign(category=run.turns["category"].fillna("none"))
    rows = acceptance.drafted_steps(run.steps).merge(categories, on=REQUEST)
    several = len(run.suites) > 1
    names = rows["suite"].astype(str) + "/" + rows["category"].astype(str) if several else rows["category"]
    by_category = rows["accepted"].groupby(pd.Series(names, name="name"), sort=True).agg(["mean", "size"])
    if len(by_category) < 2:
        return None
    return {
        str(name): {"mean_accept_length": _rounded(1 + mean), "decode_steps": int(size)}
        for name, mean, size in by_category.itertuples()
    }


def _conditions(run: StoredRun) -> dict[str, Any]:
    """What the numbers hold for, and their errors."""
    meta, spec, fingerprint = run.meta, run.meta.spec, run.meta.fingerprint
    return {
        "dataset": list(fingerprint.suites),
        "datasets": {name: suite.model_dump() for name, suite in fingerprint.suites.items()},
        "num_samples": run.conversations,
        "decode_steps": len(acceptance.drafted_steps(run.steps)),
        **_undrafted(run),
        "sampling": fingerprint.sampling.model_dump(),
        "draft_sampling": spec.drafting,
        "seeds": fingerprint.seeds,
        "concurrency": spec.batch,
        "engine": {name: getattr(fingerprint.engine, name) for name in CONDITIONS},
        "patches": fingerprint.patches,
        "mean_accept_length_by_dataset": {suite: _tau(run, suite) for suite in run.suites},
        "interval": "95 %, clustered by conversation: new prompts like these and new seeds",
        "fingerprint": meta.fingerprint_hash,
        "measured_at": meta.created,
    }


def _undrafted(run: StoredRun) -> dict[str, Any]:
    """What must be said where many steps had no drafts: the proposal's mean is of the others."""
    note = acceptance.undrafted_note(run.steps)
    if note is None:
        return {}
    every = acceptance.all_steps(run.steps).sum()
    steps = {"steps_without_drafts": int((run.steps["drafted"] == 0).sum())}
    return steps | {"mean_accept_length_all_steps": _rounded(every["tokens"] / every["steps"]), "note": note}


def _tau(run: StoredRun, suite: str) -> dict[str, float | None]:
    length: dict[str, float | None] = acceptance.summarise(*run.suite(suite), run.meta.spec.k)["tau"]
    return length


def _rounded(value: float) -> float:
    return round(value, DIGITS)
