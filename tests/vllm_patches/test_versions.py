"""The supported span of vLLM is one fact, and whatever is outside it is called unsupported."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vllm_patches import versions
from vllm_patches.ledger import LEDGER
from vllm_patches.versions import NEXT, unsupported, within

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_gpu_extra_is_the_supported_span() -> None:
    assert versions.REQUIREMENT in EXTRAS["gpu"]


def test_the_cpu_extra_is_a_release_that_was_read() -> None:
    (requirement,) = [line for line in map(Requirement, EXTRAS["cpu"]) if line.name in versions.DISTRIBUTIONS]
    assert [str(pin.version) for pin in requirement.specifier if str(pin.version) in versions.RELEASES]


def test_the_page_on_installation_names_the_supported_span() -> None:
    assert f"| vLLM {versions.FIRST} to {versions.LAST} |" in (ROOT / "docs" / "start" / "install.md").read_text()


@pytest.mark.parametrize(
    "version", [*versions.RELEASES, f"{versions.LAST}.7", f"{versions.FIRST}.0+cpu", "0.33.1.dev3+g0123abc"]
)
def test_releases_of_the_span_are_supported(version: str) -> None:
    assert unsupported(version) is None


@pytest.mark.parametrize(
    "version",
    ["0.28.9", f"{NEXT}.0", f"{NEXT}.0rc1", f"1.{versions.LAST[2:]}.0", "0.1.dev1+g0123abc", "dev", "", None],
)
def test_any_other_version_even_an_unreadable_one_is_named_with_the_span(version: str | None) -> None:
    line = unsupported(version)
    assert line is not None and f"vLLM {version} is not supported" in line and versions.REQUIREMENT in line


@pytest.mark.parametrize("version", ["0.28.1", f"{NEXT}.0", "1.0", "dev"])
def test_no_row_of_the_ledger_patches_an_unsupported_version(version: str) -> None:
    """The warning on such a version says that nothing is patched."""
    assert not [patch.id for patch in LEDGER if within(patch.versions, version)]
