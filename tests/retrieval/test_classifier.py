"""A linear classifier on features: the net that it makes says what scikit-learn's model says, and is a net like any."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import convnet
from conftest import Run
from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model, trace
from convnet.recipe import Recipe
from convnet.retrieval import classifier
from convnet.retrieval.classifier import fit_classifier
from convnet.retrieval.features import open_features
from convnet.retrieval.pictures import of_files, of_split
from exported import needs_onnx

CPU = device.choose("fp32", "cpu")


@pytest.fixture(autouse=True)
def few_cs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CS", (1.0, 100.0))


@pytest.mark.parametrize(("kind", "stage"), [("svm", "s4"), ("logistic", "f6")])
def test_it_says_what_scikit_learn_says(kind: str, stage: str, untrained: Path, few_digits: Store) -> None:
    kept, train, val = checkpoint.load(untrained), few_digits.split("train"), few_digits.split("val")
    net = TrainedNet.of(kept, CPU)
    fitted = fit_classifier([(kept, stage)], CPU, of_split(train), kind)
    assert fitted.n == train.n
    assert fitted.c == max(fitted.right, key=lambda c: fitted.right[c])

    def features(split: object) -> np.ndarray:
        images = np.stack([split.square(i) for i in range(split.n)])
        x = net.features(images, stage).numpy().astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    model = LinearSVC(C=fitted.c, dual=False, tol=1e-6) if kind == "svm" else LogisticRegression(C=fitted.c, tol=1e-8)
    model.max_iter = 10_000
    margins = model.fit(features(train), train.labels[:]).decision_function(features(val))
    made = TrainedNet.of(fitted.checkpoint, CPU)
    logits = made.net(made.images(np.stack([val.square(i) for i in range(val.n)]))).detach().numpy()
    assert np.abs(logits - margins).max() < 0.02 * np.abs(margins).max()  # both stop short of the optimum
    assert made.evaluate(val).top1 < 0.5, "random convolutions tell digits apart far better than by chance, 90 %"


def test_two_classes(untrained: Path, few_digits: Store) -> None:
    """Of the one margin that scikit-learn gives."""
    kept, split = checkpoint.load(untrained), few_digits.split("train")
    pictures = of_split(split)
    few = np.flatnonzero(split.labels[:] < 2)
    of_two = replace(pictures.some(few), classes=("0", "1"))
    fitted = fit_classifier([(kept, "f6")], CPU, of_two, "logistic")
    made = TrainedNet.of(fitted.checkpoint, CPU)
    logits = made.net(made.images(np.stack([split.square(i) for i in few])))
    assert torch.allclose(logits[:, 0], -logits[:, 1], atol=1e-5)
    assert (logits.argmax(1).numpy() == split.labels[:][few]).mean() > 0.9


def test_the_result_is_a_checkpoint_as_any(untrained: Path, few_digits: Store, run: Run, tmp_path: Path) -> None:
    code, said, _ = run("fit-classifier", untrained, few_digits.path, "--stage", "s4", "--out", "mine.ckpt", "-q")
    assert code == 0
    assert said.splitlines()[-1].startswith("svm on s4, 315 pictures, 10 classes; C ")
    assert run("evaluate", "mine.ckpt", few_digits.path, "-q")[0] == 0
    Image.fromarray(few_digits.split("test").square(0)).save("0.png")
    assert run("predict", "mine.ckpt", "0.png")[1].startswith("0.png: ")
    assert run("export", "mine.ckpt", "mine.npz")[0] == 0
    assert run("extract", "mine.ckpt", few_digits.path, "--stages", "s4,classes", "--out", "out", "-q")[0] == 0
    made, old = convnet.load("mine.ckpt", device="cpu"), convnet.load(untrained, device="cpu")
    features = open_features("out")
    split = few_digits.split("test")
    images = old.images(np.stack([split.square(i) for i in range(8)]))
    torch.testing.assert_close(torch.from_numpy(features.array("s4")[:8].copy()), trace(old.net, images, ["s4"])["s4"])
    assert not [name for name in made.net.state_dict() if "f6" in name or "c5" in name], "nothing that isn't needed"
    assert run("fit-classifier", untrained, few_digits.path, "--out", "mine.ckpt")[0] == 2


def of(net: str, options: dict[str, object], photos: Store, **how: object) -> Checkpoint:
    """A net with its initial weights for the photos, which wants `how` their pictures."""
    recipe = Recipe(net=net, net_options=options, size=32, crop=28)
    weights = dict(create_model(net, num_classes=3, seed=0, **options).state_dict())
    given = {"size": 32, "pad": 0, "channels": "rgb", "mean": None, "scale": 1.0, "offset": 0.0}
    return Checkpoint(recipe, Preprocessing(**{**given, **how}), photos.classes, weights)


@pytest.fixture(scope="module")
def two(photos: Store) -> list[Checkpoint]:
    """A net that sees pixels less their mean colour, and one that sees more of them, less their mean picture."""
    colour = np.array([90, 100, 110], np.float32)
    return [
        of("nin_small", {}, photos, crop=28, mean=colour, scale=1 / 64, offset=0.1),
        of(
            "lenet5",
            {"in_channels": 3, "output": "linear"},
            photos,
            crop=32,
            mean=photos.mean_picture,
            scale=1 / 128,
            offset=-0.2,
        ),
    ]


def test_two_nets_features_stand_one_after_the_other(two: list[Checkpoint], photos: Store) -> None:
    """Each net's are those that it has alone, by its own preprocessing; the net that sees most is the first one."""
    some = of_split(photos.split("train")).some(np.arange(0, 90, 3))
    fitted = fit_classifier([(two[0], "cccp1"), (two[1], "f6")], CPU, some)
    made, test = TrainedNet.of(fitted.checkpoint, CPU), photos.split("test")
    squares = np.stack([test.square(i) for i in range(5)])
    alone = [TrainedNet.of(kept, CPU).features(squares, stage) for kept, stage in ((two[1], "f6"), (two[0], "cccp1"))]
    expected = torch.cat([torch.nn.functional.normalize(part) for part in alone], 1)
    torch.testing.assert_close(made.features(squares, "features"), expected, atol=1e-5, rtol=1e-4)
    assert made.evaluate(test).top1 < 0.1, "the classes are the pictures' main colours"
    assert fitted.checkpoint.provenance["fitted"]["stage"] == "cccp1,f6"


