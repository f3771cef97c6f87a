"""Where are the published weights of a net? Its class says so by these; `weights/download.py` gets them."""

from dataclasses import dataclass
from typing import Literal

PYTORCH = "https://download.pytorch.org/models"
BERKELEY = "http://dl.caffe.berkeleyvision.org"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe"

CAFFE_COLOUR = (122.67891434, 116.66876762, 104.00698793)  # the colour of Caffe's mean picture of ILSVRC 2012
VGG_COLOUR = (123.68, 116.779, 103.939)  # as its authors publish it

Colour = tuple[float, float, float]
Pixels = Literal["imagenet", "half"]


@dataclass(frozen=True)
class Known:
    """A published file.

    net          which of our nets it is for
    address      where it is
    digest       "sha256:..." or "sha1:...", in full or its first digits; "" when nothing is published
    pixels       for state dicts: how its pixels were scaled (`convnet.weights.PIXELS`)
    mean_colour  for Caffe's files: grey levels R, G, B that are subtracted
    """

    net: str
    address: str
    digest: str
    pixels: Pixels | None = None
    mean_colour: Colour | None = None

    @property
    def file_name(self) -> str:
        return self.address.rpartition("/")[2]


def of_pytorch(net: str, file_name: str, pixels: Pixels = "imagenet") -> dict[str, Known]:
    """{its name here: a file of PyTorch's}, whose name says the model and the first digits of its sha256."""
    prefix = file_name.removesuffix(".pth").rpartition("-")[2]
    file = Known(net, f"{PYTORCH}/{file_name}", f"sha256:{prefix}", pixels)
    return {f"{file_name.partition('-')[0]}.torchvision": file}


def of_berkeley(name: str, net: str, file_name: str, sha1: str, mean: Colour = CAFFE_COLOUR) -> dict[str, Known]:
    """{its name here: a file of Caffe's model zoo}."""
    return {name: Known(net, f"{BERKELEY}/{file_name}", f"sha1:{sha1}", mean_colour=mean)}


def of_oxford(net: str, n_layers: int) -> dict[str, Known]:
    """{its name here: a file of VGG's authors}, who publish no digest."""
    file_name = f"VGG_ILSVRC_{n_layers}_layers.caffemodel"
    return {f"vgg{n_layers}.oxford": Known(net, f"{OXFORD}/{file_name}", "", mean_colour=VGG_COLOUR)}
