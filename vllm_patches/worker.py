"""Ask the worker processes, where vLLM samples, which patches are active, what they obey and what they counted.

Usage: `LLM(..., worker_extension_cls=EXTENSION)`, then `ask(llm)`. Only strings and plain data cross between processes.
"""

from __future__ import annotations

import base64
import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vllm_patches.methods import own_name
from vllm_patches.settings import draft_truncation
from vllm_patches.state import ACTIVE, PatchStatus, Switches, disobeyed, status, switches
from vllm_patches.taps.counters import COUNTS

EXTENSION = "vllm_patches.worker.Extension"
"""Value of vLLM's `worker_extension_cls`."""
OVERLAP, EVIDENCE, REPLAY, COUNT = "overlap", "evidence", "replay", "count"
"""The listeners: modules of `vllm_patches.taps`."""
STRAYS = "kernel_strays"
"""Among `Extension.draft_counts`: accesses outside a tensor that interpreted kernels have made in this process."""
SAME = 1e-6
"""Relative difference of two ranks' sums that float32 rounding explains: another draft among 100,000 shows as more."""


class Disagreement(RuntimeError):
    """Workers that must have done the same did not."""


class Extension:
    """Mixed by vLLM into its worker class."""

    def patch_status(self) -> list[dict[str, str]]:
        """`status()` of this worker process as plain dictionaries, which vLLM can send between processes."""
        return [asdict(row) for row in status()]

    def patch_switches(self) -> dict[str, str | None]:
        """`switches()` of this worker process."""
        return dict(switches())

    def engine_settings(self) -> dict[str, Any]:
        """The settings that move acceptance, as this worker process has them, for every drafting method."""
        import torch

        config: Any = self.vllm_config  # type: ignore[attr-defined]
        speculative, model, cache = config.speculative_config, config.model_config, config.cache_config
        scheduler, parallel = config.scheduler_config, config.parallel_config
        return {
            "torch": str(torch.__version__),  # a class of its own, which vLLM does not send
            "device": self.device.type,  # type: ignore[attr-defined]
            "runner": "V2" if config.use_v2_model_runner else "V1",
            "method": "none" if speculative is None else own_name(speculative.method, speculative.model),
            "k": getattr(speculative, "num_speculative_tokens", 0),
            "draft_sample_method": getattr(speculative, "draft_sample_method", None),
            "rejection_sample_method": getattr(speculative, "rejection_sample_method", None),
            "draft_truncation": draft_truncation(config)
            and (not config.use_v2_model_runner or v2_truncates(config, self._speculator())),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": model.quantization,
            "kv_cache_dtype": str(cache.cache_dtype),
            "max_model_len": usable_context(config),
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "async_scheduling": bool(scheduler.async_scheduling),
            "prefix_caching": bool(cache.enable_prefix_caching),
            "enforce_eager": bool(model.enforce_eager),
            "tensor_parallel": parallel.tensor_parallel_size,
            "pipeline_parallel": parallel.pipeline_parallel_size,
            "data_parallel": parallel.data_parallel_size,
        }

    def _speculator(self) -> Any:
        return getattr(getattr(self, "model_runner", None), "speculator", None)

    def drafter_loading(self) -> dict[str, Any]:
        """What this worker's vLLM made of the drafter's checkpoint (`loading.report`)."""
        from vllm_patches.loading import report

        return report(self.model_runner, self.vllm_config)  # type: ignore[attr-defined]

    def draft_counts(self) -> dict[str, int] | None:
        """This worker's verify steps since its start, by how their drafts were verified (`taps.counters`).

        None from a worker that samples nothing: an earlier stage of a pipeline.
        """
        from vllm_patches.taps.tap import TAP

        if COUNT in TAP.names():
            COUNTS.update(TAP.drain(COUNT))
        return dict(COUNTS) | {STRAYS: self._strays()} if _place()[0] else None

    def _strays(self) -> int:
        kernels = self.interpreted_kernels()
        return 0 if kernels is None else int(kernels["strays"])

    def interpreted_kernels(self) -> dict[str, Any] | None:
        """What the interpreted kernels of this worker have done (`interpreted.launch.Record`); None if none are."""
        launch = sys.modules.get("vllm_patches.interpreted.launch")
        return None if launch is None else dict(launch.RECORD.plain())

    def swap_drafter(self, before: str, after: str) -> str:
        """Give this worker's drafter other weights (`vllm_patches.swap`). Returns why that cannot be, or nothing."""
        from vllm_patches.swap import swap

        try:
            swap(self.model_runner, self.vllm_config, before, after)  # type: ignore[attr-defined]
        except Exception as error:  # whatever a checkpoint made it stumble over: the engine is given up
            return f"{type(error).__name__}: {error}"
        return ""

    def draw_drafts(self, how: str) -> str:
        """Draw drafts from q ("probabilistic") or take its argmax ("greedy") from now on (`swap.draw`).

        Returns why that cannot be, or nothing.
        """
        from vllm_patches.swap import draw

        return draw(self.model_runner, self.vllm_config, how)  # type: ignore[attr-defined]

    def forget_drafts(self) -> None:
        """Have a drafter that remembers what was answered (suffix drafting) forget it; no request may be running."""
        memory = getattr(getattr(self.model_runner, "drafter", None), "suffix_cache", None)  # type: ignore[attr-defined]
        if memory is not None:
            for name in list(memory.active_requests):
                memory.stop_request(name)
            for name in list(memory.cached_requests):
                memory.evict_cached_response(name)

    def start_tap(self, name: str) -> str:
        """Have the listener `name`, a module of `vllm_patches.taps`, hear this worker's verify steps from now on.

        Returns why that cannot be, or nothing.
        """
        from vllm_patches.taps.tap import TAP

        start = importlib.import_module(f"vllm_patches.taps.{name}").start
        try:
            TAP.add(name, start, self.model_runner)  # type: ignore[attr-defined]
        except NotImplementedError as error:
            return str(error)
        return ""

    def stop_tap(self, name: str | None = None) -> None:
        """The listener `name` hears nothing more; without a name: none does, of an engine before this one neither."""
        from vllm_patches.taps.tap import TAP

        if name is None:
            TAP.clear()
        else:
            TAP.remove(name)

    def open_taps(self) -> list[str]:
        """Who hears this worker's verify steps; nobody does if the live verifier is not wrapped."""
        from vllm_patches.taps.tap import TAP, tapped

        return TAP.names() if tapped() else []

    def drain_tap(self, name: str) -> dict[str, Any] | None:
        """What a listener has recorded since the last call, and its `sums`; the sums alone from all but the first rank.

        None from a worker that samples nothing: an earlier stage of a pipeline.
        """
        from vllm_patches.taps.tap import TAP

        drained = TAP.drain(name)
        samples, first, alone = _place()
        if not samples:
            return None
        sums = {} if alone else {"sums": recorder_sums(drained)}
        return drained | sums if first else sums

    def drain_tap_text(self, name: str) -> dict[str, Any] | None:
        """`drain_tap` for an answer that must be JSON, as a server's is: `from_text` makes the same of it."""
        drained = self.drain_tap(name)
        if drained and "values" in drained:
            drained["values"] = base64.b64encode(drained["values"]).decode()
        return drained

    def start_states(self, layers: list[int]) -> str:
        """Keep the hidden states of every token from now on (`taps.states`). Returns why that cannot be, or nothing."""
        from vllm_patches.taps import states

        try:
            states.start(self.model_runner, layers)  # type: ignore[attr-defined]
        except NotImplementedError as error:
            return str(error)
        return ""

    def stop_states(self) -> None:
        """Keep none any more."""
        from vllm_patches.taps import states

        states.stop()

    def drain_states(self) -> dict[str, Any] | None:
        """`States.drain` of the first rank of the last stage; None from every other worker, which has the same."""
        from vllm_patches.taps import states

        drained = states.OPEN[0].drain()
        samples, first, _ = _place()
        return drained if samples and first else None


