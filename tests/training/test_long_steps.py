"""SIGTERM in the middle of the long steps of large nets on the CPU: the run ends soon, saved, and can go on."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from PIL import Image

from convnet import checkpoint
from convnet.data.prepare import prepare
from convnet.data.store import Store
from convnet.io.signals import PATIENCE

SIDE, CLASSES, BATCH = 256, 2, 128
BOUND = 10  # seconds, of a machine that does nothing else; a large net's 0.5 to 1.1 GB are saved in them
BUSY = 6  # times as long as may pass on a machine that does
CHILD = """
import sys
from convnet.cli import app as cli
from convnet.training import step
inside = step.EagerSteps._pass
def told(self, images, labels, number, first, n, states):
    if number == 1 and first >= n // 3 - len(images):
        print("in a step", flush=True)
    return inside(self, images, labels, number, first, n, states)
step.EagerSteps._pass = told
sys.argv = ["convnet", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def random_pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("long_steps")
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    for k in range(CLASSES):
        (folder / "in" / "train" / f"c{k}").mkdir(parents=True)
        for i in range(3 * BATCH // CLASSES):
            shutil.copy(folder / "a.png", folder / "in" / "train" / f"c{k}" / f"{i}.png")
    return prepare(folder / "in", folder / "store", size=SIDE)


@pytest.mark.large
@pytest.mark.parametrize(("net", "batch"), [("alexnet", None), ("alexnet", 16), ("vgg_a", None), ("vgg_a", 8)])
def test_sigterm_ends_the_step_of_a_large_net(
    net: str, batch: int | None, random_pictures: Store, tmp_path: Path
) -> None:
    settings = [f"--set={text}" for text in ("epochs=1", f"batch={BATCH}", "validation=0", "schedule=steps")]
    more = ["--batch", str(batch)] if batch else []
    command = [sys.executable, "-c", CHILD, "train", str(random_pictures.path), "--recipe", net, *settings, *more]
    with subprocess.Popen([*command, "--out", str(tmp_path / "run"), "-q"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:  # fmt: skip
        assert child.stdout is not None
        line = child.stdout.readline()
        began = monotonic()
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=600)
    seconds = monotonic() - began
    assert (line, child.returncode) == ("in a step\n", 130), said
    size = (tmp_path / "run" / "last.ckpt").stat().st_size
    print(f"{net}, {f'{batch} of ' if batch else ''}{BATCH} at once: {seconds:.1f} s, of which {PATIENCE:g} s are "
          f"patience; {size / 2**20:,.0f} MiB saved")  # fmt: skip
    assert "everything is saved" in said
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert kept.position.step in (1, 2), "the step was cut, or has ended within the patience"
    checkpoint.rebuild(kept)
    assert seconds < BOUND * BUSY
