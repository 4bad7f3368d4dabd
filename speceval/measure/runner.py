"""The run itself: conversations in, verify steps out.

`measure` keeps the engine fed: a conversation's next turn is submitted as soon as the last one is done, and a new
conversation as soon as there is room, so that the batch stays full. A finished conversation goes to the store at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speceval import interrupts
from speceval.engines.base import Engine, Finished, Sampling
from speceval.measure import chat, thoughts
from speceval.measure.arrivals import Arrivals
from speceval.measure.stretch import Sink, Stretch
from speceval.protocol import RunSpec, digest, request_seed
from speceval.store import CUT_THOUGHT, RECORDED_COLUMNS, THOUGHT, TIMES, Counts, Key, Texts, pack
from speceval.store.schema import Segment
from speceval.suites import Conversation, Suite

if TYPE_CHECKING:
    from speceval.measure.until import Looks

See = Callable[[Sequence[int], Sequence[int]], thoughts.Visible]
"""From a prompt and its answer to what the next turn may see of it."""
LONGEST_WAIT = 1.0
"""Seconds between two looks at whether the user wants an end."""
QUEUE_AHEAD = 2
"""Conversations submitted per engine slot: the engine never waits for the harness, a kill loses little."""


@dataclass(frozen=True)
class Template:
    """How the target reads a conversation: template arguments, and where an answer's visible part starts."""

    kwargs: dict[str, Any]
    answer_marker: str | None


@dataclass
class Progress:
    """What a progress display needs; the runner updates it in place and calls `changed` after every engine step."""

    conversations: int
    done: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    counts: Mapping[Key, Sequence[Counts]] | None = field(default_factory=dict)
    """`Store.counts` of the run: what the turns of each finished conversation accepted. None: it is several runs."""


class Live:
    """A conversation in flight."""

    def __init__(self, suite: Suite, conversation: Conversation, seed: int) -> None:
        self.suite, self.conversation, self.seed = suite, conversation, seed
        self.messages: list[chat.Message] = suite.opening(conversation)
        self.turns: list[dict[str, Any]] = []
        self.skipped: str | None = None
        self.waited = 0.0
        """Seconds from when it was due until its first request went out."""
        self._prompt: list[int] = []

    @property
    def key(self) -> Key:
        return self.suite.name, self.conversation.id, self.seed

    @property
    def turn(self) -> int:
        """The turn that is due, from 1."""
        return len(self.turns) + 1

    @property
    def over(self) -> bool:
        return self.skipped is not None or len(self.turns) == len(self.conversation.turns)

    def submit(self, engine: Engine, spec: RunSpec, template: Template, texts: Texts | None) -> None:
        """Submit the next turn, or mark the conversation as skipped when the engine cannot measure it."""
        self.messages.append({"role": "user", "content": self.conversation.turns[self.turn - 1]})
        prompt = chat.render(engine.tokenizer, self.messages, template.kwargs)
        max_tokens, text = spec.max_tokens or self.suite.max_tokens, None
        if texts is not None:
            text = texts.get((*self.key, self.turn))
            if text is None:
                self.skipped = f"turn {self.turn} is not in the run that is replayed"
                return
            max_tokens = len(text)
        if len(prompt) < (least := engine.shortest_prompt):
            self.skipped = f"turn {self.turn} has a prompt of {len(prompt)} tokens, at least {least} are needed"
            return
        needed = len(prompt) + max_tokens + spec.k + 1
        if needed > engine.max_model_len:
            # Near the end of the context vLLM drafts nothing for the whole batch: such a turn would spoil the others.
            self.skipped = (
                f"turn {self.turn} needs {needed} tokens (prompt {len(prompt)} + max_tokens {max_tokens} + K + 1), "
                f"the context has {engine.max_model_len}"
            )
            return
        seed = None
        if spec.temperature > 0:
            seed = request_seed(self.seed, self.suite.name, self.conversation.id, self.turn)
        self._prompt = prompt
        engine.submit(
            self.request_id, prompt, Sampling(spec.temperature, spec.top_p, spec.top_k, max_tokens, seed, text)
        )

    @property
    def request_id(self) -> str:
        return "\x1f".join((self.suite.name, self.conversation.id, str(self.seed)))

    def receive(self, result: Finished, tokenizer: Any, see: See, kind: str) -> None:
        """Take a finished turn; what is visible of its answer becomes part of the conversation.

        `see`: of `thoughts.visible`; `kind`: of what is recorded.
        """
        answer, cut, thought = see(self._prompt, result.token_ids)
        self.turns.append(
            {
                "turn": self.turn,
                "user": self.messages[-1]["content"],
                "output": tokenizer.decode(result.token_ids) if cut or thought else answer,
                "token_ids": result.token_ids,
                "prompt_tokens": len(self._prompt),
                "cached_tokens": result.cached_tokens,
                "padded_steps": result.padded_steps,
                "finish_reason": result.finish_reason,
                "stop_reason": result.stop_reason,
                "steps": [(step.drafted, step.accepted, step.committed) for step in result.steps],
                **({CUT_THOUGHT: True} if cut else {}),
                **({THOUGHT: thought} if thought else {}),
                **_packed(result, kind),
                **_timed(result, self.waited if self.turn == 1 else 0.0),
            }
        )
        self.messages.append({"role": "assistant", "content": answer})

    def record(self) -> dict[str, Any]:
        """The journal line."""
        line: dict[str, Any] = {
            "suite": self.suite.name,
            "conversation": self.conversation.id,
            "seed": self.seed,
            "category": self.conversation.category,
            "turns": self.turns,
        }
        return {**line, "skipped": self.skipped} if self.skipped else line