def v2_truncates(config: Any, speculator: Any) -> bool:
    """Whether the V2 runner of this worker truncates its drafts: the patches of its speculator are active and act."""
    from vllm_patches.patches.v2_draft_truncation import row, truncates

    active = {found.id for found in status() if found.state == ACTIVE}
    return truncates(config) and {row(speculator), "v2-sampling-states"} <= active


def usable_context(config: Any) -> int:
    """Longest sequence that drafts can be made for: past the drafter's limit vLLM drafts nothing, batch-wide."""
    drafter = getattr(config.speculative_config, "draft_model_config", None)
    limits = [config.model_config.max_model_len, getattr(drafter, "max_model_len", None)]
    return min(limit for limit in limits if limit)


def ask(llm: Any) -> list[PatchStatus]:
    """The rows of all workers of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`, in one list.

    Raises what vLLM raises when the extension is missing.
    """
    return [PatchStatus(**row) for worker in llm.collective_rpc("patch_status") for row in worker]


def ask_settings(llm: Any) -> list[dict[str, Any]]:
    """`Extension.engine_settings` of each worker of `llm`."""
    return list(llm.collective_rpc("engine_settings"))


def ask_loading(llm: Any) -> dict[str, Any]:
    """What the workers of `llm` made of the drafter: the first one's report, with what any of them did not fill."""
    reports = list(llm.collective_rpc("drafter_loading"))
    for name in ("unfilled", "unused"):
        reports[0][name] = list(dict.fromkeys(item for report in reports for item in report[name]))
    reports[0]["wrong"] = next((report["wrong"] for report in reports if report["wrong"]), "")
    return {**reports[0], "seen": all(report["seen"] for report in reports)}


