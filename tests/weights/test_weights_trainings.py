"""Weights as trainings keep them: behind prefixes, among other things, under other names; and files that mean harm."""

import argparse
import io
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_writer
from convnet import checkpoint
from convnet.cli import app as cli
from convnet.errors import DataError, UsageError
from convnet.nets import create_model
from convnet.weights import import_weights, read_weights
from convnet.weights.torch_files import MAX_OPCODES, read_torch

NET = "cifar_18"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return dict(create_model(NET, seed=3).state_dict())


def before(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def imported(path: Path, weights: Weights, **how: Any) -> list[str]:
    """The notes of an import that takes exactly these weights."""
    kept, report = read_weights(path, NET, **how)
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in weights.items())
    assert not report.missing | report.unexpected
    return report.notes


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.", "model.backbone."]
)
def test_a_prefix_that_all_names_share_is_taken_off_and_told(tmp_path: Path, weights: Weights, prefix: str) -> None:
    torch.save(before(prefix, weights), tmp_path / "a.pth")
    notes = imported(tmp_path / "a.pth", weights)
    assert f"{prefix!r} is removed from 8 of 8 names" in notes


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model_best.pth.tar", "pytorch_model.bin", "last.ckpt", "a.pt"])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_in_a_trainings_checkpoint(tmp_path: Path, weights: Weights, name: str, key: str, legacy: bool) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}
    content = {
        "epoch": 90,
        "arch": NET,
        key: OrderedDict(weights),
        "best_acc1": torch.tensor(56.5),
        "optimizer": optimizer,
        "optimizer_states": [optimizer],
        "args": argparse.Namespace(lr=0.1, sizes=(1, 2)),
        "scores": defaultdict(list, a=[1]),
        "rng": np.float64(3.5),
        "loops": {(1, "a"): None, 7: True},
    }
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    notes = imported(tmp_path / name, weights)
    assert f"the weights are those in {key!r}" in notes
    (rest,) = (note for note in notes if note.startswith("also in the file, not used: "))
    for text in ("epoch (int)", "arch (str)", "optimizer (dict)", "args (Namespace)", "rng (scalar)"):
        assert text in rest, rest


def test_lightnings_prefix_lies_in_its_state_dict(tmp_path: Path, weights: Weights) -> None:
    content = {"epoch": 3, "pytorch-lightning_version": "2.4", "state_dict": before("model.", weights)}
    torch.save(content, tmp_path / "a.ckpt")
    assert "'model.' is removed from 8 of 8 names" in imported(tmp_path / "a.ckpt", weights)
    with pytest.raises(UsageError, match="the file doesn't say which net it is for; give --net"):
        read_weights(tmp_path / "a.ckpt")
    content["state_dict"]["loss.weight"] = torch.ones(3)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=r"loss.weight: the net has no such tensor"):
        read_weights(tmp_path / "a.ckpt", NET)


def test_two_sets_that_could_be_the_weights_stop(tmp_path: Path, weights: Weights) -> None:
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = tmp_path / "a.pth"
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "averaged": ({"state_dict": weights, "state_dict_ema": other}, "state_dict", "state_dict_ema"),
        "at the top too": ({**weights, "ema": other}, ".", "ema"),
        "two prefixes": (before("student.", weights) | before("teacher.", other), "student", "teacher"),
        "both": ({"state_dict": before("net.", weights), "ema": before("module.", other)}, "state_dict/net", "ema"),
    }
    for content, first, second in cases.values():
        torch.save(content, path)
        with pytest.raises(
            UsageError, match=rf"that could be the weights: {first} .*{second}.*; choose one, as --entry"
        ):
            read_weights(path, NET)
        kept, _ = read_weights(path, NET, entry=second, partial=True)
        assert all(torch.equal(kept.weights[name], tensor) for name, tensor in other.items())
        with pytest.raises(UsageError, match="unknown entry 'emaa'"):
            read_weights(path, NET, entry="emaa")
    torch.save({"state_dict": weights, "again": weights}, path)  # twice the same dict is no choice
    imported(path, weights)


