"""An ONNX file in onnxruntime, on the CPU: what it gives for what it is fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from convnet.errors import ConvnetError
from convnet.export import onnx_pictures

Feed = dict[str, NDArray[Any]]  # {input: its values}


class Session:
    """A file, or its bytes, that is open in onnxruntime. `path` is what messages call it.

    decodes: it takes files, which onnxruntime-extensions decodes.
    Raises: ConvnetError, here and in `run`, when onnxruntime can't.
    """

    def __init__(self, model: Path | bytes, path: Path, decodes: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # nothing on stderr but what kills the process: errors are raised
        if decodes:
            options.register_custom_ops_library(onnx_pictures.library_path())
        self.path = path
        try:
            what = model if isinstance(model, bytes) else str(model)
            self.session = onnxruntime.InferenceSession(what, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common type
            raise _refused(path, error) from error

    def run(self, feed: Feed, output: str = "probabilities") -> NDArray[Any]:
        """The output for what is fed."""
        try:
            result: NDArray[Any] = self.session.run([output], feed)[0]
        except Exception as error:
            raise _refused(self.path, error) from error
        return result

    def each(self, feeds: Sequence[Feed], output: str = "probabilities") -> list[NDArray[Any]]:
        return [self.run(feed, output) for feed in feeds]


def _refused(path: Path, error: Exception) -> ConvnetError:
    return ConvnetError(f"{path}: not written: onnxruntime can't run it: {' '.join(str(error).split())[:300]}")
