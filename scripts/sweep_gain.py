"""What exchanging drafters in a running engine saves: `speceval sweep demo-all`, and an engine for each of its runs.

    python scripts/sweep_gain.py [--draft eagle3,mtp]

Both measure the runs of these architectures, one after the other, each side in a process of its own from its first
import on; results/bench/sweep.json has wall seconds, how runs got their engines, and the seconds of generation among
them. That greedy runs are the same is checked. Needs vLLM and the zoo's weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from speceval.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "bench" / "sweep.json"


def planned(folder: Path, architectures: list[str]) -> Any:
    """The built-in sweep, of these architectures."""
    from speceval.measure import sweep

    file = sweep.read_sweep_file("demo-all")
    changes = {"drafter": [one for one in file.axes["drafter"] if one["draft"][0].split("-")[-1] in architectures]}
    return sweep.prepare_sweep(file.model_copy(update={"axes": file.axes | changes}), folder)


def train(folder: Path, architectures: list[str]) -> None:
    """Train the zoo's models that are not there yet: that is no part of either side."""
    from speceval.measure import launch

    for cell in planned(folder, architectures).cells:
        launch.fetch(cell.job)


def side(name: str, folder: Path, architectures: list[str]) -> None:
    """Measure every run, as a sweep or each with an engine of its own; what it took goes to folder.json."""
    begin = time.perf_counter()
    from speceval.measure import launch, sweep
    from speceval.measure.output import output_to, unwatched

    prepared = planned(folder, architectures)
    how: Counter[str] = Counter()
    if name == "sweep":
        for outcome in sweep.execute(prepared, lambda number, cell: unwatched, output_to):
            assert outcome.ok, outcome.error
            how[outcome.how or "none"] += 1
    else:
        for cell in prepared.cells:
            launch.run(cell.job, unwatched, output_to)
            how["start"] += 1
    wall = time.perf_counter() - begin
    (folder.parent / f"{name}.json").write_text(json.dumps({"seconds": wall, "engines": how}))


def main() -> None:
    """Measure both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="eagle3")
    options = parser.parse_args()
    content: dict[str, Any] = {"command": f"python scripts/sweep_gain.py --draft {options.draft}"}
    with tempfile.TemporaryDirectory() as root:
        train(Path(root) / "none", options.draft.split(","))
        for name in ("sweep", "separate"):
            folder = Path(root) / name
            folder.mkdir()
            worker = multiprocessing.get_context("spawn").Process(
                target=side, args=(name, folder, options.draft.split(","))
            )
            begin = time.perf_counter()
            worker.start()
            worker.join()
            if worker.exitcode:
                raise SystemExit(f"the side {name} failed")
            told = json.loads((Path(root) / f"{name}.json").read_text())
            content[name] = told | {"seconds": round(time.perf_counter() - begin, 1)} | generated(folder)
            print(name, content[name], flush=True)
        content["same"] = same(Path(root) / "sweep", Path(root) / "separate")
    content["ratio"] = round(content["separate"]["seconds"] / content["sweep"]["seconds"], 2)
    content["load"] = round(os.getloadavg()[0], 1)
    print(content)
    write_whole(OUT, json.dumps(content, indent=2) + "\n")


def generated(folder: Path) -> dict[str, Any]:
    """Runs, and the seconds in which an engine generated."""
    from speceval.store import read_run

    runs = [read_run(path.parent) for path in folder.glob("*/run.json")]
    assert all(run.meta.status == "complete" for run in runs)
    return {"runs": len(runs), "generation_seconds": round(sum(run.meta.engine_seconds for run in runs), 1)}


def same(a: Path, b: Path) -> bool:
    """Whether greedy runs have the same steps on both sides; in full batches sampled ones may round otherwise."""
    from speceval.store import read_run

    pairs = [(read_run(path.parent), read_run(b / path.parent.name)) for path in a.glob("*/run.json")]
    greedy = [(x, y) for x, y in pairs if x.meta.spec.temperature == 0]
    return bool(greedy) and all(x.steps.equals(y.steps) for x, y in greedy)


if __name__ == "__main__":
    main()
