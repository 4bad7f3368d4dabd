"""The record of a run: what run.json holds, as types.

An unknown key is refused: only a later version can have written it, and it may change what the others mean. A field
that a later version adds has a default, which is what it stood for in every run before; all others are required.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_serializer,
)
from pydantic.dataclasses import dataclass

from speceval import files
from speceval.errors import UserError
from speceval.private import masked, public, without_places
from speceval.protocol import Drafting, RunSpec, digest, flatten
from speceval.store.older import migrate

SCHEMA_VERSION = 3
"""Of run.json. Runs of versions 1 and 2 are read too (`speceval.store.older`)."""

OUTPUTS = {
    "run": 1,
    "compare": 1,
    "check": 1,
    "baseline": 1,
    "verify": 1,
    "validate": 1,
    "selftest": 1,
    "explain": 1,
    "table": 1,
    "ls": 1,
    "sweep": 1,
    "tune": 1,
    "capture": 1,
    "replay": 1,
    "probe": 1,
    "watch": 1,
}
"""Schema of each command's JSON output (`show` prints that of `run`). Raised when a field goes or changes its meaning,
not when one is added."""

Evidence = Literal["steps", "histogram", "requests", "totals", "nothing"]
"""What an engine tells of its drafts: the counts of each step; for each request how many steps accepted 0, 1, … K
drafts; the sums of each request; the sums of all; or nothing, so that only speed and texts are known."""

ABSENT = "absent"
"""Shown in place of a value that one of two runs does not have."""

LATER_HASH = re.compile(r"(target|draft)\.(config|tokenizer|chat_template)|suites\..+\.form|(drafter|served)(\..+)?")
"""Dotted names of the fingerprint's hashes that earlier versions did not take, and of what they did not ask for."""


def versioned(output: str, content: dict[str, Any]) -> dict[str, Any]:
    """A command's JSON output with its schema number; `output` is a key of `OUTPUTS`."""
    return {"schema": OUTPUTS[output], **content}


class Strict(files.Strict, strict=True):
    """No key but the fields, no value of another type."""


class Grown(Strict):
    """Fields with a default came later: they are written only where they say something, as before there were any."""

    @model_serializer(mode="wrap")
    def _what_there_is(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
            if not field.is_required()
        }
        content: dict[str, Any] = whole(self)
        return {name: value for name, value in content.items() if name not in defaults or value != defaults[name]}


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_moment)]
"""Date and time, ISO 8601."""


class Checkpoint(Grown):
    """A model without the place where a machine keeps it."""

    name: str
    """As the user named it."""
    model: str | None
    """Hub id; "zoo", "local" or "package" for what is not on the hub; None for drafters without weights."""
    revision: str | None
    """Of the hub."""
    weights: str | None
    """Hash of the weights (`speceval.measure.weights`); None for drafters without weights."""
    config: str | None = None
    """Hash of `config.json` and its like, remarks left out; None where it is not known, as in earlier versions."""
    tokenizer: str | None = None
    """Hash of the target's tokenizer."""
    chat_template: str | None = None
    """Hash of the target's chat template as it stands in its files."""


class SuiteFacts(Grown):
    """A suite as it was run."""

    version: int
    """Of the suite's file."""
    dataset: str
    """SHA-256 of all rows, before template, shuffle and limit."""
    conversations: int
    """After the limit; each seed samples all of them."""
    max_tokens: int
    """Longest answer of a turn."""
    form: str | None = None
    """Hash of the suite's template and system prompt; None where it is not known, as in earlier versions."""


class SamplingFacts(Strict):
    """Sampling parameters of every request."""

    temperature: float
    """0: greedy."""
    top_p: float
    """1: off."""
    top_k: int
    """0: off."""


