"""What does a run do? A Recipe holds every choice of it; a TOML file holds a recipe."""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from convnet.errors import UsageError, unknown
from convnet.io.atomic import read
from convnet.io.strict_json import Json

T = TypeVar("T")
Option = bool | int | float | str
MAX_BYTES = 1 << 20  # of a file; the largest of ours has 2 kB
MAX_INT = 2**63 - 1  # the largest integer that every TOML reader takes


class Range(NamedTuple):
    """The numbers from `low` to `high`; `low` and `high` belong to it unless they are open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        above = self.low < value if self.low_open else self.low <= value
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low, high = ("2**63 - 1" if end == MAX_INT else f"{end}" for end in self[:2])
        if not (self.low_open or self.high_open):
            return f"{low} to {high}"
        return f"{'above' if self.low_open else 'from'} {low}, {'below' if self.high_open else 'at most'} {high}"


EPOCH_LISTS = ("lr_steps", "keep_epochs")


def setting(default: T, text: str, allowed: Range | None = None) -> T:
    """A field of `Recipe`: its default, unit and meaning, and of numbers the range."""
    return field(default=default, metadata={"text": text, "range": allowed})


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. The defaults are the paper's AlexNet (Krizhevsky, Sutskever and Hinton 2012).

    Raises: UsageError that lists every wrong field at once; no Recipe exists that breaks a rule.
    """

    name: str = setting("alexnet", "what the run is called")
    net: str = setting("alexnet", "the net, by its name in convnet.nets")
    net_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"text": "options of that net: names = values, in TOML a table", "range": None}
    )
    init: Literal["paper", "fan-in", "glorot", "he"] = setting(
        "paper",
        "initial weights: the paper's, or by the number of inputs, or of inputs and outputs; each net knows its own",
    )
    size: int = setting(256, "pixels: side of the stored square, for which a source is prepared", Range(1, 4096))
    pad: int = setting(0, "black pixels added on every side of the stored picture", Range(0, 1024))
    crop: int = setting(224, "pixels: side of the net's input; at most size + 2 pad", Range(1, 4096))
    channels: Literal["rgb", "grey"] = setting("rgb", "what the net sees")
    mean: Literal["picture", "rgb", "none"] = setting(
        "picture", "subtracted first: the store's mean picture, its mean colour, or nothing"
    )
    scale: float = setting(1.0, "not 0; then multiplied by this (1 keeps grey levels 0 to 255)", Range(-1000, 1000))
    offset: float = setting(0.0, "then this is added", Range(-1000, 1000))
    random_crop: bool = setting(True, "training crops at random places, or the centre")
    far_edge: bool = setting(
        False,
        "random crops may reach the far edges: 33 offsets of 224 in 256, as in the released nets; the AlexNet paper "
        "counts 32 (2048 = 32 x 32 x 2)",
    )
    mirror: bool = setting(True, "half of the training pictures are mirrored")
    colour_std: float = setting(0.1, "standard deviation of the colour shift's factors; 0 is no shift", Range(0, 10))
    colour_by: Literal["eigenvalue", "std"] = setting(
        "eigenvalue",
        "the shift is factor x eigenvalue of the covariance of pixels on the scale 0 to 1 (the paper's text; on 0 to "
        "255 it would be about 1,500 grey levels), or factor x standard deviation, the root (the released net)",
    )
    loss: Literal["softmax", "rbf"] = setting(
        "softmax", "cross-entropy, or the distance to the right class's code (LeNet-5)"
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
    schedule: Literal["plateau", "steps"] = setting(
        "plateau", "lr drops when the validation error stops improving, or at given epochs"
    )
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
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "arithmetic of the net; auto is bf16 where the device does it well"
    )
    save_minutes: float = setting(10.0, "minutes between two checkpoints", Range(0, 100000, low_open=True))
    keep_epochs: tuple[int, ...] = setting(
        (), "each epoch after which the net is kept for good (epoch-0005.ckpt), rising", Range(1, 100000)
    )
    seed: int = setting(0, "of everything random", Range(0, MAX_INT))

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        values = _checked(given, "the recipe")
        for name, value in values.items():
            object.__setattr__(self, name, value)


RANGES: Mapping[str, Range] = MappingProxyType(
    {each.name: each.metadata["range"] for each in fields(Recipe) if each.metadata["range"]}
)


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
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"setting '{setting}' has no '='; write field=value")
        table, dot, option = key.partition(".")
        if dot and table == "net_options":
            if not isinstance(values["net_options"], dict):
                raise UsageError(f"setting '{setting}': net_options was set to {_shown(values['net_options'])} before")
            values["net_options"][option] = _setting_value(text)
        else:
            values[key] = _setting_value(text)
    return from_dict(values, "the settings")


def to_dict(recipe: Recipe) -> Json:
    """The recipe as what JSON holds; `from_dict` gives an equal recipe back."""
    values = asdict(recipe)
    return values | {name: list(values[name]) for name in EPOCH_LISTS}


