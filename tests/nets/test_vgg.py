"""VGG's configurations against tables 1 and 2, SPEED's counts and torchvision's published names and shapes."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.export import export
from convnet.nets import MODELS, create_model, trace
from convnet.nets.vgg import VGG
from convnet.recipe import Recipe, from_toml, load_recipe, to_toml, with_settings
from convnet.training.optim import optimizer
from convnet.training.run import fresh_net
from convnet.weights import read_weights
from convnet.weights.names import in_state_dicts
from steps import losses
from thin import THINNER, new_thin_net, thinned

TOTALS = {
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
ALIASES = {"vgg11": "vgg_a", "vgg13": "vgg_b", "vgg16": "vgg_d", "vgg19": "vgg_e"}


def shapes_of(name: str, **options: Any) -> VGG:
    with torch.device("meta"):
        net = MODELS[name](**options)
    assert isinstance(net, VGG)
    return net


@pytest.mark.parametrize("name", TOTALS)
def test_parameters(name: str) -> None:
    net = shapes_of(name)
    assert sum(p.numel() for p in net.parameters()) == TOTALS[name]
    assert net.name == name
    layers = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    documented = {"a": 11, "a_lrn": 11, "b": 13, "b_shallow": 8, "c": 16, "d": 16, "e": 19}
    assert len(layers) == documented[name.removeprefix("vgg_").removesuffix("_bn")]
    assert layers[-3:] == ["fc6", "fc7", "fc8"]
    assert {file.partition(".")[0] for file in net.published} <= {*net.aliases}, "its files have the name of this net"


@pytest.mark.parametrize("alias", ALIASES)
def test_the_numbers_of_layers_are_names_too(alias: str) -> None:
    for suffix in ("", "_bn"):
        assert shapes_of(alias + suffix).name == ALIASES[alias] + suffix


def test_configurations_are_table_1() -> None:
    c, d = shapes_of("vgg_c"), shapes_of("vgg_d")
    kernels = {key: module.kernel_size[0] for key, module in c.named_modules() if isinstance(module, nn.Conv2d)}
    assert {key for key, size in kernels.items() if size == 1} == {"conv3_3", "conv4_3", "conv5_3"}
    assert {module.kernel_size for module in d.modules() if isinstance(module, nn.Conv2d)} == {(3, 3)}
    lrn = trace(shapes_of("vgg_a_lrn"), torch.empty(1, 3, 224, 224, device="meta"))
    assert list(lrn)[:4] == ["conv1_1", "relu1_1", "norm1", "pool1"]
    assert [stage for stage in lrn if stage.startswith("norm")] == ["norm1"]
    bn = trace(shapes_of("vgg_a_bn"), torch.empty(1, 3, 224, 224, device="meta"))
    assert list(bn)[:4] == ["conv1_1", "bn1_1", "relu1_1", "pool1"]


def test_two_3x3_see_what_one_5x5_sees() -> None:
    """Section 2.3: the same receptive field; the shallow net keeps every stage's size."""
    images = torch.empty(1, 3, 224, 224, device="meta")
    deep, shallow = (trace(shapes_of(name), images) for name in ("vgg_b", "vgg_b_shallow"))
    for b in range(1, 6):
        assert deep[f"pool{b}"].shape == shallow[f"pool{b}"].shape


def test_the_net_is_the_plain_one() -> None:
    """Thin A and D with batch norm, against nn.Sequential as torchvision builds it; in float64, where other orders of
    sums are 1e-14 apart."""
    for name in ("vgg_a", "vgg_d_bn"):
        net = new_thin_net(name).double().eval()
        assert isinstance(net, VGG)
        modules: list[nn.Module] = []
        for b, block in enumerate(net.blocks, 1):
            for i in range(1, len(block) + 1):
                modules.append(net.get_submodule(f"conv{b}_{i}"))
                if net.batch_norm:
                    modules.append(net.get_submodule(f"bn{b}_{i}"))
                modules.append(nn.ReLU())
            modules.append(nn.MaxPool2d(2, 2))
        plain = nn.Sequential(*modules, nn.Flatten(), net.fc6, nn.ReLU(), nn.Dropout(), net.fc7, nn.ReLU(),
                              nn.Dropout(), net.fc8).eval()  # fmt: skip
        x = 60 * torch.randn(2, 3, 224, 230, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), plain(x), rtol=1e-11, atol=1e-11)


