"""Codes without densities, the game for a generator of them, and the stages of neural outlines."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import check, generate
from benchmark.api import BOS, EOS, Batch, Phases
from benchmark.compose import find_method
from benchmark.models import (
    Frozen,
    GaussianCodes,
    ImplicitAutoencoder,
    LSTMDecoder,
    critic_loss,
    gradient_penalty,
    perceptron,
)
from benchmark.trial import Subject, subject, trail
from methods.neural_outlines import Gaussian, NeuralOutlines
from tests.cells import found as found_run
from tests.cells import run
from tests.outlines import bag
from tests.test_generate import FEW
from tests.test_methods import TASK


def batch_of(words: list[int]) -> Batch:
    """Sentences of one word."""
    end = torch.full((len(words),), EOS)
    targets = torch.stack([torch.tensor(words), end], 1)
    inputs = torch.stack([torch.full_like(end, BOS), torch.tensor(words)], 1)
    two = torch.full_like(end, 2)
    return Batch(targets, inputs, torch.cat([inputs, end[:, None]], 1), two, two + 1)


class Table(nn.Module):
    """A code for each first word."""

    def __init__(self, codes: Tensor):
        super().__init__()
        self.codes = nn.Embedding.from_pretrained(codes, freeze=False)

    def forward(self, batch: Batch) -> Tensor:
        return self.codes(batch.source[:, 1] - 4)


def model_of(codes: Tensor, generator: nn.Module, critic: nn.Module | None = None):
    """Noise of deviation 0.5."""
    width = codes.shape[1]
    decoder = LSTMDecoder(vocab_size=9, embedding=3, hidden=4, latent=width, dropout=0.0, init=0.5)
    return ImplicitAutoencoder(Table(codes), decoder, generator, critic, noise=0.5)


# -- the model ------------------------------------------------------------------------------------


def test_a_code_is_the_encoders_at_the_scale_of_one_and_carries_noise_in_training_alone():
    torch.manual_seed(0)
    codes = 30 * torch.randn(5, 8)
    model, batch = model_of(codes, nn.Identity()), batch_of([4, 6])
    expected = codes[[0, 2]] / codes[[0, 2]].square().mean(1, keepdim=True).sqrt()
    still = model.eval().draw(batch, 3)
    torch.testing.assert_close(still.z, expected[:, None].expand(-1, 3, -1))
    off = model.train().draw(batch, 4000).z - expected[:, None]
    assert off.mean(1).abs().max() < 0.05
    torch.testing.assert_close(off.std(1), torch.full((2, 8), 0.5), rtol=0.1, atol=0)
    covariance = torch.cov(off.flatten(0, 1).T)
    assert (covariance - 0.25 * torch.eye(8)).abs().max() < 0.03
    assert still.log_pz.isnan().all() and still.log_qz.isnan().all() and still.kl.isnan().all()


def test_sentences_are_written_from_what_the_generator_makes_of_noise():
    class Turn(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return 3 * u.flip(-1)

    torch.manual_seed(0)
    model = model_of(torch.randn(5, 4), Turn()).eval()
    torch.manual_seed(1)
    written = model.sample(6, max_length=5, temperature=0.0)
    torch.manual_seed(1)
    u = torch.randn(6, 4)
    assert torch.equal(written, model.decode(3 * u.flip(-1), max_length=5))
    torch.manual_seed(1)
    batch = batch_of([4] * 6)
    torch.testing.assert_close(model.prior_codes(batch)[:, 0], 3 * u.flip(-1))


def test_gaussian_codes_have_the_moments_of_what_they_were_shown():
    torch.manual_seed(0)
    generator, codes = GaussianCodes(3), torch.randn(500, 3) * torch.tensor([1.0, 0.1, 5]) + 2
    u = torch.randn(4000, 3)
    torch.testing.assert_close(generator(u), u)
    for part in codes.split(70):
        generator.show(part)
    torch.testing.assert_close(generator(u), codes.mean(0) + codes.std(0, correction=0) * u)
    assert not [*generator.parameters()]


# -- the game -------------------------------------------------------------------------------------


def test_the_gradient_penalty_of_a_linear_critic_is_that_of_its_slope():
    torch.manual_seed(0)
    w = torch.randn(7, dtype=torch.float64, requires_grad=True)
    real, made = torch.randn(2, 50, 7, dtype=torch.float64)
    found = gradient_penalty(lambda z: z @ w[:, None], real, made)
    norm = w.norm()
    assert float(found.detach()) == pytest.approx(float(((norm - 1) ** 2).detach()), rel=1e-12)
    (slope,) = torch.autograd.grad(found, w)  # which is what the critic learns from
    torch.testing.assert_close(slope, (2 * (norm - 1) * w / norm).detach())


def test_the_gradient_is_taken_between_real_and_made_codes():
    torch.manual_seed(0)
    real, made, seen = torch.randn(200, 3), torch.randn(200, 3), []

    def critic(z: Tensor) -> Tensor:
        seen.append(z)
        return z.square().sum(1, keepdim=True) / 2  # its gradient is z

    found = gradient_penalty(critic, real, made)
    (z,) = seen
    share = ((z - real) / (made - real)).detach()
    torch.testing.assert_close(share, share[:, :1].expand(-1, 3), rtol=1e-2, atol=1e-2)
    assert share.min() >= 0 and share.max() <= 1
    assert float(share[:, 0].std()) == pytest.approx(math.sqrt(1 / 12), rel=0.15)
    by_hand = (z.detach().norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(found.detach(), by_hand)


def test_the_critics_loss_by_hand():
    real, made = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[0.0, 5.0], [2.0, 1.0]])
    w = torch.tensor([[3.0], [4.0]])
    loss, apart = critic_loss(lambda z: z @ w, real, made, penalty=10.0)
    # f(real) = 3, 17; f(made) = 20, 10; |w| = 5
    assert float(apart) == 15 - 10
    assert float(loss) == pytest.approx(15 - 10 + 10 * (5 - 1) ** 2)


class Playground:
    """A run whose sentences are of one word, and which knows no more than a game needs."""

    def __init__(self, model: ImplicitAutoencoder):
        self.model = model
        self.optimisers = {
            name: torch.optim.Adam(part.parameters(), 1e-3)  # as the budget's
            for name, part in model.parts().items()
        }

    def next(self) -> Batch:
        return batch_of([4] * 64)

    another = next

    def descend(self, loss: Tensor, *parts: str, clip: str = "all") -> None:
        assert clip == "moved"
        self.model.zero_grad()
        loss.backward()
        for name in parts:
            torch.nn.utils.clip_grad_norm_(self.model.parts()[name].parameters(), 5.0)
            self.optimisers[name].step()


def test_the_game_leads_the_generator_to_where_codes_are():
    torch.manual_seed(0)
    place, generator = torch.ones(1, 8), perceptron(8, 32, 8)

    def off() -> float:
        with torch.no_grad():
            return float((generator(torch.randn(1000, 8)).mean(0) - place).norm())

    assert off() > 2
    critic = perceptron(8, 32, 1, bias=False)
    playground = Playground(model_of(place, generator, critic))
    for _ in range(80):
        NeuralOutlines().play(playground)  # type: ignore[arg-type]
    assert off() < 0.7


# -- the method -----------------------------------------------------------------------------------


def made(*words: str):
    (config,) = check.configure(words)
    return subject(config)


def walked(s: Subject) -> tuple[list, list[list[tuple]]]:
    """A tiny training's trail, and of each of its steps what it moved and what had a gradient."""
    trainer = s.trainer()
    descend, seen = trainer.descend, []

    def watched(loss: Tensor, *parts: str, clip: str = "all") -> None:
        descend(loss, *parts, clip=clip)
        graded = {
            name
            for name, part in trainer.parts.items()
            if any(p.grad is not None for p in part.parameters())
        }
        seen[-1].append((parts, graded))

    trainer.descend = watched  # type: ignore[method-assign]
    moments = []
    for moment in trail(trainer):
        moments.append(moment)
        seen.append([])
    return moments, seen[:-1]