class Facts(Strict):
    """The engine's settings as it resolved them itself; None for what it cannot tell."""

    model_config = ConfigDict(strict=False)  # an engine's own strings may be of its own types

    vllm: str | None
    """Version."""
    torch: str | None
    """Version."""
    device: str
    """Such as "cpu" or "cuda"."""
    runner: str
    """vLLM's model runner, "V1" or "V2"."""
    method: str
    """How drafts are made: "eagle3", "ngram" …; "none": the target alone."""
    k: int
    """Most draft tokens of a step."""
    draft_sample_method: str | None
    """How draft tokens are drawn: "probabilistic" or "greedy"."""
    rejection_sample_method: str | None
    """How drafts are verified: "standard" or "block"; "synthetic" forces the acceptance."""
    draft_truncation: bool | None
    """Whether top-k and top-p truncate q as they truncate p."""
    dtype: str | None
    """Of the target's weights."""
    quantization: str | None
    """Of the target; None also without any."""
    kv_cache_dtype: str | None
    """"auto": that of the weights."""
    max_model_len: int | None
    """Longest context for which drafts are made, in tokens."""
    max_num_seqs: int | None
    """Requests that run at once."""
    max_num_batched_tokens: int | None
    """Of one engine step."""
    async_scheduling: bool | None
    """Whether the next step is scheduled before the last is done."""
    prefix_caching: bool | None
    """Whether prompts may reuse cached prefixes."""
    enforce_eager: bool | None
    """Whether nothing is compiled or captured."""
    generation_config: str | None
    """Whose sampling defaults hold; "vllm": none of the checkpoint's."""
    tensor_parallel: int | None
    """Devices that share each layer."""
    pipeline_parallel: int | None
    """Devices that share the stack of layers."""
    data_parallel: int | None
    """Copies of the engine."""


class Fingerprint(Grown):
    """Everything that moves tau."""

    target: Checkpoint
    """The model whose distribution is preserved."""
    draft: Checkpoint
    """The model, or method, that proposes."""
    suites: dict[str, SuiteFacts]
    """By name, in the order in which they were asked for."""
    prompts: str
    """SHA-256 of the token ids of every conversation's first prompt."""
    chat_template: str
    """SHA-256 of the target's chat template."""
    chat_template_kwargs: dict[str, Any]
    """What the template was called with: thinking mode, reasoning effort …"""
    sampling: SamplingFacts
    """Of every request."""
    drafting: Drafting
    """As it was asked for; `engine.draft_sample_method` is what the engine made of it."""
    seeds: list[int]
    """Samples of each conversation."""
    limit: int | None
    """Conversations of each suite; None: all."""
    shuffle_seed: int | None
    """Of the order of each suite; None: the suite's own order."""
    engine: Facts
    """What the engine resolved."""
    replay: str | None
    """Hash of the texts that the target was made to answer; None for a run that samples."""
    patches: list[str]
    """Ids of the patches that were active where the engine samples, sorted."""
    method_patches: list[str] = Field(default_factory=list)
    """Those of `patches` that only some drafting methods need: whether they are active comes with the drafter."""
    draft_args: dict[str, Any] = Field(default_factory=dict)
    """Further keys of vLLM's speculative_config that were asked for."""
    stratified: bool = False
    """Whether `limit` was taken evenly from the categories."""
    evidence: Evidence = "steps"
    """What the engine told of its drafts."""
    rate: float | None = None
    """Conversations that began in a second, at random; None: as many at once as there is room for."""
    drafter: dict[str, Any] = Field(default_factory=dict)
    """What the engine decided while it loaded the drafter: own or shared embedding and head, auxiliary layers …"""
    served: dict[str, Any] = Field(default_factory=dict)
    """The names of what a running server serves, as far as it tells: model, target, draft."""

    @property
    def hash(self) -> str:
        """SHA-256 of the fingerprint. A field with a default, which a later version added, counts when it is not at it:
        so the same protocol has the same hash under all versions. `method_patches` repeats what `patches` says.
        """
        return digest(self.model_dump(mode="json", exclude_defaults=True, exclude={"method_patches"}))

    def flat(self) -> dict[str, Any]:
        """Every field by its dotted name."""
        return flatten(self.model_dump(mode="json"))


