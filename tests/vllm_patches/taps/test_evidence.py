"""What `speceval verify` is given of the verifier, row by row, on both runners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import V1_NAMES, laws, v1_arguments, v1_runner, v2_runner

from vllm_patches import pieces
from vllm_patches.taps import evidence, overlap
from vllm_patches.taps.evidence import COUNTS, KINDS, MEASURED, measure_rows, rows
from vllm_patches.taps.tap import TAP, Step

P, Q = laws((6, 9), 1).softmax(-1), laws((6, 9), 2).softmax(-1)
DRAFTS, EMITTED = torch.tensor([0, 3, 8, 2, 2, 5]), torch.tensor([0, 4, 8, 1, 2, 6])


def named(drafts: torch.Tensor, p: torch.Tensor, q: torch.Tensor | None, emitted: torch.Tensor) -> dict[str, Any]:
    return dict(zip(MEASURED, measure_rows(drafts, p, q, emitted), strict=True))


def test_r_and_alpha_are_the_recorders() -> None:
    found = named(DRAFTS, P, Q, EMITTED)
    torch.testing.assert_close(torch.stack([found["ratio"], found["alpha"]]), overlap.measure(DRAFTS, P, Q))


def test_every_value_by_direct_computation() -> None:
    found = named(DRAFTS, P, Q, EMITTED)
    for row in range(len(DRAFTS)):
        p, q, out = P[row].double().numpy(), Q[row].double().numpy(), int(EMITTED[row])
        ratios, residual = np.minimum(1, p / q), np.maximum(0, p - q)
        pull = np.where(p > q, q / p, 0)
        mean = (residual * pull).sum() / residual.sum()
        expected = {
            "spread": (q * ratios**2).sum() - (q * ratios).sum() ** 2,
            "favoured": float(q[out] > p[out]),
            "favoured_mass": p[q > p].sum(),
            "pull": pull[out],
            "pull_mean": mean,
            "pull_spread": (residual * pull**2).sum() / residual.sum() - mean**2,
        }
        assert {name: float(found[name][row]) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_without_q_a_draft_is_certain_and_favoured_when_it_stays() -> None:
    found = named(DRAFTS, P, None, EMITTED)
    at_draft = P[torch.arange(6), DRAFTS]
    for name in ("ratio", "alpha", "favoured_mass"):
        torch.testing.assert_close(found[name], at_draft)
    assert found["favoured"].tolist() == [1, 0, 1, 0, 1, 0]
    assert all(float(found[name].abs().sum()) == 0 for name in ("spread", "pull", "pull_mean", "pull_spread"))


def step(counts: list[int], greedy: torch.Tensor | bool = False, **changes: Any) -> Step:
    made = {"names": [f"r{i}" for i in range(len(counts))], "counts": counts, "drafts": DRAFTS, "greedy": greedy}
    return Step(**made | {"logits": P.log(), "q": Q} | changes)


def heard(given: Step, emitted: list[list[int]]) -> dict[str, Any]:
    listener = evidence.Evidence()
    tell = listener.hear(given)
    assert tell is not None
    tell(torch.tensor(emitted))
    return listener.drain()


def test_rows_carry_request_position_and_decision() -> None:
    """Three drafts of which two were accepted, none, and three of which none was."""
    drained = heard(step([3, 0, 3]), [[0, 3, 7, -1], [4, -1, -1, -1], [1, -1, -1, -1]])
    found = rows(drained)
    assert found["request"].tolist() == ["r0"] * 3 + ["r2"] * 3
    assert found["position"].tolist() == [1, 2, 3, 1, 2, 3]
    assert found["reached"].tolist() == [True, True, True, True, False, False]
    assert found["accepted"].tolist() == [True, True, False, False, False, False]
    expected = named(DRAFTS, P, Q, torch.tensor([0, 3, 7, 1, -1, -1]))
    for name in MEASURED:
        np.testing.assert_allclose(found[name].astype(float), expected[name], rtol=1e-5)
    assert {name: drained[name] for name in COUNTS} == {"padded": 0, "broken": 0, "without_q": 0}


def test_greedy_rows_padding_and_a_p_that_is_no_distribution_are_left_out_and_counted() -> None:
    logits = P.log()
    logits[1] = torch.nan
    drafts = DRAFTS.clone()
    drafts[2] = -1
    greedy = torch.tensor([False] * 3 + [True] * 3)
    drained = heard(step([3, 3], greedy, logits=logits, drafts=drafts), [[0, 1, -1, -1], [2, 1, -1, -1]])
    assert rows(drained)["position"].tolist() == [1]
    assert {name: drained[name] for name in COUNTS} == {"padded": 1, "broken": 1, "without_q": 0}
    without = heard(step([6], q=None), [[0, 1, -1, -1, -1, -1, -1]])
    assert without["without_q"] == len(rows(without)["position"]) == 6


def test_an_all_greedy_step_leaves_nothing_and_counts_start_anew_when_drained() -> None:
    listener = evidence.Evidence()
    assert listener.hear(step([6], greedy=True)) is None
    assert {name: len(column) for name, column in rows(listener.drain()).items()} == dict.fromkeys(
        [*KINDS, "request", "position"], 0
    )
    tell = listener.hear(step([6], q=None))
    assert tell is not None
    tell(torch.tensor([[0, -1, -1, -1, -1, -1, -1]]))
    assert [listener.drain()["without_q"] for _ in range(2)] == [6, 0]


def test_the_chance_of_block_verification_is_the_running_product_of_p_over_q_at_most_1() -> None:
    found = rows(heard(step([3, 0, 3]), [[0, 3, 7, -1], [4, -1, -1, -1], [1, -1, -1, -1]]))
    ratios = (P / Q)[torch.arange(6), DRAFTS].tolist()
    expected: list[float] = []
    for row, ratio in enumerate(ratios):
        expected.append(min(1.0, (1.0 if row % 3 == 0 else expected[-1]) * ratio))
    assert found["chance"].tolist() == pytest.approx(expected, rel=1e-5)
    without = rows(heard(step([6], q=None), [[0, 1, -1, -1, -1, -1, -1]]))
    certain = P[torch.arange(6), DRAFTS].cumprod(0).tolist()
    assert without["chance"].tolist() == pytest.approx(certain, rel=1e-5)


def test_pieces_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = [[0, 3, 7, -1], [1, 2, -1, -1]]
    whole = heard(step([3, 3]), emitted)
    monkeypatch.setitem(pieces.ELEMENTS, "cpu", 9 * 4)
    assert heard(step([3, 3]), emitted) == whole


def test_v1s_verifier_is_heard_with_what_it_emitted(v1: Any) -> None:
    TAP.add("evidence", evidence.start, v1_runner())
    arguments = v1_arguments([1.0, 1.0, 0.5])
    torch.manual_seed(0)
    output = v1.rejection_sample(*arguments)
    found = rows(TAP.drain("evidence"))
    assert found["request"].tolist() == [V1_NAMES[0]] * 2 + [V1_NAMES[2]] * 3
    number = (output >= 0).sum(1)[[0, 0, 2, 2, 2]].numpy()
    assert (found["accepted"] == (number > found["position"])).all()
    assert (found["reached"] == (number >= found["position"])).all()
    p = arguments[5].softmax(-1)
    np.testing.assert_allclose(found["alpha"], torch.minimum(p, arguments[4]).sum(1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [100, 5])
def test_v2s_verifier_is_heard_with_what_it_emitted(v2: Any, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(v2.module, "get_max_chunk_logits", lambda _: chunk)
    TAP.add("evidence", evidence.start, v2_runner())
    v2.made(v2.batch.logits, v2.batch, v2.batch.q_logits)
    found = rows(TAP.drain("evidence"))
    number = torch.cat([call[3] for call in v2.calls]).numpy().repeat(v2.batch.counts)
    assert found["request"].tolist() == np.repeat(v2.batch.req_ids, v2.batch.counts).tolist()
    assert (found["accepted"] == (number > found["position"])).all()
    assert (found["reached"] == (number >= found["position"])).all()
    np.testing.assert_allclose([found["ratio"], found["alpha"]], v2.batch.expected(), rtol=1e-4)
