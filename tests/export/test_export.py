"""Weights out: what is written comes back bitwise, and onnxruntime says what torch says."""

import functools
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import caffe_writer
from conftest import trained_net
from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.cli import app as cli
from convnet.data.preprocess import Preprocessing, of_recipe
from convnet.data.resize import FITS, Fit
from convnet.data.store import Split, Store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.inference import infer as evaluated
from convnet.evaluation.pictures import at_scales
from convnet.evaluation.views import centre, protocol
from convnet.export import ENDINGS, caffe, export, named, onnx_pictures
from convnet.export import onnx as to_onnx
from convnet.nets import MODELS, create_model, list_models
from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net
from convnet.recipe import Recipe
from convnet.weights import read_weights
from convnet.weights.caffe import read_net
from exported import livelier, needs_onnx
from thin import new_thin_net, shapes_of

COLOUR = np.asarray((123.68, 116.779, 103.939), np.float32)


def pictures(net: Net, crop: int | None = None, **others: Any) -> Preprocessing:
    """Square RGB crops less a colour (grey for nets of one channel), as large as the net's input."""
    side = crop or net.input_size
    size = max(side, 256 if net.input_size > 128 else net.input_size)
    grey = net.in_channels == 1
    values = {"channels": "grey" if grey else "rgb", "mean": COLOUR, "scale": 0.01 if grey else 1.0}
    return Preprocessing(**{"size": size, "pad": 0, "crop": side, "offset": 0.0, **values, **others})


def kept_of(name: str, net: Net, done: Preprocessing | None = None, **options: Any) -> Checkpoint:
    done = done or pictures(net)
    classes = tuple(f"class {k}" for k in range(net.num_classes))
    recipe = Recipe(name=name, net=name, net_options=options, size=done.size, pad=done.pad, crop=done.crop)
    return Checkpoint(recipe, done, classes, net.state_dict())


@functools.cache
def nin() -> Checkpoint:
    return kept_of("nin_cifar10", create_model("nin_cifar10", seed=1))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []


# Weights


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".caffemodel"])
@pytest.mark.parametrize("name", ["nin_cifar10", "googlenet"])
def test_weights_come_back_bitwise(tmp_path: Path, name: str, ending: str) -> None:
    options = {"heads": False} if name == "googlenet" else {}
    kept = nin() if name == "nin_cifar10" else kept_of(name, create_model(name, seed=1, **options), **options)
    written = export(kept, tmp_path / f"a{ending}")
    again, report = read_weights(tmp_path / f"a{ending}", name)
    assert_same(again.weights, kept.weights)
    assert report.writer == ("caffe" if ending == ".caffemodel" else "convnet")
    beside = {".caffemodel": ("a.prototxt", "a.caffemodel.classes.txt"), ".npz": ("a.npz.classes.txt",)}
    files = tuple(tmp_path / each for each in (f"a{ending}", *beside.get(ending, ())))
    assert (written.files, written.difference) == (files, None)
    last = len(kept.classes) - 1
    assert written.notes[-1].endswith(f"in the order of the outputs: 0 is 'class 0', {last} is 'class {last}'")
    if ending != ".safetensors":
        named = read_weights(tmp_path / f"a{ending}", name, classes=files[-1])[0]
        assert named.classes == kept.classes
    if ending == ".caffemodel":  # Caffe's CIFAR models read RGB, others BGR
        order, levels = {"nin_cifar10": ("RGB", "123.68, 116.779, 103.939")}.get(
            name, ("BGR", "103.939, 116.779, 123.68")
        )
        assert f"Its input: {order}, crops of" in written.notes[0]
        assert f"less {levels}" in written.notes[0]


