"""What must not leave a machine: secrets are never stored, and what is published names no place on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

MASK = "***"
UNSAID = (None, "", False, True)
"""Values that are no secret, whatever their key."""

WORDS = frozenset(
    {"token", "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passphrases", "passcode"}
    | {"credential", "credentials", "creds", "apikey", "apikeys", "bearer", "authorization", "cookie", "accesskey"}
    | {"secretkey", "privatekey", "jwt", "sas", "sig", "signature"}
)
"""Words of a key whose value is a secret. Plural "tokens" are counted, not kept."""
GLUED = re.compile(r"\b(\w+?)(token|secret|password|passwd|passphrase|credentials?|apikey)\b")
"""Words that end like a secret: written without what would separate the last part."""
KEYS = frozenset(
    {"api", "access", "private", "secret", "signing", "encryption", "auth", "account", "ssh", "shared", "master"}
    | {"deploy", "client", "license", "licence", "subscription", "ssl", "tls", "aes", "hmac", "service", "session"}
    | {"admin", "root", "storage", "webhook", "consumer", "app", "application", "user", "recovery", "wrapping"}
    | {"hf", "huggingface", "wandb", "openai", "anthropic", "azure", "aws", "gcp", "google", "ngc", "kaggle", "github"}
)
"""Words before "key" that make it a secret."""
LAST = ("pass", "auth")
"""Words that end the key of a secret, as in DB_PASS, but name much else besides: alone only where a value is given."""
VOCABULARY = frozenset(
    {"bos", "eos", "pad", "unk", "mask", "sep", "cls", "stop", "image", "video", "audio", "draft", "per", "new", "last"}
    | {"special", "added", "placeholder", "vision", "boi", "eoi", "start", "end", "decoder", "think", "thinking"}
    | {"reasoning", "tool", "pard", "ptd", "de", "sub"}
)
"""Words before "token" that make it one of a model's vocabulary."""
NUMBERED = frozenset(
    {"id", "ids", "type", "index", "count", "num", "limit", "budget", "budgets", "length", "len", "size", "level"}
    | {"prob", "probs", "threshold"}
)
"""Words after "token" that do."""

_SPLITS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+"), re.compile(r"[A-Z]+|[a-z]+")
"""Two ways to see words in letters of both cases: "HTTPServer" and "APIkey"."""
_USER = re.compile(r"(?:(?<=://)|(?<=:/)(?!/))(?!git@)[^\s/?#]+(?=@)")
"""Who asks, in a URL, or in one that was taken for a path and has lost a slash."""
_KNOWN = re.compile(
    r"(?i:(?<=authorization: )[\w-]+ [^\s'\",;]+)"
    r"|(?<![\w/.@-])[\w.%+-]+:[^\s/:@]+(?=@(?:(?:[\w-]+\.)+[a-z]{2,}\b|localhost\b|[\d.]+:\d))"
    r"|\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|A[KS]IA[A-Z0-9]{12,}|xox[a-z]-[\w-]{10,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-Ag[\w-]{16,}|ya29\.[\w-]{16,}|[rs]k_(?:live|test)_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|(?:xai|pplx|csk)-\w{24,}|(?:dop|tgp|wandb)_v1_\w{16,}|glpat-[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}|AIza[\w-]{30,}|nvapi-[\w-]{16,}|gsk_\w{16,}|r8_\w{16,})"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}|(?<=[Bb]asic )[\w+/=-]{8,}"
    r"|(?<=hooks\.slack\.com/services/)[\w/]+|(?<=discord\.com/api/webhooks/)[\w/-]+"
    r"|(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$))"
)
"""Secrets that their own form gives away."""
_KEY = r"""([\w.-]+|'[^'\n]*'|"[^"\n]*")"""
_NAMED = re.compile(rf"{_KEY}\s*=\s*|(?<![\w./-]){_KEY}\s*:\s*|(?<!\S)(--[\w-]+) +(?!-)")
_VALUE = re.compile(r"""'[^'\n]*'|"[^"\n]*"|['"]?[^\s,&;}\])'"]+""")
"""A key with its sign, or a flag, but no file's name before what is said of it; and what may follow."""
_PLACE = re.compile(
    r"(?<![\w.~/:\\-])(?:file://)?(?:~[\w.-]*(?=[/\\])|(?=/)|[A-Za-z]:(?=[/\\]))(?:[/\\]+[^\s/\\,:;='\"(){}\[\]<>]+)+[/\\]?"
)
_URL_FILE = re.compile(r"file://(?=/)")


