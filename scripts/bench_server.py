"""What the client of servers costs beside bare httpx: `python scripts/bench_server.py`.

A stub in a process of its own answers each request after 20 ms, as a small vLLM would. Bare `httpx.AsyncClient` and
`speceval.engines.server.client` take turns in one process, at the same concurrency. Writes results/bench/server.json.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from speceval.engines.server.client import Client
from speceval.files import write_whole
from speceval.measure.fingerprint import environment

ROUNDS, REQUESTS, CONCURRENCY = 5, 300, 32
SECONDS = 0.02
RESULT = Path("results/bench/server.json")
TOKENS = list(range(256))
BODY = {"model": "m", "token_ids": TOKENS, "sampling_params": {"temperature": 1.0, "max_tokens": 256, "seed": 1}}
STEPS = {"per_step_drafted": [5] * 100, "per_step_accepted": [2] * 100}
ANSWER = {"choices": [{"token_ids": TOKENS, "finish_reason": "length"}], "metrics": {"speculative_decoding": STEPS}}


async def stub() -> None:
    """Answer the same to everything, and print the port."""
    content = json.dumps(ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(request.partition(b"content-length:")[2].split(b"\r\n")[0]))
                await asyncio.sleep(SECONDS)
                writer.write(head + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def bare(url: str) -> None:
    """The calls by httpx alone."""

    async def calls() -> None:
        limits = httpx.Limits(max_connections=CONCURRENCY)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=httpx.Timeout(60, pool=None)) as client:

            async def call() -> None:
                answer = (await client.post("/inference/v1/generate", json=BODY)).json()
                assert answer["choices"]

            await asyncio.gather(*(call() for _ in range(REQUESTS)))

    asyncio.run(calls())


def ours(url: str) -> None:
    """The same by our client."""
    with closing(Client(url, connections=CONCURRENCY)) as client:
        for call in [client.begin("/inference/v1/generate", BODY) for _ in range(REQUESTS)]:
            assert call.result()["choices"]


def main() -> None:
    """Measure and print the ratios."""
    command = [sys.executable, __file__, "stub"]
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    processor: dict[str, list[float]] = {"bare": [], "ours": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            bare(url)  # warm
            ours(url)
            for _ in range(ROUNDS):
                for name, run in (("bare", bare), ("ours", ours)):
                    began, used = time.perf_counter(), time.process_time()
                    run(url)
                    seconds[name].append(time.perf_counter() - began)
                    processor[name].append(time.process_time() - used)
        finally:
            process.kill()
    result: dict[str, Any] = {
        "command": "python scripts/bench_server.py",
        "environment": environment("server").model_dump(),
        "requests": REQUESTS,
        "concurrency": CONCURRENCY,
        "rounds": ROUNDS,
        "seconds": seconds,
        "processor_seconds": processor,
        # What it costs is processor time; on a machine with other load the clock tells of that load.
        "ratio": statistics.median(a / b for a, b in zip(processor["ours"], processor["bare"], strict=True)),
        "clock_ratio": statistics.median(a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)),
    }
    write_whole(RESULT, json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in ("ratio", "clock_ratio")}, indent=2))


if __name__ == "__main__":
    asyncio.run(stub()) if sys.argv[1:] == ["stub"] else main()
