"""An ONNX file in int8: by onnxruntime's static quantisation, with what it costs in right answers measured.

int8     weights of convolutions and linear layers, a scale for each output channel (for each unit)
uint8    what goes into and comes out of these layers, and of the ReLUs, max pools and concatenations between them: a
         scale and a zero for each tensor, by its least and largest value in `PICTURES` training pictures, the mean of
         the batches of `CALIBRATION`: over all of them one odd picture would make the steps coarse for every other
float32  all else: the last layer that has weights, response normalisation, average pools, locally connected layers,
         LeNet-5's tanh and RBF

Which stay float32 was chosen by measured loss; docs/weights.md has the figures.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.metrics import Scores, Tally, sign_test
from convnet.evaluation.pictures import split_to_test
from convnet.evaluation.seen import from_store, in_parts, some
from convnet.export.onnx_session import Session
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress

CALIBRATION = 512  # training pictures
SEED = 0  # by which they are sampled
PICTURES = 32  # at a time; a batch of the calibration
LAYERS = ("Conv", "Gemm", "Relu", "MaxPool", "Concat")  # what is said in int8
WEIGHTED = ("Conv", "Gemm", "MatMul")
RANGES = {"CalibMovingAverage": True}  # onnxruntime's word for the mean over batches
COPIES = 4  # of the file that lie on the disk at once; where there is room for 3.6 it was enough
ALLOWED = 0.1  # points of top-1 error that int8 may lose without a warning


@dataclass(frozen=True)
class Pictures:
    """Whose pictures calibrate and test: splits of a store, their labels by the net's classes."""

    train: Split
    test: Split


@dataclass(frozen=True)
class Cost:
    """What int8 costs: the same pictures asked of both files, by the centre crop.

    n_calibration  training pictures that gave the ranges
    fp32, int8     the scores
    float_layer    the last layer that has weights, which stays float32
    """

    store: Store
    n_calibration: int
    fp32: Scores
    int8: Scores
    float_layer: str

    @property
    def points(self) -> float:
        """By how much the top-1 error of int8 is larger, in points; below 0 where it is smaller."""
        return 100 * int((self.int8.ranks >= 1).sum() - (self.fp32.ranks >= 1).sum()) / self.int8.n

    @property
    def same(self) -> float:
        """Share of pictures whose most probable class is the same, 0 to 1."""
        return float((self.fp32.predicted == self.int8.predicted).mean())

    def to_dict(self) -> Json:
        import onnxruntime

        only_fp32, only_int8, p = sign_test(self.int8, self.fp32)
        return {
            "calibration": {"split": "train", "n": self.n_calibration, "seed": SEED},
            "test": {
                "split": self.int8.split,
                "n": self.int8.n,
                "fp32_top1_error": self.fp32.top1,
                "int8_top1_error": self.int8.top1,
                "points_lost": self.points,
                "same_answer": self.same,
                "only_fp32_right": only_fp32,
                "only_int8_right": only_int8,
                "p": p,
            },
            "float_layer": self.float_layer,
            "store_sha256": self.store.identity,
            "onnxruntime": onnxruntime.__version__,
        }

    def lines(self) -> list[str]:
        """What a person reads of it, and a warning where it's more than `ALLOWED`."""
        told = self.to_dict()["test"]
        lines = [
            f"int8, calibrated on {self.n_calibration:,} training pictures; {self.float_layer} stays float32",
            f"top-1 error {self.int8.top1:.2%}, in fp32 {self.fp32.top1:.2%} ({self.int8.split}, n {self.int8.n:,}): "
            f"{self.points:+.2f} points; only fp32 is right on {told['only_fp32_right']:,}, only int8 on "
            f"{told['only_int8_right']:,} (p {told['p']:.2g}); the same answer for {self.same:.2%}",
        ]
        if self.points > ALLOWED:
            lines.append(f"warning: int8 loses {self.points:.2f} points of top-1 error, more than {ALLOWED}")
        return lines


def pictures_of(store: Store, checkpoint: Checkpoint) -> Pictures:
    """Raises: UsageError when the store has other classes, no training pictures, or none to test on."""
    labelled = store.with_labels_of(checkpoint.classes, "the net")
    test = split_to_test(labelled)
    if test.name == "train":
        raise UsageError(f"{store.path} has pictures in train only; int8's loss is measured on others, in val or test")
    if "train" not in labelled.splits or not labelled.split("train").n:
        raise UsageError(f"{store.path} has no pictures in its split train; int8 is calibrated on training pictures")
    return Pictures(labelled.split("train"), test)


