"""What a drafter is trained on: how far its distribution q is from the target's p at each draft position.

Every loss takes `p` [..., V], the target's probabilities over its whole vocabulary, `log_q` [..., D], the drafter's
log-probabilities over the draft vocabulary, and `draft_ids` [D], the target's id of each draft token; it returns [...].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ETA = 3.0  # LK Losses' setting
SMALLEST_ALPHA = 1e-8  # keeps log(alpha) finite

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def acceptance(p: Tensor, log_q: Tensor, draft_ids: Tensor) -> Tensor:
    """alpha = sum_x min(p(x), q(x)), the chance that a token drawn from q is accepted (arXiv 2211.17192, eq. 3).

    The drafter gives tokens outside the draft vocabulary no mass, so they add nothing.
    """
    return torch.minimum(p[..., draft_ids], log_q.exp()).sum(-1)


def kl(p: Tensor, log_q: Tensor, draft_ids: Tensor) -> Tensor:
    """KL(p' || q) in nats, with p' the target renormalised on the draft vocabulary."""
    restricted = p[..., draft_ids]
    restricted = restricted / restricted.sum(-1, keepdim=True).clamp_min(1e-20)
    return torch.special.xlogy(restricted, restricted).sum(-1) - (restricted * log_q).sum(-1)


def tv(p: Tensor, log_q: Tensor, draft_ids: Tensor) -> Tensor:
    """Total variation distance between p and q, 1 - alpha."""
    return 1 - acceptance(p, log_q, draft_ids)


def lk_alpha(p: Tensor, log_q: Tensor, draft_ids: Tensor) -> Tensor:
    """-log(alpha), LK Losses (arXiv 2602.23881): TV's gradient divided by alpha, so large where acceptance is poor."""
    return -acceptance(p, log_q, draft_ids).clamp_min(SMALLEST_ALPHA).log()


def lk_lambda(p: Tensor, log_q: Tensor, draft_ids: Tensor) -> Tensor:
    """lambda * KL + (1 - lambda) * TV with lambda = exp(-eta * alpha), no gradient through lambda.

    LK Losses (arXiv 2602.23881): KL pulls while the drafter is poor, total variation, 1 - alpha, takes over as alpha
    grows. alpha in lambda is the mean over all axes but the first, which is the draft position.
    """
    alpha = acceptance(p, log_q, draft_ids)
    mean = alpha.detach().mean(dim=tuple(range(1, alpha.ndim)), keepdim=True)
    weight = torch.exp(-ETA * mean)
    return weight * kl(p, log_q, draft_ids) + (1 - weight) * (1 - alpha)


LOSSES: dict[str, Loss] = {"kl": kl, "tv": tv, "lk_alpha": lk_alpha, "lk_lambda": lk_lambda}
