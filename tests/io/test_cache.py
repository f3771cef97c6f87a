"""The cache of files that can be had again: its bound holds, the least recently used files go, nothing else matters."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from convnet.io.cache import BLOCK, PART, SIZE, Cache


def n_bytes(cache: Cache) -> int:
    """What the files take, looked at while nobody adds one."""
    with cache._locked():
        return sum(BLOCK * -(-path.stat().st_size // BLOCK) for path in cache.folder.rglob("*") if path.name[0] != "."
                   and path.is_file())  # fmt: skip


def test_what_is_kept_comes_back_and_another_takes_its_place(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10 * BLOCK)
    assert cache.get("a/1") is None
    cache.add("a/1", b"one")
    cache.add("a/1", b"other" * 1000)
    assert cache.get("a/1") == b"other" * 1000
    assert int((cache.folder / SIZE).read_bytes()) == n_bytes(cache) == 2 * BLOCK


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 16 * BLOCK)
    for i in range(16):
        cache.add(f"a/{i}", bytes([i]))
        os.utime(cache.folder / f"a/{i}", ns=(i, i))
    assert cache.get("a/0") == b"\0"  # which makes it the last used one
    cache.add("b/new", b"new")
    assert {path.name for path in (cache.folder / "a").iterdir()} == {"0", *map(str, range(3, 16))}  # an eighth went
    assert cache.get("b/new") == b"new"


def test_a_file_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2 * BLOCK)
    cache.add("a/1", b"one")
    cache.add("a/2", bytes(2 * BLOCK + 1))
    assert (cache.get("a/1"), cache.get("a/2")) == (b"one", None)
    cache.add("a/3", bytes(2 * BLOCK))
    assert (cache.get("a/1"), cache.get("a/3")) == (None, bytes(2 * BLOCK))


def test_what_a_killed_process_left_and_what_somebody_removed_is_made_good(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 8 * BLOCK)
    for i in range(8):
        cache.add(f"a/{i}", b"x")
    (cache.folder / PART).write_bytes(b"torn")
    (cache.folder / "a/3").unlink()
    for text in (b"", b"nonsense", b"%020d" % (8 * BLOCK)):
        (cache.folder / SIZE).write_bytes(text)
        cache.add("b/1", b"new")
        assert cache.get("b/1") == b"new"
        assert n_bytes(cache) <= cache.most
    assert not (cache.folder / PART).exists()


ADDER = """
import sys
from pathlib import Path
from convnet.io.cache import Cache
cache = Cache(Path(sys.argv[1]), int(sys.argv[2]))
for i in range(200):
    cache.add(f"{sys.argv[3]}/{i % 60}", bytes(i % 7 * 3000))
"""


def test_the_bound_holds_over_threads_and_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 40 * BLOCK)
    cache.add("a/0", b"")
    words = [sys.executable, "-c", ADDER, str(cache.folder), str(cache.most)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    others = [subprocess.Popen([*words, name], env=environment) for name in "pq"]

    def add(name: str) -> None:
        for i in range(200):
            cache.add(f"{name}/{i % 60}", bytes(i % 7 * 3000))

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads) or any(other.poll() is None for other in others):
        seen.append(n_bytes(cache))
    assert [other.wait() for other in others] == [0, 0]
    assert max(seen) <= cache.most
    assert n_bytes(cache) <= int((cache.folder / SIZE).read_bytes()) <= cache.most
    assert n_bytes(cache) > cache.most // 2  # it does keep something
