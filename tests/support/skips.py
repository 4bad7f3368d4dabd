"""Green means run: where CI=true, a test that is skipped without leave fails the session. Elsewhere it is a warning.

`expected_skips.txt` gives leave: tests, or whole files, under the reason for which they may be skipped. The reason must
hold on this machine, so that one machine's lack excuses no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

EXPECTED = Path(__file__).with_name("expected_skips.txt")


def read(text: str) -> dict[str, str]:
    """Test id without parameters, or a file -> reason; "[reason]" stands before its tests, "#" begins a comment."""
    expected, reason = {}, ""
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        if line.startswith("["):
            reason = line.strip("[]")
        else:
            expected[line] = reason
    return expected


class Watch:
    """Pytest plugin: collects what was skipped, and judges it at the session's end (with xdist, in the first process).

    expected: as from `read`. lacks: reason -> whether it holds here.
    """

    def __init__(self, expected: Mapping[str, str], lacks: Mapping[str, Callable[[], bool]]) -> None:
        self.expected, self.lacks = expected, lacks
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test was skipped; one that is expected to fail is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = _reason(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole module was skipped."""
        if report.skipped:
            self.skipped[report.nodeid] = _reason(report)

    def unexpected(self) -> list[str]:
        """A line for each skip without leave."""
        return [f"{test}: {why}" for test, why in sorted(self.skipped.items()) if not self.allows(test, why)]

    def allows(self, test: str, why: str) -> bool:
        """Whether the test may be skipped for this reason on this machine."""
        reason = self.expected.get(test.partition("[")[0], self.expected.get(test.partition("::")[0]))
        return reason is not None and why.startswith(reason) and self.lacks[reason]()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a session that was good but for its skips."""
        ci = os.environ.get("CI") == "true" and not hasattr(session.config, "workerinput")
        if ci and session.exitstatus == pytest.ExitCode.OK and self.unexpected():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name them."""
        if lines := self.unexpected():
            terminalreporter.section("skipped, and not in tests/support/expected_skips.txt for this machine")
            for line in lines:
                terminalreporter.line(line)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
