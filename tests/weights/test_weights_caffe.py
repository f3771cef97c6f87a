"""Caffe's files: read as an independent writer writes them, mutated, and with real weights on real photos."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import caffe_writer as writer
from convnet.checkpoint import rebuild
from convnet.errors import DataError, UsageError
from convnet.nets import create_model, features
from convnet.weights import caffe, read_weights
from thin import thinned

RNG = np.random.default_rng(0)
LAYERS = {
    "conv1": [RNG.normal(size=(4, 3, 5, 5)).astype("f4"), RNG.normal(size=4).astype("f4")],
    "fc": [RNG.normal(size=(10, 36)).astype("f4"), RNG.normal(size=10).astype("f4")],
}
HOWS = [{}, {"legacy": True}, {"double": True}, {"double": True, "legacy": True}]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how) or "plain")
def test_blobs_are_what_was_written(tmp_path: Path, version: int, how: dict[str, bool]) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(writer.net(LAYERS, version, **how))
    found = {each.name: each for each in caffe.read_net(path)}
    assert list(found) == ["conv1.weight", "conv1.bias", "fc.weight", "fc.bias"]
    for name, arrays in LAYERS.items():
        for kind, array in zip(("weight", "bias"), arrays, strict=True):
            each = found[f"{name}.{kind}"]
            ones = (1,) * (4 - array.ndim) if how.get("legacy") else ()
            assert each.shape == ones + array.shape
            assert each.dtype == ("float64" if how.get("double") else "float32")
            np.testing.assert_array_equal(each.read().float().numpy(), array.reshape(each.shape))


def layer(*parts: bytes) -> bytes:
    return writer.message(100, b"".join(parts))


NAME = writer.message(1, b"fc")
ONE = writer.message(7, writer.blob(np.ones(1)))
BAD = {
    "empty file": b"",
    "no layer with weights": writer.message(1, b"only a name"),
    "goes past its message's end": writer.varint(100 << 3 | 2) + b"\x7fabc",
    "a number goes past": b"\x80",
    "more than 64 bits": b"\x08" + b"\xff" * 9 + b"\x7f",
    "wire type 3": b"\x0b",
    "field number 0": b"\x02\x00",
    "has 1 numbers, its shape": layer(NAME, writer.message(7, writer.message(5, b"1234") + writer.number(1, 9))),
    "has a side of": layer(NAME, writer.message(7, writer.number(1, 1 << 50))),
    "3 bytes are no numbers": layer(NAME, writer.message(7, writer.message(5, b"123"))),
    "a layer's name of 300": layer(writer.message(1, b"x" * 300), ONE),
    "holds control characters": layer(writer.message(1, b"\x1b[2J"), ONE),
    "no UTF-8": layer(writer.message(1, b"\xff\xfe"), ONE),
    "more than 16 blobs": layer(NAME, ONE * 17),
    "more than 8 axes": layer(NAME, writer.message(7, writer.message(7, writer.message(1, b"\x01" * 5000)))),
    "V0 layers": writer.message(2, writer.message(1, b"")),
    "V1 and V2 layers are mixed": writer.message(2, b"") + layer(NAME, ONE),
    "two layers 'fc'": layer(NAME, ONE) * 2,
    "more than 500,000 fields": b"\x08\x01" * 500_001,
    "lie in two pieces": layer(NAME, writer.message(7, writer.message(5, b"1234") * 2)),
    "are not packed": layer(NAME, writer.message(7, b"\x2d1234")),
}


@pytest.mark.parametrize("text", BAD)
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(BAD[text])
    with pytest.raises(DataError, match=text) as caught:
        caffe.read_net(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_means(tmp_path: Path) -> None:
    picture = RNG.uniform(0, 255, (3, 5, 4)).astype("f4")
    for legacy in (False, True):
        path = tmp_path / "mean.binaryproto"
        path.write_bytes(writer.blob(picture[None], legacy=legacy))
        np.testing.assert_array_equal(caffe.read_mean(path), picture)
    path.write_bytes(writer.blob(picture[:2]))
    with pytest.raises(DataError, match=r"a mean of shape \(2, 5, 4\)"):
        caffe.read_mean(path)


# Mutations


# Into our nets


def to_caffe(net: torch.nn.Module, renamed: dict[str, str]) -> dict[str, list[np.ndarray]]:
    """The layers of a net as Caffe has them: columns end to end, BGR."""
    layers: dict[str, list[np.ndarray]] = {}
    for key, tensor in net.state_dict().items():
        name, kind = key.rsplit(".", 1)
        column = name.split(".")[-1]
        name = name.removesuffix(f".{column}") if column.isdecimal() else name
        array = tensor.numpy()
        if key == next(iter(net.state_dict())):
            array = array[:, ::-1]
        blobs = layers.setdefault(renamed.get(name, name), [])
        place = 0 if kind == "weight" else 1
        if len(blobs) > place:
            blobs[place] = np.concatenate([blobs[place], array])
        else:
            blobs.append(array)
    return layers


def test_columns_bgr_and_legacy_shapes(tmp_path: Path) -> None:
    with thinned(8):
        net = create_model("alexnet_caffe", num_classes=3, seed=1)
    path, mean = tmp_path / "alex.caffemodel", tmp_path / "mean.binaryproto"
    path.write_bytes(writer.net(to_caffe(net, {}), 1, legacy=True))
    picture = RNG.uniform(0, 255, (1, 3, 256, 256)).astype("f4")
    mean.write_bytes(writer.blob(picture))
    (tmp_path / "names").write_text("n00000001 a cat, a cat\nn00000002 dog\nn00000003 emu\n", encoding="utf-8")
    with thinned(8):
        kept, report = read_weights(path, "alexnet_caffe", mean=mean, classes=tmp_path / "names")
    assert kept.classes == ("n00000001", "n00000002", "n00000003")
    np.testing.assert_array_equal(kept.preprocessing.mean, picture[0, ::-1].transpose(1, 2, 0))
    assert (kept.preprocessing.size, kept.preprocessing.crop, kept.preprocessing.scale) == (256, 227, 1.0)
    for name, tensor in net.state_dict().items():
        assert torch.equal(kept.weights[name], tensor), name
    rows = {row.source: row for row in report.rows}
    assert rows["conv1.weight"].done == "BGR to RGB"
    assert rows["conv2.weight"].targets == ("conv2.0.weight", "conv2.1.weight")
    assert rows["conv2.weight"].done == "split into 2 columns"
    assert rows["fc6.weight"].done == "reshaped to (512, 1152)"
    assert not report.missing | report.unexpected
    assert report.notes == ["names is read as synset_words.txt: the classes are called by the first words"]


def test_googlenet_and_nin_have_caffes_names(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    net = create_model("googlenet", num_classes=3, heads=False, seed=1)
    views = {"conv1x1": "1x1", "conv3x3": "3x3", "conv5x5": "5x5"}
    views |= {"reduce3x3": "3x3_reduce", "reduce5x5": "5x5_reduce", "pool_proj": "pool_proj"}
    names = {
        "conv1": "conv1/7x7_s2",
        "conv2_reduce": "conv2/3x3_reduce",
        "conv2": "conv2/3x3",
        "fc": "loss3/classifier",
    }
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        names |= {f"inception_{module}.{our}": f"inception_{module}/{view}" for our, view in views.items()}
    path.write_bytes(writer.net(to_caffe(net, names), 1, legacy=True))
    kept, report = read_weights(path, "googlenet")
    assert kept.recipe.net_options == {"heads": False}
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in net.state_dict().items())
    assert any("bvlc_googlenet is googlenet_caffe here" in note for note in report.notes)
    again, report = read_weights(path, "googlenet_caffe")
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in net.state_dict().items())
    assert not any("googlenet" in note for note in report.notes)

    net = create_model("nin_imagenet", num_classes=3, seed=1)
    names = {name: f"{name}-1024" for name in ("conv4", "cccp7", "cccp8")}
    path.write_bytes(writer.net(to_caffe(net, names), 2))
    kept, _ = read_weights(path, "nin_imagenet")
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in net.state_dict().items())


def test_caffes_batch_norm_is_refused(tmp_path: Path) -> None:
    """Its blobs are mean, variance and a factor: by their shapes they would pass for other tensors."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(writer.net({"data": [np.ones(3), np.ones(3), np.ones(1)]}, 2))
    for name in ("alexnet_bn", "vgg_d_bn", "googlenet_bn"):
        with pytest.raises(UsageError, match="Caffe's batch norm isn't read"):
            read_weights(path, name, partial=True)


