"""One self-contained page about one or more runs: `speceval report`."""

from __future__ import annotations

from speceval.show.report.build import write

__all__ = ["write"]
