"""`speceval.watch`: the acceptance of a server's own traffic, watched for a fall."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.api.words import errors_by_parameter
from speceval.engines.server import metrics
from speceval.engines.server.client import STANDS_ALONE, Client
from speceval.errors import UserError
from speceval.estimate.watching import LEAST_LEARNED, LEAST_STEPS, Detector, Learned, Slice, Slicer, learn, threshold
from speceval.files import write_whole
from speceval.foreign import read_json
from speceval.terminal import line

KEPT_EVERY = 10
"""Slices after which the table is written."""
PREFIXES = ("vllm:", "llamacpp:")


@dataclass
class Watched:
    """What a watch has seen so far."""

    url: str
    detector: Detector | None = None
    """None while it learns."""
    slices: list[Slice] = field(default_factory=list)
    restarts: int = 0
    unreachable: str = ""
    """Why the last look failed."""

    @property
    def alarm(self) -> dict[str, Any] | None:
        """What is told when acceptance has fallen; None while it has not."""
        found = self.detector
        if found is None or not found.alarm:
            return None
        last = self.slices[-1]
        return {
            "alarm": True,
            "url": self.url,
            "time": last.time,
            "tau": last.tau,
            "learned_tau": found.learned.tau,
            "margin": found.margin,
            "limit": found.limit,
            "score": found.score,
            "threshold": found.threshold,
            "positions": [count / last.steps for count in last.positions],
            "learned_positions": found.learned.positions,
            "slices": len(self.slices),
        }

    def table(self) -> pd.DataFrame:
        """A row for each slice."""
        return pd.DataFrame([one.row() for one in self.slices])

    def prometheus(self) -> str:
        """The last slice, as Prometheus reads it from a file."""
        values: dict[str, float] = {"slices_total": len(self.slices), "restarts_total": self.restarts}
        if self.slices:
            values["tau"] = self.slices[-1].tau
            for number, count in enumerate(self.slices[-1].positions, start=1):
                values[f'acceptance_rate{{position="{number}"}}'] = count / self.slices[-1].steps
        if self.detector is not None:
            found = self.detector
            values |= {"learned_tau": found.learned.tau, "score": found.score, "alarm": float(found.alarm)}
        return "".join(f"speceval_watch_{name} {value:g}\n" for name, value in values.items())


@errors_by_parameter({"--learn": "learn_slices", "--for": "seconds"})
def watch(
    url: str,
    *,
    interval: float = 60.0,
    learn_slices: int = 60,
    baseline: str | Path | None = None,
    margin: float = 0.02,
    false_alarms: float = 0.05,
    seconds: float | None = None,
    out: str | Path | None = None,
    prometheus: str | Path | None = None,
    api_key_env: str | None = None,
    tell: Callable[[Watched], None] = lambda _: None,
) -> Watched:
    """Watch a server's own totals until its acceptance has fallen, as `speceval watch` does.

    Args:
        url: address of a server of vLLM or llama.cpp whose metrics page counts drafts.
        interval: seconds between two looks.
        learn_slices: slices from which it learns what is normal; at least 20.
        baseline: file with what was learned: read if it is there, else written.
        margin: relative fall of tau that is let pass.
        false_alarms: chance of an alarm in a month without such a fall, at most.
        seconds: after which it ends without an alarm; None: never.
        out: Parquet file for the slices.
        prometheus: text file for Prometheus, written anew at each look.
        api_key_env: environment variable that holds the server's key.
        tell: is called after each look.

    Returns:
        What was seen: `slices`, `table()`, and `alarm`, None if time was up.

    Raises:
        UserError: what was asked for is impossible, or the server counts no drafts.
    """
    _check(interval, learn_slices, margin, false_alarms)
    found, slicer = Watched(url), Slicer()
    file = None if baseline is None else Path(baseline)
    limit = threshold(false_alarms, interval)
    if file is not None and file.exists():
        found.detector = Detector(_read(file), margin, limit)
    ends = None if seconds is None else time.monotonic() + seconds
    with closing(Client(url, key_variable=api_key_env, seconds=max(interval, 5.0), mend=STANDS_ALONE)) as client:
        prefix = _prefix(client)
        try:
            while found.alarm is None and (ends is None or time.monotonic() < ends):
                began = time.monotonic()
                slice_ = _look(found, slicer, client, prefix)
                if slice_ is not None:
                    _take(found, slice_, learn_slices, margin, limit, file)
                    if out is not None and len(found.slices) % KEPT_EVERY == 0:
                        _keep(found, Path(out))
                if prometheus is not None:
                    write_whole(Path(prometheus), found.prometheus())
                tell(found)
                if found.alarm is None:
                    time.sleep(max(began + interval - time.monotonic(), 0.0))
        finally:
            if out is not None and found.slices:
                _keep(found, Path(out))
    return found


def _look(found: Watched, slicer: Slicer, client: Client, prefix: str) -> Slice | None:
    """The slice that ends now, if one does."""
    try:
        page = client.text("/metrics")
        counted, rounded = metrics.counters(page, prefix), metrics.rounding(page, prefix, ("spec_decode_num_drafts",))
    except UserError as error:
        found.unreachable = line(str(error))
        return None
    if not metrics.counts_drafts(page, prefix):  # a server that starts, or what stands before it: no total of 0
        found.unreachable = f"{client.url}/metrics: counts no drafts now"
        return None
    found.unreachable = ""
    slice_ = slicer.take(counted, time.time(), LEAST_STEPS if rounded == 1 else ROUNDED_STEPS * rounded)
    found.restarts = slicer.restarts
    if slicer.restarts > MOST_RESTARTS and slicer.restarts * 4 > slicer.looks:
        raise UserError(f"{client.url}: its totals fall again and again: watch each of the servers behind it by itself")
    return slice_


MOST_RESTARTS = 3
"""In a row, of a server that is one."""
ROUNDED_STEPS = 1000
"""Of a slice, in what totals are rounded to: a tenth of a percent."""


def _take(
    found: Watched,
    slice_: Slice,
    learn_slices: int,
    margin: float,
    limit: float,
    file: Path | None,
) -> None:
    """Judge a slice, or learn from it."""
    found.slices.append(slice_)
    if found.detector is not None:
        found.detector.add(slice_)
    elif len(found.slices) >= learn_slices:
        learned = learn(found.slices)
        found.detector = Detector(learned, margin, limit)
        if file is not None:
            write_whole(file, json.dumps(learned.model_dump(), indent=1))


SECONDS_OF_A_DAY = 86_400


def _check(interval: float, learn_slices: int, margin: float, false_alarms: float) -> None:
    for wrong, says in (
        (not 0 < interval <= SECONDS_OF_A_DAY, f"--interval {interval:g}: above 0, at most a day of seconds"),
        (learn_slices < LEAST_LEARNED, f"--learn {learn_slices}: at least {LEAST_LEARNED} slices"),
        (not 0 <= margin < 0.5, f"--margin {margin:g}: a share below 0.5, such as 0.02"),
        (not 0 < false_alarms < 1, f"--false-alarms {false_alarms:g}: a chance between 0 and 1"),
    ):
        if wrong:
            raise UserError(says)


def _prefix(client: Client) -> str:
    """What the server's totals begin with. Raises `UserError` where it has none."""
    page = client.text("/metrics")
    for prefix in PREFIXES:
        if metrics.counts_drafts(page, prefix):
            return prefix
    raise UserError(f"{client.url}/metrics: counts no drafts: `speceval probe {client.url}` says what the server tells")


def _read(file: Path) -> Learned:
    try:
        return Learned.model_validate(read_json(file))
    except ValueError as error:
        raise UserError(
            f"--baseline {file}: is no file that `speceval watch` has written: {line(str(error))}"
        ) from error


def _keep(found: Watched, out: Path) -> None:
    from io import BytesIO

    buffer = BytesIO()
    found.table().to_parquet(buffer, index=False)
    write_whole(out, buffer.getvalue())
