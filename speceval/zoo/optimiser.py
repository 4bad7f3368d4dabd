"""Muon for the matrices and Adam for the rest, in a page.

torch.optim would do for Adam, but its first step imports torch._dynamo, which takes longer than this file saves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
BETAS = (0.9, 0.95)
EPS = 1e-8
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3


class Optimiser:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) on `matrices`; Adam on `others`."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], matrix_rate: float, rate: float
    ) -> None:
        groups: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            groups[parameter.shape].append(parameter)
        self.matrices = list(groups.values())  # of equal shape, so that a group is one batched product
        self.momentum = [torch.zeros(len(group), *group[0].shape) for group in self.matrices]
        self.others = list(others)
        self.first = [torch.zeros_like(p) for p in self.others]
        self.second = [torch.zeros_like(p) for p in self.others]
        self.matrix_rate, self.rate = matrix_rate, rate
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update from the gradients in place, both rates times `scale`; clears the gradients."""
        self.steps += 1
        for group, momentum in zip(self.matrices, self.momentum, strict=True):
            gradient = torch.stack([p.grad for p in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM))
            rows, columns = group[0].shape
            update *= -self.matrix_rate * scale * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(group, list(update))
        self._adam(scale)
        for parameter in [p for group in self.matrices for p in group] + self.others:
            parameter.grad = None

    def _adam(self, scale: float) -> None:
        gradients = [p.grad for p in self.others]
        beta1, beta2 = BETAS
        torch._foreach_lerp_(self.first, gradients, 1 - beta1)
        torch._foreach_mul_(self.second, beta2)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - beta2)
        root = torch._foreach_sqrt(torch._foreach_div(self.second, 1 - beta2**self.steps))
        torch._foreach_add_(root, EPS)
        torch._foreach_addcdiv_(self.others, self.first, root, -self.rate * scale / (1 - beta1**self.steps))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of each of `matrices` [n, rows, columns] towards 1 by Newton-Schulz iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def cooldown(step: int, steps: int, share: float) -> float:
    """Learning-rate scale: 1, then over the last `share` of `steps` linearly towards 0."""
    return min(1.0, (steps - step) / max(1.0, share * steps))
