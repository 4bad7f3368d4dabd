"""`speceval verify --reference two-sample`: the target alone, in a process of its own, beside what speculates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.engine]


def test_the_zoo_is_held_against_a_sample_of_its_target_alone(zoo: dict[str, Path], tmp_path: Path) -> None:
    """Exit code 2: 300 continuations are too few to see a small bias. False alarms of the whole < 1e-6."""
    asked = ("--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--reference", "two-sample", "--samples", "300")
    command = [sys.executable, "-m", "speceval", "verify", *asked, "--json", "--out", "verify"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    report = json.loads(done.stdout)
    assert report["reference"] == "two samples" and report["failed"] == 0 and report["tests"] > 10
    assert report["seconds"]["baseline"] > 0 and "verify: drawing without speculation" in done.stderr
