"""A worker's pictures -> their records in a shard, and what is counted of them.

The records of a raw store are as long as one another, so a worker's lie side by side in one array: a picture is resized
into its place there, and the array serves again once it is written.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data import store
from convnet.data.decode import BadPicture, open_picture
from convnet.data.index import BLOCK, Row
from convnet.data.preparation.unfinished import Job, Part
from convnet.data.resize import SUFFIX, Settings, centre_square, to_frame, to_square
from convnet.data.sources import Entry, Source
from convnet.data.statistics import Sums
from convnet.io import npy

QUALITY = 95  # of JPEG members
CHUNK = 16  # pictures that a worker takes at a time
CHUNK_BYTES = 1 << 26  # ... but no more than about this much
Bytes = NDArray[np.uint8]


@dataclass
class Chunk:
    """Some pictures' records, and the rest, whose rows have no offset in the shard yet. room: to be used again."""

    part: Part
    records: list[Bytes] = field(default_factory=list)
    room: Bytes | None = None


def n_at_once(settings: Settings) -> int:
    """How many pictures a worker takes at a time."""
    return max(1, min(CHUNK, CHUNK_BYTES // (3 * settings.size**2)))


def make_chunk(
    source: Source, settings: Settings, job: Job, first: int, entries: Sequence[Entry], rooms: list[Bytes]
) -> Chunk:
    """The chunk of these entries, the first of which stands at `first` in the split. rooms: of chunks that are
    written, from which one is taken."""
    made = Chunk(Part(Sums.small(settings.size)))
    if settings.encoding == "raw":
        try:
            made.room = rooms.pop()
        except IndexError:
            made.room = _new_room(settings)
    for position, entry in enumerate(entries, first):
        try:
            with open_picture(source.read(entry), settings.max_pixels) as (picture, notes):
                sides = picture.shape[:2]
                if made.room is None:
                    pixels = to_frame(picture, settings)
                else:
                    pixels = _square_in(made.room[len(made.records)], settings)
                    to_square(picture, settings, pixels)
        except BadPicture as error:
            made.part.left_out.append({"status": "failed", "key": entry.key, "reason": str(error)})
            continue
        made.part.left_out += [{"status": "note", "key": entry.key, "reason": note} for note in notes]
        made.part.enlarged += (max if settings.fit == "pad" else min)(sides) < settings.shorter_side
        _add(made, pixels, job, position, entry, settings)
    return made


def _add(made: Chunk, pixels: Bytes, job: Job, position: int, entry: Entry, settings: Settings) -> None:
    """Appends the record of these pixels, which in a raw store stand in it already."""
    height, width, _ = pixels.shape
    if made.room is None:
        payload = _jpeg_bytes(pixels)
        n_bytes, record = len(payload), store.record(position, entry.label, SUFFIX[settings.encoding], payload)
        member = np.frombuffer(record, np.uint8)
    else:
        n_bytes, member = npy.HEADER_BYTES + pixels.size, made.room[len(made.records)]
        before, after = store.around(position, entry.label, SUFFIX[settings.encoding], n_bytes)
        view = memoryview(member)
        view[:BLOCK], view[len(view) - len(after) :] = before, after
    sums = store.weighted_sum(member), hashlib.sha256(member.data).hexdigest()
    made.part.rows.append(Row(job.number, 0, len(member), n_bytes, entry.label, height, width, *sums))
    made.part.keys.append(entry.key)
    made.records.append(member)
    if job.split == "train":
        made.part.sums.count(centre_square(pixels, settings.size))


def _new_room(settings: Settings) -> Bytes:
    """For the records of a chunk of a raw store, which have one length: whole blocks of payload, two headers and the
    label. What is the same in all is there."""
    header = npy.header((settings.size, settings.size, 3), np.dtype(np.uint8))
    n_blocks = -(-(len(header) + 3 * settings.size**2) // BLOCK) + 3
    room = np.zeros((n_at_once(settings), n_blocks * BLOCK), np.uint8)
    room[:, BLOCK : BLOCK + len(header)] = np.frombuffer(header, np.uint8)
    return room


def _square_in(member: Bytes, settings: Settings) -> Bytes:
    first = BLOCK + npy.HEADER_BYTES
    return member[first : first + 3 * settings.size**2].reshape(settings.size, settings.size, 3)


def _jpeg_bytes(pixels: Bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
