"""Delayed steps are the eager ones, nothing moves after a loss that is not finite, a CUDA graph is a step."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnet.data.loader import Batch
from convnet.data.store import Store
from convnet.device import Device
from convnet.errors import Diverged, Interrupted
from convnet.io.signals import Stop
from convnet.kernels.cuda import available as on_cuda
from convnet.nets.layers import Net
from convnet.progress import Silent
from convnet.recipe import load_recipe, with_settings
from convnet.training import metrics_log
from convnet.training import step as module
from convnet.training import train as verb
from convnet.training.step import MAX_PENDING, WARM_UP, DelayedSteps, EagerSteps, GraphStep, StepResult, Steps, choose
from kernel_place import PLACE

pytestmark = pytest.mark.cuda
RECIPE = replace(load_recipe("lenet5"), batch=4)
FP32 = Device(PLACE, torch.float32, torch.channels_last, 1, "a test's")


class Stopping(Silent):
    """Asks to stop after the seventh step that is told."""

    def __init__(self, stop: Stop) -> None:
        self.stop, self.n = stop, 0

    def update(self, done: int, **values: str) -> None:
        self.n += 1
        if self.n == 7:
            self.stop.ask(15)


class Small(Net):
    """A convolution, dropout, and two classes; BatchNorm when asked for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 2)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        from convnet.nets.dropout import dropout

        x = self.norm(self.conv(images)).relu().mean((2, 3))
        y: Tensor = self.fc(dropout(x, 0.5, self.training))
        return y


def made(norm: nn.Module | None = None, where: Device = FP32) -> EagerSteps:
    torch.manual_seed(0)
    step = EagerSteps(where.take(Small(norm or nn.Identity())), replace(RECIPE, loss="softmax"), where)
    step.net.train()
    return step


def batches(n: int, bad: int = -1) -> list[Batch]:
    """The last has fewer pictures; number `bad` holds an infinite one."""
    found = []
    for i in range(n):
        size = 4 if i < n - 1 else 3
        images = torch.randn(size, 3, 5, 5, generator=torch.Generator().manual_seed(i))
        if i == bad:
            images[0, 0, 0, 0] = float("inf")
        labels = torch.arange(size) % 2
        ids = np.arange(4 * i, 4 * i + size)
        images = images.to(memory_format=torch.channels_last)
        found.append(Batch(images.to(PLACE), labels.to(PLACE), ids))
    return found


def through(steps: Steps, given: list[Batch]) -> list[StepResult]:
    done: list[StepResult] = []
    for batch in given:
        steps.forward_backward(batch, len(done) + steps.pending)
        done += steps.update(0.1)
        assert steps.pending <= MAX_PENDING
    return done + steps.wait()


def one(
    whole: GraphStep, batch: Batch, number: int, dtype: torch.dtype = torch.float32, lr: float = 0.1
) -> list[float]:
    """A step's loss, and how many pictures were wrong."""
    whole.forward_backward(batch.images.to(dtype), batch.labels, number)
    outcome: list[float] = whole.update(lr).tolist()
    return outcome


def weights(step: EagerSteps) -> list[Tensor]:
    return [weight.detach().cpu() for weight in step.rule.parameters.values()]


