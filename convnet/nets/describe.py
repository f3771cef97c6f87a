"""A net's summary: its layers from a run, of a large net on torch's meta device, and its known differences.

The differences of the layers are the paragraph "Differs:" of a docstring, those of the settings nets/differences.toml.
"""

import copy
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from convnet.errors import UsageError, unknown
from convnet.io.processes import Parallel, Processes
from convnet.io.strict_json import Json
from convnet.nets import MODELS, column_parallel, connected_parallel, list_models, make, model, recipe_of
from convnet.nets.column_parallel import Part, column_of, connected_layers, with_weights
from convnet.nets.layers import Net

FEW = 1_000_000  # parameters of a net that is run on the CPU: the meta device loads an algebra (sympy) in 0.4 s


@dataclass(frozen=True)
class Layer:
    """A stage of a net: the shape of one picture's activation, its parameters, multiply-adds for one picture."""

    stage: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Difference:
    """What `here` and `there` do differently; `there` is a net, or somebody's net or text; and who says so."""

    what: str
    here: str
    there: str
    of_here: str
    of_there: str
    source: str


@dataclass(frozen=True)
class Exchange:
    """What a layer makes the processes send each other that share a net: bytes of all of them together, in the forward
    and in the backward pass of a step in float32."""

    stage: str
    what: str
    forward: int
    backward: int


class _Counter(TorchDispatchMode):
    """Adds up the multiply-adds of convolutions and matrix products. torch's FlopCounterMode does as much, but loads
    torch's compiler first, which takes as long as a short training's start."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own way to have a mode whose use doesn't load the compiler."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: Json | None = None
    ) -> object:
        out = _without_compiler(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.multiply_adds += formula(*args, **(kwargs or {}), out_val=out) // 2
        return out


def _without_compiler(func: OpOverload, args: tuple[object, ...]) -> Tensor | None:
    """The result of an operation on the meta device for which torch would load its compiler; None for any other."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    if func is torch.ops.aten.addmm.default:
        return torch.mm(*tensors[1:])
    if tensors and tensors[0].is_meta and torch.Tag.pointwise in func.tags and not func._schema.is_mutable:
        return tensors[0].new_empty(torch.broadcast_shapes(*(x.shape for x in tensors)))
    return None


class _Stages(dict[str, Tensor]):
    """What a net fills with its stages; notes the operations between one stage and the next."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter, self.before = counter, 0
        self.multiply_adds: dict[str, int] = {}

    def __setitem__(self, stage: str, x: Tensor) -> None:
        self.multiply_adds[stage] = self.counter.multiply_adds - self.before
        self.before = self.counter.multiply_adds
        super().__setitem__(stage, x)


def layer_table(net: Net) -> list[Layer]:
    """The stages of a net, in order, for a picture of the paper's size; the net is left as it was.

    Multiply-adds are those of convolutions and matrix products, as papers count them; LeNet-5's sparse C3 counts as the
    dense convolution that it runs as. GoogLeNet's auxiliary heads are stages like the others, but run in training only.
    """
    n_real = sum(weight.numel() for weight in net.parameters() if not weight.is_meta)
    bare, device = (copy.deepcopy(net).eval().cpu(), "cpu") if 0 < n_real <= FEW else (on_meta(net), "meta")
    images = torch.zeros(1, net.in_channels, net.input_size, net.input_size, device=device)
    with torch.no_grad(), BaseTorchFunctionMode(), _Counter() as counter:  # within the mode no kernel of ours serves
        stages = _Stages(counter)
        bare(images, stages)
    counts = dict.fromkeys(stages, 0)
    for name, parameter in net.named_parameters():
        counts[next(part for part in reversed(name.split(".")) if part in counts)] += parameter.numel()
    return [Layer(name, tuple(x.shape[1:]), counts[name], stages.multiply_adds[name]) for name, x in stages.items()]


def multiply_adds(net: Net, layers: list[Layer] | None = None) -> int:
    """Of a net's forward pass for one picture of the paper's size, without auxiliary heads; layers: its table."""
    return sum(layer.multiply_adds for layer in layers or layer_table(net) if layer.stage not in net.loss_weights)


def summary(name: str, **options: object) -> Json:
    """A net's row in the table of nets: name, year, parameters, multiply_adds, input (C, H, W), recipe, paper.

    own_name: the name that the net has for itself; vgg16's is vgg_d.
    """
    net = skeleton(name, **options)
    layers = layer_table(net if sum(weight.numel() for weight in net.parameters()) > FEW else make(name, options))
    return {
        "name": name,
        "year": net.year,
        "parameters": sum(layer.parameters for layer in layers),
        "multiply_adds": multiply_adds(net, layers),
        "heads": [layer.stage for layer in layers if layer.stage in net.loss_weights],
        "input": (net.in_channels, net.input_size, net.input_size),
        "recipe": recipe_of(name),
        "paper": net.paper,
        "own_name": net.name,
    }


def summaries(pattern: str = "*") -> list[Json]:
    """The rows of all nets whose names match a shell pattern, in alphabetical order. Raises: UsageError for none."""
    names = list_models(pattern)
    if not names:
        text = f"no net's name matches '{pattern}'; `convnet nets` lists them all"
        raise UsageError(text if any(sign in pattern for sign in "*?[") else unknown("net", pattern, MODELS))
    return [summary(name) for name in names]


def differences(name: str, other: str | None = None) -> list[Difference]:
    """The known differences of a net's settings from every text or net that it was held against, or from `other`."""
    name, other = own_name(name), other and own_name(other)
    rows = [row if row.here == name else _turned(row) for row in _known() if name in (row.here, row.there)]
    return [row for row in rows if other is None or row.there == other]


