"""Engines generate tokens and report their verify steps; `base` says what is asked of them. Only `vllm` knows vLLM."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from speceval.engines.base import Engine, Order
from speceval.errors import UserError

GROUP = "speceval.engines"
"""Entry points under which other packages name theirs."""
BUILT_IN = {
    "vllm": "speceval.engines.vllm.offline:OfflineEngine",
    "simulated": "speceval.engines.simulated:SimulatedEngine",
    "server": "speceval.engines.server.engine:ServerEngine",
    "own-server": "speceval.engines.server.own:OwnServerEngine",
}
"""Name -> "module:class"."""


def names() -> list[str]:
    """Every engine that there is."""
    return [*BUILT_IN, *(point.name for point in entry_points(group=GROUP) if point.name not in BUILT_IN)]


def find(name: str) -> type[Engine]:
    """The class of an engine, by its name. Imports its module, which imports nothing heavy. Raises `UserError`."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return cast(type[Engine], getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP, name=name):
        try:
            return cast(type[Engine], point.load())
        except (ImportError, AttributeError) as error:
            raise UserError(f"--engine {name}: {point.value} cannot be loaded: {error}") from error
    raise UserError(f"--engine {name}: there is no such engine; there are {', '.join(names())}")


def open(order: Order) -> Engine:
    """Start the engine that an order names; whoever opens it closes it. Raises `UserError`."""
    return find(order.engine).open(order)
