"""Does OpenCV's reader of Caffe's files compute our nets? Two steps, as OpenCV 4 lives elsewhere.

    PYTHONPATH=tests python tests/export/peer_opencv.py write FOLDER     where convnet is: nets in small, their outputs
    python tests/export/peer_opencv.py compare FOLDER                    where OpenCV 4 is; exit code 1 above 2e-5

Figures: docs/weights.md.
"""

import re
import sys
from pathlib import Path

import numpy as np

LIMIT = 2e-5


def write(folder: Path) -> None:
    """Each net that Caffe can run, as tests/export/test_prototxt.py has it, and its logits for two pictures."""
    import torch
    from test_prototxt import CROPS, NAMES, caffe, kept_of, livelier, new_thin_net

    for name in sorted({*NAMES} - {*CROPS}):  # at their own sizes
        net, place = livelier(new_thin_net(name)), folder / name
        place.mkdir(parents=True, exist_ok=True)
        caffe.write(net, kept_of(name, net), place / "a.caffemodel", place / "a.prototxt")
        images = 65 * torch.randn(2, net.in_channels, net.input_size, net.input_size)
        with torch.no_grad():
            np.save(place / "logits.npy", net(images).numpy())
        bgr = net.caffe_channels == "bgr"
        np.save(place / "images.npy", (images.flip(1) if bgr else images).numpy())


def compare(folder: Path) -> int:
    """Prints for each net the largest difference of a logit over the largest logit; 1 when it's above the limit."""
    import cv2

    worst = 0.0
    for place in sorted(folder.iterdir()):
        text = (place / "a.prototxt").read_text(encoding="utf-8")
        net = cv2.dnn.readNetFromCaffe(str(place / "a.prototxt"), str(place / "a.caffemodel"))
        net.setInput(np.load(place / "images.npy"), "data")
        last = re.findall(r'name: "([^"]+)"', text)[-2]  # before the softmax
        expected = np.load(place / "logits.npy")
        difference = float(np.abs(net.forward(last).reshape(expected.shape) - expected).max() / np.abs(expected).max())
        worst = max(worst, difference)
        print(f"{place.name:<20} {difference:.1e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    step, at = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(at) if step == "write" else compare(at))
