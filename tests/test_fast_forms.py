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
    recipe = with_settings(load_recipe("alexnet_small"), [f"seed={seed}", f"batch={BATCH}", "lr=0.002"])
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
    """At the same seed the two are about as near to each other as two seeds of the plain form, or nearer. (For three
    seeds they were 0.015, 0.044 and 0.038 apart, the seeds 0.059, 0.023 and 0.036: a rounding moves the fall by steps.)
    """
    fast = [smoothed(curve(BF16, seed, STEPS)) for seed in (0, 1)]
    without_fast_forms(monkeypatch)
    plain = [smoothed(curve(FP32, seed, STEPS)) for seed in (0, 1)]
    gap = np.mean([np.abs(a - b).mean() for a, b in zip(fast, plain, strict=True)])
    noise = np.abs(plain[0] - plain[1]).mean()
    assert gap < 2 * noise
    assert all(losses[-1] < 0.3 * losses[0] for losses in (*fast, *plain))
    assert gap > 0


def test_the_plain_forms_curve_is_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the plain forms, of the draws or of the rule shows here in the first digits."""
    without_fast_forms(monkeypatch)
    np.testing.assert_allclose(curve(FP32, 0, len(GOLDEN)), GOLDEN, rtol=1e-5)


GOLDEN = [
    *[1.60984, 1.60841, 1.60897, 1.60943, 1.60923, 1.61014, 1.60866, 1.60987],
    *[1.61138, 1.60823, 1.61053, 1.61142, 1.60885, 1.60793, 1.6055, 1.60745],
]
