"""The .prototxt beside a .caffemodel, read and run by an independent form of Caffe: every stage is the net's own."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import caffe_runner
from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.export import caffe, export, prototxt
from convnet.nets import MODELS, create_model, trace
from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net
from convnet.recipe import Recipe
from convnet.weights.caffe import read_net
from peers import alike, package
from thin import images_for, new_thin_net, of_each_kind, shapes_of

LACK = ("alexnet_bn", "cifar_11", "cifar_13", "googlenet_bn", "lenet5")
CROPS = {"alexnet_pool2": 196}  # whose 48, 24 and 12 pixels its windows of 2 x 2 cover whole; elsewhere its own
NAMES = [name for name in MODELS if name not in LACK and not name.endswith("_bn") and not name.startswith("vgg1")]


def kept_of(name: str, net: Net, crop: int | None = None, **others: Any) -> Checkpoint:
    side = crop or net.input_size
    grey = {"channels": "grey"} if net.in_channels == 1 else {}
    done = Preprocessing(**{"size": side, "pad": 0, "crop": side, "channels": "rgb", "mean": None, "scale": 1.0,
                            "offset": 0.0, **grey, **others})  # fmt: skip
    recipe = Recipe(name="a", net=name, size=side, crop=side)
    return Checkpoint(recipe, done, tuple(str(k) for k in range(net.num_classes)), net.state_dict())


def written(net: Net, name: str, folder: Path, crop: int | None = None) -> tuple[str, dict[str, torch.Tensor]]:
    caffe.write(net, kept_of(name, net, crop), folder / "a.caffemodel", folder / "a.prototxt")
    return (folder / "a.prototxt").read_text(encoding="utf-8"), {
        each.name: each.read() for each in read_net(folder / "a.caffemodel")
    }


def compare(net: Net, name: str, folder: Path, crop: int | None = None) -> None:
    """Every stage of `trace` is a blob of Caffe's, and every blob of the .caffemodel a layer's.

    In float64, where other orders of sums are 1e-14 of a stage apart, and a wrong constant far more.
    """
    text, weights = written(net, name, folder, crop)
    weights, net = {key: weight.double() for key, weight in weights.items()}, net.double()
    side = crop or net.input_size
    generator = torch.Generator().manual_seed(1)
    images = 65 * torch.randn(2, net.in_channels, side, side, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        blobs, shapes, used = caffe_runner.run(text, weights, images.flip(1) if net.caffe_channels == "bgr" else images)
    stages = trace(net, images)
    heads = {stage for stage in stages if stage in net.loss_weights}
    for stage, expected in stages.items():
        if stage not in heads and stage != "avgpool":
            found = blobs[stage].reshape(expected.shape)
            torch.testing.assert_close(
                found,
                expected,
                rtol=0,
                atol=1e-11 * float(expected.abs().max()),
                msg=lambda text, stage=stage: f"{stage}: {text}",
            )
    assert blobs["prob"].flatten(1).shape == (2, net.num_classes)
    assert next(iter(shapes)) == "data"
    assert list(shapes)[-1] == "prob"
    assert {source for source in weights if source not in used} == {
        source for source in weights if source.startswith(("loss1/", "loss2/"))
    }
    logits = stages[list(stages)[-1]]
    assert logits.std(0).max() > 1e-4 * logits.abs().max(), "the logits hardly depend on the pictures"


def livelier(net: Net) -> Net:
    """So that the logits depend on the pictures in a net of few maps."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(30 if name == "conv1.weight" and parameter.std() < 1e-3 else 1)
    return net.eval()


@pytest.mark.parametrize("name", NAMES)
def test_caffe_computes_every_stage(tmp_path: Path, name: str) -> None:
    compare(livelier(new_thin_net(name)), name, tmp_path, CROPS.get(name))


@pytest.mark.peers
@pytest.mark.parametrize("name", of_each_kind([name for name in NAMES if name not in CROPS]))
def test_opencv_reads_the_files_and_gives_the_logits(tmp_path: Path, name: str) -> None:
    """float32 rounds some 1e-5 of the largest logit; a norm whose k is taken for 1 changes most of it."""
    cv2 = package("cv2")
    if int(cv2.__version__.partition(".")[0]) > 4:
        pytest.skip(f"OpenCV {cv2.__version__} reads no Caffe files; 4.x does")
    net = livelier(new_thin_net(name))
    text, _ = written(net, name, tmp_path)
    images = images_for(net)
    theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / "a.prototxt"), str(tmp_path / "a.caffemodel"))
    theirs.setInput((images.flip(1) if net.caffe_channels == "bgr" else images).numpy(), "data")
    before_the_softmax = re.findall(r'name: "([^"]+)"', text)[-2]
    expected = net(images)
    alike(f"OpenCV {name}", theirs.forward(before_the_softmax).reshape(expected.shape), expected, 1e-3, math.inf)


