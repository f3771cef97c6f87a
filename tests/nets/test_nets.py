"""The nets against their own tables and the published numbers; what `create_model`, `list_models`, `trace` promise."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convnet.errors import UsageError
from convnet.kernels import ops
from convnet.nets import MODELS, SelectedStages, create_model, features, list_models, model, trace
from convnet.nets.layers import Net, response_norm
from convnet.nets.lenet5 import SparseConv2d, digit_codes
from thin import empty_for, images_for, new_thin_net, shapes_of, thin_net

TOTALS = {  # one row a net: its parameters
    "lenet5": 60_000,
    "alexnet": 60_965_224,
    "alexnet_2012": 60_965_224,
    "caffenet": 60_965_224,
    "alexnet_caffe": 60_965_224,
    "alexnet_owt": 61_100_840,
    "alexnet_bn": 60_965_230,
    "alexnet_conv6": 61_555_304,
    "alexnet_half": 59_798_312,
    "alexnet_1col": 62_378_344,
    "alexnet_4col": 60_258_664,
    "alexnet_no_lrn": 60_965_224,
    "alexnet_pool2": 60_965_224,
    "alexnet_no_exchange": 60_522_856,
    "alexnet_no_conv2": 60_104_808,
    "alexnet_no_conv3": 59_858_920,
    "alexnet_no_conv4": 60_301_288,
    "alexnet_no_conv5": 79_396_968,
    "alexnet_tanh": 60_965_224,
    "alexnet_half_2012": 59_798_312,
    "alexnet_no_lrn_2012": 60_965_224,
    "alexnet_pool2_2012": 60_965_224,
    "alexnet_no_exchange_2012": 60_714_408,
    "cifar_26": 145_578,
    "cifar_18": 89_578,
    "cifar_13": 1_116_490,
    "cifar_11": 2_112_970,
    "cifar_relu": 89_578,
    "cifar_tanh": 89_578,
    "zfnet": 62_357_608,
    "nin_cifar10": 966_986,
    "nin_imagenet": 7_595_176,
    "nin_small": 81_960,
    "googlenet": 13_378_280,
    "googlenet_bn": 13_004_888,
    "googlenet_caffe": 13_378_280,
    "vgg_a": 132_863_336,
    "vgg_a_lrn": 132_863_336,
    "vgg_b": 133_047_848,
    "vgg_b_shallow": 134_503_528,
    "vgg_c": 133_638_952,
    "vgg_d": 138_357_544,
    "vgg_e": 143_667_240,
    "vgg_a_bn": 132_868_840,
    "vgg_b_bn": 133_053_736,
    "vgg_d_bn": 138_365_992,
    "vgg_e_bn": 143_678_248,
}
NAMES = [name for name in TOTALS if name in MODELS]
Table = dict[str, tuple[tuple[int, ...], int]]  # {stage: (shape, parameters)}


@cache
def net_of(name: str, init: str = "paper") -> Net:
    return create_model(name, init=init, seed=0)


def tables_in(doc: str) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """(columns, the nets that they are told from, the other lines) of each table: a paragraph that begins with "stage".

    Columns are nets, or "parameters" alone. After "As `other` but for:" a table has only the stages that differ; the
    note of one that is new, or stands elsewhere, begins with "after STAGE", "before STAGE" or "in place of STAGE".
    """
    for before, paragraph in pairwise(["", *re.split(r"\n\s*\n", doc)]):
        header, *lines = paragraph.strip().splitlines() or [""]
        if header.startswith("stage "):
            told = re.search(r"As\s+(`\w+`(?:, `\w+`)*)\s+but\s+for:\s*$", before)
            columns = [word for word in header.split() if word == "parameters" or word in MODELS]
            yield columns, re.findall(r"\w+", told[1]) if told else [], lines


def column_of(lines: list[str], at: int, n_columns: int, base: Table) -> tuple[Table, int]:
    """The stages of one column and its total: those of `base` but for the table's; "-" or "none" is left out."""
    rows, total = dict(base), 0
    pattern = rf"(\w+)(?: +(\d+(?: +\d+ +\d+)?|none))?((?: +(?:[\d,]+|-)){{{n_columns}}})(?:  +(.*))?$"
    for line in lines:
        found = re.match(pattern, line.strip())
        assert found, f"not a row of the table: {line!r}"
        stage, shape, cell, note = found[1], found[2], found[3].split()[at], found[4]
        if stage == "total":
            total = int(cell.replace(",", ""))
        elif cell == "-":
            assert stage not in rows
        elif shape == "none":
            del rows[stage]
        else:
            place = re.match(r"(after|before|in place of) (\w+)", note or "")
            if place and base:
                rows = with_room(rows, stage, *place.groups())
            assert not base or stage in rows, f"{stage} is new, and nothing says where it stands"
            rows[stage] = (tuple(map(int, shape.split())), int(cell.replace(",", "")))
    return rows, total