def weights(moment: dict, part: str) -> dict:
    return {name: bits for name, bits in moment.items() if name.startswith(f"model.{part}.")}


def test_the_encoder_learns_in_the_first_stage_alone_and_the_game_touches_neither():
    with made("method=neural_outlines") as s:
        moments, steps = walked(s)
        step = s.trainer().step
    assert isinstance(step, Phases)
    first, second, last = step.ends
    both = {"encoder", "decoder"}
    assert all(graded == both for seen in steps[:first] for _, graded in seen)
    assert steps[first:second] == [[(("decoder",), {"decoder"})]] * (second - first)
    critics, one = [(("critic",), {"critic"})] * 5, (("generator",), {"generator", "critic"})
    assert steps[second:] == [[*critics, one]] * (last - second)
    assert weights(moments[first - 1], "encoder") != weights(moments[0], "encoder")
    assert weights(moments[first + 1], "encoder") == weights(moments[-1], "encoder")
    assert weights(moments[second + 1], "decoder") == weights(moments[-1], "decoder")
    assert weights(moments[second], "generator") == weights(moments[0], "generator")
    assert weights(moments[second + 1], "generator") != weights(moments[0], "generator")
    assert [phase.reset for phase in step.phases] == [(), ("decoder",), ()]
    assert [phase.select for phase in step.phases] == ["rec", "rec", "last"]


