"""Our own files come back by themselves: net, options, preprocessing and classes are read from the metadata."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.cli import app as cli
from convnet.data.preprocess import Preprocessing
from convnet.errors import DataError, UsageError
from convnet.export import export
from convnet.io import safetensors as tensors
from convnet.nets import create_model
from convnet.recipe import Recipe
from convnet.weights import read_weights

COLOUR = np.asarray((123.68, 116.779, 103.939), np.float32)


def kept_of(name: str, done: Preprocessing, n_classes: int = 7, **options: Any) -> Checkpoint:
    net = create_model(name, num_classes=n_classes, seed=1, **options)
    classes = tuple(f'class "{k}" é' for k in range(n_classes))
    grey = {"colour_std": 0.0} if done.channels == "grey" else {}
    recipe = Recipe(name="trained", net=name, net_options=options, size=done.size, pad=done.pad, crop=done.crop, **grey)
    return Checkpoint(recipe, done, classes, net.state_dict())


def done_of(size: int, pad: int, crop: int, mean: np.ndarray | None = COLOUR, **others: Any) -> Preprocessing:
    return Preprocessing(**{"channels": "rgb", "scale": 0.02, "offset": 0.3, "shorter_side": size + 8, **others},
                         size=size, pad=pad, crop=crop, mean=mean)  # fmt: skip


PICTURE = np.random.default_rng(0).uniform(0, 255, (30, 30, 3)).astype(np.float32)
CASES = {
    "a colour": lambda: kept_of("nin_cifar10", done_of(30, 3, 34)),
    "no mean, eleven classes": lambda: kept_of("nin_small", done_of(32, 0, 32, None), 11),
    "a mean picture": lambda: kept_of("nin_cifar10", done_of(30, 1, 32, PICTURE)),
    "grey, codes": lambda: kept_of("lenet5", done_of(28, 2, 32, None, channels="grey", scale=1.275 / 255), 10),
    "grey, an option": lambda: kept_of("lenet5", done_of(28, 2, 32, channels="grey"), output="linear"),
    "a grey net of colours": lambda: kept_of("nin_cifar10", done_of(32, 0, 32, channels="grey"), in_channels=1),
    "heads": lambda: kept_of("googlenet", done_of(256, 0, 224)),
    "without heads": lambda: kept_of("googlenet", done_of(256, 0, 224), heads=False),
}


def assert_equal(found: Checkpoint, kept: Checkpoint) -> None:
    assert found.weights.keys() == kept.weights.keys()
    assert all(torch.equal(found.weights[name], each) for name, each in kept.weights.items())
    assert found.preprocessing == kept.preprocessing
    assert found.classes == kept.classes
    assert (found.recipe.net, found.recipe.net_options) == (kept.recipe.net, kept.recipe.net_options)
    chosen = found.recipe
    assert (chosen.size, chosen.pad, chosen.crop, chosen.scale) == (
        kept.recipe.size, kept.recipe.pad, kept.recipe.crop, kept.preprocessing.scale
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_we_exported_comes_back_by_itself(tmp_path: Path, case: str) -> None:
    kept = CASES[case]()
    export(kept, tmp_path / "a.safetensors")
    found, report = read_weights(tmp_path / "a.safetensors")
    assert_equal(found, kept)
    assert {row.done for row in report.rows} == {"copied"}
    assert not [*report.notes, *report.missing, *report.unexpected]
    checkpoint.save(tmp_path / "a.ckpt", found)
    assert_equal(checkpoint.load(tmp_path / "a.ckpt"), kept)
    side = kept.preprocessing.crop
    images = torch.randn(1, 1 if kept.preprocessing.channels == "grey" else 3, side, side)
    with torch.inference_mode():
        assert torch.equal(checkpoint.rebuild(found)(images), checkpoint.rebuild(kept)(images))


@pytest.mark.parametrize(
    "case",
    ["a colour", "a grey net of colours", pytest.param("heads", marks=pytest.mark.large), "without heads"],
)
def test_under_caffes_names_too(tmp_path: Path, case: str) -> None:
    kept = CASES[case]()
    export(kept, tmp_path / "a.safetensors", names="caffe")
    found, report = read_weights(tmp_path / "a.safetensors")
    assert report.writer == "caffe"
    assert_equal(found, kept)


@pytest.mark.large
def test_columns_come_back_from_groups(tmp_path: Path) -> None:
    kept = kept_of("alexnet", done_of(256, 0, 224))
    export(kept, tmp_path / "a.safetensors", names="caffe")
    assert_equal(read_weights(tmp_path / "a.safetensors")[0], kept)


def test_under_torchvisions_names_but_for_a_rounding(tmp_path: Path) -> None:
    """The first convolution was multiplied for torchvision's pixels, and is divided again."""
    kept = kept_of("googlenet_bn", done_of(256, 0, 224), heads=False)
    export(kept, tmp_path / "a.safetensors", names="torchvision")
    found, report = read_weights(tmp_path / "a.safetensors")
    assert (report.writer, found.preprocessing) == ("torchvision", kept.preprocessing)
    first = "conv1.conv.weight"
    torch.testing.assert_close(found.weights[first], kept.weights[first], rtol=2e-7, atol=0)
    assert_equal(Checkpoint(found.recipe, found.preprocessing, found.classes,
                            {**found.weights, first: kept.weights[first]}), kept)  # fmt: skip


