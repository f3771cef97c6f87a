"""What does a run do? A Recipe holds every choice of it; a TOML file holds a recipe."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from convnet.errors import UsageError, unknown
from convnet.io.atomic import read
from convnet.io.fields import MAX_INT, Range, checked, from_text, ranges, setting, shown, table
from convnet.io.fields import to_toml as toml_value
from convnet.io.strict_json import Json

MAX_BYTES = 1 << 20  # of a file; the largest of ours has 2 kB


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. The defaults are the paper's AlexNet (Krizhevsky, Sutskever and Hinton 2012).

    Raises: UsageError that lists every wrong field at once; no Recipe exists that breaks a rule.
    """

    name: str = setting("alexnet", "what the run is called")
    net: str = setting("alexnet", "the net, by its name in convnet.nets")
    net_options: Mapping[str, Any] = table("options of that net: names = values, in TOML a table")
    init: Literal["paper", "fan-in", "glorot", "he"] = setting(
        "paper",
        "initial weights: the paper's, or by the number of inputs, or of inputs and outputs; each net knows its own",
    )
    size: int = setting(256, "pixels: side of the stored square, for which a source is prepared", Range(1, 4096))
    pad: int = setting(0, "black pixels added on every side of the stored picture", Range(0, 1024))
    crop: int = setting(224, "pixels: side of the net's input; at most size + 2 pad", Range(1, 4096))
    channels: Literal["rgb", "grey"] = setting("rgb", "what the net sees")
    mean: Literal["picture", "rgb", "none", "start"] = setting(
        "picture",
        "subtracted first: the store's mean picture, its mean colour, nothing, or what was for the net that a run "
        "begins with",
    )
    scale: float = setting(1.0, "not 0; then multiplied by this (1 keeps grey levels 0 to 255)", Range(-1000, 1000))
    offset: float = setting(0.0, "then this is added", Range(-1000, 1000))
    random_crop: bool = setting(True, "training crops at random places, or the centre")
    far_edge: bool = setting(
        False,
        "random crops may reach the far edges: 33 offsets of 224 in 256, as in the released nets; the AlexNet paper "
        "counts 32 (2048 = 32 x 32 x 2)",
    )
    crop_at: Literal["anywhere", "corners"] = setting(
        "anywhere", "where random crops lie: anywhere, or in one of the four corners or the centre (ZFNet)"
    )
    smallest_size: int = setting(
        0,
        "pixels: each training picture is scaled to a side sampled from here to `size` before its crop is cut out "
        "(VGG's S); 0: always `size`",
        Range(0, 4096),
    )
    crop_area: float = setting(
        1.0, "below 1: training crops are boxes of this share of the picture to all of it, resized", Range(0.01, 1)
    )
    crop_aspect: float = setting(1.0, "and of sides up to this ratio, wide or high (GoogLeNet: 4/3)", Range(1, 10))
    mirror: bool = setting(True, "half of the training pictures are mirrored")
    colour_std: float = setting(0.1, "standard deviation of the colour shift's factors; 0 is no shift", Range(0, 10))
    colour_epochs: int = setting(0, "epochs with the colour shift; after them there is none; 0: all", Range(0, 100000))
    colour_by: Literal["eigenvalue", "std"] = setting(
        "eigenvalue",
        "the shift is factor x eigenvalue of the covariance of pixels on the scale 0 to 1 (the paper's text; on 0 to "
        "255 it would be about 1,500 grey levels), or factor x standard deviation, the root (the released net)",
    )
    loss: Literal["softmax", "rbf"] = setting(
        "softmax", "cross-entropy, or the distance to the right class's code (LeNet-5)"
    )
    label_smoothing: float = setting(
        0.0, "softmax: share of the right class's target that goes to all classes alike", Range(0, 1, high_open=True)
    )
    balance: Literal["none", "loss", "order"] = setting(
        "none",
        "uneven classes count alike: by weights of their losses, or by an order in which each comes equally often, "
        "the pictures of small ones again and again",
    )
    batch: int = setting(128, "pictures in a step", Range(1, 65536))
    epochs: int = setting(90, "the most passes over the training pictures", Range(1, 100000))
    lr: float = setting(0.01, "the learning rate at the start", Range(0, 100, low_open=True))
    bias_lr_factor: float = setting(1.0, "the rate of biases, times lr", Range(0, 100))
    bias_schedule: Literal["as weights", "constant"] = setting(
        "as weights", "whether the rate of biases falls with lr, or stays as it was at the start"
    )
    momentum: float = setting(0.9, "share of the velocity kept in a step", Range(0, 1, high_open=True))
    decay: float = setting(0.0005, "weight decay; times lr x weight in a step", Range(0, 100))
    decay_biases: bool = setting(True, "whether biases decay too")
    max_filter_rms: float = setting(
        0.0,
        "after each step a filter of a convolution whose root mean square exceeds this is set back to it (ZFNet: 0.1); "
        "0: never",
        Range(0, 1000),
    )
    average: float = setting(
        0.0,
        "share of the weights' average that is kept in a step; the average is the net that is tested, and kept as the "
        "best; 0: the weights themselves",
        Range(0, 1, high_open=True),
    )
    layer_decay: Mapping[str, float] = table("decay of the layers that are named, in place of `decay`", Range(0, 100))
    layer_lr: Mapping[str, float] = table(
        "factor of the rate of the layers that are named, by name or pattern, from an epoch on where @ says one: "
        '"fc8" = 10, "conv*" = 0 (they stay as they are), "conv1@68" = 0.1',
        Range(0, 1000),
    )
    schedule: Literal["plateau", "steps", "cosine"] = setting(
        "plateau",
        "lr drops when the validation error stops improving, or at given epochs, or falls to 0 over the epochs as a "
        "cosine does",
    )
    warm_up: int = setting(0, "epochs at the start in which the rate rises in equal steps", Range(0, 100000))
    patience: int = setting(
        5, "plateau: epochs in a row without a better validation error, then lr drops", Range(1, 100000)
    )
    lr_drops: int = setting(3, "plateau: the most drops; the next plateau after them ends training", Range(0, 20))
    lr_divisor: float = setting(10.0, "lr is divided by this at a drop", Range(1, 1000000, low_open=True))
    lr_steps: tuple[int, ...] = setting(
        (), "steps: each epoch (the first is 1) that begins at a lower rate, rising", Range(2, 100000)
    )
    validation: float = setting(
        0.0, "share of train held out for validation when the store has no val split", Range(0, 1, high_open=True)
    )
    fold_epoch: int = setting(
        0,
        "epoch (the first is 1) from which the pictures held out for validation are trained on too; 0: never",
        Range(0, 100000),
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "arithmetic of the net; auto is bf16 where the device does it well"
    )
    sent_gradients: Literal["fp32", "bf16"] = setting(
        "fp32", "several processes: what the gradients are averaged in; bf16 is half the bytes, and less exact"
    )
    sync_batch_norm: bool = setting(
        False, "several processes: batch norm sees the whole batch's mean and variance, or those of a process's part"
    )
    save_minutes: float = setting(10.0, "minutes between two checkpoints", Range(0, 100000, low_open=True))
    keep_epochs: tuple[int, ...] = setting(
        (), "each epoch after which the net is kept for good (epoch-0005.ckpt), rising", Range(1, 100000)
    )
    seed: int = setting(0, "of everything random", Range(0, MAX_INT))

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        values = checked(Recipe, given, "the recipe", _disagreements)
        for name, value in values.items():
            object.__setattr__(self, name, value)