def ask_disobedience(llm: Any, asked: Switches) -> str:
    """What a worker of `llm` did other than the environment `asked` for (`state.disobeyed`); empty if all obeyed."""
    rows = [[PatchStatus(**row) for row in worker] for worker in llm.collective_rpc("patch_status")]
    return disobeyed(asked, zip(llm.collective_rpc("patch_switches"), rows, strict=True))


def swap_drafter(llm: Any, before: str, after: str) -> str:
    """Give the drafter of every worker of `llm` the weights of checkpoint `after`; it has those of `before`.

    Returns why a worker cannot, or nothing; then `llm` must not be used again.
    """
    return next(filter(None, llm.collective_rpc("swap_drafter", args=(before, after))), "")


def draw_drafts(llm: Any, how: str) -> str:
    """Have every worker of `llm` draw its drafts so (`Extension.draw_drafts`).

    Returns why a worker cannot, or nothing; then `llm` must not be used again.
    """
    return next(filter(None, llm.collective_rpc("draw_drafts", args=(how,))), "")


def forget_drafts(llm: Any) -> None:
    """Have every worker of `llm` forget what its drafter remembers (`Extension.forget_drafts`)."""
    llm.collective_rpc("forget_drafts")


def ask_kernels(llm: Any) -> list[dict[str, Any]]:
    """`Extension.interpreted_kernels` of the workers of `llm` whose kernels are interpreted."""
    return [record for record in llm.collective_rpc("interpreted_kernels") if record is not None]


def start_tap(llm: Any, name: str) -> str:
    """Have the listener `name` (OVERLAP, EVIDENCE, REPLAY) hear every verify step of `llm` from now on.

    Returns why a worker cannot, or nothing.
    """
    return next(filter(None, llm.collective_rpc("start_tap", args=(name,))), "")


def stop_tap(llm: Any, name: str | None = None) -> None:
    """The listener `name` hears nothing more; without a name: none does, and the verifiers are vLLM's own."""
    llm.collective_rpc("stop_tap", args=(name,))


def ask_taps(llm: Any) -> list[list[str]]:
    """`Extension.open_taps` of each worker of `llm`."""
    return list(llm.collective_rpc("open_taps"))


def drain_tap(llm: Any, name: str) -> dict[str, Any]:
    """What the listener `name` has recorded since the last call, from the worker whose tokens vLLM returns.

    That is the first tensor-parallel rank of the last pipeline stage. The other ranks sample the same, each for
    itself: raises Disagreement if their sums say otherwise.
    """
    first, *others = [drained for drained in llm.collective_rpc("drain_tap", args=(name,)) if drained is not None]
    for rank, other in enumerate(others, start=1):
        if not same_sums(first["sums"], other["sums"]):
            raise Disagreement(f"tensor-parallel rank {rank} verified other drafts than rank 0")
    return dict(first)


def from_text(drained: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `Extension.drain_tap` returned, from what `drain_tap_text` made of it."""
    if drained and "values" in drained:
        return {**drained, "values": base64.b64decode(drained["values"])}
    return drained


def start_states(llm: Any, layers: Sequence[int]) -> str:
    """Keep the target's last state and those after `layers` of every token of `llm` from now on.

    Returns why a worker cannot, or nothing.
    """
    return next(filter(None, llm.collective_rpc("start_states", args=(list(layers),))), "")


def stop_states(llm: Any) -> None:
    """Keep none any more."""
    llm.collective_rpc("stop_states")


def drain_states(llm: Any) -> dict[str, Any]:
    """What was kept since the last call (`taps.states.States.drain`)."""
    return next(drained for drained in llm.collective_rpc("drain_states") if drained is not None)


def ask_counts(llm: Any) -> dict[str, int]:
    """`Extension.draft_counts` of the workers of `llm` that sample; raises Disagreement if they counted differently."""
    first, *others = [counts for counts in llm.collective_rpc("draft_counts") if counts is not None]
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise Disagreement(f"tensor-parallel rank {rank} counted other verify steps than rank 0")
    return dict(first)


def _place() -> tuple[bool, bool, bool]:
    """Whether this worker samples; whether it is the first of those that do; whether it is the only one."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    group = get_tp_group()
    return get_pp_group().is_last_rank, group.is_first_rank, group.world_size == 1


def recorder_sums(drained: dict[str, Any]) -> list[float]:
    """Steps, drafts and the sum of the values of what a listener drained."""
    import numpy as np

    values = np.frombuffer(drained["values"], np.float32)
    return [len(drained["counts"]), sum(drained["counts"]), float(np.nansum(values, dtype=float))]


def same_sums(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two ranks heard the same: they compute p and q each for itself, so that the last digits may differ."""
    return list(a[:2]) == list(b[:2]) and math.isclose(a[2], b[2], rel_tol=SAME)
