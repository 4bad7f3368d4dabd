"""The progress display takes no time that the engine could have."""

from __future__ import annotations

import pytest

from speceval.measure.runner import Progress
from speceval.protocol import make_spec
from speceval.show import progress as display


def test_a_slow_display_is_shown_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 seconds a display that takes 1 second has at most a fiftieth, one that takes none comes every 10."""
    for cost, shown in ((0.0, 100), (1.0, 20)):
        now, times = 0.0, 0

        def show(cost: float = cost) -> None:
            nonlocal now, times
            now += cost
            times += 1

        monkeypatch.setattr(display.time, "monotonic", lambda: now)  # noqa: B023 (called within the loop)
        maybe = display._every(10.0, show)
        while now < 1000:
            maybe()
            now += 0.25
        assert shown - 2 <= times <= shown


def test_tau_on_the_way_counts_every_turn_of_a_conversation() -> None:
    progress = Progress(4, counts={("s", f"{n}", seed): [(n, 2), (1, 1)] for n in range(2) for seed in range(2)})
    accepted, steps = 2 * (0 + 1) + 2 * (1 + 1), 4 * 3
    assert display.running_tau(progress).startswith(f"tau {1 + accepted / steps:.3f} ±")
    assert display.running_tau(Progress(4)) == "tau –"


def test_a_replay_on_the_way_shows_no_tau_for_it_emits_one_token_a_step() -> None:
    progress = Progress(4, counts={("s", "1", 0): [(0, 9)]})
    spec = make_spec(target="zoo", draft="kl-eagle3", k=5, temperature=1.0, drafting="probabilistic", suites=("demo",))
    assert "tau 1.000" in display._status(progress, spec)
    replayed = display._status(progress, spec.model_copy(update={"replay": "abc"}))
    assert "tau" not in replayed and "replay" in replayed
