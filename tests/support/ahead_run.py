"""The command line on an engine with asynchronous scheduling, which vLLM's CPU platform switches off:
`python ahead_run.py verify …`. For the V2 runner the environment is `live.V2`.
"""

from __future__ import annotations

import sys

import live  # type: ignore[import-not-found]

from speceval.cli import main
from vllm_patches import interpreted

if __name__ == "__main__":
    interpreted.prepare()
    live.schedule_ahead()
    sys.exit(main())