def with_room(rows: Table, stage: str, where: str, other: str) -> Table:
    """The rows with `stage` after or before another, or in its place."""
    stages = [each for each in rows if each != stage]
    at = stages.index(other)
    stages[at + (where == "after") : at + (where != "before")] = [stage]
    return {each: rows.get(each, ((), 0)) for each in stages}


def table_of(name: str) -> tuple[Table, int]:
    """What the docstrings say of a net: the table of its class, of its name in its file, or of its file."""
    cls = type(shapes_of(name))
    for doc, own in ((cls.__doc__, True), (sys.modules[cls.__module__].__doc__, cls.__module__.endswith(f".{name}"))):
        for columns, told_from, lines in tables_in(doc or ""):
            if name in columns or (own and columns == ["parameters"]):
                at = columns.index(name) if name in columns else 0
                base = table_of(told_from[at])[0] if told_from else {}
                return column_of(lines, at, len(columns), base)
    raise AssertionError(f"{name} has no table")


def owner(parameter: str, stages: Table) -> str:
    """The stage that a parameter belongs to: `conv2` of `conv2.0.weight`."""
    return next(part for part in reversed(parameter.split(".")) if part in stages)


def test_every_net_has_its_total_here() -> None:
    assert set(TOTALS) == {net.name for net in MODELS.values()}
    assert all(MODELS[alias] is net for net in MODELS.values() for alias in net.aliases)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_docstring_table_are_the_real_nets(name: str) -> None:
    net = shapes_of(name)
    parameters = {key: parameter.numel() for key, parameter in net.named_parameters()}
    assert sum(parameters.values()) == TOTALS[name]
    rows, total = table_of(name)
    stages = trace(net, empty_for(net))
    assert list(rows) == list(stages)
    assert {stage: shape for stage, (shape, _) in rows.items()} == {s: tuple(x.shape[1:]) for s, x in stages.items()}
    counts = dict.fromkeys(rows, 0)
    for key, count in parameters.items():
        counts[owner(key, rows)] += count
    assert {stage: count for stage, (_, count) in rows.items()} == counts
    assert total == TOTALS[name]
    first = getattr(net, next(iter(stages)), None)
    assert net.float32_input == isinstance(first, nn.BatchNorm2d), "where pixels are normalised they come unrounded"


@pytest.mark.parametrize("name", NAMES)
def test_every_net_says_whose_it_is_and_what_differs(name: str) -> None:
    net = shapes_of(name)
    assert str(net.year) in net.paper
    docs = f"{type(net).__doc__}{sys.modules[type(net).__module__].__doc__}"
    assert re.search(r"Differs|As\s+`\w+`\s+but\s+for:", docs)
    assert "paper" in net.inits


@pytest.mark.parametrize("name", NAMES)
def test_channels_and_classes(name: str) -> None:
    with torch.device("meta"):
        net = MODELS[name](in_channels=2, **({} if name == "lenet5" else {"num_classes": 7}))
    assert net.in_channels == 2
    assert list(trace(net, empty_for(net)).values())[-1].shape == (1, net.num_classes)
    assert net.num_classes == (10 if name == "lenet5" else 7)


