"""What does a JSON text from a stranger say? Or why is it none?"""

import json
import math
from typing import Any


def parse(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON text. Raises: ValueError for bad syntax, a name given twice, NaN, infinity, deep nesting.

    >>> parse('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    content = value(data)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def value(data: bytes | str) -> Any:
    """What a JSON text says, object or not, under the same rules. Raises: ValueError."""
    try:
        return json.loads(data, object_pairs_hook=_object, parse_float=_float, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
