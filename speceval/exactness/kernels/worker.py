"""The subprocess that loads one vLLM version and tries its kernels. A job comes in as JSON, rows go out as lines.

Reads one line from standard input, {"source", "version", "kind", "root", "engine", "patched", "requests", "seed",
"check"}, and prints lines {"row": ...} and at last {"done": true}. Nothing else is printed to standard output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from speceval.exactness.kernels import load
from speceval.exactness.kernels.judge import judge
from speceval.exactness.kernels.load import Missing
from speceval.exactness.kernels.sources import Source
from speceval.exactness.kernels.toy import Driver, K, Sample, Toy, make_toy, sample
from vllm_patches.interpreted import simt

CHUNK = 25_000
"""Requests that go through the kernels at once."""


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    runner: str
    drafting: str
    """"probabilistic", "greedy", or "padded": drafts of which some are placeholders (-1), as vLLM pads a step."""
    rejection: str

    @property
    def q(self) -> str:
        """How drafts are drawn and q is given. V1 has no q for a step with padding, V2 keeps the slot's."""
        if self.drafting == "padded":
            return "greedy" if self.runner == "V1" else "probabilistic"
        return self.drafting


def cells(engine: str, version: str) -> list[Cell]:
    """What is tried; the CPU extension has V1 only, and steps are padded from 0.28 on."""
    from packaging.version import Version

    drafting = ["probabilistic", "greedy", *(["padded"] if Version(version) >= Version("0.28") else [])]
    runs = [Cell("V1", mode, "standard") for mode in drafting]
    if engine != "extension":
        runs += [Cell("V2", mode, "standard") for mode in drafting]
        runs += [Cell("V2", mode, "block") for mode in ("probabilistic", "greedy")]
    return runs


def make_driver(
    cell: Cell, source: Source, modules: dict[str, ModuleType], toy: Toy, device: str, patched: bool
) -> Driver:
    """The driver of a cell."""
    from speceval.exactness.kernels.drivers import V1Driver, V2Driver

    if cell.runner == "V1":
        return V1Driver(source, load.require(modules, load.V1_REJECTION), toy, cell.q, device, patched)
    return V2Driver(source, modules, toy, cell.q, cell.rejection == "block", device)


def run(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one version in one engine, each as soon as it is known."""
    source = Source(job["source"], job["version"], job["kind"], Path(job["root"]))
    engine, patched = job["engine"], job["patched"]
    device = "cuda" if engine == "compiled" else "cpu"
    toy = make_toy()
    with tempfile.TemporaryDirectory(prefix="speceval-kernels-") as directory:
        modules = load_modules(source, Path(directory) / "first", engine, patched)
        reference = load_reference(source, Path(directory) / "second") if engine == "simt" and job["check"] else None
        for cell in cells(engine, source.version):
            started = time.monotonic()
            row: dict[str, Any] = {"engine": engine, **asdict(cell)}
            if reason := refused(source.version, cell) if patched else "":
                yield {**row, "verdict": "refused", "note": reason}
                continue
            try:
                simt.machine.strays = 0
                result = measure(cell, source, modules, toy, device, job, patched)
                row |= asdict(judge(result, toy, acceptance_known=cell.rejection == "standard"))
                row |= {"requests": len(result.tokens), "strays": simt.machine.strays, "note": ""}
                if reference is not None:
                    row |= compare(cell, source, modules, reference, toy, job)
            except Missing as error:
                row |= {"verdict": "not available", "note": str(error)}
            except simt.Unsupported as error:
                row |= {"verdict": "not available", "note": f"this version's kernels use {error}: not known to simt"}
            except Exception as error:  # whatever a version's code raises here is a finding, not a crash of ours
                row |= {"verdict": "error", "note": _one_line(error)}
            yield {**row, "seconds": round(time.monotonic() - started, 1)}


def load_reference(source: Source, directory: Path) -> dict[str, ModuleType] | None:
    """The same modules again, under Triton's own interpreter; None where Triton is not installed."""
    load.forget()
    try:
        return load.load(source, directory, "interpreter")
    except ImportError:
        return None


def compare(
    cell: Cell,
    source: Source,
    modules: dict[str, ModuleType],
    reference: dict[str, ModuleType],
    toy: Toy,
    job: dict[str, Any],
) -> dict[str, Any]:
    """`checked`: how many requests come out of Triton's own interpreter token for token the same; all of them must."""
    drawn = (cell, source, modules, toy, "cpu", job["check"], job["seed"], job["patched"])
    ours = draw(*drawn).tokens
    try:
        theirs = draw(cell, source, reference, *drawn[3:]).tokens
    except Exception as error:
        return {"checked": 0, "note": f"not checked: Triton's interpreter: {_one_line(error)}"}
    same = int((ours == theirs).all(1).sum())
    if same == len(ours):
        return {"checked": same}
    note = f"{len(ours) - same} of {len(ours)} requests differ from Triton's interpreter"
    return {"checked": same, "verdict": "error", "note": note}


def load_modules(source: Source, directory: Path, engine: str, patched: bool) -> dict[str, ModuleType]:
    """A version's modules; with the "extension" engine the installed vLLM as it is, compiled CPU kernels included."""
    if engine != "extension":
        return load.load(source, directory, engine)
    if patched:
        import vllm_patches

        vllm_patches.register()
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if not hasattr(current_platform, "register_triton_kernel_overrides"):
        load.failures[load.V1_REJECTION] = "gets its CPU kernels only when an engine of this version starts"
        return {}
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    return {load.V1_REJECTION: rejection_sampler}


def measure(
    cell: Cell,
    source: Source,
    modules: dict[str, ModuleType],
    toy: Toy,
    device: str,
    job: dict[str, Any],
    patched: bool,
) -> Sample:
    """The cell's whole sample, drawn in chunks."""
    total: Sample | None = None
    for chunk in range(0, job["requests"], CHUNK):
        requests = min(CHUNK, job["requests"] - chunk)
        part = draw(cell, source, modules, toy, device, requests, job["seed"] + 1 + chunk // CHUNK, patched)
        total = part if total is None else total.join(part)
    assert total is not None
    return total


def draw(
    cell: Cell,
    source: Source,
    modules: dict[str, ModuleType],
    toy: Toy,
    device: str,
    requests: int,
    seed: int,
    patched: bool,
) -> Sample:
    """One sample of the cell."""
    driver = make_driver(cell, source, modules, toy, device, patched)
    return sample(driver, toy, cell.q, requests, seed, pad=cell.drafting == "padded")


def refused(version: str, cell: Cell) -> str:
    """Why the patched engine does not offer this cell; empty if it does."""
    from vllm_patches.refuse import check

    config = {"rejection_sample_method": cell.rejection, "draft_sample_method": cell.q, "num_speculative_tokens": K}
    return check(version, cell.runner, config) or ""


def main() -> None:
    """Serve one job."""
    warnings.filterwarnings("ignore")
    out, sys.stdout = sys.stdout, sys.stderr  # what vLLM prints is not ours
    import torch

    torch.set_num_threads(1)
    job = json.loads(sys.stdin.readline())
    for row in run(job):
        print(json.dumps({"row": row}, default=_plain), file=out, flush=True)
    print(json.dumps({"done": True}), file=out, flush=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[-1]


def _plain(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) else str(item)


if __name__ == "__main__":
    main()
