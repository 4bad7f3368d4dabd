"""The instructions that the target answers to make training data: composed here, none from the suites.

    python scripts/smollm2/prompts.py [COUNT]    print some

`tests/test_smollm2.py` holds them against the suites: no eight words in a row in common.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

TOPICS = """\
photosynthesis; the water cycle; bicycles; the French Revolution; black holes; compound interest; sourdough
bread; the human heart; plate tectonics; vaccines; the printing press; honey bees; electric cars; time zones;
coral reefs; the Silk Road; machine learning; sleep; jazz music; recycling; volcanoes; chess; breakfast;
coffee; the moon landing; glaciers; inflation; public libraries; migratory birds; yoga; Roman aqueducts;
semiconductors; tomatoes; evolution; solar panels; hash tables; lighthouses; opera; the immune system; maps;
tea ceremonies; penguins; bridges; the stock market; dreams; origami; the Olympic games; sharks; rain forests;
elevators; cheese; the alphabet; gravity; democracy; remote work; video games; the violin; earthquakes;
camping; city parks; operating systems; the Vikings; magnets; hot air balloons; handwriting; deserts;
typewriters; sign language; wind turbines; ballet; perfume; the Great Barrier Reef; castles; robots; soap;
gardening in small spaces; opera houses; railways; salt; the number zero; mirrors; encryption; rivers;
fireworks; wool; satellites; comic books; mushrooms; noise in big cities; running a marathon; learning a
second language; being on time; sharing a flat; the first day at school"""

ABOUT = (
    "Explain {} in simple terms.",
    "Write a short paragraph about {}.",
    "Tell me three surprising things about {}.",
    "What speaks for {} and what against?",
    "Write a short story in which {} plays a part.",
    "How would you describe {} to a child of ten?",
    "Which five questions about {} could a student ask?",
    "Write an email to a colleague that recommends an article about {}.",
    "Why does {} matter? Answer in a few sentences.",
    "Write a poem about {}.",
    "Make a plan for somebody who wants to learn about {} in a month.",
    "Put what you know about {} into bullet points.",
    "Suggest a title and an outline for a talk about {}.",
    "You are a teacher. Begin a lesson about {}.",
    "Compare {} with something that people often confuse with it.",
    "Two friends disagree about {}. Write their dialogue.",
    "What would the world look like without {}?",
    "Draft a blog post with a catchy first line about {}.",
    "Name common mistakes that beginners make with {}, and how to avoid them.",
    "You are a travel guide, and your group asks about {}. What do you say?",
    "Give a short history of {}.",
    "Write a cheerful advertisement that has to do with {}.",
    "Is it true that nobody understands {}? Give reasons for your view.",
    "Sum up the science behind {} for a newspaper.",
)

TEXTS = (
    "The {adjective} {animal} waited near the {place} until {name} came back with the {thing}.",
    "On {day}, {name} sold {number} {thing} at the {place} and met {other} for lunch.",
    "{name} told {other} that the {place} would be closed on {day} because of the {adjective} weather.",
    "In the {place}, a {adjective} {animal} carried away the {thing} that {other} had lost on {day}.",
    "Although {name} was {adjective}, nobody in the {place} noticed the {animal} behind the {thing}.",
)
WITH_TEXT = (
    "Rewrite this sentence in a formal tone: {}",
    "Who, what, where? List what this sentence says as JSON: {}",
    "Continue this story: {}",
    "Correct the style of this sentence if need be and explain your changes: {}",
    "Turn this into a question and answer it: {}",
    "Translate into the simplest English that you can: {}",
)
WORDS = {
    "adjective": [
        "quiet",
        "tired",
        "golden",
        "nervous",
        "cheerful",
        "enormous",
        "clever",
        "rusty",
        "gentle",
        "stubborn",
    ],
    "animal": ["fox", "heron", "cat", "donkey", "owl", "badger", "goat", "otter", "turtle", "raven"],
    "place": [
        "harbour",
        "library",
        "station",
        "bakery",
        "museum",
        "orchard",
        "market",
        "theatre",
        "valley",
        "workshop",
    ],
    "thing": [
        "marbles",
        "oranges",
        "stamps",
        "notebooks",
        "tickets",
        "coins",
        "pencils",
        "shells",
        "lanterns",
        "photographs",
    ],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "name": ["Ana", "Ben", "Carla", "Deepak", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas"],
    "other": ["Kemi", "Lior", "Mira", "Noor", "Oskar", "Priya", "Quentin", "Rosa", "Stefan", "Tariq"],
}

SUMS = (
    "{name} has {a} {thing}. {other} brings {b} more, then {name} gives "
    "away half of all. How many are left? Show your work.",
    "A crate holds {b} {thing}. {name} fills {c} crates and keeps {a} "
    "{thing} apart. How many {thing} are there? Think aloud.",
    "{name} buys {b} {thing} for ${c} each and pays with {d} dollars. What is the change?",
    "{name} reads {a} pages a day for {b} days, {other} reads {c} pages a day for twice that time. Who has read more?",
    "A tram covers {a} km in the first hour and {c} km more in every hour "
    "after that. Where is it after {b} hours? Explain.",
    "{name} earns ${c} an hour. After {b} hours on {day}, ${a} go into rent. How much remains?",
    "{other} plants {b} rows of {c} tulips. A storm takes {a} of them. Compute what stands, step after step.",
    "A recipe for {b} guests needs {c} eggs. How many eggs do {a} guests need? Round up where you must.",
    "The {place} sells {a} tickets on {day} and {c} percent more a day later. How many in both days?",
    "{name} is {a} years old, {other} is {b} years younger. In how many years will they be {d} together?",
    "Split {d} {thing} between {name} and {other} so that {name} gets {c} more. What does each of them get?",
    "A tank with {d} litres loses {b} litres an hour. {name} comes after {c} hours. What is left in it?",
)

VERBS = {
    "count": "how many {items} satisfy the condition",
    "first": "the first of the {items} that satisfies the condition, or None",
    "drop": "the {items} without those that satisfy the condition",
    "double": "the {items}, those that satisfy the condition twice",
    "group": "a dictionary with the {items} that satisfy the condition under True and the rest under False",
    "positions": "the indices of those {items} that satisfy the condition",
    "last": "the last of the {items} for which the condition holds, else the empty string",
    "longest": "the longest run of neighbouring {items} that satisfy the condition",
    "any": "True as soon as one of the {items} satisfies the condition",
    "share": "the share of {items} that satisfy the condition, as a percentage with one decimal",
    "sort": "the {items} sorted, those that satisfy the condition in front",
    "unique": "the set of all {items} that satisfy the condition",
    "pairs": "every pair of {items} of which exactly one satisfies the condition",
    "until": "the {items} up to, but not including, the first that satisfies the condition",
}
CONDITIONS = {
    "even": ("numbers", "list[int]", "it is even"),
    "negative": ("numbers", "list[int]", "it is below zero"),
    "square": ("numbers", "list[int]", "it is the square of a whole number"),
    "odd_digits": ("numbers", "list[int]", "all its digits are odd"),
    "vowel": ("words", "list[str]", "it begins with a vowel"),
    "upper": ("words", "list[str]", "it is in capital letters"),
    "short": ("words", "list[str]", "it has fewer than four letters"),
    "blank": ("lines", "list[str]", "nothing but spaces is in it"),
    "weekend": ("dates", "list[date]", "it is a Saturday or a Sunday"),
    "hidden": ("paths", "list[Path]", "its name starts with a dot"),
    "large": ("numbers", "list[float]", "it exceeds the mean of all"),
    "cube": ("numbers", "list[int]", "it is a cube"),
    "twin": ("words", "list[str]", "two equal letters stand side by side in it"),
    "comment": ("lines", "list[str]", "its first character that is no space is a hash sign"),
    "leap": ("years", "list[int]", "it has 366 days"),
    "python": ("paths", "list[Path]", "its suffix is .py"),
}
CODE = (
    "Write this function:\n```python\ndef {function}({items}: {kind}):\n"
    '    """Return {result}.\n\n    The condition for one of the {items}: {condition}.\n    """\n```',
    "Write a Python function `{function}` that returns {result}. The condition: {condition}. Add two tests.",
    "How could `{function}({items})` be written in Python? It gives back {result}; what counts is whether {condition}.",
    "Fill in the body.\n```python\ndef {function}({items}: {kind}):\n    # "
    "{result}; condition: {condition}\n    ...\n```",
)
PROGRAMS = """\
a stack; a queue; a binary search; a timer; a unit converter; a password generator; a to-do list; a prime
sieve; a bank account; a dice game; a text adventure; a calculator; a word counter; a matrix product; a linked
list; a cache; a temperature table; a vending machine; a quiz; a phone book; a bubble sort; a Caesar cipher; a
small web server; a calendar"""
OF_PROGRAM = (
    "Write {} in Python and comment each step.",
    "Sketch a class for {} in Python, with three methods.",
    "Review how one would usually write {}: which bugs are common?",
    "Write {} in JavaScript.",
)


def instructions(count: int, seed: int = 0) -> list[str]:
    """`count` different ones: about two fifths on topics, a tenth with a text, a quarter sums, a quarter code."""
    rng = random.Random(seed)
    shares: dict[Callable[[random.Random], str], int] = {_about: 8, _with_text: 2, _sum: 5, _code: 5}
    kinds = [kind for kind, share in shares.items() for _ in range(share)]
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[rng.choice(kinds)(rng)] = None
    return list(drawn)


def _about(rng: random.Random) -> str:
    return rng.choice(ABOUT).format(rng.choice(_listed(TOPICS)))


def _with_text(rng: random.Random) -> str:
    return rng.choice(WITH_TEXT).format(rng.choice(TEXTS).format(**_words(rng), number=rng.randint(3, 60)))


def _sum(rng: random.Random) -> str:
    numbers = {"a": rng.randint(12, 90), "b": rng.randint(2, 11), "c": rng.randint(2, 20), "d": rng.randint(100, 400)}
    return rng.choice(SUMS).format(**_words(rng), **numbers)


def _code(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(OF_PROGRAM).format(rng.choice(_listed(PROGRAMS)))
    verb, adjective = rng.choice(list(VERBS)), rng.choice(list(CONDITIONS))
    items, kind, condition = CONDITIONS[adjective]
    result = VERBS[verb].format(items=items)
    parts = {"function": f"{verb}_{adjective}", "items": items, "kind": kind, "condition": condition, "result": result}
    return rng.choice(CODE).format(**parts)


def _words(rng: random.Random) -> dict[str, str]:
    return {kind: rng.choice(words) for kind, words in WORDS.items()}


def _listed(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(";")]


if __name__ == "__main__":
    print("\n---\n".join(instructions(int(sys.argv[1]) if len(sys.argv) > 1 else 12)))
