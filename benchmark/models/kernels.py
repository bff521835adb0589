"""How far two distributions are apart, told by samples of both."""

from collections.abc import Callable

from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of inverse multiquadrics (Tolstikhin et al. 2018)

Kernel = Callable[[Tensor, int], Tensor]
"""The similarity of points whose squared distances in so many dimensions are given."""


def gaussian_kernel(squares: Tensor, dimensions: int) -> Tensor:
    """exp(-squares / D)."""
    return (-squares / dimensions).exp()


def inverse_multiquadrics(squares: Tensor, dimensions: int) -> Tensor:
    """sum_s C_s / (C_s + squares) over the `SCALES` s, C_s = 2 D s."""
    widths = [2 * dimensions * scale for scale in SCALES]
    return sum((width / (width + squares) for width in widths), squares.new_zeros(()))


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """[...], MMD^2 of what x [..., N, D] and y [..., M, D] were drawn from: the unbiased estimate,
    which may be negative (Gretton et al., JMLR 2012, eq. 3)."""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return kernel((a[..., :, None, :] - b[..., None, :, :]).square().sum(-1), a.shape[-1])

    def within(a: Tensor) -> Tensor:
        n, pairs = a.shape[-2], similarity(a, a)
        assert n > 1, "one point has no other to be compared with"
        itself = pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
        return (pairs.sum((-2, -1)) - itself) / (n * (n - 1))

    return within(x) + within(y) - 2 * similarity(x, y).mean((-2, -1))