def test_nets_that_see_other_pictures_are_refused(two: list[Checkpoint], untrained: Path, photos: Store) -> None:
    with pytest.raises(
        UsageError, match="one net's pictures have size 32, another's 28; choose nets that see the same"
    ):
        fit_classifier([(two[1], "f6"), (checkpoint.load(untrained), "f6")], CPU, of_split(photos.split("train")))


def fit_on(two: list[Checkpoint], photos: Store, run: Run) -> Path:
    """A folder of the two nets, and of a classifier on both, as the best of a run."""
    folder = Path("run").absolute()
    folder.mkdir()
    for name, kept in zip("ab", two, strict=True):
        checkpoint.save(folder / f"{name}.ckpt", kept)
    words = ("fit-classifier", folder / "a.ckpt", folder / "b.ckpt", photos.path, "--stage", "cccp2,f6", "-q")
    code, said, wrong = run(*words, "--out", folder / "best.ckpt")
    assert code == 0, wrong
    assert "svm on cccp2, f6, 90 pictures, 3 classes; C " in said
    return folder


def test_the_verbs_take_a_classifier_on_two_nets(two: list[Checkpoint], photos: Store, run: Run) -> None:
    folder, store = fit_on(two, photos, run), photos.path
    net = folder / "best.ckpt"
    Image.fromarray(photos.split("test").square(0)).save("0.png")
    for words in (
        ("predict", net, "0.png"),
        ("evaluate", net, store, "--views", "nine", "-q"),
        ("export", net, "mine.npz"),
        ("report", folder, "--store", store, "--pictures", 20, "-q"),
        ("extract", net, store, "--stages", "features,classes", "-q"),
    ):
        code, _, said = run(*words)
        assert code == 0, said
    code, _, said = run("fit-classifier", net, store, "--stage", "a,b", "--out", "other.ckpt")
    assert (code, "2 stages for 1 nets; name one, or one for each" in said) == (2, True)
    code, _, said = run("fit-classifier", store, "--out", "other.ckpt")
    assert (code, "takes a net and a store" in said) == (2, True)


@needs_onnx
@pytest.mark.parametrize("n_nets", [1, 2])
def test_it_is_exported_to_onnx(
    n_nets: int, two: list[Checkpoint], photos: Store, untrained: Path, few_digits: Store, run: Run
) -> None:
    if n_nets == 2:
        net = fit_on(two, photos, run) / "best.ckpt"
    else:
        net = Path("mine.ckpt")
        assert run("fit-classifier", untrained, few_digits.path, "--kind", "logistic", "--out", net, "-q")[0] == 0
    code, _, said = run("export", net, "mine.onnx")
    assert code == 0, said


def test_what_is_wrong_is_said(untrained: Path, few_digits: Store, tmp_path: Path) -> None:
    kept = checkpoint.load(untrained)
    pictures = of_split(few_digits.split("val"))
    with pytest.raises(UsageError, match="unknown kind 'tree'"):
        fit_classifier([(kept, "f6")], CPU, pictures, "tree")
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        fit_classifier([(kept, "fc7")], CPU, pictures)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="has no classes; name a store"):
        fit_classifier([(kept, "f6")], CPU, of_files([tmp_path / "a.png"]))
    with pytest.raises(UsageError, match="unknown net ''"):
        create_model("linear_classifier")
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        create_model("linear_classifier", net="lenet5", stage="fc7", side=32)
