"""Whether and where the decoder reads the code: nats a sentence, unless said."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis.sentences import batches, codes, noisy, pairs, room
from benchmark.estimators import (
    Array,
    fit_temperature,
    info_nce,
    log_mean_exp,
    mean_and_error,
)
from benchmark.evaluate import Rows, SplitLike, by_length, generator
from benchmark.models.likelihood import SLAB

OWN, SHUFFLED, PRIOR = range(3)  # codes that a sentence is scored under
SATURATED = 0.9  # of ln K, from where a bound on information says no more


def reading(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> tuple[dict[str, Any], dict[str, str]]:
    """The section, and why what is None of it is so.

    shuffled, prior: what log p(x|z) loses with the code of another sentence of the same length,
    and with one of the prior. by_position: the first by the place of the predicted word, over the
    sentences that reach it. sensitivity: KL(p(. | x_<t, z) || p(. | x_<t, z~)) a word, z~ from the
    prior; prefix: the same if one word of the prefix, and not z, is another sentence's, over the
    words behind it. Each is a mean and its standard error.
    """
    drops: list[Tensor] = []
    moved: list[Tensor] = []
    words = _ByPosition()
    for length, same in pairs(split, rows, "partners of the diagnosis"):
        code = codes(model, split, same, device)
        before = code.roll(1, 0)
        inputs = torch.cat([b.inputs for _, b in batches(split, same, len(same), device)])
        other_inputs = inputs.roll(1, 0)
        place = generator(split.name, f"prefix {length}").integers(1, max(length, 2), len(same))
        places, start = torch.as_tensor(place, device=device), 0
        ((_, one),) = batches(split, same[:1], 1, device)
        for part, batch in batches(split, same, _affordable(model, one, code[:1, None]), device):
            here = slice(start, start := start + len(part))
            under = [code[here], before[here]]
            prior = model.prior_codes(noisy(batch, split, part, "/prior"))
            if prior is not None:
                under.append(prior[:, 0])
            z = torch.stack(under, 1)
            told = model.predictions(batch, z)  # [B, K, T, V]
            if told is None:
                scores = model.log_px(batch, z).double()
            else:
                own = batch.targets[:, None, :, None].expand(*told.shape[:3], 1)
                by_word = told.gather(-1, own)[..., 0].double()  # [B, K, T]
                scores = by_word.sum(-1)
                words.add(by_word[:, OWN] - by_word[:, SHUFFLED])
                if prior is not None and length > 1:
                    of_code = _divergence(told[:, OWN], told[:, PRIOR]).mean(1)
                    of_word = _prefix(
                        model, batch, code[here], told, places[here], other_inputs[here]
                    )
                    moved.append(torch.stack([of_code, of_word], 1))
            drops.append(scores[:, :1] - scores[:, 1:])
    found: dict[str, Any] = dict.fromkeys(("prior", "by_position", "sensitivity", "prefix"))
    notes = {}
    dropped = torch.cat(drops).cpu().numpy()
    found |= _means(("shuffled", "prior"), dropped) | {"sentences": len(dropped)}
    if words.counts:
        found["by_position"] = words.fetch()
    else:
        notes["by_position"] = "the model predicts no words one by one"
    if moved:
        found |= _means(("sensitivity", "prefix"), torch.cat(moved).cpu().numpy())
    else:
        notes["sensitivity"] = "the prior cannot be drawn from, or no words are predicted"
    return found, notes


def _means(names: tuple[str, ...], columns: Array) -> dict[str, list[float]]:
    """Mean and standard error of the columns that there are."""
    return {
        name: list(mean_and_error(column)) for name, column in zip(names, columns.T, strict=False)
    }


def _affordable(model: LatentModel, batch: Batch, z: Tensor) -> int:
    """Sentences as long as this one, a batch of its own, whose predictions under three codes and
    what is made of them fit."""
    told, length = model.predictions(batch, z), batch.targets.shape[1]
    width = 1 if told is None else told.shape[-1]
    return max(1, min(room(z.device, 3 * length), SLAB // (4 * length * width)))


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL between predictions [..., V], in nats a word."""
    return (one.exp() * (one - other)).sum(-1).double()


def _prefix(
    model: LatentModel, batch: Batch, code: Tensor, told: Tensor, place: Tensor, other: Tensor
) -> Tensor:
    """[B], how much the predictions from `place` [B] on change, a word, if the input there is
    another sentence's, of inputs `other` [B, T]; told: the predictions as they are."""
    steps = torch.arange(batch.inputs.shape[1], device=place.device)
    inputs = torch.where(steps == place[:, None], other, batch.inputs)
    changed = model.predictions(batch.but(inputs=inputs), code[:, None])
    assert changed is not None
    behind = steps >= place[:, None]
    moved = _divergence(told[:, OWN], changed[:, 0]) * behind
    return moved.sum(1) / behind.sum(1)


