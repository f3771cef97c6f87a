"""Does OpenCV's reader of Caffe's files compute our nets? Two steps, because OpenCV lives elsewhere.

    python tests/peer_opencv.py write FOLDER     where convnet is: nets in small, their Caffe files, pictures, outputs
    python tests/peer_opencv.py compare FOLDER   where OpenCV 4 is: reads each net and compares; exit code 1 above 1e-5

OpenCV doesn't read LRN's `k`. Where it's 2, (2 + s)^-b is written as 2^-b (1 + s/2)^-b for it: half of alpha, and a
layer that multiplies. Figures: docs/weights.md.
"""

import re
import sys
from pathlib import Path

import numpy as np

LIMIT = 1e-5
LRN = re.compile(r'  top: "([^"]+)"\n  lrn_param \{ local_size: 5 k: 2 alpha: (\S+) beta: 0.75 \}\n\}')


def write(folder: Path) -> None:
    """Each net that Caffe can run, as tests/export/test_prototxt.py has it, and its logits for two pictures."""
    import torch
    from test_prototxt import NAMES, caffe, kept_of, livelier, new_thin_net

    for name in NAMES:
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
        text = LRN.sub(with_k_of_1, (place / "a.prototxt").read_text(encoding="utf-8"))
        (place / "opencv.prototxt").write_text(text, encoding="utf-8")
        net = cv2.dnn.readNetFromCaffe(str(place / "opencv.prototxt"), str(place / "a.caffemodel"))
        net.setInput(np.load(place / "images.npy"), "data")
        last = re.findall(r'name: "([^"]+)"', text)[-2]  # before the softmax
        expected = np.load(place / "logits.npy")
        difference = float(np.abs(net.forward(last).reshape(expected.shape) - expected).max() / np.abs(expected).max())
        worst = max(worst, difference)
        print(f"{place.name:<20} {difference:.1e}")
    return int(worst > LIMIT)


def with_k_of_1(found: re.Match[str]) -> str:
    top, alpha = found[1], float(found[2]) / 2
    return (
        f'  top: "{top}"\n  lrn_param {{ local_size: 5 alpha: {alpha} beta: 0.75 }}\n}}\n'
        f'layer {{ name: "k_of_{top}" type: "Power" bottom: "{top}" top: "{top}" power_param {{ scale: {2**-0.75} }} }}'
    )


if __name__ == "__main__":
    step, at = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(at) if step == "write" else compare(at))