RANGES: Mapping[str, Range] = MappingProxyType(ranges(Recipe))
TABLES = tuple(each.name for each in fields(Recipe) if each.default_factory is dict)
EPOCH_LISTS = tuple(each.name for each in fields(Recipe) if isinstance(each.default, tuple))


def list_recipes() -> list[str]:
    """The names of the built-in recipes, sorted."""
    folder = files("convnet") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A built-in recipe by its name, or the recipe in a file whose name ends in .toml.

    Raises: UsageError for an unknown name, an unreadable file, broken TOML or wrong fields (all of them at once).
    """
    text = str(name_or_path)
    if text in list_recipes():
        return from_toml((files("convnet") / "recipes" / f"{text}.toml").read_bytes(), f"recipe {text}")
    if not text.endswith(".toml"):
        raise UsageError(f"{unknown('recipe', text, list_recipes())}; a file's name ends in .toml")
    try:
        data = read(text, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{text}: cannot be read: {error.strerror}") from error
    return from_toml(data, text)


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with settings `field=value`; a value is TOML, and a bare word is text.

    >>> changed = with_settings(Recipe(), ["lr=0.02", "init=fan-in", "net_options.columns=1"])
    >>> changed.lr, changed.init, changed.net_options
    (0.02, 'fan-in', {'columns': 1})
    """
    values = to_dict(recipe)
    for given in settings:
        key, equals, text = given.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"setting '{given}' has no '='; write field=value")
        name, dot, option = key.partition(".")
        if dot and name in TABLES:
            if not isinstance(values[name], dict):
                raise UsageError(f"setting '{given}': {name} was set to {shown(values[name])} before")
            values[name][option] = from_text(text)
        else:
            values[key] = from_text(text)
    return from_dict(values, "the settings")


