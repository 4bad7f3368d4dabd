"""A drafter's method has one name, its own: vLLM's name for a class of ours reaches nothing that is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speceval.estimate.baseline import Baseline
from speceval.show import layouts, render
from speceval.show.export import FORMATS, export
from speceval.show.plots import style, tau_k
from speceval.store import read_run
from speceval.store.older import own_method
from speceval.store.schema import SCHEMA_VERSION
from speceval.zoo.recipe import METHODS
from vllm_patches import methods
from vllm_patches.worker import Extension

pytestmark = pytest.mark.slow


REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STORED = sorted(path.parent for path in REFERENCE.glob("**/run.json"))
MLP = [path for path in STORED if "-mlp-" in path.name]


def texts(directory: Path) -> list[str]:
    """Whatever is published of a stored run."""
    run = read_run(directory)
    shown = [export(run, kind) for kind in FORMATS]
    shown += [render.markdown(layouts.build(layout, [directory])) for layout in layouts.LAYOUTS]
    return [*shown, *style.labels([run]), tau_k.draw([run]).caption, repr(run.meta)]


@pytest.mark.parametrize("directory", STORED, ids=lambda path: path.name)
def test_nothing_shown_of_a_stored_run_bears_the_transport_name(directory: Path) -> None:
    meta = read_run(directory).meta
    architecture = meta.spec.draft.rpartition("-")[2]
    assert meta.fingerprint.engine.method == METHODS[architecture]
    assert not [text for text in texts(directory) if methods.TRANSPORT in text]


@pytest.mark.parametrize("schema", [2, SCHEMA_VERSION])
def test_a_run_that_was_stored_with_the_transport_name_shows_its_own(tmp_path: Path, schema: int) -> None:
    directory = shutil.copytree(MLP[0], tmp_path / "run")
    meta = json.loads((directory / "run.json").read_text())
    if schema == SCHEMA_VERSION:
        meta = read_run(directory).meta.model_dump(mode="json")
    meta["fingerprint"]["engine"]["method"] = methods.TRANSPORT
    (directory / "run.json").write_text(stored := json.dumps(meta | {"schema": schema}))
    assert not [text for text in texts(directory) if methods.TRANSPORT in text]
    assert read_run(directory).meta.fingerprint.engine.method == "mlp_speculator"
    assert (directory / "run.json").read_text() == stored


def test_a_run_of_an_mlp_speculator_has_the_curve_of_tau_against_k() -> None:
    assert MLP and all(tau_k.has_curve(read_run(directory)) for directory in MLP)


def fingerprint(draft: str, vllm: str, model: str = "local", method: str = methods.TRANSPORT) -> dict[str, Any]:
    return {"draft": {"name": draft, "model": model}, "engine": {"method": method, "vllm": vllm}}


@pytest.mark.parametrize(
    ("stored", "method"),
    [
        (fingerprint("kl-mlp", "0.33.0"), "mlp_speculator"),
        (fingerprint("kl-medusa", "0.33.0"), "medusa"),
        (fingerprint("lk", "0.33.1", "nebius/MEDUSA-Llama-3.1-8B-Instruct"), "medusa"),
        (fingerprint("./medusa-or-so", "0.32.0+cpu"), "mlp_speculator"),  # vLLM had MEDUSA itself
        (fingerprint("./mine", "0.33.0"), "heads"),
        (fingerprint("kl-medusa", "0.32.0", method="medusa"), "medusa"),
    ],
)
def test_the_method_behind_a_stored_transport_name(stored: dict[str, Any], method: str) -> None:
    assert own_method(stored)["engine"]["method"] == method


def test_a_baseline_file_of_before_is_read_with_the_method_s_own_name() -> None:
    run = read_run(MLP[0])
    stored = Baseline.of(run).model_dump(mode="json")
    stored["fingerprint"]["engine"]["method"] = methods.TRANSPORT
    assert Baseline.model_validate(stored).fingerprint.engine.method == "mlp_speculator"


@pytest.mark.parametrize("method", methods.HEADS)
def test_a_worker_tells_the_method_behind_vllm_s_own_name(method: str) -> None:
    config: Any = SimpleNamespace(
        speculative_config=SimpleNamespace(method=methods.TRANSPORT, model=methods.HEADS[method][0]),
        use_v2_model_runner=False,
        model_config=SimpleNamespace(dtype="f", quantization=None, enforce_eager=True, max_model_len=8),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=False),
        scheduler_config=SimpleNamespace(max_num_seqs=1, max_num_batched_tokens=1, async_scheduling=False),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1),
        additional_config={},
    )
    worker = Extension()
    vars(worker).update(vllm_config=config, device=SimpleNamespace(type="cpu"))
    assert worker.engine_settings()["method"] == method


def test_the_classes_of_ours_are_where_vllm_is_told_to_look_for_them() -> None:
    from vllm_patches import drafters as heads

    ours = [found for found in heads.Heads.__subclasses__() if found.__module__ == heads.__name__]
    paths = {f"{found.__module__}.{found.__qualname__}" for found in ours}
    assert paths == {path for path, _ in methods.HEADS.values()}
