"""Which `speceval verify` result speaks for a run: the one of the same models, sampling and engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from speceval import folders
from speceval.errors import UserError
from speceval.foreign import read_json
from speceval.store import StoredRun
from speceval.store.schema import first_fault

ROOT = Path("results/verify")
"""Where `speceval verify` leaves its results."""

REQUEST = ("target", "draft", "k", "temperature", "top_p", "top_k", "drafting", "draft_truncation", "rejection")
ENGINE = ("vllm", "device", "runner", "method", "dtype", "quantization", "tensor_parallel", "prefix_caching")
"""What must agree for a verification to hold for a run."""


class _Shown(BaseModel):
    model_config = ConfigDict(strict=True)


class Test(_Shown):
    """A test of a verification, as far as the page shows it."""

    kind: str
    where: str
    n: int
    p: float = 1.0
    detectable: float = 0.0


class Samples(_Shown):
    """What was asked for, likewise."""

    samples: int


class Verification(_Shown):
    """What a verify.json must hold; it may hold more."""

    verdict: str
    line: str
    reference: str
    settings: Samples
    engine: dict[str, Any]
    missing: list[str] = []
    checks: list[Test] = []


def find(run: StoredRun, root: Path = ROOT) -> tuple[Path, dict[str, Any]] | None:
    """The newest verification below `root` that holds for the run, with its file; None if there is none."""
    files = [folder / "verify.json" for folder in folders.holding(root, "verify.json")[0]]
    files = sorted(filter(Path.is_file, files), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        try:
            found = read(path)
        except UserError:
            continue  # a damaged result of another engine is no reason to stop
        if not mismatches(run, found):
            return path, found
    return None


def read(path: Path) -> dict[str, Any]:
    """A verify.json. Raises `UserError` when it is none."""
    try:
        found: dict[str, Any] = read_json(path)
        Verification.model_validate(found)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: `speceval verify` writes verify.json") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a verify.json: {first_fault(error)}") from None
    return found


def mismatches(run: StoredRun, verification: dict[str, Any]) -> list[str]:
    """What was verified otherwise than it was run, one line each."""
    pairs: list[tuple[str, BaseModel, dict[str, Any]]]
    pairs = [(name, run.meta.spec, verification["settings"]) for name in REQUEST]
    pairs += [(name, run.meta.fingerprint.engine, verification["engine"]) for name in ENGINE]
    values = [(name, getattr(ours, name), theirs.get(name, _default(ours, name))) for name, ours, theirs in pairs]
    found = [f"{name}: run {ours!r}, verified {theirs!r}" for name, ours, theirs in values if ours != theirs]
    # A run is refused where a patch that it needs is missing, a verification is not.
    missing = verification.get("missing", [])
    return found + ([f"patches: missing when verified were {', '.join(map(str, missing))}"] if missing else [])


def _default(fields: BaseModel, name: str) -> Any:
    """What a field stands for in a verification that does not know it; None for one that each must have."""
    field = type(fields).model_fields[name]
    return None if field.is_required() else field.default


def command(run: StoredRun) -> str:
    """The command line that verifies the engine of a run."""
    spec = run.meta.spec
    parts = ["speceval verify", f"--target {shlex.quote(spec.target)}", f"--draft {shlex.quote(spec.draft)}"]
    parts += [f"--temp {spec.temperature:g}", f"--k {spec.k}"]
    if spec.top_k:
        parts.append(f"--top-k {spec.top_k}")
    if spec.top_p < 1:
        parts.append(f"--top-p {spec.top_p:g}")
    if spec.drafting != "deterministic":
        parts.append(f"--drafting {spec.drafting}")
    if not spec.draft_truncation:
        parts.append("--no-draft-truncation")
    if spec.rejection != "standard":
        parts.append(f"--rejection {spec.rejection}")
    return " ".join(parts)
