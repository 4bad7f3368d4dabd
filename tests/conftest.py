"""Shared by all tests: where the benchmark files are, the zoo, and the watch over skipped tests."""

import os
from pathlib import Path

import pytest
from support import machine, skips


def pytest_configure(config: pytest.Config) -> None:
    """Skipped tests are judged."""
    config.pluginmanager.register(skips.Watch(skips.read(skips.EXPECTED.read_text()), machine.LACKS), "skips")


@pytest.fixture(scope="session", autouse=True)
def _no_user_s_data() -> None:
    """Tests say where their data are: a machine's setting would keep those of the hub from asking it."""
    os.environ.pop("SPECEVAL_DATA_DIR", None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real benchmark files: $SPECEVAL_DATA_DIR, or shared/data beside the checkout."""
    if not machine.has_data():
        pytest.skip(f"no benchmark data in {machine.DATA_DIR}: set SPECEVAL_DATA_DIR")
    return machine.DATA_DIR


@pytest.fixture(scope="session")
def zoo() -> dict[str, Path]:
    """Directories of the zoo's target and of the demo's drafters; built on the first use of a machine."""
    from speceval.zoo import ensure

    return ensure(("kl-eagle3", "lk-eagle3"))
