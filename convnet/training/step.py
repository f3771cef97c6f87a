"""Training steps: forward, backward and update, by gradient accumulation where a batch doesn't fit at once.

    EagerSteps     one operation after the other; the host sees each loss before the weights move
    DelayedSteps   the host learns of a loss a few steps later, so that it never waits for a CUDA device
    GraphStep      what DelayedSteps runs: a whole step as one launch, a CUDA graph

A loss that isn't finite must stop a run before its update. Where the host would have to wait for it, and the device
then for the host, the device itself leaves out that update and all later ones, and the run ends a few steps late with
the weights as they were before that step.

In bfloat16 the convolutions and fully connected layers compute with copies of their weights, which the update rule
keeps (`Device.narrowed`): the numbers are autocast's, which would cast every weight and gradient anew in each step.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet.data.loader import Batch
from convnet.device import Device
from convnet.io.processes import ALONE, Processes
from convnet.kernels.cuda import available as on_cuda
from convnet.nets import batch_norm
from convnet.nets.dropout import LAYERS, counted, states
from convnet.nets.layers import Net
from convnet.nets.lenet5 import LeNet5, rbf_loss
from convnet.recipe import Recipe
from convnet.training.averaging import averaged
from convnet.training.optim import Momentum, optimizer
from convnet.training.schedule import by_layer, frozen

RUBBISH = 20.0  # the constant j of LeNet-5's eq. 9, which the paper leaves open
MAX_PENDING = 4  # steps that the host is ahead
WARM_UP = 3  # steps before the recording of a CUDA graph: they compile the kernels

Interruptible = Callable[[], AbstractContextManager[None]]  # within it the process may end: no weight has moved


class Outcome(NamedTuple):
    """loss: float32 (), the batch's mean, nats. wrong: int64 (), how many of its pictures. Both on the device."""

    loss: Tensor
    wrong: Tensor


class StepResult(NamedTuple):
    """A finished step: ids of its pictures; the mean loss, nats; how many pictures were wrong.

    Where the loss isn't finite its update was left out.
    """

    ids: NDArray[np.int64]
    loss: float
    wrong: int


class Steps(Protocol):
    """Steps one after the other: `forward_backward`, then `update`."""

    @property
    def pending(self) -> int:
        """Steps whose results are not known yet."""

    def forward_backward(self, batch: Batch, number: int, interruptible: Interruptible = nullcontext) -> None:
        """Computes a batch's gradients. number: of the step, the first is 0. interruptible: is entered around it where
        the host waits for the loss."""

    def update(self, lr: float) -> list[StepResult]:
        """Moves the weights, and gives the steps whose results are known since, in order."""

    def wait(self) -> list[StepResult]:
        """Waits for all pending steps."""


def choose(step: "EagerSteps", note: Callable[[str], None]) -> Steps:
    """The steps for `step`'s device; `note` is told what is worth a line."""
    if on_cuda.serve(step.device.device) and step.processes.n == 1:
        return DelayedSteps(GraphStep(step, step.recipe.batch, note))
    return step


