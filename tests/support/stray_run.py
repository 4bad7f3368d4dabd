"""The command line on an engine whose kernels leave their tensors: `python stray_run.py run --runner v2 …`."""

from __future__ import annotations

import sys

import v2_mutants  # type: ignore[import-not-found]

from speceval.cli import main
from vllm_patches import interpreted

if __name__ == "__main__":
    interpreted.prepare()
    v2_mutants.stray()
    sys.exit(main())
