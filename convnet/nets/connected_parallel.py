"""A net over several processes that share its batches, and hold a part of its fully connected layers each.

The convolutions compute most and have few weights, the fully connected layers the other way round: so each process has
its pictures in the former, and its units in the latter. In front of the first fully connected layer the processes give
each other their pictures' maps, between these layers their units, and at the end each gets the logits of its own
pictures. Gradients go the same ways back. Paper: Krizhevsky 2014, "One weird trick", scheme (a).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.io.processes import Processes
from convnet.kernels.plain import Context
from convnet.nets import dropout
from convnet.nets.column_parallel import connected_layers, cut, gathered
from convnet.nets.layers import Net, connected


class ConnectedPart(nn.Module):
    """A fully connected layer's units of this process, for the pictures of all.

    The first one takes this process's pictures, the last one returns their logits; between them are (N, units) of this
    process. is_first: of the net's fully connected layers. is_last: it makes the logits.
    """

    def __init__(self, layer: nn.Linear, holders: Processes, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.holders, self.is_first, self.is_last = holders, is_first, is_last
        self.n_inputs, self.n_units, self.own = layer.in_features, layer.out_features, holders.part(layer.out_features)
        cut(layer, holders)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        n, pictures = self.holders.n, dropout.pictures_of_all()
        if self.is_first:
            x = x.flatten(1)[: pictures[self.holders.rank]]
            _scale_gradient(x, n)  # which DistributedDataParallel's mean divides by n again
            x = gathered(x, 0, pictures, self.holders)
        else:
            x = gathered(x, 1, self.holders.sizes(self.n_inputs), self.holders)
        x = connected(self.layer, x)
        dropout.now_of_units(self.own.start, self.n_units)
        if not self.is_last:
            return x
        x = _turned(x, pictures, self.holders.sizes(self.n_units), self.holders)
        _scale_gradient(x, 1 / n)  # the loss is n times this process's share in it: `EagerSteps`
        return x if len(x) else F.pad(x, (0, 0, 0, 1))  # for the picture that stands in where there is none


class _Turn(torch.autograd.Function):
    """(all pictures, own units) -> (own pictures, all units)."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, pictures: list[int], units: list[int], holders: Processes) -> Tensor:
        ctx.constants = pictures, units, holders
        return _exchanged(x.t(), pictures, units, holders).t()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        pictures, units, holders = ctx.constants
        return _exchanged(grads[0], units, pictures, holders), None, None, None


_turned: Callable[..., Tensor] = _Turn.apply


def _exchanged(x: Tensor, given: list[int], received: list[int], holders: Processes) -> Tensor:
    """(own rows, all that are given) -> (all rows that are received, what this process is given)."""
    n_rows, own = len(x), given[holders.rank]
    sent = torch.cat([part.flatten() for part in x.split(given, 1)])
    there = holders.swap(sent, [n_rows * n for n in given], [own * n for n in received])
    return there.view(sum(received), own)


def _scale_gradient(x: Tensor, factor: float) -> None:
    if x.requires_grad:
        x.register_hook(lambda grad: grad * factor)


def why_not(net: Net) -> str:
    """Why processes can't share a net's fully connected layers; "" if they can."""
    n = len(connected_layers(net))
    return "" if n > 1 else f"has {'one' if n else 'no'} fully connected layer at its end that follows another"


def parts_of(net: Net, holders: Processes) -> Net:
    """`net` with this process's units of its fully connected layers: the net itself, changed.

    Raises: UsageError where it hasn't several of them.
    """
    if reason := why_not(net):
        raise UsageError(f"{net.name} {reason}: it can't be split over {holders.n} processes")
    names = connected_layers(net)
    for name in names:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(net, name, ConnectedPart(layer, holders, name == names[0], name == names[-1]))
    return net


def parts_in(net: nn.Module) -> list[str]:
    """The names of parameters of which this process has its own: no mean over processes is taken of them."""
    parts = [(name, module) for name, module in net.named_modules() if isinstance(module, ConnectedPart)]
    return [each for name, module in parts for each, _ in module.named_parameters(name)]