@pytest.mark.numerical
@pytest.mark.parametrize("name", NAMES)
def test_interface(name: str) -> None:
    net = thin_net(name)
    images = images_for(net)
    net.eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, net.num_classes)
        assert torch.equal(net.heads(images)["logits"], logits)
        channels_last = net(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, logits, rtol=1e-4, atol=1e-4)
    last = list(trace(net, images).values())[-1]  # stage by stage: other kernels, other roundings
    torch.testing.assert_close(last, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    assert net.last in {key.rpartition(".")[0] for key in net.state_dict()}


MACS = {  # 10^9 multiply-adds a picture, as computed independently of this code
    "alexnet": 0.724,
    "zfnet": 1.168,
    "nin_imagenet": 1.100,
    "googlenet": 1.583,
    "vgg_a": 7.61,
    "vgg_b": 11.31,
    "vgg_c": 11.77,
    "vgg_d": 15.47,
    "vgg_e": 19.63,
}


@pytest.mark.parametrize("name", MACS)
def test_multiply_adds(name: str) -> None:
    net = shapes_of(name).eval()
    with FlopCounterMode(display=False) as counter:
        net(empty_for(net))
    assert counter.get_total_flops() / 2 == pytest.approx(MACS[name] * 1e9, rel=1e-3)


@pytest.mark.numerical
@pytest.mark.parametrize(("name", "init"), [("lenet5", "paper"), ("alexnet", "fan-in")])
def test_bfloat16_is_close_to_float32(name: str, init: str) -> None:
    net = net_of(name, init).eval()
    images = images_for(net)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(images)
    assert float((rough.float() - exact).norm() / exact.norm()) < 0.02


WITHOUT_WEIGHTS = """
import sys, torch
from convnet.nets import MODELS
from convnet.nets.describe import summary
with torch.device("meta"):
    for make in MODELS.values():
        make()
for name in ("lenet5", "cifar_26", "nin_small"):
    summary(name)
print("sympy" in sys.modules)
summary("vgg_d")
print("torch._dynamo" in sys.modules)
"""


def test_nets_without_weights_load_no_compiler() -> None:
    """A checkpoint's shapes are compared with those of such a net, in every command, and training begins with the net's
    size; torch's compiler takes 2 s, the algebra of its shapes 0.4 s of a small net's training."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_WEIGHTS], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "False\nFalse\n"


@pytest.mark.parametrize("name", {type(shapes_of(name)).__module__: name for name in NAMES}.values())  # one a file
def test_nets_compile_in_one_piece(name: str) -> None:
    torch._dynamo.reset()  # it gives up on a forward pass that it has compiled eight times, for as many nets
    net = thin_net(name).eval()
    images = images_for(net, 1)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled, net(images), rtol=1e-4, atol=1e-4)


def test_response_norm_compiles_in_one_piece() -> None:
    x = 40 * torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(torch.compile(response_norm, backend="eager", fullgraph=True)(x), response_norm(x))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    again = new_thin_net(name)
    assert torch.equal(torch.get_rng_state(), before)
    for (key, a), b in zip(thin_net(name).state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    other = create_model("lenet5", seed=1)
    assert not torch.equal(other.get_parameter("c1.weight"), create_model("lenet5", seed=0).get_parameter("c1.weight"))


def test_no_seed_draws_one_from_torchs_generator() -> None:
    def first() -> Tensor:
        return create_model("lenet5").get_parameter("c1.weight")

    torch.manual_seed(3)
    a, b = first(), first()
    torch.manual_seed(3)
    assert torch.equal(first(), a)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", ["cifar_13", "cifar_26", "nin_small"])
def test_weights_are_a_function_of_the_generator_however_they_lie(name: str) -> None:
    """torch fills memory in its order; after `to` locally connected layers and convolutions lie otherwise."""
    net, other = create_model(name, seed=0), create_model(name, seed=0)
    other = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layouts = [weight.stride() for weight in other.parameters()]
    for init in net.inits:
        for each in (net, other):
            each.initialize(init, torch.Generator().manual_seed(1))
        assert all(map(torch.equal, net.parameters(), other.parameters()))
    assert [weight.stride() for weight in other.parameters()] == layouts
    for each in (net, other):
        each.reset_classifier(7, seed=2)
    assert all(map(torch.equal, net.parameters(), other.parameters()))


def test_new_classes_of_a_net_with_local_weights_begin_as_ever() -> None:
    net = create_model("cifar_13", seed=0)
    net.reset_classifier(7, seed=5)
    expected = torch.Generator().manual_seed(5)
    sampled = {name: torch.empty(weight.shape).normal_(0, 1, generator=expected)
               for name, weight in net.named_parameters() if name.endswith("weight")}  # fmt: skip
    last = net.get_parameter("fc10.weight")
    torch.testing.assert_close(last / last.std(), sampled["fc10.weight"] / sampled["fc10.weight"].std())


def test_alexnet_paper_init_is_section_5() -> None:
    for name, parameter in net_of("alexnet").named_parameters():
        layer = name.partition(".")[0]
        if name.endswith("weight"):
            assert parameter.mean().item() == pytest.approx(0, abs=5 * 0.01 / math.sqrt(parameter.numel())), name
            assert parameter.std().item() == pytest.approx(0.01, rel=0.02), name
        else:
            expected = 1.0 if layer in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert bool((parameter == expected).all()), name


def test_alexnet_fan_in_init() -> None:
    fan_in = {"conv1": 363, "conv2": 1200, "conv3": 2304, "conv4": 1728, "conv5": 1728, "fc6": 9216, "fc7": 4096}
    for name, parameter in net_of("alexnet", "fan-in").named_parameters():
        layer = name.partition(".")[0]
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif layer == "fc8":
            assert parameter.std().item() == pytest.approx(0.01, rel=0.02)
        else:
            std = math.sqrt(1 / (3 * fan_in[layer])) / (65 if layer == "conv1" else 1)
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert parameter.abs().max().item() <= std * math.sqrt(3) * 1.0001, name


def test_lenet5_init_is_within_the_papers_bounds() -> None:
    for name, parameter in create_model("lenet5", seed=0, output="linear").named_parameters():
        layer = name.partition(".")[0]
        fan_in = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120, "output": 84, "c3": 75}[layer]
        bound = 2.4 if name in ("s2.weight", "s4.weight") else 2.4 / fan_in
        assert parameter.abs().max().item() <= bound, name
        if parameter.numel() > 1000 and layer != "c3":
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    c3 = create_model("lenet5", seed=0).get_parameter("c3.weight")
    assert c3[-6:].abs().max().item() <= 2.4 / 150 < c3[:18].abs().max().item() <= 2.4 / 75


@pytest.mark.numerical
def test_lenet5_whose_c3_reads_all_maps_is_the_papers_where_the_others_weigh_nothing() -> None:
    paper, full = create_model("lenet5", seed=0), create_model("lenet5", seed=1, c3="full")
    assert sum(each.numel() for each in full.parameters()) == 60_000 - 1_516 + 16 * (6 * 25 + 1)
    assert full.get_parameter("c3.weight").abs().max().item() <= 2.4 / 150
    assert full.options_of({name: tuple(x.shape) for name, x in full.state_dict().items()}) == {"c3": "full"}
    assert not paper.options_of({name: tuple(x.shape) for name, x in paper.state_dict().items()})
    c3 = paper.get_submodule("c3")
    assert isinstance(c3, SparseConv2d)
    dense = c3.dense().detach().flatten(0, 1)
    assert (dense.flatten(1).abs().sum(1) > 0).sum() == 60  # the paper's connections
    full.load_state_dict(paper.state_dict() | {"c3.weight": dense})
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(full(x), paper(x), rtol=1e-5, atol=1e-4)  # the sums' order may differ
    with pytest.raises(UsageError, match="unknown c3 'all'"):
        create_model("lenet5", c3="all")


@pytest.mark.parametrize("name", [name for name in list_models("alexnet*") if model(name).other_sizes])
def test_alexnets_are_built_for_other_sides(name: str) -> None:
    with torch.device("meta"):
        own, large = create_model(name, seed=0), create_model(name, seed=0, input_size=512)
        assert create_model(name, seed=0, input_size=own.input_size).sides == own.sides
        net = create_model(name, seed=0, input_size=96)
        stages = {"pool5": (2, 2), "pool2": (5, 5), "pool1": (11, 11)}  # whatever the windows of the pools
        assert {
            stage: x.shape[2:] for stage, x in trace(net, torch.empty(1, 3, 96, 96)).items() if stage in stages
        } == {stage: torch.Size(shape) for stage, shape in stages.items()}
        for side in (net.sides[0], net.sides[-1]):
            assert net(torch.empty(2, 3, side, side)).shape == (2, 1000)
        for side in (net.sides[0] - 1, net.sides[-1] + 1):
            with pytest.raises(UsageError, match=f"{side} x {side}; the option input_size builds it for others"):
                net(torch.empty(2, 3, side, side))
        assert large.sides[-1] == 512
    for odd in (20, 513, 96.0, "96"):
        with pytest.raises(
            UsageError, match=rf"{name}: input_size is {odd!r}; it must be a whole number of pixels from"
        ):
            create_model(name, input_size=odd)


@pytest.mark.numerical
def test_columns_of_conv2_see_their_own_maps_only() -> None:
    net = net_of("alexnet")
    x = torch.randn(1, 96, 7, 7)
    changed = x.clone()
    changed[:, 48:] += 1
    conv2 = net.get_submodule("conv2")
    assert torch.equal(conv2(x)[:, :128], conv2(changed)[:, :128])
    assert not torch.equal(conv2(x)[:, 128:], conv2(changed)[:, 128:])


def test_alexnet_takes_every_side_that_gives_6_by_6() -> None:
    net = net_of("alexnet")
    assert trace(net, torch.zeros(1, 3, 224, 255))["pool5"].shape == (1, 256, 6, 6)
    for side in (223, 256):
        with pytest.raises(UsageError, match=f"alexnet takes pictures with sides of 224 to 255 pixels, got {side}"):
            net(torch.zeros(1, 3, side, 224))


@pytest.mark.numerical
def test_alexnet_drops_half_of_the_hidden_units_in_training_only() -> None:
    net, images = net_of("alexnet", "fan-in"), images_for(net_of("alexnet", "fan-in"), 1)
    with torch.no_grad():
        net.train()
        assert not torch.equal(net(images), net(images))
        net.eval()
        assert torch.equal(net(images), net(images))


HIDDEN = [(0.5, (4096,)), (0.5, (4096,))]  # the inputs of the last two fully connected layers: AlexNet 4.2
HEADS = [(0.7, (1024,)), (0.7, (1024,))]  # the auxiliary heads: GoogLeNet section 5; the last layer has 40 % there
DROPOUT: dict[str, list[tuple[float, tuple[int, ...]]]] = {
    **{name: HIDDEN for pattern in ("alexnet*", "vgg*", "zfnet", "caffenet") for name in list_models(pattern)},
    **{name: [] for name in ("lenet5", "alexnet_bn", "nin_small", *list_models("cifar_*"))},
    "alexnet_owt": [(0.5, (256, 6, 6)), (0.5, (4096,))],  # as torchvision's: the inputs of the first two
    "alexnet_no_exchange_2012": [(0.5, (8192,)), (0.5, (4096,))],
    "nin_cifar10": [(0.5, (96, 16, 16)), (0.5, (192, 8, 8))],  # after all blocks but the last: NIN section 4.1
    "nin_imagenet": [(0.5, (384, 6, 6))],
    "googlenet": [*HEADS, (0.4, (1024,))],
    "googlenet_caffe": [*HEADS, (0.4, (1024,))],
    "googlenet_bn": [*HEADS, (0.2, (1024,))],
}


@pytest.mark.parametrize("name", list_models())
def test_what_is_dropped_and_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(probability, shape of a picture's activation), in training only; and as the net's class says, but for heads."""
    dropped: list[tuple[float, tuple[int, ...]]] = []

    def drop(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        dropped.append((p, tuple(x.shape[1:])))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    with torch.device("meta"):
        net = MODELS[name]()
        images = torch.empty(2, net.in_channels, net.input_size, net.input_size)
    net.train().heads(images)
    shapes = {stage: tuple(x.shape[1:]) for stage, x in trace(net, images).items()}
    stated = [(net.dropout, shapes[stage]) for stage in net.dropped if net.dropout]
    assert [each for each in dropped if each not in HEADS] == stated
    assert dropped == DROPOUT.get(name, stated)
    dropped.clear()
    net.eval().heads(images)
    assert dropped == []


def test_trace_leaves_every_module_in_its_mode() -> None:
    net = create_model("lenet5", seed=0)
    net.train()
    net.get_submodule("f6").eval()
    stages = trace(net, images_for(net))
    assert net.training
    assert not net.get_submodule("f6").training
    assert not any(x.requires_grad for x in stages.values())


def test_trace_takes_stages_and_columns_by_name() -> None:
    net = thin_net("alexnet")
    images = images_for(net)
    everything = trace(net, images)
    some = trace(net, images, ["fc7", "conv2", "relu2.1", "conv3.0"])
    assert list(some) == ["fc7", "conv2", "relu2.1", "conv3.0"]
    assert torch.equal(some["conv2"], everything["conv2"])
    assert torch.equal(some["relu2.1"], everything["relu2"][:, 16:])
    assert torch.equal(some["conv3.0"], everything["conv3"][:, :24])
    own = nn.functional.conv2d(
        everything["pool1"][:, 6:], net.get_parameter("conv2.1.weight"), net.get_parameter("conv2.1.bias"), padding=2
    )
    torch.testing.assert_close(trace(net, images, ["conv2.1"])["conv2.1"], own)
    for wrong, text in (
        ("conv22", "unknown stage 'conv22': did you mean 'conv2'"),
        ("conv2.2", r"unknown stage 'conv2\.2': did you mean 'conv2\.\d'"),
        ("fc8.0", "unknown stage 'fc8.0'"),
    ):
        with pytest.raises(UsageError, match=text):
            trace(net, images, [wrong])
    with pytest.raises(UsageError, match=r"unknown stage 'c1\.0': did you mean 'c1'"):
        trace(net_of("lenet5"), images_for(net_of("lenet5")), ["c1.0"])


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "caffenet", "vgg_a"])
def test_stages_that_nobody_asks_for_are_passed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose inner stages aren't selected is one operation, with the same result and the same known names."""
    net, blocks = thin_net(name), []
    images, norm_pool = images_for(net), ops.norm_pool
    everything = trace(net, images)
    monkeypatch.setattr(ops, "norm_pool", lambda x, block: blocks.append(block) or norm_pool(x, block))
    (pool5,) = trace(net, images, ["pool5"]).values()
    torch.testing.assert_close(pool5, everything["pool5"])
    whole = [block for block in blocks if block.relu_before or block.relu_after or block.n]
    assert len(whole) == {"alexnet": 3, "alexnet_2012": 2, "caffenet": 3, "vgg_a": 5}[name]
    recorded = SelectedStages(["relu1" if name != "vgg_a" else "relu1_1"])
    net(images, recorded)
    assert list(recorded) == list(everything)


