"""The likelihood of tokens under a softmax layer, in bounded memory."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SLAB = 1 << 25  # logits computed at once: 2^25 float32 are 128 MiB
KEPT = 1 << 27  # held for the backward pass; a usual training batch has fewer
CACHED = 1 << 19  # what a CPU's cache still holds of them in the next pass


def token_log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, slab: int = SLAB, kept: int = KEPT
) -> Tensor:
    """log softmax(hidden weight')[target], [N] in nats.

    hidden: [N, H]; weight: [V, H]; targets: [N]. At most `slab` logits are computed at a time. If
    there are no more than `kept` in all, they wait for the backward pass; else no two slabs of them
    exist at once, and each is computed again there.
    """
    if len(hidden) * len(weight) <= min(slab, CACHED):  # too small for its overhead to pay
        return _score(hidden, weight, targets)
    rows = max(1, slab // len(weight))
    if not torch.is_grad_enabled():
        return _scores(hidden, weight, targets, rows)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    keep = len(hidden) * len(weight) <= kept
    return _TokenLogLikelihood.apply(hidden, weight, targets, dtype, rows, keep)


def _score(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)  # [n, V]
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def _scores(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Without a gradient, in slabs of so many rows: in fused kernels, for nothing is kept."""
    found = []
    for h, own in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = F.linear(h, weight)
        piece = _cached(logits)
        for some, y in zip(logits.split(piece), own.split(piece), strict=True):
            found.append(-F.cross_entropy(some.float(), y, reduction="none"))
        del logits  # before the next slab of them
    return torch.cat(found)


def _cached(logits: Tensor) -> int:
    """How many rows of logits [n, V] to work on at once."""
    return max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over V of exp(logits - their maximum), and the maximum, [n, 1] each; the
    exponentials take the place of the logits [n, V]."""
    found = []
    for some in logits.split(_cached(logits)):
        most = some.amax(1, keepdim=True)
        found.append((some.sub_(most).exp_().sum(1, keepdim=True), most))
    total, most = (torch.cat(parts) for parts in zip(*found, strict=True))
    return total, most


class _TokenLogLikelihood(torch.autograd.Function):
    """With P the exponentials and s their sum, the gradients for g are dh = g (W[y] - P W / s) and
    dW = sum over tokens of (1[y] - P / s) (g h)'. That s and g scale rows of h, and not of P,
    leaves the backward pass nothing to do on logits but two matrix products. Those are in `dtype`;
    no gradient is rounded to it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        rows: int,
        keep: bool,
    ) -> Tensor:
        scores, kept = [], []
        narrow = hidden.to(dtype), weight.to(dtype)
        for h, y in zip(narrow[0].split(rows), targets.split(rows), strict=True):
            logits = F.linear(h, narrow[1]).float()
            own = logits.gather(1, y[:, None])
            total, most = _exponentials(logits)
            scores.append((own - most - total.log())[:, 0])
            kept += [logits, total] if keep else []
            del logits  # before the next slab of them
        ctx.rows = rows
        ctx.save_for_backward(hidden, weight, targets, *narrow, *kept)
        return torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        whole_hidden, whole_weight, targets, hidden, weight, *found = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            whole = (whole_hidden, whole_weight)
            wanted = [x for x, w in zip(whole, ctx.needs_input_grad, strict=False) if w]
            hidden, weight = (x.to(weight.dtype) for x in whole)
            score = _score(hidden, weight, targets)
            grads = iter(torch.autograd.grad(score, wanted, grad, create_graph=True))
            own = (next(grads) if w else None for w in ctx.needs_input_grad[:2])
            return *own, None, None, None, None
        d_hidden, d_weight = [], None
        slabs = (part.split(ctx.rows) for part in (hidden, targets, grad[:, None]))
        kept = iter(found)
        for h, y, g in zip(*slabs, strict=True):
            if found:
                exponentials, total = next(kept), next(kept)
            else:
                exponentials = F.linear(h, weight).float()
                total, _ = _exponentials(exponentials)
            exponentials = exponentials.to(weight.dtype)
            if ctx.needs_input_grad[0]:
                mean = (exponentials @ weight).float() / total
                d_hidden.append((g * (weight[y] - mean)).to(whole_hidden.dtype))
            if ctx.needs_input_grad[1]:
                scaled = (g * h).float()
                part = (exponentials.t() @ (-scaled / total).to(h.dtype)).float()
                if part.device.type == "cpu":  # each adds in no fixed order where the other is used
                    part.index_add_(0, y, scaled)
                else:
                    part.index_put_((y,), scaled, accumulate=True)
                d_weight = part if d_weight is None else d_weight.add_(part)
            del exponentials
        return torch.cat(d_hidden) if d_hidden else None, d_weight, None, None, None, None
