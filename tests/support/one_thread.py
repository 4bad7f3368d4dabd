"""A script with an engine of one thread, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import live


def run_script(script: str, *words: str | Path | int, patches: str = "1") -> subprocess.CompletedProcess[str]:
    """Run Python code with these words as its arguments; `patches`: "0" leaves vLLM as it is."""
    environment = os.environ | live.ENVIRONMENT | {"SPECEVAL_PATCHES": patches}
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)