@dataclass(config=ConfigDict(extra="forbid"))
class Counters:
    """The engine's own totals over all requests so far (vLLM's `vllm:spec_decode_*` metrics).

    The `steps_*` are the worker's (`vllm_patches.taps.counters`); 0 where nothing counts them.
    """

    num_drafts: int = 0
    """Steps that verified drafts."""
    num_draft_tokens: int = 0
    """Drafts verified."""
    num_accepted_tokens: int = 0
    """Drafts accepted."""
    num_accepted_tokens_per_pos: list[int] = Field(default_factory=list)
    """#(A >= j), entry j-1 for position j."""
    preemptions: int = 0
    """Requests thrown out of a full cache."""
    steps_with_q: int = 0
    """Verified against the distribution that the drafts were drawn from."""
    steps_one_hot: int = 0
    """Verified as if their drafts were certain, because q was lost."""
    steps_structured: int = 0
    """Under a grammar: drafted argmaxes."""
    steps_padded: int = 0
    """Filled up with drafts that nobody made."""
    kernel_strays: int = 0
    """Accesses outside a tensor by kernels that were interpreted; 0 where none are (`--runner v2` on a CPU)."""

    def minus(self, other: Counters) -> Counters:
        """What was counted since `other`."""
        mine, theirs = asdict(self), asdict(other)
        before = theirs.pop("num_accepted_tokens_per_pos") or [0] * len(self.num_accepted_tokens_per_pos)
        per_position = zip(mine.pop("num_accepted_tokens_per_pos"), before, strict=True)
        return Counters(
            num_accepted_tokens_per_pos=[a - b for a, b in per_position],
            **{name: count - theirs[name] for name, count in mine.items()},
        )

    def plus(self, other: Counters) -> Counters:
        """The sum; a position that one of them has not seen counts 0 there."""
        mine, theirs = asdict(self), asdict(other)
        positions = zip_longest(
            mine.pop("num_accepted_tokens_per_pos"), theirs.pop("num_accepted_tokens_per_pos"), fillvalue=0
        )
        return Counters(
            num_accepted_tokens_per_pos=[a + b for a, b in positions],
            **{name: count + theirs[name] for name, count in mine.items()},
        )

    def without_padding(self, steps: int, k: int) -> Counters:
        """What is left when `steps` padded steps of `k` drafts each, none accepted, are taken out."""
        return replace(
            self, num_drafts=self.num_drafts - steps, num_draft_tokens=self.num_draft_tokens - k * steps, steps_padded=0
        )


class Segment(Grown):
    """One stretch of a run: from the start of an engine to the end, an interruption or a kill."""

    conversations: int
    """Finished in it."""
    tokens: int
    """Committed in it, by unfinished conversations too; 0 if it was killed."""
    seconds: float
    """Of its engine, from the first request to the last token; stored to 0.1 ms, 0 if it was killed."""
    counters: Counters | None
    """What the engine counted in it; None if it was killed, or the engine did not answer any more."""
    first: int = 0
    """Conversations that were in the journal when it began: its own are those that follow."""
    interrupted: bool = False
    """Whether it ended before all conversations were in: by Ctrl-C, an error or a kill."""
    unfinished_least: Counters | None = None
    """What conversations that it did not finish have of `counters`, at least; None if it ended in order."""
    unfinished_most: Counters | None = None
    """The same at most: an unfinished request does not tell which of its steps had drafts. None if it is not known,
    because the engine was broken off within a step."""
    began: float = 0.0
    """When, in seconds since 1970 by the clock of its machine; 0: an earlier version did not say."""

    @field_serializer("seconds", "began")
    def _rounded(self, seconds: float) -> float:
        return round(seconds, 4)


class PatchState(Strict):
    """A repair of the engine, as it stands where the engine samples."""

    id: str
    """Of its row in the ledger."""
    title: str
    """The defect, in a sentence."""
    target: str
    """What it replaces."""
    versions: str
    """Versions of vLLM that it is for."""
    upstream: str
    """Where the defect is discussed."""
    state: str
    """"active", "native", "switched off", "not needed", "refused", "not loaded" or "not applied"."""
    reason: str
    """Why it is not active; empty when it is."""
    bound: bool = False
    """Whether only some drafting methods need it."""


class Environment(Grown):
    """Machine and package versions, for the record only."""

    python: str
    """Version."""
    platform: str
    """Operating system and machine."""
    cpus: int | None
    """Logical processors."""
    packages: dict[str, str]
    """Versions of the packages that matter, by name."""
    variables: dict[str, str] = Field(default_factory=dict)
    """What an engine in this process took from its environment: threads, memory."""


