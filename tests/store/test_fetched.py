"""Copies of remote files: fetched once by whoever asks first, kept within a bound, never taken from who uses them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spatialscope_dist import fetched
from spatialscope_dist.errors import BadInput, StoreError
from spatialscope_dist.fetched import kept_copy

MEBIBYTE = 1 << 20
USER = """
import sys, time
from pathlib import Path
from spatialscope_dist.fetched import kept_copy
def fetch(target):
    with open(sys.argv[2], "a") as log:
        log.write("fetched\\n")
    time.sleep(0.2)
    target.write_bytes(bytes(1 << 20))
print(kept_copy(sys.argv[1], "slide.svs", 1 << 20, fetch), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPATIALSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPATIALSCOPE_CACHE_GIB", str(3 * MEBIBYTE / 2**30))
    return tmp_path / "cache"


def key(number: int) -> str:
    return f"{number:032x}"


def of_size(size: int, *, fill: bytes = b"x") -> Callable[[Path], None]:
    def fetch(target: Path) -> None:
        target.write_bytes(fill * size)

    return fetch


def user(number: int, log: Path) -> subprocess.Popen[str]:
    """Start a process that fetches a MiB under a key, and uses it until its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", USER, key(number), str(log)], text=True, **pipes)


def kept_entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def stop_using(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process go of its entries, as it does some hours after it last asked for them."""
    monkeypatch.setattr(fetched, "_FORGOTTEN_AFTER_S", -1.0)


def test_kept_copy__of_several_processes_one_fetches(cache: Path, tmp_path: Path) -> None:
    processes = [user(1, tmp_path / "log") for _ in range(3)]
    paths = {process.stdout.readline().strip() for process in processes if process.stdout is not None}
    for process in processes:
        process.communicate()
    (path,) = paths
    assert Path(path).stat().st_size == MEBIBYTE
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_kept_copy__of_several_threads_one_fetches(cache: Path) -> None:
    fetches: list[Path] = []

    def fetch(target: Path) -> None:
        fetches.append(target)
        target.write_bytes(b"whole")

    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _: kept_copy(key(1), "a.csv", 5, fetch), range(64)))
    assert {path.read_bytes() for path in paths} == {b"whole"}
    assert len(fetches) == 1


def test_kept_copy__least_recently_used_goes_first_but_never_what_a_process_uses(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_using(monkeypatch)
    using = user(1, tmp_path / "log")
    assert using.stdout is not None
    in_use = Path(using.stdout.readline().strip())
    for number in (2, 3):
        path = kept_copy(key(number), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
    for number, when in ((1, 1.0), (2, 20.0), (3, 10.0)):  # the one in use is the oldest by far
        os.utime(cache / key(number), (when, when))
    kept_copy(key(4), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
    assert kept_entries(cache) == [key(1), key(2), key(4)]
    assert in_use.exists()
    assert not path.exists()
    using.communicate()
    kept_copy(key(5), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
    assert kept_entries(cache) == [key(2), key(4), key(5)]


def test_kept_copy__what_is_used_again_is_kept_longer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_using(monkeypatch)
    for number in (1, 2, 3):
        kept_copy(key(number), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
        os.utime(cache / key(number), (number, number))
    kept_copy(key(1), "slide.svs", MEBIBYTE, of_size(MEBIBYTE, fill=b"never fetched"))
    kept_copy(key(4), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
    assert kept_entries(cache) == [key(1), key(3), key(4)]


def test_kept_copy__larger_than_the_bound_is_kept_while_it_is_used(cache: Path) -> None:
    first = kept_copy(key(1), "slide.svs", 4 * MEBIBYTE, of_size(4 * MEBIBYTE))
    second = kept_copy(key(2), "slide.svs", 4 * MEBIBYTE, of_size(4 * MEBIBYTE))
    assert first.stat().st_size == second.stat().st_size == 4 * MEBIBYTE


def test_kept_copy__nothing_but_entries_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_using(monkeypatch)
    own = cache / "notes" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(5 * MEBIBYTE))
    for number in range(6):
        kept_copy(key(number), "slide.svs", MEBIBYTE, of_size(MEBIBYTE))
    assert own.exists()
    assert len(kept_entries(cache)) == 4


def test_kept_copy__fetch_that_was_cut_short_is_made_again(cache: Path) -> None:
    def cut(target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(b"1")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        kept_copy(key(1), "model", 2, cut)
    left = cache / key(1) / "part" / "model"  # as a kill leaves it
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"1")
    path = kept_copy(key(1), "model", 5, of_size(5, fill=b"w"))
    assert path.read_bytes() == b"wwwww"
    assert not left.parent.exists()


def test_kept_copy__is_fetched_again_when_someone_removed_it(cache: Path) -> None:
    kept_copy(key(1), "a.csv", 1, of_size(1))
    shutil.rmtree(cache)
    assert kept_copy(key(1), "a.csv", 1, of_size(1)).read_bytes() == b"x"


def test_kept_copy__full_disk_says_what_to_do(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPATIALSCOPE_CACHE", str(small_disk / "cache"))
    with pytest.raises(StoreError, match=r"no room for slide.svs of 8388608 bytes. .*SPATIALSCOPE_CACHE"):
        kept_copy(key(1), "slide.svs", 8 * MEBIBYTE, of_size(8 * MEBIBYTE))
    assert list((small_disk / "cache" / key(1)).iterdir()) == []


def test_kept_copy__bound_that_is_no_number(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPATIALSCOPE_CACHE_GIB", "much")
    with pytest.raises(BadInput, match="SPATIALSCOPE_CACHE_GIB: found 'much'"):
        kept_copy(key(1), "a.csv", 1, of_size(1))
