"""Objectives as small pure functions of a draw. Every one is in nats per sentence, summed over
tokens and units and averaged over the batch; never averaged over tokens, which would silently
change the weight of the KL."""

from enum import Enum

from torch import Tensor

from benchmark.api import Batch, Draw


def reconstruction(draw: Draw) -> Tensor:
    """Rec = -E_q log p(x|z), a scalar."""
    return -draw.log_px.mean()


def rate(draw: Draw) -> Tensor:
    """KL(q(z|x) || p(z)), summed over units, a scalar."""
    return draw.kl.sum(-1).mean()


def negative_elbo(draw: Draw, batch: Batch, t: int) -> Tensor:
    """Rec + KL: the objective of the plain VAE."""
    return reconstruction(draw) + rate(draw)


class Per(Enum):
    """What each has a floor of its own. `batch`: the batch's mean is compared with the floor;
    `sentence`: each sentence's value is, and the pressure stops sentence by sentence."""

    unit_batch = "unit_batch"
    unit_sentence = "unit_sentence"
    group_batch = "group_batch"
    total_batch = "total_batch"
    total_sentence = "total_sentence"


def floored_rate(kl: Tensor, target: float, per: Per, groups: int | None = None) -> Tensor:
    """KL [B, U] with floors that sum to `target` nats, a scalar: the value that is charged.

    unit_sentence is E_x sum_d max(target / U, KL_d(x)) (Li et al., EMNLP 2019); group_batch is
    sum_j max(target / J, E_x KL_j(x)) over J groups of units (Kingma et al., NeurIPS 2016).
    """
    if per is Per.group_batch:
        assert groups is not None
        kl = kl.unflatten(-1, (groups, -1)).sum(-1)
    if per in (Per.total_batch, Per.total_sentence):
        kl = kl.sum(-1, keepdim=True)
    if per in (Per.unit_batch, Per.group_batch, Per.total_batch):
        kl = kl.mean(0, keepdim=True)
    # The subgradient of max at a tie is 0 for the rate, as in the released mask (strictly above).
    floor = target / kl.shape[-1]
    return kl.where(kl > floor, floor).sum(-1).mean()


def linear_ramp(t: int, length: float, start: float = 0.0) -> float:
    """A weight that rises from `start` at step 0 to 1 at step `length` and stays there."""
    return 1.0 if t >= length else start + (1.0 - start) * t / length
