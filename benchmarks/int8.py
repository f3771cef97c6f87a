"""How fast is a net in int8 against the same in float32? Both files in onnxruntime, by turns, one thread.

    python benchmarks/int8.py fp32.onnx int8.onnx [--batches 1,32] [--repeats 5]

The files are what `convnet export` writes, without and with --int8. Microseconds of processor time a picture: the
median of the repeats, the smallest and largest of the ratio. A repeat runs each file for at least a second.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from convnet import hardware
from convnet.export.onnx_session import Feed, Session

SECONDS = 1.0


def microseconds(session: Session, feed: Feed, n: int) -> float:
    """Of processor time, for a picture."""
    began, passes = time.process_time(), 0
    while time.process_time() - began < SECONDS:
        session.run(feed)
        passes += 1
    return 1e6 * (time.process_time() - began) / passes / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sessions = [Session(file, file) for file in arguments.files]
    side = sessions[0].session.get_inputs()[0].shape[1]
    print(f"{hardware.processor().name}, one thread; onnxruntime {onnxruntime.__version__}; {side} x {side}")
    for n in map(int, arguments.batches.split(",")):
        feed = {"pixels": np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)}
        for session in sessions:
            session.run(feed)
        turns = [[microseconds(session, feed, n) for session in sessions] for _ in range(arguments.repeats)]
        fp32, int8 = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = [a / b for a, b in turns]
        print(
            f"batch {n:3}: fp32 {fp32:9,.0f}  int8 {int8:9,.0f} microseconds a picture; "
            f"{fp32 / int8:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