class Skipped(Strict):
    """A conversation that ended before its last turn."""

    suite: str
    """Name of its suite."""
    conversation: str
    """Its id."""
    seed: int
    """Of the sample."""
    skipped: str
    """Why."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Look:
    """What a look of `--until` saw and what it may claim."""

    conversations: int
    """From the start of the order."""
    value: float | None
    """tau, or its difference in percent; None where nothing was measured."""
    half_width: float | None
    """Relative (0.01 is 1 %), at `confidence`; None without an interval."""
    confidence: float | None
    """Nominal, of this look's own interval; None for a look that spends nothing."""
    spent: float
    """Error spent up to here."""


class Behind(Strict):
    """What was in flight behind the stopping point: generated, and in no table."""

    requests: int
    """Finished turns."""
    tokens: int
    """Their output tokens."""


class StoppedSuite(Strict):
    """How `--until` ended on one suite."""

    outcome: str
    """"target reached" or "all conversations used"."""
    conversations: int
    """Used: what the tables hold."""
    of: int
    """That there are."""
    value: float | None
    """Of the look that stopped."""
    half_width: float | None
    """Of that look, relative."""
    confidence: float | None
    """Nominal, with which intervals of this suite hold with 95 %."""
    tokens: int
    """Output tokens of the conversations used."""
    behind: Behind
    """What else was generated."""
    tokens_saved: int
    """About how many more the rest of the suite would have cost."""
    looks: list[Look]
    """All of them, the stopping one last."""


class Stopping(Strict):
    """What `--until` did."""

    rule: str
    """How the error is spent over the looks."""
    error: float
    """Chance that any look misses the truth."""
    target: float
    """Relative half-width asked for."""
    quantity: str
    """What was to be known: "tau" or "relative difference of tau"."""
    against: str | None
    """Name of the run that the difference is to."""
    suites: dict[str, StoppedSuite]
    """By name."""


class Machine(Strict):
    """What must be the same for two speed-ups to be compared."""

    host: str
    """Hash of its name."""
    processor: str
    """Architecture."""
    cpus: int | None
    """Logical processors."""
    gpus: list[str]
    """Their names."""


class Timing(Grown):
    """One block of conversations on both engines."""

    suite: str
    """Name of the suite."""
    batch: int
    """Requests at once."""
    block: int
    """Number of the block, from 0."""
    drafted_seconds: float
    """With speculative decoding."""
    drafted_tokens: int
    """With speculative decoding."""
    alone_seconds: float
    """By the target alone."""
    alone_tokens: int
    """By the target alone."""
    drafted_running: float | None = None
    """Mean number of requests in flight; None from earlier versions, whose blocks drained."""
    alone_running: float | None = None
    """By the target alone."""


class Speedup(Strict):
    """What `--speedup` timed; `speceval.estimate.speedup` makes ratios of it."""

    machine: Machine
    """Where."""
    batches: list[int]
    """Batch sizes, as they were asked for."""
    timings: list[Timing]
    """Every block at every batch size."""


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what the spans cover together."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


