"""A stage is a module: hooks, torch.fx and others' tools of interpretation find what `trace` names."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from convnet.kernels import ops
from convnet.nets import MODELS, trace
from convnet.nets.layers import Net, ResponseNorm, in_one_pass
from thin import images_for, thin_net

NETS = sorted({net.name for net in MODELS.values()})


@pytest.mark.parametrize("name", NETS)
def test_a_hook_on_a_stages_module_gets_what_trace_gives(name: str) -> None:
    net, images = deepcopy(thin_net(name)).eval(), images_for(thin_net(name))
    expected, logits, found = trace(net, images), net(images), dict[str, Tensor]()
    for stage in expected:
        net.get_submodule(stage).register_forward_hook(lambda _, __, y, stage=stage: found.update({stage: y}))
    again = net(images)
    assert list(found) == [stage for stage in expected if not stage.startswith("head")], "heads run when asked for"
    for stage, y in found.items():  # hooked layers are torch's own, whose sums are in another order
        scale = float(expected[stage].abs().max())
        torch.testing.assert_close(
            y.detach(), expected[stage], rtol=1e-4, atol=1e-5 * scale, msg=lambda m, s=stage: f"{s}: {m}"
        )
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5 * float(logits.detach().abs().max()))


@pytest.mark.parametrize("name", NETS)
def test_torch_fx_finds_the_stages(name: str) -> None:
    net, images = deepcopy(thin_net(name)).eval(), images_for(thin_net(name))
    graph = torch.fx.symbolic_trace(net)
    scale = float(net(images).detach().abs().max())
    torch.testing.assert_close(graph(images, None), net(images), rtol=1e-4, atol=1e-5 * scale)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    rectified = {path for path, layer in net.named_modules() if isinstance(layer, nn.ReLU) and "head" not in path}
    assert rectified <= called
    torch.fx.symbolic_trace(net.train())  # as torchvision's feature extractor does too


class Guided:
    """What captum's GuidedBackprop does: a backward hook on each ReLU lets only positive gradients pass."""

    def __init__(self, net: nn.Module) -> None:
        for layer in net.modules():
            if isinstance(layer, nn.ReLU):
                layer.register_full_backward_hook(lambda _, grads, __: (grads[0].clamp(min=0),))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "vgg_a", "googlenet", "nin_cifar10", "cifar_11"])
def test_guided_backpropagation_by_hooks_is_that_of_plain_relus(name: str) -> None:
    """Held against the same net whose ReLUs have a backward pass of their own."""
    net, images = deepcopy(thin_net(name)).eval(), images_for(thin_net(name)).requires_grad_()
    (plain,) = torch.autograd.grad(net(images)[:, 1].sum(), images)
    by_function = deepcopy(net)
    for path, layer in list(by_function.named_modules()):
        if isinstance(layer, nn.ReLU):
            parent, _, own = path.rpartition(".")
            setattr(by_function.get_submodule(parent), own, GuidedReLU())
    (expected,) = torch.autograd.grad(by_function(images)[:, 1].sum(), images)
    Guided(net)
    (found,) = torch.autograd.grad(net(images)[:, 1].sum(), images)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)
    assert (found - plain).abs().max() > 0.1 * plain.abs().max()


class GuidedReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Guided.apply(x)  # type: ignore[no-untyped-call]
        return y


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g.clamp(min=0) * (x > 0)


def test_layers_are_one_pass_where_nobody_hooks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, blocks = deepcopy(thin_net("alexnet")).eval(), images_for(thin_net("alexnet")), []
    whole = ops.norm_pool
    monkeypatch.setattr(ops, "norm_pool", lambda x, block: blocks.append(block) or whole(x, block))
    net(images)
    assert [(block.relu_before, block.n, block.size) for block in blocks] == [(True, 5, 3), (True, 5, 3), (True, 0, 3)]
    blocks.clear()
    net.get_submodule("norm1").register_forward_hook(lambda *_: None)
    net(images)
    assert [block.size for block in blocks] == [3, 3, 3], "pool1 by itself, then layers 2 and 5 whole"
    assert [block.n for block in blocks] == [0, 5, 0]


def test_another_module_in_a_stages_place_is_called() -> None:
    net, images = deepcopy(thin_net("alexnet")).eval(), images_for(thin_net("alexnet"))
    before = net(images)
    net.relu1 = nn.Softplus()
    assert not torch.equal(net(images), before)
    assert isinstance(net, Net)
    net.relu1 = nn.ReLU()
    assert torch.equal(net(images), before)


def test_what_is_one_pass() -> None:
    relu, norm, pool = nn.ReLU(), ResponseNorm(), nn.MaxPool2d(3, 2)
    counts = [
        ([relu, norm, pool, relu], 3),
        ([norm, pool, relu, norm], 3),
        ([pool, relu, pool], 2),
        ([relu, pool, norm], 2),
        ([pool], 1),
        ([relu, norm], 1),
        ([relu, relu, pool], 1),
        ([norm, norm, pool], 1),
        ([relu, nn.Conv2d(1, 1, 1), pool], 1),
        ([relu, nn.MaxPool2d(3, 2, padding=1)], 1),
        ([nn.MaxPool2d((3, 2), 2)], 1),
    ]
    assert [in_one_pass(layers)[0] for layers, _ in counts] == [n for _, n in counts]
    assert [in_one_pass(layers)[1] is not None for layers, _ in counts] == [True] * 5 + [False] * 6
    hooked = deepcopy(pool)
    hooked.register_forward_hook(lambda *_: None)
    assert in_one_pass([relu, hooked]) == (1, None)
