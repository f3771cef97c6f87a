"""The library in others' hands: a user's script, a store in torch's DataLoader, trained weights by name, help()."""

import os
import pickle
import pydoc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import convnet
import library_user
from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.dataset import StoreDataset
from convnet.export import export
from convnet.nets import create_model, list_models
from convnet.nets.layers import Net
from convnet.weights import FOLDER
from thin import of_each_kind, thin_net

NAMED = {*convnet.__all__} - {"__version__"}


@pytest.fixture(scope="module")
def linear(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LeNet-5 whose last layer can have other classes."""
    kept, path = checkpoint.load(untrained), tmp_path_factory.mktemp("linear") / "net.ckpt"
    weights = dict(create_model("lenet5", seed=1, output="linear").state_dict())
    recipe = replace(kept.recipe, net_options={"output": "linear"})
    checkpoint.save(path, Checkpoint(recipe, kept.preprocessing, kept.classes, weights))
    return path


def test_a_users_script_runs(untrained: Path, linear: Path, few_digits: Store) -> None:
    assert 0.5 < library_user.ask(str(untrained), str(few_digits.path)) <= 1  # it has learned nothing
    before, after = library_user.learn(str(few_digits.path), 5)
    assert before != after
    assert library_user.other_classes("lenet5", linear).net.output.out_features == 3  # type: ignore[union-attr]


def test_help_is_a_page() -> None:
    """Each public name has its place there, and no value of the page shows where it lies in memory."""
    text = pydoc.plain(pydoc.render_doc(convnet))
    assert {name for name in convnet.__all__ if name in text[: text.index("PACKAGE CONTENTS")]} >= NAMED
    assert " object at 0x" not in text
    for name in NAMED - {"visualize"}:
        assert f"    {name}(" in text or f"    class {name}(" in text


# A store for others' loops


def test_items_are_what_the_net_is_tested_on(untrained: Path, few_digits: Store) -> None:
    trained, seen = convnet.load(untrained, device="cpu"), list[Tensor]()
    dataset = StoreDataset(few_digits, preprocessing=trained.preprocessing)
    with torch.no_grad():
        trained.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
        trained.evaluate(few_digits)
    images, labels = zip(*dataset, strict=True)
    assert torch.equal(torch.stack(images), torch.cat(seen))
    assert list(labels) == few_digits.split("test").labels.tolist()
    assert len(dataset) == len(labels) == 90
    with pytest.raises(IndexError, match="picture 90 of 90"):
        dataset[90]


def negative(picture: Tensor) -> Tensor:
    return 255 - picture


def test_items_are_stored_pixels_in_every_process(photos: Store) -> None:
    """By spawned workers, by a copy that was pickled, by a child of a fork; with a net's own order of the classes."""
    split = photos.with_labels_of(("red", "green", "blue"), "a net").split("val")
    dataset = StoreDataset(split, transform=negative)
    expected = [255 - split.picture(i).transpose(2, 0, 1) for i in range(split.n)]
    loader = DataLoader(dataset, batch_size=10, num_workers=1, multiprocessing_context="spawn")
    pictures, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    np.testing.assert_array_equal(pictures, expected)
    assert labels.tolist() == split.labels.tolist() != photos.split("val").labels.tolist()
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[3][0], dataset[3][0])
    assert (again.classes, again[3][1]) == (("red", "green", "blue"), dataset[3][1])
    opened, dataset._process = dataset._split, os.getppid()
    assert torch.equal(dataset[3][0], again[3][0])
    assert dataset._split is not opened


def test_a_dataset_says_what_does_not_fit(untrained: Path, photos: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a store"):
        StoreDataset(tmp_path)
    with pytest.raises(UsageError, match="unknown split 'tset'"):
        StoreDataset(photos, "tset")
    with pytest.raises(UsageError, match="prepare the source with --size 28"):
        StoreDataset(photos, preprocessing=checkpoint.load(untrained).preprocessing)


# Trained weights, other classes


@pytest.mark.parametrize("name", of_each_kind(list_models()))
def test_other_classes_leave_all_else(name: str) -> None:
    net = deepcopy(thin_net(name))
    before = dict(net.state_dict())
    if name == "lenet5":
        with pytest.raises(UsageError, match="the layer output is made for its own classes, it can't have 3"):
            net.reset_classifier(3)
        net = convnet.create_model(name, output="linear")
        before = dict(net.state_dict())
    frozen = next(iter(net.parameters())).requires_grad_(False)
    net.reset_classifier(3, seed=5)
    images = torch.rand(2, net.in_channels, net.input_size, net.input_size)
    with torch.no_grad():
        assert {tuple(logits.shape) for logits in net.heads(images).values()} == {(2, 3)}
    assert net.num_classes == 3
    assert not frozen.requires_grad
    for key, tensor in net.state_dict().items():
        if net.is_of_classes(key):
            assert len(tensor) == 3
        else:
            assert tensor.data_ptr() == before[key].data_ptr()  # the very same: an optimizer still has it


def test_fresh_layers_are_as_create_model_gives_them() -> None:
    """By the seed alone, with the standard deviation and the biases of the net's paper."""
    nets = [convnet.create_model("nin_cifar10", seed=seed) for seed in (0, 1)]
    for net in nets:
        net.reset_classifier(500, seed=7)
    last = [net.get_parameter("cccp6.weight") for net in nets]
    assert torch.equal(*last)
    assert float(last[0].detach().std()) == pytest.approx(0.05, rel=0.02)  # of 96,000 values: 0.2 % of it
    assert not net.get_parameter("cccp6.bias").any()
    with pytest.raises(UsageError, match="num_classes is 0; it must be at least 1"):
        net.reset_classifier(0)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_trained_weights_by_a_path_or_a_name(linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint, a run's folder, a file of weights, a published file that has come before."""
    monkeypatch.chdir(tmp_path)
    expected: Net = create_model("lenet5", seed=1, output="linear")
    kept = checkpoint.load(linear)
    Path("run").mkdir()
    checkpoint.save(Path("run/best.ckpt"), kept)
    export(kept, Path("net.safetensors"))
    FOLDER.mkdir()
    monkeypatch.setattr("convnet.weights.pretrained.KNOWN", {"lenet.test": None})
    checkpoint.save(FOLDER / "lenet.test.ckpt", kept)
    for place in (linear, "run", "net.safetensors", "lenet.test"):
        net = convnet.create_model("lenet5", pretrained=place)
        assert same(net, expected)
        assert net.training
    other = convnet.create_model("lenet5", pretrained=linear, num_classes=4, seed=0)
    assert torch.equal(other.get_parameter("c1.weight"), expected.get_parameter("c1.weight"))
    assert other(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


def test_weights_that_do_not_fit_are_told(linear: Path, tmp_path: Path) -> None:
    for call, text in (
        (lambda: convnet.create_model("cifar_26", pretrained=linear), "holds the net lenet5, not cifar_26"),
        (lambda: convnet.create_model("lenet5", pretrained=linear, in_channels=3), "in_channels is 3; the weights of"),
        (lambda: convnet.create_model("vgg16", pretrained=True), "pretrained is True, a bool; it must be a path"),  # type: ignore[arg-type]
        (lambda: convnet.create_model("vgg16", pretrained="vgg16.torch"), "known files: .* vgg16.torchvision"),
        (lambda: convnet.create_model("lenet5", pretrained=tmp_path), "holds no checkpoint"),
    ):
        with pytest.raises(UsageError, match=text):
            call()
