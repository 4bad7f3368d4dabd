"""What the core asks of an engine: plain data and one protocol. Imports nothing heavy.

docs/build/add-an-engine.md shows a whole engine; tests/support/contract.py says what every one of them must do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from speceval.catalog.schema import Draft, Target
from speceval.errors import UserError, meant
from speceval.protocol import Drafting, Rejection, Runner
from speceval.store.schema import Counters, Evidence, Facts, PatchState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def check_arguments(
    given: Collection[str], known: Collection[str], whose: str, without_effect: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Raise `UserError` for a `--engine-arg` that is none of the known ones; where none are known any may be right.

    without_effect: arguments that no request obeys -> what to do instead.
    """
    for name in sorted(without_effect.keys() & set(given)):
        raise UserError(f"--engine-arg {name}: would have no effect: {without_effect[name]}")
    unknown = sorted(set(given) - set(known)) if known else []
    if unknown:
        raise UserError(f"--engine-arg {unknown[0]}: {whose} has no such argument{meant(unknown[0], sorted(known), 2)}")


EXCHANGED = ("draft", "drafting", "record", "replay", "temperature", "top_p", "top_k")
"""Fields of an `Order` that a running engine may be given others for."""


@dataclass(frozen=True)
class Order:
    """What is asked of an engine before it starts; what comes with each request is in `Sampling`."""

    engine: str
    """Its name: `engines.names`."""
    target: Target
    """As resolved and, if the engine loads it, fetched."""
    draft: Draft | None
    """Likewise; None: the target alone."""
    k: int
    """Draft tokens of a step; 0 with the target alone."""
    drafting: Drafting
    temperature: float
    """The largest of any request."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    draft_truncation: bool = True
    """Whether top-k and top-p truncate q as they truncate p."""
    rejection: Rejection = "standard"
    batch: int = 32
    """Requests that run at once."""
    seed: int = 0
    """Of requests that bring none."""
    prefix_caching: bool = False
    trust_remote_code: bool = False
    runner: Runner | None = None
    """Model runner, of an engine that has several; None: its own choice."""
    draft_args: dict[str, Any] = field(default_factory=dict)
    """Further settings of the drafter, as the user gave them."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of this engine alone, as the user gave them."""
    record: bool = False
    """Keep what the verifier sees of every sampled draft: `Finished.recorded`."""
    replay: bool = False
    """Requests bring the tokens that they are to emit: `Sampling.replay`."""
    forced: tuple[float, ...] | None = None
    """Unconditional acceptance rate of positions 1 … K that it is made to have."""
    timed: bool = False
    """Tell when each request's tokens came: `Finished.times`."""

    def like(self, other: Order) -> bool:
        """Whether an engine started for `other` differs from one for this in nothing that `Engine.swap` exchanges:
        the drafter's checkpoint, how drafts are drawn, what is recorded. What comes with each request does not count.
        """
        exchanged = {name: getattr(other, name) for name in EXCHANGED}
        return replace(self, **exchanged) == other

    def alone(self) -> Order:
        """The same without speculation."""
        return replace(self, draft=None, k=0, record=False, replay=False, forced=None)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one request: all of them, so that no checkpoint's defaults can leak in."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    replay: tuple[int, ...] | None = None
    """Tokens to emit in place of what is sampled."""


@dataclass(frozen=True)
class Step:
    """One step of a request after its prefill. `drafted` 0: a step that verified no draft tokens."""

    drafted: int
    accepted: int
    committed: int


@dataclass(frozen=True)
class Times:
    """When a request's tokens came, in seconds."""

    sent: float
    """Unix time; the others count from here."""
    first: float
    """The first token."""
    last: float
    """The last token."""
    chunks: int
    """Pieces in which they came, of one token or more."""


