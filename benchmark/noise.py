"""Standard normal numbers that are a function of (split, sentence, sample) and of nothing else.

Two models evaluated on one sentence meet the same noise, whatever the batch they meet it in, so
their differences are paired. A counter-based generator does it on any device: the counter's bits
are mixed as in SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) and turned into normals by
Box and Muller (1958).
"""

import math
from dataclasses import dataclass, replace
from zlib import crc32

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern `value` as the signed integer that torch's int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 `x` (wraps around, as it should)."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _uniform(counter: Tensor) -> Tensor:
    """Uniform in (0, 1), float64, from the 53 highest of the mixed bits."""
    return (_shift_right(mix(counter), 11).double() + 0.5) * 2.0**-53


@dataclass
class Noise:
    """The noise of one batch of evaluated sentences.

    sentence: [B] int64, each sentence's place in its split; first: number of the first sample, so
    that samples 0..K-1 may be drawn in slices. Each call is a stream of its own.
    """

    split: str
    sentence: Tensor
    first: int = 0
    calls: int = 0

    def apart(self, purpose: str) -> "Noise":
        """Noise for the same sentences that is independent of this, and of its sample numbers."""
        return replace(self, split=f"{self.split}/{purpose}", first=0, calls=0)

    def normal(self, k: int, *shape: int) -> Tensor:
        """[B, k, *shape] float32 on the device of `sentence`."""
        device = self.sentence.device
        # Stays on the CPU: a kernel takes a number as it is, but would wait for it to be copied.
        stream = mix(torch.tensor((crc32(self.split.encode()) << 16) + self.calls))
        self.calls += 1
        sentence = mix(self.sentence * GOLDEN + stream)  # [B]
        sample = torch.arange(self.first, self.first + k, device=device)
        key = mix(sentence[:, None] + (sample[None, :] + 1) * GOLDEN)  # [B, k]
        size = math.prod(shape)
        pairs = (size + 1) // 2
        counter = key[..., None] + (torch.arange(2 * pairs, device=device) + 1) * GOLDEN
        first, second = _uniform(counter).chunk(2, dim=-1)
        radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :size]
        return normal.float().view(len(self.sentence), k, *shape)
