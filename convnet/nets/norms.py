"""Response normalisation in other forms than AlexNet's text: within a map, and with alpha divided by the window."""

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from convnet.kernels.plain import wide
from convnet.nets.layers import LRN, response_norm

CAFFE_LRN = LRN(n=5, k=1.0, alpha=1e-4 / 5, beta=0.75)  # of its AlexNet, CaffeNet and GoogLeNet; it divides alpha by n


def response_norm_mean(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """`response_norm` whose alpha multiplies the sum of squares divided by n, as in cuda-convnet, Caffe and torch.

    For odd n it's torch's `F.local_response_norm` with the same constants.
    """
    return response_norm(x, n, k, alpha / n, beta)


def within_map_norm(x: Tensor, size: int = 3, k: float = 1.0, alpha: float = 5e-5 / 9, beta: float = 0.75) -> Tensor:
    """Local response normalisation within each map, of (N, C, H, W); `x`'s dtype; the sums are float32 or better.

    Pixel (i, j) is divided by (k + alpha * sum of the squares in the size x size window of its own map)^beta: the plain
    sum, over the pixels of the window that exist. The window begins size // 2 above and left of the pixel.

    cuda-convnet's settings and Caffe's WITHIN_CHANNEL hold size^2 times this alpha.
    """
    if has_torch_function_unary(x):  # as in `response_norm`
        seen: Tensor = handle_torch_function(within_map_norm, (x,), x, size, k, alpha, beta)
        return seen
    x_wide, before = wide(x), size // 2
    after = size - 1 - before
    means = F.avg_pool2d(F.pad(x_wide.square(), (before, after, before, after)), size, stride=1)
    return (x_wide * (k + alpha * size**2 * means) ** -beta).to(x.dtype)
