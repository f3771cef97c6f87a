"""torch's own tools on nets with our operations: each sees one operation or its plain form, with the same numbers."""

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convnet.kernels.cpu import compiled
from convnet.kernels.plain import Block
from convnet.nets import MODELS, create_model
from convnet.nets.layers import Net
from thin import images_for, new_thin_net

DAILY = ("alexnet", "alexnet_2012", "caffenet", "zfnet", "cifar_11", "nin_imagenet", "vgg_a", "googlenet", "lenet5")
NETS = [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.large)  # put together as one of these is
    for name in sorted({net.name for net in MODELS.values()})
]
OPERATIONS = ("alexnet", "caffenet", "cifar_11", "vgg_a")  # with norm and pool, in groups, pool alone, ReLU and pool
BLOCK = Block(5, 2.0, 0.1, 0.75, size=3, stride=2, relu_before=True)
traced = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*is deprecated")
OPS = torch.ops.convnet


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def example(name: str) -> tuple[Net, Tensor]:
    net = new_thin_net(name).eval()
    return net, images_for(net)


def alike(found: Tensor, expected: Tensor) -> None:
    """The same net in other forms of its operations: a few roundings of float32 a layer."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


def near(found: Tensor, expected: Tensor) -> bool:
    """Whether gradients are. Other roundings choose other places of a maximum: GoogLeNet's first were 0.7 % apart,
    alexnet_caffe's 2.1 %; a wrong one is apart by as much as it is large."""
    return bool((found - expected).norm() <= 0.1 * expected.norm() + 1e-7)


@traced
@pytest.mark.parametrize("name", NETS)
def test_jit_trace_and_its_file(name: str) -> None:
    net, images = example(name)
    module, file = torch.jit.trace(net, (images,)), io.BytesIO()
    alike(module(images), net(images))
    torch.jit.save(module, file)
    file.seek(0)
    alike(torch.jit.load(file)(images), net(images))


@pytest.mark.parametrize("name", NETS)
def test_gradients_by_torch_func(name: str) -> None:
    net, images = example(name)
    weights = {key: weight.detach() for key, weight in net.named_parameters()}

    def loss(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights, (images,)).square().mean()

    found = torch.func.grad(loss)(weights, images)
    net(images).square().mean().backward()
    for key, weight in net.named_parameters():
        assert weight.grad is None or near(found[key], weight.grad), key


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_single_pictures_by_vmap(name: str) -> None:
    net, images = example(name)

    def energy(image: Tensor) -> Tensor:
        y: Tensor = net(image[None])
        return y.square().sum()

    found = torch.func.vmap(torch.func.grad(energy))(images)
    own = images.clone().requires_grad_()
    net(own).square().sum().backward()
    assert own.grad is not None
    assert near(found, own.grad)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
def test_forward_mode_and_hessians_by_torch_func() -> None:
    x, v = randn(1, 4, 7, 7).double(), randn(1, 4, 7, 7, seed=1).double()

    def energy(x: Tensor) -> Tensor:
        y: Tensor = OPS.norm_pool(x, *BLOCK.fields)
        return y.square().sum()

    _, along = torch.func.jvp(energy, (x,), (v,))
    torch.testing.assert_close(along, (torch.func.grad(energy)(x) * v).sum())
    product = torch.func.jvp(torch.func.grad(energy), (x,), (v,))[1]
    step = 1e-6 * v
    slope = (torch.func.grad(energy)(x + step) - torch.func.grad(energy)(x - step)) / 2e-6
    torch.testing.assert_close(product, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "vgg_a", "googlenet"])
def test_compiled_with_gradients(name: str) -> None:
    net, images = example(name)
    module = torch.compile(net, backend="aot_eager", fullgraph=True)
    y = module(images)
    alike(y, net(images))
    y.square().mean().backward()
    found = {key: weight.grad for key, weight in net.named_parameters()}
    net.zero_grad()
    net(images).square().mean().backward()
    for key, weight in net.named_parameters():
        if weight.grad is not None:
            assert near(found[key], weight.grad), key
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["alexnet", "vgg_a", "cifar_11"])
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_exported_it_is_one_operation(name: str) -> None:
    net, images = example(name)
    program = torch.export.export(net, (images,))
    targets = [node.target for node in program.graph.nodes]
    assert OPS.norm_pool.default in targets
    alike(program.module()(images), net(images))


@traced
@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")  # torch's
@pytest.mark.parametrize("name", ["alexnet", "caffenet"])
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_by_both_of_torchs_ways(name: str, dynamo: bool, tmp_path: Path) -> None:
    """ONNX knows no operation of ours: it gets the plain form."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, images = example(name)
    torch.onnx.export(net, (images,), tmp_path / "net.onnx", dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.contiguous().numpy()})
    alike(torch.from_numpy(found), net(images).detach())


@pytest.mark.parametrize("name", NETS)
def test_copies_pickles_replicas_and_hooks(name: str) -> None:
    net, images = example(name)
    expected = net(images)
    assert torch.equal(deepcopy(net)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(images), expected)
    assert torch.equal(nn.DataParallel(net)(images), expected)
    called: set[str] = set()
    for path, module in net.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, path=path: called.add(path))
    alike(net(images), expected)
    layers = {path.rpartition(".")[0] for path, _ in net.named_parameters()}
    assert not [path for path in layers - called if not path.startswith("head")]  # GoogLeNet's heads train


def by_norm_pool(x: Tensor) -> Tensor:
    y: Tensor = OPS.norm_pool(x, *BLOCK.fields)
    return y


def by_dropout(x: Tensor) -> Tensor:
    y: Tensor = OPS.dropout(x, 0.5, torch.tensor(7), 3)
    return y


@pytest.mark.parametrize("function", [by_norm_pool, by_dropout])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fakes_have_the_shapes_and_strides_of_results(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = randn(2, 6, 7, 9).to(dtype).to(memory_format=layout)
        compiled_function = torch.compile(function, backend="aot_eager", fullgraph=True)
        for own in (x, x.clone().requires_grad_()):
            found, expected = compiled_function(own), function(own)
            assert found.stride() == expected.stride()
            assert torch.equal(found, expected)
    torch.compiler.reset()


@pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own check, from 2.15 on
def test_torchs_own_check_of_the_kernels() -> None:
    x = randn(2, 6, 7, 9).contiguous(memory_format=torch.channels_last)
    y, places = OPS.norm_pool_forward(x, *BLOCK.fields, True)
    torch.library.opcheck(OPS.norm_pool_forward.default, (x, *BLOCK.fields, True))
    torch.library.opcheck(OPS.norm_pool_forward.default, (x, *BLOCK.fields, False))
    torch.library.opcheck(OPS.norm_pool_backward.default, (x, places, y, *BLOCK.fields))
    torch.library.opcheck(OPS.dropout_forward.default, (x, 0.5, torch.tensor(7), 3))
    torch.library.opcheck(OPS.to_blocks_forward.default, (x, 4, 2, 3))
    net = create_model("lenet5", seed=0)
    table = net.get_buffer("c3.outputs"), net.get_buffer("c3.inputs")
    features = randn(2, 1, 32, 32), list(net.parameters()), *table
    torch.library.opcheck(OPS.lenet5.default, features, rtol=1e-4, atol=1e-5)  # against the plain form: other roundings
    torch.library.opcheck(OPS.norm_pool.default, (x.requires_grad_(), *BLOCK.fields))
