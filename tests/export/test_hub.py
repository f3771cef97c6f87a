"""A net handed on: timm and we load it from the folder, and its card says what was measured."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import assert_same, kept_of, pictures

import convnet
from conftest import Run
from convnet import checkpoint
from convnet.data.augment import to_input
from convnet.data.preprocess import Preprocessing
from convnet.errors import DataError, DiskError, UsageError
from convnet.evaluation.views import centre
from convnet.export import hub
from convnet.export.hub import export_hub
from convnet.io import atomic, strict_json
from convnet.nets import create_model
from convnet.weights import read_weights
from peers import alike, package
from thin import THINNER, thinned

CLASSES = 3
ERRORS = {"n": 400, "top1_error": 0.1, "top5_error": 0.0, "loss": 0.5}
SUMMARY = {"epochs": 5, "steps": 1234, "test": ERRORS, "validation": {**ERRORS, "n": 200}}


@pytest.fixture(scope="module")
def run_of_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a thin VGG-A."""
    run = tmp_path_factory.mktemp("run")
    with thinned(THINNER):
        net = create_model("vgg_a", num_classes=CLASSES, init="he", seed=1)
        checkpoint.save(run / "best.ckpt", kept_of("vgg_a", net, pictures(net, scale=0.02, offset=0.5)))
    (run / "summary.json").write_bytes(strict_json.seal(SUMMARY))
    return run


@pytest.fixture
def vgg(run_of_vgg: Path) -> Iterator[Path]:
    """That folder; nets are made thin."""
    with thinned(THINNER):
        yield run_of_vgg


def test_timms_names_come_back_bitwise(vgg: Path, tmp_path: Path) -> None:
    """Its fully connected layers are convolutions; the pixels are said as its Normalize, the resizing as its share."""
    written = export_hub(vgg, tmp_path / "hub")
    assert [path.name for path in written.files] == list(hub.FILES)
    kept = checkpoint.load(vgg / "best.ckpt")
    again, report = read_weights(tmp_path / "hub/model.safetensors")
    assert_same(again.weights, {name: kept.weights[name] for name in again.weights})
    assert again.weights.keys() == kept.weights.keys()
    assert (again.preprocessing, again.classes, report.writer) == (kept.preprocessing, kept.classes, "timm")
    config = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))
    assert (config["architecture"], config["num_classes"]) == ("vgg11", CLASSES)
    cfg = config["pretrained_cfg"]
    assert (cfg["first_conv"], cfg["classifier"], cfg["label_names"]) == ("features.0", "head.fc", list(kept.classes))
    assert (cfg["input_size"], cfg["crop_pct"], cfg["crop_mode"]) == ([3, 224, 224], 0.875, "center")
    pixels = torch.arange(0.0, 256.0)
    theirs = (pixels / 255 - cfg["mean"][1]) / cfg["std"][1]
    torch.testing.assert_close(theirs, (pixels - float(kept.preprocessing.mean[1])) * 0.02 + 0.5)


def test_the_card_says_what_was_measured(vgg: Path, tmp_path: Path, run: Run) -> None:
    """Every number by itself: n, both errors and their intervals by Wilson; the digests are the files'."""
    code, out, err = run("export", vgg, tmp_path / "hub", "--hub")
    assert (code, err) == (0, "")
    assert f'note: timm.create_model("local-dir:{tmp_path / "hub"}", pretrained=True)' in out
    card = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "| test | 400 | 10.00% | 7.43% to 13.33% | 0.00% | 0.00% to 0.95% |" in card
    assert "| validation, which chose the net | 200 | 10.00% |" in card
    for path in (tmp_path / "hub/model.safetensors", vgg / "best.ckpt"):
        assert f"| {path.name} | `{atomic.sha256_file(path)}` |" in card
    assert '    net = "vgg_a"' in card
    code, _, err = run("export", vgg, tmp_path / "hub", "--hub")
    assert (code, err.count("exists and isn't an empty folder")) == (2, 1)
    code, _, err = run("export", vgg, tmp_path / "other", "--hub", "--names", "timm")
    assert (code, "leave out what is for other files" in err) == (2, True)


def test_nets_that_timm_lacks_keep_our_names(untrained: Path, tmp_path: Path) -> None:
    """And so do pictures that it can't prepare; what is said of them is why."""
    written = export_hub(untrained, tmp_path / "hub")
    assert "timm can't load it: timm has no lenet5; it has vgg_a, " in written.notes[-1]
    card = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert "Nothing is known of it here" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    told: dict[str, torch.nn.Module] = {}
    exec(code.replace("FOLDER", str(tmp_path / "hub")), told)
    weights = checkpoint.load(untrained).weights
    assert_same({name: told["net"].state_dict()[name] for name in weights}, weights)
    net = create_model("nin_cifar10", seed=0)
    mean = np.zeros((32, 32, 3), np.float32)
    checkpoint.save(tmp_path / "nin.ckpt", kept_of("nin_cifar10", net, pictures(net, mean=mean)))
    names = [path.name for path in export_hub(tmp_path / "nin.ckpt", tmp_path / "nin").files]
    assert names == ["model.safetensors", "model.safetensors.mean.npy", "README.md", "config.json"]


def test_all_of_a_folder_or_nothing(vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise DiskError(f"{path}: full")

    monkeypatch.setattr(atomic, "write_new", full)
    with pytest.raises(DiskError):
        export_hub(vgg, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
    damaged = tmp_path / "run"
    damaged.mkdir()
    (damaged / "best.ckpt").hardlink_to(vgg / "best.ckpt")
    (damaged / "summary.json").write_bytes((vgg / "summary.json").read_bytes().replace(b"0.1", b"0.0", 1))
    with pytest.raises(DataError, match=r"summary\.json is no summary"):
        export_hub(damaged, tmp_path / "hub")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        export_hub(tmp_path, tmp_path / "hub")


@pytest.mark.peers
@pytest.mark.parametrize("name", ["vgg_a", "vgg_b_bn"])
def test_timm_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    """By its own Normalize; and it makes the same crops."""
    timm = package("timm")
    net = create_model(name, num_classes=10, init="he", seed=0).eval()
    done: Preprocessing = pictures(net, scale=0.01, offset=0.1)
    kept = kept_of(name, net, done)
    checkpoint.save(tmp_path / "net.ckpt", kept)
    export_hub(tmp_path / "net.ckpt", tmp_path / "hub")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(theirs)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.no_grad():
        ours = net(to_input(pixels, centre(done, 2), done, torch.device("cpu")))
        mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
        found = theirs((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    alike(f"timm from ours {name}", found, ours, 1e-4, np.inf)
    assert timm.data.create_transform(**data).transforms[0].size == 256
    assert theirs.pretrained_cfg["label_names"] == list(kept.classes)
    assert convnet.create_model(name, pretrained=tmp_path / "hub/model.safetensors").num_classes == 10