@pytest.mark.large
@pytest.mark.parametrize("name", ["alexnet", "alexnet_caffe", "zfnet", "vgg16"])
def test_large_caffe_nets_come_back_bitwise(tmp_path: Path, name: str) -> None:
    kept = kept_of(name, create_model(name, num_classes=7, seed=1))
    export(kept, tmp_path / "a.caffemodel")
    assert_same(read_weights(tmp_path / "a.caffemodel", name)[0].weights, kept.weights)


@pytest.mark.parametrize(
    "name", ["googlenet_bn", *(pytest.param(n, marks=pytest.mark.large) for n in ("alexnet_owt", "vgg11_bn"))]
)
@pytest.mark.parametrize("scaling", ["half", "imagenet"])
def test_torchvisions_names_come_back(tmp_path: Path, name: str, scaling: str) -> None:
    """Bitwise where nothing is multiplied into the first convolution, else that within a rounding.

    Read as a file of torchvision's own, which says nothing of itself.
    """
    options = {"heads": False} if "googlenet" in name else {}
    net = create_model(name, num_classes=7, seed=1, **options)
    level, scale = (127.5, 1 / 127.5) if scaling == "half" else (255 * np.asarray((0.485, 0.456, 0.406)), 1.0)
    mean = np.full(3, level).astype(np.float32)
    kept = kept_of(name, net, pictures(net, mean=mean, scale=scale), **options)
    export(kept, tmp_path / "a.safetensors", names="torchvision")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    again, report = read_weights(tmp_path / "b.safetensors", name, pixels=scaling)
    assert report.writer == "torchvision"
    np.testing.assert_allclose(again.preprocessing.mean, mean, rtol=1e-6)
    assert again.preprocessing.scale == pytest.approx(scale)
    first = next(iter(kept.weights))
    if scaling == "imagenet":
        torch.testing.assert_close(again.weights[first], kept.weights[first], rtol=2e-7, atol=0)
        again.weights[first] = kept.weights[first]
    assert_same(again.weights, kept.weights)


