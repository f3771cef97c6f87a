"""Similarities against loops and scipy, and what leaves them unchanged."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from convnet.errors import UsageError
from convnet.retrieval import similarity
from convnet.retrieval.similarity import dissimilarities, linear_cka, rsa

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(1, 2, (9, 4, 3, 3)).astype(np.float32)
Y = (X.reshape(9, -1)[:, :20] + GENERATOR.normal(0, 2, (9, 20))).astype(np.float16)


@pytest.fixture(autouse=True, params=[7, 1 << 14])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "COLUMNS", request.param)


def test_dissimilarities_are_those_of_a_loop() -> None:
    found = dissimilarities(X)
    for i in range(9):
        for k in range(9):
            a, b = (X[j].ravel().astype(np.float64) for j in (i, k))
            assert found[i, k] == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert (np.diag(found) == 0).all(), "a picture is itself, however its products are rounded"
    assert dissimilarities(np.stack([X[0], -X[0]]))[0, 1] == pytest.approx(2)
    with pytest.raises(UsageError, match="the activations of picture 1 are all equal"):
        dissimilarities(np.stack([X[0], np.full_like(X[0], 3)]))


def test_rsa_is_scipys_rank_correlation() -> None:
    pairs = [(i, k) for i in range(9) for k in range(i)]
    a, b = ([dissimilarities(z)[pair] for pair in pairs] for z in (X, Y))
    assert rsa(X, Y) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert rsa(X, 3 * X.astype(np.float64) - 1) == pytest.approx(1)
    tied = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])  # equal distances share a rank
    a, b = (dissimilarities(z)[np.triu_indices(4, 1)] for z in (tied, X[:4]))
    assert rsa(tied, X[:4]) == pytest.approx(spearmanr(a.round(12), b).statistic, abs=1e-12)


def test_cka_is_that_of_features_and_not_of_their_axes() -> None:
    x, y = (z.reshape(9, -1).astype(np.float64) for z in (X, Y))
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.sum((b.T @ a) ** 2) / np.sqrt(np.sum((a.T @ a) ** 2) * np.sum((b.T @ b) ** 2))
    assert linear_cka(X, Y) == pytest.approx(expected, abs=1e-12)
    rotation = np.linalg.qr(GENERATOR.normal(size=(36, 36)))[0]
    assert linear_cka(X, 5 * x @ rotation + 1) == pytest.approx(1)
    with pytest.raises(UsageError, match="9 and 8 pictures"):
        linear_cka(X, Y[:8])
