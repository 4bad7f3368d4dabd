"""How often does the gate say pass, fail and inconclusive? Simulated on stored runs, so that the true loss is known.

A population is made from a stored run of the zoo at T=1: every conversation with all its samples. The new run's
population is the same with its accepted drafts thinned until the wanted share of tau is lost. Then conversations are
drawn with replacement, a sample of each for the baseline and another for the new run, and the gate is asked. So the
spread between prompts and that of the sampling are those of the stored run. The verdicts of many draws are computed at
once; the first of every entry are also put to `speceval.estimate.gate.check`, and a difference stops the script.

    python scripts/gate_power.py [--draws 4000]       # writes results/statistics/gate.csv, docs/images/gate-power.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import bisect
from scipy.special import stdtr
from scipy.stats import gamma

from speceval.estimate import gate, statistics
from speceval.estimate.acceptance import drafted_steps
from speceval.estimate.statistics import Floats
from speceval.files import write_whole
from speceval.store import read_run

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "results" / "statistics" / "gate.csv"
FIGURE = ROOT / "docs" / "images" / "gate-power.png"
MARGIN = 0.02
CONVERSATIONS = {80: "MT-Bench", 164: "HumanEval", 1319: "GSM8K"}
LOSSES = (0, 1, 2, 3, 4, 5, 6, 8, 10)
"""Percent of tau."""
COPIES = 4
"""Thinned copies of every sample: the new run's population is not tied to one thinning."""
SEED = 1
BLOCK = 30_000
"""Conversations computed at once: what fits a processor's cache."""
CHECKED = 20
"""Draws of every entry that are also put to the gate one by one."""


@dataclass(frozen=True)
class Scenario:
    """A stored run and how the new drafter is worse."""

    run: str
    losses: tuple[int, ...]
    first_position: int = 1
    """Acceptance is thinned from this position on."""
    uneven: bool = False
    """The loss differs between conversations: each one's exponent is from an exponential distribution."""


KEY_LOSSES = (0, 2, 5)
SCENARIOS = {
    "even": Scenario("demo/kl-eagle3-T1-probabilistic", LOSSES),
    "uneven between prompts": Scenario("demo/kl-eagle3-T1-probabilistic", KEY_LOSSES, uneven=True),
    "late positions only": Scenario("demo/kl-eagle3-T1-probabilistic", KEY_LOSSES, first_position=3),
    "poor drafter": Scenario("demo-all/kl-medusa-T1-probabilistic", KEY_LOSSES),
}