def torchvisions(sizes: list[int | str], batch_norm: bool) -> dict[str, tuple[int, ...]]:
    """The state dict of torchvision's vgg by its rule: `make_layers` and the classifier."""
    found: dict[str, tuple[int, ...]] = {}
    at, maps = 0, 3
    for size in sizes:
        if isinstance(size, str):
            at += 1
            continue
        found |= {f"features.{at}.weight": (size, maps, 3, 3), f"features.{at}.bias": (size,)}
        if batch_norm:
            for kind in ("weight", "bias", "running_mean", "running_var"):
                found[f"features.{at + 1}.{kind}"] = (size,)
            found[f"features.{at + 1}.num_batches_tracked"] = ()
        at, maps = at + (3 if batch_norm else 2), size
    for i, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        found |= {f"classifier.{i}.weight": shape, f"classifier.{i}.bias": shape[:1]}
    return found


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("alias", ALIASES)
def test_torchvisions_names_and_shapes_fit(alias: str, batch_norm: bool) -> None:
    counts = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
    sizes: list[int | str] = []
    for n, maps in zip(counts[alias], (64, 128, 256, 512, 512), strict=True):
        sizes += [*[maps] * n, "M"]
    theirs = torchvisions(sizes, batch_norm)
    net = shapes_of(alias + ("_bn" if batch_norm else ""))
    ours = {key: tuple(x.shape) for key, x in net.state_dict().items()}
    assert list(theirs.values()) == list(ours.values())
    assert {name: ours[own] for name, (own,) in in_state_dicts(net)["torchvision"].items()} == theirs


def test_input_sizes() -> None:
    net = shapes_of("vgg_e", in_channels=1)
    for side in (224, 255):
        assert trace(net, torch.empty(1, 1, side, 224, device="meta"))["pool5"].shape == (1, 512, 7, 7)
    for side in (223, 256):
        with pytest.raises(UsageError, match=f"vgg_e takes pictures with sides of 224 to 255 pixels, got {side} x 224"):
            net(torch.empty(1, 1, side, 224, device="meta"))


SIZES = [
    (32, 1, "32 to 63"),
    (64, 2, "64 to 95"),
    (100, 3, "96 to 127"),
    (224, 7, "224 to 255"),
    (512, 16, "512 to 543"),
]


@pytest.mark.parametrize(("input_size", "maps", "sides"), SIZES)
def test_input_size_builds_fc6_for_the_maps_of_its_pictures(input_size: int, maps: int, sides: str) -> None:
    net, paper = shapes_of("vgg_a_bn", input_size=input_size), shapes_of("vgg_a_bn")
    first, last = map(int, sides.split(" to "))
    for side in (first, input_size, last):
        assert trace(net, torch.empty(1, 3, side, side, device="meta"))["pool5"].shape == (1, 512, maps, maps)
    for side in (first - 1, last + 1):
        with pytest.raises(UsageError, match=f"sides of {sides} pixels, got {side} x {first}; the option input_size"):
            net(torch.empty(1, 3, side, first, device="meta"))
    counts = {key: p.numel() for key, p in net.named_parameters()}
    assert counts.pop("fc6.weight") == 512 * maps * maps * 4096
    assert counts == {key: p.numel() for key, p in paper.named_parameters() if key != "fc6.weight"}
    assert net.input_size == input_size


@pytest.mark.parametrize("wrong", [31, 513, 0, -64, 64.0, "64", True, None])
def test_wrong_input_sizes(wrong: object) -> None:
    text = f"vgg_a: input_size is {wrong!r}; it must be a whole number of pixels from 32 to 512"
    with pytest.raises(UsageError, match=re.escape(text)):
        create_model("vgg_a", num_classes=10, input_size=wrong)


def test_the_net_of_another_size_is_the_plain_one() -> None:
    """In float64, as above."""
    net = new_thin_net("vgg_b", input_size=70).double().eval()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    x = y = 60 * torch.randn(2, 3, 70, 95, dtype=torch.float64)
    with torch.no_grad():
        for i, layer in enumerate(layers):
            y = layer(y.flatten(1) if isinstance(layer, nn.Linear) else y)
            y = F.relu(y) if layer is not layers[-1] else y
            y = F.max_pool2d(y, 2) if i in (1, 3, 5, 7, 9) else y
        torch.testing.assert_close(net(x), y, rtol=1e-11, atol=1e-11)


