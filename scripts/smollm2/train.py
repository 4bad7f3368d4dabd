"""Drafters for SmolLM2-135M, EAGLE-3, MEDUSA or MLP speculator: one KL warm-up, then each loss on from there.

    python scripts/smollm2/train.py OWN OUT [--drafter eagle3] [--warmup 350] [--steps 100] [--losses kl,lk_lambda]

OWN: what `collect.py` wrote. Drafters, losses and optimiser are the zoo's; the data and the loop are here. All losses
see the same batches. The same command resumes after the last `SAVE_EVERY` steps; equal seeds on one machine give equal
weights. Writes OUT/LOSS-DRAFTER.safetensors (see `pack`) and OUT/curve.csv: of held-out answers drawn at temperature 1,
exact tau at K = 5, alpha of the first position and the share of drafts kept up to each position.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from collect import AUX_LAYERS, TARGET
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from speceval.catalog import fetch, resolve
from speceval.catalog.packed import based_on, pack, read
from speceval.files import write_whole
from speceval.zoo.eagle3 import Eagle3, draft_vocabulary
from speceval.zoo.llama import initialise
from speceval.zoo.losses import LOSSES
from speceval.zoo.mlp import EPS, Norm
from speceval.zoo.optimiser import Optimiser, cooldown
from speceval.zoo.recipe import Recipe
from speceval.zoo.training import Batch, Drafter, pick

ROWS, ANCHORS = 8, 40
"""Answers of a batch, and anchors of each."""
MATRIX_RATE, RATE = 0.03, 1e-2
DRAFT_VOCABULARY, INTERMEDIATE = 4096, 512
HELD_OUT = 40
"""Answers of which one in so many is kept for the curve."""
CLIP = 30.0
"""Bound of a stream's channel in units of its own root mean square."""
SAVE_EVERY, LOOK_EVERY = 50, 50


