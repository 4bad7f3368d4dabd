"""What other tools would have printed for a stored generation, and why each number differs from `tau`.

Pure functions on data frames. Every definition with its source: docs/trust/other-tools.md.

A tool's *definition* is applied to the stored turns and steps. Where the tool's own settings would have made another
generation (other drafts, another sampling rule, fewer turns) the reason says so: that difference is not computable.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.estimate.books import require_order
from speceval.estimate.replay import is_replay
from speceval.store import REQUEST

if TYPE_CHECKING:
    from speceval.store import StoredRun

Rates = list[float | None]
"""One rate for each draft position 1 … K; None where the tool prints none."""


@dataclass(frozen=True)
class Row:
    """One number that a tool prints, with its difference from `tau` (None where either is undefined)."""

    tool: str
    quantity: str
    """The tool's own name for the number."""
    value: float | None
    difference: float | None
    reason: str
    positions: Rates | None = None
    positions_are: str | None = None
    """Definition of `positions`; None for tools that print no rate per position."""
    read_in: str = ""
    """Version of the tool in which the definition was read."""


@dataclass(frozen=True)
class Counts:
    """What the definitions are made of; see docs/trust/how-sure.md for the names."""

    k: int
    requests: int
    decoding: int
    """Requests with a step after the prefill."""
    steps: int
    """Steps with drafts: the denominator of `tau`."""
    undrafted: int
    padded: int
    drafted: int
    accepted: int
    short: int
    """Steps with fewer than K drafts."""
    committed: int
    """Committed tokens of all steps, those without drafts too; the prefill's are not among them."""
    output: int
    excess_stop: int
    """Tokens past the end of requests that ended at EOS or a stop token."""
    excess_length: int
    """Tokens past max_tokens."""

    @property
    def decode_steps(self) -> int:
        """Forward passes after the prefill, with drafts or without."""
        return self.steps + self.undrafted

    @property
    def emitted(self) -> int:
        """Tokens of these before anything is cut: accepted + 1 of each."""
        return self.accepted + self.decode_steps

    @property
    def excess(self) -> int:
        """Tokens past the end of their request."""
        return self.excess_stop + self.excess_length


def explain_run(run: StoredRun) -> dict[str, Any]:
    """Every suite of a run as JSON-ready values: run, status, problems, k, suites: {name: {tau, counts, tools}}.

    "tools" holds the fields of `Row`. Raises UserError for a replay, which accepts nothing and has no counts.
    """
    if is_replay(run):
        raise UserError(f"{run.directory}: a replay has no accepted tokens to count: name the run that it replays")
    require_order(run, "explain")
    spec = run.meta.spec
    suites = {}
    for name in run.suites:
        steps, turns = run.suite(name)
        rows = explain(steps, turns, spec.k, spec.temperature, spec.drafting)
        counts = count(steps, turns, spec.k)
        suites[name] = {
            "tau": acceptance.tau(steps),
            "counts": asdict(counts),
            "tools": [asdict(row) for row in rows],
        }
    kept = {"status": run.meta.status, "problems": run.meta.problems}
    return {"run": str(run.directory), **kept, "k": spec.k, "suites": suites}


def explain(steps: pd.DataFrame, turns: pd.DataFrame, k: int, temperature: float, drafting: str) -> list[Row]:
    """What each tool would have printed for one suite's tables (columns: `estimate.acceptance`), K, T and drafting."""
    counts, tau = count(steps, turns, k), acceptance.tau(steps)
    sampled = temperature > 0
    rows = [
        _vllm(steps, counts),
        _paper(steps, counts),
        *_sglang(counts, sampled),
        *_specforge(turns, counts, sampled),
        *_specdec_bench(steps, turns, counts, sampled and drafting == "probabilistic"),
        *_eagle(counts, sampled),
        _deepspec(steps, turns, counts, sampled and drafting != "probabilistic"),
        *_aiperf(turns, counts),
    ]
    return [_against(tau, *row) for row in rows]


def count(steps: pd.DataFrame, turns: pd.DataFrame, k: int) -> Counts:
    """The counts of one suite's tables."""
    rows = acceptance.drafted_steps(steps)
    stopped = turns["finish_reason"] == "stop"
    return Counts(
        k=k,
        requests=len(turns),
        decoding=int((turns["steps"] + turns["undrafted_steps"] > 0).sum()),
        steps=len(rows),
        undrafted=len(steps) - len(rows),
        padded=int(turns["padded_steps"].sum()),
        drafted=int(rows["drafted"].sum()),
        accepted=int(rows["accepted"].sum()),
        short=int((rows["drafted"] < k).sum()),
        committed=int(steps["committed"].sum()),
        output=int(turns["output_tokens"].sum()),
        excess_stop=int(turns.loc[stopped, "excess"].sum()),
        excess_length=int(turns.loc[~stopped, "excess"].sum()),
    )


