"""From tests to one verdict, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.jupyter import JupyterMixin

from speceval.exactness.checks import ACCEPTED, TOKENS, VERIFIED, Check
from speceval.exactness.law import Verdict

ALPHA = 1e-7
"""Shared by all tests of one verification (Bonferroni)."""
FALSE_ALARMS = 1e-6
"""Promised chance to call an exact engine biased; the rest of it is room for the approximations in the tails."""


EXIT_CODES = {Verdict.exact: 0, Verdict.biased: 1, Verdict.unsettled: 2}


@dataclass(frozen=True, repr=False)
class Report(JupyterMixin):
    """One finished verification. A terminal (rich) and a notebook show its tables."""

    settings: dict[str, Any]
    engine: dict[str, Any]
    """The settings as the engine resolved them."""
    missing: list[str]
    """Patches that this engine needs and has not."""
    reference: str
    checks: list[Check]
    alpha: float
    """Level of each test."""
    bias: float
    """The bias, as a total variation distance, that the run had to be able to see."""
    counts: dict[str, int]
    rows_tested: bool = True
    """Whether p, q and the verifier's decisions were recorded and tested too."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """The tests that a correct engine would not fail, the clearest first."""
        return sorted((c for c in self.checks if c.p is not None and c.p < self.alpha), key=lambda c: c.p or 0.0)

    @property
    def smallest_bias(self) -> float:
        """Smallest bias of verified tokens that would have been seen with power 0.9; 1 if none was tested.

        A total variation distance, of large vocabularies that between the laws over random groups of tokens.
        """
        return (self._deciding and self._deciding.detectable) or 1.0

    @property
    def _deciding(self) -> Check | None:
        """The test that says what bias would have been seen."""
        return next((c for c in self.checks if (c.kind, c.where) == (TOKENS, VERIFIED)), None)

    @property
    def verdict(self) -> Verdict:
        """Biased if any test failed; exact if none did and a bias of the size asked for would have been seen."""
        if self.failed:
            return Verdict.biased
        return Verdict.exact if self.smallest_bias <= self.bias else Verdict.unsettled

    def line(self) -> str:
        """The verdict as one sentence."""
        seen = f"{self.smallest_bias:.3g}"
        groups = self._deciding.groups if self._deciding else None
        over = f" over {groups} random groups of tokens" if groups else ""
        if self.verdict is Verdict.biased:
            worst = self.failed[0]
            return (
                f"biased: {len(self.failed)} of {self._tested} tests failed, clearest {worst.kind} ({worst.where}): "
                f"p = {worst.p:.1e} (limit {self.alpha:.1e}, false alarms of the whole run < {FALSE_ALARMS:g})"
            )
        if self.verdict is Verdict.exact:
            return (
                f"exact: none of {self._tested} tests failed (false alarms < {FALSE_ALARMS:g}); a bias of verified "
                f"tokens from {seen} in total variation{over} would have been seen with power 0.9"
            )
        samples = self.settings["samples"]
        needed = math.ceil(samples * (self.smallest_bias / self.bias) ** 2 * 1.05 / 100) * 100
        return (
            f"not enough samples: no test failed, but a bias below {seen}{over} would have gone unseen and "
            f"{self.bias:g} was asked for: repeat with --samples {needed}"
        )

    @property
    def _tested(self) -> int:
        return sum(c.p is not None for c in self.checks)

    @property
    def untested(self) -> list[str]:
        """Places that too few draws reached."""
        return list(dict.fromkeys(c.where for c in self.checks if c.p is None))

    def __repr__(self) -> str:
        return f"<verification: {self.line()}>"

    def __rich__(self) -> Any:
        return tables(self)

    def as_json(self) -> dict[str, Any]:
        """Plain data, without NaN or infinity."""
        return {
            "verdict": self.verdict.value,
            "line": self.line(),
            "smallest_bias": self.smallest_bias,
            "false_alarms": FALSE_ALARMS,
            "tests": self._tested,
            "failed": len(self.failed),
            "untested": self.untested,
            **{key: value for key, value in asdict(self).items() if key != "checks"},
            "checks": [
                {name: value for name, value in asdict(check).items() if value is not None and _finite(value)}
                for check in self.checks
            ],
        }


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def tables(report: Report) -> Any:
    """The report for a terminal (a rich renderable)."""
    from rich.console import Group

    from speceval.fitting import Fitting

    settings, engine = report.settings, report.engine
    head = (
        f"{settings['target']} + {settings['draft']} ({engine['method']}, K={engine['k']}), "
        f"T={settings['temperature']:g}, vLLM {engine['vllm']} ({engine['runner']} runner, {engine['device']}), "
        f"{settings['samples']} continuations of up to {settings['tokens']} tokens, {report.reference}"
    )
    laws = [c for c in report.checks if c.tv is not None or (c.p is None and c.kind != ACCEPTED)]
    others = [c for c in report.checks if c not in laws]
    notes = [f"patch missing: {line}" for line in report.missing]
    if report.untested:
        notes.append("too few draws to test: " + ", ".join(report.untested))
    if not report.rows_tested:
        notes.append("p, q and the decisions were not recorded: accepting and replacing were not tested row by row")
    notes += [f"{name.replace('_', ' ')}: {value}" for name, value in report.counts.items() if value]
    fitting = (Fitting(table, heads=2) for table in (_laws(laws, report.alpha), _events(others, report.alpha)))
    return Group(head, *fitting, *notes, report.line())


def _laws(checks: Sequence[Check], alpha: float) -> Any:
    table = _table("law of", "where", "draws", "TV", "noise", "seen from", "p")
    for c in checks:
        if c.tv is None:
            table.add_row(c.kind, c.where, f"{c.n:,}", "–", "–", "–", "too few")
        else:
            table.add_row(
                c.kind, c.where, f"{c.n:,}", f"{c.tv:.4f}", f"{c.noise:.4f}", f"{c.detectable:.3g}", _p(c, alpha)
            )
    return table


def _events(checks: Sequence[Check], alpha: float) -> Any:
    table = _table("rate of", "where", "cases", "observed", "due", "z", "p")
    for c in checks:
        if c.p is None:
            table.add_row(c.kind, c.where, f"{c.n:,}", "–", "–", "–", "too few")
        else:
            z = "" if c.z is None else f"{c.z:+.2f}"
            table.add_row(c.kind, c.where, f"{c.n:,}", f"{c.observed:.4g}", f"{c.expected:.4g}", z, _p(c, alpha))
    return table


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=index > 1)
    return table


def _p(check: Check, alpha: float) -> str:
    assert check.p is not None
    return f"{check.p:.2g}" + (" FAILED" if check.p < alpha else "")