def test_grey_nets_and_other_crops(tmp_path: Path) -> None:
    compare(create_model("nin_cifar10", in_channels=1, seed=0).eval(), "nin_cifar10", tmp_path, 36)
    compare(new_thin_net("alexnet").eval(), "alexnet", tmp_path / "other", 226)
    with pytest.raises(UsageError, match="Caffe can't pad a crop of 227 pixels as this net does; it can at 224"):
        prototxt.deploy(new_thin_net("alexnet"), "alexnet", 227, [])
    with pytest.raises(
        UsageError, match="its pool5 has 7 x 7 pixels and this net's 6 x 6; they agree where the windows"
    ):
        prototxt.deploy(new_thin_net("alexnet"), "alexnet", 240, [])
    with pytest.raises(UsageError, match="Caffe can't average 8 x 8 maps to 6 x 6; it needs crops of 224"):
        prototxt.deploy(new_thin_net("alexnet_owt"), "alexnet_owt", 287, [])


@pytest.mark.parametrize("name", LACK)
def test_nets_that_caffe_lacks_layers_for(name: str) -> None:
    with pytest.raises(UsageError, match=f"Caffe can't run {name}: it"):
        prototxt.deploy(shapes_of(name), name, shapes_of(name).input_size, [])


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt", "alexnet_conv6", "nin_cifar10", "nin_imagenet", "nin_small",
                                  "cifar_26", "googlenet", "vgg_a", "zfnet"])  # fmt: skip
def test_dropout_is_where_the_net_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ratio, and how many layers with weights come before it."""
    net, expected, n_weighted = new_thin_net(name).train(), [], 0
    layers = caffe_runner.parse(prototxt.deploy(net, name, net.input_size, []))["layer"]

    def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        expected.append((p, n_weighted))
        return x

    def count(*_: Any) -> None:
        nonlocal n_weighted
        n_weighted += 1

    in_columns = {conv for module in net.modules() if isinstance(module, Columns) for conv in module}
    for module in set(net.modules()) - in_columns:
        if isinstance(module, nn.Conv2d | nn.Linear | Columns):
            module.register_forward_hook(count)
    monkeypatch.setattr(F, "dropout", dropout)
    net(torch.zeros(1, net.in_channels, net.input_size, net.input_size))
    found, weighted = [], 0
    for layer in layers:
        weighted += layer["type"][0] in ("Convolution", "InnerProduct")
        if layer["type"] == ["Dropout"]:
            found.append((layer["dropout_param"][0]["dropout_ratio"][0], weighted))
    assert found == expected


def test_what_it_looks_like(tmp_path: Path) -> None:
    net = create_model("nin_small", num_classes=3, seed=0)
    mean = np.asarray((123.5, 117, 104), np.float32)
    kept = kept_of("nin_small", net, mean=mean, scale=0.5)
    done = export(kept, tmp_path / "small.caffemodel")
    text = (tmp_path / "small.prototxt").read_text(encoding="utf-8")
    assert done.files == tuple(
        tmp_path / f"small.{end}" for end in ("caffemodel", "prototxt", "caffemodel.classes.txt")
    )
    assert text.startswith(
        "# nin_small, notes on classic nets, table 4.4, after Lin, Chen and Yan 2013; its weights are in "
        "small.caffemodel. Blobs have the names of convnet's stages.\n"
        "# Its input: BGR, crops of 32 pixels, less 104, 117, 123.5, times 0.5, plus 0\n"
    )
    assert (
        'name: "nin_small"\n'
        'layer {\n  name: "data"\n  type: "Input"\n  top: "data"\n'
        "  input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } }\n}\n"
        'layer {\n  name: "conv1"\n  type: "Convolution"\n  bottom: "data"\n  top: "conv1"\n'
        "  convolution_param { num_output: 16 kernel_size: 3 }\n}\n"
        'layer {\n  name: "relu_conv1"\n  type: "ReLU"\n  bottom: "conv1"\n  top: "conv1"\n}\n'
    ) in text


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = create_model("nin_small", num_classes=3, seed=0)
    kept = kept_of("nin_small", net, mean=np.zeros((32, 32, 3), np.float32))
    with monkeypatch.context() as patch:
        patch.setattr("convnet.export.caffe.pieces", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(kept, tmp_path / "a.caffemodel")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.prototxt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a.prototxt exists; choose another name"):
        export(kept, tmp_path / "a.caffemodel")
    assert [path.name for path in tmp_path.iterdir()] == ["a.prototxt"]