def test_delayed_updates_are_the_eager_ones() -> None:
    """With the plain forms where no kernel is at hand: the rate and what dropout draws from come by tensors."""
    given = batches(MAX_PENDING + 4)
    first, second = made(), made()
    eager = through(first, given)
    delayed = through(DelayedSteps(GraphStep(second, 4, print, record=False)), given)
    assert len(eager) == len(given)
    for a, b, batch in zip(eager, delayed, given, strict=True):
        assert (a.ids == b.ids).all()
        assert (a.ids == batch.ids).all()
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.wrong == b.wrong
    for x, y in zip(weights(first), weights(second), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_after_a_loss_that_is_not_finite_no_weight_moves() -> None:
    given = batches(MAX_PENDING + 5, bad=3)
    good, step = made(), made()
    through(DelayedSteps(GraphStep(good, 4, print, record=False)), given[:3])
    done = through(DelayedSteps(GraphStep(step, 4, print, record=False)), given)
    assert [np.isfinite(each.loss) for each in done[:4]] == [True] * 3 + [False]
    for x, y in zip(weights(good), weights(step), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)  # a GPU may add in another order


def test_the_eager_form_does_not_move_either() -> None:
    step = made()
    before = [each.clone() for each in weights(step)]
    step.forward_backward(batches(2, bad=0)[0], 0)
    (done,) = step.update(0.1)
    assert not np.isfinite(done.loss)
    assert all(torch.equal(x, y) for x, y in zip(before, weights(step), strict=True))


def test_what_serves_where() -> None:
    step = made()
    kind = DelayedSteps if on_cuda.serve(PLACE) else EagerSteps
    assert type(choose(step, print)) is kind
    assert not step.wait()


def test_nothing_is_recorded_where_there_is_no_cuda_device() -> None:
    step = made(where=replace(FP32, device=torch.device("cpu")))
    whole = GraphStep(step, 4, pytest.fail)
    for i, batch in enumerate(batches(WARM_UP + 3)):
        assert np.isfinite(one(whole, replace(batch, images=batch.images.cpu(), labels=batch.labels.cpu()), i)).all()
    assert whole.graph is None


@pytest.mark.skipif(on_cuda.INTERPRETED, reason="a whole run takes the interpreter long, and numpy warns of infinities")
def test_a_delayed_run_is_the_eager_one(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and resumed besides: the same rows and weights, but for the rounding of the update; and when it diverges
    the same step and pictures are told."""
    recipe = with_settings(
        load_recipe("lenet5_small"), ["epochs=1", "batch=64", "net_options.output=linear", "average=0.9"]
    )
    plans = {"learns": recipe, "diverges": with_settings(recipe, ["lr=100", "decay=100", "loss=softmax"])}
    found: dict[str, list[object]] = {name: [] for name in plans}
    numbers: list[int] = []

    class Counted(DelayedSteps):
        def forward_backward(self, batch: Batch, number: int, interruptible: Any = nullcontext) -> None:
            numbers.append(number)
            super().forward_backward(batch, number, interruptible)

    for delayed in (False, True):
        if delayed:
            monkeypatch.setattr(module, "choose", lambda step, note: Counted(GraphStep(step, 64, note, record=False)))
        for name, plan in plans.items():
            out = tmp_path / f"{name} {delayed}"
            with suppress(Diverged):
                stop = Stop()
                with pytest.raises(Interrupted):
                    verb.train(plan, digits, out, device="cpu", stop=stop, progress=Stopping(stop))
                verb.train(plan, digits, out, device="cpu", resume=True)
            path = out / ("diverged.json" if name == "diverges" else "metrics.jsonl")
            found[name].append(path.read_text(encoding="utf-8") if name == "diverges" else metrics_log.read(path))
    assert found["diverges"][0] == found["diverges"][1]
    assert numbers[:20] == list(range(20)), "those whose results are not known yet are counted"
    rows: Any = found["learns"]
    assert len(rows[0]) == 21
    for a, b in zip(*rows, strict=True):
        assert a.pop("kind") == b.pop("kind")
        assert a == {key: pytest.approx(value, rel=1e-3) for key, value in b.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm2d(4)])
@pytest.mark.parametrize("size", [None, 2])
def test_replays_are_the_steps_one_by_one(dtype: torch.dtype, norm, size: int | None) -> None:  # type: ignore[no-untyped-def]
    """Each draws its own dropout; the rate changes on the way; the last batch is smaller."""
    where, notes = replace(FP32, dtype=dtype), []
    ends = []
    for record in (False, True):
        step = made(norm(), where)
        step.micro_batch = size
        whole = GraphStep(step, 4, notes.append, record)
        given = batches(WARM_UP + 6)
        found = [one(whole, batch, i, dtype, 0.1 if i < 5 else 0.02) for i, batch in enumerate(given)]
        assert (whole.graph is not None) == record, notes
        ends.append((found, weights(step), [each.cpu() for each in step.net.buffers()]))
    assert not notes
    torch.testing.assert_close(torch.tensor(ends[0][0]), torch.tensor(ends[1][0]), rtol=1e-3, atol=1e-4)
    for x, y in zip(ends[0][1] + ends[0][2], ends[1][1] + ends[1][2], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_can_not_be_recorded_goes_on_one_by_one() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 if float(x.detach().sum()) > -1e9 else 2.0)

    step, notes = made(Looks()), []
    whole = GraphStep(step, 4, notes.append)
    for i, batch in enumerate(batches(WARM_UP + 4)):
        assert np.isfinite(one(whole, batch, i)).all()
    assert whole.graph is None
    assert len(notes) == 1
    assert notes[0].startswith("a step can't be a CUDA graph here")
