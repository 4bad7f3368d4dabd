"""Which of vLLM's model runners an engine gets, V1 or V2. Imports neither torch nor vLLM."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from speceval.errors import UserError
from speceval.protocol import Runner
from vllm_patches import interpreted
from vllm_patches.state import device
from vllm_patches.versions import within

CHOICE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own switch; unset: it chooses itself."""
CPU_VERSIONS = ">=0.32"
"""Versions of vLLM whose V2 runner has a CPU path (PEP 440)."""
CONFIG = "vllm.config.vllm"
"""Refuses the V2 runner where its process has no Triton."""
WITHOUT_TRITON = "--runner v2: on a CPU it takes the package triton: pip install 'triton>=3.9,<4'"
APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""What gives an engine a process of its own that takes over nothing of this one."""


def demanded(runner: Runner | None) -> str:
    """The runner of an engine as far as it is settled before vLLM is asked: "V2" only where it was asked for."""
    if runner is None:
        return "V1" if os.environ.get(CHOICE, "0").strip() in ("", "0") else "V2"
    return runner.upper()


def environment(runner: Runner | None, version: str) -> dict[str, str]:
    """What a process must find in its environment to use a runner (None: vLLM's own choice). Raises `UserError`."""
    wanted = {} if runner is None else {CHOICE: "1" if runner == "v2" else "0"}
    if runner is None and demanded(None) == "V2" and device() == "cpu" and interpreted.SWITCH not in os.environ:
        raise UserError(f"{CHOICE}={os.environ[CHOICE]}: on a CPU the V2 runner is started by --runner v2")
    if runner == "v2" and device() == "cpu":
        if not within(CPU_VERSIONS, version):
            raise UserError(f"--runner v2: vLLM {version} runs it on a GPU only; on a CPU it takes vLLM {CPU_VERSIONS}")
        if importlib.util.find_spec("triton") is None:
            raise UserError(WITHOUT_TRITON)
        wanted |= {name: os.environ.get(name, value) for name, value in interpreted.ENVIRONMENT.items()}
    return wanted


def choose(runner: Runner | None, version: str) -> Callable[[], None]:
    """Have the next engine of this process use a runner (None: vLLM's own choice); returns what takes that back.

    On a CPU the V2 runner's kernels are interpreted (`vllm_patches.interpreted`). Where this process has settled the
    other way whether vLLM has Triton, the engine gets a process of its own. Raises `UserError` where this vLLM cannot.
    """
    wanted = environment(runner, version)
    before = {name: os.environ.get(name) for name in (*wanted, *APART)}
    config: Any = sys.modules.get(CONFIG)
    has_triton = getattr(config, "HAS_TRITON", None)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if config is not None:
            vars(config)["HAS_TRITON"] = has_triton

    os.environ.update(wanted)
    interprets = interpreted.SWITCH in wanted
    try:
        apart = _settled_otherwise(interprets)
    except UserError:
        restore()
        raise
    if apart:
        os.environ.update(APART)
        if config is None:  # Triton came with something else, to compile, before vLLM
            config = importlib.import_module(CONFIG)
            has_triton = config.HAS_TRITON
        vars(config)["HAS_TRITON"] = interprets  # this process checks the configuration, and the engine's has it
    if envs := sys.modules.get("vllm.envs"):
        envs.disable_envs_cache()  # an engine that ran before has frozen what it saw
    return restore


def _settled_otherwise(interprets: bool) -> bool:
    """Whether this process cannot run the kernels so any more. If it can it is made ready to interpret them: it may
    have no entry points (VLLM_PLUGINS leaves them out, say). Raises `UserError`."""
    if not interprets:
        backend = sys.modules.get("vllm_patches.interpreted.backend")
        return backend is not None and bool(backend.installed())
    try:
        interpreted.prepare()
    except ImportError:
        raise UserError(WITHOUT_TRITON) from None
    except RuntimeError:
        return True
    return False
