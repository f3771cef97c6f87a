"""A recipe's settings each in a run that is stopped within an epoch and resumed: bitwise as if never stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convnet import checkpoint, device
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.recipe import Recipe
from convnet.training import metrics_log
from convnet.training.data import choose_data
from convnet.training.step import EagerSteps
from convnet.training.train import train
from runs import Notes

RECIPE = Recipe(
    name="small", net="cifar_13", size=32, crop=24, mean="rgb", colour_std=0.0, batch=25, epochs=2, lr=0.001,
    precision="fp32", schedule="steps",
)  # fmt: skip
SAME = ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv", "recipe.toml")
SETTINGS = {
    "VGG's scales, smoothed and balanced losses, an average": {
        "smallest_size": 26, "label_smoothing": 0.1, "balance": "loss", "average": 0.5,
    },
    "GoogLeNet's sizes, a balanced order, ZFNet's filters": {
        "crop_area": 0.3, "crop_aspect": 1.5, "balance": "order", "max_filter_rms": 1e-4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_resumes_bitwise(photos: Store, tmp_path: Path, name: str) -> None:
    recipe = replace(RECIPE, **SETTINGS[name])  # type: ignore[arg-type]
    train(recipe, photos, tmp_path / "whole")
    with pytest.raises(Interrupted):  # in the second step of the second epoch
        train(recipe, photos, tmp_path / "cut", progress=Notes(stop := Stop(), 6), stop=stop)
    train(recipe, photos, tmp_path / "cut", resume=True)
    for file in SAME:
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_larger_scale_begins_with_the_net_of_a_smaller(photos: Store, tmp_path: Path) -> None:
    """VGG 3.1: S = 384, or S of a range, begun from the net of S = 256: each tensor is loaded."""
    larger = prepare(open_source(photos.path.parent / "source"), tmp_path / "store", size=36)
    net, done = create_model("cifar_13", num_classes=3, seed=5), preprocess.of_recipe(RECIPE, None, np.ones(3))
    source = checkpoint.Checkpoint(RECIPE, done, photos.classes, dict(net.state_dict()))
    checkpoint.save(tmp_path / "small.ckpt", source)
    notes, recipe = Notes(), replace(RECIPE, size=36, smallest_size=26, epochs=1, lr=1e-30)
    train(recipe, larger, tmp_path / "run", init_from=tmp_path / "small.ckpt", progress=notes)
    assert not [line for line in notes.lines if line.startswith("warning")]
    weights = checkpoint.load(tmp_path / "run" / "last.ckpt").weights
    for name, weight in source.weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-20)  # of biases, which are 0, the rate moves


def test_the_average_is_the_net_that_is_tested(photos: Store, tmp_path: Path) -> None:
    """Of four steps: the mean, until the last one's share would be less than 1 - 0.6. It changes no step."""
    recipe = replace(RECIPE, batch=90, epochs=4, lr=0.01, keep_epochs=(1, 2, 3, 4))
    train(recipe, photos, tmp_path / "plain")
    train(replace(recipe, average=0.6), photos, tmp_path / "run")
    steps = [checkpoint.load(tmp_path / "plain" / f"epoch-{n:04d}.ckpt").weights for n in range(1, 5)]
    average = {name: weight.double() for name, weight in steps[0].items()}
    for weights, share in zip(steps[1:], (0.5, 0.4, 0.4), strict=True):
        average = {name: (1 - share) * old + share * weights[name] for name, old in average.items()}
    last = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert last.unaveraged is not None
    for name, wanted in average.items():
        torch.testing.assert_close(last.weights[name].double(), wanted, rtol=1e-5, atol=1e-8)
        assert torch.equal(last.unaveraged[name], steps[3][name])
    rows = [row for row in metrics_log.read(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    for epoch, row in enumerate(rows, 1):
        tested = TrainedNet.load(tmp_path / "run" / f"epoch-{epoch:04d}.ckpt", "cpu").evaluate(photos, "val")
        assert row["val_loss"] == pytest.approx(tested.loss, rel=1e-6)
    assert checkpoint.load(tmp_path / "run" / "best.ckpt").unaveraged is None
    (tmp_path / "run" / "last.ckpt").write_bytes((tmp_path / "run" / "best.ckpt").read_bytes())
    (tmp_path / "run" / "last.previous.ckpt").unlink()
    with pytest.raises(DataError, match="it can be tested, but not resumed"):
        train(replace(recipe, average=0.6), photos, tmp_path / "run", resume=True)


def test_smoothed_and_balanced_losses_are_the_formulas(photos: Store) -> None:
    """-w (1 - e) log p of the right class - w e / K of all, the mean over the batch; whole and in micro-batches."""
    recipe, cpu = replace(RECIPE, label_smoothing=0.2, balance="loss"), device.choose("fp32", "cpu")
    data = choose_data(recipe, photos)
    few = replace(
        data, train_ids=np.concatenate([np.arange(90)[data.train.labels == k][:n] for k, n in enumerate((6, 3, 0))])
    )
    np.testing.assert_allclose(few.class_weights, [9 / 12, 9 / 6, 0])
    images, labels = torch.randn(5, 3, 24, 24), torch.tensor([0, 1, 0, 0, 1])
    losses = []
    for micro_batch in (None, 2):
        step = EagerSteps(cpu.take(create_model("cifar_13", num_classes=3, seed=0)), recipe, cpu, micro_batch)
        step.class_weights = torch.from_numpy(few.class_weights)
        losses.append(float(step.gradients(images, labels, 0).loss))
    with torch.no_grad():
        logs = step.net(images).log_softmax(1)
    each = 0.8 * logs[torch.arange(5), labels] + 0.2 / 3 * logs.sum(1)
    wanted = float(-(torch.from_numpy(few.class_weights)[labels] * each).mean())
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_what_needs_the_softmax_is_refused() -> None:
    for changes, says in (
        ({"label_smoothing": 0.1}, "label_smoothing = 0.1"),
        ({"balance": "loss"}, 'balance = "loss"'),
    ):
        with pytest.raises(UsageError, match=f'{says}: needs loss = "softmax"'):
            replace(RECIPE, loss="rbf", **changes)  # type: ignore[arg-type]
