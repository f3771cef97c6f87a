"""What somebody writes who uses the library: mypy holds it to the public types (strict), a test runs it."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import convnet


def ask(run: str, store: str) -> float:
    """The test error of a trained net, after a look at what it says of the store's first picture."""
    trained = convnet.load(run, device="cpu")
    opened = convnet.Store(store)
    dataset = convnet.StoreDataset(opened, "test", preprocessing=trained.preprocessing)
    image, label = dataset[0]
    pixels: np.ndarray = opened.split("test").picture(0)
    prediction = trained.predict(pixels, top=3)[0]
    assert prediction.failed is None
    names: tuple[str, ...] = prediction.classes
    logits: Tensor = trained.net(image[None])
    assert names[0] == trained.classes[int(logits.argmax())]
    assert 0 <= label < len(trained.classes)
    stages: dict[str, Tensor] = trained.trace(pixels, ["f6"])
    assert torch.equal(stages["f6"].flatten(1), trained.features(pixels, "f6"))
    return trained.evaluate(opened, "test").top1


def learn(store: str, steps: int) -> tuple[float, float]:
    """The losses of a training loop of one's own before and after some steps."""
    recipe = convnet.load_recipe("lenet5_small")
    net: nn.Module = convnet.create_model("lenet5", seed=0, output="linear")
    pictures = convnet.StoreDataset(store, "train", transform=lambda x: nn.functional.pad(x[:1] / 255 - 0.1, (2,) * 4))
    loader = DataLoader(pictures, batch_size=64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=recipe.momentum)
    losses: list[float] = []
    for _, (images, labels) in zip(range(steps), loader, strict=False):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def other_classes(name: str, pretrained: Path) -> convnet.TrainedNet:
    """A trained net with fresh layers for three classes, by both ways."""
    net = convnet.create_model(name, pretrained=pretrained, num_classes=3, seed=0)
    trained = convnet.load(pretrained)
    trained.net.reset_classifier(3, seed=0)
    assert net.num_classes == trained.net.num_classes == 3
    return trained


if __name__ == "__main__":
    print(ask(sys.argv[1], sys.argv[2]), learn(sys.argv[2], 15), convnet.list_models("lenet*"))
