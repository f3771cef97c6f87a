import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from convnet.errors import DataError
from convnet.kernels.cpu import update
from convnet.recipe import Recipe
from convnet.training.optim import Momentum, optimizer

RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.1]  # with changes, where the paper's rule and torch's part


def net_and_gradients(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).to(dtype)
    gradients = [{name: torch.randn_like(weight) for name, weight in net.named_parameters()} for _ in RATES]
    return net, gradients


def moved(net, gradients, step):
    for lr, gradient in zip(RATES, gradients, strict=True):
        for name, weight in net.named_parameters():
            weight.grad = gradient[name].clone()
        step(lr)
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def by_the_formula(net, gradients, momentum, decay, bias_lr_factor, decay_biases, bias_lr=None):
    """An independent form in float64: v <- m v - d lr w - lr g; w <- w + v."""
    ends = {}
    for name, weight in net.named_parameters():
        bias = name.endswith("bias")
        w, v = weight.detach().numpy().astype(np.float64), 0.0
        for lr, gradient in zip(RATES, gradients, strict=True):
            own = lr * (bias_lr_factor if bias else 1)
            own = bias_lr if bias and bias_lr is not None else own
            own_decay = 0.0 if bias and not decay_biases else decay
            v = momentum * v - own_decay * own * w - own * gradient[name].numpy().astype(np.float64)
            w = w + v
        ends[name] = w
    return ends


