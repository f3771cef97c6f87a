"""A linear classifier on a net's features, for few labelled pictures: a support vector machine, or logistic regression.

Each picture's features are divided by their Euclidean length. The constant C is chosen by cross-validation on the
training pictures. The result is a checkpoint of its own: the net up to the stage, and a linear layer
(`nets.LinearClassifier`). Paper: VGG, appendix B.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor

from convnet import nets
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError, unknown
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
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
    kept: Checkpoint,
    net: TrainedNet,
    pictures: Pictures,
    stage: str,
    kind: str = "svm",
    *,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Fitted:
    """Fits a classifier of the pictures' classes on a stage of `net`, which is that of the checkpoint `kept`.

    Raises: UsageError for an unknown kind or stage, or a class with fewer than two pictures.
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
    parts = [part.stages[stage].reshape(len(part.keys), -1)
             for part in activations(net, pictures, [stage], progress=progress, stop=stop)]  # fmt: skip
    x = np.concatenate(parts)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    progress.note(f"choosing C among {', '.join(f'{c:g}' for c in CS)}, on {len(x):,} x {x.shape[1]:,} numbers")
    weight, bias, right = _fit(x, pictures.labels, kind, min(FOLDS, int(counts.min())), progress)
    c = max(right, key=lambda c: right[c])
    fitted = {"kind": kind, "stage": stage, "C": c, "right": {f"{c:g}": share for c, share in right.items()}}
    fitted |= {"n": len(x), "pictures": pictures.identity, "net": kept.recipe.net}
    return Fitted(_checkpoint(kept, stage, pictures.classes, weight, bias, fitted), c, right, len(x))


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


def _checkpoint(
    kept: Checkpoint, stage: str, classes: tuple[str, ...], weight: Tensor, bias: Tensor, fitted: dict[str, object]
) -> Checkpoint:
    recipe = kept.recipe
    options = {"net": recipe.net, "stage": stage, "side": kept.preprocessing.crop, **recipe.net_options}
    with torch.device("meta"):
        names = nets.make(LinearClassifier.name, options, num_classes=len(classes)).state_dict().keys()
    of_layer = {"classes.weight": weight, "classes.bias": bias}
    weights = {name: of_layer[name] if name in of_layer else kept.weights[name.removeprefix("body.")] for name in names}
    recipe = replace(recipe, net=LinearClassifier.name, net_options=options)
    return Checkpoint(recipe, kept.preprocessing, classes, weights, provenance={**kept.provenance, "fitted": fitted})
