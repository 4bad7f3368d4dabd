"""`speceval watch` on a server whose totals grow as a test says: it learns, sees a fall, and says so once, in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.standin import StandIn
from typer.testing import CliRunner

from speceval import cli
from speceval.api import watching
from speceval.engines.server import client as http

QUICK = ("--interval", "0.01", "--learn", "20")


class Busy(StandIn):
    """Its totals have grown at each look; from look `falls` on fewer drafts are accepted."""

    def __init__(self, falls: int, **settings: Any) -> None:
        super().__init__([], **settings)
        self.falls, self.looks, self.totals, self.restarts_at = falls, 0, [0, 0], -1
        self.draw = np.random.default_rng(5)

    def _content(self, path: str, body: Any) -> Any:
        if path != "/metrics":
            return None
        self.looks += 1
        if self.looks == self.restarts_at:
            self.totals = [0, 0]
        steps = int(self.draw.poisson(1000))
        chance = 0.4 if self.looks < self.falls else 0.3
        self.totals[0] += steps
        self.totals[1] += int(self.draw.binomial(4 * steps, chance))
        names = {
            "num_drafts": self.totals[0],
            "num_draft_tokens": 4 * self.totals[0],
            "num_accepted_tokens": self.totals[1],
        }
        lines = [f"vllm:spec_decode_{name}_total {value}.0" for name, value in names.items()]
        for position in range(4):
            label = f'{{position="{position}"}}'
            lines.append(f"vllm:spec_decode_num_accepted_tokens_per_pos_total{label} {self.totals[1] // 4}.0")
        return "\n".join([*lines, ""])


@pytest.fixture
def sleepless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: None)
    yield


def command(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["watch", *words])


def test_a_fall_is_one_json_object_and_exit_code_1(sleepless: None, tmp_path: Path) -> None:
    with Busy(falls=60) as server:
        done = command(
            server.url, *QUICK, "--baseline", str(tmp_path / "normal.json"), "--prometheus", str(tmp_path / "w.prom"),
            "-o", str(tmp_path / "slices.parquet"),
        )  # fmt: skip
    assert done.exit_code == 1, (done.output, done.exception)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["alarm"] is True and told["schema"] == 1 and told["tau"] < told["limit"] < told["learned_tau"]
    assert 57 <= told["slices"] <= 75, told
    slices = pd.read_parquet(tmp_path / "slices.parquet")
    assert len(slices) == told["slices"] and {"tau", "steps", "accepted_4"} <= set(slices)
    page = (tmp_path / "w.prom").read_text()
    assert "speceval_watch_alarm 1" in page and 'speceval_watch_acceptance_rate{position="4"}' in page
    learned = json.loads((tmp_path / "normal.json").read_text())
    assert learned["slices"] == 20 and learned["tau"] == pytest.approx(2.6, abs=0.05)


def test_a_server_that_comes_back_with_a_worse_drafter_raises_the_alarm_and_one_with_the_same_does_not(
    sleepless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At one address, while the watch goes on."""
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.01)
    servers = [Busy(falls=10_000)]
    servers[0].__enter__()
    port, looks = servers[0].port, [0]

    def tell(now: watching.Watched) -> None:
        looks[0] += 1
        if looks[0] in (40, 70):
            servers[-1].__exit__()
        elif now.unreachable:
            servers.append(Busy(falls=10_000 if len(servers) == 1 else 0, port=port))
            servers[-1].__enter__()

    try:
        seen = watching.watch(
            f"http://127.0.0.1:{port}/metrics", interval=0.01, learn_slices=20, tell=tell, seconds=60,
            out=tmp_path / "slices.parquet", prometheus=tmp_path / "w.prom",
        )  # fmt: skip
    finally:
        servers[-1].__exit__()
    assert len(servers) == 3 and seen.restarts == 2 and seen.alarm is not None
    assert 72 < looks[0] < 85, looks
    slices = pd.read_parquet(tmp_path / "slices.parquet")
    assert len(slices) == len(seen.slices) and slices["tau"].between(2.1, 2.7).all()
    assert "speceval_watch_restarts_total 2" in (tmp_path / "w.prom").read_text()


def test_what_was_learned_is_used_again_without_learning(sleepless: None, tmp_path: Path) -> None:
    file = tmp_path / "normal.json"
    with Busy(falls=10_000) as server:

        def tell(now: watching.Watched) -> None:
            if now.detector is not None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watching.watch(server.url, interval=0.01, learn_slices=20, baseline=file, tell=tell)
    with Busy(falls=0) as server:
        done = command(server.url, *QUICK, "--baseline", str(file), "--for", "60")
    assert done.exit_code == 1 and json.loads(done.stdout.splitlines()[-1])["slices"] < 20


