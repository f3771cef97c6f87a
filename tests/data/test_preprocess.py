from dataclasses import replace

import numpy as np
import pytest

from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing, of_recipe
from convnet.errors import DataError
from convnet.recipe import Recipe

PICTURE, COLOUR = np.ones((8, 8, 3)), np.array([1.0, 2.0, 3.0])
RECIPE = Recipe(size=8, crop=6, pad=1, scale=0.5, offset=-1)


def test_a_recipe_chooses_its_mean():
    assert of_recipe(RECIPE, PICTURE, COLOUR).mean.shape == (8, 8, 3)
    np.testing.assert_array_equal(of_recipe(replace(RECIPE, mean="rgb"), PICTURE, COLOUR).mean, COLOUR)
    assert of_recipe(replace(RECIPE, mean="none"), PICTURE, COLOUR).mean is None
    made = of_recipe(RECIPE, PICTURE, None)
    assert (made.size, made.pad, made.crop, made.channels, made.scale, made.offset) == (8, 1, 6, "rgb", 0.5, -1.0)
    assert made.mean.dtype == np.float32


def test_a_store_without_the_mean_is_refused():
    with pytest.raises(DataError, match='the store has no mean picture; prepare it again, or set mean = "none"'):
        of_recipe(RECIPE, None, COLOUR)
    with pytest.raises(DataError, match="the mean picture is 4 x 4 x 3, the recipe's size 8"):
        of_recipe(RECIPE, np.ones((4, 4, 3)), COLOUR)


def test_equality_is_by_content():
    made = of_recipe(RECIPE, PICTURE, COLOUR)
    assert made == replace(made, mean=made.mean.copy())
    assert hash(made) == hash(replace(made, mean=made.mean.copy()))
    assert made != replace(made, mean=made.mean + 1)
    assert made != replace(made, mean=None)
    assert made != replace(made, scale=2.0)
    assert made != "made"


def test_parts_make_the_whole_again():
    for mean in ("picture", "rgb", "none"):
        made = of_recipe(replace(RECIPE, mean=mean), PICTURE, COLOUR)
        assert preprocess.from_dict(preprocess.to_dict(made), made.mean) == made


@pytest.mark.parametrize(
    "mean",
    [np.ones((8, 8, 3)), np.ones((7, 8, 3), np.float32), np.ones(4, np.float32), np.full(3, np.nan, np.float32)],
    ids=["float64", "another size", "four colours", "NaN"],
)
def test_a_wrong_mean_is_refused(mean):
    with pytest.raises(DataError, match=r"the mean (is|holds)"):
        Preprocessing(size=8, pad=0, crop=8, channels="rgb", mean=mean, scale=1.0, offset=0.0)
