"""What servers answer, in our terms: one function for each dialect, from an answer's JSON to tokens and verify steps.

A server that does not tell each step tells less than its steps had. What it tells is kept exactly: rows are made whose
counts have the same sums, and the same histogram where that is told. In which order they came is not known then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from speceval.engines.base import Finished, Step, Times
from speceval.engines.server.address import short
from speceval.engines.server.client import RESUMES, Gone, Stream
from speceval.errors import UserError
from speceval.store.schema import Evidence

GRADES: tuple[Evidence, ...] = ("steps", "histogram", "requests", "totals", "nothing")
"""The most telling first."""
HISTOGRAMS = ("spec_correct_drafts_histogram", "spec_accept_histogram")
"""SGLang's names for it, the newest first."""
ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_tokens", "spec_accept_token_num")
PROPOSED = ("spec_num_proposed_drafts", "spec_draft_tokens", "spec_draft_token_num")
WRONG = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
"""What comes of reading an answer of another shape."""
MOST_TOKEN = 1 << 31
ENDED = {
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "word": "stop",
    "limit": "length",
    "length": "length",
    "stop": "stop",
}


@dataclass(frozen=True)
class Answer:
    """A request's tokens and steps, and what these are made from."""

    tokens: list[int]
    finish_reason: str
    steps: list[Step]
    evidence: Evidence
    stop_reason: str | int | None = None
    cached: int = 0
    text: str = ""
    """Of a server that tells no tokens."""
    prompt: list[int] | None = None
    """What it says that it was asked, and by number:"""
    prompt_tokens: int | None = None
    counted: int | None = None
    """Tokens that it says it answered."""

    def less_than(self, evidence: Evidence) -> bool:
        """Whether it tells less of its steps than `evidence` would; one without drafts has none to tell."""
        nothing_drafted = self.evidence == "histogram" and not any(step.drafted for step in self.steps)
        return GRADES.index(self.evidence) > GRADES.index(evidence) and len(self.tokens) > 1 and not nothing_drafted

    def finished(self, request_id: str) -> Finished:
        """As an engine tells of it."""
        return Finished(request_id, self.tokens, self.finish_reason, self.stop_reason, self.steps, self.cached)


@contextmanager
def reading(where: str, kind: str) -> Iterator[None]:
    """Raises `UserError`, in one line, where an answer of `where` cannot be read as `kind`'s."""
    try:
        yield
    except WRONG as error:
        raise UserError(unread(error, where, kind)) from error


def unread(error: Exception, where: str, kind: str) -> str:
    """Why an answer of `where` is none of `kind`'s, in a line."""
    lacks = "without" if isinstance(error, KeyError) else "that cannot be read:"
    return f"{where}: an answer {lacks} {short(error)}: is it {kind}'s?"


def whole(answer: Answer, prompt: Sequence[int], most: int, where: str) -> Answer:
    """The answer, if it is all of one to `prompt` of at most `most` tokens.

    Raises what `complete` does.
    """
    complete(answer, where)
    tokens = len(answer.tokens)
    for wrong, says in (
        (
            answer.prompt not in (None, list(prompt)) or answer.prompt_tokens not in (None, len(prompt)),
            f"answered another prompt than the one of {len(prompt)} tokens that was sent: does it change prompts?",
        ),
        (tokens > most, f"answered {tokens} tokens, at most {most} were asked for"),
        (answer.counted not in (None, tokens), f"answered {tokens} tokens and counts {answer.counted}"),
        (not tokens, "answered nothing"),
        (
            answer.finish_reason == "length" and tokens < most,
            f"cut an answer at {tokens} tokens of the {most} that were asked for: it has a limit of its own",
        ),
    ):
        if wrong:
            raise UserError(f"{where}: the server {says}")
    return answer


def complete(answer: Answer, where: str) -> None:
    """Raises `UserError` for an answer that did not come to its end; `Gone` where the server gave it up."""
    if answer.finish_reason in GIVEN_UP:
        raise Gone(f"{where}: the server gave an answer up ({answer.finish_reason}): {RESUMES}")
    if answer.finish_reason not in ("stop", "length"):
        raise UserError(
            f"{where}: the server ended an answer with {answer.finish_reason!r}, which is neither stop nor length"
        )


GIVEN_UP = ("abort", "error")
"""How an answer ends that the server could not or would not finish."""


