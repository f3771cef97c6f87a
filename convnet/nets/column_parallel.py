"""A net over several processes, each with one column: what each of them holds, and where they exchange what.

Between two layers a process has the maps or units of its own column. A convolution or fully connected layer in columns
is then one layer of its own. One that reads all columns is split by what it puts out: its inputs are gathered first,
and their gradients summed where they belong. The first layer reads the pictures, which every process has; of the last
one the logits are gathered, so that each process knows the whole softmax. A response norm over all of a layer's maps
wants the neighbours' nearest ones. Nothing else is sent. Paper: AlexNet 3.2, 3.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.io.processes import Processes
from convnet.kernels.plain import Context, wide
from convnet.nets.convolutions import Columns, ConnectedColumns
from convnet.nets.layers import Net, ResponseNorm, connected

IN_COLUMNS = Columns | ConnectedColumns


class Part(nn.Module):
    """A layer as the process of one column holds it; takes and returns that column's maps or units.

    name: of the layer within, so that one of `Columns` has the name that it has in the whole net. reads_all: it reads
    the columns of all processes. drops: the neighbours' maps that its input has at its two ends. edge: the maps of each
    neighbour that its output has besides. n_logits: of the last layer, which returns those of all classes.
    """

    def __init__(self, name: str, layer: nn.Module, columns: Processes, *, reads_all: bool = False,
                 drops: tuple[int, int] = (0, 0), edge: int = 0, n_logits: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.name, self.columns, self.reads_all, self.drops = name, columns, reads_all, drops
        self.edge, self.n_logits = edge, n_logits
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.drops
        x = x[:, before : x.shape[1] - after]
        if self.reads_all:
            x = _gather(x, self.columns)
        x = connected(self.get_submodule(self.name), x)
        if self.edge:
            x = with_neighbours(x, self.edge, self.columns)
        return all_logits(x, self.n_logits, self.columns) if self.n_logits else x


def why_not(net: Net) -> str:
    """Why a net can't be held column by column; "" if it can."""
    if net.columns == 1:
        return "has no columns"
    if not all(isinstance(layer, nn.Conv2d | nn.Linear | IN_COLUMNS) for _, layer in with_weights(net)):
        return "has batch normalisation"
    return ""


def column_of(net: Net, columns: Processes) -> Net:
    """`net` with the layers of column `columns.rank` alone, each a `Part`: the net itself, changed.

    Raises: UsageError when it can't be split so.
    """
    if (reason := why_not(net)) or net.columns != columns.n:
        raise UsageError(f"{net.name} {reason or f'has {net.columns} columns'}: {columns.n} processes can't hold it")
    edge = net.lrn.n // 2 if net.norm_columns == 1 else 0
    drops = 0, 0
    for number, (name, layer) in enumerate(with_weights(net)):
        own, reads_all = "layer", number > 0 and not isinstance(layer, IN_COLUMNS)
        if isinstance(layer, IN_COLUMNS):
            own, layer = str(columns.rank), layer[columns.rank]
        else:
            cut(layer, columns)
        sends = edge if name in net.normed else 0
        n_logits = net.num_classes if name == net.last else 0
        setattr(net, name, Part(own, layer, columns, reads_all=reads_all, drops=drops, edge=sends, n_logits=n_logits))
        drops = (sends if columns.rank else 0), (sends if columns.rank < columns.n - 1 else 0)
    for layer in net.children():
        if isinstance(layer, ResponseNorm):
            layer.groups = max(1, layer.groups // columns.n)
    return net


def cut(layer: nn.Module, columns: Processes) -> None:
    """Leaves a layer the maps or units of this process."""
    for name, whole in list(layer.named_parameters()):
        own = whole.detach()[columns.part(len(whole))].clone()
        setattr(layer, name, nn.Parameter(own, whole.requires_grad))
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(own))


