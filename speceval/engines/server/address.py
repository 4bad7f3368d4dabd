"""Where a server is: one form for each address, the way there, and the key that it is shown."""

from __future__ import annotations

import ipaddress
import os

import httpx

from speceval.errors import UserError
from speceval.private import MASK

PAGES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1", "/metrics")
"""What an address may end with where others' tools want it so; every call names its own."""
LARGEST_PORT = 65535
SHORTEST_KEY = 6
"""Characters: what is shorter ("EMPTY", say) is in too many words to be masked in all."""


def normal(url: str) -> str:
    """The address, the same for every way to write it. Raises `UserError`."""
    named = "--url" if "@" in url else f"--url {short(url)}"
    try:
        found = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UserError(f"{named}: {short(error)}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise UserError(f"{named}: an address such as http://127.0.0.1:8000 is needed")
    if found.userinfo:
        raise UserError("--url: holds a password, which would be stored: use --api-key-env NAME")
    if found.query or found.fragment:
        raise UserError("--url: an address ends before ? and #, and what follows would be stored: --api-key-env NAME")
    if found.port is not None and not 0 < found.port <= LARGEST_PORT:
        raise UserError(f"{named}: there is no port {found.port}")
    path = found.path.rstrip("/")
    path = next((path.removesuffix(page) for page in PAGES if path.endswith(page)), path).rstrip("/")
    return str(found.copy_with(path=path or "/")).rstrip("/")


def is_here(url: str) -> bool:
    """Whether an address is this machine's own, to which no proxy leads."""
    host = httpx.URL(url).host
    try:
        ip = ipaddress.ip_address(host)
        return ip.is_loopback or ip.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def key(variable: str | None) -> str:
    """The key in an environment variable, "" for none. Raises `UserError`, which never holds it."""
    if variable is None:
        return ""
    held = os.environ.get(variable, "").strip().removeprefix("Bearer ").strip()
    if not held:
        raise UserError(f"--api-key-env {variable}: that environment variable is not set")
    if not all("!" <= letter <= "~" for letter in held):
        raise UserError(f"--api-key-env {variable}: holds a blank, or a character that no key has")
    return held


def short(words: object, secret: str = "") -> str:
    """A server's words in one short line that no terminal obeys, without `secret`."""
    text = str(words)
    if len(secret) >= SHORTEST_KEY:
        text = text.replace(secret, MASK)
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:200]