def sound(answer: Answer) -> Answer:
    """The answer, if its tokens and counts are such. Raises ValueError."""
    if not all(type(token) is int and 0 <= token < MOST_TOKEN for token in answer.tokens):
        raise ValueError("token ids that are none")
    if not answer.finish_reason.isidentifier() or len(answer.finish_reason) > LONGEST_REASON:
        raise ValueError("a finish_reason that is none")
    if type(answer.cached) is not int or answer.cached < 0:
        raise ValueError("cached tokens that are no number")
    if not isinstance(answer.stop_reason, str | int | None):
        raise ValueError("a stop_reason that is none")
    for step in answer.steps:
        counts = step.drafted, step.accepted, step.committed
        if not all(type(count) is int for count in counts) or not 0 <= step.accepted <= step.drafted:
            raise ValueError("counts of drafts that are none")
    if sum(step.committed for step in answer.steps) != max(len(answer.tokens) - 1, 0):
        raise ValueError("counts of drafts that are not those of its tokens")
    return answer


LONGEST_REASON = 40


def vllm(answer: dict[str, Any], k: int) -> Answer:
    """Of `/inference/v1/generate` or `/v1/completions` with `return_token_ids`. Raises KeyError and its like for an
    answer of another shape.
    """
    (choice,) = answer["choices"]
    tokens: list[int] = choice["token_ids"]
    told = (answer.get("metrics") or {}).get("speculative_decoding") or {}
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    if "per_step_drafted" in told and told["per_step_drafted"] is not None:
        steps = steps_of(len(tokens), told["per_step_drafted"], told["per_step_accepted"])
        evidence: Evidence = "steps"
    elif told.get("acceptance_histogram"):
        steps = of_histogram(len(tokens), told["acceptance_histogram"], told["num_draft_tokens"])
        evidence = "histogram"
    else:
        steps, evidence = of_nothing(len(tokens)), "nothing"
    return Answer(
        tokens,
        _reason(choice["finish_reason"]),
        steps,
        evidence,
        choice.get("stop_reason"),
        details.get("cached_tokens") or 0,
        prompt=answer.get("prompt_token_ids") or choice.get("prompt_token_ids"),
        prompt_tokens=usage.get("prompt_tokens"),
        counted=usage.get("completion_tokens"),
    )


