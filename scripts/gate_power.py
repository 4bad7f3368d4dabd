"""How often does the gate say pass, fail and inconclusive? Simulated on stored runs, so that the true loss is known.

A population is made from a stored run of the zoo at T=1: every conversation with all its samples. The new run's
population is the same with its accepted drafts thinned until the wanted share of tau is lost. Then conversations are
drawn with replacement, a sample of each for the baseline and another for the new run, and the gate is asked. So the
spread between prompts and that of the sampling are those of the stored run. The verdicts of many draws are computed at
once; the first of every entry are also put to `speceval.estimate.gate.check`, and a difference stops the script.

Harder cases are drawn from the populations of scripts/populations.py (`hard_rows`): losses of exactly the margin that
few prompts carry, poor drafters, several seeds; a drafter that is better or equal everywhere; a loss at one position
behind a gain at another; checks repeated as their own advice says. Every case is decided by the gate in use and by the
one before it knew of them: Hall's bounds alone, pooled rates of the positions, a pass from any number of conversations.

    python scripts/gate_power.py [--draws 2000] [--only PART …]  # writes results/statistics/gate.csv and the figure
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import in_parts
import numpy as np
import pandas as pd
import populations
from numpy.typing import NDArray
from scipy.optimize import bisect
from scipy.special import logit, stdtr
from scipy.stats import gamma

from speceval.estimate import gate, statistics
from speceval.estimate.acceptance import drafted_steps
from speceval.estimate.statistics import Floats
from speceval.store import read_run

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "results" / "statistics" / "gate.csv"
FIGURE = ROOT / "docs" / "images" / "gate-power.png"
MARGIN = 0.02
CONVERSATIONS = {80: "MT-Bench", 164: "HumanEval", 1319: "GSM8K"}
HARD_SIZES = (20, 80, 164)
SEEDS = (1, 4, 8)
"""Samples of each conversation that are summed."""
AT_THE_MARGIN = ("even loss", "8 % of the prompts lose", "a tenth gains, the rest lose more")
"""Effects of `populations` whose loss becomes the margin."""
MOST = 20_000
"""Conversations that a repeated check may ask for before the user gives up."""
LOSSES = (0, 1, 2, 3, 4, 5, 6, 8, 10)
"""Percent of tau."""
COPIES = 4
"""Thinned copies of every sample: the new run's population is not tied to one thinning."""
METHODS = {"in use": False, "before": True}
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


def simulate(population: Population, loss: float, conversations: int, draws: int) -> list[dict[str, Any]]:
    """Shares of the verdicts in `draws` pairs of runs over `conversations` conversations, a row for each method."""
    tables = population.tables(loss)
    rng = np.random.default_rng([SEED, conversations, round(1000 * loss)])

    def pairs(count: int) -> list[NDArray[np.int64]]:
        which = rng.integers(population.shape[0], size=(count, conversations))
        return [table[which, rng.integers(table.shape[1], size=which.shape)] for table in tables]

    shares = verdicts(pairs, conversations, draws, population.k, MARGIN)
    tau = [float(table[..., :2].sum() / table[..., 0].sum()) for table in tables]
    facts = {
        "conversations": conversations,
        "loss_percent": 100 * (1 - tau[1] / tau[0]),
        "margin_percent": 100 * MARGIN,
        "base_tau": tau[0],
    }
    return [facts | row for row in shares]


