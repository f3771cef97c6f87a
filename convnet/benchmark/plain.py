"""A net as one would write it with torch's own layers: the form that every rate is held against.

AlexNet is written out. The other nets are their own classes with torch's pieces in the place of ours: grouped
convolutions for columns, `F.local_response_norm`, torch's dropout, none of the kernels; and the same weights.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convnet.kernels import local
from convnet.kernels.ops import locally_connected
from convnet.kernels.plain import plain_response_norm
from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net, response_norm


def plain_alexnet(num_classes: int = 1000) -> nn.Module:
    """The paper's net as one would write it: pictures (N, 3, 224, 224) to logits."""
    return nn.Sequential(
        *(nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(3, 96, 11, 4), nn.ReLU(), _paper_norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), _paper_norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten()),
        *(nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
        nn.Linear(4096, num_classes),
    )


def _paper_norm() -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides alpha by 5


def grouped(net: Net) -> Net:
    """`net` itself, with each layer of columns turned into one grouped convolution with the same weights."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Columns):
                setattr(parent, name, _grouped(child))
    return net


def _grouped(columns: Columns) -> nn.Conv2d:
    convs = [each for each in columns if isinstance(each, nn.Conv2d)]
    one, n = convs[0], len(convs)
    padding, size, stride = ((int(pair[0]), int(pair[1])) for pair in (one.padding, one.kernel_size, one.stride))
    with torch.device("meta"):  # no memory, as the weights are those that there are
        conv = nn.Conv2d(n * one.in_channels, n * one.out_channels, size, stride, padding, groups=n)
    conv.weight = nn.Parameter(torch.cat([each.weight.detach() for each in convs]))
    conv.bias = nn.Parameter(torch.cat([each.bias.detach() for each in convs if each.bias is not None]))
    return conv


class Plain(TorchFunctionMode):
    """Within the block response normalisation is torch's, locally connected layers are composed of torch's operations,
    and nothing runs in kernels of ours."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        instead: dict[object, Callable[..., object]] = {response_norm: _torchs_norm, locally_connected: local.plain}
        return instead.get(func, func)(*args, **(kwargs or {}))


def _torchs_norm(x: Tensor, n: int, k: float, alpha: float, beta: float) -> Tensor:
    """Torch divides alpha by n, and its window has n maps for even n too, where the paper's has n + 1."""
    if n % 2 == 0:
        return plain_response_norm(x, n, k, alpha, beta)
    return F.local_response_norm(x, n, alpha * n, beta, k)
