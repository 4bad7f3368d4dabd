"""One pass of the target over a run's texts, into a folder (`captures.folder`).

Conversations go through `measure.runner`, as in a replay, so that prompts, second turns and skipped conversations are
the run's. What is read waits in memory until a shard is full; then the shard is written, and its conversations are
named in texts.jsonl. So a kill loses a shard at most, and the same command goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speceval import catalog, engines, suites
from speceval.captures.folder import (
    EMBEDDING,
    FINAL,
    HEAD,
    MANIFEST,
    OUTPUT,
    TEXTS,
    Capture,
    Manifest,
    Shard,
    StorageError,
    key_of,
    read_manifest,
)
from speceval.captures.law import along
from speceval.captures.reading import Read, Reading
from speceval.captures.storage import Dtype, bytes_of_row, pack, unpack
from speceval.engines.base import Engine, Order, Readable, Verifiable
from speceval.errors import UserError
from speceval.estimate import books
from speceval.files import save_tensors, write_whole
from speceval.locks import open_locked
from speceval.measure import runner
from speceval.measure.content import target_facts
from speceval.measure.output import Watch, gone_if_refused
from speceval.measure.replay import source
from speceval.measure.weights import files_of
from speceval.store import Counts, Key, StoredRun
from speceval.store.layout import Texts
from speceval.suites import Suite

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 256 << 20
"""Of states, after which a shard is written: what is in memory at once, and what a kill loses."""
LOG, LOCK = "engine.log", ".lock"
CHECKED_TOKENS = 256
"""Of the first text, whose log p the engine is asked for too."""
HEAD_AGREES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Mean difference of log p between the engine and last state times output map that rounding explains, by dtype."""


@dataclass(frozen=True)
class Plan:
    """A capture that has been asked for and found possible, before any engine has started."""

    run: StoredRun
    target: catalog.Target
    suites: list[Suite]
    texts: Texts
    replay: str
    layers: tuple[int, ...]
    dtype: Dtype
    directory: Path
    vocab_size: int
    batch: int

    @property
    def tokens(self) -> int:
        """That have a state."""
        turns = self.run.turns
        return int((turns["prompt_tokens"] + turns["output_tokens"] - 1).sum())

    @property
    def bytes(self) -> int:
        """About how large it will be."""
        hidden = self.target.sizes.hidden_size or 0
        row = (1 + len(self.layers)) * bytes_of_row(hidden, self.dtype) + 4  # log p
        return self.tokens * row + 2 * self.vocab_size * hidden * 4

    def line(self) -> str:
        """What is going to be written."""
        inner = f" and of layers {', '.join(map(str, self.layers))}" if self.layers else ""
        return (
            f"{len(self.texts):,} texts, {self.tokens:,} tokens with their prompts: last state{inner}, "
            f"{self.target.sizes.hidden_size} {self.dtype}s each: about {_size(self.bytes)} in {self.directory}"
        )


def prepare(
    run: Path,
    out: Path,
    layers: Sequence[int] | None = None,
    dtype: Dtype | None = None,
    data_dir: Path | None = None,
    batch: int | None = None,
    load: Callable[..., Suite] = suites.load,
) -> Plan:
    """Check everything that can be checked without an engine. Raises `UserError` with one line.

    layers: whose residual streams are kept; None: those that the run's own drafter reads, or else those that EAGLE-3
    drafters read by default. dtype: of the states; None: what the target computes in. batch: requests that the engine
    reads at once; None: the run's.
    """
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch}: at least one request")
    if (out / "run.json").exists():
        raise UserError(f"--out {out}: holds a run: name another directory")
    stored = books.read(run)
    spec, fingerprint = stored.meta.spec, stored.meta.fingerprint
    found = source(stored)
    engine = engines.find(spec.engine)
    if not issubclass(engine, Readable):
        raise UserError(f"{run}: was measured by {spec.engine}, which keeps no hidden states: capture a run of vLLM's")
    engine.require()
    pair = catalog.fetch(catalog.resolve(spec.target, spec.draft, spec.method))
    now = target_facts(pair.target, spec).weights
    if now != fingerprint.target.weights:
        raise UserError(
            f"{run}: its target had weights {fingerprint.target.weights}, {spec.target} has {now}: capture with the "
            "target that wrote the texts"
        )
    vocab = pair.target.sizes.vocab_size
    if vocab is None or pair.target.sizes.hidden_size is None:
        raise UserError(f"{spec.target}: its config.json names no vocab_size or hidden_size: its states have no place")
    loaded = [load(name, data_dir, spec.limit, spec.shuffle_seed, spec.stratified) for name in spec.suites]
    assert pair.draft is not None
    chosen = _layers(layers, pair.target, pair.draft)
    return Plan(
        run=stored,
        target=pair.target,
        suites=loaded,
        texts=found["texts"],
        replay=found["replay"],
        layers=chosen,
        dtype=dtype or _dtype(fingerprint.engine.dtype),
        directory=out,
        vocab_size=vocab,
        batch=batch or spec.batch,
    )


