"""What the functions of the API return. Each shows itself: rich in a terminal, a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

from rich.jupyter import JupyterMixin

from speceval.errors import UserError
from speceval.estimate.statistics import Interval
from speceval.store import StoredRun
from speceval.store.schema import versioned

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Estimate:
    """An estimate with its confidence interval; None for what the data do not determine.

    As text: "2.314 ± 0.018", "2.467 [2.315, 2.740]" where the interval is lopsided.
    """

    value: float | None
    low: float | None
    high: float | None
    se: float | None = None
    """Standard error, in the unit of `value`."""

    @classmethod
    def of(cls, found: Interval | Mapping[str, Any]) -> Estimate:
        """From an interval of the estimators."""
        values = found.as_dict() if isinstance(found, Interval) else found
        return cls(**{name: values.get(name) for name in ("value", "low", "high", "se")})

    def __format__(self, spec: str) -> str:
        """`spec`: digits after the point, as in f"{tau:2}" [3]."""
        from speceval.show.cells import plus_minus

        return plus_minus({"value": self.value, "low": self.low, "high": self.high}, int(spec or 3))

    def __str__(self) -> str:
        return format(self)


class Run(StoredRun, JupyterMixin):
    """A stored run: its request and record (`meta`), its two tables (`turns`, `steps`), and the numbers they give.

    `turns` has a row for each request, `steps` one for each verify step (docs/build/record.md); `dataclasses.replace`
    gives a run with other tables.
    """

    @classmethod
    def of(cls, run: StoredRun) -> Run:
        """The same run."""
        return run if isinstance(run, Run) else cls(run.directory, run.meta, run.turns, run.steps)

    def __repr__(self) -> str:
        spec = self.meta.spec
        return (
            f"<run {self.directory.name}: {spec.target} with {spec.draft}, T={spec.temperature:g}, K={spec.k}, "
            f"{spec.drafting} drafting, {self.conversations} conversations, {self.meta.status}>"
        )

    def __rich__(self) -> Any:
        from speceval.show.tables import run_tables

        return run_tables(self)

    @property
    def architecture(self) -> str:
        """What tables call the drafter's architecture: "EAGLE-3"."""
        from speceval.catalog.methods import find

        return find(self.meta.fingerprint.engine.method).display

    def tau(self, suite: str = "", definition: str = "tau") -> Estimate:
        """Acceptance length of a suite, with a 95 % interval over new prompts like these; unit: the conversation.

        suite: may be left out where there is one. definition: "tau" (1 + accepted draft tokens per verify step),
        "tau_rb", "tau_committed", "tau_paper" or "tau_request_mean" (docs/trust/how-sure.md). Raises `UserError`.
        """
        summary = self.summary(suite)
        if definition not in (known := [name for name in summary if name.startswith("tau")]):
            raise UserError(f"definition {definition!r}: no such acceptance length: there are {', '.join(known)}")
        return Estimate.of(summary[definition])

    def summary(self, suite: str = "") -> dict[str, Any]:
        """Every estimator of a suite, as `speceval run --json` has it below `suites`.

        Counts of conversations, samples, turns, steps and tokens; each acceptance length as {value, low, high, se};
        `positions`: for each draft position the shares of steps that accept it, "unconditional" and "conditional" (of
        the steps that reach it), with intervals; `variance`: its parts; `warnings`. suite: may be left out where there
        is one. Raises `UserError`.
        """
        from speceval.show.tables import suite_summary

        return suite_summary(self, self._suite(suite))

    def counts(self) -> dict[str, pd.DataFrame]:
        """For each suite the counts per conversation that `check_counts` takes (docs/measure/may-it-be-released.md).

        Index: conversation. Columns: steps, drafted, accepted, committed; accepted_j, drafted_j, reached_j of position
        j = 1 … K.
        """
        from speceval.estimate import gate

        def of(table: pd.DataFrame, suite: str) -> pd.DataFrame:
            return table[table["suite"] == suite]

        k = self.meta.spec.k
        return {name: gate.count(of(self.steps, name), of(self.turns, name), k) for name in self.suites}

    def as_json(self) -> dict[str, Any]:
        """What `speceval run --json` prints: plain data with a schema number."""
        from speceval.show.tables import run_json

        return versioned("run", run_json(self))

    def _suite(self, name: str) -> str:
        if name in self.suites or (not name and len(self.suites) == 1):
            return name or self.suites[0]
        raise UserError(f"suite {name!r}: {self.directory} has {', '.join(self.suites)}: name one of them")


@dataclass(frozen=True)
class Difference:
    """One run against the first one, on one suite: paired by conversation, with 95 % intervals."""

    suite: str
    draft: str
    """Of the run that is compared."""
    tau_a: Estimate
    """Of the first run."""
    tau_b: Estimate
    difference: Estimate
    """b - a."""
    relative_percent: Estimate
    """100 (b / a - 1)."""
    p_value: float | None
    """Of no difference, two-sided."""
    p_adjusted: float | None
    """The same for all rows of the comparison together (Holm)."""
    detectable_percent: float | None
    """The smallest change, in percent of tau, that a test at 5 % would have seen in 80 % of cases."""
    conversations: int
    """Pairs."""
    samples: int
    """Pairs of conversation and seed."""
    positions: list[dict[str, Any]]
    """For each draft position: `position`, rates `a` and `b`, `difference` {value, low, high, se}, `p_adjusted`."""
    warnings: list[str]


class Comparison(JupyterMixin, Sequence[Difference]):
    """Runs against the first one: a sequence with a `Difference` for each suite and run."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        drafts = {run["number"]: run["draft"] for run in content["runs"]}
        self._rows = [_difference(row, drafts[row["run"]]) for row in content["comparisons"]]

    @overload
    def __getitem__(self, index: int) -> Difference: ...

    @overload
    def __getitem__(self, index: slice) -> list[Difference]: ...

    def __getitem__(self, index: int | slice) -> Difference | list[Difference]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self._rows)

    def __repr__(self) -> str:
        lines = "; ".join(f"{row.draft} on {row.suite}: {row.relative_percent:1} %" for row in self)
        return f"<comparison with {self._content['runs'][0]['draft']}: {lines}>"

    def __rich__(self) -> Any:
        from speceval.show.comparison import comparison_tables

        return comparison_tables(self._content)

    @property
    def allowed(self) -> list[str]:
        """Differences between the protocols that were let through, one line each."""
        return list(self._content["allowed"])

    def as_json(self) -> dict[str, Any]:
        """What `speceval compare --json` prints: plain data with a schema number."""
        return versioned("compare", self._content)


def _difference(row: dict[str, Any], draft: str) -> Difference:
    estimates = ("tau_a", "tau_b", "difference", "relative_percent")
    values = {field.name: row[field.name] for field in fields(Difference) if field.name != "draft"}
    return Difference(**values | {"draft": draft} | {name: Estimate.of(row[name]) for name in estimates})


class Explanation(JupyterMixin):
    """What other tools would have printed for a run."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __repr__(self) -> str:
        return f"<explanation of {self._content['run']}>"

    def __rich__(self) -> Any:
        from speceval.show.explanation import explanation_tables

        return explanation_tables(self._content)

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each number: suite, tool, quantity, value, difference (from tau), reason."""
        import pandas as pd

        columns = ["suite", "tool", "quantity", "value", "difference", "reason"]
        rows = [{"suite": name, **row} for name, suite in self._content["suites"].items() for row in suite["tools"]]
        return pd.DataFrame(rows, columns=columns)

    def as_json(self) -> dict[str, Any]:
        """What `speceval explain --json` prints: plain data with a schema number."""
        return versioned("explain", self._content)
