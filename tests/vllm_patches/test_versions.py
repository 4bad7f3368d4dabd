"""The supported span of vLLM is one fact, and what is written outside the code agrees with it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vllm_patches import versions

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_gpu_extra_is_the_supported_span() -> None:
    (requirement,) = map(Requirement, EXTRAS["gpu"])
    assert (requirement.name, requirement.specifier) == ("vllm", Requirement(f"vllm{versions.SPAN}").specifier)


def test_the_cpu_extra_is_a_release_that_was_read() -> None:
    (requirement,) = map(Requirement, EXTRAS["cpu"])
    assert requirement.name in versions.DISTRIBUTIONS
    assert [str(pin.version) for pin in requirement.specifier if str(pin.version) in versions.RELEASES]


def test_the_page_on_installation_names_the_supported_span() -> None:
    assert f"| vLLM {versions.FIRST} to {versions.LAST} |" in (ROOT / "docs" / "start" / "install.md").read_text()


@pytest.mark.parametrize("version", [*versions.RELEASES, f"{versions.LAST}.7", f"{versions.FIRST}.0+cpu"])
def test_releases_of_the_span_are_supported(version: str) -> None:
    assert versions.supported(version)


@pytest.mark.parametrize(
    "version", ["0.28.9", f"{versions.NEXT}.0", f"{versions.NEXT}.0rc1", f"1.{versions.LAST[2:]}.0"]
)
def test_others_are_not(version: str) -> None:
    assert not versions.supported(version)
