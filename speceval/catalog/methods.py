"""Drafting methods: one row each, with every fact that the rest of the package goes by.

A method without a row is shown under its own name, with none of the properties. What the patches depend on is in
`vllm_patches.methods`, which must not import this package, and is read from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator

import vllm_patches.methods
from speceval.protocol import Drafting


@dataclass(frozen=True)
class DraftingMethod:
    """One way to draft, and how a checkpoint of it is recognised (as vLLM 0.32 does: vllm/config/speculative.py)."""

    name: str
    """vLLM's `speculative_config["method"]`."""
    display: str
    """What tables, and the papers, call it."""
    aliases: tuple[str, ...] = ()
    """Other names that vLLM has for it; "*" stands for anything."""
    bare: bool = False
    """Whether `--draft` takes the method's name: it needs no checkpoint, or has its layers in the target's."""
    reads_hidden_states: bool = False
    """Whether the drafter's hidden size is the target's."""
    nests: bool = False
    """Whether draft position j is computed from those before it, or from none, so that it does not know K."""
    chain: bool = False
    """Whether the speculation profile's proposal lists it among the methods whose first drafts do not depend on K."""
    k_fields: tuple[str, ...] = ()
    """Fields of config.json that hold the number of heads: the default and the largest K."""
    k_in_layers: bool = False
    """Whether K is the number of trained layers, or a multiple of it."""
    architectures: tuple[str, ...] = ()
    """Its `architectures` in config.json, lower case; "*" stands for anything."""
    model_types: tuple[str, ...] = ()
    """Its `model_type`, likewise."""
    own_fields: tuple[str, ...] = ()
    """Fields of config.json that no other method has."""
    full_models: frozenset[str] = frozenset()
    """Architectures and model types of full models that vLLM loads as this method in a drafter's place, lower case."""
    counted_models: frozenset[str] = frozenset()
    """Likewise, of those where config.json must count MTP layers."""
    hints: tuple[str, ...] = ()
    """Fields of config.json that give it away where nothing else does."""
    path_part: str = ""
    """Part of a checkpoint's path from which vLLM takes this method, whatever is asked for."""
    speculators_types: tuple[str, ...] = ()
    """Its `speculators_model_type` (vllm/transformers_utils/configs/speculators/base.py)."""

    @property
    def deterministic(self) -> bool:
        """Whether it proposes tokens without a distribution: q is one-hot whatever the temperature."""
        return self.name in vllm_patches.methods.DETERMINISTIC


_FULL_MTP_MODELS = frozenset({
    "bailing_hybrid", "deepseek_v3", "deepseek_v32", "deepseek_v4", "deepseek_v41", "dots3_note", "ernie4_5_moe",
    "exaone4_5", "exaone_moe", "gemma4_assistant", "gemma4_unified_assistant", "glm5_next", "glm_moe_dsa", "hy_v3",
    "hy_v4", "inkling_mm_model", "inkling_model", "intern_s2_preview", "interns2_mobius", "kimi_k3", "longcat_flash",
    "minimax_m3_vl", "pangu_ultra_moe", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
    "qwen4_exp", "qwen4_exp_text", "step3p5", "step3p7",
    "bailingmoev2_5forcausallm", "bailingmoev3forcausallm", "bailingmoev3vlforconditionalgeneration",
    "glm4moeforcausallm", "glm4moeliteforcausallm", "glmocrforconditionalgeneration", "mimoforcausallm",
    "mimov2flashforcausallm", "mimov2forcausallm", "mimov2omniforcausallm",
    "minimaxm3sparseforconditionalgeneration", "step3p5forcausallm", "step3p7forconditionalgeneration",
})  # fmt: skip

_ROWS = (
    DraftingMethod(
        "eagle",
        "EAGLE",
        reads_hidden_states=True,
        nests=True,
        chain=True,
        architectures=("eagle[!3]*",),
        model_types=("eagle",),
        path_part="eagle-",
    ),
    DraftingMethod(
        "eagle3",
        "EAGLE-3",
        reads_hidden_states=True,
        nests=True,
        chain=True,
        architectures=("*eagle3*", "*peagle*"),
        # Early checkpoints name a plain LlamaForCausalLM.
        hints=("draft_vocab_size", "eagle_config", "eagle_aux_hidden_state_layer_ids", "target_hidden_size"),
        path_part="eagle3",
        speculators_types=("eagle3", "peagle"),
    ),
    DraftingMethod(
        "medusa",
        "MEDUSA",
        reads_hidden_states=True,
        nests=True,
        k_fields=("num_heads", "medusa_num_heads"),
        architectures=("medusamodel",),
        model_types=("medusa",),
        own_fields=("medusa_num_heads",),
    ),
    DraftingMethod(
        "mlp_speculator",
        "MLP speculator",
        reads_hidden_states=True,
        nests=True,
        k_fields=("n_predict",),
        architectures=("mlpspeculatorpretrainedmodel",),
        model_types=("mlp_speculator",),
    ),
    DraftingMethod(
        "mtp",
        "MTP",
        aliases=("*_mtp",),
        bare=True,
        reads_hidden_states=True,
        nests=True,
        k_in_layers=True,
        architectures=("*mtp*",),
        model_types=("*_mtp",),
        full_models=_FULL_MTP_MODELS,
        counted_models=frozenset({"nemotron_h", "nemotron_h_puzzle"}),
    ),
    DraftingMethod("draft_model", "draft model", nests=True, chain=True),
    DraftingMethod(
        "dflash",
        "DFlash",
        architectures=("*dflash*", "lilicorrdraftmodel", "museglimmerassistantmodel", "*xpress*"),
        path_part="dflash",
        speculators_types=("dflash", "dflash2"),
    ),
    DraftingMethod("dspark", "DSpark", architectures=("*dspark*",), path_part="dspark", speculators_types=("dspark",)),
    DraftingMethod("ngram", "n-gram", aliases=("ngram_gpu",), bare=True),
    DraftingMethod("suffix", "suffix", bare=True),
)

METHODS: dict[str, DraftingMethod] = {row.name: row for row in _ROWS}
"""Name -> row, in the order of the tables."""


def find(method: str) -> DraftingMethod:
    """The row of a method, by its name or an alias; for another one a row with nothing but its name."""
    if method in METHODS:
        return METHODS[method]
    aliased = (row for row in METHODS.values() if any(fnmatchcase(method, alias) for alias in row.aliases))
    return next(aliased, DraftingMethod(method, method))


def known(name: str) -> str:
    """`name`, if a row has it. Raises ValueError."""
    if name not in METHODS:
        raise ValueError(f"'{name}' is none of {', '.join(METHODS)}")
    return name


Method = Annotated[str, AfterValidator(known)]
"""The name of a row."""


def default_drafting(method: str, temperature: float) -> Drafting:
    """The drafting mode when the user names none: sampled drafts whenever the target samples."""
    if find(method).deterministic:
        return "deterministic"
    return "probabilistic" if temperature > 0 else "greedy"
