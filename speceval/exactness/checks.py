"""The tests of one verification: which laws a correct engine's continuations follow, and whether these do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speceval.exactness import law
from speceval.exactness.draw import BONUS, FIRST, Continuations, Plan
from speceval.exactness.reference import Filter, Floats, Reference, Tokens, boundary

CELLS = 64
"""Most cells of a token test: larger vocabularies are folded into so many groups at random (`law.fold`)."""
FEWEST, LEAST_DRAFTS = 200, 30
"""Draws that a test of tokens needs, and one of acceptance."""
NODES = 200
"""Most prefixes of one length whose next tokens are cells of their own in the joint test."""

JOINT, TOKENS, RANKS = "joint law", "tokens", "ranks"
SUPPORT, GREEDY, BROKEN = "support", "greedy", "broken p"
ACCEPTED, DRAFTS, FAVOURED, RECOVERED = "accepted", "drafts", "favoured", "recovered"

VERIFIED = "all verified"
"""Label of all tokens but the first of each continuation, together."""
DRAFTED = "all drafts"
"""Label of all draft positions together."""


@dataclass(frozen=True)
class Check:
    """One test. What a test has not is None; `p` is None where there were too few draws to test."""

    kind: str
    where: str
    n: int
    p: float | None = None
    tv: float | None = None
    noise: float | None = None
    detectable: float | None = None
    observed: float | None = None
    expected: float | None = None
    z: float | None = None
    groups: int | None = None
    """Random groups of tokens that the law was tested over; None: over the tokens themselves."""


def planned(k: int, tokens: int) -> int:
    """At most this many tests are made of n tokens at K drafts: what the error rate is shared among."""
    return 4 + 2 * (max(k + 2, tokens) + 1) + 4 * (k + 1)


def exact_checks(
    plan: Plan, found: Continuations, reference: Reference, k: int, alpha: float, difference: float = 0.0
) -> list[Check]:
    """All tests against the target's own probabilities, each at level `alpha`.

    `difference`: the largest one seen between the engine's log-probabilities and the reference's.
    """
    edge = boundary(difference)
    filter_ = Filter(plan.temperature, plan.top_k, plan.top_p, edge)
    pool = Pool(labels_of(plan, found, k), reference.vocabulary, plan.seed)
    joint: list[tuple[Floats, Floats]] = []
    wrong = 0
    for prompt in range(len(plan.prompts)):
        mine = [i for i in range(plan.samples) if plan.prompt(i) == prompt]
        sampled = [i for i in mine if not plan.greedy(i)]
        pool.add(plan, found, sampled, prompt, reference, filter_)
        joint.append(tree(plan, [found.tokens[i] for i in sampled], prompt, reference, filter_))
        wrong += _not_greedy(reference, plan.prompts[prompt], [found.tokens[i] for i in mine if plan.greedy(i)], edge)
    expected, observed = (np.concatenate(cells) for cells in zip(*joint, strict=True))
    checks = [_of_fit(JOINT, "first tokens", round(expected.sum()), law.pearson(expected, observed, alpha, len(joint)))]
    checks += pool.checks(alpha)
    if plan.greedy_share:
        number = sum(plan.greedy(i) for i in range(plan.samples))
        checks.append(_of_count(GREEDY, "requests at T=0", number, wrong))
    return checks + acceptance_checks(found, alpha)


def two_sample_checks(plan: Plan, found: Continuations, baseline: Sequence[Tokens], alpha: float) -> list[Check]:
    """All tests against continuations drawn without speculation; `baseline` holds the same prompts in turn."""
    ours: list[list[Tokens]] = [[] for _ in plan.prompts]
    theirs: list[list[Tokens]] = [[] for _ in plan.prompts]
    for index in range(plan.samples):
        ours[plan.prompt(index)].append(found.tokens[index])
        theirs[plan.prompt(index)].append(baseline[index])
    checks = [_two_trees(ours, theirs, alpha)]
    for t in range(plan.tokens):
        checks.append(_two_marginals(ours, theirs, t, alpha))
    checks.append(_two_clusters(ours, theirs, plan.seed, alpha))
    return checks + acceptance_checks(found, alpha)


# ------------------------------------------------------------------------------------- tokens, given what came before


@dataclass(frozen=True)
class Labels:
    """Which test each token belongs to: `names`, and one row of indices into them per continuation."""

    names: list[str]
    rows: list[tuple[int, ...]]


def labels_of(plan: Plan, found: Continuations, k: int) -> Labels:
    """By slot of the verify step, or by place in the continuation if some step had no drafts.

    Steps with and without drafts can be told apart by their outcome only, and a label must not depend on the token
    it is for.
    """
    if found.undrafted:
        names = [f"token {t + 1}" for t in range(plan.tokens)]
        return Labels(names, [tuple(range(len(tokens))) for tokens in found.tokens])
    names = ["token 1", *(f"draft {j}" for j in range(1, k + 1)), "bonus"]
    place = {FIRST: 0, BONUS: k + 1}
    return Labels(names, [tuple(place.get(slot, slot) for slot in slots) for slots in found.slots])


class Pool:
    """Sums over tokens drawn from laws that differ, by label: what was expected, its covariance and what came."""

    def __init__(self, labels: Labels, vocabulary: int, seed: int) -> None:
        self._labels = labels
        self._cells = min(vocabulary, CELLS)
        ids = np.arange(vocabulary)
        self._cell = ids if vocabulary <= CELLS else law.fold(ids, CELLS, seed)
        self._groups = CELLS if vocabulary > CELLS else None
        self._fold = np.eye(self._cells)[self._cell]
        count = len(labels.names)
        self._expected = np.zeros((count, self._cells))
        self._covariance = np.zeros((count, self._cells, self._cells))
        self._observed = np.zeros((count, self._cells))
        self._ranks: list[list[Floats]] = [[] for _ in range(count)]
        self._impossible = 0
        self._noise = np.random.default_rng(seed)

    def add(
        self, plan: Plan, found: Continuations, indices: list[int], prompt: int, reference: Reference, filter_: Filter
    ) -> None:
        """The sampled continuations `indices` of one prompt."""
        copies: dict[Tokens, list[int]] = {}
        for index in indices:
            copies.setdefault(found.tokens[index], []).append(index)
        different = list(copies)
        for start, logits in reference.logits(plan.prompts[prompt], different):
            part = different[start : start + len(logits)]
            lengths = [len(tokens) for tokens in part]
            laws, certain = filter_.laws(np.concatenate([logits[i, :n] for i, n in enumerate(lengths)]))
            rows = np.split(np.arange(len(laws)), np.cumsum(lengths)[:-1])
            drawn = np.concatenate([row for row, tokens in zip(rows, part, strict=True) for _ in copies[tokens]])
            labels = np.concatenate([self._labels.rows[index] for tokens in part for index in copies[tokens]])
            kept = certain[drawn]
            self._add_rows(laws, np.concatenate(part), drawn[kept], labels[kept])

    def _add_rows(self, laws: Floats, tokens: NDArray, drawn: NDArray, labels: NDArray) -> None:
        """Laws [R, V] and tokens [R] of prefixes; `drawn` [n] names the row of each draw, `labels` [n] its test."""
        share, folded = laws @ self._fold, self._cell[tokens]
        low, at = law.rank_transform(laws, tokens, np.zeros(len(tokens))), laws[np.arange(len(tokens)), tokens]
        self._impossible += int((at[drawn] == 0).sum())
        for label in np.unique(labels):
            mine = drawn[labels == label]
            self._expected[label] += share[mine].sum(0)
            self._covariance[label] -= share[mine].T @ share[mine]
            self._observed[label] += np.bincount(folded[mine], minlength=self._cells)
            self._ranks[label].append(low[mine] + at[mine] * self._noise.random(len(mine)))

    def checks(self, alpha: float) -> list[Check]:
        """Tokens and ranks at every label and at all but the first together, and the support."""
        names, later = self._labels.names, range(1, len(self._labels.names))
        found: list[Check] = []
        for name, labels in [*((name, [i]) for i, name in enumerate(names)), (VERIFIED, list(later))]:
            expected = self._expected[labels].sum(0)
            n = round(expected.sum())
            if n < FEWEST:
                found += [Check(TOKENS, name, n), Check(RANKS, name, n)]
                continue
            covariance = self._covariance[labels].sum(0) + np.diag(expected)
            fit = law.conditional(expected, covariance, self._observed[labels].sum(0), alpha)
            ranks = np.concatenate([u for label in labels for u in self._ranks[label]])
            tokens = replace(_of_fit(TOKENS, name, n, fit), groups=self._groups)
            found += [tokens, _of_fit(RANKS, name, n, law.uniform(ranks, alpha))]
        total = round(self._expected.sum())
        return [*found, _of_count(SUPPORT, "all tokens", total, self._impossible)]


# --------------------------------------------------------------------------------------------- the first tokens jointly


def tree(
    plan: Plan, continuations: Sequence[Tokens], prompt: int, reference: Reference, filter_: Filter
) -> tuple[Floats, Floats]:
    """Expected and observed counts of the likely beginnings: cells [C] that partition all continuations.

    The tree grows from the empty prefix; prefixes that expect n/NODES or more get cells for their next tokens. What is
    grown depends on the target's law alone, so the cells are fixed and the counts multinomial.
    """
    n = len(continuations)
    counts = Counter(tokens[:d] for tokens in continuations for d in range(plan.tokens + 1) if d <= len(tokens))
    stops = {tokens[-1] for tokens in continuations if len(tokens) < plan.tokens}
    grown: list[tuple[Tokens, float]] = [((), float(n))]
    cells: list[tuple[float, float]] = []
    for depth in range(plan.tokens):
        if not grown:
            break
        laws, certain = reference.next_laws(plan.prompts[prompt], [prefix for prefix, _ in grown], filter_)
        following: list[tuple[Tokens, float]] = []
        for (prefix, mass), row, sure in zip(grown, laws, certain, strict=True):
            if not sure:
                cells.append((mass, counts[prefix]))
                continue
            rest, unseen = mass, counts[prefix]
            for token in np.flatnonzero(mass * row >= law.LEAST).tolist():
                child, share = (*prefix, token), float(mass * row[token])
                rest, unseen = rest - share, unseen - counts[child]
                if share >= max(n / NODES, 2 * law.LEAST) and depth + 1 < plan.tokens and token not in stops:
                    following.append((child, share))
                else:
                    cells.append((share, counts[child]))
            cells.append((max(rest, 0.0), unseen))
        grown = following
    expected, observed = (np.array(column, float) for column in zip(*cells, strict=True))
    # Tokens outside the support leave counts in cells that expect nothing: they stay in the neighbour's.
    return law.merge(expected, observed)


def _two_trees(ours: Sequence[Sequence[Tokens]], theirs: Sequence[Sequence[Tokens]], alpha: float) -> Check:
    """Homogeneity of the beginnings; the tree is grown on both samples together, which the null does not mind."""
    a: list[float] = []
    b: list[float] = []
    for first, second in zip(ours, theirs, strict=True):
        counts = [Counter(tokens[:d] for tokens in part for d in range(len(tokens) + 1)) for part in (first, second)]
        least = max((len(first) + len(second)) / NODES, 4 * law.LEAST)
        children: dict[Tokens, list[Tokens]] = {}
        for prefix in sorted({*counts[0], *counts[1]}):
            if prefix:
                children.setdefault(prefix[:-1], []).append(prefix)
        for leaf in _leaves((), children, counts, least):
            a.append(leaf[0])
            b.append(leaf[1])
    fit = law.two_samples(np.array(a), np.array(b), alpha)
    return _of_fit(JOINT, "first tokens", int(sum(a)), fit)


def _leaves(
    prefix: Tokens, children: dict[Tokens, list[Tokens]], counts: list[Counter[Tokens]], least: float
) -> Iterator[tuple[int, int]]:
    here = (counts[0][prefix], counts[1][prefix])
    if sum(here) < least or prefix not in children:
        yield here
        return
    for child in children[prefix]:
        yield from _leaves(child, children, counts, least)
    ended = tuple(count[prefix] - sum(count[child] for child in children[prefix]) for count in counts)
    yield ended[0], ended[1]


def _two_marginals(ours: Sequence[Sequence[Tokens]], theirs: Sequence[Sequence[Tokens]], t: int, alpha: float) -> Check:
    """Homogeneity of the tokens at one place, by prompt."""
    counts: list[Counter[tuple[int, int]]] = [Counter(), Counter()]
    for prompt, pair in enumerate(zip(ours, theirs, strict=True)):
        for count, part in zip(counts, pair, strict=True):
            count.update((prompt, tokens[t]) for tokens in part if t < len(tokens))
    cells = sorted({*counts[0], *counts[1]})
    a, b = (np.array([count[cell] for cell in cells], float) for count in counts)
    n, name = int(a.sum()), f"token {t + 1}"
    if min(n, b.sum()) < FEWEST:
        return Check(TOKENS, name, n)
    return _of_fit(TOKENS, name, n, law.two_samples(a, b, alpha))


def _two_clusters(
    ours: Sequence[Sequence[Tokens]], theirs: Sequence[Sequence[Tokens]], seed: int, alpha: float
) -> Check:
    """Homogeneity of all tokens but the first of each continuation, which is the unit (`law.of_clusters`)."""
    largest = max((max(tokens) for part in (*ours, *theirs) for tokens in part), default=0)
    ids = np.arange(largest + 1)
    cells = min(len(ids), CELLS)
    cell = ids if len(ids) <= CELLS else law.fold(ids, CELLS, seed)

    def vectors(part: Sequence[Tokens]) -> Floats:
        counts = np.zeros((len(part), cells))
        for row, tokens in enumerate(part):
            np.add.at(counts[row], cell[list(tokens[1:])], 1)
        return counts

    pairs = [(vectors(a), vectors(b)) for a, b in zip(ours, theirs, strict=True)]
    n = int(sum(a.sum() for a, _ in pairs))
    if sum(map(len, ours)) < FEWEST or n < FEWEST:
        return Check(TOKENS, VERIFIED, n)
    groups = CELLS if len(ids) > CELLS else None
    return replace(_of_fit(TOKENS, VERIFIED, n, law.of_clusters(pairs, alpha)), groups=groups)


# --------------------------------------------------------------------------------------------------------- acceptance


def acceptance_checks(found: Continuations, alpha: float) -> list[Check]:
    """Acceptance against sum min(p, q), drafts against q, tokens against p where q > p, and replacements of rejected
    drafts against the residual: by position, and over all positions, where a small bias that they share shows best.

    From what the verifier saw, so a wrong p goes unnoticed here; the tokens tell that.
    """
    if found.recorded is None:
        return []
    rows, checks = found.recorded, []
    if found.counts["broken"]:
        checks.append(
            _of_count(BROKEN, "verified rows", len(rows["alpha"]) + found.counts["broken"], found.counts["broken"])
        )
    one_by_one = found.rejection != "block"
    reached = rows["reached"].astype(bool)
    positions = np.unique(rows["position"]).astype(int).tolist()
    for position in positions:
        here = rows["position"] == position
        if one_by_one:
            checks += _of_drafts(f"draft {position}", rows, reached & here, alpha)
        else:
            checks += _of_block(f"draft {position}", rows, here, alpha)
    if one_by_one and len(positions) > 1:
        checks += _of_drafts(DRAFTED, rows, reached, alpha)
    return checks


def _of_block(where: str, rows: dict[str, NDArray], here: NDArray[np.bool_], alpha: float) -> list[Check]:
    """The tests of the rows of one position in the step, `here`, that hold for block verification: it looks at all of a
    step's drafts, and keeps those up to one with a `chance` that they alone decide. One step's decisions depend on
    each other, so that there is none over all positions.
    """
    n = int(here.sum())
    if n < LEAST_DRAFTS:
        return [Check(ACCEPTED, where, n)]
    chance = np.clip(rows["chance"][here].astype(float), 0, 1)
    alphas, spread = np.clip(rows["alpha"][here].astype(float), 0, 1), rows["spread"][here].astype(float)
    checks = [_of_drift(ACCEPTED, where, law.drift(rows["accepted"][here], chance, chance * (1 - chance), alpha))]
    if spread.sum() >= 1e-3:
        checks.append(_of_drift(DRAFTS, where, law.drift(rows["ratio"][here], alphas, spread, alpha)))
    return checks


def _of_drafts(where: str, rows: dict[str, NDArray], here: NDArray[np.bool_], alpha: float) -> list[Check]:
    """The tests of the recorded rows `here`."""
    n = int(here.sum())
    if n < LEAST_DRAFTS:
        return [Check(ACCEPTED, where, n)]
    alphas = np.clip(rows["alpha"][here].astype(float), 0, 1)
    checks = [_of_drift(ACCEPTED, where, law.drift(rows["accepted"][here], alphas, alphas * (1 - alphas), alpha))]
    spread = rows["spread"][here].astype(float)
    if spread.sum() < 1e-3:  # the drafts are certain: nothing was drawn
        return checks
    mass = np.clip(rows["favoured_mass"][here].astype(float), 0, 1)
    checks += [
        _of_drift(DRAFTS, where, law.drift(rows["ratio"][here], alphas, spread, alpha)),
        _of_drift(FAVOURED, where, law.drift(rows["favoured"][here], mass, mass * (1 - mass), alpha)),
    ]
    new = here & ~rows["accepted"].astype(bool)
    if new.sum() >= LEAST_DRAFTS:
        means, spreads = (rows[name][new].astype(float) for name in ("pull_mean", "pull_spread"))
        checks.append(_of_drift(RECOVERED, where, law.drift(rows["pull"][new], means, spreads, alpha)))
    return checks


def _not_greedy(reference: Reference, prompt: Sequence[int], continuations: Sequence[Tokens], edge: float) -> int:
    """How many continuations hold a token that is not the target's likeliest one; logits within `edge` are equal."""
    copies = Counter(continuations)
    different, wrong = list(copies), 0
    if not different:
        return 0
    for start, logits in reference.logits(prompt, different):
        for row, logit in enumerate(logits):
            tokens = different[start + row]
            chosen = logit[np.arange(len(tokens)), tokens]
            wrong += copies[tokens] * bool((chosen < logit[: len(tokens)].max(1) - edge).any())
    return wrong


def _of_fit(kind: str, where: str, n: int, fit: law.Fit) -> Check:
    return Check(kind, where, n, p=fit.p, tv=fit.tv, noise=fit.noise, detectable=fit.detectable)


def _of_drift(kind: str, where: str, found: law.Drift) -> Check:
    return Check(
        kind,
        where,
        found.n,
        p=found.p,
        detectable=found.detectable,
        observed=found.total / found.n,
        expected=found.expected / found.n,
        z=found.z,
    )


def _of_count(kind: str, where: str, n: int, wrong: int) -> Check:
    """Events that a correct engine never shows: one is enough."""
    return Check(kind, where, n, p=0.0 if wrong else 1.0, observed=wrong, expected=0)