class Population:
    """All samples of a run's conversations, whole and thinned."""

    def __init__(self, scenario: Scenario) -> None:
        run = read_run(ROOT / "results" / "reference" / scenario.run)
        self.k = run.meta.spec.k
        steps = drafted_steps(run.steps)
        self.accepted = np.tile(steps["accepted"].to_numpy(), (COPIES, 1))
        self.drafted = steps["drafted"].to_numpy()
        conversation, names = pd.factorize(steps["conversation"], sort=True)
        seed, seeds = pd.factorize(steps["seed"], sort=True)
        self.shape = (len(names), len(seeds))
        self.sample = np.ravel_multi_index((conversation, seed), self.shape)
        rng = np.random.default_rng(SEED)
        # The chance to keep is f or, where conversations differ, f to a power of mean 1: a draft falls where u > f.
        worth = (
            gamma(1).ppf((rng.permutation(len(names)) + 0.5) / len(names)) if scenario.uneven else np.ones(len(names))
        )
        fate = rng.random((*self.accepted.shape, self.k)) ** (1 / worth[conversation])[:, None]
        fate[:, :, : scenario.first_position - 1] = 0
        self.falls_at = np.maximum.accumulate(fate, axis=-1)  # f below entry j-1: no more than j-1 are accepted

    def thinned(self, keep: float) -> NDArray[np.int64]:
        """Accepted tokens of every copy of every step when a draft keeps its acceptance with probability `keep`."""
        survive = (self.falls_at <= keep).sum(-1)
        return np.minimum(self.accepted, survive)

    def tables(self, loss: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Counts of all samples, shape (conversations, samples, columns): the baseline's, and after losing `loss`."""
        tau = 1 + self.accepted.mean()
        lost = self.accepted
        if loss:
            keep = bisect(lambda f: (1 + self.thinned(f).mean()) / tau - (1 - loss), 0.0, 1.0, xtol=1e-7)
            lost = self.thinned(keep)
        return self._counts(self.accepted[:1]), self._counts(lost)

    def columns(self) -> list[str]:
        """Names of the columns of `tables`."""
        return ["steps", "accepted", *(f"{name}_{j}" for name in ("accepted", "reached") for j in range(1, self.k + 1))]

    def _counts(self, accepted: NDArray[np.int64]) -> NDArray[np.int64]:
        conversations, seeds = self.shape
        copies = len(accepted)

        def total(values: NDArray[Any]) -> NDArray[np.int64]:
            rows = [np.bincount(self.sample, row, conversations * seeds).reshape(self.shape) for row in values]
            return np.concatenate(rows, axis=1).astype(np.int64)

        drafted = np.broadcast_to(self.drafted, accepted.shape)
        positions = range(1, self.k + 1)
        found = [total(np.ones((copies, len(self.drafted)))), total(accepted)]
        found += [total(accepted >= j) for j in positions]
        found += [total((accepted >= j - 1) & (drafted >= j)) for j in positions]
        return np.stack(found, axis=-1)


def simulate(population: Population, loss: float, conversations: int, draws: int) -> dict[str, Any]:
    """Shares of the verdicts in `draws` pairs of runs over `conversations` conversations."""
    tables, columns = population.tables(loss), population.columns()
    rng = np.random.default_rng([SEED, conversations, round(1000 * loss)])
    block = max(1, BLOCK // conversations)
    found: list[NDArray[np.bool_]] = []
    while len(found) * block < draws:
        which = rng.integers(population.shape[0], size=(block, conversations))
        base, new = (table[which, rng.integers(table.shape[1], size=which.shape)] for table in tables)
        found.append(decide(base, new, population.k))
        if len(found) * block <= max(CHECKED, block):
            one_by_one(base[:CHECKED], new[:CHECKED], columns, found[-1])
    passes, fails, by_position = np.concatenate(found, axis=1)[:, :draws].mean(axis=1)
    tau = [float(table[..., :2].sum() / table[..., 0].sum()) for table in tables]
    return {
        "conversations": conversations,
        "loss_percent": 100 * (1 - tau[1] / tau[0]),
        "margin_percent": 100 * MARGIN,
        "base_tau": tau[0],
        "pass": passes,
        "fail": fails,
        "inconclusive": 1 - passes - fails,
        "fail_by_position_alone": by_position,
        "draws": draws,
    }


def decide(base: NDArray[np.int64], new: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """`gate.check` for many pairs of runs: whether each passes, fails, fails by a position alone; shape (3, draws).

    base, new: counts as `Population.columns` names them, shape (draws, conversations, columns).
    """
    old, fresh = (np.moveaxis(counts, -1, 0).astype(float) for counts in (base, new))
    change = paired(old[0] + old[1], old[0], fresh[0] + fresh[1], fresh[0], relative=True)
    tau_fails = 2 * p_below(change, -100 * MARGIN) <= gate.LEVEL
    p_values = []
    beyond = np.cumsum(old[2 : 2 + k].sum(-1)[::-1], axis=0)[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = np.minimum(1, MARGIN * (old[0] + old[1]).sum(-1) / beyond)
    for j, lost in enumerate(margins):
        accepted, reached, new_accepted, new_reached = (run[row + j] for run in (old, fresh) for row in (2, 2 + k))
        contrast = paired((1 - lost[:, None]) * accepted, reached, new_accepted, new_reached, relative=False)
        both = (reached > 0) & (new_reached > 0)
        counted = [(part * both).sum(-1) >= gate.LEAST_ACCEPTED for part in (accepted, new_reached)]
        p_values.append(np.where(counted[0] & counted[1] & (lost < 1), p_below(contrast, 0), np.nan))
    p = np.stack(p_values, axis=-1)
    tests = np.isfinite(p).sum(-1)
    position_fails = 2 * tests * np.where(np.isfinite(p), p, np.inf).min(-1) <= gate.LEVEL  # Holm's first step
    fails = tau_fails | ((tests > 0) & position_fails)
    passes = (statistics.estimate_bounds(change, 1 - 2 * gate.LEVEL)[0] > -100 * MARGIN) & ~fails
    return np.stack([passes, fails, fails & ~tau_fails])


def paired(a_x: Floats, a_y: Floats, b_x: Floats, b_y: Floats, relative: bool) -> statistics.Estimates:
    """`statistics.paired_ratio_difference` over the last axis of many draws."""
    both = (a_y > 0) & (b_y > 0)
    ratio_a, influence_a, weights_a = statistics._linearise(a_x, np.where(both, a_y, 0))
    ratio_b, influence_b, weights_b = statistics._linearise(b_x, np.where(both, b_y, 0))
    weights = (weights_a + weights_b) / 2
    if not relative:
        return statistics._estimates(ratio_b - ratio_a, influence_b - influence_a, weights)
    relation, scale = (ratio_b / ratio_a)[:, None], 100 / ratio_a[:, None]
    return statistics._estimates(100 * (relation[:, 0] - 1), scale * (influence_b - relation * influence_a), weights)


def p_below(found: statistics.Estimates, limit: float) -> Floats:
    """`statistics.p_value_below` of many draws."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t, a = (found.value - limit) / found.se, found.skew
        values: Floats = stdtr(found.df, t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)
    return values


def one_by_one(base: NDArray[np.int64], new: NDArray[np.int64], columns: list[str], at_once: NDArray[np.bool_]) -> None:
    """Ask `gate.check` about single draws; raises `AssertionError` where it differs from what was computed at once."""
    for old, fresh, passes, fails in zip(base, new, *at_once[:2, : len(base)], strict=True):
        tables = [{"": pd.DataFrame(counts, columns=columns)} for counts in (old, fresh)]
        verdict = gate.check(tables[0], tables[1], MARGIN).verdict
        assert (verdict is gate.Verdict.ok, verdict is gate.Verdict.fail) == (passes, fails), (verdict, passes, fails)


def table(draws: int) -> pd.DataFrame:
    """One row per scenario, number of conversations and true loss."""
    rows = []
    for name, scenario in SCENARIOS.items():
        population = Population(scenario)
        for conversations in CONVERSATIONS:
            for loss in scenario.losses:
                rows.append({"scenario": name} | simulate(population, loss / 100, conversations, draws))
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def figure(found: pd.DataFrame, path: Path) -> None:
    """The verdicts' shares against the true loss, a panel per number of conversations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    even = found[found["scenario"] == "even"]
    panes, axes = pyplot.subplots(1, len(CONVERSATIONS), figsize=(9.6, 3.5), sharey=True, layout="constrained")
    styles = {"pass": ("#0072B2", "o", "-"), "inconclusive": ("#E69F00", "s", ":"), "fail": ("#D55E00", "^", "--")}
    for pane, (conversations, size_of) in zip(axes, CONVERSATIONS.items(), strict=True):
        rows = even[even["conversations"] == conversations].sort_values("loss_percent")
        pane.axvline(100 * MARGIN, color="0.4", linewidth=0.8)
        pane.axhline(gate.LEVEL, color="0.4", linewidth=0.8, linestyle=(0, (1, 3)))
        for verdict, (colour, marker, line) in styles.items():
            pane.plot(
                rows["loss_percent"], rows[verdict], color=colour, marker=marker, linestyle=line, markersize=4.5,
                label=verdict, clip_on=False, zorder=3,
            )  # fmt: skip
        pane.set_title(f"{conversations:,} conversations ({size_of}'s size)", fontsize=10, loc="left")
        pane.set(xlabel="true loss of tau, %", xlim=(0, 10), ylim=(0, 1), xticks=range(0, 11, 2))
        pane.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of checks")
    axes[0].annotate("margin", (100 * MARGIN, 0.97), xytext=(3, 0), textcoords="offset points", fontsize=8, color="0.3")
    axes[0].annotate(
        "5 %", (10, gate.LEVEL), xytext=(0, 3), textcoords="offset points", fontsize=8, color="0.3", ha="right"
    )
    axes[-1].legend(frameon=False, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    panes.savefig(path, dpi=160)
    pyplot.close(panes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    found = table(args.draws)
    write_whole(args.out, found.to_csv(index=False, float_format="%.5g"))
    figure(found, args.figure)
    print(f"wrote {args.out} and {args.figure}")


if __name__ == "__main__":
    main()