@dataclass
class Data:
    """The target's answers, end to end, and what the target computed on them."""

    tokens: Tensor
    streams: Tensor
    """[tokens, 3 * hidden], each channel divided by `scale`."""
    final: Tensor
    log_z: Tensor
    first: Tensor
    """[answers]: where a prompt begins; `starts` (first token of the answer) and `lengths` count from there."""
    starts: Tensor
    lengths: Tensor
    greedy: Tensor
    scale: Tensor
    """[3 * hidden]: root mean square of each channel. A real model's go from 2 to 400."""

    @classmethod
    def read(cls, directory: Path, depth: int) -> Data:
        """All chunks of `collect.py`, without answers that are too short to draft in."""
        chunks = [load_file(path) for path in sorted(directory.glob("chunk-*.safetensors"))]
        joined = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
        first = joined["lengths"].cumsum(0) - joined["lengths"]
        inner = torch.ones(len(joined["tokens"]), dtype=torch.bool)
        inner[first] = False  # the first token's state is enormous, and never drafted from
        scale = torch.zeros(joined["streams"].shape[1])
        for streams, keep in zip(joined["streams"].split(8192), inner.split(8192), strict=True):
            scale += streams[keep].float().pow(2).sum(0)
        scale = (scale / inner.sum()).sqrt().clamp_min(1e-3)
        for streams in joined["streams"].split(8192):
            streams.div_(scale.bfloat16()).clamp_(-CLIP, CLIP)
        long = joined["lengths"] - joined["starts"] > 2 * depth + 2
        of_answer = {key: joined[key][long] for key in ("starts", "lengths", "greedy")}
        of_token = {key: joined[key] for key in ("tokens", "streams", "final", "log_z")}
        return cls(**of_token, **of_answer, first=first[long], scale=scale)

    def rows(self, answers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, streams, final and log Z of some answers, [answers, longest, …], filled up with what follows."""
        longest = int(self.lengths[answers].max())
        at = (self.first[answers][:, None] + torch.arange(longest)).clamp_max(len(self.tokens) - 1)
        return self.tokens[at], self.streams[at], self.final[at], self.log_z[at]

    def said(self) -> Tensor:
        """Mask [tokens]: the target's own."""
        mask = torch.zeros(len(self.tokens), dtype=torch.bool)
        for first, start, length in zip(self.first, self.starts, self.lengths, strict=True):
            mask[first + start : first + length] = True
        return mask


class Block(nn.Module):
    """A head's residual block: x + silu(W x + b)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden)])
        nn.init.zeros_(self.layers[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.silu(self.layers[0](x))


class Medusa(Drafter):
    """MEDUSA's heads with one output map for all, the target's own rows of the draft vocabulary."""

    def __init__(self, recipe: Recipe, draft_ids: Tensor) -> None:
        super().__init__()
        self.depth, self.draft_ids = recipe.max_k, draft_ids
        self.blocks = nn.ModuleList(Block(recipe.hidden_size) for _ in range(self.depth))
        self.lm_head = nn.Linear(recipe.hidden_size, len(draft_ids), bias=False)

    def forward(self, batch: Batch) -> Tensor:
        state = pick(batch.final, batch.anchors)
        return torch.stack([self.lm_head(block(state)) for block in self.blocks])


class MLPSpeculator(Drafter):
    """An MLP speculator whose heads are one and the same, fed its own state and the newest token.

    Its token embeddings and output map are the target's through a trained square matrix each (`token` and `out`), so
    that a step needs no row for each of the vocabulary's tokens; in the checkpoint they are multiplied out.
    """

    def __init__(self, recipe: Recipe, draft_ids: Tensor) -> None:
        super().__init__()
        self.depth, self.draft_ids = recipe.max_k, draft_ids
        hidden = recipe.hidden_size
        self.first, self.next, self.token, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.ln = Norm(hidden)
        self.lm_head = nn.Linear(hidden, len(draft_ids), bias=False)
        state_weight = 0.5 ** (0.5 / self.depth)
        self.token_weight = math.sqrt((1 - state_weight**2) * hidden / 2) / state_weight

    def forward(self, batch: Batch) -> Tensor:
        state = pick(batch.final, batch.anchors)
        state = functional.rms_norm(state, state.shape[-1:], eps=EPS) / math.sqrt(2)  # the checkpoint's scale_input
        logits = []
        for j in range(self.depth):
            mixed = (self.next if j else self.first)(state)
            mixed = mixed + self.token_weight * self.token(pick(batch.embedded, batch.anchors + j + 1))
            state = functional.gelu(self.ln(mixed))
            logits.append(self.lm_head(self.out(state)))
        return torch.stack(logits)


DRAFTERS: dict[str, type[Eagle3 | Medusa | MLPSpeculator]] = {
    "eagle3": Eagle3,
    "medusa": Medusa,
    "mlp": MLPSpeculator,
}


class Task:
    """A drafter in training: data, target's maps, held-out answers."""

    def __init__(self, data: Data, target: Path, recipe: Recipe, architecture: str = "eagle3") -> None:
        self.data, self.recipe, self.depth, self.architecture = data, recipe, recipe.max_k, architecture
        weights = load_file(target / "model.safetensors")
        self.embeddings, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"].float()
        held = torch.arange(len(data.first)) % HELD_OUT == HELD_OUT // 2
        self.training = (~held).nonzero()[:, 0]
        self.held = (held & ~data.greedy).nonzero()[:, 0]
        said = data.said()
        # An answer's last token is not among those that were read; that it ends belongs to the vocabulary all the same.
        ends = torch.full_like(data.first, json.loads((target / "config.json").read_text())["eos_token_id"])
        all_tokens, of_answers = torch.cat((data.tokens, ends)), torch.cat((said, torch.ones_like(ends).bool()))
        self.draft_ids = draft_vocabulary(all_tokens, of_answers, recipe.vocab_size, recipe.draft_vocab_size)
        inside = torch.zeros(recipe.vocab_size, dtype=torch.bool)
        inside[self.draft_ids] = True
        self.inside, own = inside, data.tokens[said]
        covered = inside[own].float().mean()
        print(f"{len(own)} answer tokens, {len(own.unique())} different; draft vocabulary covers {covered:.4f}")
        self.head = self.embeddings[self.draft_ids]
        position = torch.arange(self.depth, dtype=torch.float32)
        self.weights = recipe.position_decay**position / (recipe.position_decay**position).sum()

    def drafter(self) -> Eagle3 | Medusa | MLPSpeculator:
        """An untrained one. Its output map is the target's and stays so: it need not be stored."""
        drafter = DRAFTERS[self.architecture](self.recipe, self.draft_ids)
        initialise(drafter, self.recipe.seed)
        with torch.no_grad():
            drafter.lm_head.weight.copy_(self.head)
            if isinstance(drafter, Eagle3):
                drafter.norm.weight.copy_(self.norm)
            if isinstance(drafter, MLPSpeculator):  # logits of the target's size, of tokens that the drafter has read
                nn.init.eye_(drafter.token.weight)
                nn.init.eye_(drafter.out.weight).mul_(self.norm.abs().mean())
        drafter.lm_head.weight.requires_grad_(False)
        return drafter

    def batch(self, answers: Tensor, anchors: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """What the drafter reads; log p [depth, answers, anchors, draft vocabulary]; drafts' targets, likewise."""
        tokens, streams, final, log_z = self.data.rows(answers)
        # A row of the head is bfloat16 as in the engine; the streams come in the order of AUX_LAYERS.
        parts = list(streams.float().chunk(len(AUX_LAYERS), dim=-1))
        # The heads' states in float32: they have no norm that would make them so.
        of_last = final if self.architecture == "eagle3" else final.float()
        batch = Batch(tokens, self.embeddings[tokens].float(), parts, of_last, anchors)
        states = torch.stack([pick(final, anchors + j) for j in range(1, self.depth + 1)])
        z = torch.stack([log_z.gather(1, anchors + j) for j in range(1, self.depth + 1)])
        log_p = (states @ self.head.T).float() - z[..., None]
        next_tokens = torch.stack([tokens.gather(1, anchors + j + 1) for j in range(1, self.depth + 1)])
        return batch, log_p, next_tokens

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Answers [ROWS], anchors [ROWS, ANCHORS] where the newest token is the target's own and `depth` follow."""
        answers = self.training[torch.randint(len(self.training), (ROWS,), generator=generator)]
        starts, lengths = self.data.starts[answers], self.data.lengths[answers]
        room = lengths - self.depth - starts
        share = torch.rand(ROWS, ANCHORS, generator=generator)
        return answers, starts[:, None] - 1 + (share * room[:, None]).long()

    @torch.no_grad()
    def look(self, drafter: Drafter) -> tuple[float, float, list[float]]:
        """tau, alpha_1 and shares kept of the held-out answers: every anchor of each counts once."""
        kept, alpha, count = torch.zeros(self.depth), 0.0, 0
        column = (self.inside.long().cumsum(0) - 1).clamp_min(0)
        for answer in self.held.tolist():
            start, length = int(self.data.starts[answer]), int(self.data.lengths[answer])
            anchors = torch.arange(start - 1, length - self.depth - 1)[None]
            batch, log_p, tokens = self.batch(torch.tensor([answer]), anchors)
            with torch.autocast("cpu", torch.bfloat16):
                logits = drafter(batch)
            log_q = logits.float().log_softmax(-1)
            alpha += torch.minimum(log_p[0].exp(), log_q[0].exp()).sum().item()
            ratio = (log_q - log_p).gather(-1, column[tokens][..., None])[..., 0].exp().clamp_max(1)
            kept += (ratio * self.inside[tokens]).cumprod(0).sum((1, 2))
            count += anchors.shape[1]
        shares = (kept / count).tolist()
        return 1 + sum(shares), alpha / count, shares


class Curve:
    """The learning curve, a row a look; a run that resumes goes on in the same file."""

    def __init__(self, path: Path, depth: int, every: int | None = None) -> None:
        self.path, self.every = path, every or LOOK_EVERY
        self.head = ["run", "step", "seconds", "loss", "tau", "alpha_1", *(f"kept_{j}" for j in range(1, depth + 1))]
        self.rows = list(csv.reader(path.open()))[1:] if path.exists() else []

    def add(self, run: str, step: int, seconds: float, loss: float, seen: tuple[float, float, list[float]]) -> None:
        """A row; one of the same run and step gives way."""
        tau, alpha, kept = seen
        self.rows = [row for row in self.rows if row[:2] != [run, str(step)]]
        self.rows.append([run, str(step), f"{seconds:.0f}", *(f"{x:.4f}" for x in (loss, tau, alpha, *kept))])
        print(*self.rows[-1], flush=True)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        write_whole(self.path, text.getvalue())


def train(task: Task, drafter: Drafter, run: str, loss: str, steps: range, cool: bool, out: Path, curve: Curve) -> None:
    """Take `steps` (their numbers choose the batches) with one loss; resume from OUT/RUN.state if it is there."""
    parameters = [p for p in drafter.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim == 2]
    optimiser = Optimiser(matrices, [p for p in parameters if p.ndim != 2], MATRIX_RATE, RATE)
    state, done, before = out / f"{run}.state", steps.start, 0.0
    recipe = {"loss": loss, "first step": steps.start, "tokens of text": len(task.data.tokens), **vars(task.recipe)}
    if cool:
        recipe["last step"] = steps.stop
    if state.exists():
        done, before = resume(state, recipe, drafter, optimiser)
    began = time.monotonic()
    for step in range(done, steps.stop):
        answers, anchors = task.draw(torch.Generator().manual_seed(1_000_000 * task.recipe.seed + step))
        batch, log_p, _ = task.batch(answers, anchors)
        with torch.autocast("cpu", torch.bfloat16):
            logits = drafter(batch)
        of_position = LOSSES[loss](log_p.exp(), logits.float().log_softmax(-1), torch.arange(len(task.draft_ids)))
        value = (of_position.mean(dim=(1, 2)) * task.weights).sum()
        value.backward()
        with torch.autocast("cpu", torch.bfloat16):  # Muon's products, as its authors have them
            optimiser.step(cooldown(step - steps.start, len(steps), 1.0) if cool else 1.0)
        seconds = before + time.monotonic() - began
        last = step + 1 == steps.stop
        if (step + 1) % curve.every == 0 or last:
            curve.add(run, step + 1, seconds, value.item(), task.look(drafter))
        if (step + 1) % SAVE_EVERY == 0 or last:
            keep(state, step + 1, before + time.monotonic() - began, recipe, drafter, optimiser)


def keep(path: Path, step: int, seconds: float, recipe: dict, drafter: Drafter, optimiser: Optimiser) -> None:
    """Write all that the next step depends on."""
    moments = {name: getattr(optimiser, name) for name in ("momentum", "first", "second", "steps")}
    state = {"step": step, "seconds": seconds, "drafter": drafter.state_dict(), "moments": moments, "recipe": recipe}
    write_whole(path, lambda temporary: torch.save(state, temporary))


def resume(path: Path, recipe: dict, drafter: Drafter, optimiser: Optimiser) -> tuple[int, float]:
    """Put it back; the step to go on with and the seconds spent. Raises SystemExit for another training's state."""
    state = torch.load(path)
    before = state.get("recipe", recipe)
    other = [f"{name} {before.get(name)}, not {recipe[name]}" for name in recipe if before.get(name) != recipe[name]]
    if other:
        raise SystemExit(f"{path}: of another training ({'; '.join(other)}): name another OUT, or remove it")
    drafter.load_state_dict(state["drafter"])
    for name, value in state["moments"].items():
        setattr(optimiser, name, value)
    return state["step"], state["seconds"]


def store(task: Task, drafter: Drafter, path: Path, base: Path | None = None) -> Drafter:
    """Write what the repository keeps of a drafter; returns the drafter that is read back from it.

    base: a stored drafter in the same folder; then what is kept are the differences from it.
    """
    tensors = {name: value for name, value in drafter.state_dict().items() if name != "lm_head.weight"}
    beside = {"draft_ids": task.draft_ids.to(torch.int32)}
    if isinstance(drafter, Eagle3):
        beside |= {"stream_scale": task.data.scale, "aux_layers": torch.tensor(AUX_LAYERS, dtype=torch.int32)}
    packed = pack(tensors, None if base is None else read(base)[0]) | beside
    metadata = None if base is None else based_on(base)
    write_whole(path, lambda temporary: save_file(packed, temporary, metadata))
    read_back = copy.deepcopy(drafter)
    read_back.load_state_dict(read(path)[0], strict=False)
    return read_back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("own", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drafter", choices=DRAFTERS, default="eagle3")
    parser.add_argument("--warmup", type=int, default=350)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--losses", default="kl,lk_lambda")
    parser.add_argument("--base", help="drafter in OUT from which the differences are stored, in half the bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="", help="ends the names of all that is written, such as -long")
    parser.add_argument("--draft-vocabulary", type=int, default=DRAFT_VOCABULARY)
    parser.add_argument("--intermediate", type=int, default=INTERMEDIATE, help="feed-forward width of EAGLE-3")
    parser.add_argument("--look-every", type=int, help="steps between two points of the curve")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    target = fetch(resolve(options.target, None)).target
    sizes = target.sizes
    recipe = Recipe(
        seed=options.seed,
        vocab_size=sizes.vocab_size or 0,
        hidden_size=sizes.hidden_size or 0,
        heads=9,
        draft_vocab_size=options.draft_vocabulary,
        draft_intermediate_size=options.intermediate,
    )
    task = Task(Data.read(options.own, recipe.max_k), Path(target.model), recipe, options.drafter)
    curve = Curve(options.out / "curve.csv", recipe.max_k, options.look_every)
    warm = task.drafter()
    warming = ("warm-up" if options.drafter == "eagle3" else f"warm-up {options.drafter}") + options.name
    train(task, warm, warming, "kl", range(options.warmup), False, options.out, curve)
    for loss in options.losses.split(","):
        name = f"{loss.replace('_', '-')}-{options.drafter}{options.name}"
        drafter = copy.deepcopy(warm)
        steps = range(options.warmup, options.warmup + options.steps)
        train(task, drafter, name, loss, steps, True, options.out, curve)
        base = None if options.base is None else options.out / f"{options.base}.safetensors"
        read_back = store(task, drafter, options.out / f"{name}.safetensors", base)
        curve.add(f"{name} as stored", steps.stop, 0.0, float("nan"), task.look(read_back))


if __name__ == "__main__":
    main()
