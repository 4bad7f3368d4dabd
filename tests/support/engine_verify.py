"""Verify one live engine again and again: `python engine_verify.py job.json result.json`, in a process of its own.

Job: target, draft, k, and `runs`: name -> {mutant, asked, settings}. Result: name -> the report as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from speceval.exactness import Settings
from speceval.exactness.run import examine
from speceval.measure import launch
from speceval.measure.job import prepare
from speceval.measure.start import start_engine
from support.mutants import MUTANTS, mutated
from support.pairs import PROMPTS

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
ENGINE_ARGS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}


def run(job: dict[str, Any]) -> dict[str, Any]:
    asked = prepare(
        target=job["target"],
        draft=job["draft"],
        temperature=1.0,
        suite_names=["demo"],
        k=job["k"],
        batch=256,
        engine_args=ENGINE_ARGS,
    )
    asked = launch.fetch(asked)
    found = {}
    with closing(start_engine(asked)) as engine:
        for name, one in job["runs"].items():
            mutant = BY_NAME.get(one.get("mutant", ""))
            changes = (mutant.asked if mutant else {}) | one.get("asked", {})
            settings = Settings(prompts=PROMPTS, **(mutant.settings if mutant else {}), **one["settings"])
            with mutated(mutant) if mutant else nullcontext():
                changed = replace(asked, spec=asked.spec.model_copy(update=changes))
                found[name] = examine(engine, changed, settings, lambda *_: None).as_json()
    return found


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    destination.write_text(json.dumps(run(json.loads(source.read_text()))))
