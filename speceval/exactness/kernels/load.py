"""Loads a vLLM version's own sampling code without the rest of vLLM. Runs in a subprocess of `exactness.kernels`.

The files in `MODULES` are written, as they are but for `EDITS`, into a directory of their own and imported from
there. Whatever else they import from vLLM is a stand-in: it is named when used, and never silently does anything.
The `triton` they see is, by choice, `simt` (all programs of a launch at once) or the real package: its interpreter
(TRITON_INTERPRET=1) on a CPU, its compiler on a GPU.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from speceval.exactness.kernels.sources import Source
from vllm_patches import source_text
from vllm_patches.interpreted import simt

V1_REJECTION = "v1/sample/rejection_sampler.py"
V1_PROPOSER = "v1/spec_decode/llm_base_proposer.py"
V1_NOISE = "v1/sample/ops/topk_topp_sampler.py"
V2_GUMBEL = "v1/worker/gpu/sample/gumbel.py"
V2_REJECTION = "v1/worker/gpu/spec_decode/rejection_sampler_utils.py"
V2_SPECULATOR = "v1/worker/gpu/spec_decode/speculator.py"
MODULES = (V1_REJECTION, V2_GUMBEL, V2_REJECTION)
"""Imported whole; of the proposer, the noise and the speculator single functions are taken (`pick`)."""

BLOCK = 4
"""Vocabulary entries of a block: small, so that a toy vocabulary still spans several blocks."""
EDITS = ((r"\b((?:VOCAB_|RESAMPLE_)?BLOCK_SIZE) ?= ?\d+", rf"\1={BLOCK}"),)
"""(pattern, replacement) on the sources: the size of vocabulary blocks in a launch, nothing else."""
INTERPRETER_EDITS = (
    (r"tldevice\.log1p\((.*?)\)", r"tl.log(1.0 + (\1))"),
    (r"^(\s+)True,  # mask$", r"\1tl.full((), 1, tl.int32) == 1,  # mask"),
    (r"mask=(mask & \w+),", r"mask=(\1) != 0,"),
)
"""Triton's interpreter has no libdevice, and wants tensors of truth values for masks."""


failures: dict[str, str] = {}
"""Files of `MODULES` that could not be imported in the last `load`, and why."""


class Missing(Exception):
    """This version has no such code, or it needs more of vLLM than can be stood in for. The message says which."""


class StandIn:
    """In place of anything else of vLLM: may be imported, subclassed around and passed on; calling it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise Missing(f"{self._name} would be executed, which is not loaded")

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return StandIn(f"{self._name}.{attribute}")

    def __eq__(self, other: object) -> bool:  # Triton compares a kernel's globals with copies it made of them
        return isinstance(other, StandIn) and other._name == self._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class StandInModule(ModuleType):
    """A module of vLLM that is not loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")


