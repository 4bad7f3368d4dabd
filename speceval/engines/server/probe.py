"""What a server is, what it tells of its drafts, and what would make it tell more."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from speceval.engines.base import Sampling, Times
from speceval.engines.server import metrics
from speceval.engines.server.address import short
from speceval.engines.server.answers import GRADES, WRONG, Answer, reading, sound, times_of, unread
from speceval.engines.server.client import Client, Refused, Stream
from speceval.engines.server.dialects import DIALECTS, Dialect, Road
from speceval.errors import UserError
from speceval.store.schema import Evidence

TRIAL = Sampling(0.0, 1.0, 0, 24, None)
TRIAL_PROMPT = [3, 4, 5, 6] * 4
"""Repeats itself, so that drafters that look for repetitions draft."""
TRIAL_TEXT = "one two three four " * 4
INFORMATION = "/server_info?config_format=json"
"""vLLM's, in developer mode, and SGLang's; vLLM's is a text unless it is asked for otherwise."""
UNLIMITED = 1 << 20
"""Context of a server that does not tell."""
MOST_CONTEXT = 1 << 31


GIVES: dict[Evidence, str] = {
    "steps": "each verify step",
    "histogram": "how many steps of each request accepted 0, 1 … K drafts; not in which order",
    "requests": "each request's number of steps and accepted drafts; no positions",
    "totals": "the server's totals alone: tau and positions without an interval",
    "nothing": "speed and texts only; tau is not reported by this server",
}
"""What each grade gives."""


@dataclass(frozen=True)
class Seen:
    """What was found at an address."""

    url: str
    dialect: Dialect
    version: str | None
    model: str
    models: list[str]
    evidence: Evidence
    road: Road
    workers: bool
    """Whether vLLM's workers answer with our extension: settings, patches, p and q."""
    totals: bool
    """Whether its metrics page counts drafts."""
    context: int
    told: dict[str, Any] = field(default_factory=dict)
    """What it says of its speculation: `method`, `k`, `device`, as far as it does."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """What it does not tell, and the flag that would make it."""
    notes: list[str] = field(default_factory=list)
    runner: str | None = None
    """vLLM's model runner, "V1" or "V2", where its workers were asked (`runner_of`)."""

    @property
    def rule(self) -> str | None:
        """How drafts are accepted, where that is told and there is more than one way."""
        if self.dialect.name != "sglang":
            return None
        return "standard" if self.told.get("rejection_sampling") else "sglang's own"

    def served(self) -> dict[str, Any]:
        """What replicas have in common: what it is, serves and says of its drafts."""
        return {"server": self.dialect.name, "version": self.version, "model": self.model, **self.told}

    def as_json(self) -> dict[str, Any]:
        """For `speceval probe --json`."""
        return {
            "url": self.url,
            "server": self.dialect.name,
            "version": self.version,
            "model": self.model,
            "models": self.models,
            "evidence": self.evidence,
            "gives": GIVES[self.evidence],
            "workers": self.workers,
            "runner": self.runner,
            "totals": self.totals,
            "context": self.context,
            "told": self.told,
            "missing": [{"what": what, "flag": flag} for what, flag in self.missing],
            "notes": self.notes,
        }