@pytest.mark.parametrize(("name", "stage"), [("alexnet", "pool5"), ("lenet5", "s4"), ("googlenet", "inception_4a")])
def test_the_pass_ends_with_the_last_stage_that_is_asked_for(name: str, stage: str) -> None:
    net, ran = deepcopy(thin_net(name)).train(), list[str]()  # hooks stay on it
    images = images_for(net)
    everything = trace(net, images)
    for layer in everything:
        if layer in dict(net.named_children()):
            net.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    first = next(iter(everything))
    found = trace(net, images, [stage, first, stage])
    assert list(found) == [stage, first]
    torch.testing.assert_close(found[stage], everything[stage], rtol=1e-4, atol=1e-5)  # hooked layers run one by one
    assert ran == [layer for layer in list(everything)[: list(everything).index(stage) + 1] if layer in ran]
    assert stage in ran
    assert net.training
    with pytest.raises(UsageError, match=rf"unknown stage 'nothing'.*{list(everything)[-1]}"):
        trace(net, images, [stage, "nothing"])
    if net.columns > 1:
        assert torch.equal(trace(net, images, [f"{stage}.1"])[f"{stage}.1"], found[stage].chunk(2, 1)[1])


def test_features_are_a_stage_flattened() -> None:
    net = thin_net("alexnet")
    net.train()
    images = images_for(net)
    assert torch.equal(features(net, images, "fc7"), trace(net, images)["fc7"])
    pool5 = features(net, images, "pool5")
    assert pool5.shape == (2, 32 * 36)
    assert torch.equal(pool5[1], trace(net, images)["pool5"][1].flatten())
    assert net.training
    assert not pool5.requires_grad