def quantised(
    data: bytes, checkpoint: Checkpoint, pictures: Pictures, floats: bool, path: Path, progress: Progress = SILENT
) -> tuple[bytes, Cost]:
    """(an ONNX file in int8, what that costs): made of one that takes crops. Its metadata say both.

    path: what messages call it. Raises: UsageError when the store's pictures don't fit the net; ConvnetError when
    onnxruntime can't.
    """
    import onnx

    done, train = checkpoint.preprocessing, pictures.train
    ids = some(train.n, CALIBRATION, SEED)
    crops = np.stack([picture.pixels for picture in from_store(train, ids.tolist(), done)])
    small, float_layer = _in_int8(data, _Calibration(_as_taken(crops, floats), progress), path)
    fp32, int8 = _scores((data, small), pictures.test, done, floats, path, progress)
    cost = Cost(train.store, len(crops), fp32, int8, float_layer)
    model, former = onnx.load_from_string(small), onnx.load_from_string(data)
    del model.opset_import[:]  # which lists all that onnxruntime knows
    model.opset_import.extend(former.opset_import)
    onnx.helper.set_model_props(
        model, {each.key: each.value for each in former.metadata_props} | {"int8": json.dumps(cost.to_dict())}
    )
    return bytes(model.SerializeToString()), cost


class _Calibration:
    """The crops as onnxruntime asks for them: a batch at a time, then None."""

    def __init__(self, crops: NDArray[Any], progress: Progress) -> None:
        self.crops, self.progress, self.next = crops, progress, 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self.next == 0:
            self.progress.start("calibrating int8 (train)", len(self.crops))
        self.progress.update(self.next)
        batch = self.crops[self.next : self.next + PICTURES]
        self.next += len(batch)
        return {"pixels": batch} if len(batch) else None


def _in_int8(data: bytes, calibration: _Calibration, path: Path) -> tuple[bytes, str]:
    """(the file in int8, the name of the layer with weights that stays float32)."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with atomic.temporary_folder(COPIES * len(data)) as folder, contextlib.redirect_stdout(io.StringIO()):
        whole, folded, small = (folder / f"{name}.onnx" for name in ("whole", "folded", "int8"))
        atomic.write_atomic(whole, data)
        try:
            quant_pre_process(whole, folded, skip_symbolic_shape=True)
            last = [node for node in onnx.load(folded).graph.node if node.op_type in WEIGHTED][-1]
            quantize_static(
                folded, small, calibration, op_types_to_quantize=LAYERS, nodes_to_exclude=[last.name], per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, extra_options=RANGES,
            )  # fmt: skip
            made = small.read_bytes()
        except OSError:
            raise
        except Exception as error:  # onnxruntime's errors have no common type
            reason = " ".join(str(error).split())[:300]
            raise ConvnetError(f"{path}: not written: onnxruntime can't say it in int8: {reason}") from error
        return made, last.input[1].removeprefix("logits.net.").removesuffix(".weight")


def _scores(
    files: tuple[bytes, bytes], test: Split, done: Preprocessing, floats: bool, path: Path, progress: Progress
) -> tuple[Scores, Scores]:
    """Of both files, on every picture of the split."""
    ids = np.arange(test.n)
    tallies = [Tally("single", test.name, test.store.classes, np.asarray(test.labels), ids) for _ in files]
    sessions = [Session(data, path) for data in files]
    progress.start(f"testing int8 ({test.name})", test.n)
    for part, seen in in_parts(test, ids, done, PICTURES):
        pixels = _as_taken(np.stack([picture.pixels for picture in seen]), floats)
        for tally, session in zip(tallies, sessions, strict=True):
            tally.add(session.run({"pixels": pixels}).astype(np.float64))
        progress.update(int(part[-1]) + 1)
    progress.finish()
    return tallies[0].scores(), tallies[1].scores()


def _as_taken(crops: NDArray[np.uint8], floats: bool) -> NDArray[Any]:
    return crops.astype(np.float32) if floats else crops
