"""A script with an engine of one thread, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_script(script: str, *words: str | Path | int, patches: str = "1") -> subprocess.CompletedProcess[str]:
    """Run Python code with these words as its arguments; `patches`: "0" leaves vLLM as it is."""
    environment = os.environ | {
        "SPECEVAL_PATCHES": patches,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)
