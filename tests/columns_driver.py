"""Checks of a net that several processes train, by parts of a batch or of the net, against the same net in one.

    python forked.py columns_driver:main '[[N, [OUT, LAYOUT:NET:STEPS:DTYPE, ...]]]'

The first process writes what it found to OUT. With float64 what is left of a difference is no rounding.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from convnet.data.loader import Batch
from convnet.device import choose
from convnet.io.processes import ALONE, Processes, joined
from convnet.nets import dropout
from convnet.nets.column_parallel import Share, column_of
from convnet.nets.connected_parallel import parts_of
from convnet.nets.layers import Net
from convnet.recipe import load_recipe
from convnet.training.step import EagerSteps
from thin import new_thin_net

CPU = choose("fp32", "cpu")
BATCH = 3  # pictures, which two groups don't share evenly
RATE = 1e-3
OPTIONS = {"alexnet_bn": {}, "vgg_a_bn": {"input_size": 32}}  # of the others: dropout


def step_of(net: Net, processes: Processes = ALONE) -> EagerSteps:
    recipe = replace(load_recipe("alexnet"), net=net.name, batch=BATCH, lr=RATE, sync_batch_norm=True)
    return EagerSteps(CPU.take(net).train(), recipe, CPU, processes=processes)


def batches(net: Net, n: int, processes: Processes = ALONE) -> Iterator[Batch]:
    """Noise with the standard deviation of photographs; of each batch this process's part."""
    generator, side = torch.Generator().manual_seed(1), net.sides.start
    dtype = next(net.parameters()).dtype
    for size in (*[BATCH] * (n - 1), 2):
        images = 65 * torch.randn((size, 3, side, side), generator=generator, dtype=dtype)
        labels, part = torch.randint(4, (size,), generator=generator), processes.part(size)
        yield Batch(images[part].to(memory_format=CPU.memory_format), labels[part], np.arange(size), part.start)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, in units of its norm; of one that is next to nothing, as the gradient of a
    bias is that batch norm takes away, of a thousandth of the largest norm."""
    assert list(found) == list(expected)
    norms = {name: float(torch.linalg.vector_norm(x.double())) for name, x in expected.items()}
    least = max(norms.values()) / 1000
    differences = {name: float(torch.linalg.vector_norm((found[name] - x).double())) for name, x in expected.items()}
    return max(difference / max(norms[name], least) for name, difference in differences.items())


@contextmanager
def counted(n: int, sent: list[int]) -> Iterator[None]:
    """Within it `sent` gets the bytes that this process sends to the n - 1 others, by torch's own functions."""
    gather, swap = distributed.all_gather, distributed.all_to_all_single

    def all_gather(out: list[Tensor], own: Tensor, **others: object) -> None:
        sent.append((n - 1) * own.nbytes)
        gather(out, own, **others)

    def all_to_all(out: Tensor, rows: Tensor, received: list[int], given: list[int], group: object) -> None:
        rank = distributed.get_rank(group)
        a_row = rows.element_size() * math.prod(rows.shape[1:])
        sent.append(sum(count * a_row for other, count in enumerate(given) if other != rank))
        swap(out, rows, received, given, group=group)

    with mock.patch.multiple(distributed, all_gather=all_gather, all_to_all_single=all_to_all):
        yield


def gradients(step: EagerSteps) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in step.rule.parameters.items() if weight.grad is not None}


def bytes_of(net: Net, processes: Processes) -> list[int]:
    """Sent by the processes of one net together, forward and backward of BATCH pictures; by an all-reduce, at whose
    buckets a hook looks, as by a ring."""
    n, ways = processes.n, [list[int](), list[int]()]
    step, own = step_of(net.float(), processes), processes.data.part(BATCH)

    def reduce(group: None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        ways[1].append(2 * (n - 1) * bucket.buffer().nbytes * processes.is_first)  # of all together
        return allreduce_hook(group, bucket)

    if isinstance(step.heads, nn.parallel.DistributedDataParallel):
        step.heads.register_comm_hook(None, reduce)
    images = torch.randn(BATCH, 3, net.input_size, net.input_size)[own]
    rows = step._rows(BATCH, 0, BATCH)
    with counted(processes.holders.n, ways[0]), dropout.counted(0, 0, own.start, None, processes.columns, rows):
        loss = step.heads(images)["logits"].logsumexp(1).sum()
    with counted(processes.holders.n, ways[1]):
        loss.backward()
    return processes.sum(torch.tensor([sum(way) for way in ways])).tolist()


def check(layout: str, name: str, n_steps: int, dtype: torch.dtype, processes: Processes) -> dict[str, object]:
    """How far the net over processes is from the net in one: gradients, velocity, weights after steps; by columns
    the logits. Of the last batch a process may have no picture."""
    whole, net = (new_thin_net(name, **OPTIONS.get(name, {"dropout": 0.5})).to(dtype) for _ in range(2))
    share = Share.of(net, processes)
    if layout != "data":
        net = column_of(net, processes.holders) if layout == "columns" else parts_of(net, processes)
    one, several = step_of(whole), step_of(net, processes)
    found: dict[str, object] = {"parameters": [sum(p.numel() for p in each.parameters()) for each in (whole, net)]}
    if layout == "columns":
        with torch.no_grad():
            images = next(batches(whole, 1)).images
            found["logits"] = distance({"": net.eval()(images)}, {"": whole.eval()(images)})
    net.train(), whole.train()
    pairs = zip(batches(whole, n_steps), batches(whole, n_steps, processes.data), strict=True)
    for number, (all_of_it, part) in enumerate(pairs):
        for step, batch in ((one, all_of_it), (several, part)):
            step.forward_backward(batch, number)
        if not number:
            found["gradients"] = distance(share.gather(gradients(several)), gradients(one))
        for step in (one, several):
            step.update(RATE)
    found["velocity"] = distance(share.gather(several.rule.state()), one.rule.state())
    found["weights"] = distance(share.gather(net.state_dict()), whole.state_dict())
    taken = share.take(whole.state_dict())
    found["taken"] = {name: list(x.shape) for name, x in taken.items()} == {
        name: list(x.shape) for name, x in net.state_dict().items()
    }
    return found if processes.data.n > 1 and layout == "columns" else found | {"bytes": bytes_of(net, processes)}


def main(out: str, *cases: str) -> None:
    torch.set_num_threads(1)
    with joined() as together:
        grids: dict[int, Processes] = {0: together}
        found = {}
        for case in cases:
            layout, name, n_steps, dtype = case.split(":")
            n = new_thin_net(name).columns if layout == "columns" else 0
            processes = grids.get(n) or grids.setdefault(n, together.over_columns(n, "cpu"))
            processes = replace(processes, split=layout == "fully-connected")
            found[case] = check(layout, name, int(n_steps), getattr(torch, dtype), processes)
        if together.is_first:
            Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
