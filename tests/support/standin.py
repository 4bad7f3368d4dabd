"""A server that answers as vLLM's does, with a simulated engine behind it: `with StandIn() as server: server.url`."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from speceval.engines.base import Order, Sampling
from speceval.engines.simulated import SimulatedEngine
from vllm_patches.state import TEXT

SETTINGS: dict[str, Any] = {
    "torch": None, "device": "cuda", "runner": "V1", "method": "eagle3", "k": 4,
    "draft_sample_method": "probabilistic", "rejection_sample_method": "standard", "draft_truncation": True,
    "dtype": "float32", "quantization": None, "kv_cache_dtype": "auto", "max_model_len": 4096, "max_num_seqs": 8,
    "max_num_batched_tokens": 2048, "async_scheduling": False, "prefix_caching": False, "enforce_eager": True,
    "tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1,
}  # fmt: skip
Reply = tuple[int, dict[str, str], bytes]


class Listener(ThreadingHTTPServer):
    request_queue_size = 256
    """Of connections that come at once; more than that would be reset."""


class StandIn:
    """`faults`: what is answered in place of the next calls of a path, in order; `calls`: what was asked."""

    def __init__(
        self,
        patches: list[dict[str, str]],
        detailed: bool | str = True,
        closed: tuple[str, ...] = (),
        port: int = 0,
        **settings: Any,
    ) -> None:
        """`detailed`: whether each request tells its steps, or "summary"; `closed`: paths that are not there."""
        self.settings, self.patches, self.detailed, self.closed = SETTINGS | settings, patches, detailed, closed
        self.engine = SimulatedEngine((0.8, 0.7, 0.6, 0.5)[: self.settings["k"]], end=0.05)
        self.faults: dict[str, list[Reply]] = {}
        self.calls: list[tuple[str, dict[str, str], Any]] = []
        self.foreign, self.busy = 0, 0
        self.shared = 0
        """Requests of others that come with each of ours."""
        self.left = math.inf
        """Requests that it answers before it breaks off, as a server that is killed does."""
        self.listening: set[str] = set()
        self.recorded: list[tuple[str, np.ndarray]] = []
        self.tokens, self.answered = 0, 0
        self.pauses = 0.0, 0.0
        """Seconds before the first and before each later event of a stream."""
        self.information: Any = "VllmConfig(model='served')"
        self._lock = threading.Lock()
        self._http = Listener(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.stall = threading.Event()
        self.stall.set()

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, headers: dict[str, str], body: Any) -> Reply:
        """Status, headers and content."""
        self.stall.wait(60)
        with self._lock:
            self.calls.append((path, headers, body))
            if self.faults.get(path):
                return self.faults[path].pop(0)
            content = self._content(path, body)
        if content is None:
            return 404, {}, b'{"detail": "Not Found"}'
        if body and body.get("stream") and isinstance(content, dict):
            content = "".join(f"data: {json.dumps(event)}\n\n" for event in self.events(content)) + "data: [DONE]\n\n"
        return 200, {}, content.encode() if isinstance(content, str) else json.dumps(content).encode()

    def _content(self, path: str, body: Any) -> Any:
        path = path.partition("?")[0]
        of_path: dict[str, Callable[[], Any]] = {
            "/server_info": lambda: {"vllm_config": self.information} if self.information else None,
            "/health": lambda: "",
            "/version": lambda: {"version": "0.32.0"},
            "/v1/models": lambda: {"data": [{"id": "served"}]},
            "/metrics": self._metrics,
            "/collective_rpc": lambda: {"results": [self._worker(body["method"], *body["args"])]},
            "/inference/v1/generate": lambda: self._generate(body),
            "/v1/completions": lambda: self._generate(body | {"token_ids": body["prompt"], "sampling_params": body}),
        }
        return of_path[path]() if path in of_path and path not in self.closed else None

    def events(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """The stream that an answer is: two tokens a chunk, then what vLLM tells where usage is asked for."""
        (choice,) = content["choices"]
        tokens = choice["token_ids"]
        chunks = [tokens[:1], *(tokens[at : at + 2] for at in range(1, len(tokens), 2))]
        last = {name: choice[name] for name in ("finish_reason", "stop_reason")}
        events = [{"choices": [{"token_ids": chunk, "finish_reason": None}]} for chunk in chunks]
        events[-1]["choices"][0] |= last
        return [*events, {"choices": [], **{name: content[name] for name in ("usage", "metrics")}}]

    def _worker(self, method: str, *args: Any) -> Any:
        """What one of its workers answers."""
        drafts = self.engine.counters().num_drafts + self.foreign
        if method == "start_tap":
            self.listening.add(args[0])
        elif method == "stop_tap":
            self.listening -= self.listening if args[0] is None else {args[0]}
        return {
            "engine_settings": lambda: self.settings,
            "patch_status": lambda: self.patches,
            "draft_counts": lambda: {
                "steps_with_q": drafts,
                "steps_one_hot": 0,
                "steps_structured": 0,
                "steps_padded": 0,
            },
            "drafter_loading": lambda: {"unfilled": [], "unused": [], "wrong": "", "seen": True, "decided": {}},
            "start_tap": lambda: "",
            "stop_tap": lambda: None,
            "open_taps": lambda: sorted(self.listening),
            "drain_tap_text": self._drain,
        }[method]()

    def _drain(self) -> dict[str, Any]:
        """What was recorded of requests, by vLLM's names for them."""
        drained, self.recorded = self.recorded, []
        steps = [(name, step) for name, steps in drained for step in steps]
        values = np.concatenate([step for _, step in steps], axis=1) if steps else np.zeros((2, 0), np.float32)
        return {
            "requests": [f"generate-tokens-{name}-0123abcd" for name, _ in steps],
            "counts": [step.shape[1] for _, step in steps],
            "values": base64.b64encode(values.astype(np.float32).tobytes()).decode(),
        }

    def _metrics(self) -> str:
        counted = asdict(self.engine.counters())
        label = 'engine="0",model_name="served"'
        lines = [
            f"vllm:spec_decode_{name}_total{{{label}}} {counted[name] + self.foreign}.0"
            for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
        ]
        lines += [
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{label},position="{position}"}} {count}.0'
            for position, count in enumerate(counted["num_accepted_tokens_per_pos"])
        ]
        lines.append(f"vllm:generation_tokens_total{{{label}}} {self.tokens + 3 * self.foreign}.0")
        return "\n".join([*lines, f"vllm:num_requests_running{{{label}}} {self.busy}.0", ""])

    def _summary(self, steps: list[Any]) -> dict[str, Any]:
        """What vLLM tells of a request with `--per-request-spec-decode-metrics summary`."""
        if self.detailed != "summary":
            return {}
        counts = np.bincount([step.accepted for step in steps], minlength=self.settings["k"] + 1)
        told = {"acceptance_histogram": counts.tolist(), "num_draft_tokens": sum(step.drafted for step in steps)}
        return {"speculative_decoding": told | {"per_step_drafted": None, "per_step_accepted": None}}

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        self.foreign += self.shared
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("killed")
        how = body["sampling_params"]
        text = (how.get("extra_args") or {}).get(TEXT)
        sampling = Sampling(
            how["temperature"], how["top_p"], how.get("top_k", 0), how["max_tokens"], how.get("seed"), text
        )
        self.engine.submit(str(body["token_ids"]), body["token_ids"], sampling)
        done = []
        while not done:
            _, done = self.engine.step()
        if done[0].recorded is not None and self.listening:
            recorded = done[0].recorded
            if text is not None:  # which place of the text it is of
                recorded[:, 1] = np.arange(1, len(recorded) + 1)[:, None]
            self.recorded.append((str(body.get("request_id")), recorded))
        steps = done[0].steps
        self.tokens += len(done[0].token_ids)
        self.answered += 1
        arrays = {
            "per_step_drafted": [step.drafted for step in steps],
            "per_step_accepted": [step.accepted for step in steps],
        }
        choice = {"token_ids": done[0].token_ids, "finish_reason": done[0].finish_reason, "stop_reason": None}
        return {
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(body["token_ids"]),
                "completion_tokens": len(done[0].token_ids),
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            "prompt_token_ids": body["token_ids"],
            "metrics": {"speculative_decoding": arrays if self.detailed is True else {}} | self._summary(steps),
        }


def order(server: StandIn, **engine_args: Any) -> Order:
    """What is asked of the engine that talks to it."""
    from speceval import catalog

    pair = catalog.resolve("zoo", "lk-eagle3")
    arguments = {"url": server.url, **engine_args}
    return Order(
        "server", pair.target, pair.draft, 4, "probabilistic", 1.0, batch=3, seed=7, record=True, engine_args=arguments
    )


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, body: Any) -> None:
            status, headers, content = server.answer(self.path, dict(self.headers), body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if any(server.pauses) and content.startswith(b"data:"):
                for number, event in enumerate(content.split(b"\n\n")[:-1]):
                    time.sleep(server.pauses[number > 0])
                    self.wfile.write(event + b"\n\n")
                    self.wfile.flush()
                return
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
