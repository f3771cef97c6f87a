"""Short binary codes of features, near where the features are: how a coder is fitted, and what it does.

lsh          the side of B random hyperplanes through the mean (Charikar 2002)
itq          the B principal components, turned so that rounding to +1 and -1 loses least (Gong and Lazebnik 2011)
autoencoder  B logistic units in the middle of a deep autoencoder of features (Krizhevsky and Hinton 2011). Differs:
             it begins as ITQ, not by restricted Boltzmann machines; ReLUs; what makes the code binary is noise, as
             in Salakhutdinov and Hinton 2009, and not rounding (docs/log.md)

pq           the nearest of 256 centres, for each of B / 8 parts of the features: no bits to count (products.py)

All take the features at length 1, so that codes keep angles. All but pq give the same: affine layers with ReLUs between
them, and of the last one the signs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.progress import SILENT, Progress
from convnet.retrieval import hamming, products
from convnet.retrieval.hamming import Codes, Ints, Words

Floats = NDArray[np.float32]
Layer = tuple[Floats, Floats]  # weights (in, out), biases (out,)
LEAST, MOST = 8, 1024  # bits
PQ = "pq"
TURNS = 50  # of ITQ, as in its paper
COMPONENTS = 512  # that an autoencoder begins with, or as many as its bits where these are more
HIDDEN = 512  # units of its decoder
DECODER_STEPS, DECODER_RATE = 500, 1e-3  # at first, of the decoder alone
STEPS, BATCH, RATE = 1000, 128, 3e-4  # then of all; the largest rate of one cycle
NOISE = 4.0  # its standard deviation, on the code's logits
SPARE, PASSES = 10, 5  # directions and passes of a subspace iteration


@dataclass(frozen=True)
class Coder:
    """What makes codes of features (n, D): layers, of which each but the last one ends in a ReLU; of pq one a part."""

    kind: str
    layers: tuple[Layer, ...]

    @property
    def n_bits(self) -> int:
        return 8 * len(self.layers) if self.kind == PQ else len(self.layers[-1][1])

    @property
    def n_features(self) -> int:
        return sum(len(weights) for weights, _ in (self.layers if self.kind == PQ else self.layers[:1]))

    def encode(self, features: NDArray[np.floating]) -> Codes:
        """uint8 (n, ceil(bits / 8)). Raises: UsageError when D isn't that of the features it was fitted on."""
        hidden = self._rows(features)
        if self.kind == PQ:
            return products.encode(self.layers, hidden)
        for weights, biases in self.layers[:-1]:
            hidden = np.maximum(hidden @ weights + biases, 0)
        weights, biases = self.layers[-1]
        return np.packbits(hidden @ weights + biases > 0, axis=1)

    def nearest(self, features: NDArray[np.floating], searched: Words, k: int) -> tuple[Ints, NDArray[np.float64]]:
        """(positions, distances), (Q, min(k, n)) each: of queries (Q, D) the k nearest codes, nearest first; ties: the
        first. In bits that differ; of pq Euclidean, of features at length 1. Raises: UsageError for another D."""
        if self.kind == PQ:
            return products.nearest(self.layers, self._rows(features), hamming.by_rows(searched), k)
        positions, bits = hamming.nearest(self.encode(features), searched, k)
        return positions, bits.astype(np.float64)

    def _rows(self, features: NDArray[np.floating]) -> Floats:
        if features.shape[1] != self.n_features:
            raise UsageError(f"features of {features.shape[1]} numbers; the coder was fitted on {self.n_features}")
        return unit(features)


def fit(kind: str, features: NDArray[np.floating], n_bits: int, seed: int = 0, progress: Progress = SILENT) -> Coder:
    """A coder of that kind for features such as these, (n, D). Raises: UsageError when it can't have so many bits."""
    check(kind, n_bits, *features.shape)
    rows, generator = unit(features), np.random.default_rng(seed)
    if kind == PQ:
        return Coder(kind, tuple(products.fit(rows, n_bits, generator, progress)))
    mean = rows.mean(0)
    layers = SIGNS[kind](rows - mean, n_bits, generator, progress)
    (weights, biases), *others = layers
    return Coder(kind, ((weights, biases - mean @ weights), *others))


