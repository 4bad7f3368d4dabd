"""What `load` gives to Triton's compiler: all that a kernel names. No GPU: the compiler looks before it compiles."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")]

HELPER = """
from vllm.triton_utils import tl, triton

@triton.jit
def helper(x):
    return x + 1

def no_kernel(x):
    return x
"""
KERNEL = """
from vllm.elsewhere import no_kernel
from vllm.triton_utils import tl, triton
from vllm.v1.worker.gpu.beside import helper

@triton.jit
def _kernel(x, WITH: tl.constexpr):
    if WITH:
        tl.store(x, helper(tl.load(x)))
"""
LOOK = """
import sys
from pathlib import Path
from triton.runtime.jit import JITFunction
from speceval.exactness.kernels import load
from speceval.exactness.kernels.sources import find

source, folder = find(sys.argv[1]), Path(sys.argv[2])
print("helpers", *load.called(source))
for path, module in load.load(source, folder, "compiled").items():
    for name, value in vars(module).items():
        if isinstance(value, JITFunction):
            value.cache_key  # raises for a name that the compiler does not know
            print("kernel", name)
"""


def look(source: str, folder: Path) -> list[str]:
    """Helpers' files and kernels of a source, all of them looked at by Triton's compiler; in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOOK, source, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_kernel_that_another_files_kernel_is_named_in_is_loaded_with_it(tmp_path: Path) -> None:
    root = tmp_path / "tree" / "vllm"
    files = {"v1/worker/gpu/sample/gumbel.py": KERNEL, "v1/worker/gpu/beside.py": HELPER, "elsewhere.py": HELPER}
    for path, text in {**files, "__init__.py": "", "_version.py": "__version__ = '0.32.0'\n"}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (folder := tmp_path / "out").mkdir()
    assert look(str(root), folder) == ["helpers v1/worker/gpu/beside.py", "kernel helper", "kernel _kernel"]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_every_kernel_of_the_installed_version_can_be_given_to_the_compiler(tmp_path: Path) -> None:
    lines = look("installed", tmp_path)
    assert {"kernel _rejection_kernel", "kernel _resample_kernel", "kernel _gumbel_sample_kernel"} <= set(lines)
