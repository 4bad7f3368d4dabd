"""What a run is: the request (`RunSpec`) and the fingerprint of everything that moves the acceptance length."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from speceval.errors import UserError
from speceval.files import Strict
from speceval.private import secret_in

Drafting = Literal["probabilistic", "greedy", "deterministic"]
Rejection = Literal["standard", "block", "synthetic", "fly"]
"""vLLM's `rejection_sample_method`."""
Runner = Literal["v1", "v2"]
"""vLLM's model runners."""
LOSSLESS: tuple[Rejection, ...] = ("standard", "block")
"""Those that leave the target's distribution as it is."""

FIRST_HASHED = frozenset(
    {"target", "draft", "k", "temperature", "top_p", "top_k", "drafting", "suites", "limit", "shuffle_seed"}
    | {"max_tokens", "seeds", "batch", "prefix_caching", "chat_template_kwargs", "engine_args", "trust_remote_code"}
)
SECOND_HASHED = FIRST_HASHED | {"draft_truncation", "rejection"}
HASHED = SECOND_HASHED | {"until", "against", "replay", "record"}
"""Fields of a request that its name always tells apart. Never add to it: a new field counts when it is not at its
default, so that the runs that are stored keep their names. The other two are what schemas 1 and 2 hashed."""

MOST_SHARDS = 100_000
"""Of a run: more than any suite has conversations."""
UNWRITTEN = frozenset({"method", "draft_args", "runner", "stratified", "shard", "rate"})
"""Fields of a request that run.json has only when they are not at their default."""


Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""Of something in a second."""

FIELD = object()
"""`Flag.default` where the field's own default is the flag's."""

MOST_K = 128
"""Draft tokens of a step that vLLM's verifier takes (MAX_SPEC_LEN in vllm/v1/sample/rejection_sampler.py)."""
LARGEST_SEED = (1 << 32) - 1
"""The engine seeds NumPy with it."""
MOST_SEEDS = 10_000
MOST_AT_ONCE = 1 << 16
"""Requests: the engine keeps buffers for each."""
LARGEST = (1 << 31) - 1
"""Whole number that the engine keeps in 32 bits."""


@dataclass(frozen=True)
class Flag:
    """How the command line asks for a field, where the field's name, type and default do not say it."""

    name: str = ""
    """"": the field's own with dashes."""
    read: Literal["value", "names", "numbers", "percent", "pairs", "path", "rate"] = "value"
    """How its text is read, if it is not of the field's type: `speceval.commands.options.READERS`."""
    default: Any = FIELD
    """What the command line takes for a flag that is not given."""
    offered: tuple[str, ...] = ()
    """Values that the help names."""
    refused: tuple[str, ...] = ()
    """Values that it does not, but that get further than the command line: what refuses them says why."""


