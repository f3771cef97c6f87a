import math

import pytest
import safetensors.torch
import torch

from convnet.errors import DataError
from convnet.io import safetensors as tensors
from convnet.io import strict_json


def bytes_of(named):
    return b"".join(bytes(piece) for piece in tensors.pieces(named))


def read(data):
    return tensors.parse(torch.frombuffer(bytearray(data), dtype=torch.uint8))


NAMED = {
    "b": torch.randn(3, 4),
    "a": torch.randn(2).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "n": torch.tensor(7),
    "none": torch.empty(0, 3),
    "ü": torch.randn(3, 2).t(),
}


def test_the_safetensors_library_reads_what_we_write():
    theirs = safetensors.torch.load(bytes_of(NAMED))
    assert theirs.keys() == NAMED.keys()
    assert all(torch.equal(theirs[name], NAMED[name]) for name in NAMED)


def test_we_read_what_the_safetensors_library_writes():
    named = {name: tensor.contiguous() for name, tensor in NAMED.items()}
    ours = read(safetensors.torch.save(named, metadata={"format": "pt"}))
    assert ours.keys() == NAMED.keys()
    assert all(torch.equal(ours[name], NAMED[name]) for name in NAMED)


def test_metadata_are_texts(tmp_path):
    told = {"net": "lenet5", "classes": '["é", "\\"b\\""]'}
    data = b"".join(bytes(piece) for piece in tensors.pieces(NAMED, told))
    (tmp_path / "a.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == told
    named, found = tensors.parse_all(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    assert (named.keys(), found) == (NAMED.keys(), told)
    for text in (b'{"__metadata__": {"a": 1}}', b'{"__metadata__": ["a"]}'):
        with pytest.raises(DataError, match="the metadata of the tensors are no texts"):
            read(len(text).to_bytes(8, "little") + text)


def test_reading_copies_nothing_that_lies_where_it_should():
    data = torch.frombuffer(bytearray(bytes_of(NAMED)), dtype=torch.uint8)
    for tensor in tensors.parse(data).values():
        assert tensor.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()


def test_tensors_at_odd_places_are_read_too():
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    data = len(text).to_bytes(8, "little") + text + b"\7" + b"\0\0\x80\x3f"
    assert {name: tensor.tolist() for name, tensor in read(data).items()} == {"a": [7], "b": [1.0]}
    with pytest.raises(DataError, match="1 bytes after the tensors belong to none"):
        read(data + b"\0")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "a name is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "a name is given twice"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": [-Infinity]}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ("[1]", "not an object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "9" * 10_000 + "}", "digits"),
        ("{", "Expecting"),
        (b"\xff", "utf-8"),
        ("", "Expecting"),
    ],
    ids=lambda value: None if len(value) > 40 else str(value),
)
def test_strict_json_refuses(text, reason):
    with pytest.raises(ValueError, match=reason):
        strict_json.parse(text)


def test_strict_json_reads_numbers_exactly():
    numbers = [0.1 + 0.2, 5e-324, 2**63 - 1, -0.0, math.pi]
    assert strict_json.parse(f'{{"a": {numbers}}}') == {"a": numbers}
