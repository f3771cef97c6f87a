"""What does a JSON text from a stranger say? One object, or the reason why it isn't one."""

import json
import math
from typing import Any


def parse(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON text. Raises: ValueError for bad syntax, a name given twice, NaN, infinity, deep nesting.

    >>> parse('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        content = json.loads(data, object_pairs_hook=_object, parse_float=_float, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is given twice")
    return content


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _refused(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a finite number")