def to_dict(recipe: Recipe) -> Json:
    """The recipe as what JSON holds; `from_dict` gives an equal recipe back."""
    values = asdict(recipe)
    return values | {name: list(values[name]) for name in EPOCH_LISTS}


def from_dict(values: Mapping[str, object], where: str = "the recipe") -> Recipe:
    """The recipe of these fields; those not given have their defaults. `where` is what errors call it.

    Raises: UsageError that lists every wrong field at once.
    """
    return Recipe(**checked(Recipe, values, where, _disagreements))


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text; `from_toml` gives an equal recipe back."""
    values = to_dict(recipe)
    tables = {name: values.pop(name) for name in TABLES}
    lines = [f"{name} = {toml_value(value)}" for name, value in values.items()]
    for name, options in tables.items():
        if options:
            lines += ["", f"[{name}]", *(f"{_key(option)} = {toml_value(value)}" for option, value in options.items())]
    return "\n".join(lines) + "\n"


def from_toml(data: bytes | str, where: str = "the recipe") -> Recipe:
    """The recipe in a TOML text. Raises: UsageError naming `where`, with the line of broken TOML."""
    try:
        values = tomllib.loads(data if isinstance(data, str) else data.decode())
    except (ValueError, RecursionError) as error:  # bad syntax, bad UTF-8, endless digits or brackets
        raise UsageError(f"{where} is not valid TOML: {str(error) or type(error).__name__}") from error
    return from_dict(values, where)


def _disagreements(values: Json) -> list[str]:
    """What is wrong between fields; a field that is missing here takes part in nothing."""

    def given(*names: str) -> bool:
        return all(name in values for name in names)

    wrong = []
    if given("size", "pad", "crop") and values["crop"] > values["size"] + 2 * values["pad"]:
        room = values["size"] + 2 * values["pad"]
        wrong.append(f"crop = {values['crop']}: exceeds size + 2 pad = {room}; make size larger or crop smaller")
    wrong += _scaling(values) if given("size", "crop", "smallest_size", "crop_area", "crop_aspect") else []
    if given("schedule", "lr_steps") and values["lr_steps"] and values["schedule"] != "steps":
        wrong.append(f'lr_steps = {shown(values["lr_steps"])}: needs schedule = "steps"')
    if given("channels", "colour_std") and values["channels"] == "grey" and values["colour_std"] > 0:
        wrong.append(f'colour_std = {values["colour_std"]}: must be 0 for grey pictures; set it, or channels = "rgb"')
    if given("fold_epoch", "schedule") and values["fold_epoch"] and values["schedule"] == "plateau":
        wrong.append(
            f'fold_epoch = {values["fold_epoch"]}: needs schedule = "steps" or "cosine", as nothing is validated then'
        )
    for key in values["layer_decay"] if isinstance(values.get("layer_decay"), dict) else ():
        if "@" in key:
            wrong.append(f"layer_decay: {key}: a decay holds for all epochs; leave out the @")
    any_loss = {"label_smoothing": (0.0,), "balance": ("none", "order")}
    for name, allowed in any_loss.items() if values.get("loss") == "rbf" else ():
        if values.get(name, allowed[0]) not in allowed:
            wrong.append(f'{name} = {shown(values[name])}: needs loss = "softmax"')
    if values.get("scale") == 0:
        wrong.append("scale = 0.0: must not be 0, or every picture is the same")
    return wrong


def _scaling(values: Json) -> list[str]:
    """What disagrees with crops that are scaled."""
    smallest, area = values["smallest_size"], values["crop_area"]
    wrong = []
    if smallest and not values["crop"] <= smallest <= values["size"]:
        return [f"smallest_size = {smallest}: must be crop = {values['crop']} to size = {values['size']}, or 0"]
    if smallest and area < 1:
        wrong.append(f"crop_area = {area}: must be 1 with smallest_size = {smallest}; both say how crops are scaled")
    if values["crop_aspect"] > 1 and area == 1:
        wrong.append(f"crop_aspect = {values['crop_aspect']}: needs crop_area below 1")
    needed = {"random_crop": (True,), "crop_at": ("anywhere",), "mean": ("rgb", "none"), "pad": (0,)}
    for name, allowed in needed.items() if smallest or area < 1 else ():
        if name in values and values[name] not in allowed:
            field = f"smallest_size = {smallest}" if smallest else f"crop_area = {area}"
            wrong.append(f"{field}: needs {name} = {' or '.join(map(shown, allowed))}, not {shown(values[name])}")
    return wrong


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() else toml_value(name)
