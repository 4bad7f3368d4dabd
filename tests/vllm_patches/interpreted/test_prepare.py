"""What prepares a process for V2 on a CPU does nothing unless it is asked to, and says when it is too late."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_patches import interpreted

FOLDER = Path(interpreted.__file__).parent

SCRIPT = """
import sys
from vllm_patches import interpreted
{first}
print(interpreted.prepare())
print("triton" in sys.modules, "vllm" in sys.modules)
if "triton" in sys.modules:
    import triton
    from triton.backends import backends
    print("cpu" in backends, type(triton.language.max).__name__)
"""


def prepared(first: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process prints that calls `prepare`."""
    clean = {name: value for name, value in os.environ.items() if name not in interpreted.ENVIRONMENT}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first)], env=clean | environment, capture_output=True, text=True
    )


def test_without_the_switch_nothing_is_imported_or_changed() -> None:
    for switch in ({}, {interpreted.SWITCH: "0"}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}):
        assert prepared(**switch).stdout.split("\n")[:2] == ["None", "False False"]


def test_triton_gets_a_cpu_backend_and_vllm_is_not_imported() -> None:
    pytest.importorskip("triton")
    result = prepared(**interpreted.ENVIRONMENT)
    assert result.stdout.split("\n")[:3] == ["None", "True False", "True InterpretedFunction"], result.stderr


@pytest.mark.slow
def test_what_torch_would_compile_runs_as_it_is() -> None:
    pytest.importorskip("triton")
    script = "from vllm_patches import interpreted; interpreted.prepare(); import torch; " + (
        "print(torch.compile(lambda x: 2 * x + 1)(torch.ones(2)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | interpreted.ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "[3.0, 3.0]\n", done.stderr


def test_triton_that_was_imported_to_compile_cannot_interpret_any_more() -> None:
    pytest.importorskip("triton")
    result = prepared("import os; del os.environ['TRITON_INTERPRET']; import triton", **interpreted.ENVIRONMENT)
    assert "RuntimeError: Triton was imported to compile" in result.stderr


DECIDING = "import types; deciding = sys.modules['vllm.triton_utils.importing'] = types.ModuleType('importing')"
"""As a worker process has it when vLLM loads platform plugins in the middle of this module's import."""


def test_vllm_that_is_about_to_decide_whether_there_is_triton_is_told_in_time() -> None:
    pytest.importorskip("triton")
    result = prepared(DECIDING, **interpreted.ENVIRONMENT)
    assert result.stdout.split("\n")[2] == "True InterpretedFunction", result.stderr


def test_vllm_that_has_decided_against_triton_cannot_be_told_any_more() -> None:
    pytest.importorskip("triton")
    result = prepared(f"{DECIDING}; deciding.HAS_TRITON = False", **interpreted.ENVIRONMENT)
    assert "RuntimeError: vLLM has started without Triton" in result.stderr


def test_no_file_imports_vllm_or_speceval() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.partition(".")[0] in ("vllm", "speceval") for name in names), (path.name, names)
