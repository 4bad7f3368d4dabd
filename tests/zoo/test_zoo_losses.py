"""The losses against closed forms."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from speceval.zoo import losses

approx = partial(pytest.approx, abs=1e-6)

P = torch.tensor([0.5, 0.2, 0.2, 0.1])
DRAFT_IDS = torch.tensor([0, 2, 3])  # target token 1 is not in the draft vocabulary
Q = torch.tensor([0.25, 0.25, 0.5])


def test_acceptance_counts_only_mass_on_the_draft_vocabulary() -> None:
    assert losses.acceptance(P, Q.log(), DRAFT_IDS).item() == approx(0.25 + 0.2 + 0.1)
    perfect = torch.tensor([5 / 8, 2 / 8, 1 / 8])
    assert losses.acceptance(P, perfect.log(), DRAFT_IDS).item() == approx(0.8)


def test_kl_is_against_the_target_renormalised_on_the_draft_vocabulary() -> None:
    expected = 5 / 8 * math.log(5 / 8 / 0.25) + 2 / 8 * math.log(2 / 8 / 0.25) + 1 / 8 * math.log(1 / 8 / 0.5)
    assert losses.kl(P, Q.log(), DRAFT_IDS).item() == approx(expected)
    assert losses.kl(P, torch.tensor([5 / 8, 2 / 8, 1 / 8]).log(), DRAFT_IDS).item() == approx(0.0)


def test_kl_is_finite_where_the_target_has_zero_mass() -> None:
    p = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert losses.kl(p, Q.log(), DRAFT_IDS).item() == approx(math.log(4))


def test_lk_lambda_weighs_kl_and_tv_by_the_mean_acceptance_of_each_position() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(3, 7, 4, generator=generator).softmax(-1)
    log_q = torch.randn(3, 7, 3, generator=generator).log_softmax(-1)
    alpha = losses.acceptance(p, log_q, DRAFT_IDS)
    for position in range(3):
        weight = math.exp(-3 * alpha[position].mean().item())
        expected = weight * losses.kl(p, log_q, DRAFT_IDS)[position] + (1 - weight) * (1 - alpha[position])
        torch.testing.assert_close(losses.lk_lambda(p, log_q, DRAFT_IDS)[position], expected)


def test_lk_lambda_sends_no_gradient_through_lambda() -> None:
    p = P.expand(1, 1, 4)
    logits = Q.log().clone().expand(1, 1, 3).requires_grad_()

    def gradient(loss: losses.Loss) -> torch.Tensor:
        return torch.autograd.grad(loss(p, logits.log_softmax(-1), DRAFT_IDS).sum(), logits)[0]

    weight = math.exp(-3 * 0.55)
    tv = gradient(lambda *inputs: 1 - losses.acceptance(*inputs))
    torch.testing.assert_close(gradient(losses.lk_lambda), weight * gradient(losses.kl) + (1 - weight) * tv)


def test_tv_is_half_the_distance_of_p_and_q_in_the_sum_of_absolutes() -> None:
    q = torch.tensor([0.25, 0.0, 0.25, 0.5])  # on the target's vocabulary
    assert losses.tv(P, Q.log(), DRAFT_IDS).item() == approx((P - q).abs().sum().item() / 2)


def test_lk_alpha_is_minus_log_acceptance_and_finite_at_zero() -> None:
    assert losses.lk_alpha(P, Q.log(), DRAFT_IDS).item() == approx(-math.log(0.55))
    nowhere = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert math.isfinite(losses.lk_alpha(nowhere, Q.log(), DRAFT_IDS).item())


def test_gradient_of_lk_alpha_is_that_of_tv_over_alpha() -> None:
    logits = Q.log().clone().requires_grad_()

    def gradient(loss: losses.Loss) -> torch.Tensor:
        return torch.autograd.grad(loss(P, logits.log_softmax(-1), DRAFT_IDS), logits)[0]

    torch.testing.assert_close(gradient(losses.lk_alpha), gradient(losses.tv) / 0.55)


@pytest.mark.parametrize("name", ["kl", "tv", "lk_alpha"])  # lk_lambda holds lambda fixed: see above
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).softmax(-1)
    logits = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: losses.LOSSES[name](p, x.log_softmax(-1), DRAFT_IDS), logits)
