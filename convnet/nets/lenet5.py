"""LeNet-5: the net of "Gradient-Based Learning Applied to Document Recognition" (1998), section II.B.

stage     output (C, H, W)   parameters   paper
c1         6   28   28              156   5x5
s2         6   14   14               12   2x2 sub-sampling, trainable
c3        16   10   10            1,516   5x5, connected by table I
s4        16    5    5               32   2x2 sub-sampling, trainable
c5       120    1    1           48,120   5x5: all of S4
f6        84                     10,164
output    10                          0   eq. 7: distances to fixed 7x12 codes
total                            60,000

Every stage up to f6 ends in 1.7159 tanh(2x/3). Pixels: the background is -0.1 and the ink 1.175, which makes their mean
about 0 and their variance about 1.

Differs: the codes are drawn after figure 3, not copied. The logits are minus the distances. Sub-sampling takes the mean
of four where the paper adds them. `output="linear"` is no part of the paper: a trainable layer of 84 x K weights and
K biases, for any number of classes.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.nets.layers import RBF, Net, SparseConv2d, SubSampling, check_images, connected, record, scaled_tanh

# Which maps of S2 each of the 16 maps of C3 sees. Paper: table I.
TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),  # three neighbours
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),  # four neighbours
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),  # four apart
    (0, 1, 2, 3, 4, 5),
)

# The codes of the ten digits, 7 x 12 each: # is 1, . is -1.
BITMAPS = """
..###.. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. ..###..
.#...#. ..##... #.....# #.....# ....##. #...... .#....# ......# #.....# .#...#.
#.....# .#.#... ......# ......# ...#.#. #...... #...... .....#. #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... .....#. ......# .#...#. #.####. #.####. ....#.. .#...#. #.....#
#.....# ...#... ....#.. ..####. #....#. ##....# ##....# ....#.. ..###.. #.....#
#.....# ...#... ...#... ......# #....#. ......# #.....# ...#... .#...#. #....##
#.....# ...#... ..#.... ......# ####### ......# #.....# ...#... #.....# .####.#
#.....# ...#... .#..... ......# .....#. ......# #.....# ..#.... #.....# ......#
#.....# ...#... #...... ......# .....#. ......# #.....# ..#.... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# .#...#. ..#.... #.....# #....#.
..###.. .#####. ####### .#####. .....#. .#####. ..###.. ..#.... .#####. .####..
"""


def digit_codes() -> Tensor:
    """The ten codes of +1 and -1, float32 (10, 84), row by row. Paper: figure 3."""
    rows = [line.split() for line in BITMAPS.split("\n") if line]
    drawings = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if dot == "#" else -1.0 for dot in drawing] for drawing in drawings])


class LeNet5(Net):
    """Pictures (N, 1, 32, 32) to logits (N, num_classes)."""

    paper = "LeCun, Bottou, Bengio and Haffner 1998"
    year = 1998
    input_size = 32
    last: ClassVar[str] = "output"
    inits: ClassVar[tuple[str, ...]] = ("paper",)

    def __init__(self, num_classes: int = 10, in_channels: int = 1, output: Literal["rbf", "linear"] = "rbf") -> None:
        super().__init__()
        if output not in ("rbf", "linear"):
            raise UsageError(unknown("output", str(output), ("rbf", "linear")))
        if output == "rbf" and num_classes != 10:
            raise UsageError(f"lenet5's rbf output has codes for the ten digits, not for {num_classes} classes: "
                             "use output=linear")  # fmt: skip
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = SubSampling(6)
        self.c3 = SparseConv2d(6, TABLE, 5)
        self.s4 = SubSampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = RBF(digit_codes()) if output == "rbf" else nn.Linear(84, num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self, "lenet5", range(32, 33))
        x = record(stages, "c1", scaled_tanh(self.c1(images)))
        x = record(stages, "s2", scaled_tanh(self.s2(x)))
        x = record(stages, "c3", scaled_tanh(self.c3(x)))
        x = record(stages, "s4", scaled_tanh(self.s4(x)))
        x = record(stages, "c5", scaled_tanh(self.c5(x)))
        x = record(stages, "f6", scaled_tanh(connected(self.f6, x)))
        return record(stages, "output", self.output(x) if isinstance(self.output, RBF) else connected(self.output, x))

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew: uniform within 2.4 / fan-in of 0, biases included.

        The fan-in is a unit's number of inputs: 4 for sub-sampling, whose coefficient of the mean is four times that
        of the sum; 75 to 150 in C3. Paper: appendix A.

        Raises: UsageError for another name than "paper".
        """
        if init not in self.inits:
            raise UsageError(unknown("init", init, self.inits))
        fan_in_c3 = torch.tensor([25.0 * len(inputs) for inputs in TABLE])
        fan_in = {"c1": 25.0 * self.in_channels, "s2": 4.0, "s4": 4.0, "c5": 400.0, "f6": 120.0, "output": 84.0}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                layer, kind = name.split(".")
                parameter.uniform_(-2.4, 2.4, generator=generator)
                if layer == "c3":
                    per_weight = fan_in_c3[self.c3.outputs][:, None, None]
                    parameter.div_(per_weight if kind == "weight" else fan_in_c3)
                else:
                    parameter.div_(1.0 if (layer in ("s2", "s4") and kind == "weight") else fan_in[layer])
