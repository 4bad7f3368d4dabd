"""`speceval.probe`: what a running server is, and what it tells of its drafts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from speceval.api.words import errors_by_parameter
from speceval.engines.server.client import STANDS_ALONE, Client
from speceval.engines.server.probe import Seen, look, runner_of


@errors_by_parameter()
def probe(url: str, *, dialect: str | None = None, model: str | None = None, api_key_env: str | None = None) -> Seen:
    """Ask a running server what it is and what it tells of its drafts, as `speceval probe` does.

    Args:
        url: its address, such as "http://127.0.0.1:8000".
        dialect: "vllm", "sglang", "llamacpp" or "openai"; None: what it seems to be.
        model: the name it is served by, if there are several.
        api_key_env: environment variable that holds the server's key.

    Returns:
        What was found: `dialect`, `version`, `evidence` ("steps", "histogram", "requests", "totals", "nothing"),
        `missing`, `notes`, `runner` ("V1", "V2", None: not told), and all of it as `as_json()`.

    Raises:
        UserError: nothing answers there, or not like a server of that kind.
    """
    with closing(Client(url, key_variable=api_key_env, mend=STANDS_ALONE)) as client:
        seen = look(client, model, dialect)
        return replace(seen, runner=runner_of(client)) if seen.workers else seen