def verdicts(
    pairs: Callable[[int], Sequence[NDArray[Any]]], conversations: int, draws: int, k: int, margin: float
) -> list[dict[str, Any]]:
    """Shares of the verdicts on `draws` pairs of runs; pairs(n) draws n of them, shape (n, conversations, columns)."""
    block = max(1, BLOCK // conversations)
    found: dict[str, list[NDArray[np.bool_]]] = {method: [] for method in METHODS}
    for done in range(0, draws, block):
        base, new = pairs(min(block, draws - done))
        for method, before in METHODS.items():
            found[method].append(decide(base, new, k, margin, before))
        if done <= max(CHECKED, block):
            one_by_one(base[:CHECKED], new[:CHECKED], k, margin, found["in use"][-1])
    rows = []
    for method, blocks in found.items():
        passes, fails, by_position = np.concatenate(blocks, axis=1).mean(axis=1)
        shares = {"pass": passes, "fail": fails, "inconclusive": 1 - passes - fails}
        rows.append({"method": method} | shares | {"fail_by_position_alone": by_position, "draws": draws})
    return rows


def decide(base: NDArray[Any], new: NDArray[Any], k: int, margin: float, before: bool = False) -> NDArray[np.bool_]:
    """`gate.check` for many pairs of runs: whether each passes, fails, fails by a position alone; shape (3, draws).

    base, new: counts as `columns` names them, shape (draws, conversations, columns). before: without what the gate has
    learned of rare losses and of the mix of conversations.
    """
    old, fresh = (np.moveaxis(counts, -1, 0).astype(float) for counts in (base, new))
    change = statistics.paired_estimates(old[0] + old[1], old[0], fresh[0] + fresh[1], fresh[0], relative=True)
    below = hall_alone if before else statistics.tail
    tau_fails = 2 * below(change, -100 * margin) <= gate.LEVEL
    risen = gate.risen_beyond_doubt(change)
    p_values = []
    beyond = np.cumsum(old[2 : 2 + k].sum(-1)[::-1], axis=0)[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = np.minimum(1, margin * (old[0] + old[1]).sum(-1) / beyond)
    for j, lost in enumerate(margins):
        accepted, reached, new_accepted, new_reached = (run[row + j] for run in (old, fresh) for row in (2, 2 + k))
        both = (reached > 0) & (new_reached > 0)
        enough = np.minimum((accepted * both).sum(-1), (new_reached * both).sum(-1)) >= gate.LEAST_ACCEPTED
        among = (accepted, reached, new_accepted, new_reached)
        if before:
            p = below(contrast(among, lost), 0.0)
        else:
            of_all = below(contrast(standardised(accepted, old[0], new_accepted, fresh[0]), lost * risen), 0.0)
            p = np.where(risen, of_all, np.fmax(below(contrast(standardised(*among), lost), 0.0), of_all / k))
        p_values.append(np.where(enough & (lost < 1), p, np.nan))
    p = np.stack(p_values, axis=-1)
    tests = np.isfinite(p).sum(-1)
    position_fails = 2 * tests * np.where(np.isfinite(p), p, np.inf).min(-1) <= gate.LEVEL  # Holm's first step
    fails = tau_fails | ((tests > 0) & position_fails)
    passes = pass_bound(change, old[1], margin, before) > -100 * margin
    return np.stack([passes & ~fails, fails, fails & ~tau_fails])


def pass_bound(change: statistics.Estimates, accepted: Floats, margin: float, before: bool) -> Floats:
    """The lower bound that a pass needs above the margin; accepted: of the baseline's conversations."""
    confidence = 1 - 2 * gate.LEVEL
    if before:
        return statistics.estimate_bounds(change, confidence)[0]
    effective = statistics.effective_clusters(accepted)
    least = 100 * margin * np.sqrt((1 / statistics.RARE - 1) / effective)
    wider = change._replace(se=np.maximum(change.se, least))
    low = statistics.estimate_bounds(wider, confidence, cautious=True)[0]
    return np.where(effective >= statistics.LEAST_EFFECTIVE, low, -np.inf)


def contrast(counts: Sequence[Floats], lost: Floats) -> statistics.Estimates:
    """What a rate has above its old value less the share `lost` of it; counts: accepted and tried, old and new."""
    accepted, tried, new_accepted, new_tried = counts
    kept = (1 - lost[:, None]) * accepted
    return statistics.paired_estimates(kept, tried, new_accepted, new_tried, relative=False)


def standardised(*counts: Floats) -> list[Floats]:
    """Accepted and tried of both runs, as if both had tried the position equally often in each conversation."""
    accepted, reached, new_accepted, new_reached = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.nan_to_num(reached * new_reached / (reached + new_reached))
        rates = [np.nan_to_num(x / y) for x, y in ((accepted, reached), (new_accepted, new_reached))]
    return [weight * rates[0], weight, weight * rates[1], weight]


def hall_alone(found: statistics.Estimates, limit: float) -> Floats:
    """One-sided p-value of "the truth is not below `limit`" by Hall's transformation alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t, a = (found.value - limit) / found.se, found.skew
        values: Floats = stdtr(found.df, t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)
    return values


def columns(k: int) -> list[str]:
    """Names of the columns of counts."""
    return ["steps", "accepted", *(f"{name}_{j}" for name in ("accepted", "reached") for j in range(1, k + 1))]


def one_by_one(base: NDArray[Any], new: NDArray[Any], k: int, margin: float, at_once: NDArray[np.bool_]) -> None:
    """Ask `gate.check` about single draws; raises `AssertionError` where it differs from what was computed at once."""
    for old, fresh, passes, fails in zip(base, new, *at_once[:2, : len(base)], strict=True):
        tables = [{"": pd.DataFrame(counts, columns=columns(k))} for counts in (old, fresh)]
        verdict = gate.check(tables[0], tables[1], margin).verdict
        assert (verdict is gate.Verdict.ok, verdict is gate.Verdict.fail) == (passes, fails), (verdict, passes, fails)


def kind_rows(name: str, draws: int) -> Iterator[dict[str, Any]]:
    """Rows of one of `SCENARIOS`."""
    population = Population(SCENARIOS[name])
    for conversations in CONVERSATIONS:
        for loss in SCENARIOS[name].losses:
            for row in simulate(population, loss / 100, conversations, draws):
                yield {"scenario": name, "seeds": 1} | row


def hard_rows(name: str, draws: int) -> Iterator[dict[str, Any]]:
    """One of `populations`: at a loss of exactly the margin, and where nothing is lost."""
    for effect in ("none", *AT_THE_MARGIN):
        counts = populations.pair(name, effect, seeds=max(SEEDS))
        for seeds in SEEDS:
            lost = 0.0 if effect == "none" else -populations.change(*counts, seeds)
            for conversations in HARD_SIZES:
                scenario = f"{name}: {'no loss' if effect == 'none' else effect}"
                yield from hard_row(scenario, counts, seeds, conversations, lost, lost / 100 or MARGIN, draws)


def position_rows(draws: int) -> Iterator[dict[str, Any]]:
    """Where one position is better or worse."""
    for scenario, counts in one_position().items():
        lost = -populations.change(*counts, 1)
        for conversations in CONVERSATIONS:
            yield from hard_row(scenario, counts, 1, conversations, lost, MARGIN, draws // 2)


def hard_row(
    scenario: str,
    counts: tuple[populations.Counts, populations.Counts],
    seeds: int,
    conversations: int,
    lost: float,
    margin: float,
    draws: int,
) -> list[dict[str, Any]]:
    """Rows of one case, a row for each method; lost: of tau in truth, in percent."""
    rng = np.random.default_rng([SEED, conversations, seeds])

    def pairs(count: int) -> list[Floats]:
        return populations.draw(counts, seeds, conversations, count, rng)

    facts = {
        "scenario": scenario,
        "seeds": seeds,
        "conversations": conversations,
        "loss_percent": lost,
        "margin_percent": 100 * margin,
        "base_tau": populations.tau(counts[0]),
    }
    return [facts | row for row in verdicts(pairs, conversations, draws, populations.K, margin)]


def one_position() -> dict[str, tuple[populations.Counts, populations.Counts]]:
    """A drafter that gains at one position of hard prompts; drafters that lose at one position and gain at another.

    Better or equal: half of the prompts accept 0.85 at every position, the hard half .25 .45 .5 .5 .5; the new
    drafter's first rate in the hard half is higher, all else as it was; or half of every conversation; or, of steps
    that accept 0.97 or 0.02, the first rate of the latter, which moves tau little. One position:
    prompts as in "chat"; the logit of one position falls by 0.2 (the first), 0.8 or 2, that of another rises until tau
    is what it was.
    """
    found = {}
    even = populations.prompts(populations.Population(0, 0), 8000, seed=1)
    hard = (np.arange(8000) % 2 == 0)[:, None]

    def decoded(first: float, seed: int) -> populations.Counts:
        rates = np.where(hard, [[first, 0.45, 0.5, 0.5, 0.5]], [[0.85] * 5])
        return populations.decode(even, logit(rates), 1, seed)

    def within(hard: list[float], easy: float, seed: int) -> populations.Counts:
        rates = [np.repeat([half], 8000, axis=0) for half in (hard, [easy] * 5)]
        first, second = (populations.decode(even, logit(half), 1, 10 * seed + n) for n, half in enumerate(rates))
        return first + second

    for first in (0.45, 0.6):
        found[f"better or equal everywhere: .25 -> {first:g}"] = decoded(0.25, 2), decoded(first, 3)
    for before, after, later, easy in ((0.25, 0.6, [0.45, 0.5, 0.5, 0.5], 0.85), (0.02, 0.04, [0.02] * 4, 0.97)):
        old, new = (within([first, *later], easy, seed) for first, seed in ((before, 2), (after, 3)))
        found[f"better or equal in every conversation: {before:g} -> {after:g}".replace("0.", ".", 1)] = old, new
    chat = populations.prompts(populations.POPULATIONS["chat"], 8000, seed=1)
    base = populations.decode(chat, np.zeros((1, 5)), 1, 2)
    for loses, fall, gains in ((0, 0.2, 1), (2, 0.8, 0), (4, 2.0, 0)):

        def shifted(rise: float, loses: int = loses, fall: float = fall, gains: int = gains) -> populations.Counts:
            shift = np.zeros((1, 5))
            shift[0, loses], shift[0, gains] = -fall, rise
            return populations.decode(chat, np.repeat(shift, 8000, axis=0), 1, 3)

        rise = populations.solve(shifted, populations.tau(base), 0.0, 1.0, 1e-2)
        found[f"loss at position {loses + 1} behind a gain at {gains + 1}"] = base, shifted(rise)
    return found


def advice_rows(draws: int, checks: int = 3) -> Iterator[dict[str, Any]]:
    """Wrong passes when an inconclusive check is repeated with the conversations that it asks for, at the margin."""
    counts = populations.pair("chat", "even loss")
    lost = -populations.change(*counts, 1)
    rng = np.random.default_rng(SEED)
    names = columns(populations.K)
    passed = np.zeros(checks, int)
    for _ in range(draws):
        base, new = (table[0] for table in populations.draw(counts, 1, 80, 1, rng))
        for check in range(checks):
            tables = [{"": pd.DataFrame(table, columns=names)} for table in (base, new)]
            suite = gate.check(tables[0], tables[1], lost / 100).suites[0]
            if suite.verdict is gate.Verdict.ok:
                passed[check:] += 1
            if suite.needed is None or suite.needed > MOST:
                break
            more = (table[0] for table in populations.draw(counts, 1, suite.needed - len(base), 1, rng))
            base, new = (np.concatenate([table, fresh]) for table, fresh in zip((base, new), more, strict=True))
    for check, count in enumerate(passed, start=1):
        yield {
            "scenario": f"advice followed, up to {check} checks",
            "method": "in use",
            "seeds": 1,
            "conversations": 80,
            "loss_percent": lost,
            "margin_percent": lost,
            "base_tau": populations.tau(counts[0]),
            "pass": count / draws,
            "draws": draws,
        }


def parts(draws: int) -> in_parts.Parts:
    """What the table is made of: a part for each scenario and hard population, for positions, for repeated checks."""
    return {
        **{name: partial(kind_rows, name, draws) for name in SCENARIOS},
        **{name: partial(hard_rows, name, draws) for name in populations.POPULATIONS},
        "positions": partial(position_rows, draws),
        "advice": partial(advice_rows, draws // 4),
    }


def figure(found: pd.DataFrame, path: Path) -> None:
    """The verdicts' shares against the true loss, a panel per number of conversations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    even = found[(found["scenario"] == "even") & (found["method"] == "in use")]
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
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    in_parts.add_option(parser)
    args = parser.parse_args()
    figure(in_parts.write(parts(args.draws), args.out, args), args.figure)
    print(f"wrote {args.figure}")


if __name__ == "__main__":
    main()
