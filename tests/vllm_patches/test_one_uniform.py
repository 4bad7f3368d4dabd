"""One token by one uniform number: the law, the edges of rows and blocks, and whose generator is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from vllm_patches.one_uniform import BLOCK, invert, uniforms

WIDTHS = (1, 7, BLOCK, 4 * BLOCK, 4 * BLOCK + 1, 9 * BLOCK - 3)
CPU = torch.device("cpu")


def plain(weights: torch.Tensor, uniform: torch.Tensor) -> list[int]:
    """The same by numpy's sums in float64, over the whole row."""
    ends = weights.double().numpy().cumsum(1)
    return [int(np.searchsorted(row, u * row[-1], side="right")) for row, u in zip(ends, uniform.numpy(), strict=True)]


def mixed(width: int, rows: int) -> torch.Tensor:
    """Weights between 1e-9 and 1 and many zeros, one of each row's at least above 0."""
    draw = torch.Generator().manual_seed(width)
    weights = torch.exp(-20 * torch.rand(rows, width, generator=draw))
    weights[torch.rand(rows, width, generator=draw) < 0.4] = 0
    return weights.scatter_(1, torch.randint(width, (rows, 1), generator=draw), 0.5)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_the_inverse_of_the_running_sum(width: int) -> None:
    """But where a uniform is within the rounding of a sum: at most one in a hundred is given that much."""
    weights = mixed(width, 2000)
    uniform = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same = np.mean(np.array(invert(weights, uniform)) == np.array(plain(weights, uniform)))
    assert same >= 0.99


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("share", [0.0, 1 - 2**-53, 0.5])
def test_a_weight_of_zero_is_never_drawn(width: int, share: float) -> None:
    weights = mixed(width, 3000)
    drawn = invert(weights, torch.full((3000,), share, dtype=torch.float64))
    assert (weights.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_only_weight_is_drawn_wherever_it_stands(width: int) -> None:
    rows = torch.arange(width)
    for share in (0.0, 0.3, 1 - 2**-53):
        assert torch.equal(invert(torch.eye(width) * 1e-30, torch.full((width,), share, dtype=torch.float64)), rows)


@pytest.mark.parametrize("width", [60, 40 * BLOCK + 17])
def test_draws_follow_the_weights(width: int) -> None:
    """Chi-square of 400,000 draws over 60 bins of like mass; fixed seed, false alarm 1e-9.

    A shift of 1 % of the mass from one half to the other gives p < 1e-9 with probability above 0.99.
    """
    draw = torch.Generator().manual_seed(0)
    weights = torch.exp(3 * torch.randn(1, width, generator=draw))
    size = 400_000
    drawn = torch.cat(
        [
            invert(weights.expand(4000, -1), torch.rand(4000, dtype=torch.float64, generator=draw))
            for _ in range(size // 4000)
        ]
    )
    law = (weights[0].double() / weights[0].double().sum()).numpy()
    bins = np.minimum((law.cumsum() * 60).astype(int), 59)
    expected = np.bincount(bins, law, 60)
    counts = np.bincount(bins[drawn.numpy()], minlength=60)
    kept = expected > 0

    def p_value(of: np.ndarray) -> float:
        of = of[kept] / of[kept].sum()
        return float(chisquare(counts[kept], size * of).pvalue)

    assert p_value(expected) > 1e-9
    shifted = expected.copy()
    shifted[:30] *= 1 - 0.01 / shifted[:30].sum()
    shifted[30:] *= 1 + 0.01 / shifted[30:].sum()
    assert p_value(shifted) < 1e-9


@pytest.mark.parametrize("width", [5, 4 * BLOCK + 5])
def test_rows_without_weight_and_no_rows_give_an_index_and_no_error(width: int) -> None:
    drawn = invert(torch.zeros(2, width), torch.tensor([0.0, 0.9], dtype=torch.float64))
    assert ((drawn >= 0) & (drawn < width)).all()
    assert invert(torch.full((1, width), torch.nan), torch.tensor([0.5], dtype=torch.float64)).numel() == 1
    assert invert(torch.zeros(0, width), torch.zeros(0, dtype=torch.float64)).shape == (0,)


def test_a_seeded_request_draws_from_its_own_generator_wherever_it_stands_in_the_batch() -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    alone = uniforms([0], {0: seeded()}, 2, CPU)
    assert torch.equal(uniforms([4, 9, 2], {9: seeded()}, 2, CPU)[2:4], alone)
    assert alone.dtype == torch.float64 and len(set(alone.tolist())) == 2


def test_the_global_generator_is_left_alone_where_every_request_has_its_own() -> None:
    before = torch.get_rng_state()
    uniforms([0, 1], {0: torch.Generator(), 1: torch.Generator()}, 3, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    uniforms([0, 1], {0: torch.Generator()}, 3, CPU)
    assert not torch.equal(torch.get_rng_state(), before)
