"""Fingerprints of a case set's images in a file, so that no image is decoded twice: `fingerprints.npz`.

Arrays of n images: `names` (their file names as bytes of a JSON list), `bytes` and `times` (int64; size of the file, and
its time of change in ns), `digests` (n, 16; uint8), `bits` (n; uint64), `thumbnails` (n, 32, 32; uint8, whole grey
levels) and `sizes` (n, 2; int32; width and height in pixels). 50,000 images take 55 MB.

Where `cogalign data import` wrote smaller squares, the fingerprints it stored are those of the original photographs, so
that the same photograph is found in another set whatever its size there; they stay until the file is changed.
The file is trusted as far as names, sizes and times of the images go: for a set from a stranger ask for fresh ones.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogalign.data.caseset import CaseSet
from cogalign.data.images import Fingerprint, fingerprint, load_rgb
from cogalign.data.parallel import each
from cogalign.training.atomic import atomic_file

FINGERPRINTS = "fingerprints.npz"
_SIDE = 32
_DIGEST = 16  # bytes


@dataclass(frozen=True)
class _Stored:
    """A fingerprint with the state of the file it was taken from."""

    state: tuple[int, int]
    print_: Fingerprint


def write_fingerprints(root: Path, names: Sequence[str], prints: Sequence[Fingerprint]) -> None:
    """Write `fingerprints.npz` of a case set as a whole or not at all.

    Args:
        root: folder of the case set; the images lie in it.
        names: `file_name` of each image.
        prints: the fingerprint of each image as it is now on disk.

    Raises:
        ValueError: not as many names as fingerprints.
        FileNotFoundError: an image is not there.
    """
    if len(names) != len(prints):
        raise ValueError(f"fingerprints: found {len(names)} names and {len(prints)} fingerprints, wanted as many")
    states = [_state(Path(root) / name) for name in names]
    thumbnails = np.zeros((len(prints), _SIDE, _SIDE), dtype=np.uint8)
    for index, print_ in enumerate(prints):
        thumbnails[index] = np.clip(np.rint(print_.thumbnail), 0, 255)
    with atomic_file(Path(root) / FINGERPRINTS) as file:
        np.savez(
            file,
            names=np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8),
            bytes=np.array([state[0] for state in states], dtype=np.int64),
            times=np.array([state[1] for state in states], dtype=np.int64),
            digests=np.frombuffer(b"".join(bytes.fromhex(p.digest) for p in prints), dtype=np.uint8).reshape(
                -1, _DIGEST
            ),
            bits=np.array([print_.bits for print_ in prints], dtype=np.uint64),
            thumbnails=thumbnails,
            sizes=np.array([print_.size for print_ in prints], dtype=np.int32).reshape(-1, 2),
        )


def fingerprints_of(case_set: CaseSet, workers: int | None = None, fresh: bool = False) -> list[Fingerprint]:
    """The fingerprint of each case's image, in the order of the cases. Thumbnails hold whole grey levels, as uint8.

    What `fingerprints.npz` holds is used where the file's size and time of change are still the same. The rest is
    decoded in processes, and the file is renewed. A case set that cannot be written to is no error.

    Args:
        case_set: its images must all be readable.
        workers: as in `parallel.each`.
        fresh: decode every image as it now lies in the folder. Nothing stored is believed, and nothing is stored: what
            an import kept of the original photographs stays. Delete the file to be rid of it for good.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; the message names it.
    """
    stored = {} if fresh else _read(case_set.root / FINGERPRINTS)
    paths = {case.file_name: case_set.path(case.file_name) for case in case_set.cases}
    found = {name: stored[name].print_ for name in _unchanged(stored, paths)}
    missing = [name for name in paths if name not in found]
    if missing:
        new = each(_fingerprint, [paths[name] for name in missing], "fingerprints", workers)
        found.update(zip(missing, new, strict=True))
    if not fresh and (missing or len(stored) != len(found)):
        _try_write(case_set.root, {name: found[name] for name in paths})
    return [found[case.file_name] for case in case_set.cases]


def complete_fingerprints(root: Path, prints: Mapping[str, Fingerprint]) -> None:
    """Write `fingerprints.npz` with the fingerprints of these images that it does not hold yet, if that is allowed.

    What it holds of unchanged files stays as it is, for it may be of the original photograph; images that are not
    among these are dropped.

    Args:
        root: folder of the case set.
        prints: the fingerprint of each image by its `file_name`.
    """
    stored = _read(Path(root) / FINGERPRINTS)
    known = _unchanged(stored, {name: Path(root) / name for name in prints})
    if len(known) != len(prints) or len(stored) != len(prints):
        _try_write(Path(root), {**prints, **{name: stored[name].print_ for name in known}})


def _unchanged(stored: Mapping[str, _Stored], paths: Mapping[str, Path]) -> list[str]:
    """The images whose file is as it was when its fingerprint was stored."""
    return [
        name for name, path in paths.items() if name in stored and path.is_file() and stored[name].state == _state(path)
    ]


def _try_write(root: Path, found: dict[str, Fingerprint]) -> None:
    """Renew the file where that is allowed."""
    try:
        write_fingerprints(root, list(found), list(found.values()))
    except OSError:  # a read-only folder; the next call decodes again
        return


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file (of what a link leads to)."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _fingerprint(path: Path) -> Fingerprint:
    """Fingerprint of a file, with its thumbnail in whole grey levels as the stored ones have it."""
    print_ = fingerprint(np.asarray(load_rgb(path)))
    return replace(print_, thumbnail=np.clip(np.rint(print_.thumbnail), 0, 255).astype(np.uint8))


def _read(path: Path) -> dict[str, _Stored]:
    """The stored fingerprints by file name; none if the file is missing or not what we write, however it is broken."""
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if any(member.compress_type != zipfile.ZIP_STORED for member in arrays.zip.infolist()):
                return {}  # we never compress; such a file may hold far more than memory does
            names = json.loads(_array(arrays, "names", np.uint8, (None,)).tobytes())
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return {}
            number = len(names)
            sizes_of_files = _array(arrays, "bytes", np.int64, (number,)).tolist()
            times = _array(arrays, "times", np.int64, (number,)).tolist()
            digests = _array(arrays, "digests", np.uint8, (number, _DIGEST))
            bits = _array(arrays, "bits", np.uint64, (number,)).tolist()
            thumbnails = _array(arrays, "thumbnails", np.uint8, (number, _SIDE, _SIDE))
            sizes = _array(arrays, "sizes", np.int32, (number, 2)).tolist()
    except Exception:  # broken archives raise zlib.error, RuntimeError (encrypted), MemoryError (huge header) and more
        return {}
    return {
        name: _Stored((length, time), Fingerprint(digests[index].tobytes().hex(), bit, thumbnails[index], tuple(size)))
        for index, (name, length, time, bit, size) in enumerate(
            zip(names, sizes_of_files, times, bits, sizes, strict=True)
        )
    }


def _array(
    arrays: Mapping[str, NDArray[np.generic]], name: str, kind: type[np.generic], shape: tuple[int | None, ...]
) -> NDArray[np.generic]:
    """An array of the archive, if it has the kind and shape that we write.

    Raises:
        ValueError: it has not.
        KeyError: there is none of this name.
    """
    array = arrays[name]
    fits = len(shape) == array.ndim and all(w in (None, h) for w, h in zip(shape, array.shape, strict=True))
    if array.dtype != kind or not fits:
        raise ValueError(f"{FINGERPRINTS}: found {name} of {array.dtype} {array.shape}, wanted {kind} {shape}")
    return array
