"""All fast forms together against none of them: the same curve over 200 steps, and the plain one to the digit."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.device import Device
from convnet.kernels import compiled
from convnet.nets import create_model
from convnet.recipe import load_recipe, with_settings
from convnet.step import Step
from thin import thinned

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, SMOOTH, BATCH, CLASSES = 200, 20, 8, 5
FP32 = Device(torch.device("cpu"), torch.float32, torch.channels_last, 1, "a test's")
BF16 = Device(torch.device("cpu"), torch.bfloat16, torch.channels_last, 1, "a test's")


def batches(seed: int, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy pictures of a coarse pattern for each class, on the scale 0..255 without the mean."""
    generator = torch.Generator().manual_seed(100)
    patterns = 60 * torch.randn(CLASSES, 3, 7, 7, generator=generator)
    generator.manual_seed(seed)
    for _ in range(n):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        coarse = torch.nn.functional.interpolate(patterns[labels], scale_factor=32)
        images = coarse + 30 * torch.randn(coarse.shape, generator=generator)
        yield images.contiguous(memory_format=torch.channels_last), labels


def curve(where: Device, seed: int, steps: int) -> NDArray[np.float64]:
    """The losses of a thin AlexNet's first steps."""
    recipe = with_settings(load_recipe("alexnet_small"), [f"seed={seed}", f"batch={BATCH}", "lr=0.003"])
    with thinned(4):
        net = create_model("alexnet", num_classes=CLASSES, init="fan-in", seed=seed)
        step = Step(where.take(net), recipe, where)
        step.net.train()
        found = []
        for number, (images, labels) in enumerate(batches(seed, steps)):
            loss, _ = step.gradients(images.to(where.dtype), labels, number)
            step.rule.step(recipe.lr)
            found.append(float(loss))
    return np.array(found)


def without_fast_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: (None, "plain forms, as a test asks"))
    for name in ("norm_pool_cpu", "dropout_cpu", "update_cpu", "augment_cpu"):
        monkeypatch.setattr(f"convnet.kernels.{name}.library", compiled.library)


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(losses, np.ones(SMOOTH) / SMOOTH, "valid")


def test_the_fast_forms_train_as_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same seed the two are nearer to each other than two seeds of the plain form are."""
    fast = curve(BF16, 0, STEPS)
    without_fast_forms(monkeypatch)
    plain, other = curve(FP32, 0, STEPS), curve(FP32, 1, STEPS)
    assert smoothed(plain)[-1] < 0.3 * smoothed(plain)[0]
    gap = np.abs(smoothed(fast) - smoothed(plain)).mean()
    noise = np.abs(smoothed(other) - smoothed(plain)).mean()
    print(f"fast against plain {gap:.4f}, two seeds {noise:.4f}")
    assert gap < noise
    assert not np.array_equal(fast, plain)


def test_the_plain_forms_curve_is_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the plain forms, of the draws or of the rule shows here in the first digits."""
    without_fast_forms(monkeypatch)
    np.testing.assert_allclose(curve(FP32, 0, len(GOLDEN)), GOLDEN, rtol=1e-5)


GOLDEN = [
    *[1.60984, 1.60841, 1.6087, 1.60959, 1.60928, 1.6105, 1.60843, 1.60968],
    *[1.61213, 1.60765, 1.61007, 1.61217, 1.6077, 1.60659, 1.60232, 1.60326],
]