def test_tensors_of_every_layout(tmp_path: Path) -> None:
    whole = torch.arange(60.0).reshape(3, 4, 5)
    shown = {
        "whole": whole,
        "transposed": whole.permute(2, 0, 1),
        "part": whole[1:, ::2, 1],
        "wide": torch.ones(1, 2).expand(3, 2),
        "empty": torch.zeros(0, 4),
        "half": whole.half(),
        "brain": whole.bfloat16(),
        "count": torch.tensor(7),
        "flags": whole > 3,
        "parameter": torch.nn.Parameter(whole * 2),
    }
    for legacy in (False, True):
        torch.save(shown, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        (part,) = read_torch(tmp_path / "a.pth")
        assert [each.name for each in part.tensors] == list(shown)
        for each in part.tensors:
            expected = shown[each.name].detach()
            assert each.shape == tuple(expected.shape)
            assert torch.equal(each.read(), expected), each.name
            assert each.read().dtype == expected.dtype


# Names


def caffemodel(weights: Weights, names: dict[str, str], **how: Any) -> bytes:
    layers = {names.get(layer, layer): layer for layer in dict.fromkeys(name.split(".")[0] for name in weights)}
    blobs = {name: [weights[f"{ours}.{kind}"].numpy() for kind in ("weight", "bias")] for name, ours in layers.items()}
    return caffe_writer.net(blobs, 2, **how)


def test_a_last_layer_of_another_name_is_taken_where_it_is_the_only_one(tmp_path: Path, weights: Weights) -> None:
    tuned = {"fc10_flowers" + name[4:] if name.startswith("fc10") else name: each for name, each in weights.items()}
    cases: dict[str, Weights] = {
        "another too": {**tuned, "fc_other.weight": torch.ones(2, 1024)},
        "another size": {**tuned, "fc10_flowers.weight": torch.ones(10, 512)},
        "a bias of another size": {**tuned, "fc10_flowers.bias": torch.ones(11)},
        "without bias": {name: tensor for name, tensor in tuned.items() if name != "fc10_flowers.bias"},
        "not the last": {name.replace("conv3", "conv4"): tensor for name, tensor in weights.items()},
    }
    for content in cases.values():
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(DataError, match="a layer of another name --rename THEIRS=OURS"):
            read_weights(tmp_path / "a.pth", NET)
    torch.save(tuned, tmp_path / "a.pth")
    told = "fc10_flowers is read as fc10: the only layer of another name, and it fits"
    assert told in imported(tmp_path / "a.pth", weights)


def test_a_layer_of_another_name(tmp_path: Path, weights: Weights) -> None:
    others = {"conv3": "three", "fc10": "fc10_flowers"}  # two: not to be known by what is left
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(weights, others))
    renamed = {n.replace("fc10", "head.last").replace("conv3", "three"): tensor for n, tensor in weights.items()}
    torch.save(before("module.", renamed), tmp_path / "a.pth")
    for name, theirs in (("a.caffemodel", "fc10_flowers"), ("a.pth", "head.last"), ("a.pth", "module.head.last")):
        with pytest.raises(DataError, match="a layer of another name --rename THEIRS=OURS"):
            read_weights(tmp_path / name, NET)
        notes = imported(tmp_path / name, weights, rename={theirs: "fc10", "three": "conv3"})
        assert f"{theirs} is read as fc10 (--rename)" in notes
        with pytest.raises(UsageError, match="unknown name of the net 'fc100': did you mean 'fc10'"):
            read_weights(tmp_path / name, NET, rename={theirs: "fc100"})
        with pytest.raises(UsageError, match=f"unknown name of the file 'fc10_flower': .*{theirs.rpartition('.')[2]}"):
            read_weights(tmp_path / name, NET, rename={"fc10_flower": "fc10"})
        with pytest.raises(UsageError, match=r"conv2.weight and .*weight would both be conv2.weight; rename one"):
            read_weights(tmp_path / name, NET, rename={theirs: "conv2"})


def test_single_tensors_and_others_names_can_be_renamed(tmp_path: Path) -> None:
    net = create_model("alexnet_owt", num_classes=3, seed=1, in_channels=3)
    theirs = {"fc8.weight": "head_w", "fc8.bias": "head_b"}
    shrunk = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(("conv", "fc8"))}
    torch.save({theirs.get(name, name): tensor for name, tensor in shrunk.items()}, tmp_path / "a.pth")
    for rename in ({"head_w": "fc8.weight", "head_b": "fc8.bias"}, {new: old for old, new in theirs.items()}):
        kept, _ = read_weights(tmp_path / "a.pth", "alexnet_owt", rename=rename, partial=True)
        assert torch.equal(kept.weights["fc8.weight"], shrunk["fc8.weight"])


