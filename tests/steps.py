"""What some steps of a recipe's own rule do to a net's loss on a few pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.nets.layers import Net
from convnet.recipe import load_recipe
from convnet.training.optim import optimizer


def pictures(n: int, side: int) -> Tensor:
    """Noise around a colour of each picture's own, with the standard deviation of mean-subtracted photographs."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((n, 3, side, side), generator=generator)
    return 60 * noise + 40 * torch.randn((n, 3, 1, 1), generator=generator)


def losses(net: Net, recipe: str, *, lr_factor: float = 1.0, n: int = 8, steps: int = 20, side: int = 0) -> list[float]:
    """The loss before each step, by the recipe's rule at its rate times `lr_factor`; without dropout, which only adds
    noise to so few steps. The labels are 0, 1, 2, 3 in turn."""
    rule = load_recipe(recipe)
    images, labels = rule.scale * pictures(n, side or net.input_size), torch.arange(n) % 4
    net.eval()
    update, found = optimizer(net, rule), []
    for _ in range(steps):
        update.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        update.step(rule.lr * lr_factor)
        found.append(loss.item())
    return found
