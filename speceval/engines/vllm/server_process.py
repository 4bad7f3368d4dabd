"""vLLM's own server in this process, without its command line: `python -m speceval.engines.vllm.server_process FLAGS`.

The command `vllm serve` looks up the version of a package called `vllm` before anything else, and the CPU wheel's is
called otherwise. When the process that started it is gone this one ends too, so that no server is left behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

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


def main() -> None:
    """Serve until a signal comes."""
    interpreted.prepare()
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