def _layers(asked: Sequence[int] | None, target: catalog.Target, draft: catalog.Draft) -> tuple[int, ...]:
    """The inner layers to keep. Raises `UserError` for one that the target has not."""
    count = target.sizes.num_hidden_layers or 0
    default = draft.sizes.aux_layers if draft.method == "eagle3" else ()
    default = default or tuple(layer for layer in (2, count // 2, count - 3) if 0 < layer <= count)
    layers = tuple(sorted(set(default if asked is None else asked)))
    if wrong := [layer for layer in layers if not 0 < layer <= count]:
        raise UserError(f"--layers {wrong[0]}: {target.name} has layers 1 to {count}")
    return layers


def _dtype(name: str | None) -> Dtype:
    return "bfloat16" if name == "bfloat16" else "float16" if name == "float16" else "float32"


def capture(
    plan: Plan,
    watch: Watch,
    log: Callable[[Path], AbstractContextManager[None]],
    start: Callable[[Order], Engine] = engines.open,
) -> Capture:
    """Read what the folder does not hold yet, and return it whole. Raises `UserError`; an interrupt leaves it whole."""
    directory = plan.directory
    if (directory / MANIFEST).exists() and _known(plan).complete:
        return Capture(directory)
    room = shutil.disk_usage(_existing(directory)).free
    if room < plan.bytes:
        raise UserError(f"--out {directory}: {_size(plan.bytes)} are needed, {_size(room)} are free")
    with (
        _whole_or_nothing(directory),
        _locked(directory),
        log(directory / LOG),
        gone_if_refused(directory / LOG, directory / MANIFEST),
        closing(start(_order(plan))) as engine,
    ):
        reading = Reading(engine, plan.layers)
        spec = plan.run.meta.spec
        template = runner.Template(spec.chat_template_kwargs, plan.target.answer_marker)
        if runner.prompts_hash(engine, plan.suites, template) != plan.run.meta.fingerprint.prompts:
            raise UserError(f"{plan.run.directory}: its prompts are not those of today's suites, template or tokenizer")
        head, head_bytes = _write_head(plan)
        manifest = Manifest(
            complete=False,
            target=_anywhere(plan.target),
            run=plan.run.meta.as_json(),
            replay=plan.replay,
            layers=plan.layers,
            hidden_size=head.shape[1],
            vocab_size=head.shape[0],
            dtype=plan.dtype,
            head_bytes=head_bytes,
            head_check=_check_head(plan, engine, reading, head),
        )
        writer = Writer(plan, manifest, reading, head)
        engine.warm_up()
        begin = time.perf_counter()
        progress = runner.Progress(len(runner.plan(plan.suites, spec)), done=len(writer.done), counts=writer.counts)
        with watch(progress, spec) as changed:
            try:
                runner.measure(reading, spec, plan.suites, template, writer, progress, changed, plan.texts, ahead=1)
            finally:
                writer.flush(time.perf_counter() - begin)
        writer.finish()
    return Capture(directory)


def _anywhere(target: catalog.Target) -> catalog.Target:
    """The target without the place where this machine keeps it."""
    place = target.model if target.source == "hub" else target.name
    return target.model_copy(update={"model": place, "note": None})


def _known(plan: Plan) -> Manifest:
    """The manifest that is there already. Raises `UserError` for another capture's."""
    found = read_manifest(plan.directory)
    for name, before, now in (
        ("the texts", found.replay, plan.replay),
        ("the layers", found.layers, plan.layers),
        ("the dtype", found.dtype, plan.dtype),
    ):
        if before != now:
            raise UserError(f"--out {plan.directory} holds another capture ({name}: {before} -> {now}): name another")
    return found


def _order(plan: Plan) -> Order:
    """The target alone, in eager mode: `vllm_patches.taps.states`."""
    spec = plan.run.meta.spec
    order = Order(
        engine=spec.engine,
        target=plan.target,
        draft=None,
        k=0,
        drafting=spec.drafting,
        temperature=spec.temperature,
        batch=plan.batch,
        runner="v1",
        trust_remote_code=spec.trust_remote_code,
        engine_args={**spec.engine_args, "enforce_eager": True},
    )
    return replace(order, runner=None) if spec.engine != "vllm" else order


class Rows:
    """Rows of one kind of state, one text's after another's, in one piece of memory.

    Kept as a tensor for each text they would lie between the logits of that text and the next, and keep what is freed
    there from being used again: of a vocabulary of 49,152 9 GB after 250 texts, with 256 MB of states among them.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._dtype, self._shape = like.dtype, like.shape[1:]
        self._bytes = bytearray()

    def append(self, rows: torch.Tensor) -> None:
        """Add rows [n, ...]."""
        import torch

        self._bytes += rows.contiguous().view(torch.uint8).numpy().tobytes()

    def tensor(self) -> torch.Tensor:
        """All of them."""
        import torch

        return torch.frombuffer(self._bytes, dtype=self._dtype).view(-1, *self._shape)


class Writer:
    """What `measure.runner` gives finished conversations to."""

    def __init__(self, plan: Plan, manifest: Manifest, reading: Reading, head: torch.Tensor) -> None:
        self._plan, self._reading, self._head = plan, reading, head.float()
        before = read_manifest(plan.directory) if (plan.directory / MANIFEST).exists() else None
        self._manifest = before or manifest
        self.counts: dict[Key, list[Counts]] = {}
        asked = runner.plan(plan.suites, plan.run.meta.spec)
        self._order = {(suite.name, one.id, seed): place for place, (suite, one, seed) in enumerate(asked)}
        self._lines: list[dict[str, Any]] = []
        self._states: dict[str, Rows] = {}
        self._rows = self._bytes = 0
        for line in _recovered(plan.directory, len(self._manifest.shards)):
            self.counts[key_of(line)] = []
        if before is None:
            self._write_manifest()

    @property
    def done(self) -> Any:
        """The conversations that are in, or in memory."""
        return self.counts.keys()

    def append(self, conversation: dict[str, Any]) -> None:
        """Take one finished conversation."""
        key = key_of(conversation)
        name = "\x1f".join((key[0], key[1], str(key[2])))
        turns = [
            {field: value for field, value in turn.items() if field != "steps"} | self._take(read)
            for turn, read in zip(conversation["turns"], self._reading.read.pop(name, []), strict=True)
        ]
        self.counts[key] = []
        self._lines.append(
            conversation | {"order": self._order[key], "shard": len(self._manifest.shards), "turns": turns}
        )
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def _take(self, read: Read) -> dict[str, Any]:
        """Put the states of a text into the shard; where they lie there."""
        first, states = self._rows, read.states()
        stored: dict[str, torch.Tensor] = {}
        for name, state in states.items():
            stored |= pack(name, state, self._plan.dtype)
        stored["log_p"] = self._along(read, states[FINAL])
        if stored[FINAL].dtype != states[FINAL].dtype:
            self._note_storage(stored["log_p"], self._along(read, unpack(stored)[FINAL]))
        for name, state in stored.items():
            self._states.setdefault(name, Rows(state)).append(state)
            self._bytes += state.numel() * state.element_size()
        self._rows += read.rows
        if self._plan.run.meta.spec.temperature == 0:
            unlikely = int(stored["log_p"].isneginf().sum())
            self._manifest = self._manifest.model_copy(
                update={"not_likeliest": self._manifest.not_likeliest + unlikely}
            )
        return {"prompt": list(read.prompt), "first_row": first}

    def _along(self, read: Read, final: torch.Tensor) -> torch.Tensor:
        """log p [rows] of the token that follows each; NaN within the prompt."""
        import torch

        found = torch.full((read.rows,), torch.nan)
        found[len(read.prompt) - 1 :] = along(
            final[len(read.prompt) - 1 :], self._head, read.text, self._plan.run.meta.fingerprint.sampling
        )
        return found

    def _note_storage(self, exact: torch.Tensor, rounded: torch.Tensor) -> None:
        change = (exact - rounded).abs()
        change = change[change.isfinite()]
        past = self._manifest.storage or StorageError(tokens=0, mean=0.0, largest=0.0)
        tokens = past.tokens + len(change)
        total = StorageError(
            tokens=tokens,
            mean=(past.mean * past.tokens + float(change.sum())) / max(1, tokens),
            largest=max(past.largest, float(change.max()) if len(change) else 0.0),
        )
        self._manifest = self._manifest.model_copy(update={"storage": total})

    def flush(self, seconds: float = 0.0) -> None:
        """Write the shard that is in memory, if there is one. `seconds`: that the pass took, at its end."""
        self._manifest = self._manifest.model_copy(update={"seconds": self._manifest.seconds + seconds})
        if not self._lines:
            return
        name = f"states-{len(self._manifest.shards) + 1:05d}.safetensors"
        path = self._plan.directory / name
        whole = {which: rows.tensor() for which, rows in self._states.items()}
        shards = list(self._manifest.shards)
        with _making_room(self._plan.directory):
            if whole:  # not of skipped conversations alone
                write_whole(path, lambda place: save_tensors(place, whole))
                shards.append(Shard(file=name, bytes=path.stat().st_size, rows=self._rows))
            with (self._plan.directory / TEXTS).open("ab") as file:
                file.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in self._lines)
        self._manifest = self._manifest.model_copy(update={"shards": tuple(shards)})
        self._write_manifest()
        self._lines, self._states, self._rows, self._bytes = [], {}, 0, 0

    def finish(self) -> None:
        """All are in."""
        self._manifest = self._manifest.model_copy(update={"complete": True})
        self._write_manifest()

    def _write_manifest(self) -> None:
        content = self._manifest.model_dump(mode="json")
        with _making_room(self._plan.directory):
            write_whole(self._plan.directory / MANIFEST, json.dumps(content, indent=1) + "\n")


@contextmanager
def _making_room(directory: Path) -> Iterator[None]:
    """A disk that is full is one line. Raises `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written: {error.strerror or error}: make room; the same command resumes"
        ) from None


def _recovered(directory: Path, shards: int) -> list[dict[str, Any]]:
    """Conversations whose shard is in; what a kill left behind them in texts.jsonl is cut."""
    path = directory / TEXTS
    if not path.exists():
        return []
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or (content["shard"] >= shards and content["turns"]):
            break
        kept.append((line, content))
    write_whole(path, b"".join(line for line, _ in kept))
    return [content for _, content in kept]


def _write_head(plan: Plan) -> tuple[torch.Tensor, int]:
    """Write embeddings and output map, as the checkpoint has them; the output map, and the file's size."""
    from safetensors.torch import load_file

    path = plan.directory / HEAD
    if not (plan.directory / MANIFEST).exists():  # else it is this capture's
        tensors = _of_checkpoint(plan)
        with _making_room(plan.directory):
            write_whole(path, lambda place: save_tensors(place, tensors))
    tensors = load_file(path)
    return tensors.get(OUTPUT, tensors[EMBEDDING]), path.stat().st_size


def _of_checkpoint(plan: Plan) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    directory = files_of(plan.target.model, plan.target.revision)
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")) if directory is not None else []:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                for ending, short in (("embed_tokens.weight", EMBEDDING), ("lm_head.weight", OUTPUT)):
                    if name.endswith(ending) and ".layers." not in name and "mtp" not in name:
                        found[short] = file.get_tensor(name)
    if EMBEDDING not in found:
        raise UserError(f"{plan.target.name}: no tensor embed_tokens.weight in its files: its drafters could not read")
    if len(found[EMBEDDING]) < plan.vocab_size or not found[EMBEDDING].is_floating_point():
        raise UserError(f"{plan.target.name}: its embeddings are quantised, which a capture does not keep")
    return {name: tensor[: plan.vocab_size].contiguous() for name, tensor in found.items()}


def _check_head(plan: Plan, engine: Engine, reading: Reading, head: torch.Tensor) -> float:
    """Hold last state times output map against the engine's own log p of the first text. Raises `UserError`."""
    import torch

    from speceval.store.schema import SamplingFacts

    if not isinstance(engine, Verifiable):
        return 0.0
    tokens = [token for text in plan.texts.values() for token in text]
    tokens = tokens[: min(CHECKED_TOKENS, reading.max_model_len - 1)]
    if len(tokens) < reading.shortest_prompt:
        return 0.0
    told = torch.tensor(engine.log_probabilities([tokens])[0])
    final = reading.alone(tokens).states()[FINAL]
    ours = along(final[:-1], head, tokens[1:], SamplingFacts(temperature=1.0, top_p=1.0, top_k=0))
    difference = float((ours - told).abs().mean())
    allowed = HEAD_AGREES[_dtype(plan.run.meta.fingerprint.engine.dtype)]
    if difference > allowed:
        raise UserError(
            f"{plan.target.name}: last state times output map is not what the engine says (log p differs by "
            f"{difference:.3g} on average): the target does more to its logits, which a capture does not keep"
        )
    return difference


def _locked(directory: Path) -> Any:
    try:
        return closing(open_locked(directory / LOCK, "w", wait=False))
    except BlockingIOError:
        raise UserError(f"{directory}: another speceval is writing this capture: wait for it") from None


@contextmanager
def _whole_or_nothing(directory: Path) -> Iterator[None]:
    """Where no manifest says what there is, a capture that failed leaves its engine's log at most."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {directory}: not a directory: name one, or a new one") from None
    try:
        yield
    except BaseException:
        if not (directory / MANIFEST).exists():
            for name in (HEAD, TEXTS, LOCK):
                (directory / name).unlink(missing_ok=True)
            if not any(directory.iterdir()):
                directory.rmdir()
        raise


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