def test_caffes_inner_products_are_the_nets_fully_connected_layers(tmp_path: Path) -> None:
    for name, layers in (("cifar_26", {"fc64": "ip1", "fc10": "ip2"}), (NET, {"fc10": "ip1"})):
        weights = dict(create_model(name, seed=2).state_dict())
        (tmp_path / "a.caffemodel").write_bytes(caffemodel(weights, layers))
        kept, report = read_weights(tmp_path / "a.caffemodel", name)
        assert all(torch.equal(kept.weights[key], tensor) for key, tensor in weights.items())
        assert {row.source for row in report.rows} >= {f"{ip}.weight" for ip in layers.values()}


def test_the_order_of_colours_follows_the_net_or_the_word(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel(weights, {}))
    mean = np.random.default_rng(0).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    for channels, is_turned, note in (
        (None, False, "Caffe's CIFAR models read RGB, and so this file is taken; else give --channels bgr"),
        ("rgb", False, "the file's first layer is taken to read RGB (--channels)"),
        ("bgr", True, "the file's first layer is taken to read BGR (--channels)"),
    ):
        kept, report = read_weights(path, NET, channels=channels, mean=tmp_path / "mean.npy")
        first = weights["conv1.weight"]
        assert torch.equal(kept.weights["conv1.weight"], first.flip(1) if is_turned else first)
        planes = mean[::-1] if is_turned else mean
        np.testing.assert_array_equal(kept.preprocessing.mean, planes.transpose(1, 2, 0))
        assert note in report.notes
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    kept, _ = read_weights(tmp_path / "a.npz", NET, channels="bgr")
    assert torch.equal(kept.weights["conv1.weight"], weights["conv1.weight"].flip(1))
    with pytest.raises(UsageError, match="unknown order of colours 'gbr'"):
        read_weights(path, NET, channels="gbr")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("raw", [0, 1, 2])
def test_nvcaffes_raw_data(tmp_path: Path, weights: Weights, version: int, raw: int) -> None:
    halves = {name: tensor.half().float() for name, tensor in weights.items()}
    layers = {
        layer: [halves[f"{layer}.{kind}"].numpy() for kind in ("weight", "bias")]
        for layer in ("conv1", "conv2", "conv3", "fc10")
    }
    (tmp_path / "a.caffemodel").write_bytes(caffe_writer.net(layers, version, raw=raw))
    kept, report = read_weights(tmp_path / "a.caffemodel", NET)
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in halves.items())
    assert {row.done for row in report.rows} == {["float64 to float32", "copied", "float16 to float32"][raw]}


