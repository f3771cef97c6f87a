"""Nets whose stages follow one another: the names of the stages say what the net is."""

from typing import ClassVar

from torch import Tensor, nn

from convnet.nets.dropout import dropout
from convnet.nets.layers import Net, ResponseNorm, WithinMapNorm, check_images


class Chain(Net):
    """A net whose stages follow one another.

    chain: their names, in order. Layers that learn are added by the net, in the order in which their weights are
    stored; the others by `add_functions`, each by what its name begins with. What is `dropped` is followed by dropout.
    """

    chain: tuple[str, ...]
    not_slid: ClassVar[tuple[str, ...]] = ()  # stages that it leaves out where it slides

    def add_functions(self) -> None:
        """The layers of the chain that learn nothing, but for those that are there already."""
        for name in self.chain:
            if name not in self._modules and (layer := self._function(name)):
                self.add_module(name, layer)

    def _function(self, name: str) -> nn.Module | None:
        size, stride, ceil = self.pooling
        if name in self.within:
            return WithinMapNorm(*self.within[name])
        if name in self.average_pools:  # partial windows count the pixels inside, as in cuda-convnet
            return nn.AvgPool2d(size, stride, ceil_mode=ceil, count_include_pad=False)
        match name.rstrip("0123456789_"):
            case "relu":
                return nn.ReLU()
            case "tanh":
                return nn.Tanh()
            case "norm":
                return ResponseNorm(*self.lrn, groups=self.norm_columns)
            case "pool":
                return nn.MaxPool2d(size, stride, ceil_mode=ceil)
        return None

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self)
        x, names = images, list[str]()
        for name in self.chain:
            if self.slides and name in self.not_slid:
                continue
            names.append(name)
            if name in self.dropped:
                x = dropout(self.run(x, stages, *names), self.dropout, self.training)
                names = []
        return self.run(x, stages, *names)


def without(chain: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """A chain's stages but for some."""
    return tuple(name for name in chain if name not in names)
