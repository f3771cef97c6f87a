"""GoogLeNet against its table 1, a plain functional form and torchvision's published names and shapes."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.errors import UsageError
from convnet.nets import MODELS, create_model, trace
from convnet.nets.googlenet import TABLE_1, GoogLeNet, Inception
from convnet.weights.names import in_state_dicts
from steps import pictures
from thin import new_thin_net

DEPTHS = (256, 480, 512, 512, 512, 528, 832, 832, 1024)  # table 1, depth of 3a to 5b


def shapes_of(name: str, **options: object) -> GoogLeNet:
    with torch.device("meta"):
        net = MODELS[name](**options)
    assert isinstance(net, GoogLeNet)
    return net


@pytest.mark.parametrize(
    ("name", "with_heads", "without"),
    [("googlenet", 13_378_280, 6_998_552), ("googlenet_bn", 13_004_888, 6_624_904)],
)
def test_parameters(name: str, with_heads: int, without: int) -> None:
    assert sum(p.numel() for p in shapes_of(name).parameters()) == with_heads
    assert sum(p.numel() for p in shapes_of(name, heads=False).parameters()) == without


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_weights_say_whether_they_have_heads(name: str) -> None:
    """Of a file that says nothing of itself."""
    for options in ({}, {"heads": False}):
        shapes = {each: tuple(x.shape) for each, x in shapes_of(name, **options).state_dict().items()}
        assert shapes_of(name).options_of(shapes) == options


def test_batch_norm_begins_with_factors_1_and_biases_0() -> None:
    net = new_thin_net("googlenet_bn")
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) > 50
    for norm in norms:
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_depths_are_table_1() -> None:
    stages = trace(shapes_of("googlenet", heads=False), torch.empty(1, 3, 224, 224, device="meta"))
    assert tuple(stages[stage].shape[1] for stage in TABLE_1) == DEPTHS
    assert [stages[f"pool{i}"].shape[-1] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]
    assert "head1" not in stages


def test_the_notes_of_the_docstring_are_table_1() -> None:
    doc = sys.modules[GoogLeNet.__module__].__doc__ or ""
    for stage, maps in TABLE_1.items():
        (line,) = [line for line in doc.splitlines() if line.startswith(stage)]
        assert line.endswith("   {}, {}-{}, {}-{}, {}".format(*maps))


def test_inception_is_the_plain_form() -> None:
    """Figure 2(b) written out, in float64, forward and gradient."""
    torch.manual_seed(0)
    module = Inception(12, (4, 3, 5, 2, 3, 6), bn=False).double()
    p = dict(module.named_parameters())

    def conv(name: str, x: Tensor, padding: int = 0) -> Tensor:
        return F.relu(F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=padding))

    def plain(x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), value=-math.inf)
        largest = padded.unfold(2, 3, 1).unfold(3, 3, 1).amax((-2, -1))
        return torch.cat(
            [
                conv("conv1x1", x),
                conv("conv3x3", conv("reduce3x3", x), 1),
                conv("conv5x5", conv("reduce5x5", x), 2),
                conv("pool_proj", largest),
            ],
            1,
        )

    x = torch.randn(2, 12, 7, 6, dtype=torch.float64, requires_grad=True)
    assert module(x).shape == (2, 18, 7, 6)
    torch.testing.assert_close(module(x), plain(x))
    g = torch.randn(2, 18, 7, 6, dtype=torch.float64)
    ours = torch.autograd.grad(module(x), [x, *p.values()], g)
    theirs = torch.autograd.grad(plain(x), [x, *p.values()], g)
    torch.testing.assert_close(ours, theirs)


def torchvisions() -> dict[str, tuple[int, ...]]:
    """The state dict of torchvision's googlenet with its auxiliary heads, by its rule."""
    found: dict[str, tuple[int, ...]] = {}

    def basic(name: str, maps_in: int, maps: int, size: int) -> None:
        found[f"{name}.conv.weight"] = (maps, maps_in, size, size)
        found.update({f"{name}.bn.{kind}": (maps,) for kind in ("weight", "bias", "running_mean", "running_var")})
        found[f"{name}.bn.num_batches_tracked"] = ()

    for name, maps_in, maps, size in (("conv1", 3, 64, 7), ("conv2", 64, 64, 1), ("conv3", 64, 192, 3)):
        basic(name, maps_in, maps, size)
    maps_in = 192
    for (stage, (n1, reduce3, n3, reduce5, n5, proj)), depth in zip(TABLE_1.items(), DEPTHS, strict=True):
        name = stage.replace("_", "")
        basic(f"{name}.branch1", maps_in, n1, 1)
        basic(f"{name}.branch2.0", maps_in, reduce3, 1)
        basic(f"{name}.branch2.1", reduce3, n3, 3)
        basic(f"{name}.branch3.0", maps_in, reduce5, 1)
        basic(f"{name}.branch3.1", reduce5, n5, 3)
        basic(f"{name}.branch4.1", maps_in, proj, 1)
        maps_in = depth
    for name, maps in (("aux1", 512), ("aux2", 528)):
        basic(f"{name}.conv", maps, 128, 1)
        found |= {f"{name}.fc1.weight": (1024, 2048), f"{name}.fc1.bias": (1024,)}
        found |= {f"{name}.fc2.weight": (1000, 1024), f"{name}.fc2.bias": (1000,)}
    return found | {"fc.weight": (1000, 1024), "fc.bias": (1000,)}


