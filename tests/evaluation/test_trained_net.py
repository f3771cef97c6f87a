"""The library's face: a trained net from a file or a run, asked about pictures, a store, its stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnet
from conftest import trained_net
from convnet import checkpoint, device
from convnet.data.store import Store
from convnet.errors import DataError, UsageError

CPU = device.choose("fp32", "cpu")


def test_a_run_is_loaded_and_tested_by_text_and_by_path(untrained: Path, digits: Store, tmp_path: Path) -> None:
    kept = checkpoint.load(untrained)
    expected = trained_net(checkpoint.rebuild(kept), kept.preprocessing).evaluate(digits.split("test"))
    (tmp_path / "best.ckpt").write_bytes(untrained.read_bytes())
    for place in (str(untrained), untrained, tmp_path):
        trained = convnet.load(place, device="cpu")
        assert trained.classes == digits.classes
        assert not trained.net.training
    for store in (str(digits.path), digits.path, digits):
        assert trained.evaluate(store).top1 == expected.top1
    assert trained.evaluate(digits, "val").n == digits.split("val").n


def test_pictures_give_classes_stages_and_features(untrained: Path, tmp_path: Path) -> None:
    trained = convnet.load(untrained, device="cpu")
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (28, 28), np.uint8)).save(path)
    images = trained.images(paths)
    assert images.shape == (2, trained.net.in_channels, trained.net.input_size, trained.net.input_size)
    stages = trained.trace(paths)
    logits = trained.net(images)
    (last,) = list(stages.values())[-1:]
    assert torch.equal(last, logits)
    first = next(iter(stages))
    assert torch.equal(trained.features(str(paths[0]), first), stages[first][:1].flatten(1))
    answers = trained.predict(paths, top=3)
    best = logits.softmax(1).argsort(1, descending=True)[:, :3]
    assert [answer.classes for answer in answers] == [tuple(trained.classes[k] for k in row) for row in best]
    assert trained.predict(tmp_path / "none.png")[0].failed == "no such file"


def test_what_is_wrong_is_said(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint"):
        convnet.load(tmp_path)
    with pytest.raises(UsageError, match="the checkpoint is 3, a int; it must be a path"):
        convnet.load(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        convnet.load(untrained, device="gpu")
    trained = convnet.load(untrained, device="cpu")
    with pytest.raises(UsageError, match="the store is None"):
        trained.evaluate(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a picture is 1"):
        trained.predict([1])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"none\.png"):
        trained.images(tmp_path / "none.png")
    with pytest.raises(UsageError, match="unknown stage 'conv9'"):
        trained.features(torch.zeros(1, 1, 32, 32), "conv9")
