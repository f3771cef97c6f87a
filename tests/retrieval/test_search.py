"""Searches by features and by codes against the plainest loops; coders; how good a search is."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnet.errors import UsageError
from convnet.retrieval import by_faiss, codes, exact, hamming, products, quality


def bits_that_differ(a: np.ndarray, b: np.ndarray) -> int:
    return sum((x ^ y) >> bit & 1 for x, y in zip(a.tolist(), b.tolist(), strict=True) for bit in range(8))


@pytest.mark.parametrize("n_bytes", [1, 2, 4, 7, 8, 16, 33, 64])
def test_hamming_distances_are_those_of_a_loop_over_bits(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few different bytes, so that there are ties; blocks of 8, so that the nearest come from several."""
    monkeypatch.setattr(hamming, "BLOCK", 8)
    searched = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (50, n_bytes))
    queries = np.concatenate([searched[:2], ~searched[:1]])
    for k in (0, 1, 20, 50, 60):
        positions, distances = hamming.nearest(queries, hamming.by_words(searched), k)
        for query, found, said in zip(queries, positions, distances, strict=True):
            every = [bits_that_differ(query, code) for code in searched]
            right = sorted(range(50), key=lambda i: (every[i], i))[:k]
            assert found.tolist() == right
            assert said.tolist() == [every[i] for i in right]


@pytest.mark.parametrize("n_bytes", [1, 8, 16, 33])
def test_faiss_finds_the_same_in_the_same_order(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few different bytes: of many codes at one distance faiss gives others, until all of them are asked for."""
    pytest.importorskip("faiss", reason='needs pip install "convnet-classics[faiss]"')
    generator = np.random.default_rng(0)
    searched = generator.choice(np.array([0, 1, 255], np.uint8), (3000, n_bytes))
    queries = np.concatenate([searched[:5], generator.integers(0, 256, (5, n_bytes), np.uint8)])
    words = hamming.by_words(searched)
    assert np.array_equal(hamming.by_rows(words), searched)
    for k in (1, 10, 300, 2999):
        monkeypatch.setattr(by_faiss, "WORTH", 1 << 60)
        assert not by_faiss.serves(len(queries), len(searched), k)
        plain = hamming.nearest(queries, words, k)
        monkeypatch.setattr(by_faiss, "WORTH", 0)
        assert by_faiss.serves(len(queries), len(searched), k)
        for ours, theirs in zip(plain, hamming.nearest(queries, words, k), strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)


def test_without_faiss_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_faiss, "WORTH", 0)
    monkeypatch.setitem(sys.modules, "faiss", None)  # its import is an ImportError
    by_faiss.library.cache_clear()
    searched = np.arange(256, dtype=np.uint8)[:, None]
    assert not by_faiss.serves(1, 256, 3)
    assert hamming.nearest(searched[:1], hamming.by_words(searched), 3)[0].tolist() == [[0, 1, 2]]
    by_faiss.library.cache_clear()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_share_the_queries(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNET_THREADS", str(n_threads))
    monkeypatch.setattr(hamming, "BLOCK", 64)
    generator = np.random.default_rng(0)
    searched, queries = (generator.integers(0, 4, (n, 2), np.uint8) for n in (500, 40))
    positions, _ = hamming.nearest(queries, hamming.by_words(searched), 9)
    for query, places in zip(queries, positions, strict=True):
        every = np.bitwise_count(searched ^ query).sum(1)
        assert places.tolist() == np.argsort(every, kind="stable")[:9].tolist()


def test_the_largest_distance_is_all_bits() -> None:
    """512 differing bits: more than a byte counts."""
    codes_of_ones = hamming.by_words(np.full((3, 64), 255, np.uint8))
    assert hamming.nearest(np.zeros((1, 64), np.uint8), codes_of_ones, 1)[1].tolist() == [[512]]


def test_codes_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match="a query has 4 bytes, and the codes that are searched have 8"):
        hamming.nearest(np.zeros((1, 4), np.uint8), hamming.by_words(np.zeros((3, 8), np.uint8)), 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 12), st.sampled_from(["float16", "float32"]), st.data())
def test_exact_search_is_brute_force(n: int, d: int, k: int, dtype: str, data: st.DataObject) -> None:
    """Small integers, times a power of two: distances tie, and float64 has each exactly, in whatever order."""
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scale = data.draw(st.sampled_from([2.0**-10, 1.0, 64.0]))
    rows = (generator.integers(-2, 3, (n, d)) * scale).astype(dtype)
    queries = np.concatenate([rows[:2], (generator.integers(-2, 3, (2, d)) * scale).astype(dtype)])
    cut = data.draw(st.integers(0, n))
    positions, distances = exact.nearest(queries, [rows[:cut], rows[cut:]], k)
    every = np.sqrt(np.square(queries[:, None].astype(np.float64) - rows[None].astype(np.float64)).sum(2))
    for own, found, said in zip(every, positions, distances, strict=True):
        right = sorted(range(n), key=lambda i: (own[i], i))[:k]
        assert found.tolist() == right
        assert said.tolist() == own[right].tolist()


def test_what_float32_cannot_tell_apart_is_told_apart() -> None:
    """Far from 0 the product of matrices is off by more than the distances: 4,096 numbers near 100, changes of 1/16."""
    rows = (100 + np.random.default_rng(0).integers(-1, 2, (90, 4096)) / 16).astype(np.float16)
    positions, distances = exact.nearest(rows[:6], [rows[:40], rows[40:]], 5)
    every = np.square(rows[:6, None].astype(np.float64) - rows[None].astype(np.float64)).sum(2)
    assert positions.tolist() == np.argsort(every, 1, kind="stable")[:, :5].tolist()
    assert distances[:, 0].tolist() == [0.0] * 6


def test_the_cosine_is_one_minus_the_cosine() -> None:
    """Of 64-bit floats; a row's distance to a multiple of itself is 0 but for their rounding."""
    rows = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    rows[7] = 4 * rows[3]
    positions, distances = exact.nearest(rows[:9], [rows[:31], rows[31:]], 60, "cosine")
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    every = 1 - wide[:9] @ wide.T / np.outer(lengths[:9], lengths)
    assert np.allclose(distances, np.take_along_axis(every, positions, 1), rtol=0, atol=1e-14)
    assert positions[3, :2].tolist() == [3, 7]
    assert (np.diff(distances) >= 0).all()


def test_a_picture_without_any_activation_has_no_angle() -> None:
    """A row of zeros stays one: half the squared distance to a row at length 1 is 1/2, whichever that is."""
    rows = np.array([[0.0, 4.0], [0.0, 0.0], [2.0, 0.0]])
    positions, distances = exact.nearest(rows, [rows], 3, "cosine")
    assert positions.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0]]
    assert distances.tolist() == [[0, 0.5, 1], [0, 0.5, 0.5], [0, 0.5, 1]]
    assert np.isfinite(codes.unit(rows)).all()


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match="a query has 3 features, and what is searched has 4"):
        exact.nearest(np.zeros((1, 3)), [np.zeros((2, 4))], 1)


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, np.ndarray]:
    """600 rows of 40 features around 6 directions, as float16, and which one is each row's."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 600)
    rows = generator.standard_normal((6, 40))[labels] + 0.7 * generator.standard_normal((600, 40))
    return rows.astype(np.float16), labels


@pytest.mark.parametrize("kind", codes.KINDS)
def test_near_features_have_near_codes(
    kind: str, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 bits: most of the 10 nearest codes are of the row's own direction, which a sixth would be by chance."""
    monkeypatch.setattr(codes, "STEPS", 300)
    rows, labels = clusters
    coder = codes.fit(kind, rows[100:], 32)
    assert coder.n_bits == 32
    searched = coder.encode(rows[100:])
    positions, _ = coder.nearest(rows[:100], hamming.by_words(searched), 10)
    assert (labels[100:][positions] == labels[:100, None]).mean() > 0.6
    assert np.array_equal(codes.fit(kind, rows[100:], 32).encode(rows), coder.encode(rows))  # the seed decides


