"""vLLM's V2 model runner on a machine without GPU: its Triton kernels run interpreted, from vLLM's own source text.

vLLM (0.32 and later) has a CPU path for the V2 runner (`vllm/v1/worker/cpu`). What it lacks there is a Triton that runs
on a CPU. `prepare` gives it one: the ordinary `triton` package, told that it has a CPU backend (`backend`), whose
kernels `launch` executes. Nothing of vLLM is replaced, and unless SWITCH is set nothing is done.

Nothing here imports `speceval`, or a module of vLLM when it is imported.
"""

from __future__ import annotations

import os

SWITCH = "SPECEVAL_INTERPRETED"
"""Environment variable; "1": run the kernels in lockstep (`simt`); "check": through Triton's own interpreter as well,
comparing every tensor; "triton": through that alone, some forty times slower. Unset: do nothing."""
LOCKSTEP, CHECK, TRITON = "1", "check", "triton"
ENVIRONMENT = {SWITCH: LOCKSTEP, "TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
"""What a process must find in its environment before Triton is imported, and torch's compiler, which would take this
Triton for one that compiles: vLLM compiles a function where several workers share the embedding."""


def wanted() -> str | None:
    """How this process is to run kernels: LOCKSTEP, CHECK or TRITON; None if it is not."""
    mode = os.environ.get(SWITCH)
    return mode if mode in (LOCKSTEP, CHECK, TRITON) else None


def prepare() -> None:
    """Entry point of vLLM's group `vllm.platform_plugins`: asked in each process before vLLM looks for Triton.

    Returns None, which says that this is no platform. Raises RuntimeError where it is too late.
    """
    if wanted() is not None:
        from vllm_patches.interpreted import backend

        backend.install()
