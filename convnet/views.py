"""Which parts of a picture does a net look at when it is tested?

A view is a crop and whether it is mirrored; the net's posteriors are averaged over a picture's views.

    single     the centre crop
    ten-crop   the four corners and the centre, and their mirrors (AlexNet section 4.1)
"""

from dataclasses import dataclass

import numpy as np

from convnet.augment import Augmentation
from convnet.errors import UsageError, unknown
from convnet.preprocess import Preprocessing

NAMES = ("single", "ten-crop")


@dataclass(frozen=True)
class View:
    """The crop whose first row and column in the stored square are `top`, `left` (negative in a padded border)."""

    top: int
    left: int
    mirrored: bool

    def of(self, n: int) -> Augmentation:
        """This view of n pictures."""
        places = np.full(n, self.top, np.int64), np.full(n, self.left, np.int64)
        return Augmentation(*places, np.full(n, self.mirrored), np.zeros((n, 3), np.float32))


def views(name: str, preprocessing: Preprocessing) -> list[View]:
    """The views of that name, of crops of `preprocessing.crop` pixels.

    Raises: UsageError for a name that isn't known.
    """
    room = preprocessing.size + 2 * preprocessing.pad - preprocessing.crop
    first, last, centre = -preprocessing.pad, room - preprocessing.pad, room // 2 - preprocessing.pad
    if name == "single":
        return [View(centre, centre, False)]
    if name == "ten-crop":
        places = [(first, first), (first, last), (last, first), (last, last), (centre, centre)]
        return [View(*place, mirrored) for mirrored in (False, True) for place in places]
    raise UsageError(unknown("views", name, NAMES))
