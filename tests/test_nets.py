"""The nets against their own tables and the published numbers; what `create_model`, `list_models`, `trace` promise."""

import math
import re
import sys
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from convnet.errors import UsageError
from convnet.nets import MODELS, create_model, list_models, trace
from convnet.nets.layers import Net, response_norm
from convnet.nets.lenet5 import digit_codes

TOTALS = {"lenet5": 60_000, "alexnet": 60_965_224}  # one row a net


@cache
def net_of(name: str, init: str = "paper") -> Net:
    return create_model(name, init=init, seed=0)


def images_for(net: Net, n: int = 2) -> Tensor:
    shape = (n, net.in_channels, net.input_size, net.input_size)
    scale = 65 if net.in_channels == 3 else 1
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def table_of(net: Net) -> tuple[dict[str, tuple[tuple[int, ...], int]], int]:
    """({stage: (shape, parameters)}, total) as the docstring of the net's file says."""
    doc = sys.modules[type(net).__module__].__doc__ or ""
    rows, total = {}, 0
    for line in doc.split("stage ", 1)[1].split("\n\n")[0].splitlines()[1:]:
        if found := re.match(r"total +([\d,]+)$", line):
            total = int(found[1].replace(",", ""))
            continue
        found = re.match(r"(\w+) +(\d+(?: +\d+ +\d+)?) +([\d,]+)(?: |$)", line)
        assert found, f"not a row of the table: {line!r}"
        rows[found[1]] = (tuple(map(int, found[2].split())), int(found[3].replace(",", "")))
    return rows, total


def test_every_net_has_its_total_here() -> None:
    assert set(TOTALS) == set(MODELS)


@pytest.mark.parametrize("name", TOTALS)
def test_docstring_table_is_the_real_trace(name: str) -> None:
    net = net_of(name)
    rows, total = table_of(net)
    stages = trace(net, images_for(net))
    assert list(rows) == list(stages)
    assert {stage: shape for stage, (shape, _) in rows.items()} == {s: tuple(x.shape[1:]) for s, x in stages.items()}
    counts = dict.fromkeys(rows, 0)
    for parameter_name, parameter in net.named_parameters():
        counts[parameter_name.partition(".")[0]] += parameter.numel()
    assert {stage: count for stage, (_, count) in rows.items()} == counts
    assert total == sum(counts.values()) == TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_interface(name: str) -> None:
    net = net_of(name)
    images = images_for(net)
    net.eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, net.num_classes)
        assert torch.equal(net.heads(images)["logits"], logits)
        channels_last = net(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(list(trace(net, images).values())[-1], logits)
    assert net.last in {key.rpartition(".")[0] for key in net.state_dict()}


@pytest.mark.parametrize(("name", "init"), [("lenet5", "paper"), ("alexnet", "fan-in")])
def test_bfloat16_is_close_to_float32(name: str, init: str) -> None:
    net = net_of(name, init).eval()
    images = images_for(net)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(images)
    assert float((rough.float() - exact).norm() / exact.norm()) < 0.02


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small operations wait for each other's threads when the machine has other work: 17 s for 1 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_lenet5_starts_to_learn() -> None:
    net = create_model("lenet5", seed=0)
    images, labels = images_for(net, 8), torch.arange(8)
    update = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("name", TOTALS)
def test_nets_compile_in_one_piece(name: str) -> None:
    net = net_of(name).eval()
    images = images_for(net)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled, net(images), rtol=1e-4, atol=1e-4)


def test_response_norm_compiles_in_one_piece() -> None:
    x = 40 * torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(torch.compile(response_norm, backend="eager", fullgraph=True)(x), response_norm(x))


@pytest.mark.parametrize("name", TOTALS)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    again = create_model(name, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    for (key, a), b in zip(net_of(name).state_dict().items(), again.state_dict().values(), strict=True):
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


def test_alexnet_drops_half_of_the_hidden_units_in_training_only() -> None:
    net, images = net_of("alexnet", "fan-in"), images_for(net_of("alexnet", "fan-in"), 1)
    with torch.no_grad():
        net.train()
        assert not torch.equal(net(images), net(images))
        net.eval()
        assert torch.equal(net(images), net(images))


def test_trace_leaves_every_module_in_its_mode() -> None:
    net = create_model("lenet5", seed=0)
    net.train()
    net.get_submodule("f6").eval()
    stages = trace(net, images_for(net))
    assert net.training
    assert not net.get_submodule("f6").training
    assert not any(x.requires_grad for x in stages.values())


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
    net = create_model("alexnet", num_classes=10, seed=0)
    assert net.num_classes == 10
    assert sum(p.numel() for p in net.parameters()) == TOTALS["alexnet"] - 4097 * 990


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "lenet"}, r"unknown net 'lenet': did you mean 'lenet5'\? Known: alexnet, lenet5"),
        ({"name": "lenet5", "init": "papers"}, r"unknown init 'papers': did you mean 'paper'\? Known: paper"),
        ({"name": "lenet5", "outputs": "rbf"}, r"lenet5: unknown option 'outputs': did you mean 'output'\?"),
        ({"name": "alexnet", "output": "rbf"}, r"alexnet: unknown option 'output': it has none"),
        ({"name": "lenet5", "output": "lineal"}, r"unknown output 'lineal': did you mean 'linear'\?"),
        ({"name": "lenet5", "num_classes": 26}, r"codes for the ten digits, not for 26 classes: use output=linear"),
        ({"name": "lenet5", "num_classes": 0}, r"num_classes is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create_model(**arguments)


def test_wrong_pictures_are_named() -> None:
    with pytest.raises(UsageError, match=r"lenet5 takes 1 channel\(s\), got 3"):
        net_of("lenet5")(torch.zeros(1, 3, 32, 32))


def test_list_models() -> None:
    assert list_models() == sorted(MODELS)
    assert list_models("*5") == ["lenet5"]
    assert list_models("resnet*") == []
