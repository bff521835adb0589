"""The LSTM of encoders and decoders: one module, and two ways to compute the same recurrence.

Usually it is `nn.LSTM`, hence cuDNN or oneDNN. On a CPU a scan of our own takes over where that is
slow or wrong. Slow: a sentence that is scored under many codes, whose words' part of the gates all
of them share. Wrong: training in bf16, where on processors with AMX oneDNN's backward pass is off
by 110 % in the inputs' gradient from 1024 hidden units on.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """One layer with `nn.LSTM`'s parameters, that may be fed a code beside its inputs."""

    def __init__(self, inputs: int, hidden: int, codes: int = 0):
        super().__init__(inputs + codes, hidden, batch_first=True)
        self.columns = [inputs, codes]  # of weight_ih

    def forward(  # type: ignore[override]
        self, inputs: Tensor, state: State | None = None, codes: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """States [N, T, H] and the last (h, c), [1, N, H] each.

        inputs: [B, T, E], each read under N / B codes, one after another; codes: [N, D] for all
        steps or [N, T, D]; state: the (h, c) to start from, zeros if not given.
        """
        copies = 1 if codes is None else len(codes) // len(inputs)
        narrow = torch.is_autocast_enabled(inputs.device.type)
        shared = copies > 1 and inputs.dtype == torch.float32
        if inputs.device.type == "cpu" and (narrow or shared):
            return self._scan(inputs, state, codes, copies)
        inputs = inputs.repeat_interleave(copies, dim=0) if copies > 1 else inputs
        if codes is not None:
            if codes.dim() == 2:
                codes = codes[:, None].expand(-1, inputs.shape[1], -1)
            inputs = torch.cat([inputs, codes.to(inputs.dtype)], dim=-1)
        return super().forward(inputs, state)

    def _scan(
        self, inputs: Tensor, state: State | None, codes: Tensor | None, copies: int
    ) -> tuple[Tensor, State]:
        input_weight, weight, input_bias, bias = self.parameters()
        of_inputs, of_codes = input_weight.split(self.columns, dim=1)
        bias = input_bias + bias
        steps = F.linear(inputs.transpose(0, 1), of_inputs, bias)  # [T, B, 4H]
        constant = None
        if codes is not None and codes.dim() == 2:
            constant = F.linear(codes, of_codes)  # [N, 4H]
        elif codes is not None:
            stepwise = F.linear(codes.transpose(0, 1), of_codes)
            steps = stepwise + steps.repeat_interleave(copies, dim=1)  # [T, N, 4H]
        if state is None:
            zeros = inputs.new_zeros(1, copies * len(inputs), self.hidden_size)
            state = (zeros, zeros)
        h, c = (part[0].float() for part in state)
        weight = weight.to(steps.dtype)
        if torch.is_grad_enabled():
            states, last = Scan.apply(steps, constant, weight, h, c)
        else:
            states, last, _, _ = scan(steps, constant, weight, h, c, keep=False)
        return states.transpose(0, 1), (states[None, -1], last[None])


def scan(
    steps: Tensor, constant: Tensor | None, weight: Tensor, h: Tensor, c: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States [T, N, H], last cells [N, H], and activated gates [T, N, 4H] and cells [T, N, H], of
    all steps if they are kept, else of the last.

    steps: [T, B, 4H], the part of the gates that a sentence's N / B codes share; constant: [N, 4H],
    the part that all steps share; weight: [4H, H]; h, c: [N, H] float32. Matrix products are in the
    dtype of `steps`, all else in float32.
    """
    across = weight.t().contiguous()
    states = h.new_empty(len(steps), *h.shape)
    gates = h.new_empty(len(steps) if keep else 1, len(h), len(weight))
    cells = h.new_empty(len(steps) if keep else 1, *h.shape)
    narrow = None if steps.dtype == h.dtype else torch.empty_like(gates[0], dtype=steps.dtype)
    for t, step in enumerate(steps):
        gate, cell = (kept[t if keep else 0] for kept in (gates, cells))
        out = gate if narrow is None else narrow
        if constant is None:
            torch.mm(h.to(steps.dtype), across, out=out)
        else:
            torch.addmm(constant, h.to(steps.dtype), across, out=out)
        gate.copy_(out).view(steps.shape[1], -1, len(weight)).add_(step[:, None])
        i, f, g, o = gate.chunk(4, dim=1)
        for part in (i, f, o):
            part.sigmoid_()
        g.tanh_()
        c = torch.mul(f, c, out=cell).addcmul_(i, g)
        h = torch.tanh(c, out=states[t]).mul_(o)
    return states, c, gates, cells


def once() -> None:
    """Raises RuntimeError in a backward pass that is to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError("this recurrence can be differentiated once only")


class Scan(torch.autograd.Function):
    """`scan` with its gradient: (states, last cells)."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, constant: Tensor | None, weight: Tensor, h, c):
        states, last, gates, cells = scan(steps, constant, weight, h, c, keep=True)
        ctx.save_for_backward(weight, h, c, states, gates, cells)
        ctx.sentences, ctx.constant = steps.shape[1], constant is not None
        return states, last.clone()

    @staticmethod
    def backward(ctx: Any, d_states: Tensor, d_last: Tensor):
        once()
        weight, h, c, states, gates, cells = ctx.saved_tensors
        d_gates, d_h, d_c = torch.empty_like(gates), torch.zeros_like(h), d_last.clone()
        for t in reversed(range(len(states))):
            i, f, g, o = gates[t].chunk(4, dim=1)
            d_i, d_f, d_g, d_o = d_gates[t].chunk(4, dim=1)
            d_h, tanh = d_h + d_states[t], cells[t].tanh()
            torch.mul(d_h, tanh, out=d_o).mul_(o * (1 - o))
            d_c.addcmul_(d_h * o, 1 - tanh * tanh)
            torch.mul(d_c, g, out=d_i).mul_(i * (1 - i))
            torch.mul(d_c, cells[t - 1] if t else c, out=d_f).mul_(f * (1 - f))
            torch.mul(d_c, i, out=d_g).mul_(1 - g * g)
            d_c.mul_(f)
            d_h = (d_gates[t].to(weight.dtype) @ weight).float()
        before = torch.cat([h[None], states[:-1]]).flatten(0, 1).to(weight.dtype)
        d_weight = d_gates.flatten(0, 1).to(weight.dtype).t() @ before
        d_constant = d_gates.sum(0) if ctx.constant else None
        d_steps = d_gates.unflatten(1, (ctx.sentences, -1)).sum(2)
        return d_steps, d_constant, d_weight, d_h, d_c