def test_without_the_game_encoder_and_decoder_are_the_same_to_the_bit_and_codes_are_not():
    ends, codes = [], []
    for name in ("neural_outlines", "gaussian_outlines"):
        with made(f"method={name}") as s:
            trainer, moments = s.trained
            ends.append({part: weights(moments[-1], part) for part in ("encoder", "decoder")})
            codes.append(trainer.model.prior_codes(s.batch(), 2))
            shown = trainer.model.eval().encode(s.corpus.train.batch(range(48)))[0]
    assert ends[0] == ends[1] and all(ends[0].values())
    assert not torch.allclose(*codes, atol=0.1)
    # trained in fewer sentences than there are, but they are of the same few tables
    fitted = trainer.model.generator(torch.zeros(8))
    torch.testing.assert_close(fitted, shown.mean(0), rtol=0.3, atol=0.3)


def test_an_encoder_from_elsewhere_stays_as_it_is():
    method = NeuralOutlines(encoder="tests.outlines:bag", pretraining=None)
    recipe = method.recipe(TASK)
    assert isinstance(recipe.step, Phases) and len(recipe.step.phases) == 2
    assert recipe.step.ends == [80, 100]
    model = recipe.model
    assert isinstance(model, ImplicitAutoencoder) and model.units == 5
    model.train()
    assert not any(module.training for module in model.encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    batch = batch_of([4, 5])
    assert torch.equal(*(model.encode(batch)[0] for _ in range(2)))  # without its dropout
    assert Frozen(bag(TASK)).width == 5


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"encoder": "tests.outlines:bog", "pretraining": None}, "'tests.outlines:bog' is not"),
        ({"encoder": "tests.nowhere:bag", "pretraining": None}, "'tests.nowhere:bag' is not"),
        ({"encoder": "bag", "pretraining": None}, "'bag' is not package.module:factory"),
        ({"encoder": ":bag", "pretraining": None}, "':bag' is not package.module:factory"),
        ({"encoder": "tests.outlines:flat", "pretraining": None}, r"\[B, E\] of a batch"),
        ({"encoder": "tests.outlines:bag"}, "method.pretraining, the other to null"),
        ({"pretraining": None}, "method.encoder and method.pretraining"),
        ({"pretraining": 0.8}, "leave a stage no step"),
        ({"noise": -1.0}, "method.noise"),
        ({"updates": 0}, "method.updates is at least 1"),
        ({"penalty": None}, "set method.hidden, method.penalty and method.updates"),
        ({"gaussian": Gaussian.fitted}, "method.gaussian and all of those to null"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(fields, told):
    with pytest.raises(ValueError, match=told):
        find_method("neural_outlines")(**fields).recipe(TASK)


def test_a_whole_cell_tells_what_it_can_and_why_not_the_rest(tmp_path: Path):
    assert run(tmp_path / "cell", "method=neural_outlines", "budget.steps=10") == 0
    path, record = found_run(tmp_path / "cell")
    test = record["summary"]["test"]
    assert all(np.isfinite(test[name]) for name in ("rec", "z_gain", "i_read"))
    for name in ("nll", "neg_elbo", "kl", "mi", "ppl", "nll_gap"):
        assert test[name] is None and "density" in record["notes"][f"test/{name}"]
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "interpolation" for line in lines) == 7
    assert generate.main([str(path), *FEW]) == 0
    written = json.loads((path / "generation.json").read_text())
    assert written["latent"] == "implicit" and written["reverse"]["perplexity"] > 1
    assert written["prior"]["sampling"]["perplexity_se"] > 0
    assert written["reconstruction"]["beam"] and written["interpolation"]["steps"] == 7