def test_a_restart_of_the_server_raises_no_alarm(sleepless: None, tmp_path: Path) -> None:
    with Busy(falls=10_000) as server:
        server.restarts_at = 40
        seen: list[watching.Watched] = []

        def tell(now: watching.Watched) -> None:
            seen.append(now)
            if len(now.slices) == 60:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watching.watch(server.url, interval=0.01, learn_slices=20, tell=tell, out=tmp_path / "slices.parquet")
    assert seen[-1].alarm is None and seen[-1].restarts == 1
    assert len(pd.read_parquet(tmp_path / "slices.parquet")) == 60  # Ctrl-C keeps what was seen


def watched(server: Busy, looks: int, **more: Any) -> watching.Watched:
    """What a watch has seen after so many looks, if it was not over before."""
    seen: list[watching.Watched] = []

    def tell(now: watching.Watched) -> None:
        seen.append(now)
        if len(seen) == looks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watching.watch(server.url, interval=0.01, learn_slices=20, tell=tell, **more)
    return seen[-1]


def test_a_page_without_totals_is_no_answer_and_no_total_of_nothing(sleepless: None) -> None:
    """What stands before a server that starts may answer 200 with a page of its own."""
    with Busy(falls=10_000) as server:
        content = server._content

        def page(path: str, body: Any) -> Any:
            found = content(path, body)
            return "<html>starting</html>" if path == "/metrics" and 40 <= server.looks < 43 else found

        server._content = page  # type: ignore[method-assign]
        seen = watched(server, 60)
    assert (
        seen.restarts == 0 and max(one.steps for one in seen.slices) < 6000
    )  # four intervals', not all since the start


def test_any_total_that_falls_is_a_restart(sleepless: None) -> None:
    """Another server may have counted more steps by then, and fewer accepted drafts."""
    with Busy(falls=10_000) as server:
        content = server._content

        def restarted(path: str, body: Any) -> Any:
            if server.looks == 40:
                server.totals[1] //= 2
            return content(path, body)

        server._content = restarted  # type: ignore[method-assign]
        seen = watched(server, 60)
    assert seen.restarts == 1 and seen.alarm is None and min(one.tau for one in seen.slices) > 2


def test_two_servers_behind_one_address_are_named(sleepless: None) -> None:
    with Busy(falls=10_000) as server:
        other, content = [5_000_000, 6_000_000], server._content

        def balanced(path: str, body: Any) -> Any:
            server.totals, other[:] = list(other), server.totals
            return content(path, body)

        server._content = balanced  # type: ignore[method-assign]
        assert "fall again and again" in str(command(server.url, *QUICK).exception)


def test_rounded_totals_make_longer_slices(sleepless: None) -> None:
    """llama.cpp prints six digits of a total: the rest would be noise."""
    with Busy(falls=10_000) as server:
        server.totals = [12_000_000, 18_000_000]
        content = server._content

        def rounded(path: str, body: Any) -> Any:
            page = content(path, body)
            value = f"num_drafts_total {server.totals[0]}.0"
            return page and page.replace(value, f"num_drafts_total {server.totals[0]:.5e}").replace(
                "vllm:", "llamacpp:"
            )

        server._content = rounded  # type: ignore[method-assign]
        server.draw = type("Draw", (), {"poisson": lambda *_: 30_000, "binomial": lambda _, n, p: int(n * p)})()  # type: ignore[assignment]
        seen = watched(server, 45)
    assert len(seen.slices) == 11 and {round(one.tau, 2) for one in seen.slices} == {2.6}


def test_a_server_that_does_not_answer_is_told_and_asked_again(sleepless: None) -> None:
    with Busy(falls=10_000) as server:
        said: list[str] = []

        def tell(now: watching.Watched) -> None:
            said.append(now.unreachable)
            server.faults["/metrics"] = [(500, {}, b"down")] if len(said) == 5 else []

            if len(said) == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watching.watch(server.url, interval=0.01, learn_slices=20, tell=tell)
    assert "500 down" in said[5] and said[6] == ""


def test_time_that_is_up_without_a_fall_is_exit_code_0(sleepless: None) -> None:
    with Busy(falls=10_000) as server:
        assert command(server.url, *QUICK, "--for", "0.3").exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--learn", "3"), "--learn 3: at least 20"),
        (("--margin", "70%"), "--margin 70%"),
        (("--false-alarms", "0"), "--false-alarms 0"),
        (("--interval", "0"), "--interval 0"),
        (("--interval", "inf"), "--interval inf"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: tuple[str, ...], says: str) -> None:
    done = command("http://127.0.0.1:9", *words)
    assert says in str(done.exception)


def test_a_page_without_drafts_is_refused() -> None:
    with StandIn([]) as server:
        server._metrics = lambda: "vllm:generation_tokens_total 5.0\n"  # type: ignore[method-assign]
        assert "counts no drafts" in str(command(server.url).exception)
