"""The likelihood of tokens under a softmax layer, in bounded memory."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Logits held at once: 2^25 float32 are 128 MiB, which a usual training batch does not reach.
SLAB = 1 << 25


def _score(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)  # [n, V]
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def token_log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, slab: int = SLAB
) -> Tensor:
    """log softmax(hidden weight')[target], [N] in nats.

    hidden: [N, H]; weight: [V, H]; targets: [N]. At most `slab` logits exist at a time: where all
    N x V fit, autograd keeps them; else each slab is computed again in the backward pass.
    """
    rows = max(1, slab // len(weight))
    if len(hidden) <= rows:
        return _score(hidden, weight, targets)
    scores = []
    for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            scores.append(checkpoint(_score, h, weight, y, use_reentrant=False))
        else:
            scores.append(_score(h, weight, y))
    return torch.cat(scores)
