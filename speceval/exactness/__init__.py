"""`speceval verify`: does speculative decoding on this engine sample as the target alone would?

See docs/trust/is-it-exact.md.
"""

from __future__ import annotations

from speceval.exactness.law import Verdict
from speceval.exactness.run import Settings, verify
from speceval.exactness.verdict import EXIT_CODES, Report

__all__ = ["EXIT_CODES", "Report", "Settings", "Verdict", "verify"]