# The real convolutions of bvlc_alexnet


@pytest.mark.data
@pytest.mark.parametrize(
    ("n_train", "n_val", "least"), [(10, 5, 0.72), pytest.param(80, 30, 0.77, marks=pytest.mark.large)]
)
def test_pool5_of_the_real_convolutions_finds_the_class(tmp_path: Path, n_train: int, n_val: int, least: float) -> None:
    """Of so many pictures a class; measured: 0.78 and 0.797; with conv4's columns exchanged 0.46."""
    if not (data := os.environ.get("CONVNET_DATA")) or not Path(data, "alexnet-bvlc-conv").is_dir():
        pytest.skip("CONVNET_DATA doesn't name a folder with alexnet-bvlc-conv")
    arrays = np.load(Path(data, "alexnet-bvlc-conv", "conv1-5.npz"))
    names = [f"conv{i}" for i in range(1, 6)]
    layers = {name: [arrays[f"{name}.weight"], arrays[f"{name}.bias"]] for name in names}
    np.save(tmp_path / "mean.npy", arrays["mean_bgr"])
    imported = []
    for version in (1, 2):
        path = tmp_path / f"v{version}.caffemodel"
        path.write_bytes(writer.net(layers, version, legacy=version == 1))
        kept, report = read_weights(path, "alexnet_caffe", mean=tmp_path / "mean.npy", partial=True)
        assert sorted(report.missing) == [f"fc{i}.{kind}" for i in (6, 7, 8) for kind in ("bias", "weight")]
        imported.append(kept)
    assert all(torch.equal(imported[0].weights[name], each) for name, each in imported[1].weights.items())

    net, mean = rebuild(imported[0]), imported[0].preprocessing.mean
    folders = sorted(Path(data, "imagenette", "train").iterdir())
    pictures, labels = {}, {}
    for split, n in (("train", n_train), ("val", n_val)):
        chosen = [sorted(Path(data, "imagenette", split, each.name).iterdir())[:n] for each in folders]
        labels[split] = np.repeat(np.arange(10), n)
        images = []
        for path in (path for each in chosen for path in each):
            square = Image.open(path).convert("RGB").resize((227, 227), Image.Resampling.BILINEAR)
            image = torch.from_numpy(np.asarray(square, np.float32) - mean).permute(2, 0, 1)[None]
            images.append(image)
        found = [features(net, torch.cat(images[i : i + 20]), "pool5") for i in range(0, len(images), 20)]
        pictures[split] = torch.nn.functional.normalize(torch.cat(found))
    nearest = (pictures["val"] @ pictures["train"].T).argmax(1).numpy()
    right = float((labels["train"][nearest] == labels["val"]).mean())
    print(f"cosine 1-NN on pool5: {right:.1%} right")
    assert right >= least
