"""A vLLM server of this run's own: started for it, measured over HTTP, and stopped with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speceval.catalog.schema import Target
from speceval.engines.base import Engine, Order, Parsed
from speceval.engines.server.client import Client
from speceval.engines.server.engine import ServerEngine
from speceval.engines.vllm import answers
from speceval.engines.vllm.offline import OfflineEngine
from speceval.engines.vllm.serving import Server
from speceval.errors import UserError

PLAIN = ("auto", "hf", "slow", "fast")
"""Values of vLLM's tokenizer_mode with which its prompts are those of the tokenizer's own template."""


class OwnServerEngine(ServerEngine):
    """The order's engine arguments are those of `vllm.LLM`, which vLLM's server takes too."""

    loads_checkpoints = True
    packages = OfflineEngine.packages
    installation = OfflineEngine.installation
    _server: Server | None = None

    def __init__(self, order: Order) -> None:
        """Start the server, wait until it answers, read back what it is. Raises `UserError`."""
        mode = order.engine_args.get("tokenizer_mode", "auto")
        if mode not in PLAIN:
            raise UserError(
                f"--engine-arg tokenizer_mode={mode}: prompts are rendered on this side, where that mode is not known: "
                "measure it without --through-server"
            )
        self._reasoning_parser = order.engine_args.get("reasoning_parser")
        self._server = Server(order)
        try:
            self._server.log_to(sys.stdout.buffer)
            self._server.wait()
            super().__init__(order, Client(self._server.url, order.batch), self._server.name)
            as_started = {"generation_config": "vllm"}
            self._settings = self._settings.model_copy(update=as_started)
        except BaseException:
            self._server.stop()
            raise

    @classmethod
    def open(cls, order: Order) -> Engine:
        """Start one. Raises `UserError`."""
        return cls(order)

    @classmethod
    def require(cls) -> None:
        """Raise `UserError` where vLLM is missing, or of a version that is not supported."""
        OfflineEngine.require()

    @classmethod
    def defaults(cls, target: Target, tokens: int = 0) -> dict[str, Any]:
        """Those of vLLM in this process."""
        return OfflineEngine.defaults(target, tokens)

    @classmethod
    def ledger(cls) -> list[dict[str, str]]:
        """That of vLLM in this process."""
        return OfflineEngine.ledger()

    @classmethod
    def serving(cls, order: Order, ranges: Sequence[tuple[int, int, int]] = ()) -> dict[str, Any]:
        """That of vLLM in this process."""
        return OfflineEngine.serving(order, ranges)

    def parser(self, template_kwargs: Mapping[str, Any]) -> Callable[[Sequence[int]], Parsed] | None:
        """The one of `--engine-arg reasoning_parser=NAME`."""
        name = self._reasoning_parser
        return answers.parser(name, self.tokenizer, template_kwargs) if name else None

    def close(self) -> None:
        """Drop the connections and stop the server."""
        super().close()
        if self._server is not None:
            self._server.stop()