READ_IN = {
    "vLLM log, vllm bench serve": "vLLM 0.32",
    "LK Losses paper": "arXiv 2602.23881",
    "SGLang server": "commit 01bb3c807f7e",
    "SGLang server, overlap scheduler": "commit 01bb3c807f7e",
    "SGLang requests": "SGLang 0.5.23",
    "SpecForge benchmarks": "main of 2026-08-08",
    "SpecForge benchmarks/sglang.py": "main of 2026-08-08",
    "Model-Optimizer specdec_bench": "main of 2026-08-21",
    "Model-Optimizer specdec_bench, its July branch": "branch of 2026-07-07",
    "EAGLE": "issue 195 of the authors' repository",
    "EAGLE answer files": "commit 12c417d302ef",
    "DeepSpec": "main of 2026-06-30",
    "aiperf": "aiperf 0.13.0",
}
"""Tool -> where its definition was read: another version may define it otherwise."""
RATES = ("Draft Acceptance Rate, mean", "Accepted per Verified, mean")
"""Quantities that are no lengths: their difference from tau says nothing."""

_Found = tuple[str, str, float | None, str, Rates | None, str | None]
"""tool, quantity, value, reason, positions, definition of the positions."""


def _against(
    tau: float | None, tool: str, quantity: str, value: float | None, reason: str, positions: Any, definition: Any
) -> Row:
    difference = None if tau is None or value is None or quantity in RATES else value - tau
    return Row(tool, quantity, value, difference, reason, positions, definition, READ_IN[tool])


def _vllm(steps: pd.DataFrame, counts: Counts) -> _Found:
    drafts = counts.steps + counts.padded
    reason = _join(
        "pooled over steps, before anything is cut at EOS or max_tokens: as tau",
        f"steps without drafts, not counted: {counts.undrafted:,}",
        f"padded steps, which no drafter drafted for, counted with nothing accepted: {counts.padded:,}",
    )
    accepted = [_rate(int((steps["accepted"] >= j).sum()), drafts) for j in range(1, counts.k + 1)]
    value = None if drafts == 0 else 1 + counts.accepted / drafts
    return (
        "vLLM log, vllm bench serve",
        "mean acceptance length",
        value,
        reason,
        accepted,
        "accepted at j / all steps, even those that drafted fewer than j",
    )


def _paper(steps: pd.DataFrame, counts: Counts) -> _Found:
    reason = (
        f"per drafted token, times K: {counts.accepted:,} of {counts.drafted:,} drafted tokens accepted; "
        f"steps with fewer than K={counts.k} drafts: {counts.short:,}"
    )
    return "LK Losses paper", "tau", acceptance.tau_paper(steps, counts.k), reason, None, None


def _sglang(counts: Counts, sampled: bool) -> tuple[_Found, ...]:
    own = "its own runs: greedy drafts and q = 0 unless --speculative-use-rejection-sampling" if sampled else ""
    undrafted = f"steps without drafts count as verify steps: {counts.undrafted:,}"
    cut = _join(f"tokens past the end dropped: {counts.excess:,}", undrafted, own)
    uncut = _join("counted before anything is cut at the end: as tau", undrafted, own)
    request = _join(*_output_over_steps(counts), own)
    steps = counts.decode_steps
    return (
        ("SGLang server", "accept len, avg_spec_accept_length", _rate(counts.committed, steps), cut, None, None),
        ("SGLang server, overlap scheduler", "the same", _rate(counts.emitted, steps), uncut, None, None),
        ("SGLang requests", "completion_tokens / spec_verify_ct", _rate(counts.output, steps), request, None, None),
    )


def _specforge(turns: pd.DataFrame, counts: Counts, sampled: bool) -> tuple[_Found, ...]:
    own = "its own runs: top_k = 1 unless set, greedy at any temperature" if sampled else ""
    reason = _join(*_output_over_steps(counts), own)
    value = _rate(counts.output, counts.decode_steps)
    verified = turns["steps"] + turns["undrafted_steps"]
    each = turns["output_tokens"][verified > 0] / verified[verified > 0]
    unweighted = _join(f"every request weighs the same: {len(each):,}", *_output_over_steps(counts), own)
    mean = float(each.mean()) if len(each) else None
    return (
        ("SpecForge benchmarks", "accept length", 1.0 if value is None else value, reason, None, None),
        ("SpecForge benchmarks/sglang.py", "mean of spec_accept_length", mean, unweighted, None, None),
    )


