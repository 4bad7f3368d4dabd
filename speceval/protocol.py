"""What a run is: the request (`RunSpec`) and the fingerprint of everything that moves the acceptance length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from speceval.errors import UserError
from speceval.private import secret_in

Drafting = Literal["probabilistic", "greedy", "deterministic"]
Rejection = Literal["standard", "block", "synthetic", "fly"]
"""vLLM's `rejection_sample_method`; "synthetic" and "fly" are not lossless."""

FIRST_HASHED = frozenset(
    {"target", "draft", "k", "temperature", "top_p", "top_k", "drafting", "suites", "limit", "shuffle_seed"}
    | {"max_tokens", "seeds", "batch", "prefix_caching", "chat_template_kwargs", "engine_args", "trust_remote_code"}
)
SECOND_HASHED = FIRST_HASHED | {"draft_truncation", "rejection"}
HASHED = SECOND_HASHED | {"until", "against", "replay", "record"}
"""Fields of a request that its name always tells apart. Never add to it: a new field counts when it is not at its
default, so that the runs that are stored keep their names. The other two are what schemas 1 and 2 hashed."""


MOST_K = 128
"""Draft tokens of a step that vLLM's verifier takes (MAX_SPEC_LEN in vllm/v1/sample/rejection_sampler.py)."""
LARGEST_SEED = (1 << 32) - 1
"""The engine seeds NumPy with it."""
MOST_SEEDS = 10_000
MOST_AT_ONCE = 1 << 16
"""Requests: the engine keeps buffers for each."""
LARGEST = (1 << 31) - 1
"""Whole number that the engine keeps in 32 bits."""


class RunSpec(BaseModel):
    """One measurement: a target, a drafter, a temperature and the suites, as the user asked for it.

    Two runs with equal specs are the same run: the run's directory goes by `names`, its resumption by the fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = Field(min_length=1)
    draft: str = Field(min_length=1)
    k: int = Field(ge=1, le=MOST_K, description="num_speculative_tokens: the most draft tokens of one verify step")
    temperature: float = Field(ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=LARGEST, description="0 = off")
    drafting: Drafting
    draft_truncation: bool = Field(default=True, description="top-k and top-p truncate q as they truncate p")
    rejection: Rejection = "standard"
    suites: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1, le=LARGEST, description="conversations of each suite")
    shuffle_seed: int | None = Field(default=None, ge=-LARGEST, le=LARGEST)
    max_tokens: int | None = Field(default=None, ge=1, le=LARGEST, description="of one turn; None = the suite's own")
    seeds: tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...] = Field(
        default=(0,), min_length=1, max_length=MOST_SEEDS
    )
    until: float | None = Field(default=None, gt=0, lt=1, description="relative half-width that ends the run")
    against: str | None = Field(default=None, description="the run that `until` is held against")
    batch: int = Field(default=32, ge=1, le=MOST_AT_ONCE, description="requests that the engine runs at once")
    prefix_caching: bool = False
    replay: str | None = Field(default=None, description="hash of the texts that the target is made to answer")
    record: bool = Field(default=True, description="keep r and alpha of every sampled draft")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    engine_args: dict[str, Any] = Field(default_factory=dict)
    trust_remote_code: bool = False

    @field_validator("suites", "seeds")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"names {list(value)}: the same one twice")
        return value

    @model_validator(mode="after")
    def _sampled_drafts_need_temperature(self) -> RunSpec:
        if self.temperature == 0 and self.drafting == "probabilistic":
            raise ValueError("probabilistic drafting needs a temperature above 0")
        return self

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
        defaults = {
            name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()
        }
        counted = {name for name, value in self if name in always or (value != defaults[name] and name != ignore)}
        return digest(self.model_dump(mode="json", include=counted))[:12]

    def _name(self, identity: str) -> str:
        parts = [_slug(self.target), _slug(self.draft), f"T{self.temperature:g}", self.drafting, f"k{self.k}"]
        return "-".join([*parts, identity])


FLAGS = {
    "temperature": "--temp",
    "suites": "--suite",
    "engine_args": "--engine-arg",
    "chat_template_kwargs": "--template-arg",
}
"""Fields that have another name on the command line."""


def make_spec(**fields: Any) -> RunSpec:
    """Validate `fields` into a `RunSpec`; raises `UserError` with one line that names the flag.

    What would be stored holds no secrets: they are refused here, so that older runs can still be read.
    """
    for name, value in fields.items():
        if place := secret_in(value):
            flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise UserError(f"{flag} {place} is a secret and would be stored with the run: set it in the environment")
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        raise UserError("; ".join(_one_line(problem) for problem in error.errors())) from None


def _one_line(problem: Any) -> str:
    place = str(problem["loc"][0]) if problem["loc"] else ""
    flag = FLAGS.get(place, f"--{place.replace('_', '-')}" if place else "run")
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = problem.get("input")
    shown = f" (got {str(given)[:80]})" if place and not isinstance(given, dict | tuple) else ""
    return f"{flag}: {message}{shown}"


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