class _ByPosition:
    """Streamed mean and error of what each place gains."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.sums: list[Tensor] = []  # [2, T]: of values and squares

    def add(self, values: Tensor) -> None:
        """[B, T] of sentences of one length."""
        self.counts.append(len(values))
        self.sums.append(torch.stack([values.sum(0), (values**2).sum(0)]))

    def fetch(self) -> dict[str, list]:
        """Of the places that two sentences reach."""
        longest = max(sums.shape[1] for sums in self.sums)
        total, count = np.zeros((2, longest)), np.zeros(longest)
        for n, sums in zip(self.counts, self.sums, strict=True):
            total[:, : sums.shape[1]] += sums.cpu().numpy()
            count[: sums.shape[1]] += n
        kept = count > 1
        n, (values, squares) = count[kept], total[:, kept]
        mean = values / n
        error = np.sqrt(np.maximum(squares / n - mean**2, 0) / (n - 1))
        return {
            "position": (np.flatnonzero(kept) + 1).tolist(),
            **{"gain": mean.tolist(), "error": error.tolist(), "sentences": n.astype(int).tolist()},
        }


# -- how much -------------------------------------------------------------------------------------


def told_apart(
    model: LatentModel,
    valid: SplitLike,
    test: SplitLike,
    sentences: int,
    candidates: int,
    device: torch.device,
) -> dict[str, Any]:
    """What of I(x; z) the decoder does not read, a code in the whole.

    The random sentences of `test` are cut into blocks of K candidates. information: I(x; z) under
    q by the mixture of a block's posteriors; i_read: InfoNCE by the decoder's own score (van den
    Oord et al. 2018) over the same codes, its temperature fitted on `valid`; unread: the one less
    the other. Both are lower bounds, so the difference may be below 0 by a little; saturated: one
    of them is near ln K, where it says no more. Raises UserError where there are no such densities.
    """
    if model.latent == "sequence":
        raise UserError(model.why_no_log_q)
    fitted, _ = _blocks(model, valid, sentences, candidates, device)
    temperature = fit_temperature(fitted)
    scores, densities = _blocks(model, test, sentences, candidates, device)
    read = info_nce(scores, temperature)
    known = densities[:, 0] - log_mean_exp(densities)
    k = scores.shape[1]
    found = {"information": known, "i_read": read, "unread": known - read}
    return {
        **{name: list(mean_and_error(values)) for name, values in found.items()},
        "candidates": k,
        "saturated": bool(max(known.mean(), read.mean()) > SATURATED * np.log(k)),
    }


def _blocks(
    model: LatentModel, split: SplitLike, sentences: int, candidates: int, device: torch.device
) -> tuple[Array, Array]:
    """[n, K] each, of n sentences in blocks of K: log p(x_n | z_k), and log q(z_n | x_k), one's own
    in front."""
    k = min(candidates, len(split))
    n = min(sentences, len(split)) // k * k
    rows = generator(split.name, "blocks").permutation(len(split))[:n]
    own = np.arange(n)
    block = own[:, None] // k * k + (own[:, None] + np.arange(k)) % k  # [n, K], one's own in front
    order = np.argsort(np.asarray(split.lengths)[rows], kind="stable")
    places = {row: place for place, row in enumerate(rows)}
    drawn = [(same, codes(model, split, same, device)) for _, same in by_length(split, rows[order])]
    here = np.concatenate([[places[row] for row in same] for same, _ in drawn])
    code = torch.cat([z for _, z in drawn])
    code = code[torch.as_tensor(np.argsort(here), device=device)]  # as rows stand
    scores, densities = np.empty((n, k)), np.empty((n, n))
    for length, same in by_length(split, rows[order]):
        for part, batch in batches(split, same, room(device, k * length), device):
            at = np.array([places[row] for row in part])
            z = code[torch.as_tensor(block[at], device=device)]
            scores[at] = model.log_px(batch, z).double().cpu().numpy()
            log_q = model.log_q(code, noisy(batch, split, part))
            if log_q is None:
                raise UserError(model.why_no_log_q)
            densities[:, at] = log_q.double().cpu().numpy()
    return scores, np.take_along_axis(densities, block, 1)
