import csv
import errno
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnet.errors import DataError, DiskError
from convnet.training import metrics_log

ROWS = [
    {"epoch": 1, "loss": 2.302585092994046, "kind": "train"},
    {"epoch": 1, "error": 0.5},
    {"loss": 1e-300, "é": "ü"},
]


def written(path, rows):
    for row in rows:
        metrics_log.append(path, row)
    return path


def test_rows_come_back_exactly(tmp_path):
    assert metrics_log.read(written(tmp_path / "metrics.jsonl", ROWS)) == ROWS
    assert metrics_log.read(tmp_path / "absent.jsonl") == []


def test_numbers_that_json_lacks_are_texts(tmp_path):
    path = written(tmp_path / "m", [{"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": True}])
    assert metrics_log.read(path) == [{"a": "nan", "b": "inf", "c": "-inf", "d": None, "e": True}]


def test_a_row_is_in_the_file_when_append_returns(tmp_path):
    path = tmp_path / "m"
    for n in range(1, 4):
        metrics_log.append(path, {"n": n})
        assert path.read_bytes().count(b"\n") == n


def test_every_torn_end_leaves_the_whole_rows(tmp_path):
    path = written(tmp_path / "m", ROWS)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        assert metrics_log.read(path) == ROWS[:whole]
        assert metrics_log.keep_whole(path, 2) == 0
        assert metrics_log.read(written(path, ROWS[2:])) == ROWS[: min(whole, 2)] + ROWS[2:]


def test_the_first_rows_keep_their_bytes(tmp_path):
    path = written(tmp_path / "m", ROWS)
    data = path.read_bytes()
    assert metrics_log.keep_whole(path) == 0
    assert path.read_bytes() == data
    assert metrics_log.keep_whole(path, 1) == 0
    assert path.read_bytes() == data.split(b"\n")[0] + b"\n"
    assert metrics_log.keep_whole(tmp_path / "absent", 5) == 0
    assert not (tmp_path / "absent").exists()


def test_every_flipped_bit_of_a_row_is_found(tmp_path):
    path = written(tmp_path / "m", ROWS)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"m, line \d"):
            metrics_log.read(path)
        assert metrics_log.keep_whole(path) > 0
        assert all(row in ROWS for row in metrics_log.read(path))


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "m").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="m is a link"):
        metrics_log.append(tmp_path / "m", {"a": 1})
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("line", [b"{]", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "m"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match="m, line 2: not a row of JSON"):
        metrics_log.read(path)


def test_the_csv_has_a_column_for_every_name(tmp_path):
    metrics_log.write_csv(ROWS, tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["epoch,loss,kind,error,é", "1,2.302585092994046,train,,", "1,,,0.5,", ",1e-300,,,ü"]


@settings(deadline=None)  # a file each
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.none(), max_size=3)))
def test_no_cell_of_the_csv_begins_a_formula(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "m.csv"
    metrics_log.write_csv(rows, path)
    with open(path, newline="", encoding="utf-8") as file:
        for cells in csv.reader(file):
            for cell in cells:
                assert not cell.startswith(("=", "+", "@", "\t", "\r"))
                assert not cell.startswith("-") or int(cell) < 0


def test_a_long_table_takes_no_memory(tmp_path):
    """Of 5,000 epochs a row at a time is parsed: all are 7 MB, which a long run would grow by."""
    lines = [metrics_log.line({f"name {k}": 0.1 * epoch for k in range(10)}) for epoch in range(5000)]
    tracemalloc.start()
    metrics_log.write_csv(metrics_log.Rows(tmp_path / "m", lines), tmp_path / "m.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "m.csv").read_bytes().count(b"\n") == 5001
    assert peak < 300_000


def test_a_full_disk_is_a_disk_error_that_names_the_file(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "m"
    monkeypatch.setattr(metrics_log, "open", lambda *_, **__: Full(), raising=False)
    with pytest.raises(DiskError, match="m: disk full"):
        metrics_log.append(path, {"a": 1})
    monkeypatch.undo()
    with pytest.raises(DiskError, match="cannot be written: No such file"):
        metrics_log.append(tmp_path / "no" / "m", {"a": 1})
