"""Objectives as small pure functions of a draw. Every one is in nats per sentence, summed over
tokens and units and averaged over the batch; never averaged over tokens, which would silently
change the weight of the KL."""

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


def linear_ramp(t: int, length: float, start: float = 0.0) -> float:
    """A weight that rises from `start` at step 0 to 1 at step `length` and stays there."""
    return 1.0 if t >= length else start + (1.0 - start) * t / length