def _packed(result: Finished, kind: str) -> dict[str, str]:
    """What was recorded of a turn, for its line in the journal."""
    if result.recorded is None:
        return {}
    own = {kind: pack(result.recorded[:, : len(RECORDED_COLUMNS[kind])])}
    law = result.recorded[:, 2:, :1]
    told = kind == "kept" and law.shape[1] == len(RECORDED_COLUMNS["law"])  # an engine need not know the text's law
    return own | {"law": pack(law)} if told else own


def _timed(result: Finished, waited: float) -> dict[str, list[float]]:
    """When a turn's tokens came, for its line in the journal: the values of `TIME_COLUMNS`."""
    if (times := result.times) is None:
        return {}
    return {TIMES: [round(value, 6) for value in (times.sent, waited, times.first, times.last, times.chunks)]}


def plan(
    suites: Iterable[Suite], spec: RunSpec, by_conversation: bool = False
) -> list[tuple[Suite, Conversation, int]]:
    """Every conversation of the run, in order: seed by seed, or suite by suite with a conversation's seeds together.

    Of a shard i/n: every n-th conversation from the i-th on, with all its seeds.
    """
    seeds = spec.seeds
    conversations = [(suite, conversation) for suite in suites for conversation in suite.conversations]
    if spec.shard is not None:
        number, count = map(int, spec.shard.split("/"))
        conversations = conversations[number - 1 :: count]
    if by_conversation:
        return [(*conversation, seed) for conversation in conversations for seed in seeds]
    return [(*conversation, seed) for seed in seeds for conversation in conversations]


def prompts_hash(engine: Engine, suites: Iterable[Suite], template: Template) -> str:
    """SHA-256 of the first turn's rendered prompt tokens of every conversation."""
    rendered = []
    for suite in suites:
        for conversation in suite.conversations:
            messages = [*suite.opening(conversation), {"role": "user", "content": conversation.turns[0]}]
            rendered.append(chat.render(engine.tokenizer, messages, template.kwargs))
    return digest(rendered)


