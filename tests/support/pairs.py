"""Tiny checkpoints of `tiny` with a tokenizer of one word per token, as `speceval` needs them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from support import tiny

PROMPTS = ("3 7 11 5", "2 9")
NGRAM_PROMPT = " ".join([*(f"3 7 11 5 {token}" for token in range(tiny.VOCAB)), "3 7 11 5"])
"""Whatever token follows, the last five have occurred before, which is what n-gram drafting looks for."""


def write_tokenizer(path: Path, vocab: int = tiny.VOCAB) -> Path:
    """Add a tokenizer to the checkpoint directory `path`: the text "3 7" is the ids 3 and 7. Returns `path`."""
    tokenizer = Tokenizer(models.WordLevel({str(token): token for token in range(vocab)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0]['content'] }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def write_pair(root: Path, kind: str) -> tuple[str, str]:
    """Target and drafter as `--target` and `--draft` take them, written below `root`.

    `kind`: eagle, eagle3, eagle3-cut (knows 20 of the 24 tokens), draft_model, medusa, mlp, mtp, ngram, or one of those
    that draft a block at once: dflash, dflash-causal, dflash-cut, dflash2, lilicorr, xpress (K=4), dspark, dspark-cut.
    """
    target = root / "target"
    if not (target / "tokenizer.json").exists():
        write_tokenizer(tiny.write_target(target))
    drafter = root / kind
    if kind == "ngram":
        return str(target), kind
    if kind in ("eagle3", "eagle3-cut"):
        tiny.write_eagle3(drafter, target, draft_vocab=20 if kind == "eagle3-cut" else tiny.VOCAB)
    elif kind == "draft_model":
        write_tokenizer(tiny.write_draft_model(drafter, target))
    elif kind == "medusa":
        tiny.write_medusa(drafter, target)
    elif kind in ("dflash", "dflash-causal", "dflash-cut"):
        vocab = 20 if kind == "dflash-cut" else tiny.VOCAB
        tiny.write_dflash(drafter, target, draft_vocab=vocab, causal=kind == "dflash-causal")
    elif kind == "dflash2":
        tiny.write_dflash2(drafter, target)
    elif kind == "lilicorr":
        tiny.write_lilicorr(drafter, target)
    elif kind == "xpress":
        tiny.write_xpress(drafter, target)
    elif kind in ("dspark", "dspark-cut"):
        tiny.write_dspark(drafter, target, draft_vocab=20 if kind == "dspark-cut" else tiny.VOCAB)
    elif kind == "eagle":
        tiny.write_eagle(drafter, target)
    elif kind == "mtp":
        tiny.write_mtp(drafter, target)
        config = target / "config.json"  # where vLLM's MTP layer looks for its sizes
        config.write_text(json.dumps(json.loads(config.read_text()) | tiny.MTP_OVERRIDES))
    else:
        tiny.write_mlp_speculator(drafter, target)
    return str(target), str(drafter)