def joined(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The events of vLLM, or of another server of OpenAI's protocol, as the answer that they are without a stream.

    Raises KeyError and its like for a stream that does not end, or of another shape.
    """
    whole: dict[str, Any] = {name: event[name] for event in events for name in ("usage", "metrics") if event.get(name)}
    choices = [choice for event in events for choice in event.get("choices") or ()]
    ended = [choice for choice in choices if choice.get("finish_reason")]
    told = {"finish_reason": ended[-1]["finish_reason"], "stop_reason": ended[-1].get("stop_reason")}
    if any(choice.get("token_ids") is not None for choice in choices):
        told["token_ids"] = [token for choice in choices for token in choice.get("token_ids") or ()]
    told["text"] = "".join(choice.get("text") or "" for choice in choices)
    return whole | {"choices": [told]}


def last_of_sglang(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The events of SGLang as one answer: each holds the tokens so far, or with incremental output those since."""
    last = events[-1]
    count = last["meta_info"].get("completion_tokens")
    if count is not None and count != len(last["output_ids"]):
        last = last | {"output_ids": [token for event in events for token in event["output_ids"]]}
    if last["meta_info"]["finish_reason"] is None:
        raise KeyError("finish_reason")
    return last


def brings_tokens(event: dict[str, Any]) -> bool:
    """Whether an event of a stream of any dialect holds tokens, or a text."""
    parts = [event, *event.get("choices", ())]
    return any(part.get(name) for part in parts for name in ("token_ids", "output_ids", "tokens", "text"))


def times_of(stream: Stream) -> Times | None:
    """When the tokens of a stream came; None if none did."""
    came = [moment for event, moment in zip(stream.events, stream.came, strict=True) if brings_tokens(event)]
    return Times(stream.sent, came[0], came[-1], len(came)) if came else None


def sglang(answer: dict[str, Any], k: int) -> Answer:
    """Of SGLang's `/generate` with token ids, of this version's names and of older ones."""
    told, tokens = answer["meta_info"], list(answer["output_ids"])
    reason = told["finish_reason"] or {}
    count = told.get("spec_verify_ct") or 0
    accepted = next((told[name] for name in ACCEPTED if told.get(name) is not None), None)
    proposed = next((told[name] for name in PROPOSED if told.get(name) is not None), None)
    histogram = next((told[name] for name in HISTOGRAMS if told.get(name)), None)
    evidence: Evidence = "nothing"
    if histogram is not None:
        drafted = proposed if proposed is not None else k * sum(histogram)
        steps, evidence = of_histogram(len(tokens), histogram, drafted), "histogram"
    elif count:
        kept = accepted if accepted is not None else max(len(tokens) - 1 - count, 0)
        steps, evidence = of_sums(len(tokens), count, kept, proposed if proposed is not None else k * count), "requests"
    else:
        steps = of_nothing(len(tokens))
    ended = ENDED.get(str(reason.get("type")), _reason(reason.get("type")))
    cached, asked = told.get("cached_tokens") or 0, told.get("prompt_tokens")
    return Answer(tokens, ended, steps, evidence, reason.get("matched"), cached, prompt_tokens=asked)


def llamacpp(events: Sequence[dict[str, Any]], k: int) -> Answer:
    """Of llama-server's `/completion`, streamed with `timings_per_token` and `return_tokens`.

    Each token comes with the request's drafted and accepted tokens so far: a step is where the first of them grows.
    """
    tokens: list[int] = []
    steps: list[Step] = []
    drafted = accepted = left = 0
    for event in events:
        timings = event.get("timings") or {}
        now = timings.get("draft_n") or 0, timings.get("draft_n_accepted") or 0
        for token in event.get("tokens") or []:
            tokens.append(token)
            if now[0] > drafted:
                left = 1 + now[1] - accepted
                steps.append(Step(now[0] - drafted, now[1] - accepted, 0))
                drafted, accepted = now
            if len(tokens) == 1:
                continue  # the prefill's
            if left:
                step, left = steps[-1], left - 1
                steps[-1] = Step(step.drafted, step.accepted, step.committed + 1)
            else:
                steps.append(Step(0, 0, 1))
    last = events[-1]
    ended = ENDED.get(str(last["stop_type"]), _reason(last["stop_type"]))
    evidence: Evidence = "steps" if drafted else "nothing"
    cached, asked = last.get("tokens_cached") or 0, last.get("tokens_evaluated")
    return Answer(tokens, ended, steps, evidence, None, cached, prompt_tokens=asked)


def openai(answer: dict[str, Any], k: int) -> Answer:
    """Of any `/v1/completions`: a text without token ids, which whoever asked has to encode; and no drafts."""
    (choice,) = answer["choices"]
    tokens = choice.get("token_ids") or []
    return Answer(
        list(tokens),
        ENDED.get(str(choice["finish_reason"]), _reason(choice["finish_reason"])),
        of_nothing(len(tokens)),
        "nothing",
        text=str(choice.get("text") or ""),
    )


def _reason(told: Any) -> str:
    if not isinstance(told, str):
        raise ValueError("no finish_reason")
    return told


def steps_of(tokens: int, drafted: Sequence[int], accepted: Sequence[int]) -> list[Step]:
    """The steps of a request of so many `tokens`, the prefill's among them, from what each verified.

    A step commits 1 + A tokens, the last what is left. Tokens beyond those are from steps without drafts; where these
    were is not told: they are put last.
    """
    left, steps = max(tokens - 1, 0), []
    for verified, kept in zip(drafted, accepted, strict=True):
        committed = min(1 + kept, left)
        steps.append(Step(verified, kept, committed))
        left -= committed
    return steps + [Step(0, 0, 1)] * left


def of_histogram(tokens: int, histogram: Sequence[int], drafted: int) -> list[Step]:
    """Steps of which `histogram[a]` accepted a drafts and all together verified `drafted`, shortest first.

    The last of them, which accepted most, is the one that the end of the text may have cut.
    """
    if min(histogram) < 0:
        raise ValueError("a negative number of steps")
    bounded(sum(histogram), tokens)
    accepted = [kept for kept, count in enumerate(histogram) for _ in range(count)]
    return steps_of(tokens, spread(drafted, accepted, len(histogram) - 1), accepted)


def of_sums(tokens: int, steps: int, accepted: int, drafted: int) -> list[Step]:
    """So many steps with these sums: which of them accepted how many is not told, and is made as even as can be.

    The last one accepted at least what the end of the text has cut.
    """
    bounded(steps, tokens)
    cut = max(steps + accepted - max(tokens - 1, 0), 0)
    last = min(max(-(-accepted // steps), cut), accepted)
    each, more = divmod(accepted - last, max(steps - 1, 1))
    kept = [*[each] * (steps - 1 - more), *[each + 1] * more, last]
    return steps_of(tokens, spread(drafted, kept, max(-(-drafted // steps), last)), kept)


def bounded(steps: int, tokens: int) -> None:
    """Raises ValueError for more steps than that many tokens can come from: a list of them might fill the memory."""
    if steps > tokens + 1:
        raise ValueError(f"{steps} verify steps of {tokens} tokens")


def of_nothing(tokens: int) -> list[Step]:
    """Steps of a request of which nothing is known: they drafted nothing that was told."""
    return [Step(0, 0, 1)] * max(tokens - 1, 0)


def spread(drafted: int, accepted: Sequence[int], k: int) -> list[int]:
    """Drafts of each step, k at most, whose sum is `drafted`: what is missing from k each is taken from the first."""
    verified, missing = [], k * len(accepted) - drafted
    for kept in accepted:
        cut = min(max(missing, 0), k - max(kept, 1))
        verified.append(k - cut)
        missing -= cut
    return verified
