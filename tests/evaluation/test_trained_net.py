"""The library's face: a trained net from a file or a run, asked about pictures, a store, its stages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convnet
from conftest import trained_net
from convnet import checkpoint, device
from convnet.data.store import Store
from convnet.errors import DataError, UsageError
from convnet.evaluation.inference import NotFinite
from convnet.recipe import to_toml

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
    with pytest.raises(
        UsageError, match=r"none\.ckpt: no such checkpoint; a run keeps its own in runs/NAME/best\.ckpt"
    ):
        convnet.load(tmp_path / "none.ckpt")
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


def test_pictures_in_memory_are_what_files_are(untrained: Path, tmp_path: Path) -> None:
    """One or several, as paths or arrays; of the probabilities the classes' sum is 1."""
    trained = convnet.load(untrained, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 30, 3), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for stage, found in trained.trace(pixels).items():
        assert torch.equal(found, trained.trace(paths)[stage])
    assert torch.equal(trained.images(pixels[0]), trained.images(paths[0]))
    answers = trained.predict(paths, top=10)
    assert [answer.name for answer in answers] == paths
    for answer, other in zip(answers, trained.predict(pixels, top=10), strict=True):
        assert (answer.classes, answer.probabilities) == (other.classes, other.probabilities)
        assert sum(answer.probabilities) == pytest.approx(1)
    assert trained.predict(iter(pixels[1:2]))[0].classes == answers[1].classes[:5]


def test_a_net_is_itself_where_it_came_from(untrained: Path) -> None:
    kept, trained = checkpoint.load(untrained), convnet.load(untrained, device="cpu")
    assert (trained.recipe, trained.provenance, trained.name) == (kept.recipe, kept.provenance, str(untrained))
    assert convnet.load(untrained, CPU).device is CPU
    assert convnet.load(untrained, torch.device("cpu")).device == CPU


def test_wrong_types_are_told_by_argument_value_and_rule(untrained: Path, digits: Store, tmp_path: Path) -> None:
    trained: Any = convnet.load(untrained, device="cpu")
    grey = np.zeros((8, 8), np.uint8)
    for call, text in (
        (lambda: convnet.load(untrained, 0), "device is 0, a int; it must be auto, cpu"),
        (lambda: trained.evaluate(digits, 1), "split is 1, a int; it must be train, val or test"),
        (lambda: trained.evaluate(digits, views=10), "views is 10, a int; it must be text, as ten-crop"),
        (lambda: trained.evaluate(digits, scales=[256]), "scales is [256], a list; it must be text, as 256,384,512"),
        (lambda: trained.predict("a.png", top="3"), "top is '3', a str; it must be a number of classes"),
        (lambda: trained.predict("a.png", top=True), "top is True, a bool"),
        (lambda: trained.predict(3), "pictures is 3, a int; it must be paths, or uint8 (H, W, 3) each"),
        (lambda: trained.images([]), "no pictures: name at least one"),
        (lambda: trained.images(grey), "picture 0: a picture is uint8 [8, 8]; it must be a path, or uint8 (H, W, 3)"),
        (lambda: trained.features("a.png", None), "stage is None, a NoneType; it must be the name of a stage"),
        (lambda: convnet.train(3, digits, tmp_path / "run"), "the recipe is 3, a int; it must be a path"),
        (lambda: convnet.train("lenet5", 3, tmp_path / "run"), "the store is 3, a int; it must be a path"),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(text)}"):
            call()
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_not_finite_is_told_by_the_pictures_name(untrained: Path) -> None:
    trained = convnet.load(untrained, device="cpu")
    with torch.no_grad():
        next(trained.net.parameters()).fill_(torch.nan)
    with pytest.raises(NotFinite, match="the net's output for 'picture 0' is not finite"):
        trained.predict(np.zeros((40, 30, 3), np.uint8))


def test_a_run_can_be_made_by_names_alone(few_digits: Store, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    short = replace(convnet.load_recipe("lenet5_small"), name="short", epochs=1)
    recipe.write_text(to_toml(short), encoding="utf-8")
    summary = convnet.train(str(recipe), str(few_digits.path), str(tmp_path / "run"))
    found = convnet.load(tmp_path / "run", device="cpu").evaluate(few_digits)
    assert (found.n, found.top1) == (summary["test"]["n"], summary["test"]["top1_error"])