def test_what_is_given_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    kept = CASES["a mean picture"]()
    path = tmp_path / "a.safetensors"
    export(kept, path)
    np.save(tmp_path / "mine.npy", np.asarray((1, 2, 3), np.float32))
    (tmp_path / "names").write_text("\ufeffa\nb\nc\nd\ne\nf\ng\n", encoding="utf-8")
    found, _ = read_weights(path, mean=tmp_path / "mine.npy", classes=tmp_path / "names")
    assert found.classes == tuple("abcdefg")
    np.testing.assert_array_equal(found.preprocessing.mean, (3, 2, 1))
    with pytest.raises(UsageError, match=r"a.safetensors says itself how its pixels were scaled"):
        read_weights(path, pixels="half")
    with pytest.raises(DataError, match="doesn't fit nin_small"):
        read_weights(path, "nin_small")
    (tmp_path / "a.safetensors.mean.npy").unlink()
    with pytest.raises(
        DataError, match=r"its mean picture a.safetensors.mean.npy isn't beside it; put it there, or give --mean"
    ):
        read_weights(path)


def test_another_net_of_the_same_shapes_keeps_the_rest(tmp_path: Path) -> None:
    kept = kept_of("cifar_relu", done_of(32, 0, 32))
    export(kept, tmp_path / "a.safetensors")
    found, _ = read_weights(tmp_path / "a.safetensors", "cifar_tanh")
    assert (found.recipe.net, found.classes) == ("cifar_tanh", kept.classes)
    assert found.preprocessing == kept.preprocessing
    assert all(torch.equal(found.weights[name], each) for name, each in kept.weights.items())


def changed(path: Path, **values: str | None) -> Path:
    """A copy of one of our files with other metadata and no sha256; None takes an entry away."""
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    named, metadata = tensors.parse_all(data)
    metadata = {name: text for name, text in (metadata | {"sha256": None} | values).items() if text is not None}
    bad = path.with_name("bad.safetensors")
    bad.write_bytes(safetensors.torch.save(named, metadata))
    return bad


def pictures(**values: Any) -> str:
    return json.dumps({"size": 32, "shorter_side": 32, "pad": 0, "crop": 32, "channels": "rgb", "mean": None,
                       "scale": 1.0, "offset": 0.0, **values})  # fmt: skip