def test_torchvisions_pixels_give_the_same_function(tmp_path: Path) -> None:
    """An offset, a scale and a mean of one's own, as torchvision's Normalize; the first convolution as it reads it."""
    net = create_model("googlenet_bn", num_classes=7, seed=1, heads=False)
    kept = kept_of("googlenet_bn", net, pictures(net, scale=0.02, offset=0.3), heads=False)
    weights, normalize = named.in_torchvisions(net, kept)
    pixels = 255 * torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    ours = (pixels - torch.from_numpy(COLOUR)[:, None, None]) * 0.02 + 0.3
    mean, std = (torch.tensor(normalize[key])[:, None, None] for key in ("mean", "std"))
    expected = F.conv2d(ours, kept.weights["conv1.conv.weight"], padding=3)
    torch.testing.assert_close(F.conv2d((pixels / 255 - mean) / std, weights["conv1.conv.weight"], padding=3), expected)


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    export(nin(), tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(nin().weights)
    assert (metadata["net"], metadata["names"]) == ("nin_cifar10", "convnet")
    assert json.loads(metadata["classes"]) == list(nin().classes)
    told = json.loads(metadata["preprocessing"])
    assert (told["size"], told["crop"], told["channels"]) == (32, 32, "rgb")
    assert told["mean"] == pytest.approx(COLOUR.tolist())
    export(nin(), tmp_path / "b.safetensors", names="caffe")
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert json.loads(file.metadata()["preprocessing"])["channels"] == "rgb"
        assert torch.equal(file.get_tensor("conv1.weight"), nin().weights["conv1.weight"])
        assert torch.equal(file.get_tensor("cccp1.bias"), nin().weights["cccp1.bias"])


def test_a_mean_picture_lies_beside_and_comes_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    net = create_model("googlenet", num_classes=5, seed=1, heads=False)
    kept = kept_of("googlenet", net, pictures(net, mean=picture), heads=False)
    written = export(kept, tmp_path / "a.caffemodel")
    names = ("a.caffemodel", "a.prototxt", "a.caffemodel.classes.txt", "a.caffemodel.mean.npy")
    assert written.files == tuple(tmp_path / name for name in names)
    again, _ = read_weights(tmp_path / "a.caffemodel", "googlenet", mean=tmp_path / "a.caffemodel.mean.npy")
    assert again.preprocessing == kept.preprocessing
    other = export(kept, tmp_path / "a.npz")  # of the same stem: nothing is written over
    assert other.files == tuple(tmp_path / name for name in ("a.npz", "a.npz.classes.txt", "a.npz.mean.npy"))
    (tmp_path / "a.npz").unlink()  # as if the power had gone before it was there
    assert export(kept, tmp_path / "a.npz").files == other.files
    (tmp_path / "a.npz").unlink()
    (tmp_path / "a.npz.classes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a.npz.classes.txt exists; choose another name"):
        export(kept, tmp_path / "a.npz")


def test_the_mean_picture_of_a_cifar_net_has_the_order_of_caffes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    net = create_model("cifar_18", seed=1)
    kept = kept_of("cifar_18", net, pictures(net, mean=picture))
    export(kept, tmp_path / "a.caffemodel")
    np.testing.assert_array_equal(np.load(tmp_path / "a.caffemodel.mean.npy"), picture.transpose(2, 0, 1))
    again, _ = read_weights(tmp_path / "a.caffemodel", "cifar_18", mean=tmp_path / "a.caffemodel.mean.npy")
    assert again.preprocessing == kept.preprocessing
    assert_same(again.weights, kept.weights)


def test_classes_that_are_no_lines_are_refused(tmp_path: Path) -> None:
    kept = replace(nin(), classes=("one\ntwo", *nin().classes[1:]))
    with pytest.raises(UsageError, match=r"the class 'one\\ntwo' can't stand in a line of a.npz.classes.txt"):
        export(kept, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_columns_become_groups_that_read_bgr() -> None:
    net = new_thin_net("alexnet_caffe").eval()
    weights = named.in_caffes(net, net.state_dict())
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert list(weights) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    x = torch.randn(2, 3, 27, 27)
    y = F.conv2d(x.flip(1), weights["conv1.weight"], weights["conv1.bias"], stride=4)
    torch.testing.assert_close(y, net.conv1(x), rtol=1e-5, atol=1e-5)
    columns = net.conv2
    assert isinstance(columns, Columns)
    x = torch.randn(2, net.conv1.out_channels, 9, 9)
    y = F.conv2d(x, weights["conv2.weight"], weights["conv2.bias"], padding=2, groups=2)
    torch.testing.assert_close(y, columns(x), rtol=1e-5, atol=1e-5)


def test_a_caffemodel_is_what_an_independent_writer_says(tmp_path: Path) -> None:
    net = new_thin_net("vgg_a")
    blobs = named.in_caffes(net, net.state_dict())
    expected = caffe_writer.message(1, b"vgg_a")
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in blobs):
        kind = b"InnerProduct" if layer.startswith("fc") else b"Convolution"
        data = caffe_writer.message(1, layer.encode()) + caffe_writer.message(2, kind)
        for part in ("weight", "bias"):
            data += caffe_writer.message(7, caffe_writer.blob(blobs[f"{layer}.{part}"].numpy()))
        expected += caffe_writer.message(100, data)
    (tmp_path / "a.caffemodel").write_bytes(expected)
    assert b"".join(caffe.pieces("vgg_a", blobs)) == expected
    assert [each.name for each in read_net(tmp_path / "a.caffemodel")] == list(blobs)


def test_wrong_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str, name: str, kept: Checkpoint | None = None, **how: Any) -> None:
        with pytest.raises(UsageError, match=text):
            export(kept or nin(), tmp_path / name, **how)

    for ending in ENDINGS:
        (tmp_path / f"old{ending}").write_bytes(b"mine")
        refused("exists; choose another name", f"old{ending}")
        assert (tmp_path / f"old{ending}").read_bytes() == b"mine"
    refused(r"a.h5: its name must end in .onnx, .safetensors", "a.h5")
    refused("unknown names 'torch': did you mean 'torchvision'", "a.safetensors", names="torch")
    refused("unknown input 'crops': did you mean 'crop'", "a.onnx", takes="crops")
    refused("--input file is for .onnx, without --float", "a.onnx", takes="file", floats=True)
    refused("--input picture is for .onnx", "a.npz", takes="picture")
    refused("--names caffe is for .safetensors; a .npz has", "a.npz", names="caffe")
    refused("--float is for .onnx; a .npz holds weights", "a.npz", floats=True)
    refused("torchvision has no nin_cifar10; it has alexnet_owt", "a.safetensors", names="torchvision")
    wider = shapes_of("alexnet_1col")  # whose layers have torchvision's names
    with pytest.raises(UsageError, match="torchvision has no alexnet_1col; it has alexnet_owt"):
        named.in_torchvisions(wider, kept_of("alexnet_1col", wider))
    refused(
        "Caffe can't run lenet5: its TanhSubSampling layers aren't written in Caffe's words; export it as .onnx",
        "a.caffemodel",
        lenet5(),
    )
    refused("Caffe can't run lenet5: its TanhSubSampling layers", "a.safetensors", lenet5(), names="caffe")
    net = create_model("googlenet_bn", num_classes=5, seed=1, heads=False)
    kept = kept_of("googlenet_bn", net, pictures(net, mean=np.zeros((256, 256, 3), np.float32)), heads=False)
    refused("this one has a mean picture", "a.safetensors", kept, names="torchvision")
    refused("Caffe can't run googlenet_bn: its BatchNorm2d layers aren't written", "a.caffemodel", kept)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(r'pip install "convnet-classics\[onnx\]", in a checkout pip install -e "\.\[onnx\]"$', "a.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {f"old{ending}" for ending in ENDINGS}


# ONNX


def lenet5(seed: int = 1) -> Checkpoint:
    net = livelier(create_model("lenet5", seed=seed), 3)
    return kept_of("lenet5", net, Preprocessing(28, 2, 32, "grey", None, 1.275 / 255, -0.1))


def outputs(path: Path, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(logits, probabilities) of a file: what goes into its softmax is made an output too."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert [each.name for each in model.graph.output] == [softmax.output[0]] == ["probabilities"]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(softmax.input[0]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    probabilities, logits = session.run(None, {"pixels": pixels.numpy()})
    return logits, probabilities


def compare(path: Path, net: Net, kept: Checkpoint, floats: bool = False) -> float:
    """The largest difference of logits over the largest logit, for batches that the writing did not see."""
    worst = 0.0
    for n in (1, 2, 5):
        pixels = to_onnx._pictures(10 + n, kept.preprocessing.crop, floats)[:n]
        with torch.inference_mode():
            expected = to_onnx.FromPixels(net, kept.preprocessing)(pixels)
        logits, probabilities = outputs(path, pixels)
        assert logits.shape == (n, net.num_classes)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        worst = max(worst, float(np.abs(logits - expected.numpy()).max() / expected.abs().max()))
    assert expected.std(0).max() > 1e-4 * expected.abs().max(), "the logits hardly depend on the pictures"
    return worst


def posteriors(net: Net, split: Split, done: Preprocessing) -> np.ndarray:
    """As `convnet evaluate` has them."""
    look = protocol("single", done).looks[0]
    pictures = [at_scales(split.picture(i), done.shorter_side, [look]) for i in range(20)]
    return evaluated(net.eval(), pictures, [look], done, device.choose("fp32", "cpu"))[look]


def crops(split: Split, done: Preprocessing) -> torch.Tensor:
    how = centre(done, 20)
    return torch.from_numpy(split.crops(np.arange(20), how.tops, how.lefts, done.crop))


@needs_onnx
def test_lenet5_by_the_command_gives_evaluates_posteriors(
    tmp_path: Path, digits: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey, with a padded border; and a file that says something else than torch is not kept."""
    kept = lenet5()
    checkpoint.save(tmp_path / "best.ckpt", kept)
    monkeypatch.setattr(sys, "argv", ["convnet", "export", str(tmp_path), str(tmp_path / "a.onnx"), "--json"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-5
    net, split = checkpoint.rebuild(kept), digits.split("test")
    _, found = outputs(tmp_path / "a.onnx", crops(split, kept.preprocessing))
    np.testing.assert_allclose(found, posteriors(net, split, kept.preprocessing), rtol=1e-4, atol=1e-7)
    coloured = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    how = centre(kept.preprocessing, 4)
    images = to_onnx.to_input(coloured.numpy(), how, kept.preprocessing, torch.device("cpu"))
    logits, _ = outputs(tmp_path / "a.onnx", coloured)
    np.testing.assert_allclose(logits, net(images).detach(), rtol=1e-5)

    data = (tmp_path / "a.onnx").read_bytes()
    monkeypatch.setattr(to_onnx, "_program", lambda *_: data)
    with pytest.raises(ConvnetError, match=r"b.onnx: not written: a probability differs by"):
        export(lenet5(seed=2), tmp_path / "b.onnx")
    monkeypatch.setattr(to_onnx, "_program", lambda *_: data[:-100])
    with pytest.raises(ConvnetError, match=r"b.onnx: not written: onnxruntime can't run it: "):
        export(lenet5(seed=2), tmp_path / "b.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "a.onnx"}


@needs_onnx
def test_a_mean_picture_inside_gives_evaluates_posteriors(tmp_path: Path, photos: Store) -> None:
    import onnx

    net = livelier(create_model("cifar_11", num_classes=3, seed=1), 3).eval()
    recipe = Recipe(name="a", net="cifar_11", size=32, pad=1, crop=24, mean="picture", scale=0.5, offset=0.1)
    done = of_recipe(recipe, photos.mean_picture, None, 40)
    kept = Checkpoint(recipe, done, photos.classes, net.state_dict())
    export(kept, tmp_path / "a.onnx", floats=True)
    split = photos.split("test")
    expected = posteriors(net, split, done)
    assert expected.std(0).max() > 1e-4
    logits, found = outputs(tmp_path / "a.onnx", crops(split, done).float())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(told["classes"]) == list(photos.classes)
    assert json.loads(told["pictures"]) == {
        "shorter_side": 40,
        "size": 32,
        "pad": 1,
        "crop": 24,
        "channels": "rgb",
        "fit": "crop",
    }


def own_names() -> list[str]:
    """The nets without the second names that lead to them: vgg11 is vgg_a."""
    return [name for name in list_models() if MODELS[name].name == name]


def thin_kept(name: str, crop: int | None = None) -> tuple[Net, Checkpoint]:
    net = livelier(new_thin_net(name), 3 if name == "lenet5" else 1).eval()
    return net, kept_of(name, net, pictures(net, crop))


@needs_onnx
@pytest.mark.large
@pytest.mark.parametrize("name", own_names())
def test_every_net_in_small_agrees_with_torch(tmp_path: Path, name: str) -> None:
    net, kept = thin_kept(name)
    assert to_onnx.write(net, kept, tmp_path / "a.onnx", False, "crop")[0] < 1e-3
    difference = compare(tmp_path / "a.onnx", net, kept)
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-5


TWO_SIZES = {"alexnet": (224, 240), "vgg_a": (224, 240), "googlenet": (224, 96), "nin_imagenet": (224, 130),
             "nin_cifar10": (32, 47)}  # fmt: skip


@needs_onnx
@pytest.mark.large
@pytest.mark.parametrize("name", TWO_SIZES)
def test_a_second_input_size_agrees_with_torch(tmp_path: Path, name: str) -> None:
    """The first is the net's own, in the test above."""
    own, second = TWO_SIZES[name]
    assert shapes_of(name).input_size == own
    net, kept = thin_kept(name, second)
    to_onnx.write(net, kept, tmp_path / "a.onnx", False, "crop")
    difference = compare(tmp_path / "a.onnx", net, kept)
    print(f"{name} at {second}: {difference:.1e}")
    assert difference < 1e-5


@needs_onnx
@pytest.mark.large
@pytest.mark.parametrize(("name", "init"), [("alexnet", "fan-in"), ("googlenet", "paper"), ("nin_imagenet", "paper")])
def test_whole_nets_agree_with_torch(tmp_path: Path, name: str, init: str) -> None:
    net = create_model(name, init=init, seed=1).eval()
    kept = kept_of(name, net)
    export(kept, tmp_path / "a.onnx")
    difference = compare(tmp_path / "a.onnx", net, kept)
    print(f"{name}, whole: {difference:.1e}")
    assert difference < 1e-5


# Whole pictures and files


def session_of(path: Path, *, extended: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if extended:
        options.register_custom_ops_library(onnx_pictures.library_path())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@needs_onnx
@pytest.mark.parametrize("fit", FITS)
def test_whole_pictures_are_prepared_inside(tmp_path: Path, fit: Fit) -> None:
    """Of any size, by standard operators, as `predict` prepares them: the probabilities differ by what a grey level
    here and there does, which is a hundredth of what another picture does."""
    kept = lenet5()
    kept = replace(kept, preprocessing=replace(kept.preprocessing, shorter_side=40, fit=fit))
    export(kept, tmp_path / "a.onnx", takes="picture")
    trained = trained_net(checkpoint.rebuild(kept), kept.preprocessing, kept.classes)
    session, generator = session_of(tmp_path / "a.onnx"), np.random.default_rng(1)
    shapes = ((40, 40), (41, 97), (28, 30), (300, 200), (1, 5))
    pixels = [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width in shapes]
    expected = [F.softmax(trained.net(trained.images(picture)), 1).detach().numpy() for picture in pixels]
    found = [session.run(None, {"picture": picture})[0] for picture in pixels]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=0.02)
    assert np.concatenate(expected).std(0).max() > 0.05


@needs_onnx
def test_files_are_decoded_inside(tmp_path: Path) -> None:
    """A PNG to the last bit, so that its crop is the picture's; a grey JPEG has three equal colours."""
    version = pytest.importorskip("onnxruntime_extensions").__version__
    if not version.startswith("0.13."):
        pytest.skip(f"onnxruntime-extensions {version} decodes other pixels")
    kept = lenet5()
    export(kept, tmp_path / "a.onnx", takes="file")
    trained = trained_net(checkpoint.rebuild(kept), kept.preprocessing, kept.classes)
    session = session_of(tmp_path / "a.onnx", extended=True)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    for image, kind in ((Image.fromarray(pixels), "PNG"), (Image.fromarray(pixels[..., 0]), "JPEG")):
        image.save(file := io.BytesIO(), kind)
        expected = F.softmax(trained.net(trained.images(np.asarray(Image.open(file).convert("RGB")))), 1)
        found = session.run(None, {"file": np.frombuffer(file.getvalue(), np.uint8)})[0]
        np.testing.assert_allclose(found, expected.detach(), atol=0.02)


@needs_onnx
def test_another_preparation_than_ours_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_pictures, "FILL", (0, 0, 0))
    kept = lenet5()
    kept = replace(kept, preprocessing=replace(kept.preprocessing, fit="pad"))
    with pytest.raises(
        ConvnetError, match=r"a.onnx: not written: a picture's crop in onnxruntime isn't preparation's$"
    ):
        export(kept, tmp_path / "a.onnx", takes="picture")
    assert not list(tmp_path.iterdir())
