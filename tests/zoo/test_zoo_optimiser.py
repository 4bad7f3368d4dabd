"""The optimiser: one step of each half against its definition, and that it optimises."""

from __future__ import annotations

import torch
from torch import nn

from speceval.zoo.optimiser import Optimiser, cooldown, orthogonalise


def test_orthogonalise_keeps_singular_vectors_and_levels_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 12, 30), (2, 30, 12)):
        matrices = torch.randn(shape, generator=generator)
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ orthogonalise(matrices) @ vh.mT
        values = inside.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(inside, torch.diag_embed(values), atol=1e-4, rtol=0)
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_adam_moves_each_entry_by_the_rate_at_first_and_clears_the_gradient() -> None:
    vector = nn.Parameter(torch.zeros(3))
    vector.grad = torch.tensor([5.0, -0.01, 2.0])
    Optimiser([], [vector], matrix_rate=1.0, rate=0.1).step(scale=0.5)
    torch.testing.assert_close(vector.data, torch.tensor([-0.05, 0.05, -0.05]), atol=1e-5, rtol=0)
    assert vector.grad is None


def test_matrices_of_equal_shape_are_updated_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(6, 6, generator=generator) for _ in range(2)]
    gradients = [torch.randn(6, 6, generator=generator) for _ in range(2)]

    def updated(which: list[int]) -> list[torch.Tensor]:
        parameters = [nn.Parameter(start[i].clone()) for i in which]
        vector = nn.Parameter(torch.zeros(1))
        optimiser = Optimiser(parameters, [vector], matrix_rate=0.1, rate=0.1)
        for _ in range(2):
            vector.grad = torch.ones(1)
            for parameter, i in zip(parameters, which, strict=True):
                parameter.grad = gradients[i].clone()
            optimiser.step(1.0)
        return [p.data for p in parameters]

    together = updated([0, 1])
    torch.testing.assert_close(together, updated([0]) + updated([1]))
    assert not torch.equal(together[0], start[0])


def test_optimiser_solves_a_least_squares_problem() -> None:
    generator = torch.Generator().manual_seed(0)
    x, wanted = torch.randn(64, 8, generator=generator), torch.randn(8, 8, generator=generator)
    weight, bias = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.ones(8))
    optimiser = Optimiser([weight], [bias], matrix_rate=0.3, rate=0.1)
    for step in range(200):
        loss = (x @ weight + bias - x @ wanted).square().mean()
        loss.backward()
        optimiser.step(cooldown(step, 200, 0.8))
    assert loss.item() < 1e-3


def test_cooldown_holds_then_falls_to_nearly_nothing() -> None:
    scales = [cooldown(step, 10, 0.5) for step in range(10)]
    assert scales[:6] == [1.0] * 6
    assert scales[6:] == [0.8, 0.6, 0.4, 0.2]
