"""How much of the encoder's gradient is signal, apart for the two costs, Rec and KL.

Goyal et al. (NeurIPS 2017) blame collapse on the variance of the stochastic gradient: what pulls
the posterior to the prior is coherent, what would have the code say something is noise. With g_ia
the gradient that sentence i gives under its noise draw a, m = E g, and tr for the trace,

    tr Var g = tr Var_i E[g_i] + E_i tr Var[g_i]        total = between + sampling
    SNR = |m|^2 / tr Var g                              B times as much for a batch of B

Two draws a sentence give each term without bias, from inner products alone (P parameters are never
held for all n sentences):

    sampling  = E |g_i1 - g_i2|^2 / 2
    |m|^2     = E g_i . g_j,  i != j,  g_i = (g_i1 + g_i2) / 2
    between   = E g_i1 . g_i2 - |m|^2

|m|^2, and with it the SNR, may therefore be estimated below 0, where there is next to none; the
plain |mean g|^2 would be too large by tr Var / n. Errors are a jackknife's over groups of
sentences: about 1.4 times too large where there is no signal, else right.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.api import LatentModel
from benchmark.cell import Restored
from benchmark.compose import UserError
from benchmark.diagnosis.replay import Probe
from benchmark.evaluate import Rows, SplitLike, subset
from benchmark.noise import Noise

GROUPS = 10  # of sentences: as many vectors of P numbers are held for each cost
DECODER = "decoder"


def inference_parts(model: LatentModel) -> dict[str, nn.Module]:
    """All parts of a model but its decoder, whose gradient is not in question."""
    return {name: part for name, part in model.parts().items() if name != DECODER}


def probe(run: Restored, sentences: int = 200) -> Probe:
    """Looks at so many sentences of the run's training split, the same at every step."""
    split = run.split("train")
    rows, size = subset(split, "gradients", sentences), run.config.budget.batch_size
    return lambda model, step: noise(model, split, rows, size, run.device)


def noise(
    model: LatentModel, split: SplitLike, rows: Rows, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """{"rec": ..., "kl": ...}, each `Moments.found` of the gradients that these sentences give.

    Of a model in evaluation mode, without corruption, in fp32, each sentence on its own: 2 forward
    and 4 backward passes of a single sentence. Raises UserError for a model without an encoder, and
    for too few sentences.
    """
    weights = [w for part in inference_parts(model).values() for w in part.parameters()]
    if not weights:
        raise UserError("this model infers nothing: it has no encoder whose gradient to look at.")
    if len(rows) < GROUPS:
        raise UserError(f"gradients are taken of {GROUPS} sentences or more, not of {len(rows)}.")
    rec, kl = Moments(weights), Moments(weights)
    # cuDNN's recurrences have no backward pass in evaluation mode
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for place, row in enumerate(rows):
            (rec_1, kl_1), (rec_2, kl_2) = gradients(model, split, row, weights, device)
            rec.add(place, rec_1, rec_2)
            kl.add(place, kl_1, kl_2)
    return {"rec": rec.found(batch_size), "kl": kl.found(batch_size)}


def gradients(
    model: LatentModel, split: SplitLike, row: int, weights: list[nn.Parameter], device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The gradients [P] of one sentence's Rec and KL under each of two noise draws."""
    batch = split.batch(np.array([row])).to(device)
    sentence = torch.tensor([row], device=device)
    for first in (0, 1):
        draw = model.draw(batch.but(noise=Noise(split.name, sentence, first)))
        yield _flat(-draw.log_px.sum(), weights, keep=True), _flat(draw.kl.sum(), weights)


def _flat(cost: Tensor, weights: list[nn.Parameter], keep: bool = False) -> Tensor:
    """[P], zero where the cost does not depend on a weight."""
    if not cost.requires_grad:
        return torch.cat([torch.zeros_like(w).flatten() for w in weights])
    found = torch.autograd.grad(
        cost, weights, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


class Moments:
    """Streamed inner products of gradients, two draws a sentence; see the module."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.sums = weights[0].new_zeros(GROUPS, sum(w.numel() for w in weights))  # of g_i
        self.products = weights[0].new_zeros(GROUPS, 3, dtype=torch.float64)

    @torch.no_grad()
    def add(self, place: int, one: Tensor, other: Tensor) -> None:
        """The gradients [P] of the sentence at this place under two draws."""
        self.sums[place % GROUPS] += (one + other) / 2
        terms = torch.stack([one.new_ones(()), one @ other, (one - other).square().sum() / 2])
        self.products[place % GROUPS] += terms

    def found(self, batch_size: int) -> dict[str, float | None]:
        """signal, |m|^2; between and sampling, the parts of tr Var, all for one sentence; snr, of a
        sentence, and its standard error; snr_batch, of a batch of so many sentences drawn
        independently (of one length they are less so, and the batch noisier). The ratios are None
        where no gradient differs from another."""
        gram = (self.sums @ self.sums.t()).double().cpu().numpy()
        products = self.products.cpu().numpy()
        whole, every = gram.sum(), products.sum(0)
        signal, between, sampling = estimate(whole, *every)
        found = {"signal": signal, "between": between, "sampling": sampling}
        if between + sampling <= 0:
            return found | dict.fromkeys(("snr", "snr_error", "snr_batch"))
        # each group left out in turn
        parts = estimate(whole - 2 * gram.sum(0) + gram.diagonal(), *(every - products).T)
        ratios = parts[0] / (parts[1] + parts[2])
        snr, error = signal / (between + sampling), (GROUPS - 1) ** 0.5 * ratios.std()
        return found | {"snr": snr, "snr_error": float(error), "snr_batch": batch_size * snr}


def estimate(square: Any, n: Any, product: Any, sampling: Any) -> tuple[Any, Any, Any]:
    """Signal, between and sampling, unbiased, from sums over n sentences: |sum_i g_i|^2, and of
    g_i1 . g_i2 and |g_i1 - g_i2|^2 / 2. Numbers, or arrays of them."""
    own = product + sampling / 2  # sum_i |g_i|^2
    signal = (square - own) / (n * (n - 1))
    return signal, product / n - signal, sampling / n
