"""Shared by all tests: where the benchmark files are, and the zoo."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real benchmark files: $SPECEVAL_DATA_DIR, or shared/data beside the checkout."""
    directory = Path(os.environ.get("SPECEVAL_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (directory / "gsm8k_test.jsonl").exists():
        pytest.skip(f"no benchmark files in {directory}: set SPECEVAL_DATA_DIR")
    return directory


@pytest.fixture(scope="session")
def zoo() -> dict[str, Path]:
    """Directories of the zoo's target and of the demo's drafters; built on the first use of a machine."""
    from speceval.demo import DRAFTERS
    from speceval.zoo import ensure

    return ensure(DRAFTERS)
