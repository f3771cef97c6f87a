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
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model, trace
from convnet.retrieval import classifier
from convnet.retrieval.classifier import fit_classifier
from convnet.retrieval.features import open_features
from convnet.retrieval.pictures import of_files, of_split

CPU = device.choose("fp32", "cpu")


@pytest.fixture(autouse=True)
def few_cs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CS", (1.0, 100.0))


@pytest.mark.parametrize(("kind", "stage"), [("svm", "s4"), ("logistic", "f6")])
def test_it_says_what_scikit_learn_says(kind: str, stage: str, untrained: Path, few_digits: Store) -> None:
    kept, train, val = checkpoint.load(untrained), few_digits.split("train"), few_digits.split("val")
    net = TrainedNet.of(kept, CPU)
    fitted = fit_classifier(kept, net, of_split(train), stage, kind)
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
    fitted = fit_classifier(kept, TrainedNet.of(kept, CPU), of_two, "f6", "logistic")
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


def test_it_is_exported_to_onnx(untrained: Path, few_digits: Store, run: Run) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason='needs pip install "convnet-classics[onnx]"')
    assert run("fit-classifier", untrained, few_digits.path, "--kind", "logistic", "--out", "mine.ckpt", "-q")[0] == 0
    code, _, said = run("export", "mine.ckpt", "mine.onnx")
    assert code == 0, said


def test_what_is_wrong_is_said(untrained: Path, few_digits: Store, tmp_path: Path) -> None:
    kept = checkpoint.load(untrained)
    net, pictures = TrainedNet.of(kept, CPU), of_split(few_digits.split("val"))
    with pytest.raises(UsageError, match="unknown kind 'tree'"):
        fit_classifier(kept, net, pictures, "f6", "tree")
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        fit_classifier(kept, net, pictures, "fc7")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="has no classes; name a store"):
        fit_classifier(kept, net, of_files([tmp_path / "a.png"]), "f6")
    with pytest.raises(UsageError, match="unknown net ''"):
        create_model("linear_classifier")
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        create_model("linear_classifier", net="lenet5", stage="fc7", side=32)