def look(client: Client, model: str | None = None, dialect: str | None = None, timed: bool = False) -> Seen:
    """Ask a server what it is, and run a few tokens on it to see what it tells. Raises `UserError`.

    `model`: the name it is served by; `dialect`: in place of what it seems to be; `timed`: what it tells in a stream.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise UserError(f"--dialect {dialect}: there are {', '.join(DIALECTS)}")
    with reading(client.url, dialect or "a known server"):
        return _look(client, model, dialect, timed)


def _look(client: Client, model: str | None, dialect: str | None, timed: bool) -> Seen:
    listed = client.get("/v1/models")
    name, pages = recognise(client, listed)
    row = DIALECTS[dialect or name]
    models = [_name(one["id"]) for one in listed["data"]]
    served = chosen(client, models, model)
    page = _text(client, "/metrics")
    exact = metrics.rounding(page, row.metrics) == 1
    totals = exact and metrics.counts_drafts(page, row.metrics)
    road, answer = _trial(client, row, served, timed)
    evidence = answer.evidence
    if evidence == "nothing" and totals:
        evidence = "totals"
    workers = row.name == "vllm" and _workers(client)
    seen = Seen(
        client.url, row, _version(row, pages, listed), served, models, evidence, road, workers, totals,
        _context(row, pages, listed), told(row, pages),
    )  # fmt: skip
    seen.missing.extend(_missing(seen))
    seen.notes.extend(_notes(seen))
    if not exact:
        seen.notes.append("its totals are left aside: llama.cpp prints those of more than six digits rounded")
    return seen


def _name(told: Any) -> str:
    if not isinstance(told, str) or not told:
        raise ValueError("a model without a name")
    return told


def recognise(client: Client, listed: Any) -> tuple[str, dict[str, Any]]:
    """The dialect of a server, and the pages that it tells of itself on."""
    pages = {path: _json(client, path) for path in ("/version", "/props", INFORMATION, "/get_server_info")}
    owner = str((listed["data"] or [{}])[0].get("owned_by", ""))
    if isinstance(pages["/version"], dict) and "version" in pages["/version"] and owner in ("vllm", ""):
        return "vllm", pages
    if isinstance(pages["/props"], dict) and "default_generation_settings" in pages["/props"]:
        return "llamacpp", pages
    info = pages[INFORMATION] or pages["/get_server_info"]
    if owner == "sglang" or (isinstance(info, dict) and "speculative_algorithm" in info):
        return "sglang", pages
    return {"vllm": "vllm", "llamacpp": "llamacpp"}.get(owner, "openai"), pages


def told(row: Dialect, pages: dict[str, Any]) -> dict[str, Any]:
    """What a server says of its speculation, without our extension."""
    info = pages[INFORMATION] or pages["/get_server_info"] or {}
    if row.name == "sglang":
        tokens = info.get("speculative_num_draft_tokens")
        found = {
            "method": info.get("speculative_algorithm"),
            "k": None if tokens is None else tokens - 1,
            "device": info.get("device"),
            "rejection_sampling": info.get("speculative_use_rejection_sampling"),
        }
    elif row.name == "vllm":
        whole = info.get("vllm_config")
        speculative = (whole.get("speculative_config") or {}) if isinstance(whole, dict) else {}
        speculative = speculative if isinstance(speculative, dict) else {}
        model = whole.get("model_config") if isinstance(whole, dict) else None
        found = {
            "method": speculative.get("method"),
            "k": speculative.get("num_speculative_tokens"),
            "target": model.get("model") if isinstance(model, dict) else None,
            "draft": speculative.get("model"),
        }
    else:
        found = {}
    return {name: short(value) if isinstance(value, str) else value for name, value in found.items() if _plain(value)}


def _plain(value: Any) -> bool:
    """Whether it is a text, a switch or a number that a setting can have."""
    return isinstance(value, str) or (isinstance(value, int) and 0 <= value <= UNLIMITED)


def chosen(client: Client, models: list[str], name: str | None) -> str:
    """The name of the model to ask for. Raises `UserError`."""
    if name is None and len(models) == 1:
        return models[0]
    if name in models:
        return str(name)
    mend = f"--engine-arg model={name}: is not there" if name else "name one with --engine-arg model=NAME"
    raise UserError(f"{client.url} serves {short(', '.join(models)) or 'nothing'}: {mend}")


def ask(
    client: Client, road: Road, model: str, prompt: list[int] | str, sampling: Sampling, timed: bool = False
) -> Any:
    """A future of what a server answers on a road, for `read`."""
    body = road.body(model, prompt, sampling)
    if timed or road.only_stream:
        return client.begin_stream(road.path, body | road.stream, sampling.max_tokens)
    return client.begin(road.path, body)


def read(road: Road, answered: Any, k: int) -> tuple[Answer, Times | None]:
    """What was answered on a road, and of a stream when its tokens came. Raises KeyError and its like for an answer
    of another shape.
    """
    if not isinstance(answered, Stream):
        return sound(road.read(answered, k)), None
    return sound(road.read(road.streamed(answered.events), k)), times_of(answered)


def _trial(client: Client, row: Dialect, model: str, timed: bool) -> tuple[Road, Answer]:
    """The road that tells most, with what it told. Raises `UserError` where none is open."""
    best: tuple[Road, Answer] | None = None
    closed = ""
    for road in row.roads:
        if road.texts and best is not None:
            break
        try:
            prompt = TRIAL_TEXT if road.texts else TRIAL_PROMPT
            answer, _ = read(road, ask(client, road, model, prompt, TRIAL, timed).result(), 1)
        except Refused as error:
            closed = str(error)
            continue
        except WRONG as error:
            closed = f"{unread(error, f'{client.url}{road.path}', row.name)} (--dialect)"
            continue
        if best is None or GRADES.index(answer.evidence) < GRADES.index(best[1].evidence):
            best = road, answer
        if answer.evidence == "steps":
            break
    if best is None:
        raise UserError(closed)
    return best


def _workers(client: Client) -> bool:
    """Whether vLLM's workers answer, with our extension."""
    with suppress(UserError, KeyError, TypeError):
        answer = client.post("/collective_rpc", {"method": "patch_status", "args": []})
        return isinstance(answer["results"][0], list)
    return False


