"""The learning rate of each epoch, and of each layer."""

import math

import pytest

from convnet.errors import UsageError
from convnet.recipe import Recipe
from convnet.training.run import fresh_net
from convnet.training.schedule import by_layer, check_layers, finished, frozen, rate

ALEXNET = ("conv1.weight", "conv1.bias", "conv2.0.weight", "conv2.1.weight", "fc8.weight", "fc8.bias")


def rates(recipe, errors, hand=()):
    """The rates of the epochs that would run if these were the validation errors."""
    seen, epoch = [], 1
    while not finished(recipe, epoch, errors, hand) and epoch <= len(errors) + 1:
        seen.append(round(rate(recipe, epoch, errors, hand), 9))
        epoch += 1
    return seen


def test_plateau_histories_by_hand():
    recipe = Recipe(lr=0.1, patience=2, lr_drops=1, epochs=100)
    assert rates(recipe, []) == [0.1]
    assert rates(recipe, [9, 8, 7, 6]) == [0.1] * 5
    # epoch:             1  2  3  4  5 | 6  7  8  9   epochs 4 and 5 didn't beat epoch 3; 8 and 9 didn't beat 7: the end
    assert rates(recipe, [9, 8, 7, 7, 8, 6, 5, 5, 5]) == [0.1] * 5 + [0.01] * 4
    # the best of all counts: epochs 6 and 7 are worse than epoch 3, so the lower rate ends too
    assert rates(recipe, [9, 8, 7, 9, 9, 8, 8]) == [0.1] * 5 + [0.01] * 2
    # NaN is no improvement
    nan = float("nan")
    assert rates(recipe, [9, nan, nan, 8, nan, nan]) == [0.1] * 3 + [0.01] * 3


def test_three_drops_as_in_the_paper():
    recipe = Recipe(patience=1, epochs=90)
    assert rates(recipe, [5, 5, 5, 5, 5, 5, 5]) == [0.01, 0.01, 0.001, 0.0001, 0.00001]
    assert rates(Recipe(patience=1, epochs=3), [5] * 9) == [0.01, 0.01, 0.001]
    assert rates(Recipe(patience=1, lr_drops=0), [5] * 9) == [0.01, 0.01]


def test_later_errors_change_nothing_earlier():
    recipe, errors = Recipe(patience=1), [5.0, 5.0, 5.0, 4.0, 4.0]
    for epoch in range(1, 6):
        assert rate(recipe, epoch, errors) == rate(recipe, epoch, errors[: epoch - 1])
        assert finished(recipe, epoch, errors) == finished(recipe, epoch, errors[: epoch - 1])


def test_given_steps():
    recipe = Recipe(schedule="steps", lr=1.0, lr_divisor=2.0, lr_steps=(3, 4), epochs=5)
    assert rates(recipe, [1.0] * 9) == [1.0, 1.0, 0.5, 0.25, 0.25]
    assert rates(Recipe(schedule="steps", epochs=3), [1.0] * 9) == [0.01] * 3


def test_a_cosine_and_a_warm_up():
    recipe = Recipe(schedule="cosine", lr=0.2, epochs=4)
    assert rates(recipe, [1.0] * 9) == pytest.approx([0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0.1 * (1 - math.sqrt(0.5))])
    assert rates(Recipe(schedule="steps", lr=0.3, lr_steps=(4,), warm_up=2, epochs=5), []) == [0.1]
    assert rates(Recipe(schedule="steps", lr=0.3, lr_steps=(4,), warm_up=2, epochs=5), [1.0] * 9) == pytest.approx(
        [0.1, 0.2, 0.3, 0.03, 0.03]
    )


def test_after_a_hand_the_schedule_goes_on_from_there():
    steps = Recipe(schedule="steps", lr=1.0, lr_steps=(4,), epochs=6)
    assert rates(steps, [1.0] * 9, [(3, 0.5)]) == [1.0, 1.0, 0.5, 0.05, 0.05, 0.05]
    assert rates(steps, [1.0] * 9, [(2, 0.5), (2, 0.25), (5, 0.7)]) == [1.0, 0.25, 0.25, 0.025, 0.7, 0.7]
    plateau = Recipe(lr=0.1, patience=2, lr_drops=1, epochs=100)
    # epoch 3 would be the second in a row that is no better; with the change before it the count begins at 3
    assert rates(plateau, [5, 5, 5, 5, 5, 5], [(3, 0.04)]) == [0.1, 0.1, 0.04, 0.04, 0.004, 0.004]
    assert rate(Recipe(lr=0.3), 7, [], [(5, 0.1)]) == 0.1  # exactly


def test_layers_by_name_pattern_and_epoch():
    table = {"conv*": 0.5, "conv1@3": 0.1, "conv1": 0.2, "conv2.1": 3.0, "fc8.bias": 7.0}
    found = by_layer(table, ALEXNET, 2, "layer_lr")
    assert found == {
        "conv1.weight": 0.2,
        "conv1.bias": 0.2,
        "conv2.0.weight": 0.5,
        "conv2.1.weight": 3.0,
        "fc8.bias": 7.0,
    }
    assert by_layer(table, ALEXNET, 3, "layer_lr")["conv1.bias"] == 0.1
    assert by_layer({"conv1@68": 0.0}, ALEXNET, 67, "layer_lr") == {}
    with pytest.raises(UsageError, match=r"layer_lr: conv1.weight is named by 'conv\*' and by '\*1'; which counts\?"):
        by_layer({"conv*": 1.0, "*1": 2.0}, ALEXNET, 1, "layer_lr")


def test_what_is_frozen_has_rate_0_in_all_epochs():
    assert frozen(Recipe(layer_lr={"conv*": 0, "conv2.1@5": 0, "fc8.bias": 0, "fc8.bias@9": 1}), ALEXNET) == [
        "conv1.weight", "conv1.bias", "conv2.0.weight",
    ]  # fmt: skip
    assert frozen(Recipe(layer_lr={"conv1@72": 0}), ALEXNET) == []


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"layer_decay: alexnet has no layer 'fc9'; it has conv1, conv2, fc8"):
        check_layers(Recipe(layer_decay={"fc9": 1.0}), ALEXNET)
    with pytest.raises(UsageError, match=r"layer_lr: cifar_18 has no layer 'cov\*'; it has conv1, conv2, conv3, fc10"):
        fresh_net(Recipe(net="cifar_18", size=32, crop=32, layer_lr={"cov*": 1.0}), 10)
