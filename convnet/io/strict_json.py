"""Strict JSON: no duplicate names, NaN or deep nesting in a stranger's; a sha256 in ours."""

import hashlib
import json
import math
from typing import Any

Json = dict[str, Any]  # an object of JSON; whoever reads a field checks what it is


def parse(data: bytes | str) -> Json:
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


def seal(content: Json) -> bytes:
    """An object as indented JSON whose last name is `sha256`: of the same text with an empty one.

    >>> unseal(seal({"epochs": 3}))
    {'epochs': 3}
    """
    digest = hashlib.sha256(_sealed(content, "")).hexdigest()
    return _sealed(content, digest)


def unseal(data: bytes) -> Json:
    """The object that `seal` wrote, without its digest; one without a digest, of an earlier version, as it is.

    Raises: ValueError for what is no JSON, and where the digest doesn't match.
    """
    content = parse(data)
    name, last = next(reversed(content.items()), ("", None))
    if name != "sha256" and len(name) == 6 and isinstance(last, str) and len(last) == 64:
        raise ValueError(f"damaged: its last name is {name!r}, not 'sha256'")
    digest = content.pop("sha256", None)
    if digest is not None and data != _sealed(content, str(digest)):
        raise ValueError("damaged: it is not as it was written")
    if digest is not None and digest != hashlib.sha256(_sealed(content, "")).hexdigest():
        raise ValueError("damaged: its sha256 does not match")
    return content


def _sealed(content: Json, digest: str) -> bytes:
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is given twice")
    return content


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _refused(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a finite number")
