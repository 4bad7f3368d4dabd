"""Continuations of the target without speculation, drawn by an engine in a process of its own.

`python -m speceval.engines.alone ORDER RESULT` is that process; ORDER holds what `draw` was asked for, pickled, RESULT
gets the tokens of each continuation.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from speceval import engines
from speceval.engines.base import Order, Sampling
from speceval.errors import UserError

Request = tuple[Sequence[int], Sampling]
"""Token ids of a prompt, and how to continue it."""


def draw(order: Order, requests: Sequence[Request], log: Path) -> list[tuple[int, ...]]:
    """The tokens of each request's continuation by the target of `order`; the engine's output is added to `log`.

    A process of its own, before any other engine starts: a device has room for one. Raises `UserError`.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        source, result = Path(folder) / "order", Path(folder) / "result.json"
        source.write_bytes(pickle.dumps((order.alone(), list(requests))))
        command = [sys.executable, "-m", "speceval.engines.alone", str(source), str(result)]
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode:
            raise UserError(f"the engine without speculative decoding did not run: see {log}")
        return [tuple(tokens) for tokens in json.loads(result.read_text())]


def main(source: Path, result: Path) -> None:
    """The process's work."""
    order, requests = pickle.loads(source.read_bytes())
    tokens: dict[str, list[int]] = {}
    with closing(engines.open(order)) as engine:
        for number, (prompt, sampling) in enumerate(requests):
            engine.submit(str(number), list(prompt), sampling)
        while len(tokens) < len(requests):
            tokens |= {done.request_id: done.token_ids for done in engine.step()[1]}
    result.write_text(json.dumps([tokens[str(number)] for number in range(len(requests))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
