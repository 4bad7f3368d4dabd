"""The versions of vLLM that the patches and the rules here were written for. Imports nothing of vLLM."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SUPPORTED = ">=0.29,<0.34"
"""Versions whose sampling code was read (PEP 440)."""
REQUIREMENT = f"vllm{SUPPORTED}"
"""What pip installs."""


def within(versions: str, installed: str | None) -> bool:
    """Whether a version of vLLM is among `versions` (PEP 440); none, or one that cannot be read, is not."""
    try:
        return SpecifierSet(versions).contains(Version(installed or ""), prereleases=True)
    except InvalidVersion:
        return False


def unsupported(installed: str | None) -> str | None:
    """Why nothing is known about this version of vLLM, in one line with the mend; None if it is supported."""
    if within(SUPPORTED, installed):
        return None
    return (
        f"vLLM {installed} is not supported: install {REQUIREMENT}: the patches know no other version's sampling code"
    )
