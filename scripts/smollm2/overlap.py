"""Do the training texts share eight words in a row with a benchmark?  python scripts/smollm2/overlap.py OWN

OWN: what `collect.py` wrote. Prints how many prompts and how many of the target's answers do, and what the answers
share. The prompts alone are tested in CI: the answers are a gigabyte with what the target computed on them.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from collect import TARGET
from prompts import instructions
from safetensors.torch import load_file
from tokenizers import Tokenizer

from speceval import suites
from speceval.catalog import fetch, resolve

GRAM = 8
SUITES = ("mt_bench", "humaneval", "gsm8k")


def grams(text: str) -> set[tuple[str, ...]]:
    """All runs of `GRAM` words, in lower case and without signs."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def of_suites(names: Iterable[str], data_dir: Path | None) -> set[tuple[str, ...]]:
    """Those of every turn of the suites."""
    conversations = (conversation for name in names for conversation in suites.load(name, data_dir).conversations)
    return set().union(*(grams(turn) for conversation in conversations for turn in conversation.turns))


def answers(own: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """The target's answers, as text."""
    for path in sorted(own.glob("chunk-*.safetensors")):
        chunk = load_file(path)
        lengths = chunk["lengths"].tolist()
        for tokens, start in zip(chunk["tokens"].split(lengths), chunk["starts"].tolist(), strict=True):
            yield tokenizer.decode(tokens[start:].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("own", type=Path)
    parser.add_argument("--prompts", type=int, default=1400)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SPECEVAL_DATA_DIR"))
    options = parser.parse_args()
    known = of_suites(SUITES, options.data_dir and Path(options.data_dir))
    tokenizer = Tokenizer.from_file(str(Path(fetch(resolve(TARGET, None)).target.model) / "tokenizer.json"))
    for what, texts in (("prompts", instructions(options.prompts)), ("answers", list(answers(options.own, tokenizer)))):
        shared = [grams(text) & known for text in texts]
        print(f"{what}: {sum(map(bool, shared))} of {len(texts)} share {GRAM} words in a row with {', '.join(SUITES)}")
        for gram in sorted(set().union(*shared)):
            print("  ", *gram)


if __name__ == "__main__":
    main()