def test_linear_output_has_850_parameters_more_and_any_number_of_classes() -> None:
    net = create_model("lenet5", output="linear", seed=0)
    assert sum(p.numel() for p in net.parameters()) == 60_850
    net = create_model("lenet5", output="linear", num_classes=26, seed=0)
    assert net(torch.zeros(3, 1, 32, 32)).shape == (3, 26)


def test_digit_codes_are_bitmaps_well_apart() -> None:
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    differing = (codes[:, None] != codes).sum(-1) + 84 * torch.eye(10, dtype=torch.long)
    assert int(differing.min()) >= 10


def test_num_classes() -> None:
    with torch.device("meta"):
        net = MODELS["alexnet"](num_classes=10)
    assert net.num_classes == 10
    assert sum(p.numel() for p in net.parameters()) == TOTALS["alexnet"] - 4097 * 990


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "lenet"}, r"unknown net 'lenet': did you mean 'lenet5'\? Known: alexnet, "),
        ({"name": "lenet5", "init": "papers"}, r"unknown init 'papers': did you mean 'paper'\? Known: paper"),
        ({"name": "lenet5", "outputs": "rbf"}, r"lenet5: unknown option 'outputs': did you mean 'output'\?"),
        ({"name": "cifar_26", "output": "rbf"}, r"cifar_26: unknown option 'output': it has none"),
        ({"name": "alexnet", "output": "rbf"}, r"alexnet: unknown option 'output': Known: dropout"),
        (
            {"name": "vgg_a", "dropout": 1},
            r"dropout is 1; it must be a number from 0, which switches it off, to below 1",
        ),
        ({"name": "alexnet", "dropout": True}, r"dropout is True; it must be a number from 0"),
        ({"name": "lenet5", "output": "lineal"}, r"unknown output 'lineal': did you mean 'linear'\?"),
        ({"name": "lenet5", "num_classes": 26}, r"codes for the ten digits, not for 26 classes: use output=linear"),
        ({"name": "lenet5", "num_classes": 0}, r"num_classes is 0; it must be at least 1"),
        ({"name": "alexnet", "in_channels": 0}, r"in_channels is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create_model(**arguments)


@pytest.mark.parametrize("name", list_models())
def test_an_init_that_a_net_does_not_know_is_refused(name: str) -> None:
    net = shapes_of(name)
    with pytest.raises(UsageError, match="unknown init 'none': Known: " + ", ".join(sorted(net.inits))):
        net.initialize("none", torch.Generator())


def test_wrong_pictures_are_named() -> None:
    with pytest.raises(UsageError, match=r"lenet5 takes 1 channel\(s\), got 3"):
        net_of("lenet5")(torch.zeros(1, 3, 32, 32))


def test_list_models() -> None:
    assert list_models() == sorted(MODELS)
    assert list_models("lenet*") == ["lenet5"]
    assert list_models("resnet*") == []


@pytest.mark.parametrize("name", ["alexnet", "lenet5", "vgg_a"])
def test_a_net_is_made_under_any_default_device(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
