"""Reading numbers from `.npz` files, never anything that could run code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from streambatch.core.errors import StreambatchError
from streambatch.core.types import FloatArray

Fail = Callable[[str], StreambatchError]


class HashedFile(NamedTuple):
    """A file's bytes and their sha256."""

    path: Path
    data: bytes
    digest: str


def read_archive(path: Path, fail: Fail) -> HashedFile:
    """Read a file whole. Raises what `fail` makes of the problem."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise fail(f"{path}: {error.strerror}") from error
    return HashedFile(path, data, hashlib.sha256(data).hexdigest())


def arrays_of(archive: HashedFile, names: Sequence[str], fail: Fail) -> Mapping[str, FloatArray]:
    """Return the named arrays as float64. Raises what `fail` makes of the problem."""
    try:
        # From memory: read a second time, the file could hold other bytes than the digest was taken of. And never a
        # pickle, which could run code.
        loaded = np.load(io.BytesIO(archive.data), allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise fail(f"{archive.path}: expected an .npz file of arrays {_listed(names)}") from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise fail(f"{archive.path}: expected an .npz file of arrays {_listed(names)}, found a single array")
    with loaded:
        missing = [name for name in names if name not in loaded]
        if missing:
            raise fail(f"{archive.path}: no array {_listed(missing)}; it holds {_listed(loaded.files) or 'none'}")
        return {name: _read(archive.path, loaded, name, fail) for name in names}


def numbers(name: str, value: object, fail: Fail) -> FloatArray:
    """Return a number or nested lists of numbers as a float64 array."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise fail(f"{name}: expected numbers, found lists of different lengths") from error
    if array.dtype.kind not in "fiub":
        raise fail(f"{name}: expected numbers, found an array of {array.dtype}")
    return array.astype(np.float64)


def first_place(mask: np.ndarray[Any, Any]) -> str:
    """Return the index of the first true element as in Python: `[3]`, `[0, 2]`, or nothing for a scalar."""
    place = np.argwhere(mask)[0].tolist()
    return f"[{', '.join(map(str, place))}]" if place else ""


def _read(path: Path, loaded: Any, name: str, fail: Fail) -> FloatArray:
    try:
        array = loaded[name]
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise fail(f"{path}: array {name} can't be read: {error}") from error
    return numbers(f"{path}: {name}", array, fail)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
