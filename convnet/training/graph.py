"""What does a whole step cost the host? On a CUDA device one launch: forward, backward and update as a CUDA graph.

The first steps run one operation after the other, which compiles the kernels; then a step of a full batch is recorded,
and replayed for every further one. A smaller batch, the last of an epoch, goes on as before. What changes from step to
step is read from the device's memory: pictures, labels, the rate, what dropout draws from. Where a step can't be
recorded that is said once, and all steps go on as before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from convnet.nets.dropout import LAYERS, states
from convnet.training.step import Step

WARM_UP = 3  # steps before the recording


class Whole:
    """Whole steps on a device where the kernels in Triton serve: the gradients, and the update.

    Nothing moves any more from the first step on whose loss is not finite: the weights stay those before it.

    batch: pictures of a full batch. note: is told when it can't be recorded, and why.
    """

    def __init__(self, step: Step, batch: int, note: Callable[[str], None], record: bool = True) -> None:
        place = step.where.device
        self.step, self.batch, self.note = step, batch, note
        self.stream = torch.cuda.Stream(place) if place.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.lr, self.alive = torch.zeros((), device=place), torch.zeros((), device=place)
        self.states = torch.zeros(LAYERS, dtype=torch.int64, device=place)
        self.waits = WARM_UP if record and self.stream is not None else None  # steps to the recording; None: never
        self.graph: torch.cuda.CUDAGraph | None = None
        self.images, self.labels, self.outcome = (torch.empty(0) for _ in range(3))  # where the graph finds them

    def __call__(self, images: Tensor, labels: Tensor, number: int, lr: float) -> Tensor:
        """float64 (2,) on the device, until the next step: the batch's mean loss (nats), and how many were wrong.

        images, labels, number: as `Step.gradients` takes them.
        """
        with self._beside():
            self._tell(number, lr)
            if len(images) == self.batch and self._recorded(images, labels):
                assert self.graph is not None
                self.images.copy_(images)
                self.labels.copy_(labels)
                self.graph.replay()
                return self.outcome
            return self._run(images, labels)

    def _run(self, images: Tensor, labels: Tensor) -> Tensor:
        loss, wrong = self.step.gradients(images, labels, 0, self.states)
        self.alive.add_(loss.float() * 0)  # NaN from the first loss on that isn't finite
        self.step.rule.step(self.lr, self.alive)
        return torch.stack([loss.double(), wrong.double()])

    def _tell(self, number: int, lr: float) -> None:
        """Writes what the step reads to the device, behind the step before; the host doesn't wait."""
        self.lr.fill_(lr)
        drawn = states(self.step.recipe.seed, number)
        self.states.copy_(drawn.pin_memory() if self.stream is not None else drawn, non_blocking=True)

    def _recorded(self, images: Tensor, labels: Tensor) -> bool:
        """Whether there is a graph; when it's time, it is made."""
        if self.graph is None and self.waits is not None:
            if self.waits:
                self.waits -= 1
            else:
                self.waits = None
                self._record(images, labels)
        return self.graph is not None

    def _record(self, images: Tensor, labels: Tensor) -> None:
        graph = torch.cuda.CUDAGraph()
        self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        self.step.rule.zero_grad()
        try:
            with torch.cuda.graph(
                graph, stream=self.stream, capture_error_mode="thread_local"
            ):  # the loader has others
                self.outcome = self._run(self.images, self.labels)
        except Exception as error:  # whatever can't be recorded: each library has its own class for it
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.note(f"a step can't be a CUDA graph here, so that its operations are started one by one: {line}")
            torch.cuda.synchronize(self.step.where.device)
            return
        self.graph = graph

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """A stream of its own, as recording needs: behind what the caller began, before what it begins later."""
        if self.stream is None:
            yield
            return
        here = torch.cuda.current_stream(self.step.where.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)