def differing_layers(net: Net, other: Net) -> list[tuple[str, Layer | None, Layer | None]]:
    """(stage, layer of net, layer of other) where shape or parameters differ; None where one has no such stage."""
    left, right = ({layer.stage: layer for layer in layer_table(each)} for each in (net, other))
    rows = [(stage, left.get(stage), right.get(stage)) for stage in {**left, **right}]
    return [row for row in rows if len({layer and (layer.shape, layer.parameters) for layer in row[1:]}) > 1]


def differs(net: Net) -> str:
    """The paragraph of a net's documentation that says where it deviates from its paper; "" if there is none."""
    texts = [type(net).__doc__ or "", sys.modules[type(net).__module__].__doc__ or ""]
    matches = (re.search(r"^ *(Differs\b.*?)\s*(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE) for text in texts)
    return next((" ".join(match[1].split()) for match in matches if match), "")


def check_parallel(parallel: str, name: str, options: Mapping[str, object], n_processes: int) -> int:
    """The columns of a net, which n processes share by data, columns or fully connected layers.

    Raises: UsageError for a net or a number of processes with which that can't be.
    """
    net, layouts = skeleton(name, **options), get_args(Parallel)
    if parallel not in layouts:
        raise UsageError(f"--parallel {parallel}: it must be one of {', '.join(layouts)}")
    if reason := why_not(net, parallel):
        known = ", ".join(each for each in list_models() if not why_not(skeleton(each), parallel))
        raise UsageError(f"{name} {reason}, as --parallel {parallel} wants it; these nets can be: {known}")
    n = net.columns
    if parallel == "fully-connected" and n_processes < 2:
        raise UsageError("--parallel fully-connected is for several processes; choose --processes 2 or more")
    if parallel == "columns" and n_processes % n:
        rule = f"choose --processes {n} or a multiple of {n}"
        raise UsageError(f"{name} has {n} columns, which {n_processes} processes can't hold one each; {rule}")
    return n


def why_not(net: Net, parallel: str) -> str:
    """Why processes can't share a net so; "" if they can."""
    if parallel == "data":
        return ""
    return column_parallel.why_not(net) if parallel == "columns" else connected_parallel.why_not(net)


def exchanges(net: Net, batch: int, parallel: str, n: int) -> list[Exchange]:
    """What crosses between n processes that share a net in a step of so many pictures, layer by layer, from its layer
    table; gradients as the ring of an all-reduce sends them."""
    layers = layer_table(net)
    before = {layer.stage: before for before, layer in pairwise(layers)}
    if parallel == "columns":
        return _by_columns(net, batch, before)
    names = connected_layers(net) if parallel == "fully-connected" else []
    size, others, most = 4 * batch, n - 1, 4 * -(-batch // n) * n  # bytes of float32; all send as the largest part
    rows = []
    for name in names:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        n_in, n_out, parts = layer.in_features, layer.out_features, Processes(0, n).sizes
        text = f"{before[name].stage} of all {'pictures' if name == names[0] else 'units'}"
        sent = most * n_in if name == names[0] else size * n * -(-n_in // n)
        rows.append(Exchange(name, text, others * sent, others * size * n_in))
        if name == names[-1]:
            kept = sum(pictures * units for pictures, units in zip(parts(batch), parts(n_out), strict=True))
            rows.append(Exchange(name, "the logits of own pictures", *[4 * (batch * n_out - kept)] * 2))
    own = sum(layer.parameters for layer in layers if layer.stage not in names)
    text = "gradients of the other layers" if names else "gradients"
    return [*rows, Exchange("all", text, 0, 2 * others * 4 * own)]


def _by_columns(net: Net, batch: int, before: Mapping[str, Layer]) -> list[Exchange]:
    rows, others = [], net.columns - 1
    shapes = {layer.stage: layer.shape for layer in layer_table(net)}
    for stage, part in with_weights(column_of(on_meta(net), Processes(0, net.columns))):
        assert isinstance(part, Part)
        if part.reads_all:
            n = others * math.prod(before[stage].shape)
            rows.append((stage, f"{before[stage].stage} of all columns", n, n))
        if part.edge:  # on both sides of each border
            n = 2 * others * part.edge * math.prod(shapes[stage][1:])
            rows.append((stage, f"{part.edge} maps on each side of a border, for the response norm", n, n))
        if part.n_logits:
            rows.append((stage, "the logits", others * net.columns * -(-part.n_logits // net.columns), 0))
    size = 4 * batch  # bytes of float32
    return [Exchange(stage, what, size * forward, size * backward) for stage, what, forward, backward in rows]


def skeleton(name: str, **options: object) -> Net:
    """A net on the meta device: shapes and counts only. Raises: UsageError for an unknown name or option."""
    with torch.device("meta"):
        return make(name, options)


def own_name(name: str) -> str:
    """The name that a net of many configurations has for itself: `vgg_d` for the name `vgg16`."""
    return model(name).name


def explain(name: str, other: str | None = None, step: tuple[int, str, int] | None = None, **options: object) -> Json:
    """All that is known of a net with its options, and of how it differs from `other`, as what JSON holds. step: the
    batch, "columns" or another way in which processes share it, and how many do, to be told what they send each other.
    """
    net = skeleton(name, **options)
    result: Json = {
        **summary(name, **options),
        "small_sets": {net.small_recipe: net.small_set} if net.small_recipe else {},
        "options": options,
        "layers": [asdict(layer) for layer in layer_table(net)],
        "differs": differs(net),
        "differences": [asdict(row) for row in differences(name, other)],
    }
    if step is not None:
        batch, parallel, n = step
        n = net.columns if parallel == "columns" else max(n, 2)
        check_parallel(parallel, name, options, n)
        sent = [asdict(row) for row in exchanges(net, batch, parallel, n)]
        result |= {"batch": batch, "parallel": parallel, "processes": n, "exchanges": sent}
    if other is not None:
        that = skeleton(other)
        rows, text = differing_layers(net, that), differs(that)
        result["other"], result["other_differs"] = other, "" if text == result["differs"] else text
        here, there = (f"{each.in_channels} x {each.input_size} x {each.input_size}" for each in (net, that))
        if here != there and not any(row["what"] == "input" for row in result["differences"]):
            result["differences"].append(asdict(Difference("input", name, other, here, there, "their tables")))
        result["differing_layers"] = [
            {"stage": stage, "here": a and asdict(a), "there": b and asdict(b)} for stage, a, b in rows
        ]
    return result


def table_lines(rows: list[Json], columns: int) -> Iterator[str]:
    """The table of nets as text; where a row has no room in `columns` characters, its end has a line of its own."""
    cells = [("net", "year", "parameters", "multiply-adds", "input", "recipe", "paper")]
    for row in rows:
        counts = str(row["year"]), f"{row['parameters']:,}", f"{row['multiply_adds']:,}"
        cells.append((row["name"], *counts, " x ".join(map(str, row["input"])), row["recipe"], _title(row)))
    width, wide = (max(len(cell[i]) for cell in cells) for i in (0, 5))
    starts = [f"{name:<{width}}  {year}  {parameters:>11}  {n:>15}" for name, year, parameters, n, *_ in cells]
    ends = [f"{size:<13}  {recipe:<{wide}}  {paper}" for *_, size, recipe, paper in cells]
    pairs = list(zip(starts, ends, strict=True))
    fits = max(len(start) + 2 + len(end) for start, end in pairs) <= columns
    for start, end in pairs:
        yield from (f"{start}  {end}",) if fits else (start, f"    {end}")


def explain_lines(told: Json, columns: int) -> Iterator[str]:
    """The result of `explain` as text; sentences are broken into lines of `columns` characters."""
    for line in _explain_lines(told):
        yield from textwrap.wrap(line, max(columns, 40), subsequent_indent="    ", break_on_hyphens=False) or [""]


def _title(row: Json) -> str:
    return row["paper"] if row["own_name"] == row["name"] else f"{row['own_name']}: {row['paper']}"


def _explain_lines(told: Json) -> Iterator[str]:
    options = "".join(f", {option} = {value}" for option, value in told["options"].items())
    is_other = f" is {told['own_name']}" if told["own_name"] != told["name"] else ""
    yield f"{told['name']}{is_other}{options}: {told['paper']}"
    yield "trained by recipe " + "; ".join([told["recipe"], *(
        f"{recipe} on less than {limit:,} pictures" for recipe, limit in told["small_sets"].items()
    )])  # fmt: skip
    yield ""
    width = max(len(layer["stage"]) for layer in told["layers"])
    yield f"{'stage':<{width}}  {'output':<15}  {'parameters':>11}  {'multiply-adds':>15}"
    for row in [*told["layers"], {**told, "stage": "total", "shape": ()}]:
        counts = f"{row['parameters']:>11,}  {row['multiply_adds']:>15,}"
        yield f"{row['stage']:<{width}}  {_shape(row):<15}  {counts}"
    if told["heads"]:
        yield f"in training only, and not in the total of multiply-adds: {', '.join(told['heads'])}"
    if "exchanges" in told:
        yield from ("", *_exchange_lines(told))
    if told["differs"]:
        yield from ("", told["differs"])
    if told.get("other_differs"):
        yield from ("", f"{told['other']}: {told['other_differs']}")
    if "other" in told:
        yield from ("", f"layers that differ from {told['other']}'s:" if told["differing_layers"] else
                    f"every layer has the shape and the parameters of {told['other']}'s")  # fmt: skip
        for row in told["differing_layers"]:
            yield f"  {row['stage']}: {_layer_or_none(row['here'])}; {told['other']}: {_layer_or_none(row['there'])}"
    there = None
    for row in told["differences"]:
        if row["there"] != there:
            there = row["there"]
            yield from ("", f"settings that differ from {there}:")
        yield f"  {row['what']}: {row['of_here']}; {there}: {row['of_there']} [{row['source']}]"
    if "other" in told and there is None:
        yield from ("", f"no other difference of settings from {told['other']} is recorded")


def _exchange_lines(told: Json) -> Iterator[str]:
    yield (
        f"bytes that {told['processes']} processes (--parallel {told['parallel']}) send each other in a step of "
        f"{told['batch']} pictures, in float32 (bf16: half):"
    )
    totals = {way: sum(row[way] for row in told["exchanges"]) for way in ("forward", "backward")}
    yield f"{'stage':<7}  {'forward':>15}  {'backward':>15}"
    for row in [*told["exchanges"], {"stage": "total", "what": "", **totals}]:
        yield f"{row['stage']:<7}  {row['forward']:>15,}  {row['backward']:>15,}  {row['what']}".rstrip()


def _shape(layer: Json) -> str:
    return " x ".join(map(str, layer["shape"]))


def _layer_or_none(layer: Json | None) -> str:
    return "has none" if layer is None else f"{_shape(layer)}, {layer['parameters']:,} parameters"


def on_meta(net: Net) -> Net:
    """A copy in eval mode without its weights, which the copying takes for copied already."""
    bare: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    bare |= {id(b): b.to("meta") for b in net.buffers()}
    return copy.deepcopy(net, bare).eval()


@cache
def _known() -> tuple[Difference, ...]:
    tables = tomllib.loads((files("convnet") / "nets" / "differences.toml").read_text(encoding="utf-8"))["pair"]
    return tuple(
        Difference(what, pair["here"], pair["there"], here, there, source)
        for pair in tables
        for what, here, there, source in pair["rows"]
    )


def _turned(row: Difference) -> Difference:
    return Difference(row.what, row.there, row.here, row.of_there, row.of_here, row.source)
