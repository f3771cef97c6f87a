"""Small runs for tests of what is shown of them, with hostile names and many classes; what remembers what is told."""

from pathlib import Path

import numpy as np
from PIL import Image

from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store, header_bytes
from convnet.io.atomic import write_atomic
from convnet.io.signals import Stop
from convnet.progress import Silent
from convnet.recipe import Recipe
from convnet.training.train import train

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    "a\"b'c.png",
    "\x1b[31mred\x1b[0m.png",
    "<img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }}.png",
    "\u202etxt.png",
    "&amp;.png",
    "javascript:alert(1).png",
)


def hostile_run(
    folder: Path, classes: tuple[str, ...], train_pictures: int = 6, val_pictures: int = 8, epochs: int = 2
) -> Path:
    """A run on 32 x 32 noise with these classes, some of whose pictures have names that want to be more than names."""
    generator = np.random.default_rng(0)
    for split, n in {"train": train_pictures, "val": val_pictures}.items():
        for k in range(len(classes)):
            place = folder / "source" / split / f"c{k:04d}"
            place.mkdir(parents=True)
            for i in range(n):
                name = HOSTILE[i] if k < 3 and i < len(HOSTILE) else f"{i}.png"
                pixels = generator.integers(0, 200, (32, 32, 3), np.uint8)
                pixels[..., k % 3] += 50
                Image.fromarray(pixels).save(place / name)
    (folder / "source" / "val" / "c0000" / '"><script>alert(2).png').write_bytes(b"no picture \x1b[2J")
    store = prepare(open_source(folder / "source"), folder / "store", size=32)
    renamed = {**store.header, "classes": list(classes)}
    write_atomic(folder / "store" / "store.json", header_bytes(renamed))
    recipe = Recipe(
        name="noise", net="cifar_relu", size=32, crop=32, mean="rgb", batch=50, epochs=epochs, lr=0.001,
        precision="fp32", schedule="steps",
    )  # fmt: skip
    train(recipe, Store(folder / "store"), folder / "run", command=f"convnet train {SCRIPT}")
    return folder / "run"


class Notes(Silent):
    """Remembers notes and warnings; asks `stop` after some updates."""

    def __init__(self, stop: Stop | None = None, after: int = 0) -> None:
        self.lines: list[str] = []
        self.stop, self.after = stop, after

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def update(self, done: int, **values: str) -> None:
        self.after -= 1
        if self.stop is not None and self.after == 0:
            self.stop.ask(15)
