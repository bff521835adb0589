"""Whether and where the decoder reads the code: nats a sentence, unless said."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis.sentences import Mean, batches, codes, noisy, pairs, room
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
FLAT = 8  # codes of the prior that a sentence's likelihood may differ by
SATURATED = 0.9  # of ln K, from where a bound on information says no more


def reading(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> tuple[dict[str, Any], dict[str, str]]:
    """The section, and why what is None of it is so.

    shuffled, prior: what log p(x|z) loses with the code of another sentence of the same length,
    and with one of the prior. by_position: the first by the place of the predicted word, over the
    sentences that reach it. sensitivity: KL(p(. | x_<t, z) || p(. | x_<t, z~)) a word, z~ from the
    prior; prefix: the same if one word of the prefix, and not z, is another sentence's, over the
    words behind it. flatness: the variance of log p(x|z), nats^2, over codes of the prior; 0 where
    z cannot be identified (Wang et al. 2021). Each is a mean and its standard error.
    """
    lost, moved, changed, words = Mean(), Mean(), Mean(), Mean()
    drawn, predicts, longer = True, True, False
    for length, same in pairs(split, rows, "partners of the diagnosis"):
        code = codes(model, split, same, device)
        before = code.roll(1, 0)
        ((_, whole),) = batches(split, same, len(same), device)
        others = whole.inputs.roll(1, 0)
        place = generator(split.name, f"prefix {length}").integers(1, max(length, 2), len(same))
        places, start = torch.as_tensor(place, device=device), 0
        found: dict[str, list[Tensor]] = {name: [] for name in ("lost", "moved", "words", "prefix")}
        ((_, one),) = batches(split, same[:1], 1, device)
        for part, batch in batches(split, same, _affordable(model, one, code[:1, None]), device):
            here = slice(start, start := start + len(part))
            under = [code[here], before[here]]
            prior = model.prior_codes(noisy(batch, split, part, "/prior"))
            drawn = prior is not None
            if prior is not None:
                under.append(prior[:, 0])
            z = torch.stack(under, 1)
            told = model.predictions(batch, z)  # [B, K, T, V]
            predicts = told is not None
            if told is None:
                scores = model.log_px(batch, z).double()
            else:
                own = batch.targets[:, None, :, None].expand(*told.shape[:3], 1)
                by_word = told.gather(-1, own)[..., 0].double()  # [B, K, T]
                scores = by_word.sum(-1)
                found["words"].append(by_word[:, OWN] - by_word[:, SHUFFLED])
                if drawn:
                    found["moved"].append(_divergence(told[:, OWN], told[:, PRIOR]).mean(1))
                if length > 1:
                    other = model.predictions(
                        batch.but(inputs=_but_one(batch, places[here], others[here])),
                        code[here, None],
                    )
                    assert other is not None
                    found["prefix"].append(_behind(places[here], told[:, OWN], other[:, 0]))
            found["lost"].append(scores[:, :1] - scores[:, 1:])
        lost.add(torch.cat(found["lost"]))
        for mean, name in ((moved, "moved"), (changed, "prefix"), (words, "words")):
            if found[name]:
                mean.add(torch.cat(found[name]).view(len(same), -1))
        longer = longer or length > 1
    mean, error, n = lost.fetch()
    told_of = [[float(m), float(e)] for m, e in zip(mean, error, strict=True)]
    section: dict[str, Any] = {"shuffled": told_of[0], "sentences": int(n[0])}
    section["prior"] = told_of[1] if drawn else None
    section["flatness"] = _flatness(model, split, rows, device)
    section["by_position"] = _by_position(words) if predicts else None
    for name, streamed in (("sensitivity", moved), ("prefix", changed)):
        section[name] = [float(v[0]) for v in streamed.fetch()[:2]] if streamed.cycles else None
    silent = "the model predicts no words one by one"
    why = dict.fromkeys(("prior", "flatness"), "the prior cannot be drawn from")
    why |= {"by_position": silent, "sensitivity": why["prior"] if predicts else silent}
    why["prefix"] = silent if not predicts or longer else "no sentence has two words"
    return section, {name: reason for name, reason in why.items() if section[name] is None}


def _flatness(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> list[float] | None:
    spread: list[Tensor] = []
    for length, same in by_length(split, rows):
        for part, batch in batches(split, same, room(device, FLAT * length), device):
            prior = model.prior_codes(noisy(batch, split, part, "/flat"), FLAT)
            if prior is None:
                return None
            spread.append(model.log_px(batch, prior).double().var(1))
    return list(mean_and_error(torch.cat(spread).cpu().numpy()))


def _by_position(words: Mean) -> dict[str, list]:
    """Of the places that two sentences reach."""
    mean, error, n = words.fetch()
    kept = np.flatnonzero(n > 1)
    found = {"gain": mean[kept].tolist(), "error": error[kept].tolist()}
    return {"position": (kept + 1).tolist(), **found, "sentences": n[kept].astype(int).tolist()}


def _affordable(model: LatentModel, batch: Batch, z: Tensor) -> int:
    """Sentences as long as this one, a batch of its own, whose predictions under three codes and
    what is made of them fit."""
    told, length = model.predictions(batch, z), batch.targets.shape[1]
    width = 1 if told is None else told.shape[-1]
    return max(1, min(room(z.device, 3 * length), SLAB // (4 * length * width)))


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL between predictions [..., V], in nats a word."""
    return (one.exp() * (one - other)).sum(-1).double()


