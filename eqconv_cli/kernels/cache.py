"""The cache of built libraries: one folder an entry, complete or not there.

``$EQCONV_CACHE`` (else ``$XDG_CACHE_HOME/eqconv``, else ``~/.cache/eqconv``) holds
``kernels/<target>/<source key>-<tool key>/`` with the library, ``manifest.json`` and ``log.txt``. An entry is made in a
folder beside it and renamed when it is whole. Whatever does not agree with its manifest is as good as not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

FORMAT = "eqconv.kernel/1"
LOG, MANIFEST = "log.txt", "manifest.json"
#: Entries of a target that stay when another one is added: several environments of a user share the cache.
_KEPT = 8
_UNFINISHED = ".unfinished-"
_hashes: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class Entry:
    """A valid entry."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / str(self.manifest["library"])


def folder(target: str) -> Path:
    """Where the entries of a target are; it need not exist."""
    given = os.environ.get("EQCONV_CACHE")
    if given:
        return Path(given).expanduser() / "kernels" / target
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg else Path.home() / ".cache"
    return base / "eqconv" / "kernels" / target


def newest(target: str, source_key: str) -> Entry | None:
    """The newest valid entry with this source key, whatever compiler made it."""
    found = [entry for path in _entries(target, f"{source_key}-*") if (entry := valid(path, target)) is not None]
    return max(found, key=lambda entry: (entry.folder / MANIFEST).stat().st_mtime_ns, default=None)


def any_entry(target: str) -> bool:
    """Whether there is anything of this target, current or not."""
    return bool(_entries(target, "*"))


def valid(path: Path, target: str) -> Entry | None:
    """The entry in a folder, or None if anything about it is not as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["target"] != target or manifest["entry"] != path.name:
            return None
        library = path / manifest["library"]
        if library.parent != path or library.stat().st_size != manifest["size_bytes"]:
            return None
        return Entry(path, manifest) if file_hash(library) == manifest["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_hash(path: Path) -> str:
    """The SHA-256 of a file; computed again only when the file has changed."""
    stat = path.stat()
    state = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if state not in _hashes:
        _hashes[state] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _hashes[state]


def _entries(target: str, pattern: str) -> list[Path]:
    place = folder(target)
    return [path for path in place.glob(pattern) if not path.name.startswith(".") and path.is_dir()]


class Lock:
    """The right to add entries of one target. It ends with its process, however that ends."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._file: IO[str] | None = None

    def acquire(self) -> int | None:
        """Take the lock and return None, or return at once the process id of the one that has it (0: unknown).

        Raises:
            OSError: the folder of the cache cannot be written.
        """
        place = folder(self._target)
        place.mkdir(parents=True, exist_ok=True)
        file = (place / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            return int(owner) if owner.isdigit() else 0
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        for left in place.glob(f"{_UNFINISHED}*"):
            # Only the owner of the lock makes such folders, so these belong to a process that was killed.
            shutil.rmtree(left, ignore_errors=True)
        return None

    def release(self) -> None:
        """Give the lock back; nothing happens without it."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None


def workplace(target: str) -> Path:
    """A new folder to build in, on the file system of the cache; the lock must be held."""
    return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder(target)))


def publish(work: Path, entry: str, target: str, library: str, facts: Mapping[str, Any]) -> Entry:
    """Turn a workplace that has a library in it into an entry; replaces one of the same name. The lock must be held."""
    made = work / library
    # Everything must be on the disk before the name says that it is whole.
    with made.open("rb") as file:
        os.fsync(file.fileno())
    manifest = {
        "format": FORMAT,
        "target": target,
        "entry": entry,
        "library": library,
        "size_bytes": made.stat().st_size,
        "sha256": hashlib.sha256(made.read_bytes()).hexdigest(),
        **facts,
    }
    with (work / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    work.chmod(0o755)
    final = folder(target) / entry
    if final.exists():
        replaced = workplace(target)
        final.rename(replaced / entry)
        work.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        work.rename(final)
    failed_log(target, entry).unlink(missing_ok=True)
    _forget_oldest(target, final)
    return Entry(final, manifest)


def failed_log(target: str, entry: str) -> Path:
    """Where the log of a build that failed is kept."""
    return folder(target) / f"{entry}.failed.txt"


def _forget_oldest(target: str, added: Path) -> None:
    def age(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    others = sorted((path for path in _entries(target, "*") if path != added), key=age, reverse=True)
    for path in others[_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
