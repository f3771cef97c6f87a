"""A net over several processes, each with one column: what each of them holds, and where they exchange what.

Between two layers a process has the maps or units of its own column. A convolution or fully connected layer in columns
is then one layer of its own. One that reads all columns is split by what it puts out: its inputs are gathered first,
and their gradients summed where they belong. The first layer reads the pictures, which every process has; of the last
one the logits are gathered, so that each process knows the whole softmax. A response norm over all of a layer's maps
wants the neighbours' nearest ones. Nothing else is sent. Paper: AlexNet 3.2, 3.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.io.processes import Processes
from convnet.kernels.plain import Context, wide
from convnet.nets.columns import Columns, ConnectedColumns
from convnet.nets.layers import Net, connected

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
    if not all(isinstance(layer, nn.Conv2d | nn.Linear | IN_COLUMNS) for layer in net.children()):
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
    for number, (name, layer) in enumerate(list(net.named_children())):
        own, reads_all = "layer", number > 0 and not isinstance(layer, IN_COLUMNS)
        if isinstance(layer, IN_COLUMNS):
            own, layer = str(columns.rank), layer[columns.rank]
        else:
            _cut(layer, columns)
        sends = edge if name in net.normed else 0
        n_logits = net.num_classes if name == net.last else 0
        setattr(net, name, Part(own, layer, columns, reads_all=reads_all, drops=drops, edge=sends, n_logits=n_logits))
        drops = (sends if columns.rank else 0), (sends if columns.rank < columns.n - 1 else 0)
    net.norm_columns = max(1, net.norm_columns // columns.n)
    return net


def _cut(layer: nn.Module, columns: Processes) -> None:
    """Leaves a layer the maps or units of this process."""
    for name, whole in list(layer.named_parameters()):
        own = whole.detach()[columns.part(len(whole))].clone()
        setattr(layer, name, nn.Parameter(own, whole.requires_grad))
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(own))


@dataclass(frozen=True)
class Share:
    """What this process holds of a net's tensors: of those of a column its own, of the others its part of their rows.

    shapes: of the whole net's tensors, in their order. A process alone holds all.
    """

    columns: Processes
    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, net: Net, columns: Processes) -> "Share":
        """The share of a whole net."""
        return cls(columns, {name: tensor.shape for name, tensor in net.state_dict().items()})

    def take(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of tensors that are named and shaped like the whole net's."""
        if self.columns.n == 1:
            return dict(whole)
        own = {}
        for name, tensor in whole.items():
            column = _column(name)
            if column is None:
                own[self._name(name)] = tensor[self.columns.part(len(tensor))]
            elif column == self.columns.rank:
                own[name] = tensor
        return own

    def gather(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors, in every process; each must call it."""
        if self.columns.n == 1:
            return dict(own)
        return {name: self._whole(name, shape, own) for name, shape in self.shapes.items() if self._name(name) in own}

    def _whole(self, name: str, shape: torch.Size, own: Mapping[str, Tensor]) -> Tensor:
        tensor, column = own[self._name(name)].detach(), _column(name)
        if column is None:
            return torch.cat(gather_rows(tensor.contiguous(), shape[0], self.columns))
        sent = tensor.contiguous().clone() if column == self.columns.rank else tensor.new_empty(shape)
        return self.columns.broadcast(sent, column)

    def _name(self, name: str) -> str:
        """That which a tensor, or its like in this process's column, has in the part of the net."""
        layer, _, rest = name.partition(".")
        if _column(name) is None:
            return f"{layer}.layer.{rest}"
        return f"{layer}.{self.columns.rank}.{rest.partition('.')[2]}"


def _column(name: str) -> int | None:
    """The column of a tensor such as `conv2.1.weight`; None if it is of all."""
    part = name.split(".")[1]
    return int(part) if part.isdecimal() else None


# What the processes send each other


def gather_rows(own: Tensor, n: int, columns: Processes) -> list[Tensor]:
    """The rows of each process, n in all, of which each has its part; they are sent as many as the largest part."""
    parts = [Processes(rank, columns.n).part(n) for rank in range(columns.n)]
    lengths = [part.stop - part.start for part in parts]
    sent = own.new_empty(max(lengths), *own.shape[1:])
    sent[: len(own)] = own
    return [rows[:length] for rows, length in zip(columns.gather(sent), lengths, strict=True)]


class _Gather(torch.autograd.Function):
    """(..., D) of each process -> (..., n D) in all. Backward each gets the sum of its own units' gradients."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, columns: Processes) -> Tensor:
        ctx.constants = (columns,)
        return torch.cat(columns.gather(x.contiguous()), -1)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.constants
        parts = torch.stack(grads[0].chunk(columns.n, -1))
        others = columns.swap(parts, [1] * columns.n)
        return wide(others).sum(0).to(parts.dtype), None  # in the columns' order


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


_apply_gather: Callable[..., Tensor] = _Gather.apply
_apply_swap: Callable[..., Tensor] = _Swap.apply


def _gather(x: Tensor, columns: Processes) -> Tensor:
    """The maps or units (N, D, ...) of all columns side by side: what `columns.exchange` is in one process."""
    return _apply_gather(x.movedim(1, -1), columns).movedim(-1, 1)


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
