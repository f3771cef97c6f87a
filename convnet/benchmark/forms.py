"""The forms of a net that are measured: ours, the plain one, and torchvision's or timm's nearest where it is installed.

A form does a whole training step (forward, loss, backward, the loss read, update) and a forward pass in eval mode.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convnet import device
from convnet.benchmark.plain import Plain, grouped, plain_alexnet
from convnet.benchmark.timing import first_line
from convnet.data.loader import Batch
from convnet.device import Device
from convnet.hardware import version
from convnet.io.strict_json import Json
from convnet.nets import create_model, recipe_of
from convnet.nets.describe import on_meta, skeleton
from convnet.nets.layers import Net
from convnet.nets.lenet5 import rbf_loss
from convnet.recipe import Recipe, load_recipe
from convnet.training import memory_layout
from convnet.training.step import RUBBISH, EagerSteps, choose

OURS, PLAIN, COMPILED = "convnet", "plain PyTorch", "torch.compile"
PIXEL_STD = 60.0  # grey levels: about that of photos
PASSES = 3  # multiply-adds of a training step, in those of a forward pass: backward has two products for each
SLOW = 100.0  # the recipe's rate is divided by this: random labels must not make the weights grow
LIBRARIES = ("torchvision", "timm")
Precision = Literal["auto", "fp32", "bf16"]
Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Case:
    """A net by name, the recipe whose update rule, loss and crop it is trained by, and where."""

    name: str
    recipe: Recipe
    where: Device

    @property
    def batch(self) -> int:
        return self.recipe.batch

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return (1 if self.recipe.channels == "grey" else 3, self.recipe.crop, self.recipe.crop)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random pictures float32 (N, C, H, W) on the recipe's scale, and labels int64 (N,), on the device."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, *self.shape, generator=generator) * PIXEL_STD * self.recipe.scale
        labels = torch.randint(0, skeleton(self.name).num_classes, (self.batch,), generator=generator)
        return images.to(self.where.device), labels.to(self.where.device)


@dataclass(frozen=True)
class Form:
    """name, and how it computes, in words; step: one training step, gives its loss; forward: one pass in eval mode.

    multiply_adds: of one picture's forward pass in training (with all heads) and in eval mode.
    """

    name: str
    how: str
    net: nn.Module
    step: Callable[[], float]
    forward: Callable[[], Tensor]
    multiply_adds: tuple[int, int]


def case_of(name: str, batch: int, precision: Precision = "auto", where: str = "auto") -> Case:
    """A net with its own recipe and so many pictures in a step. Raises: UsageError for an unknown net, no bf16."""
    recipe = load_recipe(recipe_of(name))
    if recipe.net != name:
        recipe = replace(recipe, net=name, crop=skeleton(name).input_size)
    recipe = replace(recipe, batch=batch, precision=precision, lr=recipe.lr / SLOW)
    return Case(name, recipe, device.choose(precision, where))


def new_net(case: Case, num_classes: int | None = None) -> Net:
    """The net with its recipe's initial weights and options, in training mode."""
    options: Json = dict(case.recipe.net_options)
    return create_model(case.name, num_classes=num_classes, init=case.recipe.init, seed=0, **options).train()


def build(form: str, case: Case) -> Form:
    """A form by its name: OURS, PLAIN, COMPILED, or that of a library as `others` names it."""
    if form in (OURS, COMPILED):
        return ours(case, form == COMPILED)
    return plain(case) if form == PLAIN else theirs(case, *form.split()[:2])


def ours(case: Case, compiled: bool = False) -> Form:
    """The net as `convnet train` runs it, on pictures that are in memory; or its forward passes by torch.compile."""
    net, where = placed(new_net(case), case)
    counts = _counts(net, case, nullcontext)
    step, number = EagerSteps(net, case.recipe, where), 0
    tested = step.net if where == case.where else case.where.take(deepcopy(net))  # evaluating stays channels-last
    if compiled:
        step.net.compile()
        vars(step.net)["heads"] = torch.compile(step.net.heads)  # what training calls
    images, labels = case.inputs()
    images = images.to(memory_format=case.where.memory_format)  # as evaluating gets them; the training's are narrower
    batch = Batch(images.to(step.input_dtype), labels, np.arange(case.batch))
    steps = step if compiled else choose(step, lambda text: None)

    def train() -> float:
        nonlocal number
        steps.forward_backward(batch, number)
        results = steps.update(case.recipe.lr)
        number += 1
        return results[-1].loss if results else math.nan  # of an earlier step, on a GPU

    def forward() -> Tensor:
        with torch.no_grad(), case.where.autocast():
            logits: Tensor = tested(images)
            return logits

    dtype = "bf16" if case.where.dtype == torch.bfloat16 else "fp32"
    layout = "channels-last" if where == case.where else "NCHW in training"
    how = f"{dtype}, {layout}, {'torch.compile, our update' if compiled else 'its own kernels'}"
    return Form(COMPILED if compiled else OURS, how, step.net, train, forward, counts)


