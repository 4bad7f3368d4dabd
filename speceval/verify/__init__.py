"""`speceval verify`: does speculative decoding on this engine sample as the target alone would?

See docs/trust/is-it-exact.md.
"""

from __future__ import annotations

from speceval.law import Verdict
from speceval.verify.run import Settings, verify
from speceval.verify.verdict import EXIT_CODES, Report

__all__ = ["EXIT_CODES", "Report", "Settings", "Verdict", "verify"]