@dataclass(frozen=True)
class Finished:
    """A request that is done. `token_ids` are the committed tokens, the prefill's first one included."""

    request_id: str
    token_ids: list[int]
    finish_reason: str
    """"stop" or "length"; anything else is a failure."""
    stop_reason: str | int | None
    steps: list[Step]
    cached_tokens: int
    padded_steps: int = 0
    """Steps that were filled up with drafts nobody made; not among `steps`."""
    recorded: NDArray[np.float32] | None = None
    """What the verifier saw, [steps with drafts, 2, K]: r_j and alpha_j; of a replayed text [steps, 2 or 5, K]: kept_j,
    the step's place and, of engines that know them, p, rank and spread of the text's token at j = 1
    (`store.recorded_columns`).

    NaN where nothing was drafted or recorded.
    """
    times: Times | None = None
    """Of an engine that was to tell them, and a request that got a token."""


class Parsed(NamedTuple):
    """An answer as a reasoning parser reads it."""

    text: str
    """All of it, special tokens included."""
    thought: str
    content: str
    """What a server would give as the answer."""
    end: str
    """What closes a thought; empty if that is not known."""


class Served(Protocol):
    """A server that was started for an order; whoever starts it stops it."""

    url: str
    name: str
    """Of the model that it serves."""

    def log_to(self, file: IO[bytes]) -> None:
        """Copy what it writes to a file from now on."""

    def wait(self) -> None:
        """Until it answers. Raises `UserError` where its process ends before."""

    @property
    def running(self) -> bool:
        """Whether its process is there."""

    def reason(self, code: int) -> str:
        """The most telling line of what it wrote before it ended."""

    def stop(self) -> None:
        """End it in order; again: nothing."""


class Engine(Protocol):
    """What the core needs of an engine. A class that derives from it has to bring what has no default here.

    It is called with an `Order` and starts, or raises `UserError` in one line and leaves nothing behind.
    """

    loads_checkpoints: ClassVar[bool] = True
    """Whether it loads the models itself: they are fetched before it starts, and their weights are hashed."""
    replicates: ClassVar[bool] = True
    """Whether there can be several: one that asks what runs already would only ask it twice."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that bring it: their versions go on the record."""
    variables: ClassVar[tuple[str, ...]] = ()
    """What it takes from this process's environment: on the record too."""
    installation: ClassVar[str] = ""
    """How to get them."""
    evidence: ClassVar[Evidence] = "steps"
    """What it tells of its drafts."""
    shortest_prompt: ClassVar[int] = 1
    """Tokens that a prompt must have."""
    knows_settings: ClassVar[bool] = True
    """Whether `facts` are its own: else they are as they were asked for, and are not checked."""
    timed: ClassVar[bool] = False
    """Whether it can tell when tokens came."""
    without_effect: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Arguments that it would take and that no request obeys -> what to do instead."""
    copies: int = 1
    """Servers that share the requests, each with an order's batch of them."""
    served: Mapping[str, Any] = MappingProxyType({})
    """What a running server says that it is and serves."""
    patience: float = 1.0
    """Most seconds that a step waits for something to finish, where it waits; whoever steps it sets it."""

    tokenizer: Any
    """The target's."""
    max_model_len: int
    """Longest context for which drafts are made."""

    @classmethod
    def open(cls, order: Order) -> Engine:
        """Start one. Raises `UserError`."""
        return cls(order)  # type: ignore[call-arg]

    @classmethod
    def require(cls) -> None:
        """Raise `UserError`, with the mend, where it cannot run; asked before anything is fetched."""

    @classmethod
    def defaults(cls, target: Target, tokens: int = 0) -> dict[str, Any]:
        """Arguments of its own that a target wants, unless the user says otherwise, where so many tokens at most are
        generated (0: few)."""
        return {}

    @classmethod
    def arguments(cls) -> set[str]:
        """Names of its own arguments (`--engine-arg`), as far as they can be told without starting it."""
        return set()

    @classmethod
    def ledger(cls) -> list[dict[str, str]]:
        """Its known defects and what is done about each, for `speceval ls patches`."""
        return []

    @classmethod
    def serving(cls, order: Order, ranges: Sequence[tuple[int, int, int]] = ()) -> dict[str, Any]:
        """Arguments with which its server drafts as an order says; empty where it has none.

        ranges: (first, last, K) of batch sizes, where K follows them; empty also where it cannot do that.
        """
        return {}

    @classmethod
    def server(cls, order: Order, host: str, port: int, name: str | None) -> Served:
        """Start its server as a process beside this one; `port` 0: any free one; `name`: of the model.

        Raises `UserError`, also where it has none.
        """
        raise UserError(f"--engine {order.engine}: has no server of its own")

    @classmethod
    def swaps(cls, before: Order, after: Order) -> bool:
        """Whether one that was started for `before` may be made one for `after`, as far as can be told without it."""
        return False

    def swap(self, order: Order) -> bool:
        """Go on as one that has just been started for `order`: the target stays, fields in `EXCHANGED` are exchanged.

        False: it cannot. Then it is closed, and another one is started.
        """
        return False

    def facts(self) -> Facts:
        """The settings as it resolved them, not as they were asked for: a difference stops the run."""

    def patches(self) -> list[PatchState]:
        """The state of every repair where it samples."""
        return []

    def drafter(self) -> dict[str, Any]:
        """What it decided while it loaded the drafter, for the fingerprint: own or shared embedding, layers read …"""
        return {}

    def notes(self) -> list[str]:
        """What a reader must know of that, a line each."""
        return []

    def missing_patches(self) -> list[str]:
        """A line for each repair without which its order would not be measured rightly and that is not active."""
        return []

    def warm_up(self) -> None:
        """Pay the start-up's costs now."""

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request. Raises `UserError` for a prompt that is too short, RuntimeError once closed."""

    def step(self) -> tuple[int, list[Finished]]:
        """Advance once: the number of tokens committed, and the requests that finished."""

    def in_flight(self) -> list[list[int]]:
        """Tokens committed at each step so far by each request that is not finished, the prefill's first."""
        return []

    def counters(self) -> Counters | None:
        """Its own totals since it started; None if it counts nothing."""

    def parser(self, template_kwargs: Mapping[str, Any]) -> Callable[[Sequence[int]], Parsed] | None:
        """The reasoning parser that its order names, if any. Raises `UserError` where it does not fit the target."""
        return None

    def foreign(self) -> str:
        """A line about what others asked of it since `warm_up`; "" if nothing, or if that cannot be told."""
        return ""

    def losses(self) -> list[str]:
        """What it has lost on the way, and went on without: a line each."""
        return []

    def unbalanced(self) -> list[str]:
        """What does not agree of what it alone can see: a line each. Asked when nothing is in flight."""
        return []

    def close(self) -> None:
        """Give memory and processes back; again: nothing. Must not raise: it is called on the way out of failures."""


