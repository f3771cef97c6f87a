"""Augmentation in one pass, and its plain form, against the one that trains (store.crop_square, augment.to_input)."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.data.augment import Augmentation, to_input
from convnet.data.preprocess import Preprocessing
from convnet.data.store import crop_square
from convnet.kernels import planes
from convnet.kernels.cuda import augment as augmentation
from convnet.kernels.cuda.augment import augment, plain_augment
from kernel_place import PLACE, needs_kernels

FORMS = [plain_augment, pytest.param(augment, marks=needs_kernels)]
CPU = torch.device("cpu")


def case(n: int, size: int, pad: int, crop: int, mean: str, seed: int) -> tuple[Any, ...]:
    """Pictures, which of them, what is done to them, and how that is written down."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 256, (3, size, size, 3), np.uint8)
    rows = generator.integers(0, 3, n)
    tops, lefts = generator.integers(-pad, size + pad - crop + 1, (2, n))
    colour = generator.normal(0, 20, (n, 3)).astype(np.float32)
    how = Augmentation(tops, lefts, generator.random(n) < 0.5, colour)
    shape = {"none": None, "colour": (3,), "picture": (size, size, 3)}[mean]
    values = None if shape is None else generator.uniform(80, 150, shape).astype(np.float32)
    scale, offset = (1.0, 0.0) if seed % 2 else (1 / 127.5, -0.1)
    return pictures, rows, how, Preprocessing(size, pad, crop, "rgb", values, scale, offset)


def arguments(
    pictures: Any, rows: Any, how: Augmentation, preprocessing: Preprocessing
) -> tuple[list[Any], dict[str, Any]]:
    corners = np.stack([how.tops, how.lefts], 1)
    arrays = (pictures, rows, corners, how.mirrored, how.colour, preprocessing.mean)
    tensors = [None if each is None else torch.from_numpy(each).to(PLACE) for each in arrays]
    named = {name: getattr(preprocessing, name) for name in ("crop", "scale", "offset")}
    return tensors, named


def expected(pictures: Any, rows: Any, how: Augmentation, preprocessing: Preprocessing) -> Tensor:
    places = zip(rows, how.tops, how.lefts, strict=True)
    crops = np.stack([crop_square(pictures[i], top, left, preprocessing.crop) for i, top, left in places])
    return to_input(crops, how, preprocessing, CPU)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 4),
    crop=st.integers(1, 9),
    room=st.integers(0, 5),
    pad=st.integers(0, 3),
    mean=st.sampled_from(["none", "colour", "picture"]),
    seed=st.integers(0, 99),
)
@example(n=3, crop=20, room=3, pad=2, mean="picture", seed=0)  # more than one program a picture
def test_it_is_the_augmentation_that_trains(form, n: int, crop: int, room: int, pad: int, mean: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    how = (
        case(n, max(crop + room - 2 * pad, 1), pad, crop, mean, seed)
        if room + crop > 2 * pad
        else case(n, crop, 0, crop, mean, seed)
    )
    tensors, named = arguments(*how)
    found = form(*tensors, **named)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), expected(*how), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", ["none", "colour", "picture"])
def test_packed_pictures_are_unpacked_on_the_way(form, mean: str) -> None:  # type: ignore[no-untyped-def]
    """To the bit: crops that reach over the edges, too, and places in odd and even rows."""
    pictures, *how = case(6, 12, 2, 13, mean, 3)
    packed = planes.pack(torch.from_numpy(pictures))
    tensors, named = arguments(pictures, *how)
    found = form(packed.to(PLACE), *tensors[1:], **named)
    plain = plain_augment(planes.unpack(packed).to(PLACE), *tensors[1:], **named)
    assert torch.equal(found, plain)
    assert float((found - plain_augment(*tensors, **named)).abs().max()) > 1  # noise loses its colours


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_at_the_end(form, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    tensors, named = arguments(*case(2, 8, 0, 6, "colour", 1))
    found = form(*tensors, **named, dtype=dtype)
    exact = plain_augment(*tensors, **named)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_no_pictures(form) -> None:  # type: ignore[no-untyped-def]
    tensors, named = arguments(*case(2, 8, 0, 6, "none", 1))
    tensors[1:5] = [each[:0] for each in tensors[1:5]]
    assert form(*tensors, **named).shape == (0, 3, 6, 6)


def test_what_is_available() -> None:
    pictures = torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device=PLACE)
    assert not augmentation.available(pictures.float(), PLACE)
    assert not augmentation.available(pictures.transpose(1, 2)[:, :1], torch.device("meta"))