class EagerSteps:
    """Gradients of a net's loss by a recipe, and the rule that follows them; each loss is seen before the update.

    net: what computes, in the mode (training or not) in which it is put.

    micro_batch: pictures that go through the net at once; of a larger batch the gradients are accumulated in float32:
    the same step but for the rounding, and for batch norm, which then sees a micro-batch's mean and variance.

    processes: those that train together. DistributedDataParallel averages the gradients over those that share each
    batch while backward runs. Where each holds a column, `net` is its part (nets/column_parallel.py).
    """

    pending = 0

    def __init__(self, net: Net, recipe: Recipe, device: Device, micro_batch: int | None = None,
                 processes: Processes = ALONE) -> None:  # fmt: skip
        self.processes, self.sharing = processes, processes.data
        self.recipe, self.device, self.micro_batch = recipe, device, micro_batch
        for name in frozen(recipe, (name for name, _ in net.named_parameters())):
            net.get_parameter(name).requires_grad_(False)
        self.net, bf16_weights = device.narrowed(net)
        self.heads: Callable[[Tensor], dict[str, Tensor]] = self.net.heads
        self.norms = batch_norm.sync(self.net, self.sharing) if recipe.sync_batch_norm else []
        if self.sharing.n > 1:
            self.heads = averaged(self.net, self.sharing, recipe)
        self.rule: Momentum = optimizer(net, recipe, bf16_weights)
        state = net.state_dict() if recipe.average else {}
        self.averaged = {name: weight for name, weight in state.items() if weight.is_floating_point()}
        self.average = {name: weight.clone() for name, weight in self.averaged.items()}
        self.class_weights: Tensor | None = None  # float32 (K,): what the losses of a class count
        self.number = 0  # of the step
        self.input_dtype = torch.float32 if net.float32_input else device.dtype  # of the images: bfloat16 loses nothing
        self.result = StepResult(np.empty(0, np.int64), math.nan, 0)

    def load(self, velocity: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Takes over what a former run was kept with: the velocity, and the weights' average, if there is one."""
        self.rule.load(velocity)
        for name, average in self.average.items():
            average.copy_(weights[name])

    def begin(self, epoch: int) -> None:
        """Training mode, and the layers' rates in an epoch; of a layer that is frozen batch norm's statistics stay."""
        self.net.train()
        for norm in (each for each in self.net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)):
            if norm.affine and not any(weight.requires_grad for weight in norm.parameters()):
                norm.eval()
        self.rule.layer_lr = by_layer(self.recipe.layer_lr, self.rule.parameters, epoch, "layer_lr")

    def forward_backward(self, batch: Batch, number: int, interruptible: Interruptible = nullcontext) -> None:
        self.number = number
        with interruptible():  # the longest part of a step by far
            loss, wrong = self.gradients(batch.images, batch.labels, number, None, batch.first, len(batch.ids))
            if self.sharing.n > 1:
                loss, wrong = self.sharing.sum(torch.stack([loss.double(), wrong.double()]))
            value = loss.item()  # a device synchronisation
        self.result = StepResult(batch.ids, value, int(wrong.item()))

    def update(self, lr: float) -> list[StepResult]:
        if math.isfinite(self.result.loss):
            self.rule.step(lr)
            self.follow(self.number)
        return [self.result]

    @torch.no_grad()
    def follow(self, number: int) -> None:
        """Moves the average of parameters and buffers after the step `number` (the first is 0): it is the mean of all
        steps, until the last one's share in it would be less than 1 - recipe.average; that it keeps."""
        if self.average:
            share = max(1 - self.recipe.average, 1 / (number + 1))
            torch._foreach_lerp_(list(self.average.values()), list(self.averaged.values()), share)

    def wait(self) -> list[StepResult]:
        return []

    def gradients(
        self,
        images: Tensor,
        labels: Tensor,
        number: int,
        states: Tensor | None = None,
        first: int = 0,
        n: int | None = None,
    ) -> Outcome:
        """Leaves the gradients of a batch where the rule finds them. number: of the step, the first is 0.

        images: (N, C, H, W) on the device, labels: int64 (N,). states: what dropout draws from, where it is on the
        device already (nets/dropout.py); it then stands for the number. first, n: these are the pictures from position
        `first` on of a batch of n; loss and errors are their share of it.
        """
        self.rule.zero_grad()
        n = len(images) if n is None else n
        most = -(-n // self.sharing.n)  # pictures of a process: each makes as many passes as the others
        size = self.micro_batch or most
        if most <= size:
            return self._pass(images, labels, number, first, n, states, self._rows(n, 0, most))
        outcomes, sums = [], {name: torch.zeros_like(weight) for name, weight in self.rule.parameters.items()}
        for begin in range(0, most, size):
            part = slice(begin, begin + size)
            outcomes.append(
                self._pass(images[part], labels[part], number, first + begin, n, states, self._rows(n, begin, size))
            )
            for name, total in sums.items():
                own = self.rule.computed(name)
                if own.grad is not None:
                    total.add_(own.grad)
                    own.grad = None
        for name, total in sums.items():
            own = self.rule.computed(name)
            own.grad = total.to(own.dtype)
        return Outcome(*(torch.stack(each).sum() for each in zip(*outcomes, strict=True)))

    def _rows(self, n: int, begin: int, size: int) -> list[range]:
        """The pictures of a batch of n that each process has in the pass from picture `begin` of its part on."""
        if self.sharing.n == 1:
            return [range(begin, min(begin + size, n))]
        parts = [replace(self.sharing, rank=rank).part(n) for rank in range(self.sharing.n)]
        return [range(n)[part][begin : begin + size] for part in parts]

    def _pass(
        self,
        images: Tensor,
        labels: Tensor,
        number: int,
        first: int,
        n: int,
        states: Tensor | None,
        rows: Sequence[range],
    ) -> Outcome:
        """A micro-batch of a batch of n pictures, forward and backward: its share of the gradients of the mean loss."""
        own = len(images)
        if own == n and (outcome := self._in_one_pass(images, labels)) is not None:
            return outcome
        if not own:  # the other processes wait for the gradients all the same
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
        for norm in self.norms:
            norm.pictures = own
        if self.device.memory_format == torch.contiguous_format:
            images = images.contiguous()  # a loader's are channels-last
        with self.device.autocast(), counted(self.recipe.seed, number, first, states, self.processes.columns, rows):
            heads = self.heads(images)
        losses = [w * self._loss(heads[name].float(), labels) for name, w in self.net.loss_weights.items()]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        loss = loss if own == n else loss * (own / n)
        torch.autograd.backward(loss * self.sharing.n if self.sharing.n > 1 else loss)  # whose mean is the sum
        return Outcome(loss.detach(), (heads["logits"].argmax(1) != labels)[:own].sum())

    def _in_one_pass(self, images: Tensor, labels: Tensor) -> Outcome | None:
        """`_pass` of a whole batch by LeNet-5's own form, where it serves: autograd takes as long as the arithmetic."""
        if not isinstance(self.net, LeNet5) or self.recipe.loss != "rbf" or self.sharing.n > 1:
            return None
        with self.device.autocast():
            found = self.net.loss_and_gradients(images, labels, RUBBISH)
        return None if found is None else Outcome(*found)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch, nats: "softmax" is -log of the right class's softmax output (AlexNet 3.5), "rbf" the
        discriminative criterion over distances (LeNet-5, eq. 9)."""
        if self.recipe.loss == "rbf":
            return rbf_loss(logits, labels, RUBBISH)
        smoothing = self.recipe.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (losses * self.class_weights[labels]).mean()


class DelayedSteps:
    """Steps whose results come to the host by copies that nobody waits for, at most `MAX_PENDING` steps later."""

    def __init__(self, step: "GraphStep") -> None:
        self.step, self.ids = step, np.empty(0, np.int64)
        self.queue: deque[tuple[NDArray[np.int64], Tensor, torch.cuda.Event | None]] = deque()

    @property
    def pending(self) -> int:
        return len(self.queue)

    def forward_backward(self, batch: Batch, number: int, interruptible: Interruptible = nullcontext) -> None:
        self.ids = batch.ids
        self.step.forward_backward(batch.images, batch.labels, number)

    def update(self, lr: float) -> list[StepResult]:
        outcome = self.step.update(lr)
        on_device = outcome.device.type == "cuda"
        on_host = torch.empty(2, dtype=torch.float64, pin_memory=on_device).copy_(outcome, non_blocking=True)
        event = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(outcome.device))
        self.queue.append((self.ids, on_host, event))
        return self._results(MAX_PENDING)

    def wait(self) -> list[StepResult]:
        return self._results(0)

    def _results(self, most: int) -> list[StepResult]:
        """Of the steps that have arrived; blocks until at most `most` are pending."""
        results = []
        while self.queue and (len(self.queue) > most or self._arrived()):
            ids, on_host, event = self.queue.popleft()
            if event is not None:
                event.synchronize()  # a device synchronisation, with a step of MAX_PENDING steps ago, or at the end
            loss, wrong = on_host.tolist()
            results.append(StepResult(ids, loss, int(wrong)))
        return results

    def _arrived(self) -> bool:
        event = self.queue[0][2]
        return event is not None and bool(event.query())  # type: ignore[no-untyped-call]


class GraphStep:
    """Whole steps on a device where the kernels in Triton serve, from the `WARM_UP`th full batch on as one launch.

    What changes from step to step is read from the device's memory: images, labels, the rate, what dropout draws from.
    A smaller batch, the last of an epoch, goes one operation after the other. No weight moves any more from the first
    step on whose loss isn't finite.

    batch: pictures of a full batch. note: is told once when a step can't be recorded, and why; then none is.
    """

    def __init__(self, step: EagerSteps, batch: int, note: Callable[[str], None], record: bool = True) -> None:
        device = step.device.device
        self.step, self.batch, self.note = step, batch, note
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.lr, self.skip_update = torch.zeros((), device=device), torch.zeros((), device=device)
        self.states = torch.zeros(LAYERS, dtype=torch.int64, device=device)
        self.warm_up = WARM_UP if record and self.stream is not None else None  # steps to the recording; None: never
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded_lr: Mapping[str, float] = {}  # the layers' rates in it
        self.images, self.labels, self.outcome = (torch.empty(0) for _ in range(3))  # where the graph finds them
        self.number, self.replays, self.eager = 0, False, Outcome(torch.empty(0), torch.empty(0))

    def forward_backward(self, images: Tensor, labels: Tensor, number: int) -> None:
        """The gradients of a batch, as `EagerSteps.gradients` takes it; what is a graph runs whole in `update`."""
        self.number = number
        with self._own_stream():
            drawn = states(self.step.recipe.seed, number)
            self.states.copy_(drawn.pin_memory() if self.stream is not None else drawn, non_blocking=True)
            self.replays = len(images) == self.batch and self._recorded(images, labels)
            if self.replays:
                self.images.copy_(images)
                self.labels.copy_(labels)
            else:
                self.eager = self.step.gradients(images, labels, 0, self.states)

    def update(self, lr: float) -> Tensor:
        """float64 (2,) on the device, until the next step: the batch's mean loss (nats), and how many were wrong."""
        with self._own_stream():
            self.lr.fill_(lr)
            if self.replays:
                assert self.graph is not None
                self.graph.replay()
            outcome = self.outcome if self.replays else self._update(self.eager)
            self.step.follow(self.number)
            return outcome

    def _update(self, outcome: Outcome) -> Tensor:
        self.skip_update.add_(outcome.loss.float() * 0)  # NaN from the first loss on that isn't finite
        self.step.rule.step(self.lr, self.skip_update)
        return torch.stack([outcome.loss.double(), outcome.wrong.double()])

    def _recorded(self, images: Tensor, labels: Tensor) -> bool:
        """Whether there is a graph; when it's time, it is made."""
        if self.graph is not None and self.recorded_lr != self.step.rule.layer_lr:
            self.graph, self.warm_up = None, 0  # the layers' rates are in the graph
        if self.graph is None and self.warm_up is not None:
            if self.warm_up:
                self.warm_up -= 1
            else:
                self.warm_up = None
                self._record(images, labels)
        return self.graph is not None

    def _record(self, images: Tensor, labels: Tensor) -> None:
        graph = torch.cuda.CUDAGraph()
        self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        self.step.rule.zero_grad()
        try:  # the loader has other streams, in other threads
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.outcome = self._update(self.step.gradients(self.images, self.labels, 0, self.states))
        except Exception as error:  # whatever can't be recorded: each library has its own class for it
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.note(f"a step can't be a CUDA graph here, so that its operations are started one by one: {line}")
            torch.cuda.synchronize(self.step.device.device)
            return
        self.graph, self.recorded_lr = graph, self.step.rule.layer_lr

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """A stream of its own, as recording needs: behind what the caller began, before what it begins later."""
        if self.stream is None:
            yield
            return
        here = torch.cuda.current_stream(self.step.device.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)
