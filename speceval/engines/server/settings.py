"""What all engines behind a server share: their arguments, the wait for an idle server, the target's tokenizer."""

from __future__ import annotations

import time
from typing import Any

from speceval import catalog
from speceval.engines.base import Order
from speceval.engines.server import metrics
from speceval.engines.server.address import normal, short
from speceval.engines.server.client import SECONDS, Client, Refused
from speceval.errors import UserError

SECONDS_OF_A_STEP = 1.0
"""A step that finishes nothing ends then: recordings are fetched before the worker drops any, and Ctrl-C is obeyed."""
SECONDS_TO_REST = 20
SHORTEST = 2
"""Tokens of a prompt: vLLM pads the first step of a shorter one."""
ARGUMENTS = {"url": None, "api_key_env": None, "model": None, "timeout": SECONDS, "dialect": None}
"""Of `--engine-arg`, with their defaults; `model`: the name it is served by, if there are several."""


def arguments(order: Order) -> dict[str, Any]:
    """The order's engine arguments, with defaults. Raises `UserError` for unknown ones."""
    if unknown := sorted(order.engine_args.keys() - ARGUMENTS.keys()):
        raise UserError(f"--engine-arg {unknown[0]}: of a server there are {', '.join(ARGUMENTS)}")
    if "url" not in order.engine_args:
        raise UserError("--engine server: where is it? --url http://127.0.0.1:8000, say")
    return ARGUMENTS | order.engine_args


def addresses(text: str) -> list[str]:
    """The servers that --url names, comma-separated. Raises `UserError` for one that is named twice."""
    urls = [normal(part) for part in text.split(",") if part.strip()]
    if not urls:
        raise UserError(f"--url {text}: names no address")
    for url in urls:
        if urls.count(url) > 1:
            raise UserError(f"--url: names {url} twice")
    return urls


def client(order: Order, url: str, given: dict[str, Any]) -> Client:
    """The client for one server that an order's arguments ask for. Raises `UserError`."""
    return Client(url, order.batch, given["api_key_env"], float(given["timeout"]))


def refuse(order: Order) -> None:
    """Raises `UserError` for what no server can be asked."""
    if order.forced is not None:
        raise UserError("--engine server: a running server takes no forced acceptance")
    if order.prefix_caching:
        raise UserError("--prefix-caching: cannot be measured through a server, whose filled-up steps are not told")


def rest(client: Client, prefix: str = "vllm:") -> None:
    """Wait for a server that does nothing: what others ask of it would be counted as ours.

    Raises `UserError` where it does not come to rest. One without a page of metrics is taken as it is.
    """
    busy = 0
    for _ in range(SECONDS_TO_REST):
        try:
            busy = metrics.running(client.text("/metrics"), prefix)
        except Refused:
            return
        if not busy:
            return
        time.sleep(1)
    raise UserError(f"{client.url}: runs {busy} requests of others, nothing was measured: it must be idle")


class Watch:
    """Tokens that a server generated since this began, against those that we received (`tokens`)."""

    def __init__(self, client: Client, prefix: str) -> None:
        """`prefix`: of the server's metrics; "": it has none, and nothing can be seen."""
        self._client, self._prefix, self.tokens = client, prefix, 0
        self._before = self._generated()

    def foreign(self) -> str:
        """A line about what others asked meanwhile; "" if that is nothing, or is not told."""
        before, now = self._before, self._generated()
        if before is None or now is None or now - before == self.tokens:
            return ""
        if now < before:
            return "the server began anew meanwhile: its totals are left aside, each request's own record stands"
        return (
            f"others used the server meanwhile: it generated {now - before:,} tokens, {self.tokens:,} of them for this "
            "run: its totals are left aside, each request's own record stands"
        )

    def _generated(self) -> int | None:
        if not self._prefix:
            return None
        try:
            page = self._client.text("/metrics")
        except Refused:
            return None
        return metrics.generated(page, self._prefix) if metrics.rounding(page, self._prefix) == 1 else None


def hold_tokens(client: Client, model: str, tokenizer: Any, order: Order) -> None:
    """Raises `UserError` where the server reads other tokens than the tokenizer that prompts are made with.

    One that reads none back for us is taken as it is.
    """
    tokens = list(tokenizer.encode(SAMPLE, add_special_tokens=False))
    try:
        answer = client.post("/detokenize", {"model": model, "tokens": tokens})
    except Refused:
        return
    told = [answer[name] for name in READ_BACK if name in answer] if isinstance(answer, dict) else []
    if told and "".join(str(told[0]).split()) != "".join(tokenizer.decode(tokens).split()):
        raise UserError(
            f"--target {order.target.name}: its tokenizer is not the server's, which reads {short(told[0])!r}"
        )


SAMPLE = "The quick brown fox asks: is 12 + 7 = 19, or more?"
READ_BACK = ("prompt", "content", "text")
"""Where vLLM, llama.cpp and SGLang tell what tokens mean."""


def tokenizer_of(order: Order) -> Any:
    """The target's tokenizer, of this machine: prompts are sent as token ids. Raises `UserError`."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError("transformers is not installed: it brings the target's tokenizer") from error
    target = order.target
    if target.source == "zoo":
        target = catalog.fetch(catalog.Pair(target=target, draft=None)).target
    try:
        own = order.engine_args.get("tokenizer")  # of a server of our own
        return AutoTokenizer.from_pretrained(
            own or target.model,
            revision=order.engine_args.get("tokenizer_revision") if own else target.revision,
            trust_remote_code=order.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--target {target.name}: its tokenizer cannot be loaded: {error}".split("\n")[0]) from error
