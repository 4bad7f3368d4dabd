"""Combinations that no patch makes right are refused with one line that names the mend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_patches.refuse import check, check_config
from vllm_patches.versions import RELEASES

SAMPLED = {"method": "eagle3", "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"}


@pytest.mark.parametrize("version", [*RELEASES, f"{RELEASES[0]}+cpu"])
@pytest.mark.parametrize("runner", ["V1", "V2"])
@pytest.mark.parametrize("mode", ["probabilistic", "greedy"])
def test_standard_rejection_is_offered_in_every_supported_version(version: str, runner: str, mode: str) -> None:
    assert check(version, runner, {**SAMPLED, "draft_sample_method": mode}) is None
    assert check(version, runner, {**SAMPLED, "rejection_sample_method": "standard"}) is None


@pytest.mark.parametrize(
    ("version", "runner", "changed", "options", "says"),
    [
        ("0.32.0", "V2", {"num_speculative_tokens": 0}, {}, "nothing would be drafted"),
        ("0.32.0", "V2", {"rejection_sample_method": "block"}, {}, "biased in vLLM 0.32.0"),
        ("0.29.0", "V2", {"rejection_sample_method": "block"}, {}, "right from 0.33 on"),
        ("0.33.0", "V1", {"rejection_sample_method": "block"}, {}, "V1 runner ignores it"),
        ("0.33.0", "V2", {"rejection_sample_method": "fly"}, {}, "lossy by design"),
        ("0.33.0", "V2", {"rejection_sample_method": "synthetic"}, {}, "nothing to measure"),
        ("0.33.0", "V2", {"rejection_sample_method": "unheard"}, {}, "not known to be lossless"),
        ("0.33.0", "V2", {"method": "dflash"}, {"draft_architectures": ["Qwen3XPressModel"]}, "never written"),
        ("0.32.0", "V2", {}, {"structured_outputs": True}, "breaks the grammar"),
        ("0.33.0", "V2", {}, {"structured_outputs": True}, "breaks the grammar"),
        ("0.32.0", "V1", {}, {"target_vocab": 32064, "draft_vocab": 32000}, "wrong places"),
        ("0.32.0", "V2", {}, {"target_vocab": 32000, "draft_vocab": 32064}, "wrong places"),
    ],
)
def test_refused_in_one_line(
    version: str, runner: str, changed: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    reason = check(version, runner, {**SAMPLED, **changed}, **options)
    assert reason is not None
    assert says in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("version", "runner", "changed", "options"),
    [
        ("0.33.0", "V2", {"rejection_sample_method": "block"}, {}),
        ("0.33.0", "V2", {"draft_sample_method": "greedy"}, {"draft_architectures": ["Qwen3XPressModel"]}),
        ("0.33.0", "V2", {"method": "dflash"}, {"draft_architectures": ["DFlashQwen3ForCausalLM"]}),
        ("0.32.0", "V1", {}, {"structured_outputs": True}),
        ("0.32.0", "V2", {"draft_sample_method": "greedy"}, {"structured_outputs": True}),
        ("0.32.0", "V1", {"method": "ngram"}, {"structured_outputs": True}),
        ("0.32.0", "V2", {}, {"target_vocab": 32064, "draft_vocab": 32000}),
        ("0.32.0", "V2", {"rejection_sample_method": "block"}, {"temperature": 0.0}),
        ("0.32.0", "V1", {}, {"structured_outputs": True, "temperature": 0.0}),
    ],
)
def test_lossless_neighbours_are_not_refused(
    version: str, runner: str, changed: dict[str, Any], options: dict[str, Any]
) -> None:
    assert check(version, runner, {**SAMPLED, **changed}, **options) is None


@pytest.mark.parametrize("method", ["medusa", "mlp_speculator", "suffix"])
def test_what_the_v2_runner_has_no_drafter_for_is_refused_by_name(method: str) -> None:
    for temperature in (0.0, 1.0):
        asked = {**SAMPLED, "method": method}
        line = check("0.32.0", "V2", asked, temperature=temperature) or ""
        assert line.startswith(f"the V2 runner has no drafter for {method}: use the V1 runner")
        assert check("0.32.0", "V1", asked, temperature=temperature) is None


@pytest.mark.parametrize("kind", ["Medusa", "MLPSpeculator"])
def test_drafters_of_ours_may_draft_on_v2_from_the_version_on_that_they_were_made_for(kind: str) -> None:
    own = {**SAMPLED, "method": "custom_class", "model": f"vllm_patches.drafters.{kind}"}
    assert check("0.32.0", "V2", own) is check("0.33.0", "V2", own) is check("0.31.0", "V1", own) is None
    assert "no drafter for m" in (check("0.31.0", "V2", own) or "")


def test_a_known_answer_engine_may_be_synthetic_and_nothing_else_that_is_refused() -> None:
    forced = {**SAMPLED, "rejection_sample_method": "synthetic"}
    for version, runner in (("0.32.0+cpu", "V1"), ("0.33.0", "V2")):
        assert "nothing to measure" in (check(version, runner, forced) or "")
        assert check(version, runner, forced, known_answer=True) is None
    for method, says in (("fly", "lossy by design"), ("block", "ignores it"), ("unheard", "not known")):
        changed = {**SAMPLED, "rejection_sample_method": method}
        assert says in (check("0.32.0", "V1", changed, known_answer=True) or "")


def resolved(**changed: Any) -> SimpleNamespace:
    """As much of a VllmConfig as is read."""
    width = {"target": 32000, "draft": 32000, "v2": False, **changed}
    model = SimpleNamespace(
        get_vocab_size=lambda: width["draft"], hf_config=SimpleNamespace(architectures=["LlamaForCausalLMEagle3"])
    )
    spec = SimpleNamespace(**SAMPLED, rejection_sample_method="standard", draft_model_config=model)
    target = SimpleNamespace(get_vocab_size=lambda: width["target"])
    return SimpleNamespace(
        speculative_config=spec, model_config=target, use_v2_model_runner=width["v2"], additional_config={}
    )


def test_a_resolved_engine_config_is_checked_field_by_field() -> None:
    assert check_config(resolved(), "0.32.0") is None
    assert "wrong places" in (check_config(resolved(draft=32064), "0.32.0") or "")
    blocked = resolved(v2=True)
    blocked.speculative_config.rejection_sample_method = "block"
    assert "biased in vLLM 0.32.0" in (check_config(blocked, "0.32.0") or "")
    assert check_config(blocked, "0.33.0") is None
    assert check_config(SimpleNamespace(speculative_config=None), "0.32.0") is None
