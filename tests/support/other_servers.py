"""Stand-ins for servers that are not vLLM, with a simulated engine behind them, in shapes of our own making.

The fields are SGLang's (`meta_info` of 0.5.23, and older names), llama.cpp's (a stream with `timings_per_token`) and
those of the plainest OpenAI-compatible server.
"""

from __future__ import annotations

import json
from typing import Any

from speceval.engines.base import Finished, Sampling
from support.standin import StandIn

NEW = {
    "histogram": "spec_correct_drafts_histogram",
    "accepted": "spec_num_correct_drafts",
    "drafted": "spec_num_proposed_drafts",
}
OLD = {"histogram": "spec_accept_histogram", "accepted": "spec_accept_token_num", "drafted": "spec_draft_token_num"}


class Other(StandIn):
    """`owner`: whose models it serves."""

    owner = "someone"

    def __init__(self, **settings: Any) -> None:
        super().__init__([], **settings)

    def _content(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served", "owned_by": self.owner}]}
        return self.pages(path.partition("?")[0], body)

    def pages(self, path: str, body: Any) -> Any:
        """What is at a path; None if nothing is."""
        return {"choices": [{"text": "abc", "finish_reason": "length"}]} if path == "/v1/completions" else None

    def events(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """A character a chunk."""
        (choice,) = content["choices"]
        parts = [{"text": letter, "finish_reason": None} for letter in choice["text"]]
        parts[-1]["finish_reason"] = choice["finish_reason"]
        return [{"choices": [part]} for part in parts] + [{"choices": [], "usage": {"completion_tokens": 3}}]

    def run(self, tokens: list[int], most: int) -> Finished:
        """A request through the simulated engine."""
        self.engine.submit(str(tokens), tokens, Sampling(1.0, 1.0, 0, most, None))
        done: list[Finished] = []
        while not done:
            _, done = self.engine.step()
        self.tokens += len(done[0].token_ids)
        self.answered += 1
        return done[0]


class SGLang(Other):
    """`names`: the version's; `told`: what its information says; without a histogram where `names` has none."""

    owner = "sglang"

    def __init__(self, names: dict[str, str], **told: Any) -> None:
        super().__init__()
        self.names, self.incremental = names, False
        self.told = {"version": "0.5.23", "speculative_algorithm": "EAGLE3", "speculative_num_draft_tokens": 5} | told

    def pages(self, path: str, body: Any) -> Any:
        if path == "/server_info":
            return self.told
        if path != "/generate":
            return None
        done = self.run(body["input_ids"], body["sampling_params"]["max_new_tokens"])
        accepted = [step.accepted for step in done.steps]
        numbers = {
            "histogram": [accepted.count(kept) for kept in range(5)],
            "accepted": sum(accepted),
            "drafted": 4 * len(accepted),
        }
        told = {self.names[kind]: value for kind, value in numbers.items() if kind in self.names}
        reason = {"type": done.finish_reason, "matched": None}
        asked = {"prompt_tokens": len(body["input_ids"]), "cached_tokens": 0}
        return {
            "output_ids": done.token_ids,
            "meta_info": {"finish_reason": reason, "spec_verify_ct": len(accepted), **asked, **told},
        }

    def events(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """The tokens so far in each, or those since the one before (`incremental`)."""
        tokens, told = content["output_ids"], content["meta_info"] | {"completion_tokens": len(content["output_ids"])}
        return [
            {
                "output_ids": tokens[at if self.incremental else 0 : at + 3],
                "meta_info": told if at + 3 >= len(tokens) else told | {"finish_reason": None},
            }
            for at in range(0, len(tokens), 3)
        ]


class LlamaCpp(Other):
    owner = "llamacpp"

    def pages(self, path: str, body: Any) -> Any:
        if path == "/props":
            return {"default_generation_settings": {"n_ctx": 4096}, "build_info": "b9"}
        if path == "/metrics":
            return (
                self._metrics()
                .replace("vllm:generation_tokens", "llamacpp:tokens_predicted")
                .replace("vllm:", "llamacpp:")
            )
        if path != "/completion":
            return None
        done = self.run(body["prompt"], body["n_predict"])
        drafted = accepted = 0
        owners = [None, *(step for step in done.steps for _ in range(step.committed))]
        events, seen = [], None
        for token, step in zip(done.token_ids, owners, strict=True):
            if step is not seen and step is not None:
                drafted, accepted, seen = drafted + step.drafted, accepted + step.accepted, step
            timings = {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}
            events.append({"tokens": [token], "stop": False, "timings": timings})
        ended = {"stop": "eos", "length": "limit"}[done.finish_reason]
        last = {"stop_type": ended, "tokens_evaluated": len(body["prompt"]), "timings": events[-1]["timings"]}
        events.append({"tokens": [], "stop": True, **last})
        return "".join(f"data: {json.dumps(event)}\n\n" for event in events)
