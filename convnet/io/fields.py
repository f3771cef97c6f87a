"""Dataclasses that hold settings: each field's type, range and meaning, one error for all that is wrong, TOML."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from convnet.errors import UsageError, unknown
from convnet.io.strict_json import Json

T = TypeVar("T")
Option = bool | int | float | str
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


def setting(default: T, text: str, allowed: Range | None = None) -> T:
    """A field: its default, unit and meaning, and of numbers the range."""
    return field(default=default, metadata={"text": text, "range": allowed})


def table(text: str, allowed: Range | None = None) -> Any:
    """A field that holds names and values, empty at first; `allowed`: of values that are numbers."""
    return field(default_factory=dict, metadata={"text": text, "range": allowed})


def ranges(kind: type) -> dict[str, Range]:
    """The ranges of the fields that have one."""
    return {each.name: each.metadata["range"] for each in fields(kind) if each.metadata["range"]}


def checked(
    kind: type, given: Mapping[str, object], where: str, disagreements: Callable[[Json], list[str]] = lambda values: []
) -> Json:
    """The given fields of `kind` in their exact types, or a UsageError with every wrong one.

    disagreements: what is wrong between fields, of those that are right by themselves.
    """
    hints, allowed = get_type_hints(kind), ranges(kind)
    values: Json = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name not in hints:
            wrong.append(_unknown("field", name, hints))
            continue
        try:
            values[name] = _field(value, hints[name], allowed.get(name))
        except ValueError as error:
            wrong.append(f"{name} = {shown(value)}: {error}")
    # Two fields can only disagree where both are right by themselves, so a wrong one silences its pairs.
    absent = {each.name: each.default for each in fields(kind) if each.name not in given}  # of tables MISSING
    wrong += disagreements({**absent, **values})
    if wrong:
        count = "1 error" if len(wrong) == 1 else f"{len(wrong)} errors"
        raise UsageError("\n  ".join([f"{where} has {count}:", *wrong]))
    return values


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line with the nearest name; all the known ones only where none is near."""
    text = unknown(kind, name if name.isprintable() else ascii(name), known)
    return text.partition(" Known:")[0] if "did you mean" in text else text


def _field(value: object, kind: object, allowed: Range | None) -> object:
    """One value in the exact type of its field. Raises: ValueError with the rule it breaks."""
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind))
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if kind is str:
        return _identifier(value)
    if get_origin(kind) is get_origin(Mapping[str, Any]):
        return _options(value) if allowed is None else _layers(value, allowed)
    assert allowed is not None
    if get_origin(kind) is tuple:
        return _epochs(value, allowed)
    return _number(value, kind, allowed)


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


def _layers(value: object, allowed: Range) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of layers and numbers")
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.*?\[\]-]{1,64}(@[1-9][0-9]{0,5})?", name):
            raise ValueError(
                f"{shown(name)}: a layer is a name or a pattern (conv*), then @ and an epoch where it has one"
            )
    return {name: float(_number(number, float, allowed)) for name, number in value.items()}


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


def shown(value: object) -> str:
    """A wrong value as it stands in an error: short, on one line, as TOML writes it where TOML can."""
    if isinstance(value, bool | str):
        text = json.dumps(value)
    else:
        try:
            text = repr(list(value) if isinstance(value, tuple) else value)
        except (ValueError, RecursionError):  # integers of thousands of digits, thousands of brackets
            text = f"{type(value).__name__} too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def from_text(text: str) -> object:
    """A value as somebody types it: TOML, and a bare word is text."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return values["value"] if list(values) == ["value"] else text.strip()


def to_toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)  # TOML's own escapes, as long as the text is printable
    if isinstance(value, list):
        return f"[{', '.join(to_toml(item) for item in value)}]"
    return repr(value)
