"""A decoder with a short memory: what it cannot carry along, only the code can tell it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.api import BOS, Batch
from benchmark.models.lstm import LSTMDecoder
from benchmark.models.writing import State, Writing


class ForgetfulDecoder(LSTMDecoder):
    """p(x|z) = prod_t p(x_t | x_{t-m}, ..., x_{t-1}, z): the LSTM reads the last m words anew, from
    its start, for each word that it predicts. m times the cost of one that remembers."""

    memory: int

    def __init__(self, *, memory: int, stepwise: bool = False, **sizes: Any):
        if stepwise:
            raise ValueError("a decoder with a code for each step remembers all; drop model.memory")
        super().__init__(**sizes)
        self.memory = memory

    def states(self, batch: Batch, z: Tensor) -> Tensor:
        t = batch.inputs.shape[1]
        windows = F.pad(batch.inputs, (self.memory - 1, 0), value=BOS).unfold(1, self.memory, 1)
        some = windows.split(max(1, t // self.memory), dim=1)  # as many words as t at once
        return torch.cat([self._last(part, z) for part in some], 1)

    def _last(self, windows: Tensor, z: Tensor) -> Tensor:
        """[B K, T, H], the LSTM's last states on windows [B, T, m] beside codes z [B, K, D]."""
        (b, k, _), t = z.shape, windows.shape[1]
        words = windows.flatten(0, 1)  # [B T, m]
        if self.training:
            words = words.repeat_interleave(k, dim=0)
        codes = z[:, None].expand(b, t, k, -1).flatten(0, 2)
        states, _ = self.step(words, codes, self.start(codes))  # [B T K, m, H]
        return states[:, -1].view(b, t, k, -1).transpose(1, 2).flatten(0, 1)

    def writing(self, z: Tensor) -> Writing:
        read = torch.full((len(z), self.memory), BOS, device=z.device)
        return Writing((read, z), self._next)

    def _next(self, t: int, words: Tensor, state: State) -> tuple[Tensor, State]:
        read, z = state
        read = torch.cat([read[:, 1:], words[:, None]], 1)
        states, _ = self.step(read, z, self.start(z))
        return self.output(states[:, -1]), (read, z)