def placed(net: Net, case: Case) -> tuple[Net, Device]:
    """The net on its device in the layout in which `convnet train` would train it, and the device in that layout."""
    where = memory_layout.choose(net, case.recipe, case.where).of(case.where)
    return where.take(net), where


def plain(case: Case) -> Form:
    """The same net of torch's own pieces (plain.py)."""
    if case.name == "alexnet":
        return _torchs(PLAIN, "nn.LocalResponseNorm, groups=2, ", plain_alexnet(), case, nullcontext)
    return _torchs(PLAIN, "F.local_response_norm, grouped convolutions, ", grouped(new_net(case)), case, Plain)


def theirs(case: Case, library: str, name: str) -> Form:
    """A library's net, plainly used: as torchvision's or timm's user has it on the first day."""
    module = importlib.import_module(f"{library}.models")
    options: Json = {"weights": None}
    make = getattr(module, "create_model" if library == "timm" else name)
    if library == "timm":
        options = {"model_name": name, "pretrained": False}
    elif "kwargs" in inspect.signature(make).parameters and name != "alexnet":
        options["init_weights"] = False  # torch's own initial values: drawing others takes longer than all the rest
    return _torchs(f"{library} {name}", "", make(**options), case, nullcontext)


def others(name: str) -> tuple[str | None, str]:
    """("torchvision vgg16", "") for the nearest net of a library that can be imported, or (None, why not)."""
    net = skeleton(name)
    if not net.torchvision:
        return None, "torchvision and timm have no such net"
    reasons = []
    for library in LIBRARIES:
        if library == "timm" and library not in net.layer_names:
            reasons.append("timm has no such net")
            continue
        if version(library) is None:
            reasons.append(f"{library} is not installed")
            continue
        try:
            importlib.import_module(f"{library}.models")
            return f"{library} {net.torchvision}", ""
        except Exception as error:  # a torchvision that was built for another torch raises RuntimeError or worse
            reasons.append(f"{library} can't be imported ({first_line(error)})")
    return None, "; ".join(reasons)


def _torchs(name: str, layers: str, net: nn.Module, case: Case, mode: Context) -> Form:
    """A net in torch's default layout with torch.optim.SGD; autocast on CUDA only, float32 elsewhere."""
    is_cuda = case.where.device.type == "cuda"
    how = f"{'torch.autocast' if is_cuda else 'fp32'}, NCHW, eager, {layers}torch.optim.SGD"
    counts = _counts(net, case, mode)
    net, recipe = net.to(case.where.device), case.recipe
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.decay)
    images, labels = case.inputs()
    autocast: Context = case.where.autocast if is_cuda else nullcontext

    def train() -> float:
        optimizer.zero_grad()
        with mode(), autocast():
            loss = _loss(net, images, labels, recipe.loss)
        torch.autograd.backward(loss)
        value = loss.item()
        optimizer.step()
        return value

    def forward() -> Tensor:
        with torch.no_grad(), mode(), autocast():
            logits: Tensor = net(images)
            return logits

    return Form(name, how, net, train, forward, counts)


def _loss(net: nn.Module, images: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The recipe's loss with all heads, or that of a library's net, whose heads come as a tuple (GoogLeNet's)."""
    if isinstance(net, Net):
        heads, j = net.heads(images), RUBBISH if kind == "rbf" else math.inf  # with j infinite it's the cross entropy
        terms = [weight * rbf_loss(heads[name].float(), labels, j) for name, weight in net.loss_weights.items()]
        return torch.stack(terms).sum()
    outputs = net(images)
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels)
    first, *rest = outputs
    return F.cross_entropy(first, labels) + 0.3 * sum(F.cross_entropy(each, labels) for each in rest)


def _counts(net: nn.Module, case: Case, mode: Context) -> tuple[int, int]:
    """Multiply-adds of a picture's forward pass with all heads, and without, from a trace without pixels."""
    bare, images = on_meta(cast(Net, net)), torch.empty(1, *case.shape, device="meta")
    counts = []
    for training in (True, False):
        bare.train(training and not isinstance(net, Net))  # a library's GoogLeNet has its heads in training only
        with torch.no_grad(), FlopCounterMode(display=False) as counter, mode():
            bare.heads(images) if training and isinstance(net, Net) else bare(images)
        counts.append(counter.get_total_flops() // 2)
    return counts[0], counts[1]
