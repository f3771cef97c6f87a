"""How do the weights move? The papers' update rule.

    v <- momentum v - decay lr w - lr gradient
    w <- w + v

Paper: Krizhevsky, Sutskever and Hinton 2012, section 5. The rate is inside the velocity, so steps already taken keep
the rate that they were taken at. torch.optim.SGD keeps gradients in its velocity and multiplies by the present rate:
the two are the same while lr stays, and differ for some 1 / (1 - momentum) steps after each change of it.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from convnet.errors import DataError
from convnet.kernels.cpu import update as update_cpu
from convnet.kernels.cuda import available as on_cuda
from convnet.recipe import Recipe
from convnet.training.schedule import by_layer


class Momentum:
    """The update rule and its velocity, for the parameters of a net that learn.

    A parameter whose name ends in `bias` is a bias: its rate is bias_lr_factor x lr, or always bias_lr where one is
    given, and with decay_biases false it doesn't decay. A parameter without a gradient counts as one with gradient 0.

    layer_decay: the decay of the parameters of these names, biases among them. `layer_lr`, empty at first, multiplies
    the rate of those that it names, biases among them (0: a parameter moves by its velocity alone); it may change.

    max_filter_rms: above 0, each filter of a convolution whose root mean square exceeds it after a step is set back to
    it. Paper: Zeiler and Fergus 2013, section 3.

    bf16_weights: copies in bfloat16 of the parameters of these names, with which the net computes (step.py): their
    gradients are the ones that count, and they follow each move.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        momentum: float = 0.9,
        decay: float = 0.0005,
        bias_lr_factor: float = 1.0,
        bias_lr: float | None = None,
        decay_biases: bool = True,
        layer_decay: Mapping[str, float] | None = None,
        max_filter_rms: float = 0.0,
        bf16_weights: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.bf16_weights = dict(bf16_weights or {})
        self.parameters = {name: weight for name, weight in parameters if weight.requires_grad}
        self.momentum, self.max_filter_rms = momentum, max_filter_rms
        self.bias_lr = bias_lr
        self.factors = {name: bias_lr_factor if _is_bias(name) else 1.0 for name in self.parameters}
        self.decays = {name: 0.0 if _is_bias(name) and not decay_biases else decay for name in self.parameters}
        self.decays |= {name: own for name, own in (layer_decay or {}).items() if name in self.parameters}
        self.layer_lr: Mapping[str, float] = {}
        self.in_c = update_cpu.Update()
        self.velocity = {name: torch.zeros_like(weight) for name, weight in self.parameters.items()}

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip_update: Tensor | None = None) -> None:
        """Moves every parameter once, by its gradient, at the rate `lr`.

        lr may be a tensor, float32 () on the parameters' device, and then `skip_update` another: where it isn't 0, and
        NaN isn't, nothing moves.
        """
        if isinstance(lr, Tensor) or any(on_cuda.serve(weight.device) for weight in self.parameters.values()):
            self._step_on_device(lr, skip_update)
        else:
            self._step(lr)
        if self.max_filter_rms:
            self._limit_filters()

    def _step(self, lr: float) -> None:
        moves = [
            update_cpu.Move(weight, self.velocity[name], self.computed(name).grad, self.bf16_weights.get(name),
                            self._rate(name, lr), self.momentum, self.decays[name])
            for name, weight in self.parameters.items()
        ]  # fmt: skip
        for weight, velocity, gradient, bf16_weight, rate, momentum, decay in self.in_c(moves):
            velocity.mul_(momentum)
            velocity.add_(weight, alpha=-decay * rate)
            if gradient is not None:
                velocity.add_(gradient.to(weight.dtype), alpha=-rate)
            weight.add_(velocity)
            if bf16_weight is not None:
                bf16_weight.copy_(weight)

    def _limit_filters(self) -> None:
        for name, weight in self.parameters.items():
            if weight.ndim != 4:
                continue
            rms = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True) / weight[0].numel() ** 0.5
            weight.mul_((self.max_filter_rms / rms).clamp(max=1))  # of a filter of zeros infinity, so 1
            if name in self.bf16_weights:
                self.bf16_weights[name].copy_(weight)

    def _rate(self, name: str, lr: float) -> float:
        own = self.bias_lr if self.bias_lr is not None and _is_bias(name) else lr * self.factors[name]
        return own * self.layer_lr.get(name, 1.0)

    def _step_on_device(self, lr: float | Tensor, skip_update: Tensor | None) -> None:
        """By the kernel in Triton, or its plain form; the host reads nothing."""
        from convnet.kernels.cuda import update as sgd  # which loads Triton, where there is one

        place = next(iter(self.parameters.values())).device
        rate = lr if isinstance(lr, Tensor) else torch.full((), lr, device=place)
        for name, weight in self.parameters.items():
            found = (weight, self.velocity[name], self.computed(name).grad, self.bf16_weights.get(name))
            form = sgd.step if sgd.available(*found) else sgd.plain_step
            decay, own, factor = self.decays[name], rate, self.factors[name] * self.layer_lr.get(name, 1.0)
            if self.bias_lr is not None and _is_bias(name):
                own, factor = torch.full((), self.bias_lr, device=place), self.layer_lr.get(name, 1.0)
            form(*found, own, skip_update, momentum=self.momentum, decay=decay, factor=factor)

    def computed(self, name: str) -> nn.Parameter:
        """The parameter that the net computes with, whose gradient counts: the bf16 copy, where there is one."""
        return self.bf16_weights.get(name, self.parameters[name])

    def zero_grad(self) -> None:
        """Forgets the gradients, so that the next backward pass starts anew."""
        for name in self.parameters:
            self.computed(name).grad = None

    def state(self) -> dict[str, Tensor]:
        """The velocity by parameter name: the tensors themselves, not copies."""
        return dict(self.velocity)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the velocity of a former run. Raises: DataError when names or shapes differ."""
        for name in sorted(state.keys() ^ self.velocity.keys()):
            raise DataError(f"the velocity of {name} is {'missing' if name in self.velocity else 'of no parameter'}")
        for name, velocity in self.velocity.items():
            found, needed = tuple(state[name].shape), tuple(velocity.shape)
            if found != needed:
                raise DataError(f"the velocity of {name} has shape {found}, the parameter {needed}")
            velocity.copy_(state[name])


def optimizer(net: nn.Module, recipe: Recipe, bf16_weights: Mapping[str, nn.Parameter] | None = None) -> Momentum:
    """The update rule for a net by a recipe; `bf16_weights` as `Momentum` takes them."""
    return Momentum(
        net.named_parameters(),
        momentum=recipe.momentum,
        decay=recipe.decay,
        bias_lr_factor=recipe.bias_lr_factor,
        bias_lr=recipe.lr * recipe.bias_lr_factor if recipe.bias_schedule == "constant" else None,
        decay_biases=recipe.decay_biases,
        layer_decay=by_layer(recipe.layer_decay, (name for name, _ in net.named_parameters()), 1, "layer_decay"),
        max_filter_rms=recipe.max_filter_rms,
        bf16_weights=bf16_weights,
    )


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
