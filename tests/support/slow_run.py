"""A run whose engine takes its time, for the tests of signals: a process of its own.

    python -m support.slow_run OUT SECONDS [FAULT]

SECONDS of each step; FAULT: "hang" (a step that never ends, and swallows an interrupt), "ignored" (started with SIGINT
ignored). Prints "measuring" to standard output once a step has begun.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from speceval import cli, interrupts
from speceval.engines.simulated import SimulatedEngine
from speceval.measure import launch

out, seconds, fault = Path(sys.argv[1]), float(sys.argv[2]), (*sys.argv[3:], "")[0]
told = os.dup(1)


class Slow(SimulatedEngine):
    steps = 0

    def step(self):
        Slow.steps += 1
        if Slow.steps == 3:
            os.write(told, b"measuring\n")
        end = time.monotonic() + (3600 if fault == "hang" and Slow.steps == 3 else seconds)
        while (left := end - time.monotonic()) > 0:
            time.sleep(left)
        return super().step()


launch.start_engine = lambda job: Slow((0.7,) * job.spec.k, batch=job.spec.batch)
launch.fetch = lambda job: job
interrupts.PATIENCE = 1.0
# Whatever the tests themselves were started with.
signal.signal(signal.SIGINT, signal.SIG_IGN if fault == "ignored" else signal.default_int_handler)
out.parent.mkdir(exist_ok=True)
rows = out.with_name("own.jsonl")
rows.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(40)))
sys.argv = ["speceval", "run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--suite", str(rows)]
sys.argv += ["--max-tokens", "12", "--batch", "2", "--out", str(out)]
cli.process()