@pytest.mark.parametrize("n_bits", [40, 56])
def test_an_autoencoder_begins_as_itq(
    n_bits: int, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 features, so that both draw alike: the first 40 bits are ITQ's but where rounding decides."""
    monkeypatch.setattr(codes, "_learn", lambda *_: None)
    rows, _ = clusters
    found = np.unpackbits(codes.fit("autoencoder", rows, n_bits).encode(rows), axis=1)[:, :n_bits]
    right = np.unpackbits(codes.fit("itq", rows, 40).encode(rows), axis=1)
    assert (found[:, :40] != right).mean() < 0.001
    assert (np.abs(found[:, 40:].mean(0) - 0.5) < 0.3).all()  # the others tell something too


def test_product_quantisation_is_brute_force(clusters: tuple[np.ndarray, np.ndarray]) -> None:
    """13 parts of 40 features. A code's centres are the nearest of all; a distance is that of the query to what a code
    stands for; every code is there twice, so that there are ties."""
    rows, unit = clusters[0], codes.unit(clusters[0]).astype(np.float64)
    coder = codes.fit("pq", rows, 104)
    assert (coder.n_bits, coder.n_features, len(coder.layers)) == (104, 40, 13)
    centres, own = [weights.T.astype(np.float64) for weights, _ in coder.layers], coder.encode(rows)
    parts = np.split(unit, np.cumsum([each.shape[1] for each in centres])[:-1], 1)
    for part, every, places in zip(parts, centres, own.T, strict=True):
        apart = np.square(part[:, None] - every).sum(2)
        assert np.allclose(apart.min(1), apart[np.arange(600), places], rtol=0, atol=1e-6)
    twins = np.concatenate([own, own])
    found, distances = coder.nearest(rows[:20], hamming.by_words(twins), 30)
    kept = np.concatenate([every[places] for every, places in zip(centres, own.T, strict=True)], 1)
    right = np.sqrt(np.square(unit[:20, None] - kept).sum(2))
    for query, places, said in zip(right, found, distances, strict=True):
        assert np.allclose(said, np.sort(np.concatenate([query, query]))[:30], rtol=0, atol=1e-5)
        assert np.allclose(said, query[places % 600], rtol=0, atol=1e-5)
        assert (places[1::2] == places[::2] + 600).all()
        assert (np.diff(said) >= 0).all()


def test_centres_are_the_means_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heaps and three centres; of fewer rows than centres each is one, of equal rows too."""
    heaps = np.repeat([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], 5, 0).astype(np.float32)
    heaps += np.random.default_rng(0).standard_normal(heaps.shape).astype(np.float32) / 10
    monkeypatch.setattr(products, "CENTRES", 3)
    found = min((products._centres(heaps, np.random.default_rng(i)) for i in range(20)), key=lambda c: spread(heaps, c))
    assert np.allclose(sorted(found.tolist()), sorted(heaps.reshape(3, 5, 2).mean(1).tolist()), rtol=0, atol=1e-5)
    same = np.ones((2, 2), np.float32)
    assert np.array_equal(products._centres(same, np.random.default_rng(0)), same)


def spread(rows: np.ndarray, centres: np.ndarray) -> float:
    return float(np.square(rows[:, None] - centres).sum(2).min(1).sum())


def test_a_code_is_the_signs_of_its_layers() -> None:
    """28 bits by a loop over pictures and bits; the last four of a code's four bytes are 0."""
    rows = np.random.default_rng(0).standard_normal((9, 12))
    coder = codes.fit("lsh", rows, 28)
    ((weights, biases),) = coder.layers
    for row, code in zip(rows, coder.encode(rows), strict=True):
        values = row.astype(np.float32) / np.linalg.norm(row) @ weights + biases
        assert np.abs(values).min() > 1e-5  # so that no rounding decides
        bits = "".join("1" if value > 0 else "0" for value in values) + "0000"
        assert code.tolist() == [int(bits[i : i + 8], 2) for i in range(0, 32, 8)]


def test_components_span_what_a_singular_value_decomposition_finds() -> None:
    """Of 30 features that vary less and less: the first five, up to the sign."""
    rows = (np.random.default_rng(0).standard_normal((200, 30)) * 0.7 ** np.arange(30)).astype(np.float32)
    rows -= rows.mean(0)
    found = codes._components(rows, 5, np.random.default_rng(1))
    right = np.linalg.svd(rows.astype(np.float64))[2][:5].T
    assert np.abs(np.abs((found * right).sum(0)) - 1).max() < 1e-3  # 5 passes of a space of 15 directions


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda rows: codes.fit("pca", rows, 32), "unknown kind of code 'pca': .*Known: autoencoder, itq, lsh, pq"),
        (
            lambda rows: codes.fit("pq", rows, 36),
            "36 bits by pq: a multiple of 8, and at most 8 for each of 40 features",
        ),
        (lambda rows: codes.fit("pq", rows, 328), "328 bits by pq: a multiple of 8"),
        (lambda rows: codes.fit("lsh", rows, 4), "codes of 4 bits: from 8 to 1024"),
        (
            lambda rows: codes.fit("itq", rows, 48),
            "48 bits by ITQ: 600 pictures with 40 features have 40 principal components",
        ),
        (
            lambda rows: codes.fit("lsh", rows, 8).encode(rows[:, :9]),
            "features of 9 numbers; the coder was fitted on 40",
        ),
    ],
)
def test_what_a_coder_refuses(
    ask: Callable[[np.ndarray], object], text: str, clusters: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(UsageError, match=text):
        ask(clusters[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_measures_of_quality_are_those_of_loops(n: int, seed: int) -> None:
    relevant = np.random.default_rng(seed).random((4, n)) < 0.4
    k = 1 + seed % n
    for q, row in enumerate(relevant.tolist()):
        places = [i for i, each in enumerate(row) if each]
        average = sum((j + 1) / (i + 1) for j, i in enumerate(places)) / len(places) if places else 1.0
        assert quality.average_precision(relevant)[q] == pytest.approx(average, rel=1e-12)
        assert quality.precision(relevant, k)[q] == pytest.approx(sum(row[:k]) / k, rel=1e-12)
        some = sum(row[:k]) / len(places) if places else 1.0
        assert quality.recall(relevant, k, relevant.sum(1))[q] == pytest.approx(some, rel=1e-12)


def test_a_search_is_held_against_another_and_by_class() -> None:
    assert quality.among(np.array([[3, 1], [0, 2]]), np.array([[1, 5], [2, 0]])).tolist() == [
        [False, True],
        [True, True],
    ]
    assert quality.by_class(np.array([0.0, 1.0, 0.5]), np.array([4, 4, 7])) == {4: 0.5, 7: 0.5}
    low, high = quality.interval(np.array([0.0, 1.0] * 50))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(99), rel=1e-12)
