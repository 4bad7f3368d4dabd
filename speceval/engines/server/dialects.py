"""The servers that are understood: how each is asked, and how its answers are read. One row a dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speceval.engines.base import Sampling
from speceval.engines.server import answers
from speceval.engines.server.answers import Answer

Body = dict[str, Any]


@dataclass(frozen=True)
class Road:
    """A call that generates: `body(model, prompt, sampling)` is what is sent to `path`, `read` makes an answer."""

    path: str
    body: Callable[[str, Any, Sampling], Body]
    """Of token ids, or of a text (`texts`)."""
    read: Callable[[Any, int], Answer]
    streamed: Callable[[list[Body]], Any]
    """The events of a stream as what `read` takes."""
    stream: Body
    """What is sent besides, for a stream."""
    only_stream: bool = False
    """Whether it tells its drafts in a stream alone."""
    tells_always: bool = True
    """Whether an answer for which nothing was drafted says so."""
    texts: bool = False
    """Whether it takes prompts as texts alone, and makes tokens of its own of them."""


@dataclass(frozen=True)
class Dialect:
    """A kind of server. The first of its roads that tells most is taken."""

    name: str
    roads: tuple[Road, ...]
    mends: tuple[tuple[str, str], ...] = ()
    """What it may not tell -> the flag with which it does."""
    metrics: str = ""
    """What its totals' names begin with."""


def parameters(sampling: Sampling) -> Body:
    """Every sampling parameter, by OpenAI's and vLLM's names: a server's defaults have no say."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "seed": sampling.seed,
        "ignore_eos": False,
    }


def _generate(model: str, token_ids: list[int], sampling: Sampling) -> Body:
    return {"model": model, "token_ids": token_ids, "sampling_params": parameters(sampling) | {"detokenize": False}}


def _completions(model: str, token_ids: list[int], sampling: Sampling) -> Body:
    how = parameters(sampling)
    return {"model": model, "prompt": token_ids, **how, "return_token_ids": True, "add_special_tokens": False}


def _plain(model: str, prompt: list[int] | str, sampling: Sampling) -> Body:
    how = {name: value for name, value in parameters(sampling).items() if name in PLAIN and value is not None}
    return {"model": model, "prompt": prompt, **how}


PLAIN = ("temperature", "top_p", "max_tokens", "seed")
"""What every OpenAI-compatible server takes."""


def _sglang(model: str, token_ids: list[int], sampling: Sampling) -> Body:
    how = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "max_new_tokens": sampling.max_tokens,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        **({} if sampling.seed is None else {"sampling_seed": sampling.seed & 0x7FFFFFFF}),
    }
    return {"input_ids": token_ids, "sampling_params": how}


def _llamacpp(model: str, token_ids: list[int], sampling: Sampling) -> Body:
    greedy = sampling.temperature == 0
    return {
        "model": model,
        "prompt": token_ids,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": 1 if greedy else sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "samplers": ["top_k"] if greedy else ["top_k", "top_p", "temperature"],
        "cache_prompt": False,
        "return_tokens": True,
        "timings_per_token": True,
        **({} if sampling.seed is None else {"seed": sampling.seed & 0x7FFFFFFF}),
    }


WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
"""vLLM tells a request's verify steps in the event that comes with this."""

DIALECTS = {
    row.name: row
    for row in (
        Dialect(
            "vllm",
            (
                Road("/inference/v1/generate", _generate, answers.vllm, answers.joined, WITH_USAGE),
                Road("/v1/completions", _completions, answers.vllm, answers.joined, WITH_USAGE),
            ),
            (
                ("each request's verify steps", "--per-request-spec-decode-metrics detailed"),
                (
                    "settings, patches, p and q of its workers",
                    "VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls vllm_patches.worker.Extension",
                ),
                ("token ids in and out", "--enable-scale-out"),
            ),
            "vllm:",
        ),
        Dialect(
            "sglang",
            (Road("/generate", _sglang, answers.sglang, answers.last_of_sglang, {"stream": True}),),
            (("each request's verify steps", "none: SGLang tells a histogram of each request"),),
        ),
        Dialect(
            "llamacpp",
            (Road("/completion", _llamacpp, answers.llamacpp, list, {"stream": True}, True, False),),
            (("its totals", "--metrics"),),
            "llamacpp:",
        ),
        Dialect(
            "openai",
            (
                Road("/v1/completions", _plain, answers.openai, answers.joined, WITH_USAGE),
                Road("/v1/completions", _plain, answers.openai, answers.joined, WITH_USAGE, texts=True),
            ),
            (("anything about drafts", "none that is known: speed and texts only"),),
        ),
    )
}
"""By name, as `--dialect` takes them."""