def _output_over_steps(counts: Counts) -> tuple[str, ...]:
    return (
        f"prefill tokens count as output of no step: {counts.requests:,} requests",
        f"tokens past the end dropped: {counts.excess:,}",
        f"steps without drafts count as verify steps: {counts.undrafted:,}",
    )


def _specdec_bench(steps: pd.DataFrame, turns: pd.DataFrame, counts: Counts, other: bool) -> tuple[_Found, ...]:
    chunks = stream_chunks(steps, turns)
    own = chunks.groupby(REQUEST, sort=False)["tokens"].mean()
    shortened = int((turns["finish_reason"] == "stop").sum())
    reason = _join(
        f"every request weighs the same: {len(own):,}",
        f"prefill tokens count as steps of length 1: {counts.requests:,}",
        f"tokens past the end dropped: {counts.excess:,}",
        f"EOS tokens dropped: {shortened:,}",
        f"requests left without a chunk: {counts.requests - len(own):,}" if len(own) < counts.requests else "",
        "its own runs: vLLM's default drafts, greedy" if other else "",
    )
    trimmed = trimmed_means(steps, turns)
    bare = int((turns["steps"] + turns["undrafted_steps"] <= 1).sum())
    july = _join(
        f"every request weighs the same: {len(trimmed):,}",
        "the prefill's chunk and the last one of every request dropped",
        f"requests with nothing left, which count as 1: {bare:,}",
        "its own runs: vLLM's default drafts, greedy" if other else "",
    )
    return (
        (
            "Model-Optimizer specdec_bench",
            "Average AL",
            float(own.mean()) if len(own) else None,
            reason,
            conditional_by_length(chunks["tokens"], counts.k),
            "chunks of more than j tokens / chunks of at least the next shorter length that occurs; prefills count",
        ),
        (
            "Model-Optimizer specdec_bench, its July branch",
            "Average AL",
            float(trimmed.mean()) if len(trimmed) else None,
            july,
            None,
            None,
        ),
    )


def trimmed_means(steps: pd.DataFrame, turns: pd.DataFrame) -> pd.Series:
    """Of each request the mean length of its chunks without the prefill's and the last; 1 where none is left.

    An EOS stays in its chunk (specdec_bench/metrics/base.py, `trim_beam_lengths`).
    """
    inner = steps[steps.duplicated(REQUEST, keep="last")]
    means = inner.groupby(REQUEST, sort=False)["committed"].mean()
    return means.reindex(pd.MultiIndex.from_frame(turns[REQUEST])).fillna(1.0)


