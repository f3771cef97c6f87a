"""A linear classifier on nets' features, for few labelled pictures: a support vector machine, or logistic regression.

Each picture's features of a net are divided by their Euclidean length. The constant C is chosen by cross-validation on
the training pictures. The result is a checkpoint of its own: each net up to its stage, and a linear layer
(`nets.LinearClassifier`). Paper: VGG, appendix B, which puts two nets' features one after the other too.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor

from convnet import nets
from convnet.checkpoint import Checkpoint
from convnet.data.augment import mean_luma
from convnet.data.preprocess import Preprocessing
from convnet.device import Device
from convnet.errors import UsageError, unknown
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.nets import LinearClassifier
from convnet.progress import SILENT, Progress
from convnet.retrieval.activations import activations
from convnet.retrieval.pictures import Pictures

KINDS = ("svm", "logistic")
CS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # of two that are equally good the smaller one is taken
FOLDS, ROUNDS = 5, 10_000
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fitted:
    """The checkpoint; C; by each C the share of pictures that was right in cross-validation; how many pictures."""

    checkpoint: Checkpoint
    c: float
    right: Mapping[float, float]
    n: int


def fit_classifier(
    nets_and_stages: Sequence[tuple[Checkpoint, str]],
    device: Device,
    pictures: Pictures,
    kind: str = "svm",
    *,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Fitted:
    """Fits a classifier of the pictures' classes on a stage of each net.

    Raises: UsageError for an unknown kind or stage, a class with fewer than two pictures, or nets that can't be shown
    the same pictures.
    """
    if kind not in KINDS:
        raise UsageError(unknown("kind", kind, KINDS))
    if pictures.labels is None:
        raise UsageError(f"{pictures.name} has no classes; name a store")
    counts = np.bincount(pictures.labels, minlength=len(pictures.classes))
    if counts.min() < 2 or len(counts) < 2:
        least = pictures.classes[int(counts.argmin())]
        raise UsageError(
            f"{pictures.name}: {least!r} has {counts.min()} pictures; two classes with at least 2 are needed"
        )
    made = _together(nets_and_stages, pictures.classes)
    found = activations(TrainedNet.of(made, device), pictures, ["features"], progress=progress, stop=stop)
    x = np.concatenate([part.stages["features"] for part in found])
    progress.note(f"choosing C among {', '.join(f'{c:g}' for c in CS)}, on {len(x):,} x {x.shape[1]:,} numbers")
    weight, bias, right = _fit(x, pictures.labels, kind, min(FOLDS, int(counts.min())), progress)
    c = max(right, key=lambda c: right[c])
    fitted = {"kind": kind, "stage": ",".join(stage for _, stage in nets_and_stages), "C": c}
    fitted |= {"right": {f"{c:g}": share for c, share in right.items()}, "n": len(x), "pictures": pictures.identity}
    fitted |= {"net": ",".join(kept.recipe.net for kept, _ in nets_and_stages)}
    made.weights.update({"classes.weight": weight, "classes.bias": bias})
    return Fitted(replace(made, provenance={**made.provenance, "fitted": fitted}), c, right, len(x))


def _fit(
    x: Floats, labels: NDArray[np.int64], kind: str, n_folds: int, progress: Progress
) -> tuple[Tensor, Tensor, dict[float, float]]:
    """Weights (K, D), biases (K,), and the share that was right by C."""
    basis = None
    if len(x) < x.shape[1]:  # the solution lies in the span of the pictures: fewer numbers, the same classifier
        u, s, basis = np.linalg.svd(x, full_matrices=False)
        x = u * s
    # in the primal: Newton steps, whose end doesn't depend on an order of the pictures
    svm = LinearSVC(dual=False, max_iter=ROUNDS)
    model = svm if kind == "svm" else LogisticRegression(tol=1e-6, max_iter=ROUNDS)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        search = GridSearchCV(model, {"C": CS}, cv=folds).fit(x, labels)
    if caught:
        progress.note(f"{len(caught)} fits had not converged after {ROUNDS:,} rounds")
    best = search.best_estimator_
    weight, bias = best.coef_.astype(np.float32), best.intercept_.astype(np.float32)
    if len(weight) == 1:  # of two classes one margin
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight if basis is None else weight @ basis
    shares = search.cv_results_["mean_test_score"]
    return torch.from_numpy(weight), torch.from_numpy(bias), dict(zip(CS, map(float, shares), strict=True))


def _together(nets_and_stages: Sequence[tuple[Checkpoint, str]], classes: tuple[str, ...]) -> Checkpoint:
    """Nets up to their stages as one, the one with the largest crop first; the linear layer's weights are 0.

    Raises: UsageError.
    """
    (first, stage), *others = sorted(nets_and_stages, key=lambda each: -each[0].preprocessing.crop)
    options = {"net": first.recipe.net, "stage": stage, "side": first.preprocessing.crop, **first.recipe.net_options}
    options["own_classes"] = len(first.classes)
    weights, further = {f"body.{name}": x for name, x in first.weights.items()}, list[Json]()
    for i, (other, its_stage) in enumerate(others):
        factor, bias = _between(first.preprocessing, other.preprocessing)
        weights |= {f"others.{i}.body.{name}": x for name, x in other.weights.items()}
        weights |= {f"others.{i}.weight": factor, f"others.{i}.bias": bias}
        own = {**other.recipe.net_options, "num_classes": len(other.classes)}
        sizes = {"side": other.preprocessing.crop, "mean": bias.shape[-1]}
        further.append({"net": other.recipe.net, "stage": its_stage, "options": own, **sizes})
    if others:
        options["others"] = json.dumps(further)
    with torch.device("meta"):
        needed = nets.make(LinearClassifier.name, options, num_classes=len(classes)).state_dict()
    of_layer = {name: torch.zeros(needed[name].shape) for name in ("classes.weight", "classes.bias")}
    recipe = replace(first.recipe, net=LinearClassifier.name, net_options=options)
    chosen = {name: of_layer[name] if name in of_layer else weights[name] for name in needed}
    return Checkpoint(recipe, first.preprocessing, classes, chosen, provenance=dict(first.provenance))


def _between(first: Preprocessing, other: Preprocessing) -> tuple[Tensor, Tensor]:
    """The factor (1) and the bias (C, 1 or side, 1 or side) that turn what the first net is shown, in the middle, into
    what the other one is: x = (pixel - mean) scale + offset. Raises: UsageError."""
    for name in ("size", "shorter_side", "fit", "pad", "channels"):
        one, two = getattr(first, name), getattr(other, name)
        if one != two:
            raise UsageError(f"one net's pictures have {name} {one}, another's {two}; choose nets that see the same")
    edge = (first.size + 2 * first.pad - first.crop) // 2 + (first.crop - other.crop) // 2
    means = [_mean(how, edge, other.crop) for how in (first, other)]
    factor = other.scale / first.scale
    bias = (means[0] - means[1]) * other.scale + other.offset - first.offset * factor
    return torch.tensor([factor]), bias.float().contiguous()


def _mean(how: Preprocessing, edge: int, side: int) -> Tensor:
    """float64 (C, 1, 1), or (C, side, side): what is subtracted `edge` pixels from the bordered square's edges."""
    mean = torch.zeros(3) if how.mean is None else torch.from_numpy(how.mean)
    mean = mean.double().movedim(-1, 0)
    if mean.ndim == 1:
        mean = mean[:, None, None]
    else:
        mean = F.pad(mean, (how.pad,) * 4)[:, edge : edge + side, edge : edge + side]
    return mean_luma(mean) if how.channels == "grey" else mean
