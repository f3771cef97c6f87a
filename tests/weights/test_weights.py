"""Others' weights into our nets: names, shapes, pixels, what doesn't fit; and files that want to run something."""

import collections
import io
import json
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from convnet import checkpoint
from convnet.cli import app as cli
from convnet.data.augment import to_input
from convnet.errors import DataError, UsageError
from convnet.evaluation.views import centre
from convnet.nets import create_model
from convnet.weights import import_weights, names, preprocessing, read_state_dicts, read_weights
from convnet.weights.match import fits


@pytest.fixture
def nin() -> dict[str, torch.Tensor]:
    """A small net's weights under our names."""
    return create_model("nin_cifar10", seed=1).state_dict()


def test_our_names_in_every_kind_of_file(tmp_path: Path, nin: dict[str, torch.Tensor]) -> None:
    torch.save(nin, tmp_path / "a.pth")
    torch.save(nin, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    save_file(nin, tmp_path / "c.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in nin.items()}
    np.savez(tmp_path / "d.npz", **arrays)
    np.savez_compressed(tmp_path / "e.npz", **{name: np.asfortranarray(array) for name, array in arrays.items()})
    for path in sorted(tmp_path.iterdir()):
        kept, report = read_weights(path, "nin_cifar10")
        assert all(torch.equal(kept.weights[name], tensor) for name, tensor in nin.items()), path
        assert (report.writer, {row.done for row in report.rows}) == ("convnet", {"copied"})
        assert kept.classes == tuple("0123456789")
        assert [note.partition(":")[0] for note in report.notes] == [
            "no mean is subtracted",
            'the classes are called "0" to "9"',
        ]
        checkpoint.save(tmp_path / "kept" / "x.ckpt", kept)
        again = checkpoint.rebuild(checkpoint.load(tmp_path / "kept" / "x.ckpt"))
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in nin.items())
        (tmp_path / "kept" / "x.ckpt").unlink()
        (tmp_path / "kept").rmdir()


def test_half_and_double_precision_are_said(tmp_path: Path, nin: dict[str, torch.Tensor]) -> None:
    torch.save({name: tensor.half() for name, tensor in nin.items()}, tmp_path / "a.pth")
    kept, report = read_weights(tmp_path / "a.pth", "nin_cifar10")
    assert {row.done for row in report.rows} == {"float16 to float32"}
    assert all(each.dtype == torch.float32 for each in kept.weights.values())


def misfits(nin: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    first, *rest = nin
    return {
        f"{first}: not in the file": {name: nin[name] for name in rest},
        "extra: the net has no such tensor": {**nin, "extra": torch.zeros(1)},
        f"{first}: its shape is \\(3, 5\\), .* needs \\(192, 3, 5, 5\\)": {**nin, first: torch.zeros(3, 5)},
        f"{first} holds values that are not finite": {**nin, first: nin[first] / 0},
        "none of its names, such as 'x'": {"x": torch.zeros(1)},
    }


@pytest.mark.parametrize("case", range(5))
def test_what_does_not_fit_is_an_error(tmp_path: Path, nin: dict[str, torch.Tensor], case: int) -> None:
    text, weights = list(misfits(nin).items())[case]
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(DataError, match=text):
        read_weights(tmp_path / "a.pth", "nin_cifar10")
    if case < 4:
        kept, report = read_weights(tmp_path / "a.pth", "nin_cifar10", partial=True)
        assert len(report.missing) == (case != 1)
        assert len(report.unexpected) == (case != 0)
        assert len(kept.weights) == len(nin)
        assert list(kept.weights) == list(nin)
        assert all(bool(weight.isfinite().all()) for weight in kept.weights.values())
        assert any(line.startswith(("missing: ", "unexpected: ")) for line in report.lines())


def test_wrong_arguments_are_named(tmp_path: Path, nin: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.pth"
    torch.save(nin, path)
    with pytest.raises(UsageError, match="unknown net 'nin_cifar': did you mean"):
        read_weights(path, "nin_cifar")
    with pytest.raises(UsageError, match=r"a.h5: its name must end in .caffemodel, .pth"):
        read_weights(tmp_path / "a.h5", "nin_cifar10")
    with pytest.raises(DataError, match="no such file"):
        read_weights(tmp_path / "b.pth", "nin_cifar10")
    with pytest.raises(UsageError, match="--pixels half is for torchvision's and timm's files"):
        read_weights(path, "nin_cifar10", pixels="half")
    (tmp_path / "names").write_text("one\ntwo\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 names; the net has 10 classes, and needs one name a line for each"):
        read_weights(path, "nin_cifar10", classes=tmp_path / "names")
    np.save(tmp_path / "mean.npy", np.zeros((3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"a mean of shape \(3, 4, 4\); it must be \(3,\)"):
        read_weights(path, "nin_cifar10", mean=tmp_path / "mean.npy")


def test_files_that_are_something_else_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nin: dict[str, torch.Tensor]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    Path("folder.pth").mkdir()
    for name in ("photo.jpg", "."):
        with pytest.raises(
            UsageError,
            match=rf"{name}: its name must end in .caffemodel, .*; known files: alexnet.caffe, caffenet",
        ):
            import_weights(name, "nin_cifar10")
    Path("net.ckpt").write_bytes(checkpoint.MAGIC)
    with pytest.raises(UsageError, match=r"net.ckpt is a checkpoint already; `evaluate`, `predict`"):
        import_weights("net.ckpt")
    with pytest.raises(DataError, match=r"folder.pth: is not a file"):
        import_weights("folder.pth", "nin_cifar10")
    with pytest.raises(UsageError, match=r"unknown file 'photo.png'"):
        import_weights("photo.png", "nin_cifar10")
    with pytest.raises(UsageError, match="unknown net 'vgg61'"):
        import_weights("vgg16.torchvision", "vgg61")
    for ending, text in {
        "caffemodel": "can't be read as a .caffemodel: byte 0: wire type 7",
        "pth": "not a file of torch.save, or damaged",
        "npz": "not a whole .npz",
        "safetensors": "not a whole .safetensors: the header of the tensors says",
    }.items():
        Path(f"photo.{ending}").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(100)))
        with pytest.raises(DataError, match=rf"^photo.{ending}: {text}"):
            import_weights(f"photo.{ending}", "nin_cifar10")
    torch.save(nin, "nin.pth")
    with pytest.raises(DataError, match=r"nin.pth doesn't fit cifar_26, 0 of its 18 tensors do; is it another net's\?"):
        import_weights("nin.pth", "cifar_26")
    assert not Path("weights").exists()


def test_grey_nets_and_options_are_known_by_their_tensors(tmp_path: Path) -> None:
    for name, options in {"nin_cifar10": {"in_channels": 1}, "lenet5": {"in_channels": 3, "output": "linear"}}.items():
        net = create_model(name, num_classes=7, seed=1, **options)
        torch.save(net.state_dict(), tmp_path / "a.pth")
        kept, report = read_weights(tmp_path / "a.pth", name)
        assert (dict(kept.recipe.net_options), len(kept.classes)) == (options, 7)
        assert kept.preprocessing.channels == ("grey" if options["in_channels"] == 1 else "rgb")
        again = checkpoint.rebuild(kept)
        assert all(torch.equal(again.state_dict()[key], each) for key, each in net.state_dict().items())
        assert {row.done for row in report.rows} == {"copied"}


def test_colours_of_imagenet_are_none_of_a_grey_net(tmp_path: Path) -> None:
    net = create_model("googlenet_bn", num_classes=4, in_channels=1, heads=False, seed=0)
    save_file(torchvision_names(net), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="are of three colours, and this net sees one: give --pixels half"):
        read_weights(tmp_path / "a.safetensors", "googlenet_bn", pixels="imagenet")
    kept, report = read_weights(tmp_path / "a.safetensors", "googlenet_bn", pixels="half")
    assert (kept.preprocessing.channels, kept.preprocessing.scale) == ("grey", 1 / 127.5)
    assert {row.done for row in report.rows} == {"copied"}


def test_shapes_that_hold_the_numbers_in_their_order() -> None:
    wanted = (4096, 512 * 7 * 7)
    for shape in (wanted, (4096, 512, 7, 7), (1, 1, *wanted), (*wanted, 1, 1)):
        assert fits(shape, wanted), shape
    for shape in ((4096, 7, 7, 512), (512 * 7 * 7, 4096), (4096, 512, 49), (512, 4096, 7, 7), (4096, 512, 7, 6)):
        assert not fits(shape, wanted), shape
    assert fits((1, 1, 1, 1000), (1000,))
    assert fits((1, 1, 1, 4096), (1, 4096))
    assert fits((1,), ())
    assert not fits((10, 1), (10,))
    assert not fits((96, 3, 11, 11), (3, 96, 11, 11))


def test_a_mean_has_the_size_of_the_stored_square(tmp_path: Path, nin: dict[str, torch.Tensor]) -> None:
    torch.save(nin, tmp_path / "a.pth")
    picture = np.random.default_rng(0).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "mean.npy", picture)
    kept, _ = read_weights(tmp_path / "a.pth", "nin_cifar10", mean=tmp_path / "mean.npy")
    np.testing.assert_array_equal(kept.preprocessing.mean, picture[::-1].transpose(1, 2, 0))
    np.save(tmp_path / "mean.npy", np.full((3, 256, 256), 1.0))
    with pytest.raises(DataError, match=r"mean of shape \(3, 256, 256\); it must be \(3,\) or \(3, 32, 32\), BGR"):
        read_weights(tmp_path / "a.pth", "nin_cifar10", mean=tmp_path / "mean.npy")
    np.save(tmp_path / "mean.npy", np.asarray((1, 2, np.nan)))
    with pytest.raises(DataError, match=r"^[^:]*mean.npy: a mean with values that are not finite"):
        read_weights(tmp_path / "a.pth", "nin_cifar10", mean=tmp_path / "mean.npy")


# torchvision's and timm's names and pixels


def test_the_places_in_torchvisions_vgg() -> None:
    """features.N of vgg16 and vgg11_bn, as their state dicts list them."""
    with torch.device("meta"):
        plain, normed = create_model("vgg_d", seed=0), create_model("vgg_a_bn", seed=0)
    found = names.in_state_dicts(plain)["torchvision"]
    places = [int(name.split(".")[1]) for name in found if name.startswith("features") and name.endswith("bias")]
    assert places == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert found["classifier.6.bias"] == ("fc8.bias",)
    found = names.in_state_dicts(normed)["torchvision"]
    places = [int(name.split(".")[1]) for name in found if name.startswith("features") and name.endswith("bias")]
    assert places == [0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19, 22, 23, 25, 26]
    assert "head.fc.weight" in names.in_state_dicts(normed)["timm"]
    assert len(names.in_state_dicts(normed)["torchvision"]) == 8 * 7 + 6


def torchvision_names(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    (writer,) = names.in_state_dicts(net).keys() - {"convnet"}  # type: ignore[arg-type]
    return {theirs: net.state_dict()[ours] for theirs, (ours,) in names.in_state_dicts(net)[writer].items()}


@pytest.mark.parametrize("pixels", ["imagenet", "half"])
def test_outputs_are_those_of_their_pixels(tmp_path: Path, pixels: str) -> None:
    net = create_model("googlenet_bn", num_classes=4, heads=False, seed=0).eval()
    weights = torchvision_names(net)
    assert weights["inception3a.branch2.0.conv.weight"].shape == (96, 192, 1, 1)
    path = tmp_path / "googlenet.safetensors"
    save_file({name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")}, path)
    with pytest.raises(UsageError, match="doesn't say how its pixels were scaled: give --pixels half"):
        read_weights(path, "googlenet_bn")
    kept, report = read_weights(path, "googlenet_bn", pixels=pixels)
    squares = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    crops = squares[:, 16:240, 16:240]
    how = centre(kept.preprocessing, 2)
    images = to_input(crops, how, kept.preprocessing, torch.device("cpu"))
    mean, std = (torch.tensor(each)[:, None, None] for each in preprocessing.PIXELS[pixels])
    with torch.no_grad():
        ours = checkpoint.rebuild(kept)(images)
        theirs = net((torch.from_numpy(crops).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    rows = {row.source: row.done for row in report.rows}
    divided = "input channels divided by 58.395, 57.12, 57.375"
    assert rows["conv1.conv.weight"] == (divided if pixels == "imagenet" else "copied")
    assert "writer" in report.to_dict()
    assert any(note.startswith("torchvision resizes test pictures bilinearly") for note in report.notes)


def test_timms_convolutions_are_fully_connected_layers(tmp_path: Path) -> None:
    with torch.device("meta"):
        net = create_model("vgg_a", seed=0)
    timm = names.in_state_dicts(net)["timm"]
    assert timm["pre_logits.fc1.weight"] == ("fc6.weight",)
    weights = torch.arange(2 * 3 * 7 * 7.0, dtype=torch.float64).reshape(2, 3, 7, 7)
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    whole = F.conv2d(x, weights)[:, :, 0, 0]
    torch.testing.assert_close(whole, F.linear(x.flatten(1), weights.reshape(2, -1)))


# Files that want to run something


class Calls:
    """A pickle of it calls `function` when it's loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def malicious(marker: str) -> dict[str, bytes]:
    """Files of different kinds; each of the first ones makes the file `marker` when something runs it."""
    import builtins
    import os
    import runpy
    import shutil
    import subprocess
    import webbrowser

    code = f"open({marker!r}, 'w')"
    attacks: dict[str, Any] = {
        "os.system": Calls(os.system, f"touch {marker}"),
        "open": Calls(open, marker, "w"),
        "exec": Calls(builtins.exec, code),
        "eval": Calls(builtins.eval, code),
        "popen": Calls(os.popen, f"touch {marker}"),
        "subprocess": Calls(subprocess.check_call, ["touch", marker]),
        "Popen class": Calls(subprocess.Popen, ["touch", marker]),
        "runpy": Calls(runpy.run_path, marker),
        "shutil": Calls(shutil.copy, "/etc/passwd", marker),
        "rename": Calls(os.rename, "/nowhere", marker),
        "browser": Calls(webbrowser.open, "http://127.0.0.1:1/"),
        "getattr": Calls(getattr, "text", "upper"),
        "import": Calls(__import__, "os"),
        "compile": Calls(compile, code, "x", "exec"),
        "torch.load again": Calls(torch.load, marker),
        "numpy.load": Calls(np.load, marker),
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {marker}"))),
        "bytearray bomb": Calls(bytearray, 10**12),
        "Counter": collections.Counter("aab"),
        "a whole module": torch.nn.Linear(1, 1),
        "in a dict's value": {"w": torch.zeros(1), "x": Calls(os.system, f"touch {marker}")},
        "in a dict's key": {frozenset([1]): Calls(os.system, f"touch {marker}")},
    }
    files: dict[str, bytes] = {}
    for name, attack in attacks.items():
        for kind, new in (("zip", True), ("legacy", False)):
            out = io.BytesIO()
            torch.save(attack, out, _use_new_zipfile_serialization=new)
            files[f"{name}, {kind}"] = out.getvalue()
        if not isinstance(attack, torch.nn.Module | dict):
            files |= {f"{name}, protocol {p}": pickle.dumps(attack, protocol=p) for p in (0, 2, 4)}
    hand = {
        "INST": b"(S'touch %s'\nios\nsystem\n." % marker.encode(),
        "OBJ": b"(cos\nsystem\nS'touch %s'\no." % marker.encode(),
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(X\x01\x00\x00\x00xt\x81.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93X\x04\x00\x00\x00true\x85R.",
        "EXT1": b"\x80\x02\x82\x01)R.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00xcos\nsystem\nsb.",
        "dotted name": b"\x80\x04ctorch\nserialization.os.system\nX\x04\x00\x00\x00true\x85R.",
        "persistent id": b"Pos.system\n.",
        "no end": b"\x80\x02cos\nsystem\n",
    }
    for name, program in hand.items():
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("x/data.pkl", program)
            archive.writestr("x/version", "3\n")
        files |= {f"{name}, zip": out.getvalue(), f"{name}, bare": program}
    return files


def test_malicious_pickles_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    cases = malicious(str(marker))
    assert len(cases) > 100
    n_named = 0
    for i, (name, data) in enumerate(cases.items()):
        path = tmp_path / f"evil{('.pth', '.pt', '.pkl')[i % 3]}"
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_weights(path, "nin_cifar10", partial=True)
        n_named += "refused, nothing was run: it wants to import" in str(caught.value)
        assert str(caught.value).startswith(f"{path}: "), name
        assert not marker.exists(), name
    assert n_named > 60


def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path, nin: dict[str, torch.Tensor]) -> None:
    first = next(iter(nin))
    cases: dict[str, Any] = {
        "it holds no tensors": {"epoch": 3, "model": {"name": "nin"}},
        "it holds a list, not a dict": [torch.zeros(1)],
        "it holds a Tensor, not a dict": torch.zeros(1),
        "a name in its dict is no printable text": {"\x1b[2J": torch.zeros(1)},
        "parts are used repeatedly": {first: torch.zeros(1).expand(192, 3, 500, 500)},
        "it wants to import": {first: torch.zeros(5).to_sparse()},
    }
    for text, content in cases.items():
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(DataError, match=text.replace("[", r"\[")):
            read_weights(tmp_path / "a.pth", "nin_cifar10")


def test_damaged_archives_only_raise_our_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {"conv1.weight": torch.ones(4, 3, 2, 2), "conv1.bias": torch.ones(4)}
    new, old, safe, npz = (tmp_path / f"seed.{end}" for end in ("pth", "pt", "safetensors", "npz"))
    torch.save(tensors, new)
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    save_file(tensors, safe)
    np.savez_compressed(npz, **{name: each.numpy() for name, each in tensors.items()})
    for seed in (new, old, safe, npz):
        data, path = seed.read_bytes(), tmp_path / f"bad{seed.suffix}"
        for i in range(150):
            bad = bytearray(data)
            for at in generator.integers(0, len(bad), 1 + i % 4):
                bad[at] = generator.integers(0, 256)
            path.write_bytes(bad if i % 5 else bad[: generator.integers(0, len(bad))])
            with pytest.raises(DataError):
                read_weights(path, "nin_cifar10")
            with suppress(DataError):
                for each in read_state_dicts(path)[0].tensors:
                    each.read()


# The command


def test_the_command_imports(
    tmp_path: Path, nin: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nin, "mine.pth")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["convnet", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    code, out, err = run("import", "mine.pth", "--net", "nin_cifar10")
    assert code == 0, err
    assert "conv1.weight" in out
    assert "note: no mean is subtracted" in out
    assert out.endswith("net: weights/mine.ckpt\n")
    assert checkpoint.load(Path("weights/mine.ckpt")).recipe.net == "nin_cifar10"
    code, _, err = run("import", "mine.pth", "--net", "nin_cifar10")
    assert (code, "weights/mine.ckpt exists; choose another --out" in err) == (2, True)
    code, out, _ = run("import", "mine.pth", "--net", "nin_cifar10", "--out", "b.ckpt", "--json")
    assert code == 0
    assert json.loads(out)["checkpoint"] == "b.ckpt"
    assert len(json.loads(out)["rows"]) == len(nin)
    code, _, err = run("import", "mine.pth", "--out", "c.ckpt")
    assert (code, "--net" in err) == (2, True)
    code, _, err = run("import", "vgg16.torchvison")
    assert (code, "did you mean 'vgg16.torchvision'?" in err) == (2, True)