class InHand:
    """The conversations that an engine has in hand: a turn that is done is followed by the next at once."""

    def __init__(
        self,
        engine: Engine,
        spec: RunSpec,
        template: Template,
        texts: Texts | None,
        settle: Callable[[Live], None],
        closed: Callable[[Live], bool] = lambda _: False,
    ) -> None:
        """`settle` takes what is over, and what is `closed` as soon as its turn is done."""
        self.lives: dict[str, Live] = {}
        """By the name of the request that is out."""
        self._engine, self._spec, self._template, self._texts = engine, spec, template, texts
        self._settle, self._closed = settle, closed
        self._see = thoughts.visible(engine, template.answer_marker, template.kwargs)
        self._kind = "recorded" if texts is None else "kept"

    def take(self, live: Live) -> None:
        """Begin a conversation, or go on with its next turn."""
        if not live.over and not self._closed(live):
            live.submit(self._engine, self._spec, self._template, self._texts)
        self.lives[live.request_id] = live
        if live.over or self._closed(live):
            self._settle(live)
            del self.lives[live.request_id]

    def step(self) -> int:
        """Advance the engine once; returns the tokens that it committed."""
        committed, finished = self._engine.step()
        lives = [self.lives[result.request_id] for result in finished]
        for live, result in zip(lives, finished, strict=True):
            live.receive(result, self._engine.tokenizer, self._see, self._kind)
        for live in lives:
            self.take(live)
        return committed


def measure(
    engine: Engine,
    spec: RunSpec,
    suites: list[Suite],
    template: Template,
    store: Sink,
    progress: Progress,
    changed: Callable[[], None],
    texts: Texts | None = None,
    ahead: int = QUEUE_AHEAD,
    looks: Looks | None = None,
    keep: Callable[[Segment], None] = lambda _: None,
) -> Segment:
    """Generate every conversation that the store does not hold yet and append each as it finishes.

    `texts`: what the target is made to answer, in place of sampling; `ahead`: conversations kept in flight for each
    request that the engine runs at once; `looks`: closes suites that are known well enough; `keep`: takes what is to be
    known of this stretch, when it begins and again when it is over, however it ends.
    Returns what this stretch did, with the engine's own counters over it. An interrupt leaves the store whole.
    """
    due = [Live(*item) for item in plan(suites, spec, by_conversation=looks is not None)]
    pending = [live for live in due if live.key not in store.done]
    pending.reverse()
    stretch = Stretch(engine, store)

    def closed(live: Live) -> bool:
        return looks is not None and live.suite.name in looks.closed

    def settle(live: Live) -> None:
        store.append(live.record())
        progress.done += 1
        if looks is not None:
            looks.finished(live.suite.name)

    in_hand = InHand(engine, spec, template, texts, settle, closed)
    room = (
        (1 if spec.rate is not None else ahead) * spec.batch * engine.copies
    )  # what waits in the engine would wait in its times
    arrivals = Arrivals(spec.rate, [live.key for live in reversed(pending)])

    def fill() -> float:
        """Take what is due, as far as there is room; returns the seconds until more is."""
        while pending and len(in_hand.lives) < room:
            if (wait := arrivals.wait(pending[-1].key)) > 0:
                return wait
            live = pending.pop()
            live.waited = 0.0 if spec.rate == "inf" else -wait
            if closed(live):
                progress.conversations -= 1
            else:
                in_hand.take(live)
        return LONGEST_WAIT

    def step() -> None:
        committed = in_hand.step()
        stretch.tokens += committed
        progress.tokens += committed
        changed()

    def unfinished_turns() -> list[dict[str, Any]]:
        return [turn for live in in_hand.lives.values() if live.key not in store.done for turn in live.turns]

    keep(stretch.so_far())
    with interrupts.deferred() as interrupt:
        try:
            while pending or in_hand.lives:
                engine.patience = min(fill(), LONGEST_WAIT)
                if in_hand.lives:
                    step()
                elif pending:
                    time.sleep(engine.patience)
                if interrupt.requested:
                    interrupt.raise_()
        except BaseException as error:
            between_steps = isinstance(error, KeyboardInterrupt) and interrupt.between_steps
            with suppress(OSError):  # a full disk, say, which is being reported already
                keep(stretch.interrupted(unfinished_turns(), spec.k, between_steps))
            if interrupt.requested and isinstance(error, Exception):
                interrupt.raise_()  # the engine's own processes were interrupted too
            raise
    keep(ended := stretch.ended())
    return ended