def _but_one(batch: Batch, place: Tensor, other: Tensor) -> Tensor:
    """[B, T] inputs, of which the one at `place` [B] is that of the inputs `other`."""
    steps = torch.arange(batch.inputs.shape[1], device=place.device)
    return torch.where(steps == place[:, None], other, batch.inputs)


def _behind(place: Tensor, told: Tensor, other: Tensor) -> Tensor:
    """[B], the divergence of predictions [B, T, V] from others, a word from `place` [B] on."""
    steps = torch.arange(told.shape[1], device=place.device)
    behind = steps >= place[:, None]
    return (_divergence(told, other) * behind).sum(1) / behind.sum(1)


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

    The random sentences of `test` are cut into blocks of K candidates, over which the errors are.
    information: I(x; z) under q by the mixture of a block's posteriors; i_read: InfoNCE by the
    decoder's own score (van den Oord et al. 2018) over the same codes, its temperature fitted on
    `valid`; unread: the one less the other. Both are lower bounds, so the difference may be below 0
    by a little; saturated: one of them is near ln K, where it says no more. Raises UserError where
    there are no such densities.
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
    blocks = {name: values.reshape(-1, k).mean(1) for name, values in found.items()}
    return {
        **{name: list(mean_and_error(means)) for name, means in blocks.items()},
        "candidates": k,
        "saturated": bool(max(known.mean(), read.mean()) > SATURATED * np.log(k)),
    }


def _blocks(
    model: LatentModel, split: SplitLike, sentences: int, candidates: int, device: torch.device
) -> tuple[Array, Array]:
    """[n, K] each, of n sentences in blocks of K: log p(x_n | z_k), and log q(z_n | x_k), one's own
    in front."""
    k = min(candidates, sentences, len(split))
    n = min(sentences, len(split)) // k * k
    rows = generator(split.name, "blocks").permutation(len(split))[:n]
    own = np.arange(n)
    block = own[:, None] // k * k + (own[:, None] + np.arange(k)) % k  # [n, K], one's own in front
    places = {row: place for place, row in enumerate(rows)}
    drawn = [(same, codes(model, split, same, device)) for _, same in by_length(split, rows)]
    here = np.concatenate([[places[row] for row in same] for same, _ in drawn])
    code = torch.cat([z for _, z in drawn])
    code = code[torch.as_tensor(np.argsort(here), device=device)]  # as rows stand
    scores, densities = np.empty((n, k)), np.empty((n, n))
    for length, same in by_length(split, rows):
        for part, batch in batches(split, same, room(device, k * length), device):
            at = np.array([places[row] for row in part])
            z = code[torch.as_tensor(block[at], device=device)]
            scores[at] = model.log_px(batch, z).double().cpu().numpy()
            log_q = model.log_q(code, noisy(batch, split, part))
            if log_q is None:
                raise UserError(model.why_no_log_q)
            densities[:, at] = log_q.double().cpu().numpy()
    return scores, np.take_along_axis(densities, block, 1)