@pytest.mark.parametrize(("bias_lr_factor", "decay_biases"), [(1.0, True), (2.0, False), (2.0, True), (0.0, False)])
def test_the_rule_is_the_papers_formula_over_changes_of_the_rate(bias_lr_factor, decay_biases):
    net, gradients = net_and_gradients()
    recipe = Recipe(momentum=0.9, decay=0.01, bias_lr_factor=bias_lr_factor, decay_biases=decay_biases)
    wanted = by_the_formula(net, gradients, 0.9, 0.01, bias_lr_factor, decay_biases)
    ends = moved(net, gradients, optimizer(net, recipe).step)
    for name, end in ends.items():
        np.testing.assert_allclose(end.numpy(), wanted[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_constant_biases_keep_the_rate_of_the_start(as_tensor):
    """By the host and in the form for a device, which reads the rate from memory."""
    net, gradients = net_and_gradients(torch.float32 if as_tensor else torch.float64)
    recipe = Recipe(lr=0.02, decay=0.01, bias_lr_factor=2.0, bias_schedule="constant", decay_biases=False)
    wanted = by_the_formula(net, gradients, 0.9, 0.01, 2.0, False, bias_lr=0.04)
    other = by_the_formula(net, gradients, 0.9, 0.01, 2.0, False)
    rule = optimizer(net, recipe)
    ends = moved(net, gradients, lambda lr: rule.step(torch.tensor(lr) if as_tensor else lr))
    for name, end in ends.items():
        np.testing.assert_allclose(end.numpy(), wanted[name], rtol=1e-5, atol=1e-6)
        assert np.allclose(wanted[name], other[name]) == (not name.endswith("bias"))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_float32_weights_follow_the_formula(as_tensor):
    net, gradients = net_and_gradients(torch.float32)
    wanted = by_the_formula(net, gradients, 0.9, 0.0005, 2.0, True)
    rule = Momentum(net.named_parameters(), bias_lr_factor=2.0)
    for name, end in moved(net, gradients, lambda lr: rule.step(torch.tensor(lr) if as_tensor else lr)).items():
        np.testing.assert_allclose(end.numpy(), wanted[name], rtol=1e-5, atol=1e-6)


def test_torch_sgd_is_the_same_until_the_rate_changes():
    ends = []
    for form in ("ours", "torch"):
        net, gradients = net_and_gradients()
        if form == "ours":
            step = Momentum(net.named_parameters(), decay=0.01).step
        else:
            sgd = torch.optim.SGD(net.parameters(), lr=RATES[0], momentum=0.9, weight_decay=0.01)

            def step(lr, sgd=sgd):
                sgd.param_groups[0]["lr"] = lr
                sgd.step()

        after = []
        for lr, gradient in zip(RATES, gradients, strict=True):
            for name, weight in net.named_parameters():
                weight.grad = gradient[name].clone()
            step(lr)
            after.append(net[0].weight.detach().clone())
        ends.append(after)
    gaps = [float((ours - torchs).abs().max()) for ours, torchs in zip(*ends, strict=True)]
    assert max(gaps[:3]) < 1e-12  # the rate is 0.1
    assert min(gaps[3:]) > 0.01  # it dropped to 0.01: torch's velocity shrank at once, the paper's didn't


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in C, and in the plain form
def test_a_parameter_without_gradient_still_decays_and_a_frozen_one_rests(dtype):
    net = nn.Linear(2, 2, dtype=dtype)
    net.bias.requires_grad_(False)
    before = net.weight.detach().clone()
    rule = Momentum(net.named_parameters(), decay=0.5)
    rule.step(0.1)
    torch.testing.assert_close(net.weight.detach(), before * 0.95)
    assert list(rule.state()) == ["weight"]


def test_the_velocity_is_all_that_a_resumed_run_needs():
    net, gradients = net_and_gradients(torch.float32)
    rule = Momentum(net.named_parameters())
    whole = moved(net, gradients, rule.step)
    other, gradients = net_and_gradients(torch.float32)
    rule = Momentum(other.named_parameters())
    for i, (lr, gradient) in enumerate(zip(RATES, gradients, strict=True)):
        if i == 4:
            saved = {name: velocity.clone() for name, velocity in rule.state().items()}
            rule = Momentum(other.named_parameters())
            rule.load(saved)
        for name, weight in other.named_parameters():
            weight.grad = gradient[name]
        rule.step(lr)
    for name, weight in other.named_parameters():
        assert torch.equal(weight, whole[name])
    rule.zero_grad()
    assert all(weight.grad is None for weight in other.parameters())


def test_a_velocity_of_another_net_is_refused():
    rule = Momentum(nn.Linear(2, 3).named_parameters())
    with pytest.raises(DataError, match="the velocity of bias is missing"):
        rule.load({"weight": torch.zeros(3, 2)})
    with pytest.raises(DataError, match="the velocity of other is of no parameter"):
        rule.load({**rule.state(), "other": torch.zeros(1)})
    with pytest.raises(DataError, match=r"the velocity of weight has shape \(2, 2\), the parameter \(3, 2\)"):
        rule.load({**rule.state(), "weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("as_tensor", [False, True])
def test_filters_above_the_radius_are_set_back_to_it(as_tensor):
    """Zeiler and Fergus, section 3: one filter within it and one of zeros stay as the rule moves them; so does what is
    no convolution. The bf16 copies follow."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(16, 5))
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].weight[1] *= 0.01 / net[0].weight[1].square().mean().sqrt()
    copies = {"0.weight": nn.Parameter(net[0].weight.detach().to(torch.bfloat16))}
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    rule = Momentum(net.named_parameters(), decay=0.0, max_filter_rms=0.1, bf16_weights=copies)
    rule.step(torch.tensor(0.1) if as_tensor else 0.1)
    filters = net[0].weight.detach()
    assert torch.equal(filters[:2], before["0.weight"][:2])
    radius = before["0.weight"][2:].square().mean((1, 2, 3), keepdim=True).sqrt()
    assert radius.min() > 0.1
    torch.testing.assert_close(filters[2:], before["0.weight"][2:] * 0.1 / radius)
    assert torch.equal(net[1].weight, before["1.weight"])
    assert torch.equal(copies["0.weight"].detach(), filters.to(torch.bfloat16))


def turn(rule, name):
    """The weight and its velocity lie column by column, from here on."""
    rule.parameters[name].data = rule.parameters[name].detach().t().contiguous().t()
    rule.velocity[name] = rule.velocity[name].t().contiguous().t()


def test_a_rule_can_be_copied_between_steps():
    """What the kernel in C keeps are places in memory; the copy's weights lie elsewhere."""
    net = nn.Linear(6, 6)
    rule = Momentum(net.named_parameters())

    def step(rule):
        for weight in rule.parameters.values():
            weight.grad = torch.ones_like(weight)
        rule.step(0.1)

    step(rule)
    other, read = deepcopy(rule), pickle.loads(pickle.dumps(rule))
    before = [weight.clone() for weight in net.parameters()]
    for each in (other, read):
        step(each)
    assert all(map(torch.equal, net.parameters(), before))
    step(rule)
    for each in (other, read):
        for one, two in zip(each.parameters.values(), net.parameters(), strict=True):
            assert torch.equal(one, two)


CHANGES = {
    "none": lambda rule: None,
    "a weight elsewhere": lambda rule: setattr(rule.parameters["1.weight"], "data", torch.ones(6, 6)),
    "a velocity elsewhere": lambda rule: rule.velocity.update({"0.bias": torch.ones(6)}),
    "another layout": lambda rule: turn(rule, "0.weight"),
    "a layer's rate": lambda rule: setattr(rule, "layer_lr", {"0.weight": 0.5}),
    "momentum": lambda rule: setattr(rule, "momentum", 0.5),
    "a decay": lambda rule: rule.decays.update({"1.weight": 0.3}),
    "no gradient": lambda rule: setattr(rule.parameters["0.bias"], "grad", None),
    "a gradient's layout": lambda rule: setattr(
        rule.parameters["1.weight"], "grad", rule.parameters["1.weight"].grad.t().contiguous().t()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_between_steps_is_worked_out_anew_when_it_changes(change):
    """To the bit as a rule that keeps nothing; the tensors lie where another's may have lain before."""

    def ends(forgets):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        rule = Momentum(net.named_parameters(), momentum=0.9, decay=0.01)
        for number in range(6):
            for weight in net.parameters():
                weight.grad = torch.randn_like(weight)
            if number == 3:
                CHANGES[change](rule)
            if forgets:
                rule.in_c = update.Update()
            rule.step(0.1 if number < 5 else 0.01)
        return [*net.parameters(), *rule.velocity.values()]

    for kept, forgotten in zip(ends(False), ends(True), strict=True):
        assert torch.equal(kept, forgotten)
