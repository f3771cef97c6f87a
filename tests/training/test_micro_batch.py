"""How many pictures fit: the account, the choice for a given memory, and the same curve in micro-batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SMALL

from convnet import hardware
from convnet.data.store import Store
from convnet.device import Device
from convnet.errors import UsageError
from convnet.nets import create_model
from convnet.recipe import load_recipe, with_settings
from convnet.training import metrics_log, micro_batch
from convnet.training.step import EagerSteps
from convnet.training.train import train
from runs import Notes

CPU = Device(torch.device("cpu"), torch.float32, torch.channels_last, 1, "a test's")
MIB = 2**20


def a_step(name: str = "cifar_26", batch: int = 128) -> tuple[EagerSteps, tuple[int, int, int]]:
    net = create_model(name, seed=0)
    return EagerSteps(net, replace(load_recipe("alexnet"), batch=batch), CPU), (
        net.in_channels,
        net.input_size,
        net.input_size,
    )


def give(monkeypatch: pytest.MonkeyPatch, n_bytes: int | None) -> None:
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(n_bytes, n_bytes, None))


def test_the_account_is_of_what_the_forward_pass_keeps() -> None:
    """Of the 26 % net: conv1's 32 maps of 32 x 32 are its largest, and more than one copy of them is needed."""
    step, shape = a_step()
    each = micro_batch.bytes_a_picture(step, shape)
    maps = 32 * 32 * 32 * 4
    assert 3 * maps < each < 12 * maps
    assert micro_batch.bytes_besides(step) == 8 * sum(weight.numel() for weight in step.net.parameters())
    double, _ = a_step("cifar_26")
    assert micro_batch.bytes_a_picture(double, shape) == each  # it counts, so it says the same again


def test_as_few_micro_batches_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    step, shape = a_step(batch=100)
    each, besides = micro_batch.bytes_a_picture(step, shape), micro_batch.bytes_besides(step)
    notes = Notes()
    for most, expected in ((1000, 100), (99, 50), (40, 34), (1, 1)):
        give(monkeypatch, int((besides + (most + 0.5) * each) / micro_batch.MARGIN))
        assert micro_batch.choose(step, shape, "auto", notes) == expected
    assert notes.lines[0] == "50 pictures at once: gradients are accumulated over 2 micro-batches of a step's 100"
    give(monkeypatch, besides)
    with pytest.raises(UsageError, match=r"a step with one picture needs .* GiB, and .* GiB are free"):
        micro_batch.choose(step, shape, "auto", notes)
    give(monkeypatch, None)
    with pytest.raises(UsageError, match="the free memory is not known here"):
        micro_batch.choose(step, shape, "auto", notes)


def test_a_number_is_taken_as_it_is() -> None:
    step, shape = a_step(batch=100)
    notes = Notes()
    assert [micro_batch.choose(step, shape, n, notes) for n in (None, 7, 100, 500)] == [100, 7, 100, 100]
    assert len(notes.lines) == 1
    with pytest.raises(UsageError, match="0 pictures at once: it must be auto, or at least 1"):
        micro_batch.choose(step, shape, 0, notes)


def test_batch_norm_is_warned_of_and_left_as_it_was() -> None:
    step, _ = a_step("vgg_a_bn", batch=4)
    former = {name: buffer.clone() for name, buffer in step.net.named_buffers()}
    notes = Notes()
    assert micro_batch.choose(step, (3, 224, 224), 2, notes) == 2
    assert notes.lines[1].startswith("warning: batch norm sees the mean and variance of each micro-batch")
    micro_batch.bytes_a_picture(step, (3, 224, 224))
    assert all(torch.equal(buffer, former[name]) for name, buffer in step.net.named_buffers())


def test_by_trying_it_halves_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    step, shape = a_step(batch=16)
    tried: list[int] = []

    def gradients(images: torch.Tensor, labels: torch.Tensor, number: int) -> None:
        assert step.micro_batch is not None
        tried.append(step.micro_batch)
        assert len(images) == 16
        if step.micro_batch > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "gradients", gradients)
    assert micro_batch._by_trying(step, shape) == 4
    assert tried == [16, 8, 6, 4]


def test_micro_batches_give_the_same_curve(digits: Store, tmp_path: Path) -> None:
    """Two epochs of the real loop: the losses of whole batches and of micro-batches of 24 differ by rounding alone."""
    recipe = with_settings(SMALL, ["batch=64"])
    curves = []
    for n in (None, 24):
        out = tmp_path / str(n)
        train(recipe, digits, out, micro_batch=n)
        curves.append([float(row["loss"]) for row in metrics_log.read(out / "metrics.jsonl") if row["kind"] == "step"])
    whole, accumulated = map(np.array, curves)
    assert len(whole) > 20
    np.testing.assert_allclose(accumulated, whole, rtol=2e-3)
    assert whole[-1] < 0.8 * whole[0]


def test_a_resumed_run_says_that_it_rounds_otherwise(digits: Store, tmp_path: Path) -> None:
    out, notes = tmp_path / "run", Notes()
    train(replace(SMALL, epochs=1), digits, out, micro_batch=32)
    train(SMALL, digits, out, resume=True, progress=notes)
    assert any("32 pictures at once are now 64" in line for line in notes.lines)
