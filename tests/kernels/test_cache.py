from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eqconv_cli import kernels
from eqconv_cli.kernels import cache
from tests.kernels import support


@pytest.fixture
def built(tree: Path) -> Path:
    """The folder of a valid entry of the target cpu."""
    path = support.rows(["cpu"], root=tree)["cpu"].path
    assert path is not None
    return Path(path).parent


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQCONV_CACHE", "/a")
    assert cache.folder("cpu") == Path("/a/kernels/cpu")
    monkeypatch.delenv("EQCONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.folder("cpu") == Path("/b/eqconv/kernels/cpu")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache.folder("cpu") == Path("/c/.cache/eqconv/kernels/cpu")


def test_an_entry_holds_library_manifest_and_log(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"libeqconv_cpu.so", "manifest.json", "log.txt"}
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["format"] == "eqconv.kernel/1"
    assert manifest["arch"] == [] and manifest["seconds"] > 0 and manifest["compiler"]
    assert (built / "log.txt").read_text().count("$ ") == len(manifest["commands"]) == 5


def edited(built: Path, **changes: object) -> None:
    path = built / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def moved_out(built: Path) -> None:
    (built / "libeqconv_cpu.so").rename(built.parent / "libeqconv_cpu.so")
    edited(built, library="../libeqconv_cpu.so")


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda built: (built / "manifest.json").unlink(), id="no manifest"),
        pytest.param(lambda built: (built / "libeqconv_cpu.so").unlink(), id="no library"),
        pytest.param(lambda built: truncated(built / "libeqconv_cpu.so"), id="truncated library"),
        pytest.param(lambda built: flipped(built / "libeqconv_cpu.so"), id="one bit of the library"),
        pytest.param(lambda built: truncated(built / "manifest.json"), id="half-written manifest"),
        pytest.param(lambda built: (built / "manifest.json").write_text("[]"), id="another manifest"),
        pytest.param(lambda built: (built / "manifest.json").write_bytes(b"\xff\xfe"), id="no text"),
        pytest.param(lambda built: edited(built, format="eqconv.kernel/0"), id="older format"),
        pytest.param(lambda built: edited(built, target="cuda"), id="another target"),
        pytest.param(moved_out, id="a library elsewhere"),
        pytest.param(lambda built: built.rename(built.with_name(f"{built.name}x")), id="another name"),
    ],
)
def test_what_is_not_whole_is_not_there(built: Path, tree: Path, harm: Callable[[Path], object]) -> None:
    assert kernels.built("cpu") == built / "libeqconv_cpu.so"
    harm(built)
    assert kernels.built("cpu") is None
    assert support.rows(["cpu"], root=tree)["cpu"].status == "built"
    assert kernels.built("cpu") == built / "libeqconv_cpu.so"


def test_foreign_files_do_no_harm(built: Path, tree: Path) -> None:
    (built.parent / "README").write_text("mine")
    (built.parent / f"{built.name.split('-')[0]}-0000000000000000").mkdir()
    assert kernels.built("cpu") == built / "libeqconv_cpu.so"
    assert support.rows(["cpu"], root=tree)["cpu"].status == "cached"


def test_the_newest_of_several_compilers_counts(built: Path) -> None:
    twin = built.with_name(f"{built.name.split('-')[0]}-ffffffffffffffff")
    twin.mkdir()
    for path in built.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    edited(twin, entry=twin.name)
    os.utime(built / "manifest.json", (0, 0))
    assert kernels.built("cpu") == twin / "libeqconv_cpu.so"
    os.utime(twin / "manifest.json", (0, 0))
    os.utime(built / "manifest.json")
    assert kernels.built("cpu") == built / "libeqconv_cpu.so"


def test_only_the_latest_entries_stay(tree: Path) -> None:
    paths = []
    for number in range(cache._KEPT + 2):
        (tree / "scale" / "scale.h").write_text(support.HEADER + f"/* {number} */\n")
        paths.append(Path(support.rows(["emulated"], root=tree)["emulated"].path or ""))
        for age, path in enumerate(reversed(paths)):
            if path.exists():
                os.utime(path.parent, (1e9 - age, 1e9 - age))
    assert [path.exists() for path in paths] == [False] * 2 + [True] * cache._KEPT


def hold(target: str, held: object, enough: object) -> None:
    lock = cache.Lock(target)
    assert lock.acquire() is None
    held.set()  # type: ignore[attr-defined]
    enough.wait()  # type: ignore[attr-defined]


def test_a_lock_tells_its_owner_and_dies_with_it(own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, enough = context.Event(), context.Event()
    owner = context.Process(target=hold, args=("cpu", held, enough))
    owner.start()
    assert held.wait(60)
    left = cache.workplace("cpu")
    (left / "half.o").write_text("")
    mine, other = cache.Lock("cpu"), cache.Lock("torch")
    assert mine.acquire() == owner.pid
    assert other.acquire() is None
    owner.kill()
    owner.join()
    assert mine.acquire() is None
    assert not left.exists(), "the owner of the lock clears what a killed build left"
    assert cache.Lock("cpu").acquire() == os.getpid()
    mine.release()
    mine.release()
    third = cache.Lock("cpu")
    assert third.acquire() is None
    third.release()
    other.release()
