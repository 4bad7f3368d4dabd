"""Runs against the first one: the rows of the report's table and a plain sentence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from speceval.errors import NotComparable, UserError
from speceval.estimate.comparison import compare_runs
from speceval.estimate.replay import is_replay
from speceval.show.report.text import cut
from speceval.store import StoredRun

LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One estimate of a run's difference from the first run on one suite; `compared` as `acceptance.compare` gives."""

    suite: str
    run: str
    quantity: str
    compared: dict[str, Any]

    @property
    def decided(self) -> bool:
        """Whether it differs, at `LEVEL` over all comparisons of the report."""
        p = self.compared["p_adjusted"]
        return p is not None and p < LEVEL

    @property
    def decision(self) -> str:
        """What is decided, in three words."""
        if self.decided:
            return "more tokens" if self.compared["relative_percent"]["value"] > 0 else "fewer tokens"
        return "not told apart" if self.compared["p_adjusted"] is not None else "nothing to judge by"


@dataclass(frozen=True)
class Differences:
    """What there is to say of several runs together; empty for a single one."""

    rows: list[Row] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    """Protocol fields that were let through, and how requests were paired where that is unusual."""
    few: list[str] = field(default_factory=list)
    """Why a sentence may say too much: conversations that are few, or one that outweighs the others."""
    refused: str = ""
    """Why the runs are not compared."""


def find(runs: Sequence[StoredRun], labels: Sequence[str], allow: Sequence[str] = ()) -> Differences:
    """Compare as `speceval compare` does. Runs that it refuses are told as `refused`, not raised."""
    if len(runs) < 2:
        return Differences()
    try:
        found = compare_runs(runs, allow)
    except NotComparable as error:
        return Differences(refused=str(error))
    except (UserError, ValueError) as error:
        if allow and "--allow" in str(error):
            raise
        return Differences(refused=str(error))
    rows, sentences, few = [], [], []
    cautions = [f"compared although this differs: {line}" for line in found["allowed"]]
    for compared in found["comparisons"]:
        suite, label = cut(compared["suite"]), labels[compared["run"] - 1]
        rows.append(Row(suite, label, length(runs[0]), compared))
        clock = compared["tau_all_steps"]
        for quantity, more in (("tau of all steps", clock), ("tau Rao–Blackwell", compared["tau_rb"])):
            if more:
                rows.append(Row(suite, label, quantity, compared | more))
        name = "tau of all steps" if clock else length(runs[0])
        few += [f"{suite}, {label}: {warning}" for warning in (compared | (clock or {}))["warnings"]]
        sentences.append(sentence(labels[0], label, suite, compared | (clock or {}), name))
        if compared["pair_by"] == "conversation":
            cautions.append(f"{suite}, {label}: no seed is in both runs, so all seeds of a conversation count together")
    return Differences(rows, sentences, cautions, few)


def length(run: StoredRun) -> str:
    """The acceptance length that is compared."""
    return "tau committed" if is_replay(run) else "tau"


def sentence(first: str, other: str, suite: str, compared: dict[str, Any], name: str = "tau") -> str:
    """What one comparison of `name` says, decided at 5 % over all of the report's comparisons (Holm)."""
    verb = "emits" if name == "tau" else "commits"
    relative, p = compared["relative_percent"], compared["p_adjusted"]
    if relative["value"] is None:
        return f"On {suite} nothing can be compared: no conversation has drafted steps in both runs"
    change = f"{relative['value']:+.1f} %"
    if relative["low"] is None:
        return f"On {suite} {other} has {change} {name} over {first}; one conversation says nothing about others"
    change += f" [{relative['low']:+.1f}, {relative['high']:+.1f}]"
    on = f"on {compared['conversations']:,} conversations of {suite}"
    if p is None:
        return (
            f"{other} against {first}: {change} {on}, the same in every conversation, which leaves no error to judge by"
        )
    if p < LEVEL:
        word = "more" if relative["value"] > 0 else "fewer"
        return f"{other} {verb} {word} tokens per step than {first}: {change} {on}"
    return f"{other} and {first} cannot be told apart: {change} {on}"
