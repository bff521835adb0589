"""A stochastic LSTM (Goyal et al., NeurIPS 2017; an SRNN with a backward encoder): a code for each
predicted token, with a learned prior and a posterior that follow the sentence's own history."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.api import Batch, Draw, LatentModel
from benchmark.models.gaussian import gaussian_log_density, kl_to_standard
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.lstm import LSTMDecoder
from benchmark.models.recurrent import LSTM, once
from benchmark.models.writing import State, Writing


class Gaussian(nn.Sequential):
    """Mean and log variance from features, through one hidden layer: leaky ReLU of slope 1/3,
    clipped to [-3, 3], and outputs clamped to [-8, 8], as released."""

    def __init__(self, inputs: int, hidden: int, units: int):
        super().__init__(nn.Linear(inputs, hidden), nn.Linear(hidden, 2 * units))

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        return self.moments(self[0](torch.cat(features, -1)))

    def moments(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The rest, from what the first layer makes of the features."""
        hidden = F.leaky_relu(inner, 1 / 3).clamp(-3, 3)
        mean, log_variance = self[1](hidden).float().clamp(-8, 8).chunk(2, -1)
        return mean, log_variance


class Recurrent:
    """`weight h_{t-1} + given_t`, step by step from the first, for K states of each sentence. The
    weight's gradient is one product over all steps, not a sum of as many as there are steps.

    weight: [G, H]; given: [T, B, G], what does not depend on the states and is the same for all K.
    """

    def __init__(self, weight: Tensor, given: Tensor, k: int):
        self.states: list[Tensor] = []
        given = given[:, :, None].expand(-1, -1, k, -1)
        self.given = _Deferred.apply(weight, given, self.states).unbind()
        self.weight = weight.detach().to(given.dtype)

    def __call__(self, h: Tensor, t: int) -> Tensor:
        """[B, K, G] from h_{t-1} [B, K, H]."""
        if torch.is_grad_enabled():
            self.states.append(h.detach())
        return _Once.apply(h, self.weight) + self.given[t]


class _Once(torch.autograd.Function):
    """A product whose weight gets its gradient elsewhere."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(h, weight)

    @staticmethod
    def backward(ctx: Any, d_product: Tensor):
        once()
        (weight,) = ctx.saved_tensors
        return d_product @ weight, None


class _Deferred(torch.autograd.Function):
    """`given` itself, whose gradient and the states tell the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, given: Tensor, states: list[Tensor]) -> Tensor:
        ctx.states = states
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, d_given: Tensor):
        once()
        states = torch.stack(ctx.states).type_as(d_given)
        return d_given.flatten(0, -2).t() @ states.flatten(0, -2), d_given, None


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """h_t and c_t from the sums that enter the gates, in PyTorch's order, and c_{t-1}."""
    i, f, g, o = gates.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def reset(module: nn.Module) -> None:
    """PyTorch's own initialisation, U(+-1/sqrt(fan)), but orthogonal recurrent weights."""
    for part in module.modules():
        if hasattr(part, "reset_parameters") and part is not module:
            part.reset_parameters()  # type: ignore[operator]
        for name, weight in part.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                for gate in weight.data.chunk(4):
                    nn.init.orthogonal_(gate)


