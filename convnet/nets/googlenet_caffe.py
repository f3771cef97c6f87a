"""GoogLeNet as Caffe's model zoo has it: `bvlc_googlenet` (2014). As `googlenet` but for:

stage          output (C, H, W)   parameters   differs
norm1            64   56   56              0   k 1, n 5, alpha 1e-4 / 5
norm2           192   56   56              0   the same
total                             13,378,280

Differs from the paper's text (`googlenet`), which leaves the constants of the response normalisation open: these are in
the train_val.prototxt of bvlc_googlenet, and with its weights this net gives its outputs. Those were trained in 60
epochs without the paper's crops of 8 to 100 % of the area; the initial weights are the ones that `googlenet` borrows.
Caffe's net reads BGR; its weights are turned to RGB when they are imported.
"""

from convnet.nets.googlenet import GoogLeNet
from convnet.nets.norms import CAFFE_LRN


class GoogLeNetCaffe(GoogLeNet):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 less their mean colour, to logits (N, num_classes)."""

    name = "googlenet_caffe"
    paper = "Guadarrama 2014 (Caffe)"
    year = 2014
    lrn = CAFFE_LRN