BAD = {
    "its metadata: classes is missing": {"classes": None},
    "its metadata: classes is no list of names": {"classes": "[1]"},
    "its metadata: Expecting value": {"classes": "["},
    "its metadata: names is 'theirs'; it must be convnet, torchvision, timm, caffe": {"names": "theirs"},
    "net: must be text|net = .*must be text": {"net": "../alexnet"},
    "its metadata: net nin_smaller: unknown net": {"net": "nin_smaller"},
    "its metadata: net nin_small: nin_small: unknown option 'heads'": {"net_options": '{"heads": false}'},
    "its metadata: net nin_small: .*multiple values": {"net_options": '{"num_classes": 5}'},
    "its metadata: net nin_small: in_channels is 0": {"net_options": '{"in_channels": 0}'},
    "its metadata: net nin_small: ": {"net_options": '{"in_channels": "x"}'},
    "option heads: must be": {"net_options": '{"heads": [1]}'},
    "its metadata: channels is missing": {"preprocessing": '{"size": 32}'},
    "its metadata: size is 0, it must be": {"preprocessing": pictures(size=0)},
    "crop exceeds size": {"preprocessing": pictures(crop=64)},
    "its metadata: .*scale = 0": {"preprocessing": pictures(scale=0.0)},
    "1e400 is not a finite number": {"preprocessing": pictures().replace('"scale": 1.0', '"scale": 1e400')},
    "mean is no list of three numbers": {"preprocessing": pictures(mean=[1, 2])},
    "mean holds what is no number": {"preprocessing": pictures(mean=[1, 2, 1e39])},
    r"mean is '../secret.npy'; it must be the name": {"preprocessing": pictures(mean="../secret.npy")},
    r"its mean picture gone.npy isn't beside it": {"preprocessing": pictures(mean="gone.npy")},
    "normalize is no list of three numbers": {"names": "torchvision"},
    "nin_small takes 3 channel": {"preprocessing": pictures(channels="grey")},
    "nin_small takes pictures with sides of at least 7": {"preprocessing": pictures(size=5, crop=5)},
    "doesn't fit nin_small": {"classes": json.dumps(["a", "b"])},
}


def test_no_bit_of_the_names_by_which_a_file_is_known_passes_in_silence(tmp_path: Path) -> None:
    """Neither as somebody else's file nor as one of an earlier version."""
    path = tmp_path / "a.safetensors"
    export(CASES["grey, an option"](), path)
    data = path.read_bytes()
    places = [data.index(name) + i for name in (b"sha256", b"convnet") for i in range(len(name))]
    for place, bit in itertools.product(places, range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(DataError):
            read_weights(path, "lenet5")


def test_metadata_of_a_stranger_are_held_against_their_rules(tmp_path: Path) -> None:
    export(kept_of("nin_small", done_of(32, 0, 32, None)), tmp_path / "a.safetensors")
    assert read_weights(changed(tmp_path / "a.safetensors", preprocessing=pictures()))[0].preprocessing.scale == 1
    assert any("it has no sha256" in note for note in read_weights(changed(tmp_path / "a.safetensors"))[1].notes)
    for text, values in BAD.items():
        with pytest.raises(DataError, match=text) as caught:
            read_weights(changed(tmp_path / "a.safetensors", **values))
        assert str(caught.value).startswith(f"{tmp_path / 'bad.safetensors'}"), text


def test_the_command_needs_no_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = CASES["grey, an option"]()
    export(kept, tmp_path / "digits.safetensors")
    export(kept, tmp_path / "digits.npz")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convnet", "import", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, _ = run("digits.safetensors")
    assert (code, out.splitlines()[0]) == (0, "digits.safetensors (convnet's names) -> lenet5")
    assert_equal(checkpoint.load(tmp_path / "weights" / "digits.ckpt"), kept)
    code, _, err = run("digits.npz", "--out", "b.ckpt")
    assert (code, "the file doesn't say which net it is for; give --net" in err) == (2, True)
    code, _, _ = run("digits.npz", "--out", "b.ckpt", "--net", "lenet5")
    assert (code, checkpoint.load(tmp_path / "b.ckpt").recipe.net_options) == (0, {"output": "linear"})