@dataclass(frozen=True)
class Share:
    """What this process holds of a net's tensors. Of a column's its own; of those of layers that are `cut` its part of
    their rows; of others, where processes hold no column each, all.

    shapes: of the whole net's tensors, in their order. A process alone holds all.
    """

    holders: Processes
    shapes: Mapping[str, torch.Size]
    cut: frozenset[str]
    by_columns: bool

    @classmethod
    def of(cls, net: Net, processes: Processes) -> "Share":
        """The share of a whole net."""
        layers = {name for name, layer in with_weights(net) if not isinstance(layer, IN_COLUMNS)}
        cut = frozenset(connected_layers(net) if processes.split else layers)
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        return cls(processes.holders, shapes, cut, processes.mesh is not None)

    def take(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of tensors that are named and shaped like the whole net's."""
        if self.holders.n == 1:
            return dict(whole)
        own = {}
        for name, tensor in whole.items():
            if self._is_cut(name):
                own[self._name(name)] = tensor[self.holders.part(len(tensor))]
            elif not self.by_columns or self._name(name) == name:
                own[name] = tensor
        return own

    def gather(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors, in every process; each must call it."""
        if self.holders.n == 1:
            return dict(own)
        return {name: self._whole(name, shape, own) for name, shape in self.shapes.items() if self._name(name) in own}

    def _whole(self, name: str, shape: torch.Size, own: Mapping[str, Tensor]) -> Tensor:
        tensor = own[self._name(name)].detach()
        if self._is_cut(name):
            return torch.cat(gather_rows(tensor.contiguous(), shape[0], self.holders))
        if not self.by_columns:
            return tensor
        column = int(name.split(".")[1])
        sent = tensor.contiguous().clone() if column == self.holders.rank else tensor.new_empty(shape)
        return self.holders.broadcast(sent, column)

    def _is_cut(self, name: str) -> bool:
        return name.partition(".")[0] in self.cut

    def _name(self, name: str) -> str:
        """That which a tensor, or its like in this process's column, has in the part of the net."""
        layer, _, rest = name.partition(".")
        if self._is_cut(name):
            return f"{layer}.layer.{rest}"
        return f"{layer}.{self.holders.rank}.{rest.partition('.')[2]}" if self.by_columns else name


def with_weights(net: Net) -> list[tuple[str, nn.Module]]:
    """The layers of a net that have any, and their names."""
    return [(name, layer) for name, layer in net.named_children() if list(layer.parameters())]


def connected_layers(net: Net) -> list[str]:
    """The fully connected layers at a net's end, which follow each other."""
    layers = [name for name, layer in with_weights(net)]
    last = list(takewhile(lambda name: isinstance(net.get_submodule(name), nn.Linear), reversed(layers)))
    return last[::-1] if last and last[0] == net.last else []


# What the processes send each other


def gather_rows(own: Tensor, n: int, columns: Processes) -> list[Tensor]:
    """The rows of each process, n in all, of which each has its part; they are sent as many as the largest part."""
    lengths = columns.sizes(n)
    sent = own.new_empty(max(lengths), *own.shape[1:])
    sent[: len(own)] = own
    return [rows[:length] for rows, length in zip(columns.gather(sent), lengths, strict=True)]


class _Gather(torch.autograd.Function):
    """The parts of all along a dimension, sizes[rank] each. Backward each gets the sum of its own part's gradients."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, dim: int, sizes: list[int], holders: Processes) -> Tensor:
        ctx.constants = dim, sizes, holders
        if max(sizes) > x.shape[dim]:  # all send as many as the largest part
            x = torch.cat([x, x.new_zeros(*x.shape[:dim], max(sizes) - x.shape[dim], *x.shape[dim + 1 :])], dim)
        parts = holders.gather(x.contiguous())
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        dim, sizes, holders = ctx.constants
        parts = grads[0].split(sizes, dim)
        own = parts[holders.rank].shape
        sent = torch.cat([part.flatten() for part in parts])
        received = holders.swap(sent, [part.numel() for part in parts], [own.numel()] * holders.n)
        return wide(received.view(holders.n, *own)).sum(0).to(sent.dtype), None, None, None  # in the ranks' order


class _Swap(torch.autograd.Function):
    """Rows for each process -> the rows that each had for this one; backward the same way back."""

    @staticmethod
    def forward(ctx: Context, rows: Tensor, columns: Processes, counts: list[int]) -> Tensor:
        ctx.constants = columns, counts
        return columns.swap(rows.contiguous(), counts)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        columns, counts = ctx.constants
        return columns.swap(grads[0].contiguous(), counts), None, None


gathered: Callable[..., Tensor] = _Gather.apply
_apply_swap: Callable[..., Tensor] = _Swap.apply


def _gather(x: Tensor, columns: Processes) -> Tensor:
    """The maps or units (N, D, ...) of all columns side by side: what `columns.exchange` is in one process."""
    return gathered(x.movedim(1, -1), x.ndim - 1, [x.shape[1]] * columns.n, columns).movedim(-1, 1)


def with_neighbours(x: Tensor, n: int, columns: Processes) -> Tensor:
    """A column's maps (N, C, H, W) with the n nearest maps of the column before it, and of the one after it."""
    if x.shape[1] < n:
        raise UsageError(f"a column has {x.shape[1]} maps, and a response norm reads {n} of them; take fewer columns")
    rank, last = columns.rank, columns.n - 1
    sides = [*([x[:, :n]] if rank else []), *([x[:, -n:]] if rank < last else [])]
    counts = [n if abs(other - rank) == 1 else 0 for other in range(columns.n)]
    others = _apply_swap(torch.cat(sides, 1).movedim(1, 0), columns, counts).movedim(0, 1)
    before = n if rank else 0
    return torch.cat([others[:, :before], x, others[:, before:]], 1)


def all_logits(own: Tensor, n: int, columns: Processes) -> Tensor:
    """The logits of all n classes (N, n), from this process's own. Every process makes the same loss of them, so that
    each knows its own gradient."""
    with torch.no_grad():
        parts = gather_rows(own.t().contiguous(), n, columns)
    return torch.cat([own if rank == columns.rank else part.t() for rank, part in enumerate(parts)], 1)
