"""The target's answers to `prompts.py`, drawn by vLLM without drafts, with what a drafter reads of them.

    python scripts/smollm2/collect.py DIRECTORY [--prompts 1400] [--tokens 112]

Writes DIRECTORY/chunk-000.safetensors … of `CHUNK` prompts each; what is there is kept, so the same command resumes. Of
every token: three residual streams and the last normed state, taken by hooks while the engine answers, so that no
second forward pass is paid for. Of every answer token also log Z over the whole vocabulary: p on a draft vocabulary is
then exp(state · row - log Z), exact without a product with all 49,152 rows in each training step.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prompts import instructions
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from speceval.catalog import fetch, resolve
from speceval.engines.vllm.start import set_environment
from speceval.files import write_whole

TARGET = "smollm2-135m-q4"
AUX_LAYERS = (10, 20, 30)
"""The residual streams after so many of the 30 layers, as vLLM counts them."""
CHUNK = 200
GREEDY_EVERY = 3
"""Each third answer is greedy, which is another kind of text; the rest are drawn at temperature 1."""


class Tap:
    """Hooks on the engine's model. `states` and `log_z`: by request, what was read in each step."""

    def __init__(self, llm: Any) -> None:
        self.runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        self.states: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.log_z: dict[str, dict[int, float]] = {}
        self._streams: dict[int, Tensor] = {}
        model = self.runner.model
        for layer in AUX_LAYERS:
            model.model.layers[layer - 1].register_forward_hook(
                lambda _, __, out, layer=layer: self._streams.update({layer: out[0] + out[1]})
            )
        model.model.layers[0].register_forward_pre_hook(self._at_positions, with_kwargs=True)
        model.model.norm.register_forward_hook(self._at_last_norm)
        self._compute_logits = model.compute_logits
        model.compute_logits = self._at_logits

    def clear(self) -> None:
        """Forget what was heard."""
        self.states.clear()
        self.log_z.clear()

    def _at_positions(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._positions = (kwargs["positions"] if "positions" in kwargs else args[0]).clone()

    def _requests(self) -> list[tuple[str, slice]]:
        names = list(self.runner.input_batch.req_ids)
        bounds = self.runner.query_start_loc.np[: len(names) + 1].tolist()
        return [(name, slice(a, b)) for name, a, b in zip(names, bounds, bounds[1:], strict=False)]

    def _at_last_norm(self, _: Any, __: Any, out: Any) -> None:
        final = out[0] if isinstance(out, tuple) else out
        streams = torch.cat([self._streams[layer] for layer in AUX_LAYERS], dim=-1)
        for name, rows in self._requests():
            read = (self._positions[rows], streams[rows].bfloat16().clone(), final[rows].bfloat16().clone())
            self.states.setdefault(name, []).append(read)

    def _at_logits(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        logits: Tensor = self._compute_logits(states, *args, **kwargs)
        log_z = logits.float().logsumexp(-1).tolist()
        for (name, rows), value in zip(self._requests(), log_z, strict=True):
            self.log_z.setdefault(name, {})[int(self._positions[rows][-1])] = value
        return logits


def tensors(answers: list[Any], tap: Tap) -> dict[str, Tensor]:
    """The answers end to end: tokens, streams, final, log_z [tokens]; starts (of the answer) and lengths [answers]."""
    parts: dict[str, list[Tensor]] = {"tokens": [], "streams": [], "final": [], "log_z": []}
    starts, lengths = [], []
    for answer in answers:
        prompt, said = list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)
        name = next(name for name in tap.states if name.split("-")[0] == answer.request_id)
        positions = torch.cat([at for at, _, _ in tap.states[name]])
        order = positions.argsort()
        size = len(prompt) + len(said) - 1  # the last token is never read
        assert positions[order].tolist() == list(range(size)), "a token was read twice or not at all"
        log_z = torch.zeros(size)
        log_z[list(tap.log_z[name])] = torch.tensor(list(tap.log_z[name].values()))
        parts["tokens"].append(torch.tensor(prompt + said[:-1]))
        parts["streams"].append(torch.cat([streams for _, streams, _ in tap.states[name]])[order])
        parts["final"].append(torch.cat([final for _, _, final in tap.states[name]])[order])
        parts["log_z"].append(log_z)
        starts.append(len(prompt))
        lengths.append(size)
    whole = {key: torch.cat(values) for key, values in parts.items()}
    return whole | {"starts": torch.tensor(starts), "lengths": torch.tensor(lengths)}


def answers_in(path: Path) -> int:
    """How many answers a chunk holds: the last one of a smaller collection has fewer."""
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("starts").get_shape()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--prompts", type=int, default=1400)
    parser.add_argument("--tokens", type=int, default=112)
    parser.add_argument("--target", default=TARGET)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    texts = instructions(options.prompts)
    chunks = [range(at, min(at + CHUNK, len(texts))) for at in range(0, len(texts), CHUNK)]
    paths = {options.directory / f"chunk-{n:03d}.safetensors": chunk for n, chunk in enumerate(chunks)}
    missing = {path: chunk for path, chunk in paths.items() if not path.exists() or answers_in(path) != len(chunk)}
    if not missing:
        return
    target = fetch(resolve(options.target, None)).target
    set_environment(target, {})
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=target.model,
        max_num_seqs=CHUNK,
        max_model_len=1024,
        max_num_batched_tokens=4096,
        generation_config="vllm",
        enable_prefix_caching=False,
        enforce_eager=True,
    )
    render = llm.get_tokenizer().apply_chat_template
    tap = Tap(llm)
    for path, chunk in missing.items():
        tap.clear()
        began = time.monotonic()
        requests = [
            {
                "prompt_token_ids": render([{"role": "user", "content": texts[i]}], add_generation_prompt=True)[
                    "input_ids"
                ]
            }
            for i in chunk
        ]
        parameters = [
            SamplingParams(temperature=0.0 if i % GREEDY_EVERY == 2 else 1.0, max_tokens=options.tokens, seed=i)
            for i in chunk
        ]
        answers = llm.generate(requests, parameters, use_tqdm=False)
        greedy = torch.tensor([i % GREEDY_EVERY == 2 for i in chunk])
        kept = tensors(answers, tap) | {"greedy": greedy}
        write_whole(path, partial(save_file, kept))
        said = sum(len(answer.outputs[0].token_ids) for answer in answers)
        print(f"{path.name}: {said} tokens in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