@runtime_checkable
class Verifiable(Protocol):
    """What `speceval verify` needs beyond an `Engine`."""

    def start_evidence(self) -> bool:
        """Record p, q and the decision on every sampled draft from now on; False where no test of these would hold."""

    def take_evidence(self) -> tuple[dict[str, NDArray[Any]] | None, dict[str, int]]:
        """What was recorded since `start_evidence`, which ends: a column per quantity (None: no rows), and counts."""

    def log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The target's log-probability of each token of each sequence, but the first, given those before it."""


@dataclass(frozen=True)
class Piece:
    """Hidden states of some tokens of a request, one after another: those of a forward pass."""

    request_id: str
    start: int
    """Place of the first of them in the request."""
    states: dict[str, Any]
    """Tensors [tokens, hidden size]: "final", the normed last state, and "layer.n", the residual after n layers."""


@runtime_checkable
class Readable(Protocol):
    """What `speceval capture` needs beyond a `Verifiable` engine, which it starts without a drafter."""

    def keep_states(self, layers: Sequence[int]) -> None:
        """Keep the target's last hidden state, and those after `layers`, of every token from now on.

        Raises `UserError` where it cannot.
        """

    def take_states(self) -> list[Piece]:
        """What was kept since the last call."""


def unknown(**told: Any) -> Facts:
    """Facts of an engine that can tell what is `told` and nothing else."""
    return Facts.model_validate(dict.fromkeys(Facts.model_fields) | told)
