"""vLLM's own server in this process, without its command line: `python -m speceval.engines.vllm.server_process FLAGS`.

The command `vllm serve` looks up the version of a package called `vllm` before anything else, and the CPU wheel's is
called otherwise. When the process that started it is gone this one ends too, so that no server is left behind.
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from vllm_patches import interpreted

PARENT = "SPECEVAL_SERVER_PARENT"
"""Environment variable: process id of whoever started this one."""
SECONDS = 1.0
"""Between two looks."""
MODULES = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")
"""Where the server's `main` is: from vLLM 0.32 on, and before."""


def watch(parent: int) -> None:
    """End this process in order when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def offline_defaults() -> None:
    """Have vLLM's server take the same size of a step as `vllm.LLM` where none is asked for.

    vLLM has another default for each (EngineArgs.get_batch_defaults); a served run and one of an engine in this process
    are to be one protocol.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    EngineArgs.get_batch_defaults = classmethod(
        as_offline(EngineArgs.get_batch_defaults.__func__, UsageContext.LLM_CLASS)
    )


def as_offline(defaults: Callable[..., tuple[dict[Any, int], ...]], offline: Any) -> Callable[..., Any]:
    """`defaults`, which gives tables by who asks, with the value for `offline` in place of everyone's."""

    @functools.wraps(defaults)
    def of_all(*arguments: Any, **named: Any) -> tuple[dict[Any, int], ...]:
        tables = defaults(*arguments, **named)
        return tuple({who: table.get(offline, value) for who, value in table.items()} for table in tables)

    return of_all


def main() -> None:
    """Serve until a signal comes."""
    interpreted.prepare()
    offline_defaults()
    if parent := os.environ.pop(PARENT, ""):
        threading.Thread(target=watch, args=(int(parent),), name="parent", daemon=True).start()
    for module in MODULES:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
        else:
            return


if __name__ == "__main__":
    main()