class RunSpec(Strict):
    """One measurement: a target, a drafter, a temperature and the suites, as the user asked for it.

    Each field is a flag of every command that measures (`commands.options.of_spec`): its description is the help.

    Two runs with equal specs are the same run: the run's directory goes by `name`, its resumption by the fields.
    """

    target: str = Field(min_length=1, description="Catalog name, hub id or directory of the target.")
    draft: str = Field(min_length=1, description="Catalog name, hub id or directory of the drafter; ngram, suffix.")
    k: Annotated[int, Flag(default=None)] = Field(
        ge=1, le=MOST_K, description="Draft tokens of a step [default: the drafter's own]."
    )
    """vLLM's num_speculative_tokens: the most draft tokens of one verify step."""
    temperature: Annotated[float, Flag("--temp")] = Field(
        ge=0, le=100, allow_inf_nan=False, description="Temperature of the target, and of sampled drafts."
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus of the target; 1 is off.")
    top_k: int = Field(default=0, ge=0, le=LARGEST, description="Top-k of the target; 0 is off.")
    drafting: Annotated[Drafting, Flag(default=None, offered=("probabilistic", "greedy"))] = Field(
        description="Drafts are drawn from q, or are its likeliest tokens "
        "[default: probabilistic at temperatures above 0, else greedy]."
    )
    draft_truncation: bool = Field(default=True, description="Truncate q by top-k and top-p as p is.")
    rejection: Annotated[Rejection, Flag(offered=("standard", "block"), refused=("synthetic", "fly"))] = Field(
        default="standard", description="How drafts are verified."
    )
    suites: Annotated[tuple[str, ...], Flag("--suite", "names", "")] = Field(
        min_length=1, description="Suites, comma-separated: names or files (.yaml, .jsonl)."
    )
    limit: int | None = Field(default=None, ge=1, le=LARGEST, description="Conversations of each suite.")
    stratified: bool = Field(default=False, description="Take --limit evenly from the categories of each suite.")
    shuffle_seed: int | None = Field(
        default=None, ge=-LARGEST, le=LARGEST, description="Shuffle each suite before --limit."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=LARGEST, description="Longest answer [default: the suite's own]."
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...], Flag(read="numbers", default="0")] = (
        Field(
            default=(0,), min_length=1, max_length=MOST_SEEDS, description="Samples of each conversation: 0,1,2 or 0-7."
        )
    )
    until: Annotated[float | None, Flag(read="percent", default="")] = Field(
        default=None, gt=0, lt=1, description="Stop when tau is known to this half-width, such as 1%."
    )
    against: Annotated[str | None, Flag(read="path")] = Field(
        default=None, description="--until is about the paired difference to this run."
    )
    shard: str | None = Field(
        default=None, description="Measure every n-th conversation alone, i/n such as 2/4; speceval merge joins them."
    )
    batch: int = Field(default=32, ge=1, le=MOST_AT_ONCE, description="Requests that the engine runs at once.")
    rate: Annotated[Rate | Literal["inf"] | None, Flag(read="rate")] = Field(
        default=None,
        description="Conversations that begin in a second, at random (Poisson), on a server; inf: as many at once as "
        "--batch. Also takes times to the tokens.",
    )
    """None: as "inf", without times."""
    prefix_caching: bool = Field(default=False, description="Let the engine reuse prefixes.")
    replay: Annotated[str | None, Flag(read="path")] = Field(
        default=None, description="Make the target answer what it answered in this run; only draft anew."
    )
    """Hash of the texts that the target is made to answer."""
    record: bool = Field(default=True, description="Keep what the verifier saw of every sampled draft.")
    """Whether ratio and alpha of every sampled draft are in the table of steps."""
    chat_template_kwargs: Annotated[dict[str, Any], Flag("--template-arg", "pairs", None)] = Field(
        default_factory=dict, description="Argument of the chat template, key=value; may be repeated."
    )
    engine: str = Field(
        default="vllm", min_length=1, description="What generates: vllm, simulated, or another package's."
    )
    """Name in `speceval.engines`, or of an entry point."""
    runner: Annotated[Runner | None, Flag(offered=("v1", "v2"))] = Field(
        default=None, description="vLLM's model runner [default: what vLLM chooses]."
    )
    """None: vLLM's own choice; which one it was is among the engine's facts."""
    engine_args: Annotated[dict[str, Any], Flag("--engine-arg", "pairs", None)] = Field(
        default_factory=dict, description="Argument of the engine (vllm.LLM), key=value; may be repeated."
    )
    method: str | None = Field(default=None, description="Drafting method of a checkpoint that does not tell.")
    draft_args: Annotated[dict[str, Any], Flag("--draft-arg", "pairs", None)] = Field(
        default_factory=dict,
        description="Further key of vLLM's speculative_config, such as prompt_lookup_max, key=value; may be repeated.",
    )
    trust_remote_code: bool = Field(default=False, description="Run code that comes with a checkpoint.")

    @field_validator("suites", "seeds")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"names {list(value)}: the same one twice")
        return value

    @field_validator("rate", mode="before")
    @classmethod
    def _without_end(cls, value: Any) -> Any:
        return "inf" if value == math.inf else value

    @field_validator("shard")
    @classmethod
    def _one_of_several(cls, value: str | None) -> str | None:
        if value is not None:
            number, slash, count = value.partition("/")
            decimal = slash and all(part.isascii() and part.isdecimal() and len(part) < 10 for part in (number, count))
            if not decimal or not 1 <= int(number) <= int(count) <= MOST_SHARDS:
                raise ValueError("must be i/n, such as 2/4")
            return f"{int(number)}/{int(count)}"  # one spelling: shards are merged by it
        return value

    @model_validator(mode="after")
    def _sampled_drafts_need_temperature(self) -> RunSpec:
        if self.temperature == 0 and self.drafting == "probabilistic":
            raise ValueError("probabilistic drafting needs a temperature above 0")
        return self

    @field_validator("draft_args")
    @classmethod
    def _not_set_elsewhere(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(value.keys() & DRAFTING_FLAGS.keys()):
            raise ValueError(f"{name} is not given here: {DRAFTING_FLAGS[name]}")
        return value

    @model_serializer(mode="wrap")
    def _what_was_asked(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `UNWRITTEN` fields at their default, as requests were written before there were any."""
        content: dict[str, Any] = whole(self)
        defaults = self._defaults()
        return {name: value for name, value in content.items() if name not in UNWRITTEN or value != defaults[name]}

    @property
    def identity(self) -> str:
        """Hash of the request (12 hex digits)."""
        return self._hash(HASHED)

    @property
    def name(self) -> str:
        """Directory name: readable, then the identity."""
        return self._name(self.identity)

    @property
    def older_names(self) -> tuple[str, ...]:
        """Names that schemas 2 and 1 gave to the same request. They did not record, which is no other measurement."""
        return tuple(self._name(self._hash(fields, ignore="record")) for fields in (SECOND_HASHED, FIRST_HASHED))

    def _hash(self, always: Collection[str], ignore: str = "") -> str:
        defaults = self._defaults()
        counted = {name for name, value in self if name in always or (value != defaults[name] and name != ignore)}
        return digest(self.model_dump(mode="json", include=counted))[:12]

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}

    def _name(self, identity: str) -> str:
        parts = [_slug(self.target), _slug(self.draft), f"T{self.temperature:g}", self.drafting, f"k{self.k}"]
        return "-".join([*parts, identity])


DRAFTING_FLAGS = {
    "model": "--draft names the checkpoint",
    "revision": "--draft NAME@REVISION names it",
    "method": "--method says what it is",
    "num_speculative_tokens": "--k",
    "num_speculative_tokens_per_batch_size": "K is the same in all steps of a run (--k)",
    "draft_sample_method": "--drafting",
    "rejection_sample_method": "--rejection",
    "synthetic_acceptance_rates": "speceval selftest forces rates",
    "synthetic_acceptance_length": "speceval selftest forces rates",
}
"""Keys of vLLM's speculative_config that have a flag of their own, or none."""


def flag(field: str) -> Flag:
    """How the command line asks for a field of `RunSpec`."""
    form = next((item for item in RunSpec.model_fields[field].metadata if isinstance(item, Flag)), Flag())
    return replace(form, name=form.name or f"--{field.replace('_', '-')}")


def make_spec(**fields: Any) -> RunSpec:
    """Validate `fields` into a `RunSpec`; raises `UserError` with one line that names the flag.

    What would be stored holds no secrets: they are refused here, so that older runs can still be read.
    """
    for name, value in fields.items():
        if place := secret_in(value):
            given = flag(name).name if name in RunSpec.model_fields else f"--{name.replace('_', '-')}"
            raise UserError(f"{given} {place} is a secret and would be stored with the run: set it in the environment")
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        raise UserError("; ".join(_one_line(problem) for problem in error.errors())) from None


def _one_line(problem: Any) -> str:
    place = str(problem["loc"][0]) if problem["loc"] else ""
    name = flag(place).name if place in RunSpec.model_fields else f"--{place.replace('_', '-')}" if place else "run"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = problem.get("input")
    value = f" (got {str(given)[:80]})" if place and not isinstance(given, dict | tuple) else ""
    return f"{name}: {message}{value}"


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """ "0,1,5-7" as (0, 1, 5, 6, 7). Raises `UserError` that names the flag, also for more than `MOST_SEEDS`."""
    ranges = [
        re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part)
        for part in filter(None, map(str.strip, text.split(",")))
    ]
    bounds = [(int(match[1]), int(match[2] or match[1])) for match in ranges if match]
    if not ranges or len(bounds) < len(ranges) or any(low > high for low, high in bounds):
        raise UserError(f"{flag} {text[:80]}: not a list of whole numbers such as 0,1,2 or 0-7")
    if (count := sum(high - low + 1 for low, high in bounds)) > MOST_SEEDS:
        raise UserError(f"{flag} {text[:80]}: {count:,} numbers, at most {MOST_SEEDS:,} are taken")
    return tuple(number for low, high in bounds for number in range(low, high + 1))


def ranges(values: Sequence[int]) -> str:
    """What `numbers` reads as these: (0, 1, 5, 6, 7) is "0-1,5-7"."""
    runs = list[list[int]]()
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def differing(specs: Sequence[RunSpec], leave_out: Collection[str] = ()) -> list[str]:
    """What of each request is not the same in all: "top_k=50 seeds=0-9". `leave_out`: fields told elsewhere."""
    rows = [flatten(spec.model_dump(mode="json", exclude=set(leave_out))) for spec in specs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    apart = [name for name in names if len({json.dumps(row.get(name)) for row in rows}) > 1]
    return [" ".join(f"{name}={_said(row[name])}" for name in apart if row.get(name) not in (None, {})) for row in rows]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ranges(value) if all(isinstance(one, int) for one in value) else ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def request_seed(seed: int, suite: str, conversation: str, turn: int) -> int:
    """Seed of one request: independent between requests, the same for every drafter (63 bits)."""
    text = f"{seed}\x1f{suite}\x1f{conversation}\x1f{turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat.update(flatten(item, f"{name}.") if isinstance(item, dict) and item else {name: item})
    return flat


def _slug(name: str) -> str:
    tail = name.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "._" else "_" for c in tail)[:40]