class Finder(MetaPathFinder, Loader):
    """Serves `vllm.*`: the written files, and stand-ins for the rest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] != "vllm":
            return None
        file = self.directory / (fullname.replace(".", "/") + ".py")
        if file.exists():
            return importlib.util.spec_from_file_location(fullname, file)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def load(source: Source, directory: Path, how: str) -> dict[str, ModuleType]:
    """Import `MODULES` of a version: path -> module, without the files that this version does not have.

    `how` is "simt", "interpreter" or "compiled"; `directory` is empty and kept while the modules live. Call it once
    in a process, and again only after `forget`. What cannot be imported with stand-ins is left out too (`failures`).
    """
    edits = {"simt": EDITS, "interpreter": EDITS + INTERPRETER_EDITS, "compiled": ()}[how]
    sys.meta_path.insert(0, Finder(directory))
    sys.modules["vllm.triton_utils"] = _triton(how)
    helper = StandInModule("vllm.model_executor.warmup.jit_warmup_triton_helper")
    vars(helper)["triton_kernel_dispatcher_with_warmup"] = dispatcher
    sys.modules[helper.__name__] = helper
    log = StandInModule("vllm.logger")
    vars(log)["init_logger"] = logging.getLogger
    sys.modules[log.__name__] = log
    noise = StandInModule("vllm." + V1_NOISE.removesuffix(".py").replace("/", "."))
    vars(noise)["apply_top_k_top_p"] = untruncated
    sys.modules[noise.__name__] = noise
    modules = {}
    helpers = called(source) if how == "compiled" else []
    for path in (*MODULES, *helpers):
        text = source.read(path)
        if text is None:
            continue
        for pattern, replacement in edits:
            text = re.sub(pattern, replacement, text, flags=re.M)
        file = directory / "vllm" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    failures.clear()
    for path in MODULES:
        if not (directory / "vllm" / path).exists():
            failures[path] = "does not exist"
            continue
        try:
            modules[path] = importlib.import_module("vllm." + path.removesuffix(".py").replace("/", "."))
        except Exception as error:  # code of an unknown version may raise anything
            failures[path] = f"cannot be loaded: {type(error).__name__}: {error}"
    return modules


def called(source: Source) -> list[str]:
    """Files beside `MODULES` whose kernels the kernels of `MODULES` may call, by import.

    Triton's compiler looks at every function that a kernel names, also where the launch leaves the call out.
    """
    files = list(MODULES)
    for path in files:
        text = source.read(path)
        imports = [node for node in ast.parse(text or "").body if isinstance(node, ast.ImportFrom)]
        for node in imports:
            file = (node.module or "").removeprefix("vllm.").replace(".", "/") + ".py"
            theirs = source.read(file) if (node.module or "").startswith("vllm.") and file not in files else None
            if theirs and "@triton.jit" in theirs and any(_is_kernel(theirs, name.name) for name in node.names):
                files.append(file)
    return files[len(MODULES) :]


def _is_kernel(text: str, name: str) -> bool:
    node = source_text.find(ast.parse(text), name)
    return any("triton.jit" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))


def require(modules: dict[str, ModuleType], path: str) -> ModuleType:
    """The module of a file. Raises `Missing` with the reason why there is none."""
    if path not in modules:
        raise Missing(f"vllm/{path} {failures.get(path, 'is not loaded')}")
    return modules[path]


def forget() -> None:
    """Undo `load`, so that another version or another Triton can be loaded."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def pick(source: Source, path: str, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """One function (`f` or `Class.f`) of a file, defined with `names` as its globals. Raises `Missing`."""
    text = source.read(path)
    if text is None:
        raise Missing(f"vllm/{path} does not exist")
    found = source_text.find(ast.parse(text), name)
    if not isinstance(found, ast.FunctionDef):
        raise Missing(f"vllm/{path} has no {name}")
    found.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, found], []), f"vllm/{path}", "exec"), names)
    function: Callable[..., Any] = names[found.name]
    return function


def untruncated(logits: Any, top_k: Any, top_p: Any) -> Any:
    """vLLM's `apply_top_k_top_p` for requests without either."""
    if top_k is not None or top_p is not None:
        raise Missing("top-k and top-p would be applied, which are not loaded")
    return logits


def dispatcher(*, kernel: Any, **warmup: Any) -> Callable[..., Callable[..., None]]:
    """vLLM's `triton_kernel_dispatcher_with_warmup` less the warm-up: arguments go to the parameters of their name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        signature = inspect.signature(function)

        def launch(*args: Any, **kwargs: Any) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            grid, fixed = function(*args, **kwargs)[:2]
            given = {**{f"{name}_ptr": value for name, value in bound.arguments.items()}, **bound.arguments, **fixed}
            kernel[grid](**{name: given[name] for name in kernel.arg_names})

        return launch

    return decorate


def _triton(how: str) -> ModuleType:
    module = StandInModule("vllm.triton_utils")
    if how == "simt":
        parts: dict[str, Any] = {"triton": simt.triton, "tl": simt.tl, "tldevice": simt.tldevice}
    else:
        names = {"triton": "triton", "tl": "triton.language"}
        names |= {"tldevice": "triton.language.extra.libdevice"} if how == "compiled" else {}
        parts = {short: importlib.import_module(name) for short, name in names.items()}
    vars(module).update(parts, HAS_TRITON=True)
    return module
