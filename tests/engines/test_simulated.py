"""The simulated engine does what its arguments say, and takes no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import contract

from speceval import catalog, engines
from speceval.engines import alone
from speceval.engines.base import Order, Verifiable
from speceval.engines.simulated import RATE, SimulatedEngine
from speceval.errors import UserError

PAIR = catalog.resolve("zoo", "lk-eagle3")
ORDER = Order("simulated", PAIR.target, PAIR.draft, 3, "probabilistic", 1.0, batch=2)


def conditional(**changes: Any) -> tuple[float, ...]:
    return SimulatedEngine.open(replace(ORDER, **changes)).conditional


def test_rates_are_one_for_all_positions_or_one_for_each() -> None:
    assert conditional() == (RATE,) * 3
    assert conditional(engine_args={"rates": 0.5}) == (0.5, 0.5, 0.5)
    assert conditional(engine_args={"rates": [1, 0.5, 0]}) == (1.0, 0.5, 0.0)


def test_forced_rates_are_of_all_steps_and_its_own_of_those_that_come_so_far() -> None:
    assert conditional(forced=(0.8, 0.4, 0.1)) == pytest.approx((0.8, 0.5, 0.25))
    assert conditional(forced=(0.5, 0.0, 0.0)) == (0.5, 0.0, 0.0)


def test_the_target_alone_has_no_rates_whatever_the_arguments() -> None:
    order = replace(ORDER, engine_args={"rates": [0.5, 0.5, 0.5]})
    assert SimulatedEngine.open(order.alone()).conditional == ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rates": 1.5}, "rates: 1.5 is no chance: from 0 to 1"),
        ({"rates": [0.5, "half", 0.5]}, "rates: half is no chance: from 0 to 1"),
        ({"rates": [0.5, 0.5]}, "rates=[0.5, 0.5]: 2 of them, K is 3: one for each"),
        ({"end": -0.1}, "end: -0.1 is no chance: from 0 to 1"),
        ({"max_model_len": "long"}, "max_model_len=long: a whole number from 1 on"),
        ({"max_model_len": 0}, "max_model_len=0: a whole number from 1 on"),
        ({"dtype": "half", "rates": 0.5}, "dtype: the simulated engine takes rates, end and max_model_len"),
    ],
)
def test_an_argument_that_means_nothing_is_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        engines.open(replace(ORDER, engine_args=arguments))
    assert str(refused.value) == f"--engine-arg {says}"


def test_end_and_context_are_taken() -> None:
    engine = SimulatedEngine.open(replace(ORDER, engine_args={"end": 1, "max_model_len": 99}))
    assert engine.facts().max_model_len == engine.max_model_len == 99
    done = contract.finish(engine, {"r": ([1], contract.sampling())})["r"]
    assert (len(done.token_ids), done.finish_reason) == (1, "stop")


def test_it_cannot_be_verified() -> None:
    assert not isinstance(SimulatedEngine.open(ORDER), Verifiable)
    assert issubclass(engines.find("vllm"), Verifiable)


def test_a_process_of_its_own_draws_what_the_target_alone_gives_here(tmp_path: Path) -> None:
    requests = [([number, 5], contract.sampling(seed=number, max_tokens=9)) for number in range(7)]
    drawn = alone.draw(ORDER, requests, tmp_path / "log")
    with_same_names = {str(number): (list(prompt), how) for number, (prompt, how) in enumerate(requests)}
    here = contract.finish(engines.open(ORDER.alone()), with_same_names)
    assert drawn == [tuple(here[str(number)].token_ids) for number in range(7)]


def test_a_process_that_fails_is_one_line_that_names_its_log(tmp_path: Path) -> None:
    broken = replace(ORDER, engine_args={"dtype": "half"})
    with pytest.raises(UserError, match=r"the engine without speculative decoding did not run: see .*log$"):
        alone.draw(broken, [([1, 2], contract.sampling())], tmp_path / "log")
    assert "--engine-arg dtype" in (tmp_path / "log").read_text()
