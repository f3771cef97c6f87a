"""By which recipe does a trained net learn other classes?"""

from dataclasses import replace
from pathlib import Path

from convnet import checkpoint
from convnet.evaluation.trained_net import checkpoint_at
from convnet.nets.describe import own_name
from convnet.recipe import Recipe, load_recipe
from convnet.training.init_from import init_from
from convnet.training.run import fresh_net

SLOWER = 0.1  # factor of the rate of layers whose weights are loaded
PASSES, FEWEST = 60_000, 3  # pictures that are gone through in all; epochs


def fine_tuning(start: Path, classes: tuple[str, ...], pictures: int, size: int | None = None) -> Recipe:
    """The recipe `fine_tuning` for the checkpoint or run at `start`, and so many training pictures of these classes.

    Net, sizes and what is done to pixels are the checkpoint's. size: of the store that there is, where the checkpoint's
    crop and mean allow another than its own.

    Raises: DataError for a damaged file; UsageError when there is none.
    """
    kept, base = checkpoint.load(checkpoint_at(start)), load_recipe("fine_tuning")
    done = kept.preprocessing
    if size is None or size < done.crop - 2 * done.pad or (done.mean is not None and done.mean.ndim == 3):
        size = done.size
    recipe = replace(
        base,
        net=own_name(kept.recipe.net),
        net_options=kept.recipe.net_options,
        init=kept.recipe.init,
        size=size,
        pad=done.pad,
        crop=done.crop,
        channels=done.channels,
        mean="none" if done.mean is None else "start",
        scale=done.scale,
        offset=done.offset,
        loss=kept.recipe.loss,
        epochs=max(FEWEST, min(base.epochs, PASSES // max(pictures, 1))),
    )
    report = init_from(fresh_net(recipe, len(classes)), recipe, classes, start)
    new = dict.fromkeys(name.rpartition(".")[0] for name in report.missing)
    return replace(recipe, layer_lr={"*": SLOWER, **dict.fromkeys(new, 1.0)})