def from_dict(values: Mapping[str, object], where: str = "the recipe") -> Recipe:
    """The recipe of these fields; those not given have their defaults. `where` is what errors call it.

    Raises: UsageError that lists every wrong field at once.
    """
    return Recipe(**_checked(values, where))


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text; `from_toml` gives an equal recipe back."""
    values = to_dict(recipe)
    options = values.pop("net_options")
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    if options:
        lines += ["", "[net_options]", *(f"{name} = {_toml(value)}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def from_toml(data: bytes | str, where: str = "the recipe") -> Recipe:
    """The recipe in a TOML text. Raises: UsageError naming `where`, with the line of broken TOML."""
    try:
        values = tomllib.loads(data if isinstance(data, str) else data.decode())
    except (ValueError, RecursionError) as error:  # bad syntax, bad UTF-8, endless digits or brackets
        raise UsageError(f"{where} is not valid TOML: {str(error) or type(error).__name__}") from error
    return from_dict(values, where)


def _checked(given: Mapping[str, object], where: str) -> Json:
    """The fields in their exact types, or a UsageError with every wrong one."""
    hints = get_type_hints(Recipe)
    values: Json = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name not in hints:
            wrong.append(_unknown("field", name, hints))
            continue
        try:
            values[name] = _field(name, value, hints[name])
        except ValueError as error:
            wrong.append(f"{name} = {_shown(value)}: {error}")
    # Two fields can only disagree where both are right by themselves, so a wrong one silences its pairs.
    absent = {each.name: each.default for each in fields(Recipe) if each.name not in given}
    wrong += _disagreements({**absent, **values})
    if wrong:
        count = "1 error" if len(wrong) == 1 else f"{len(wrong)} errors"
        raise UsageError("\n  ".join([f"{where} has {count}:", *wrong]))
    return values


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line with the nearest name; all the known ones only where none is near."""
    text = unknown(kind, name if name.isprintable() else ascii(name), known)
    return text.partition(" Known:")[0] if "did you mean" in text else text


def _field(name: str, value: object, kind: object) -> object:
    """One value in the exact type of its field. Raises: ValueError with the rule it breaks."""
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind))
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if kind is str:
        return _identifier(value)
    if name == "net_options":
        return _options(value)
    if name in EPOCH_LISTS:
        return _epochs(value, RANGES[name])
    return _number(value, kind, RANGES[name])


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be one of: {', '.join(choices)}")
    if value not in choices:
        raise ValueError(_unknown("choice", value, choices))
    return value


def _identifier(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("must be text of 1 to 64 letters, digits, _ . or -, beginning with a letter or digit")
    return value


def _number(value: object, kind: object, allowed: Range) -> int | float:
    rule = f"must be {'an integer' if kind is int else 'a number'}, {allowed}"
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and isinstance(value, float)):
        raise ValueError(rule)
    if value not in allowed:  # NaN is in no range
        raise ValueError(rule)
    return value if kind is int else float(value)


def _epochs(value: object, allowed: Range) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of epochs, each {allowed}, rising")
    epochs = tuple(int(_number(epoch, int, allowed)) for epoch in value)
    if any(a >= b for a, b in pairwise(epochs)):
        raise ValueError("each epoch must be later than the one before it")
    return epochs


def _options(value: object) -> dict[str, Option]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of names and values")
    for name, option in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(f"option {name!r}: a name is 1 to 64 letters, digits or _, no digit first")
        if not isinstance(option, bool | int | float | str):
            raise ValueError(f"option {name}: must be true, false, a number or text")
        if isinstance(option, float) and not math.isfinite(option):
            raise ValueError(f"option {name}: must be finite")
        if isinstance(option, int) and abs(option) > MAX_INT:
            raise ValueError(f"option {name}: must fit 64 bits")
        if isinstance(option, str) and not option.isprintable():
            raise ValueError(f"option {name}: must be printable text")
    return dict(value)


def _disagreements(values: Json) -> list[str]:
    """What is wrong between fields; a field that is missing here takes part in nothing."""

    def given(*names: str) -> bool:
        return all(name in values for name in names)

    wrong = []
    if given("size", "pad", "crop") and values["crop"] > values["size"] + 2 * values["pad"]:
        room = values["size"] + 2 * values["pad"]
        wrong.append(f"crop = {values['crop']}: exceeds size + 2 pad = {room}; make size larger or crop smaller")
    if given("schedule", "lr_steps") and values["lr_steps"] and values["schedule"] != "steps":
        wrong.append(f'lr_steps = {_shown(values["lr_steps"])}: needs schedule = "steps"')
    if given("channels", "colour_std") and values["channels"] == "grey" and values["colour_std"] > 0:
        wrong.append(f'colour_std = {values["colour_std"]}: must be 0 for grey pictures; set it, or channels = "rgb"')
    if values.get("scale") == 0:
        wrong.append("scale = 0.0: must not be 0, or every picture is the same")
    return wrong


def _shown(value: object) -> str:
    """A wrong value as it stands in an error: short, on one line, as TOML writes it where TOML can."""
    if isinstance(value, bool | str):
        text = json.dumps(value)
    else:
        try:
            text = repr(list(value) if isinstance(value, tuple) else value)
        except (ValueError, RecursionError):  # integers of thousands of digits, thousands of brackets
            text = f"{type(value).__name__} too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _setting_value(text: str) -> object:
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return values["value"] if list(values) == ["value"] else text.strip()


def _toml(value: object) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)  # TOML's own escapes, as long as the text is printable
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)
