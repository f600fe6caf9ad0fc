"""Fingerprints of a case set's images in a file, so that no image is decoded twice: `fingerprints.npz`.

Arrays of n images: `names` (their file names as bytes of a JSON list), `bytes` and `times` (int64; size of the file, and
its time of change in ns), `digests` (n, 16; uint8), `bits` (n; uint64), `thumbnails` (n, 32, 32; uint8, whole grey
levels) and `sizes` (n, 2; int32; width and height in pixels). 50,000 images take 55 MB.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

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


def fingerprints_of(case_set: CaseSet, workers: int | None = None) -> list[Fingerprint]:
    """The fingerprint of each case's image, in the order of the cases. Thumbnails hold whole grey levels.

    What `fingerprints.npz` holds is used where the file's size and time of change are still the same. The rest is
    decoded in processes, and the file is renewed. A case set that cannot be written to is no error.

    Args:
        case_set: its images must all be readable.
        workers: as in `parallel.each`.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; the message names it.
    """
    stored = _read(case_set.root / FINGERPRINTS)
    paths = {case.file_name: case_set.path(case.file_name) for case in case_set.cases}
    found: dict[str, Fingerprint] = {}
    for name, path in paths.items():
        known = stored.get(name)
        if known is not None and path.is_file() and known.state == _state(path):
            found[name] = known.print_
    missing = [name for name in paths if name not in found]
    if missing:
        fresh = each(_fingerprint, [paths[name] for name in missing], "fingerprints", workers)
        found.update(zip(missing, fresh, strict=True))
    if missing or len(stored) != len(found):
        _try_write(case_set.root, {name: found[name] for name in paths})
    return [found[case.file_name] for case in case_set.cases]


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
    return replace(print_, thumbnail=np.rint(print_.thumbnail))


def _read(path: Path) -> dict[str, _Stored]:
    """The stored fingerprints by file name; none if the file is missing or not what we write."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = json.loads(arrays["names"].tobytes())
            states = np.stack((arrays["bytes"], arrays["times"]), axis=1).tolist()
            digests, bits = arrays["digests"], arrays["bits"].tolist()
            thumbnails, sizes = arrays["thumbnails"].astype(np.float32), arrays["sizes"].tolist()
        if thumbnails.shape != (len(names), _SIDE, _SIDE) or digests.shape != (len(names), _DIGEST):
            return {}
        return {
            name: _Stored((state[0], state[1]), Fingerprint(digest.tobytes().hex(), bit, thumbnail, (size[0], size[1])))
            for name, state, digest, bit, thumbnail, size in zip(
                names, states, digests, bits, thumbnails, sizes, strict=True
            )
        }
    except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile):
        return {}