class Inference(nn.Module):
    """q(z_t | h_{t-1}, b_t), b_t the state of an LSTM that has read the sentence from its own end
    back to the target of step t; and that LSTM's language model."""

    def __init__(self, vocab_size: int, embedding: int, hidden: int, mlp: int, units: int):
        super().__init__()
        self.lstm = LSTM(embedding, hidden)
        self.posterior = Gaussian(2 * hidden, mlp, units)
        self.output = nn.Linear(hidden, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset(self)

    def backward_states(self, words: Tensor, lengths: Tensor) -> Tensor:
        """b [B, T, H] from the embedded targets [B, T, E] of so many steps."""
        places = torch.arange(words.shape[1], device=words.device)
        turned = ((lengths[:, None] - 1 - places) % words.shape[1])[..., None]  # its own inverse
        states, _ = self.lstm(words.gather(1, turned.expand_as(words)))
        return states.gather(1, turned.expand_as(states))


class Generator(nn.Module):
    """p(z_t | h_{t-1}), h_t = LSTM([W z_t, e(x_t)], h_{t-1}) and p(x_{t+1} | h_t); and the
    auxiliary p(b_t | z_t), or p(b_t | z_t, h_{t-1})."""

    def __init__(self, like: LSTMDecoder, mlp: int, units: int, sees_history: bool):
        super().__init__()
        if like.memory is not None:
            raise ValueError("a stochastic LSTM remembers all; drop model.memory")
        hidden, embedding = like.lstm.hidden_size, like.embed.embedding_dim
        self.hidden, self.sees_history, self.init_embedding = hidden, sees_history, like.init[1]
        self.embed, self.dropout = like.embed, like.dropout
        self.code = nn.Linear(units, embedding)
        self.cell = nn.LSTMCell(2 * embedding, hidden)
        self.prior = Gaussian(hidden, mlp, units)
        self.auxiliary = Gaussian(units + hidden * sees_history, mlp, hidden)
        self.output = nn.Linear(hidden, like.embed.num_embeddings, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset(self)
        nn.init.uniform_(self.embed.weight, -self.init_embedding, self.init_embedding)


class StochasticLSTM(LatentModel):
    """p(x, z) = prod_t p(z_t | h_{t-1}) p(x_{t+1} | h_t), q(z|x) = prod_t q(z_t | h_{t-1}, b_t).

    In training a draw's `aux` holds, in nats a sentence: auxiliary, -log p(b_t | z_t) with b_t held
    fixed; backward, the backward LSTM's language model.
    """

    latent = "sequence"
    why_no_log_q = "the posterior of a step depends on the sentence's own history"

    def __init__(self, inference: Inference, generator: Generator, units: int):
        super().__init__()
        self.inference, self.generator, self.units = inference, generator, units

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.inference, "decoder": self.generator}

    def unroll(self, inputs: Tensor, k: int, code: Callable[[Tensor, int], Tensor]):
        """Run the recurrence over inputs [B, T], K times for each sentence, with the codes
        [B, K, U] that `code(h_{t-1}, t)` says. Returns z [B, K, T, U], states before and after
        each step, [B, K, T, H]."""
        g, cell = self.generator, self.generator.cell
        of_code, of_word = cell.weight_ih.split(g.code.out_features, 1)
        bias = cell.bias_ih + cell.bias_hh + of_code @ g.code.bias
        of_code = of_code @ g.code.weight  # two maps in a row are one
        words = g.dropout(g.embed(inputs.t()))
        gates = Recurrent(cell.weight_hh, F.linear(words, of_word, bias), k)
        h = c = words.new_zeros(len(inputs), k, g.hidden)
        codes, states = [], [h]
        for t in range(inputs.shape[1]):
            codes.append(code(h, t))
            h, c = lstm_cell(gates(h, t) + F.linear(codes[-1], of_code), c)
            states.append(h)
        return torch.stack(codes, 2), torch.stack(states[:-1], 2), torch.stack(states[1:], 2)

    def read(self, batch: Batch) -> Tensor:
        """b [B, T, H] of the sentences in `source`."""
        g = self.generator
        words = g.dropout(g.embed(batch.source[:, 1:]))
        return self.inference.backward_states(words, batch.source_lengths - 1)

    def encode(self, batch: Batch) -> tuple[Tensor]:
        """b, see `read`."""
        return (self.read(batch),)

    def infer(self, batch: Batch, k: int):
        """Ancestral samples of the posterior, K a sentence: what `unroll` returns, b, and the
        moments of q and p, [B, K, T, U] each."""
        (b,), q = self.encoded(batch), self.inference.posterior
        weight, bias = q[0].parameters()
        of_h, of_b = weight.split(b.shape[-1], 1)
        inner = Recurrent(of_h, F.linear(b.transpose(0, 1), of_b, bias), k)
        noise = batch.normal(k, b.shape[1], self.units).unbind(2)
        moments: list[tuple[Tensor, Tensor]] = []

        def code(h: Tensor, t: int) -> Tensor:
            moments.append(q.moments(inner(h, t)))
            mean, log_variance = moments[-1]
            return mean + (0.5 * log_variance).exp() * noise[t]

        z, before, after = self.unroll(batch.inputs, k, code)
        means, log_variances = (torch.stack(values, 2) for values in zip(*moments, strict=True))
        return z, before, after, b, (means, log_variances), self.generator.prior(before)

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        z, before, after, b, q, p = self.infer(batch, k)

        def over_steps(value: Tensor) -> Tensor:  # [B, K, T, ...] -> [B, K, ...], real steps only
            return (value * batch.mask.view(len(batch), 1, -1, *[1] * (value.dim() - 3))).sum(2)

        aux = {}
        if self.training:
            mean, log_variance = self.generator.auxiliary(
                *((before, z) if self.generator.sees_history else (z,))
            )
            target = b.detach()[:, None]  # no gradient into the reader
            forced = -gaussian_log_density(target, mean.tanh(), log_variance)
            aux["auxiliary"] = over_steps(forced).mean(1)
            x = batch.source[:, :-1]
            told = token_log_likelihood(b.flatten(0, 1), self.inference.output.weight, x.flatten())
            aux["backward"] = -(told.view_as(x) * batch.mask).sum(1)
        return Draw(
            z=z,
            log_px=self.score(batch, after),
            log_pz=over_steps(gaussian_log_density(z, *p)),
            log_qz=over_steps(gaussian_log_density(z, *q)),
            kl=over_steps(kl_to_standard(*whitened(q, p))).mean(1),
            aux=aux,
        )

    def score(self, batch: Batch, states: Tensor) -> Tensor:
        """[B, K], log p(x|z) from the states [B, K, T, H] after each step."""
        targets = batch.targets[:, None].expand(states.shape[:-1])
        states = self.generator.dropout(states)
        scores = token_log_likelihood(
            states.flatten(0, 2), self.generator.output.weight, targets.flatten()
        ).view_as(targets)
        return (scores * batch.mask[:, None]).sum(-1)

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor:
        noise = batch.normal(k, batch.inputs.shape[1], self.units).unbind(2)

        def code(h: Tensor, t: int) -> Tensor:
            mean, log_variance = self.generator.prior(h)
            return mean + (0.5 * log_variance).exp() * noise[t]

        return self.unroll(batch.inputs, k, code)[0]

    def states(self, batch: Batch, z: Tensor | None) -> Tensor:
        """[B, K, T, H] after each step, under codes handed in."""
        assert z is not None
        codes = z.unbind(2)
        return self.unroll(batch.inputs, z.shape[1], lambda h, t: codes[t])[2]

    def log_px(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.score(batch, self.states(batch, z))

    def predictions(self, batch: Batch, z: Tensor | None) -> Tensor:
        states = self.generator.dropout(self.states(batch, z))
        return self.generator.output(states).float().log_softmax(-1)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Whitened by the prior, given one sampled history."""
        _, _, _, _, q, p = self.infer(batch, 1)
        mean, log_variance = (value[:, 0] for value in whitened(q, p))
        return mean, log_variance.exp(), batch.mask

    def writing(self, n: int, code: Callable[..., Tensor], *given: Tensor) -> Writing:
        """n sentences about to be written, each step's code being `code(h_{t-1}, t, *given)`, of
        what is given of each sentence, [n, ...]."""
        g = self.generator
        zero = g.output.weight.new_zeros(n, g.hidden)

        def step(t: int, words: Tensor, state: State) -> tuple[Tensor, State]:
            h, c, *given = state
            h, c = g.cell(torch.cat([g.code(code(h, t, *given)), g.embed(words)], -1), (h, c))
            return g.output(h), (h, c, *given)

        return Writing((zero, zero, *given), step)

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        """From the prior's path alone: the backward LSTM is not needed."""

        def code(h: Tensor, t: int) -> Tensor:
            mean, log_variance = self.generator.prior(h)
            return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)

        return self.writing(n, code).draw(max_length, temperature)

    def reconstruct(self, batch: Batch, *, max_length: int) -> Tensor:
        return self.rewriting(batch, max_length).draw(max_length, 0.0)

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        """By posterior means given what was written so far; behind the sentence by the prior's."""

        def code(h: Tensor, t: int, b: Tensor, mask: Tensor) -> Tensor:
            prior = self.generator.prior(h)[0]
            if t >= b.shape[1]:
                return prior
            return torch.where(mask[:, t, None], self.inference.posterior(h, b[:, t])[0], prior)

        return self.writing(len(batch), code, self.read(batch), batch.mask)

    def decode(self, z: Tensor, *, max_length: int, temperature: float = 0.0) -> Tensor:
        steps = min(max_length, z.shape[1])
        return self.writing(len(z), lambda h, t, z: z[:, t], z).draw(steps, temperature)


def whitened(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log variance of q where p is the standard normal."""
    return (q[0] - p[0]) * (-0.5 * p[1]).exp(), q[1] - p[1]
