"""Which of vLLM's model runners an engine gets, V1 or V2. Imports neither torch nor vLLM."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from speceval.errors import UserError
from speceval.protocol import Runner
from vllm_patches import interpreted
from vllm_patches.state import device
from vllm_patches.versions import within

CHOICE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own switch; unset: it chooses itself."""
CPU_VERSIONS = ">=0.32"
"""Versions of vLLM whose V2 runner has a CPU path (PEP 440)."""


def demanded(runner: Runner | None) -> str:
    """The runner of an engine as far as it is settled before vLLM is asked: "V2" only where it was asked for."""
    if runner is None:
        return "V1" if os.environ.get(CHOICE, "0").strip() in ("", "0") else "V2"
    return runner.upper()


def environment(runner: Runner | None, version: str) -> dict[str, str]:
    """What a process must find in its environment to use a runner (None: vLLM's own choice). Raises `UserError`."""
    wanted = {} if runner is None else {CHOICE: "1" if runner == "v2" else "0"}
    if runner == "v2" and device() == "cpu":
        if not within(CPU_VERSIONS, version):
            raise UserError(f"--runner v2: vLLM {version} runs it on a GPU only; on a CPU it takes vLLM {CPU_VERSIONS}")
        wanted |= {name: os.environ.get(name, value) for name, value in interpreted.ENVIRONMENT.items()}
    return wanted


def choose(runner: Runner | None, version: str) -> Callable[[], None]:
    """Have the next engine of this process use a runner (None: vLLM's own choice); returns what takes that back.

    On a CPU the V2 runner's kernels are interpreted (`vllm_patches.interpreted`). Raises `UserError` where this vLLM,
    or this process, cannot.
    """
    wanted = environment(runner, version)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    try:
        _prepare(interpreted.SWITCH in wanted)
    except UserError:
        restore()
        raise
    if envs := sys.modules.get("vllm.envs"):
        envs.disable_envs_cache()  # an engine that ran before has frozen what it saw
    return restore


def _prepare(kernels_interpreted: bool) -> None:
    """This process may have no entry points (VLLM_PLUGINS leaves them out, say), so that it is done here too."""
    if not kernels_interpreted:
        backend = sys.modules.get("vllm_patches.interpreted.backend")
        if backend is not None and backend.installed():
            raise UserError(
                "--runner: an engine of the V2 runner has run in this process: V1 takes a process of its own"
            )
        return
    try:
        interpreted.prepare()
    except ImportError:
        raise UserError("--runner v2: on a CPU it takes the package triton: pip install 'triton>=3.9,<4'") from None
    except RuntimeError as error:
        raise UserError(f"--runner v2: {error}") from None
