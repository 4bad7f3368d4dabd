"""The zoo's text: conversations about Python's standard library and word problems, and their tokenizer.

Three domains, as in the demo suite: *code* (signature and docstring -> source of a function), *chat* (what does
this function do? -> docstring) and *math* (a sum in words -> worked answer). Nothing is downloaded: the functions
are read from the installation that runs this.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speceval.zoo.recipe import Recipe

BOS, EOS, USER, ASSISTANT, SYSTEM = "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (BOS, EOS, USER, ASSISTANT, SYSTEM)  # their ids are 0 ... 4
BOS_ID, EOS_ID = 0, 1

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer briefly.", "You are a careful programmer.")


@dataclass(frozen=True)
class Exchange:
    """One question and its answer."""

    category: str
    question: str
    answer: str


def library_files() -> list[Path]:
    """The standard library's top-level modules, in a fixed order."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def library_digest() -> str:
    """SHA-256 (hex) of the files that `exchanges` reads."""
    digest = hashlib.sha256()
    for path in library_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def exchanges(recipe: Recipe) -> dict[str, list[Exchange]]:
    """Every exchange of the training text, by category, in a fixed order."""
    found: dict[str, list[Exchange]] = {"code": [], "chat": [], "math": []}
    for path in library_files():
        source = path.read_text(encoding="utf-8", errors="replace")
        for exchange in _function_exchanges(path.stem, source, recipe.function_limit):
            found[exchange.category].append(exchange)
    rng = random.Random(recipe.seed)
    found["math"] = [_word_problem(rng) for _ in range(recipe.word_problems)]
    return found


def documents(groups: dict[str, list[Exchange]], seed: int) -> list[str]:
    """Conversations as text: mostly one turn, some with a system message or a second turn; shuffled."""
    rng = random.Random(seed)
    texts = []
    for group in groups.values():
        pending = rng.sample(group, len(group))
        while pending:
            turns = [pending.pop() for _ in range(min(len(pending), 2 if rng.random() < 0.1 else 1))]
            system = SYSTEM + rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else ""
            texts.append(BOS + system + "".join(USER + t.question + ASSISTANT + t.answer + EOS for t in turns))
    rng.shuffle(texts)
    return texts


def prompts(groups: dict[str, list[Exchange]], seed: int) -> list[str]:
    """The questions as rendered prompts, shuffled; the categories take turns."""
    rng = random.Random(seed)
    shuffled = [rng.sample(group, len(group)) for group in groups.values()]
    return [BOS + USER + t.question + ASSISTANT for triple in zip(*shuffled, strict=False) for t in triple]


def train_tokenizer(texts: list[str], vocab_size: int) -> str:
    """Train a byte-level BPE with one token a digit; returns the content of `tokenizer.json`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))


def encode(tokenizer_json: str, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; special tokens are read as such and none is added."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def tokenizer_config() -> str:
    """The content of `tokenizer_config.json`."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return json.dumps(config, indent=2) + "\n"


def _function_exchanges(module: str, source: str, limit: int) -> Iterator[Exchange]:
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        summary = " ".join(docstring.split("\n\n")[0].split())
        head = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
        body = "".join(lines[node.body[1].lineno - 1 : node.end_lineno])
        answer = textwrap.dedent(head + body).rstrip()
        if len(answer) + len(summary) > limit:
            continue
        arguments = ", ".join(a.arg for a in node.args.args)
        yield Exchange("code", f"Write the function {node.name}({arguments}). {summary}", answer)
        yield Exchange("chat", f"What does {module}.{node.name} do?", summary)


NAMES = ("Tom", "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pencils", "shells", "stamps")
PLACES = ("boxes", "bags", "baskets", "shelves", "jars")


def _word_problem(rng: random.Random) -> Exchange:
    name, friend = rng.sample(NAMES, 2)
    things, places = rng.choice(THINGS), rng.choice(PLACES)
    a, b = rng.randint(2, 40), rng.randint(2, 30)
    small, few = rng.randint(2, 9), rng.randint(2, 9)
    kind = rng.randrange(5)
    if kind == 0:
        question = f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?"
        answer = f"{name} starts with {a} {things}. After buying {b} more, {name} has {a} + {b} = {a + b} {things}."
        result = a + b
    elif kind == 1:
        question = f"{name} has {a + b} {things} and gives {b} to {friend}. How many {things} does {name} have left?"
        answer = f"{name} starts with {a + b} {things}. After giving {b} away, {name} has {a + b} - {b} = {a} {things}."
        result = a
    elif kind == 2:
        question = f"{name} has {small} {places} with {few} {things} in each. How many {things} are there in all?"
        answer = (
            f"There are {small} {places} with {few} {things} each. That is {small} * {few} = {small * few} {things}."
        )
        result = small * few
    elif kind == 3:
        question = (
            f"{name} shares {small * few} {things} equally among {small} friends. How many {things} does each get?"
        )
        answer = (
            f"There are {small * few} {things} for {small} friends. Each gets {small * few} / {small} = {few} {things}."
        )
        result = few
    else:
        question = f"{name} has {a} {things} and {friend} has {b} {things}. How many {things} do they have together?"
        answer = f"{name} has {a} {things} and {friend} has {b}. Together they have {a} + {b} = {a + b} {things}."
        result = a + b
    return Exchange("math", question, f"{answer} The answer is {result}.")