def test_torchvisions_names_and_shapes_fit() -> None:
    net = shapes_of("googlenet_bn")
    ours = {key: tuple(x.shape) for key, x in net.state_dict().items()}
    named = {name: ours[own] for name, (own,) in in_state_dicts(net)["torchvision"].items()}
    assert named == torchvisions()
    assert len(named) == len(ours)


@pytest.mark.parametrize(("name", "k", "alpha"), [("googlenet", 2, 5e-4), ("googlenet_caffe", 1, 1e-4)])
def test_response_normalisation_is_torchs_with_these_constants(name: str, k: float, alpha: float) -> None:
    """torch divides alpha by the window, as Caffe does, whose bvlc_googlenet has k 1 and alpha 1e-4."""
    net = new_thin_net(name)
    stages = trace(net, 100 * pictures(2, 64))
    for before, after in (("pool1", "norm1"), ("conv2", "norm2")):
        torch.testing.assert_close(stages[after], F.local_response_norm(stages[before], 5, alpha, 0.75, k))
    other = F.local_response_norm(stages["pool1"], 5, 1.1 * alpha, 0.75, k)
    assert not torch.allclose(stages["norm1"], other, rtol=1e-2)


def test_heads() -> None:
    net = new_thin_net("googlenet").eval()
    images = pictures(2, 224)
    with torch.no_grad():
        heads = net.heads(images)
        assert list(heads) == ["logits", "head1", "head2"]
        assert torch.equal(heads["logits"], net(images))
        stages = trace(net, images)
        head = net.get_submodule("head1")
        x = F.relu(head.conv(F.avg_pool2d(stages["inception_4a"], 5, 3))).flatten(1)
        torch.testing.assert_close(heads["head1"], head.fc2(F.relu(head.fc1(x))))
    assert dict(net.loss_weights) == {"logits": 1.0, "head1": 0.3, "head2": 0.3}
    copy.deepcopy(net)


def test_torchvisions_heads_average_maps_of_any_size_to_4_by_4() -> None:
    """Cell i of n pixels is the mean of those from i n / 4, rounded down, to (i + 1) n / 4, rounded up, by loops."""
    net = new_thin_net("googlenet_bn").eval()
    for side in (224, 300, 100):
        images = pictures(1, side)
        with torch.no_grad():
            maps = trace(net, images)["inception_4a"]
            n = maps.shape[2]
            spans = [slice(i * n // 4, -(-(i + 1) * n // 4)) for i in range(4)]
            cells = torch.stack([torch.stack([maps[:, :, y, x].mean((2, 3)) for x in spans], 2) for y in spans], 2)
            head = net.get_submodule("head1")
            expected = head.fc2(F.relu(head.fc1(F.relu(head.conv(cells)).flatten(1))))
            torch.testing.assert_close(net.heads(images)["head1"], expected)


def test_input_sizes_with_and_without_heads() -> None:
    net, bare = shapes_of("googlenet"), shapes_of("googlenet", heads=False)
    for side in (31, 64, 222, 271, 320):
        images = torch.empty(1, 3, side, side, device="meta")
        assert net(images).shape == (1, 1000)
        assert bare.heads(images).keys() == {"logits"}
        assert "head1" not in trace(net, images)
        with pytest.raises(UsageError, match=f"heads read pictures with sides of 223 to 270 pixels, got {side} x"):
            net.heads(images)
    for side in (223, 270):
        assert len(net.heads(torch.empty(1, 3, side, 224, device="meta"))) == 3
    with pytest.raises(UsageError, match="googlenet takes pictures with sides of at least 31 pixels, got 30 x 31"):
        net(torch.empty(1, 3, 30, 31, device="meta"))


def test_the_smallest_picture_really_runs() -> None:
    net = new_thin_net("googlenet").eval()
    with torch.no_grad():
        assert bool(net(pictures(1, 31)).isfinite().all())


def test_initial_values() -> None:
    net = create_model("googlenet", seed=0)
    for key, parameter in net.named_parameters():
        if key.endswith("bias"):
            last = key in ("fc.bias", "head1.fc2.bias", "head2.fc2.bias")
            assert bool((parameter == (0.0 if last else 0.2)).all()), key
        else:
            assert parameter.abs().max().item() <= math.sqrt(3 / parameter[0].numel())
            std = math.sqrt(1 / parameter[0].numel())
            assert parameter.std().item() == pytest.approx(std, rel=3 / math.sqrt(parameter.numel())), key


def test_auxiliary_heads_learn_in_the_loops_loss() -> None:
    """The sum that the loop takes: every parameter of both heads has a gradient."""
    net = new_thin_net("googlenet").train()
    heads = net.heads(pictures(2, 224))
    sum(w * F.cross_entropy(heads[name], torch.tensor([0, 1])) for name, w in net.loss_weights.items()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