def check(kind: str, n_bits: int, n: int, n_features: int) -> None:
    """Raises: UsageError when no such coder can be fitted on features (n, D)."""
    if kind not in KINDS:
        raise UsageError(unknown("kind of code", kind, KINDS))
    if not LEAST <= n_bits <= MOST:
        raise UsageError(f"codes of {n_bits} bits: from {LEAST} to {MOST}")
    if kind == PQ and (n_bits % 8 or n_bits // 8 > n_features):
        raise UsageError(f"{n_bits} bits by pq: a multiple of 8, and at most 8 for each of {n_features:,} features")
    if kind == "itq" and n_bits > (most := min(n - 1, n_features)):
        raise UsageError(
            f"{n_bits} bits by ITQ: {n:,} pictures with {n_features:,} features have {most:,} principal components; "
            f"take fewer bits, or the autoencoder"
        )


def unit(features: NDArray[np.floating]) -> Floats:
    """float32 (n, D) at length 1; a row of zeros stays one."""
    rows = features.astype(np.float32)
    lengths = np.sqrt(np.square(rows).sum(1, keepdims=True))
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def _lsh(rows: Floats, n_bits: int, generator: np.random.Generator, progress: Progress) -> list[Layer]:
    return [_linear(generator.standard_normal((rows.shape[1], n_bits)))]


def _itq(rows: Floats, n_bits: int, generator: np.random.Generator, progress: Progress) -> list[Layer]:
    components = _components(rows, n_bits, generator)
    return [_linear(components @ _turn(rows @ components, generator))]


def _turn(projected: Floats, generator: np.random.Generator) -> NDArray[np.floating]:
    """(B, B): the rotation of (n, B) after which rounding to +1 and -1 loses least."""
    n_bits = projected.shape[1]
    turn = np.linalg.qr(generator.standard_normal((n_bits, n_bits)))[0]
    for _ in range(TURNS):
        left, _, right = np.linalg.svd(np.sign(projected @ turn).T @ projected)
        turn = (left @ right).T
    return turn


def _autoencoder(rows: Floats, n_bits: int, generator: np.random.Generator, progress: Progress) -> list[Layer]:
    """Learns to tell the principal components, in units of the first one's deviation, from a noisy code. The encoder
    begins as ITQ: a ReLU for each of its directions and one for the opposite, whose difference is the code's logit."""
    components = _components(rows, min(max(COMPONENTS, n_bits), len(rows) - 1, rows.shape[1]), generator)
    projected, k = rows @ components, components.shape[1]
    scale = max(float(projected[:, 0].std()), 1e-12)
    begin = np.zeros((k, n_bits), np.float32)  # the directions
    n_turned = min(n_bits, k)
    begin[:n_turned, :n_turned] = _turn(projected[:, :n_turned], generator)
    begin[:, n_turned:] = generator.standard_normal((k, n_bits - n_turned)) / k**0.5
    spread = max(float((projected @ begin).std()), 1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(1 << 62)))
        first, second = nn.Linear(k, 2 * n_bits), nn.Linear(2 * n_bits, n_bits)
        with torch.no_grad():
            directions, units = torch.from_numpy(begin.T * scale), torch.eye(n_bits) / spread
            first.weight.copy_(torch.cat([directions, -directions]))
            second.weight.copy_(torch.cat([units, -units], 1))
            first.bias.zero_()
            second.bias.zero_()
        decoder = nn.Sequential(nn.Linear(n_bits, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, k))
        _learn(nn.Sequential(first, nn.ReLU(), second), decoder, torch.from_numpy(projected / scale), progress)
    layers = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in (first, second)]
    return [(components / scale @ layers[0][0], layers[0][1]), layers[1]]


def _learn(encoder: nn.Module, decoder: nn.Module, inputs: Tensor, progress: Progress) -> None:
    """Noise before the code's logistic function: only a unit that is nearly sure, near 0 or 1, tells much. The decoder
    learns to read the code that there is, then both learn."""
    alone = torch.optim.Adam(decoder.parameters(), DECODER_RATE)
    both = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    rates = torch.optim.lr_scheduler.OneCycleLR(both, RATE, total_steps=STEPS)
    progress.start("learning codes", DECODER_STEPS + STEPS)
    for step in range(DECODER_STEPS + STEPS):
        rule = alone if step < DECODER_STEPS else both
        batch = inputs[torch.randint(len(inputs), (BATCH,))]
        logits = encoder(batch)
        code = torch.sigmoid(logits + NOISE * torch.randn_like(logits))
        loss = (decoder(2 * code - 1) - batch).square().sum(1).mean()
        encoder.zero_grad()
        decoder.zero_grad()
        loss.backward()
        rule.step()
        if rule is both:
            rates.step()
        progress.update(step + 1)
    progress.finish()


def _linear(weights: NDArray[np.floating]) -> Layer:
    return weights.astype(np.float32), np.zeros(weights.shape[1], np.float32)


def _components(rows: Floats, n: int, generator: np.random.Generator) -> Floats:
    """(D, n): the directions in which centred rows vary most, the first one most; by subspace iteration, because the
    covariance of 9,216 features would be a matter of minutes."""
    space = generator.standard_normal((rows.shape[1], min(n + SPARE, rows.shape[1]))).astype(np.float32)
    for _ in range(PASSES):
        space = np.linalg.qr(rows.T @ (rows @ space))[0]
    projected = rows @ space
    _, vectors = np.linalg.eigh((projected.T @ projected).astype(np.float64))
    return space @ vectors[:, ::-1][:, :n].astype(np.float32)


SIGNS: MappingProxyType[str, Callable[..., list[Layer]]] = MappingProxyType(
    {"lsh": _lsh, "itq": _itq, "autoencoder": _autoencoder}
)
KINDS = (*SIGNS, PQ)