def test_input_size_in_recipe_checkpoint_and_files(tmp_path: Path) -> None:
    """What a recipe says is what a checkpoint rebuilds, and what comes back from files that others read."""
    recipe = with_settings(load_recipe("vgg_a"), ["net_options.input_size=64", "size=72", "crop=64"])
    assert from_toml(to_toml(recipe)) == recipe
    with torch.device("meta"):
        assert fresh_net(recipe, 3).input_size == 64
    wrong = with_settings(recipe, ["net_options.input_size=96"])
    with pytest.raises(
        UsageError, match="vgg_a takes pictures with sides of 96 to 127 pixels, got 64 x 64; the option"
    ):
        fresh_net(wrong, 3)
    with thinned(THINNER):
        net = create_model("vgg_a", num_classes=3, init="glorot", seed=0, input_size=64).eval()
        done = Preprocessing(size=72, pad=0, crop=64, channels="rgb", mean=None, scale=0.015, offset=0.0)
        kept = Checkpoint(recipe, done, ("a", "b", "c"), net.state_dict())
        checkpoint.save(tmp_path / "a.ckpt", kept)
        again = checkpoint.rebuild(checkpoint.load(tmp_path / "a.ckpt"))
        assert again.input_size == 64
        images = 60 * torch.randn(2, 3, 64, 64)
        assert torch.equal(again(images), net(images))
        for name in ("a.safetensors", "a.npz", "a.caffemodel"):
            export(kept, tmp_path / name)
            found, _ = read_weights(tmp_path / name, "vgg_a")
            assert found.recipe.net_options == {"input_size": 64}
            assert all(torch.equal(found.weights[key], kept.weights[key]) for key in kept.weights), name
        with pytest.raises(
            UsageError,
            match="torchvision's vgg_a takes pictures with sides of 224 pixels and more, this one of 64: use --names",
        ):
            export(kept, tmp_path / "b.safetensors", names="torchvision")


@pytest.mark.large
def test_onnx_of_another_input_size(tmp_path: Path) -> None:
    """The writing itself holds onnxruntime's answers against torch's."""
    pytest.importorskip("onnxscript")
    recipe = Recipe(net="vgg_d_bn", net_options={"input_size": 64}, crop=64, size=72)
    done = Preprocessing(size=72, pad=0, crop=64, channels="rgb", mean=None, scale=0.015, offset=0.0)
    with thinned(THINNER):
        net = create_model("vgg_d_bn", num_classes=4, init="glorot", seed=0, input_size=64)
        written = export(Checkpoint(recipe, done, tuple("abcd"), net.state_dict()), tmp_path / "a.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5


def test_initial_values() -> None:
    net = new_thin_net("vgg_a_bn")
    for init in ("paper", "glorot", "he"):
        net.initialize(init, torch.Generator().manual_seed(0))
        for key, parameter in net.named_parameters():
            if key.endswith("bias"):
                assert not parameter.any(), key
            elif key.startswith("bn"):
                assert bool((parameter == 1).all()), key
            else:
                fan_in, fan_out = parameter[0].numel(), parameter[:, 0].numel()
                he = 0.01 if key == "fc8.weight" else math.sqrt(2 / fan_in)
                std = {"paper": 0.1, "glorot": math.sqrt(2 / (fan_in + fan_out)), "he": he}[init]
                error = 4 / math.sqrt(parameter.numel())
                assert parameter.std().item() == pytest.approx(std, rel=error), key
                assert abs(parameter.mean().item()) <= error * std, key
    with pytest.raises(UsageError, match="unknown init 'golrot': did you mean 'glorot'"):
        net.initialize("golrot", torch.Generator())


def test_loss_falls_from_glorots_values() -> None:
    for size, lr_factor in ((224, 1), (64, 4)):
        found = losses(new_thin_net("vgg_a", input_size=size), "vgg_a", lr_factor=lr_factor)
        assert found[-1] < 0.9 * found[0], found


def real_steps(net: nn.Module, n_steps: int) -> list[float]:
    """The losses of steps at the recipe's rate, momentum and scale, with dropout, on 8 pictures of 4 colours."""
    labels = torch.arange(8) % 4
    colours = 50 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])[labels]
    noise = 40 * torch.randn((8, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    recipe, found = load_recipe("vgg_a"), []
    images = recipe.scale * (noise + colours[:, :, None, None])
    update = optimizer(net.train(), recipe)
    torch.manual_seed(0)
    for _ in range(n_steps):
        update.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        update.step(recipe.lr)
        found.append(loss.item())
    return found


@pytest.mark.large
def test_vgg_a_starts_from_glorots_values_and_not_from_the_papers() -> None:
    net = create_model("vgg_a", num_classes=4, init="glorot", seed=0)
    found = real_steps(net, 20)
    assert found[-1] < 0.5 * found[0], found
    net.initialize("paper", torch.Generator().manual_seed(0))
    found = real_steps(net, 3)
    assert found[0] > 1e4
    assert not found[-1] < found[0], found
