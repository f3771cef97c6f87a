"""What does the table of a MATLAB file hold? Struct arrays of a MAT-file of version 5, as the devkits' meta.mat is one.

An element is a type and a length (4 bytes each; both in 4 bytes where 4 bytes of data or fewer follow in the same 8),
then its data, up to a multiple of 8. A matrix is an element of elements: flags, dimensions, name, then numbers,
characters, or for a struct the length of a field's name, the names, and a matrix for each field of each element. A
compressed element is another one, by zlib. Other kinds are passed over. Format: MATLAB's "MAT-File Format", chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 1 << 23  # bytes of all elements, unpacked; ILSVRC's tables have about 1.2 MB
MOST = 1 << 15  # fields of all rows of all tables; ILSVRC's have about 15,000
HEADER = 128  # bytes of a file's header
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}  # types of data, by struct
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
STRUCT, CHARS, FIRST_NUMERIC, LAST_NUMERIC = 2, 4, 6, 15  # classes of a matrix

Value = float | str | None  # a scalar, a row of characters, or something else


@dataclass(frozen=True, slots=True)
class _Element:
    kind: int
    data: memoryview


def read_tables(data: bytes) -> dict[str, list[dict[str, Value]]]:
    """{name: rows} of the struct arrays of a MAT-file; a row is {field: value}.

    Raises: ValueError when the file is damaged, of another version, or larger than LARGEST unpacked.
    """
    if len(data) < HEADER or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("no MAT-file of version 5")
    order = "<" if data[126:128] == b"IM" else ">"
    tables, room, most = {}, LARGEST, MOST
    for element in _elements(memoryview(data)[HEADER:], order):
        if element.kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                plain = unpacker.decompress(element.data, room + 1)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            if not unpacker.eof or len(plain) > room:
                raise ValueError(f"compressed elements that are cut short or larger than {LARGEST:,} bytes")
            element = _next(_elements(memoryview(plain), order))
        room -= len(element.data)
        if room < 0:
            raise ValueError(f"more than {LARGEST:,} bytes")
        if element.kind == MATRIX and (table := _table(element.data, order, most)) is not None:
            tables[table[0]] = table[1]
            most -= sum(map(len, table[1]))
    return tables


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("cut short")
        (kind,) = struct.unpack_from(order + "I", data, place)
        if kind >> 16:
            start, length, kind = place + 4, kind >> 16, kind & 0xFFFF
            following = place + 8
        else:
            (length,) = struct.unpack_from(order + "I", data, place + 4)
            start = place + 8
            following = start + (length if kind == COMPRESSED else -(-length // 8) * 8)
        if (start == place + 4 and length > 4) or start + length > len(data):
            raise ValueError(f"an element of {length:,} bytes where fewer are left")
        yield _Element(kind, data[start : start + length])
        place = following


def _table(data: memoryview, order: str, most: int) -> tuple[str, list[dict[str, Value]]] | None:
    """Name and rows of a matrix, if it is a struct array; it may have `most` fields in all."""
    kind, shape, name, parts = _matrix(data, order)
    if kind != STRUCT:
        return None
    (width,) = _numbers(_next(parts), order)
    names = bytes(_next(parts).data)
    if not 0 < width <= 64 or len(names) % int(width):
        raise ValueError("a struct without names of fields")
    fields = [_ascii(names[at : at + int(width)]) for at in range(0, len(names), int(width))]
    rows, n_rows = list[dict[str, Value]](), math.prod(shape)
    if not fields or n_rows * len(fields) > min(most, len(data) // 8):
        raise ValueError(f"a struct array of {n_rows:,} rows where fewer fit")
    for _ in range(n_rows):
        rows.append({field: _value(_next(parts), order) for field in fields})
    return name, rows


def _matrix(data: memoryview, order: str) -> tuple[int, list[int], str, Iterator[_Element]]:
    """Class, shape and name of a matrix, and the elements that follow."""
    parts = _elements(data, order)
    flags, shape, name = _next(parts), _next(parts), _next(parts)
    if flags.kind != UINT32 or len(flags.data) != 8 or shape.kind != INT32 or name.kind != INT8:
        raise ValueError("no matrix")
    lengths = [int(length) for length in _numbers(shape, order)]
    if not 1 < len(lengths) < 9 or min(lengths) < 0:
        raise ValueError("a matrix without a shape")
    return int(_numbers(flags, order)[0]) & 0xFF, lengths, _ascii(bytes(name.data)), parts


def _value(element: _Element, order: str) -> Value:
    """A scalar as a number, characters as text; anything else isn't looked at."""
    if element.kind != MATRIX:
        raise ValueError("a field that is no matrix")
    if not element.data:
        return None
    kind, shape, _, parts = _matrix(element.data, order)
    n = math.prod(shape)
    if kind == CHARS:
        text = _next(parts, none=n == 0)
        if text.kind not in TEXTS:
            raise ValueError("characters of no known kind")
        encoding = TEXTS[text.kind] + ({"<": "-le", ">": "-be"}[order] if text.kind in (4, 17, 18) else "")
        return bytes(text.data).decode(encoding) if shape[0] <= 1 else None
    if FIRST_NUMERIC <= kind <= LAST_NUMERIC and n == 1:
        (number,) = _numbers(_next(parts), order)
        return float(number)
    return None


def _next(parts: Iterator[_Element], none: bool = False) -> _Element:
    """The next element. Raises: ValueError when there is none and `none` is False; else it is an empty text."""
    element = next(parts, _Element(16, memoryview(b"")) if none else None)
    if element is None:
        raise ValueError("cut short")
    return element


def _numbers(element: _Element, order: str) -> tuple[float, ...]:
    code = NUMBERS.get(element.kind)
    if code is None or not element.data or len(element.data) % struct.calcsize(order + code):
        raise ValueError("numbers of no known kind")
    return struct.unpack(f"{order}{len(element.data) // struct.calcsize(order + code)}{code}", element.data)


def _ascii(data: bytes) -> str:
    return data.split(b"\0")[0].decode("ascii")
