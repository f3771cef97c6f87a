"""What is one step of the training? A batch forward and backward through the net, whole or piece by piece.

In bfloat16 the convolutions and fully connected layers compute with copies of their weights, which the update rule
keeps (`Device.narrowed`): the numbers are autocast's, which would cast every weight and gradient anew in each step.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.device import Device
from convnet.nets.dropout import counted
from convnet.nets.layers import Net, rbf_loss
from convnet.recipe import Recipe
from convnet.training.optim import Momentum, optimizer

RUBBISH = 20.0  # the constant j of LeNet-5's eq. 9, which the paper leaves open


class Outcome(NamedTuple):
    """loss: float32 (), the batch's mean, nats. wrong: int64 (), how many of its pictures. Both on the device."""

    loss: Tensor
    wrong: Tensor


class Step:
    """Gradients of a net's loss by a recipe, and the rule that follows them.

    net: what computes, in the mode (training or not) in which it is put.

    piece: pictures that go through the net at once; a batch of more goes piece by piece, and its gradients are added up
    in float32: the same step but for the rounding, and for batch norm, which then sees a piece's mean and variance.
    """

    def __init__(self, net: Net, recipe: Recipe, where: Device, piece: int | None = None) -> None:
        self.recipe, self.where, self.piece = recipe, where, piece
        self.net, copies = where.narrowed(net)
        self.rule: Momentum = optimizer(net, recipe, copies)
        self.input_dtype = torch.float32 if net.float32_input else where.dtype  # of the images: bfloat16 loses nothing

    def gradients(self, images: Tensor, labels: Tensor, number: int, states: Tensor | None = None) -> Outcome:
        """Leaves the gradients of a batch where the rule finds them. number: of the step, the first is 0.

        images: (N, C, H, W) on the device, labels: int64 (N,). states: what dropout draws from, where it is on the
        device already (nets/dropout.py); it then stands for the number.
        """
        self.rule.zero_grad()
        n, piece = len(images), self.piece or len(images)
        if n <= piece:
            return self._pass(images, labels, number, 0, n, states)
        outcomes, sums = [], {name: torch.zeros_like(weight) for name, weight in self.rule.parameters.items()}
        for first in range(0, n, piece):
            part = slice(first, first + piece)
            outcomes.append(self._pass(images[part], labels[part], number, first, n, states))
            for name, total in sums.items():
                own = self.rule.computed(name)
                if own.grad is not None:
                    total.add_(own.grad)
                    own.grad = None
        for name, total in sums.items():
            own = self.rule.computed(name)
            own.grad = total.to(own.dtype)
        return Outcome(*(torch.stack(each).sum() for each in zip(*outcomes, strict=True)))

    def _pass(self, images: Tensor, labels: Tensor, number: int, first: int, n: int, states: Tensor | None) -> Outcome:
        """One piece of a batch of n pictures, forward and backward; the gradients are its share of the batch's mean."""
        with self.where.autocast(), counted(self.recipe.seed, number, first, states):
            heads = self.net.heads(images)
        weights, kind = self.net.loss_weights, self.recipe.loss
        loss = torch.stack([w * _loss(kind, heads[name].float(), labels) for name, w in weights.items()]).sum()
        loss = loss * (len(images) / n)
        loss.backward()  # type: ignore[no-untyped-call]
        return Outcome(loss.detach(), (heads["logits"].argmax(1) != labels).sum())


def _loss(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch, nats: "softmax" is -log of the right class's softmax output (AlexNet 3.5), "rbf" the
    discriminative criterion over distances (LeNet-5, eq. 9)."""
    return rbf_loss(logits, labels, RUBBISH) if kind == "rbf" else F.cross_entropy(logits, labels)
