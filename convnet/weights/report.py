"""What an import did with every tensor: loaded, missing or unexpected; for a person and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from convnet.io.strict_json import Json


@dataclass(frozen=True)
class Row:
    """A tensor of the file that was loaded: its name and shape there, the tensors of our net that it fills, and how."""

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    done: str


@dataclass
class Report:
    """What was done with a file, tensor by tensor.

    file, net   their names
    writer      whose names the tensors have: caffe, torchvision, timm or convnet
    rows        one for each tensor of the file that was loaded, in the order of the net
    missing     tensors of the net that the file lacks, and what they hold instead
    unexpected  tensors of the file that the net lacks, or that have another shape, with the reason
    notes       what else must be known
    """

    file: str
    net: str
    writer: str
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> Json:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report for a person: the counts, a table of what was loaded, then missing, unexpected and notes."""
        yield f"{self.file} ({self.writer}'s names) -> {self.net}"
        yield f"weights: {len(self.rows)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        cells = [(r.source, "x".join(map(str, r.shape)), ", ".join(r.targets)) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row, texts in zip(self.rows, cells, strict=True):
            yield "  ".join([*(f"{text:<{width}}" for text, width in zip(texts, widths, strict=True)), row.done])
        for title, entries in (("missing", self.missing), ("unexpected", self.unexpected)):
            for name, text in entries.items():
                yield f"{title}: {name}: {text}"
        yield from (f"note: {note}" for note in self.notes)