def is_secret(key: str) -> bool:
    """Whether a key's value is a secret, by its whole words: split at `_`, `-`, case and whatever is no letter."""
    return any(_names_secret([word.lower() for word in split.findall(key)]) for split in _SPLITS)


def _names_secret(words: list[str]) -> bool:
    if len(words) > 1 and words[-1] in LAST:
        return True
    words = GLUED.sub(r"\1 \2", re.sub(r"\bpass (?=word|phrase|code)", "pass", " ".join(words))).split()
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word == "token" and (before in VOCABULARY or after in NUMBERED):
            continue
        if after != "env" and (word in WORDS or (word in ("key", "keys") and before in KEYS)):
            return True  # api_key_env names a variable of the environment
    return False


_LINE = re.compile(r"^\s*(?:- )?([\w.-]+): *\S+\s*$", re.MULTILINE)
"""A line of YAML that gives a key one word."""


def secret_in(value: Any, place: str = "") -> str | None:
    """Where in nested dictionaries and lists the first secret is, as a dotted path; None if there is none."""
    return next(_secrets(value, place), None)


def _secrets(value: Any, place: str) -> Iterator[str]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
        named = value.get("name", value.get("key"))  # {name: HF_TOKEN, value: ...}
        if isinstance(named, str) and is_secret(named) and value.get("value") not in UNSAID:
            yield f"{place}.value"
    elif isinstance(value, list | tuple | set):
        items = ((number, item) for number, item in enumerate(value))
        texts = [item if isinstance(item, str) else "" for item in value]
        for number, (before, item) in enumerate(pairwise(texts), start=1):
            if item and (before.startswith("-") or len(texts) == 2) and is_secret(before) and "=" not in before:
                yield f"{place}.{number}"
    elif isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and _tells(value):
        yield place
    for key, item in items:
        at = f"{place}.{key}" if place else str(key)
        if isinstance(key, str) and ((_gives_secret(place, key, item) and item not in UNSAID) or _tells(key)):
            yield masked(at)
        else:
            yield from _secrets(item, at)


def _gives_secret(place: str, key: str, item: Any) -> bool:
    """Whether a key names a secret, by itself or with the one that it stands below: `api: {key: …}`."""
    if key.lower().endswith(LAST) and isinstance(item, dict):
        return False  # settings of how to log in, say: looked through
    return is_secret(key) or key.lower() in LAST or (not isinstance(item, dict) and is_secret(f"{place}.{key}"))


def _tells(text: str) -> bool:
    """Whether a value holds a secret. Prose may speak of passwords; URLs, `key=value`, JSON and YAML name them."""
    if any(is_secret(match[1]) for match in _LINE.finditer(text)):
        return True
    if not text.lstrip().startswith(("{", "[")) and "://" not in text:
        text = text.replace(":", " ")
    encoded = "://" in text or "%3a%2f%2f" in text.lower()
    plain = unquote(text) if encoded else text  # a URL may spell its keys in percents
    return masked(text) != text or masked(plain) != plain


def masked(text: str) -> str:
    """`text` with `MASK` for every secret that can be told: in a URL, by its form, or by the key before it."""
    text = _KNOWN.sub(MASK, _USER.sub(MASK, text))
    place = 0
    while key := _NAMED.search(text, place):
        place = key.end()
        value = _VALUE.match(text, place)
        name = key[1] or key[2] or key[3]
        if value and (is_secret(name) or (name.lower() in LAST and "=" in key[0])):
            text = f"{text[: value.start()]}{MASK}{text[value.end() :]}"
            place = value.start() + len(MASK)
    return text


def public(name: str) -> str:
    """A name or hub id as it is; of a path the end that says what it is: organisation and model, or the last part."""
    rooted = name.startswith(("/", "~", "\\")) or name[1:3] in (":/", ":\\")
    name = name[2:] if name[1:3] in (":/", ":\\") else name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..", "~")]
    return "/".join(parts[-1:] if rooted and len(parts) < 4 else parts[-2:])


def without_places(text: str) -> str:
    """`text` with the public end of every absolute path in it."""
    return _PLACE.sub(lambda match: public(_URL_FILE.sub("", match[0])), text)
