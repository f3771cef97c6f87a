"""What was done to a file of weights? A report of every tensor, for a person and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What became of one tensor of the file.

    source   its name in the file
    shape    its shape in the file
    targets  the tensors of our net that it fills
    done     what was done with it
    """

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    done: str


@dataclass
class Report:
    """Everything that was done to a file, tensor by tensor.

    file, net  their names
    writer     whose names the tensors have: caffe, torchvision, timm or convnet
    rows       one for each tensor of the file that was taken, in the order of the net
    missing    tensors of the net that the file lacks, and what they hold instead
    left_over  tensors of the file that the net lacks, or that have another shape, with the reason
    notes      what else must be known
    """

    file: str
    net: str
    writer: str
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {"source": r.source, "shape": list(r.shape), "targets": list(r.targets), "done": r.done} for r in self.rows
        ]
        return {**vars(self), "rows": rows}

    def lines(self) -> Iterator[str]:
        """The report for a person: a table, then what is missing, left over and worth knowing."""
        yield f"{self.file} ({self.writer}'s names) -> {self.net}"
        cells = [(r.source, "x".join(map(str, r.shape)), ", ".join(r.targets), r.done) for r in self.rows]
        widths = [max((len(cell[i]) for cell in cells), default=0) for i in range(3)]
        for cell in cells:
            yield "  ".join([*(f"{text:<{width}}" for text, width in zip(cell, widths, strict=False)), cell[3]])
        for title, entries in (("missing", self.missing), ("left over", self.left_over)):
            for name, text in entries.items():
                yield f"{title}: {name}: {text}"
        yield from (f"note: {note}" for note in self.notes)