def stream_chunks(steps: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """Tokens of every streamed chunk as specdec_bench keeps them: REQUEST columns and `tokens`, in order.

    The prefill's token is a chunk of one, then one chunk per step. An EOS that ends a request is cut off its last
    chunk, and a last chunk that is nothing else is dropped (specdec_bench/models/vllm.py).
    """
    prefill = turns[REQUEST].assign(step=0, tokens=1)
    later = steps[[*REQUEST, "step"]].assign(tokens=steps["committed"])
    chunks = pd.concat([prefill, later], ignore_index=True).sort_values([*REQUEST, "step"], ignore_index=True)
    stopped = turns.loc[turns["finish_reason"] == "stop", REQUEST]
    ended = pd.MultiIndex.from_frame(chunks[REQUEST]).isin(pd.MultiIndex.from_frame(stopped))
    last = ~chunks.duplicated(REQUEST, keep="last")
    chunks.loc[ended & last, "tokens"] -= 1
    return chunks[chunks["tokens"] > 0]


def conditional_by_length(lengths: pd.Series, k: int) -> Rates:
    """specdec_bench's Conditional_Acceptance_Rate for lengths 2 … K+1, which is positions 1 … K.

    For each length n that occurs: #(length >= n) / #(length >= the next shorter one that occurs).
    """
    found: dict[int, float] = {}
    total = before = len(lengths)
    values, occurrences = np.unique(lengths, return_counts=True)
    for length, number in zip(values.tolist(), occurrences.tolist(), strict=True):
        found[length] = total / before
        before, total = total, total - number
    return [found.get(j + 1) for j in range(1, k + 1)]


def _eagle(counts: Counts, sampled: bool) -> tuple[_Found, ...]:
    own = "its own runs: a draft tree" + (", and q taken as 1" if sampled else "")
    indices = counts.decode_steps - counts.decoding
    mean = _join(
        "accepted + 1 averaged over all steps: as tau",
        f"steps without drafts count: {counts.undrafted:,}",
        own,
    )
    logged = _join(
        f"idxs is the last step's index from 0, one step too few for each of {counts.decoding:,} requests",
        f"steps without drafts count: {counts.undrafted:,}",
        own,
    )
    return (
        ("EAGLE", "accepted + 1, mean over steps", _rate(counts.emitted, counts.decode_steps), mean, None, None),
        ("EAGLE answer files", "new_tokens / idxs, pooled", _rate(counts.emitted, indices), logged, None, None),
    )


def _deepspec(steps: pd.DataFrame, turns: pd.DataFrame, counts: Counts, other: bool) -> _Found:
    kept = cut_at_stop(steps, turns)
    own = ["sampled drafts"] if other else []
    first = turns["turn"] == 1
    if not first.all():
        value = _mean_emitted(kept[kept["turn"] == 1])
        own.append(f"first turns only ({int(first.sum()):,} requests: {'n/a' if value is None else f'{value:.3f}'})")
    reason = _join(
        f"tokens past EOS dropped, no bonus there: {counts.excess_stop:,}",
        f"tokens past max_tokens kept: {counts.excess_length:,}",
        f"steps without drafts count: {counts.undrafted:,}",
        f"its own runs: {', '.join(own)}" if own else "",
    )
    drafted, accepted = kept["proposed"], kept["kept"]
    return (
        "DeepSpec",
        "accept_len",
        _mean_emitted(kept) or 0.0,
        reason,
        [_rate(int((accepted >= j).sum()), int((drafted >= j).sum())) for j in range(1, counts.k + 1)],
        "accepted at j / steps that drafted j or more, drafts past EOS left out of both",
    )


def cut_at_stop(steps: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """The step rows with DeepSpec's `proposed`, `kept` (accepted drafts) and `emitted` tokens.

    A step whose accepted drafts hold the EOS keeps drafts up to it, proposes no more than these and emits no bonus
    token; all others emit accepted + 1, whatever max_tokens (deepspec/eval/base_evaluator.py).
    """
    requests = pd.MultiIndex.from_frame(turns.loc[turns["finish_reason"] == "stop", REQUEST])
    stopped = pd.MultiIndex.from_frame(steps[REQUEST]).isin(requests)
    inside = stopped & (steps["committed"] <= steps["accepted"])
    return steps.assign(
        proposed=steps["drafted"].mask(inside, steps["committed"]),
        kept=steps["accepted"].mask(inside, steps["committed"]),
        emitted=(steps["accepted"] + 1).mask(inside, steps["committed"]),
    )


def _mean_emitted(kept: pd.DataFrame) -> float | None:
    return _rate(int(kept["emitted"].sum()), len(kept))


def _aiperf(turns: pd.DataFrame, counts: Counts) -> tuple[_Found, ...]:
    verified = turns["steps"] + turns["padded_steps"]
    own = 1 + turns["accepted"][verified > 0] / verified[verified > 0]
    padded = f"padded steps counted with nothing accepted: {counts.padded:,}"
    mean = _join(
        f"every request weighs the same: {len(own):,}",
        f"requests without a verify step left out: {counts.requests - len(own):,}",
        padded,
    )
    pooled = _join("from vLLM's own records of each request, pooled over steps: as tau", padded)
    k = counts.k
    drafted = turns["drafted"][verified > 0] + k * turns["padded_steps"][verified > 0]
    accepted, there = turns["accepted"][verified > 0], verified[verified > 0]
    rate = _join("accepted / drafted tokens of a request, mean over requests: a rate, no length", padded)
    each = _join("(accepted + steps) / (drafted + steps) of a request, mean over requests: a rate, no length", padded)
    with_bonus = (accepted + there) / (drafted + there)
    drafts = counts.steps + counts.padded
    value = None if drafts == 0 else 1 + counts.accepted / drafts
    return (
        ("aiperf", "Acceptance Length, mean", float(own.mean()) if len(own) else None, mean, None, None),
        ("aiperf", "Token-Weighted Acceptance Length", value, pooled, None, None),
        (
            "aiperf",
            "Draft Acceptance Rate, mean",
            float((accepted / drafted).mean()) if len(own) else None,
            rate,
            None,
            None,
        ),
        ("aiperf", "Accepted per Verified, mean", float(with_bonus.mean()) if len(own) else None, each, None, None),
    )


def _rate(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
