"""scripts/new_vllm.py: what a version of vLLM changes for the patches is found in its files, without importing them."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from speceval.exactness.kernels import sources
from vllm_patches import guard, unpatched
from vllm_patches.ledger import LEDGER

ROOT = Path(__file__).resolve().parent.parent
FAKE = "9.1.0"
ROTARY = "vllm.model_executor.layers.rotary_embedding.base"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="reads the installed vLLM's files"),
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("new_vllm", ROOT / "scripts" / "new_vllm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["new_vllm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The installed version's files that the ledger, the hooks and the defects point to, as version 9.1.0."""
    installed = sources.find()
    modules = [*(row.module for row in LEDGER), *guard.HOOKS, *(row.target for row in unpatched.ROWS)]
    paths = {"/".join(module.split(".")[1:count]) for module in modules for count in range(2, 9)}
    wanted = [path for path in installed.files() if path.removesuffix(".py") in paths or path == "__init__.py"]
    wanted += [path for path in installed.files() if path.startswith("v1/worker/gpu/")]
    for path in wanted:
        file = tmp_path / "vllm" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(installed.read(path) or "")
    (tmp_path / "vllm" / "_version.py").write_text(f"__version__ = version = '{FAKE}'\n")
    return tmp_path


def edit(root: Path, module: str, before: str, after: str) -> None:
    file = root / (module.replace(".", "/") + ".py")
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def findings(script: ModuleType, tree: Path) -> dict[str, Any]:
    found = script.examine(sources.find(str(tree)), sources.find())
    return {f"{one.kind} {one.id}": one for one in found}


def test_every_row_of_the_installed_version_is_known(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["installed"]) == 0
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.startswith("ledger ")]
    assert len(table) == len(LEDGER) and {state for _, _, state, _ in table} <= set(script.SETTLED)
    hooks = [line.split() for line in out.splitlines() if line.startswith("hook ")]
    assert len(hooks) == len(guard.HOOKS) and {state for _, _, state, _ in hooks} == {script.SAME}


def test_an_unchanged_copy_of_another_version_brings_the_lines_for_the_ledger(
    script: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tree)]) == 0
    out = capsys.readouterr().out
    assert f'RELEASES: "{FAKE}"' in out and f'cpu-rotary: "{FAKE}": "b749c83b4c38da1e",' in out
    assert "read before pasting" not in out
    ended = {one.id for one in findings(script, tree).values() if one.state == script.ENDED}
    assert ended == {"v1-medusa"}


def test_a_changed_signature_is_shown_beside_the_row_s(
    script: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "def _sample_from_logits(\n        self,"
    edit(tree, "vllm.v1.spec_decode.llm_base_proposer", head, f"{head} cache,")
    assert script.main([str(tree)]) == 1
    out = capsys.readouterr().out
    assert "== ledger v1-draft-sampling: signature" in out and "takes (self, cache, logits" in out
    assert "\n+        self, cache," in out and "\n-        self," in out
    assert "read before pasting: v1-draft-sampling" in out


def test_a_changed_body_is_shown_as_a_diff(script: ModuleType, tree: Path) -> None:
    before = findings(script, tree)["ledger cpu-rotary"]
    edit(tree, ROTARY, "def forward_cpu(\n", "def forward_cpu(  # new\n")
    after = findings(script, tree)["ledger cpu-rotary"]
    assert before.state == script.KNOWN and after.state == script.CHANGED
    assert "+    def forward_cpu(  # new" in after.diff and before.hash != after.hash


def test_a_parameter_more_with_a_default_is_not_another_signature(script: ModuleType, tree: Path) -> None:
    last = "        sampling_metadata: SamplingMetadata,\n"
    head = f"def _sample_from_logits(\n        self,\n        logits: torch.Tensor,\n{last}"
    edit(tree, "vllm.v1.spec_decode.llm_base_proposer", head, f"{head}        more: int = 0,\n")
    assert findings(script, tree)["ledger v1-draft-sampling"].state == script.CHANGED


def test_a_function_that_moved_is_found_by_its_name(script: ModuleType, tree: Path) -> None:
    old = tree / "vllm" / "v1" / "sample" / "rejection_sampler.py"
    old.rename(tree / "vllm" / "v1" / "sample" / "verifier.py")
    found = findings(script, tree)
    for id_, name in (("cpu-expand", "expand_batch_to_tokens"), ("empty-top-k", "apply_sampling_constraints")):
        assert found[f"ledger {id_}"].state == script.MOVED
        notes = " ".join(found[f"ledger {id_}"].notes)
        assert "there is no module vllm.v1.sample.rejection_sampler" in notes
        assert f"perhaps vllm.v1.sample.verifier.{name}" in notes


def test_a_method_that_moved_to_another_class_is_found(script: ModuleType, tree: Path) -> None:
    edit(tree, "vllm.v1.worker.gpu_model_runner", "\nclass GPUModelRunner(\n", "\nclass DraftingRunner(\n")
    found = findings(script, tree)["ledger v1-missing-q"]
    assert found.state == script.MOVED
    place = "perhaps vllm.v1.worker.gpu_model_runner.DraftingRunner._get_spec_decode_draft_probs"
    assert place in found.notes


def test_a_function_that_vanished_is_gone(script: ModuleType, tree: Path) -> None:
    edit(tree, "vllm.v1.sample.rejection_sampler", "def expand_batch_to_tokens(", "def spread_to_tokens(")
    found = findings(script, tree)["ledger cpu-expand"]
    assert found.state == script.GONE and not found.hash
    assert found.notes == ("vllm.v1.sample.rejection_sampler has no expand_batch_to_tokens",)


def test_a_changed_hook_and_a_changed_defect_are_shown(script: ModuleType, tree: Path) -> None:
    edit(tree, "vllm.v1.engine.input_processor", "def _validate_params(\n", "def _validate_params(  # new\n")
    edit(tree, "vllm.config.speculative", "draft_sample_method: Draft", "draft_sample_method: Any | Draft")
    (tree / "vllm" / "v1" / "worker" / "gpu" / "spec_decode" / "rejection_sampler_utils.py").write_text(
        "changed = True\n"
    )
    found = findings(script, tree)
    assert found["hook InputProcessor._validate_params"].state == script.CHANGED
    assert found["defect greedy-by-default"].state == script.CHANGED
    assert "changed: v1/worker/gpu/spec_decode/rejection_sampler_utils.py" in found["defect v2-block-reuse"].notes
    assert found["hook EngineArgs.create_engine_config"].state == script.SAME


def test_a_wheel_says_what_its_files_say(script: ModuleType, tree: Path) -> None:
    wheel = tree / "vllm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (tree / "vllm").rglob("*.py"):
            archive.write(file, file.relative_to(tree))
        archive.writestr(f"vllm-{FAKE}.dist-info/METADATA", "")
    unpacked = findings(script, tree)
    packed = {f"{one.kind} {one.id}": one for one in script.examine(sources.find(str(wheel)), sources.find())}
    assert packed == unpacked


def test_what_is_no_vllm_is_said_in_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path / "no.whl")]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"SOURCE {tmp_path / 'no.whl'}: no such file")


def test_nothing_of_vllm_is_imported(script: ModuleType, tree: Path) -> None:
    for file in (tree / "vllm").rglob("*.py"):
        if file.name == "__init__.py":
            file.write_text("raise SystemExit('imported')\n" + file.read_text())
    assert script.main([str(tree)]) == 0