def runner_of(client: Client) -> str | None:
    """The model runner of vLLM's workers, with our extension; None where they do not tell."""
    with suppress(UserError, KeyError, TypeError, IndexError):
        answer = client.post("/collective_rpc", {"method": "engine_settings", "args": []})
        told = answer["results"][0]["runner"]
        return told if told in ("V1", "V2") else None
    return None


def _version(row: Dialect, pages: dict[str, Any], listed: Any) -> str | None:
    info = pages[INFORMATION] or pages["/get_server_info"] or {}
    found = {
        "vllm": (pages["/version"] or {}).get("version"),
        "sglang": info.get("version"),
        "llamacpp": (pages["/props"] or {}).get("build_info"),
    }.get(row.name)
    return None if found is None else short(found)


def _context(row: Dialect, pages: dict[str, Any], listed: Any) -> int:
    info = pages[INFORMATION] or pages["/get_server_info"] or {}
    settings = (pages["/props"] or {}).get("default_generation_settings") or {}
    model = (listed["data"] or [{}])[0]
    found = [model.get("max_model_len"), info.get("context_length"), settings.get("n_ctx")]
    return next((value for value in found if type(value) is int and 0 < value <= MOST_CONTEXT), UNLIMITED)


def _missing(seen: Seen) -> list[tuple[str, str]]:
    """Of the dialect's row, what this server does not tell."""
    lacking = {
        "each request's verify steps": seen.evidence != "steps",
        "settings, patches, p and q of its workers": not seen.workers,
        "token ids in and out": seen.road.path == "/v1/completions",
        "its totals": not seen.totals,
        "anything about drafts": True,
    }
    return [(what, flag) for what, flag in seen.dialect.mends if lacking[what]]


def _notes(seen: Seen) -> list[str]:
    notes = []
    if seen.dialect.name == "sglang":
        if seen.told.get("device") in ("cpu", "xpu"):
            notes.append(
                f"SGLang on a {seen.told['device']} verifies greedily at every temperature: temperature 0 only"
            )
        elif not seen.told.get("rejection_sampling"):
            notes.append(
                "SGLang without --speculative-use-rejection-sampling accepts drafts by its own rule: above temperature "
                "0 that is no rejection sampling, and its acceptance length is another quantity"
            )
    if seen.dialect.name == "llamacpp":
        notes.append("llama.cpp counts no draft past the end of a text: its tau is near tau committed of other engines")
        notes.append("llama.cpp drafts EAGLE-3 greedily whatever --spec-draft-sampling says")
        notes.append("llama.cpp feeds an EAGLE-3 drafter garbage where an auxiliary layer is the target's last")
    if seen.road.texts:
        notes.append("it takes prompts as texts alone, and may make other tokens of them than the target's tokenizer")
    if seen.dialect.name == "vllm" and not seen.workers:
        notes.append("which of vLLM's known defects act in it is not known: `speceval ls patches`")
    return notes


def _text(client: Client, path: str) -> str:
    with suppress(UserError):
        return client.text(path)
    return ""


def _json(client: Client, path: str) -> dict[str, Any] | None:
    """What is at a path, if it is an object; servers have other things at each other's paths."""
    with suppress(UserError):
        found = client.get(path)
        return found if isinstance(found, dict) else None
    return None


def counters(client: Client, seen: Seen, k: int) -> Any:
    """The server's totals; None where it has none, or none that are exact."""
    if not seen.totals:
        return None
    page = client.text("/metrics")
    if metrics.rounding(page, seen.dialect.metrics) != 1 or not metrics.counts_drafts(page, seen.dialect.metrics):
        return None
    counted = metrics.counters(page, seen.dialect.metrics)
    counted.num_accepted_tokens_per_pos = metrics.of_positions(counted, k)
    return counted
