"""Some of the bad inputs of scripts/tries.py: one line each, no traceback, no hang, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_one_try_in_eighty_of_all_bad_inputs_gives_one_line() -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, str(ROOT / "scripts" / "tries.py"), "--short", "80"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "stored runs: " in done.stdout and "hostile: " in done.stdout