class RunMeta(BaseModel):
    """run.json, beside its `schema` number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    """The run's own name (`RunSpec.name`), which it keeps whatever later versions would call it."""
    status: Literal["running", "complete", "inconsistent"]
    """"inconsistent": over, with `problems`."""
    created: Moment
    """When the run began, ISO 8601."""
    command: list[str]
    """The command line that began it."""
    spec: RunSpec
    """What was asked for."""
    fingerprint: Fingerprint
    """What was measured."""
    fingerprint_hash: str
    """`Fingerprint.hash` as the version that began the run computed it."""
    conversations: int
    """Planned, each seed counted."""
    environment: Environment
    """Where the run began."""
    patches: list[PatchState]
    """Every row of the ledger, active or not."""
    segments: list[Segment]
    """The stretches of the run, one after another."""
    problems: list[str]
    """What does not balance in the run's books, one line each."""
    finished: Moment | None = None
    """When the run ended, ISO 8601."""
    skipped: list[Skipped] = Field(default_factory=list)
    """Conversations that ended before their last turn."""
    notes: list[str] = Field(default_factory=list)
    """What was given and has no effect, and what the engine decided by itself: a line each."""
    stopping: Stopping | None = None
    """Of a finished run with `--until`."""
    speedup: Speedup | None = None
    """Of a run with `--speedup`."""
    groups: dict[str, dict[str, list[str]]] = Field(default_factory=dict)
    """Suite -> name of a group -> its categories, where the suite has groups."""

    @property
    def evidence(self) -> Evidence:
        """What the engine told of its drafts."""
        return self.fingerprint.evidence

    @property
    def checked_conversations(self) -> int:
        """Conversations that were held against the engine's counters: those of stretches that have any."""
        return sum(segment.conversations for segment in self.segments if segment.counters is not None)

    @property
    def engine_seconds(self) -> float:
        """Of all engines together."""
        return sum(segment.seconds for segment in self.segments)

    @property
    def wall_seconds(self) -> float | None:
        """In which at least one engine measured: replicas and shards did so side by side.

        None where that is not known, of a run with several engines by a version that did not say when each began.
        """
        timed = [segment for segment in self.segments if segment.seconds]
        if all(segment.began for segment in timed):
            return _union([(segment.began, segment.began + segment.seconds) for segment in timed])
        # One that goes on after an interruption has one stretch that ended in order, the last.
        one_by_one = sum(not segment.interrupted for segment in self.segments) < 2
        return self.engine_seconds if one_by_one else None

    def published(self) -> RunMeta:
        """The same without secrets and without places on a machine: what leaves it says what was run, not where."""
        content = _published(self.model_dump())
        for role in ("target", "draft"):
            content["spec"][role] = public(getattr(self.spec, role))
            content["fingerprint"][role]["name"] = public(getattr(self.fingerprint, role).name)
        return RunMeta.model_validate(content)

    def as_json(self) -> dict[str, Any]:
        """run.json's content; what there is none of is left out."""
        content = {"schema": SCHEMA_VERSION, **self.model_dump(mode="json")}
        return {
            name: value
            for name, value in content.items()
            if value is not None and (value or name not in ("notes", "groups"))
        }


def _published(value: Any) -> Any:
    """Every text of nested data without secrets and places."""
    if isinstance(value, str):
        return without_places(masked(value))
    if isinstance(value, dict):
        return {key: _published(item) for key, item in value.items()}
    return type(value)(map(_published, value)) if isinstance(value, list | tuple) else value


def parse(content: Any, path: Path) -> RunMeta:
    """run.json's content of any schema as a record. Raises `UserError`, in one line, when it is not ours."""
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise UserError(f"{path}: no schema version: not a speceval run")
    if not 1 <= content["schema"] <= SCHEMA_VERSION:
        version = content["schema"]
        raise UserError(f"{path}: schema {version}, this speceval reads 1 to {SCHEMA_VERSION}: update speceval")
    try:
        return RunMeta.model_validate(migrate(content))
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: fields are missing or of another kind: the file is damaged") from None
    except ValidationError as error:
        fault = first_fault(error)
        mend = "update it" if fault.endswith(UNKNOWN) else "the file is damaged"
        raise UserError(f"{path}: {fault}: {mend}") from None


def differences(a: BaseModel, b: BaseModel) -> list[str]:
    """Fields (dotted) in which two requests or fingerprints differ, each with both values."""
    flat_a, flat_b = (flatten(each.model_dump(mode="json")) for each in (a, b))
    values = {name: [flat.get(name, ABSENT) for flat in (flat_a, flat_b)] for name in sorted(flat_a | flat_b)}
    return [f"{name}: {one} -> {other}" for name, (one, other) in values.items() if differ(name, one, other)]


def differ(name: str, a: Any, b: Any) -> bool:
    """Whether a field has two values in two fingerprints. `ABSENT` is one, but for hashes that earlier versions did not
    take: there it is "not known"."""
    return bool(a != b) and not (ABSENT in (a, b) and LATER_HASH.fullmatch(name))


def other_request(meta: RunMeta, spec: RunSpec) -> list[str]:
    """Fields in which a stored run was asked for otherwise than `spec`: none, if it is the same run."""
    asked = meta.spec
    if meta.name in asked.older_names:
        asked = asked.model_copy(update={"record": spec.record})  # nobody could ask for it then
    return differences(asked, spec)


UNKNOWN = "is not known to this speceval"
"""Said of a field that only a later version can have written."""


def first_fault(error: ValidationError) -> str:
    """Where the first value is of another kind, and what it should be."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place} {UNKNOWN}"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
