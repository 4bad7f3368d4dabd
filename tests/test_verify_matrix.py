"""scripts/verify_matrix.py: what its rows cover, without running them."""

from __future__ import annotations

import sys
from itertools import combinations, product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import verify_matrix

MEMORIES = {"cached", "preempted"}
SWITCHES = ("cut", "seeded", "greedy", "ahead")


def possible(a: str, b: str) -> bool:
    """Heads are three and not drafted ahead; with K=7 a prompt takes its last block at once and is not preempted."""
    heads = a in verify_matrix.HEADS and b in ("ahead", "4", "7")
    return not heads and {a, b} != {"7", "preempted"}


def test_any_two_conditions_of_the_v2_runner_meet_in_a_row() -> None:
    values: dict[str, set[str]] = {}
    met = set()
    for line in verify_matrix.V2_DESIGN:
        method, temperature, k, *words = line.split()
        row = {"method": method, "temperature": temperature, "k": k}
        row["memory"] = next(iter(MEMORIES & set(words)), "plain")
        row |= {word: word if word in words else f"not {word}" for word in SWITCHES}
        met |= set(combinations(row.items(), 2))
        for factor, value in row.items():
            values.setdefault(factor, set()).add(value)
    values["k"] -= {"3"}
    assert len(values["method"]) == 7 and len(values["temperature"]) == len(values["k"]) == len(values["memory"]) == 3
    for (one, its), (other, others) in combinations(values.items(), 2):
        for a, b in product(its, others):
            assert ((one, a), (other, b)) in met or not possible(a, b), (a, b)


def test_each_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in verify_matrix.plan()]
    assert len(names) == len(set(names))