def test_raw_data_that_say_two_things_are_refused(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    both = caffe_writer.blob(ones) + caffe_writer.message(12, ones.tobytes()) + caffe_writer.number(10, 1)
    cases = {
        "or lie in two pieces": both,
        "raw_data are of type 3": caffe_writer.number(10, 3) + caffe_writer.message(12, b"12345678"),
        "7 bytes are no numbers of 4": caffe_writer.number(10, 1) + caffe_writer.message(12, b"1234567"),
        "has 1 numbers, its shape": caffe_writer.message(7, caffe_writer.number(1, 2))
        + caffe_writer.message(12, bytes(8)),
    }
    for text, blob in cases.items():
        layer = caffe_writer.message(1, b"conv1") + caffe_writer.message(7, blob)
        (tmp_path / "a.caffemodel").write_bytes(caffe_writer.message(100, layer))
        with pytest.raises(DataError, match=rf"conv1.weight:? .*{text}"):
            read_weights(tmp_path / "a.caffemodel", NET)


# Classes


def test_two_classes_of_one_name_are_told_apart_and_neither_keeps_it(tmp_path: Path, weights: Weights) -> None:
    torch.save(weights, tmp_path / "a.pth")
    names = ["tench", "crane", "hen", "ostrich", "robin", "crane", "maillot", "maillot", "orange", "fig"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    kept, report = read_weights(tmp_path / "a.pth", NET, classes=tmp_path / "names.txt")
    numbered = {1: "crane (1)", 5: "crane (5)", 6: "maillot (6)", 7: "maillot (7)"}
    assert kept.classes == tuple(numbered.get(k, name) for k, name in enumerate(names))
    called = "'crane' stands in lines 2 and 6: called 'crane (1)', 'crane (5)', by the outputs' numbers"
    assert f"names.txt: {called}" in report.notes
    names[0] = "crane (5)"
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    with pytest.raises(DataError, match=r"two classes would be called 'crane \(5\)'; give each line a name"):
        read_weights(tmp_path / "a.pth", NET, classes=tmp_path / "names.txt")


# Harm


def packed(program: bytes) -> bytes:
    """A file as torch.save writes it, of this pickle and one storage of 12 numbers."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(48))
    return out.getvalue()


def twofold(n: int, make: bytes) -> bytes:
    """A value that holds itself twice, n deep: who walks, hashes or prints it takes 2^n steps."""
    return b"".join(b"q%ch%ch%c" % (i, i, i) + make for i in range(n))


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x0ctQK\x00K\x0c\x85K\x01\x85\x89}tR"
)


@pytest.mark.parametrize(
    ("program", "text"),
    {
        "a key that takes 2^60 steps": (b"\x80\x02}K\x01" + twofold(60, b"\x86") + b"Ns.", "a table with such keys"),
        "dicts in dicts": (b"\x80\x02}" + b"".join(b"q%c}(U\x01ah%cU\x01bh%cu" % (i, i, i) for i in range(60)) + b".",
                           "it holds no tensors"),
        "a state that hides a dict's own items": (b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.",
                                                  "it holds no tensors"),
        "more steps than any net has": (b"\x80\x02" + b"N0" * MAX_OPCODES + b"N.", "more than 1,000,000 steps"),
        "a number without end": (b"\x80\x02I" + b"9" * 200_000 + b"\n.", "not a file of torch.save, or damaged"),
        "a memo that isn't": (b"\x80\x02}U\x01ah\x07s.", "or damaged"),
        "a tensor beyond its storage": (b"\x80\x02}U\x01a" + TENSOR.replace(b"K\x0c\x85", b"K\x0d\x85") + b"s.",
                                        "aren't all in it"),
        "a storage beyond its file": (b"\x80\x02}U\x01a" + TENSOR.replace(b"K\x0ctQ", b"K\x0dtQ") + b"s.",
                                      "aren't all in it"),
        "negative sides": (b"\x80\x02}U\x01a" + TENSOR.replace(b"K\x0c\x85", b"J\xff\xff\xff\xff\x85") + b"s.",
                           "odd sides"),
        "a state set on a tensor": (b"\x80\x02}U\x01a" + TENSOR + b"}bs.", "sets the state"),
    }.values(),
)  # fmt: skip
def test_small_files_that_would_take_everything_end_at_once(tmp_path: Path, program: bytes, text: str) -> None:
    (tmp_path / "a.pth").write_bytes(packed(program))
    with pytest.raises(DataError, match=text):
        read_weights(tmp_path / "a.pth", NET)


def test_the_tensor_of_the_harmful_files_is_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(packed(b"\x80\x02}U\x01a" + TENSOR + b"s."))
    (part,) = read_torch(tmp_path / "a.pth")
    assert part.tensors[0].read().tolist() == [0.0] * 12


@pytest.mark.large
def test_memory_is_bounded(tmp_path: Path) -> None:
    """The dearest programs that the limits allow: the process grows by less than 300 MB (each step makes 250 bytes)."""
    for program in (
        b"]q\x00" + b"](h\x00h\x00e" * 150_000,
        b"".join(b"}r%s" % i.to_bytes(4, "little") for i in range(400_000)),
    ):
        (tmp_path / "a.pth").write_bytes(packed(b"\x80\x02" + program + b"."))
        code = (
            "import resource, sys; from convnet.weights import read_weights; from convnet.errors import DataError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"try:\n    read_weights(__import__('pathlib').Path(sys.argv[1]), '{NET}')\n"
            "except DataError:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.pth"], capture_output=True, text=True, encoding="utf-8"
        )
        assert int(done.stdout) < 300_000, done.stderr


# The command


def test_the_command_takes_what_a_training_kept(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": before("module.", weights), "epoch": 1}, "model_best.pth.tar")
    Path("tuned.caffemodel").write_bytes(caffemodel(weights, {"fc10": "fc10_flowers"}))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["convnet", "import", *arguments, "--net", NET])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    code, out, err = run("model_best.pth.tar")
    assert code == 0, err
    assert "note: 'module.' is removed from 8 of 8 names" in out
    assert out.endswith("net: weights/model_best.ckpt\n")
    code, _, err = run("tuned.caffemodel", "--rename", "fc10_flowers=fc10", "--channels", "bgr")
    assert code == 0, err
    for words in ("fc10_flowers", "=fc10", "a=b=c"):
        assert run("tuned.caffemodel", "--out", "b.ckpt", "--rename", words)[0] == 2
    Path("tuned.npz").touch()
    code, _, err = run("tuned.npz")
    assert (code, "choose another --out, as weights/tuned.npz.ckpt" in err) == (2, True)
    with pytest.raises(UsageError, match="is a checkpoint already"):
        import_weights("weights/model_best.ckpt")
    assert checkpoint.load(Path("weights/tuned.ckpt")).recipe.net == NET
