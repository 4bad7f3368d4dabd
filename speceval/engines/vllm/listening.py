"""What a vLLM engine's workers are made to record of their verify steps, wherever they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from speceval.errors import UserError
from speceval.protocol import LOSSLESS
from speceval.store.schema import Facts
from vllm_patches.worker import EVIDENCE, ask_taps, drain_tap, start_tap, stop_tap

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Listening:
    """Listeners at the verifiers of an engine's workers; part of an engine, which says how workers are asked."""

    _taps: set[str]
    """Who listens: empty at the start."""

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the workers answer to a question of `vllm_patches.worker`. Raises `UserError`."""
        raise NotImplementedError

    def facts(self) -> Facts:
        """`Engine.facts`."""
        raise NotImplementedError

    def listen(self, name: str) -> None:
        """Have a listener (`vllm_patches.worker`) hear the verify steps of every worker from now on.

        Raises `UserError` when a worker cannot, or does not.
        """
        if reason := self._ask(start_tap, name):
            raise UserError(reason)
        self._taps.add(name)
        for number, heard in enumerate(self._ask(ask_taps)):
            if heard != sorted(self._taps):
                raise UserError(
                    f"worker {number} records {', '.join(heard) or 'nothing'}, asked for "
                    f"{', '.join(sorted(self._taps))}: nothing was measured"
                )

    def unlisten(self, name: str) -> None:
        """The listener hears nothing more."""
        self._ask(stop_tap, name)
        self._taps.discard(name)

    def heard(self, name: str) -> dict[str, Any]:
        """What the listener has recorded since the last call (`vllm_patches.worker.drain_tap`).

        Raises `UserError` when workers that must have heard the same did not.
        """
        return dict(self._ask(drain_tap, name))

    def start_evidence(self) -> bool:
        """Record p, q and the decision on every sampled draft from now on; False where no test of these would hold:
        with a rejection method that keeps no law.
        """
        known = self.facts().rejection_sample_method in LOSSLESS
        if known:
            self.listen(EVIDENCE)
        return known

    def take_evidence(self) -> tuple[dict[str, NDArray[Any]] | None, dict[str, int]]:
        """What was recorded since `start_evidence`, which ends: rows (None: none) and counts (`taps.evidence`)."""
        from vllm_patches.taps import evidence

        heard = self.heard(EVIDENCE)
        self.unlisten(EVIDENCE)
        rows = evidence.rows(heard)
        counts = {name: heard[name] for name in evidence.COUNTS}
        return rows if len(rows["position"]) or counts["broken"] else None, counts

    def unlisten_all(self) -> None:
        """Nobody that was asked for hears anything more."""
        for name in tuple(self._taps):
            self.unlisten(name)
