"""A drafter's config.json -> method, K limits and fit, in agreement with vLLM's own source where it is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from speceval import catalog
from speceval.catalog.methods import METHODS
from speceval.catalog.recognise import recognise
from speceval.errors import UserError

HEADS = {"num_heads": 3, "hidden_size": 96, "vocab_size": 512}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
SPECULATORS = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "speculators_config": {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
        "verifier": {"name_or_path": "openai/gpt-oss-20b"},
    },
    "draft_vocab_size": 64000,
    "transformer_layer_config": {"model_type": "llama", "hidden_size": 2880, "vocab_size": 201088},
}


@pytest.mark.parametrize(
    ("config", "path", "method"),
    [
        ({**LLAMA, "architectures": ["LlamaForCausalLMEagle3"]}, "d", "eagle3"),
        ({**LLAMA, "architectures": ["Eagle3LlamaForCausalLM"]}, "d", "eagle3"),
        ({**LLAMA, "architectures": ["Eagle3Qwen3ForCausalLM"]}, "d", "eagle3"),
        ({**LLAMA, "draft_vocab_size": 32000}, "d", "eagle3"),
        ({**LLAMA}, "someone/EAGLE3-LLaMA", "eagle3"),
        ({**LLAMA}, "yuhuili/EAGLE-LLaMA3-Instruct-8B", "eagle"),
        ({**LLAMA, "architectures": ["EagleLlamaForCausalLM"]}, "d", "eagle"),
        ({"model_type": "eagle", "model": {"hidden_size": 8}}, "d", "eagle"),
        (SPECULATORS, "d", "eagle3"),
        ({**SPECULATORS, "speculators_model_type": "peagle"}, "d", "eagle3"),
        ({**SPECULATORS, "speculators_model_type": "dflash2"}, "d", "dflash"),
        ({"architectures": ["DFlashDraftModel"], "model_type": "qwen3"}, "d", "dflash"),
        ({"architectures": ["Qwen3XPressModel"], "model_type": "qwen3", "draft_vocab_size": 9}, "d", "dflash"),
        ({"architectures": ["Qwen3DSparkModel"], "model_type": "qwen3"}, "d", "dspark"),
        ({"architectures": ["MedusaModel"], "model_type": "medusa", "num_heads": 4}, "d", "medusa"),
        ({"medusa_num_heads": 5, "medusa_num_layers": 1}, "d", "medusa"),
        ({"architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator"}, "d", "mlp_speculator"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}, "d", "mtp"),
        ({"architectures": ["MiMoForCausalLM"], "model_type": "mimo"}, "d", "mtp"),
        ({"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h"}, "d", "draft_model"),
        (
            {"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "num_nextn_predict_layers": 1},
            "d",
            "mtp",
        ),
        ({**LLAMA, "num_hidden_layers": 16}, "meta-llama/Llama-3.2-1B-Instruct", "draft_model"),
    ],
)
def test_each_drafter_format_is_recognised(config: dict[str, Any], path: str, method: str) -> None:
    assert recognise(config, path).method == method


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"model_type": "medusa", "num_heads": 4}, (4, 4, 1)),
        ({"medusa_num_heads": 5}, (5, 5, 1)),
        ({"model_type": "mlp_speculator", "n_predict": 3, "top_k_tokens_per_head": [1, 1, 1]}, (3, 3, 1)),
        ({"model_type": "deepseek_v3", "num_nextn_predict_layers": 2}, (None, None, 2)),
        (SPECULATORS, (3, None, 1)),
        ({**LLAMA, "draft_vocab_size": 32000}, (None, None, 1)),
    ],
)
def test_k_limits_are_read(config: dict[str, Any], limits: tuple[int | None, int | None, int]) -> None:
    facts = recognise(config, "d")
    assert (facts.default_k, facts.max_k, facts.k_unit) == limits


def test_k_of_two_mtp_layers_must_be_a_multiple_beyond_them(tmp_path: Path) -> None:
    draft = local_pair(
        tmp_path,
        {"model_type": "deepseek_v3", "hidden_size": 8, "vocab_size": 16},
        {"model_type": "deepseek_v3", "num_nextn_predict_layers": 2, "hidden_size": 8, "vocab_size": 16},
    ).draft
    assert draft is not None
    for k in (1, 2, 4):
        catalog.check_k(draft, k)
    with pytest.raises(UserError, match="multiple"):
        catalog.check_k(draft, 3)


def test_parallel_drafters_ask_vllm_for_parallel_drafting() -> None:
    assert recognise({**SPECULATORS, "speculators_model_type": "peagle"}, "d").engine_args == {
        "parallel_drafting": True
    }
    assert recognise(SPECULATORS, "d").engine_args == {}


@pytest.mark.parametrize("token", ["pard_token", "ptd_token_id"])
def test_a_draft_model_with_a_token_for_parallel_drafting_asks_vllm_for_it(token: str) -> None:
    for config in (LLAMA, {**LLAMA, "draft_vocab_size": 32000}):
        assert recognise({**config, token: 20}, "d").engine_args == {"parallel_drafting": True}
    assert recognise({"model_type": "medusa", "num_heads": 2, token: 20}, "d").engine_args == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": "512"}, "field 'vocab_size': text instead of a whole number"),
        ({"hidden_size": 96.0}, "field 'hidden_size': a number instead of a whole number"),
        ({"num_hidden_layers": True}, "field 'num_hidden_layers': true or false instead of a whole number"),
        ({"draft_vocab_size": [384]}, "field 'draft_vocab_size': a list instead of a whole number"),
        ({"vocab_size": 0}, "field 'vocab_size': 0, at least 1"),
        ({"architectures": "LlamaForCausalLM"}, "field 'architectures': text instead of a list"),
        ({"architectures": [None]}, "field 'architectures': null instead of text"),
        ({"model_type": 3}, "field 'model_type': a whole number instead of text"),
        ({"text_config": []}, "field 'text_config': a list instead of an object"),
        ({"text_config": {"vocab_size": "512"}}, "field 'vocab_size': text instead of a whole number"),
        ({"eagle_config": "none"}, "field 'eagle_config': text instead of an object"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": "1,2"}},
            "eagle_config.eagle_aux_hidden_state_layer_ids'",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, "2"]}, "field 'eagle_aux_hidden_state_layer_ids': text instead"),
        ({"pard_token": "<mask>"}, "field 'pard_token': text instead of a whole number"),
        ({"medusa_num_heads": "five"}, "field 'medusa_num_heads': text instead of a whole number"),
        (
            {"speculators_config": {"proposal_methods": ["greedy"]}},
            "speculators_config.proposal_methods': text instead",
        ),
        ({"speculators_config": {"proposal_methods": {}}}, "speculators_config.proposal_methods': an object instead"),
        ({"speculators_config": {"verifier": "llama"}}, "field 'speculators_config.verifier': text instead"),
        ({"speculators_config": {"proposal_methods": [{"speculative_tokens": "3"}]}}, "speculative_tokens': text"),
    ],
)
def test_a_field_of_another_kind_is_one_line_that_names_file_and_field(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    config = SPECULATORS if "speculators_config" in changes else LLAMA
    changes = {
        name: config.get(name, {}) | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    with pytest.raises(UserError) as caught:
        local_pair(tmp_path, TARGET, {**config, **changes})
    assert told in str(caught.value) and f"{tmp_path}/draft/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "method"),
    [
        (("fc.weight", "layers.0.mlp.up_proj.weight"), "eagle"),
        (("model.fc.weight", "model.embed_tokens.weight"), "eagle"),
        (("fc.weight", "midlayer.mlp.up_proj.weight"), "eagle3"),
        (("model.embed_tokens.weight", "lm_head.weight"), "draft_model"),
    ],
)
def test_an_eagle_head_with_the_config_of_a_plain_model_is_told_by_its_tensors(
    tmp_path: Path, tensors: tuple[str, ...], method: str
) -> None:
    assert recognise(LLAMA, "some/head", tensors=lambda: tensors).method == method
    local_pair(tmp_path, TARGET, TARGET)
    save_file({name: np.zeros(1) for name in tensors}, tmp_path / "draft" / "model.safetensors")
    pair = catalog.fetch(catalog.resolve(str(tmp_path / "target"), str(tmp_path / "draft")))
    assert pair.draft is not None and pair.draft.method == method


def test_medusa_heads_without_sizes_are_refused_with_the_values_that_they_need(tmp_path: Path) -> None:
    pair = local_pair(tmp_path, TARGET, {"medusa_num_heads": 2, "medusa_num_layers": 1})
    with pytest.raises(UserError, match=r"does not say vocab_size and hidden_size.*add vocab_size 512, hidden_size 96"):
        catalog.fetch(pair)


def test_null_counts_as_absent(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("vocab_size", "eagle_config", "text_config", "draft_vocab_size", "speculators_config"))
    assert local_pair(tmp_path, TARGET, {**TARGET, **nothing, "num_hidden_layers": 1}).draft is not None


@pytest.mark.parametrize(("method", "config"), [("eagle", LLAMA), ("eagle3", LLAMA), ("medusa", HEADS)])
def test_the_method_of_a_checkpoint_that_does_not_tell_may_be_given(
    tmp_path: Path, method: str, config: dict[str, Any]
) -> None:
    local_pair(tmp_path, TARGET, LLAMA)
    (tmp_path / "draft" / "config.json").write_text(json.dumps(config))
    pair = catalog.resolve(str(tmp_path / "target"), str(tmp_path / "draft"), method)
    assert pair.draft is not None and pair.draft.method == method
    fetched = catalog.fetch(pair).draft
    assert fetched is not None and fetched.method == method


@pytest.mark.parametrize(
    ("draft", "method", "told"),
    [
        ("ngram", "suffix", "ngram is known to be ngram"),
        ("lk-eagle3", "eagle", "lk-eagle3 is known to be eagle3"),
        ("lk-eagle3", "eagle2", r"--method eagle2: unknown; did you mean eagle.*known: eagle, eagle3"),
    ],
)
def test_a_method_that_contradicts_what_is_known_is_refused(draft: str, method: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        catalog.resolve("zoo", draft, method)


@pytest.mark.parametrize("path", ["/home/me/eagle3-work/heads", "me/dflash-notes"])
def test_a_path_that_makes_vllm_pick_another_method_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="vLLM takes it for"):
        recognise({"model_type": "medusa", "num_heads": 4}, path)


@pytest.mark.parametrize(
    "config", [{"model_type": "bert", "architectures": ["BertModel"]}, {"speculators_model_type": "hass"}, {}]
)
def test_configs_of_no_drafter_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        recognise(config, "d")


# -- fit ---------------------------------------------------------------------------------------------------------------

TARGET = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "vocab_size": 512,
    "num_hidden_layers": 3,
}
EAGLE3 = {**TARGET, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 384}


def local_pair(root: Path, target: dict[str, Any], draft: dict[str, Any]) -> catalog.Pair:
    """Write both config.json files and resolve the two directories."""
    for name, config in (("target", target), ("draft", draft)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return catalog.resolve(str(root / "target"), str(root / "draft"))


@pytest.mark.parametrize(
    "draft",
    [
        EAGLE3,
        {**EAGLE3, "hidden_size": 64, "target_hidden_size": 96},
        {**EAGLE3, "eagle_aux_hidden_state_layer_ids": [1, 2, 3]},
        {"model_type": "medusa", "num_heads": 2, "hidden_size": 96, "vocab_size": 512},
        {"model_type": "mlp_speculator", "n_predict": 3, "emb_dim": 96, "vocab_size": 512},
        {**TARGET, "hidden_size": 32},
    ],
)
def test_fitting_drafters_pass(tmp_path: Path, draft: dict[str, Any]) -> None:
    assert local_pair(tmp_path, TARGET, draft).draft is not None


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        ({**EAGLE3, "hidden_size": 128}, "hidden_size is 128, the target's hidden_size is 96"),
        ({**EAGLE3, "target_hidden_size": 128}, "target_hidden_size is 128"),
        ({**EAGLE3, "vocab_size": 600}, "vocab_size is 600, the target's vocab_size is 512"),
        ({**EAGLE3, "draft_vocab_size": 600}, "draft_vocab_size 600 is larger"),
        ({**EAGLE3, "eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, "reads layer 18 of a target with 3 layers"),
        ({"model_type": "medusa", "num_heads": 2, "hidden_size": 64}, "hidden_size is 64"),
        ({"model_type": "mlp_speculator", "n_predict": 3, "emb_dim": 64}, "hidden_size is 64"),
        ({**TARGET, "vocab_size": 600}, "vocab_size is 600"),
    ],
)
def test_a_drafter_for_another_target_is_named_in_one_line(tmp_path: Path, draft: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        local_pair(tmp_path, TARGET, draft)
    assert told in str(caught.value) and "is not for target" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gpt_oss_20b_drafter_is_refused_for_120b_by_the_verifier_it_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SPECULATORS))
    assert catalog.resolve("gpt-oss-20b", str(tmp_path)).draft is not None
    with pytest.raises(UserError, match="names the target openai/gpt-oss-20b"):
        catalog.resolve("gpt-oss-120b", str(tmp_path))


def test_a_local_copy_of_gpt_oss_keeps_marker_and_template_arguments(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "hidden_size": 2880}))
    target = catalog.resolve(str(tmp_path), None).target
    assert target.answer_marker == "<|channel|>final<|message|>"
    assert target.chat_template_kwargs == {"reasoning_effort": "medium"}


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no config.json"), ("{", "not JSON"), ("[]", "not a JSON object")]
)
def test_directories_without_a_readable_config_are_named(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=told):
        catalog.resolve(str(tmp_path), None)


# -- agreement with the installed vLLM ---------------------------------------------------------------------------------


def vllm_source(relative: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return ast.parse((Path(spec.origin).parent / relative).read_text(encoding="utf-8"))


def strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def assigned(tree: ast.Module, name: str) -> ast.expr:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return node.value
    raise AssertionError(f"vLLM no longer defines {name}")


def test_every_mtp_type_of_vllm_is_mtp_here() -> None:
    for model_type in strings(assigned(vllm_source("config/speculative.py"), "MTPModelTypes")) - {"mtp"}:
        assert recognise({"model_type": model_type, "architectures": ["X"]}, "d").method == "mtp", model_type


def test_every_model_that_vllm_turns_into_mtp_is_mtp_here() -> None:
    tree = vllm_source("config/speculative.py")
    override = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "hf_config_override")
    compares = [node for node in ast.walk(override) if isinstance(node, ast.Compare)]
    compared = set().union(
        *(strings(n) for n in compares if "model_type" in ast.unparse(n) or "arch" in ast.unparse(n))
    )
    compared -= {"model_type"}
    # An EAGLE drafter, and two names that only stand for their text_config.
    compared -= {"MistralLarge3ForCausalLM", "NemotronH_Super_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"}
    assert len(compared) > 40
    for name in compared:
        model_type, architecture = ("x", name) if name[0].isupper() else (name, "XForCausalLM")
        config = {"model_type": model_type, "architectures": [architecture], "num_nextn_predict_layers": 1}
        assert recognise(config, "d").method == "mtp", name


def test_every_speculative_architecture_of_vllm_is_recognised_here() -> None:
    registry = assigned(vllm_source("model_executor/models/registry.py"), "_SPECULATIVE_DECODING_MODELS")
    assert isinstance(registry, ast.Dict)
    names = {key.value for key in registry.keys if isinstance(key, ast.Constant)} - {"ExtractHiddenStatesModel"}
    assert len(names) > 40
    for name in names:
        assert recognise({"model_type": "x", "architectures": [name]}, "d").method != "draft_model", name


def test_the_speculators_types_are_those_of_vllm() -> None:
    tree = vllm_source("transformers_utils/configs/speculators/algos.py")
    registered = {
        decorator.args[0].value
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.args[0], ast.Constant)
    }
    assert registered == {kind for row in METHODS.values() for kind in row.speculators_types}
