"""Tensors of an image processor as bytes and back, bit for bit, small where few different numbers occur.

A processor makes floats out of 8-bit images: three channels of 256 levels give at most 768 different numbers. They are
written once, as a palette, and the tensor as places in it: a quarter or half of the bytes, and still exact.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fields = dict[str, Any]
"""Tensors on the CPU, and plain JSON values, by name."""
MAGIC = b"CAPIX1\0\0"
_HEAD = struct.Struct("<8sII")
SLOTS_BITS = 18
"""Bits of the hash by which an encoder finds a number in its palette."""
LARGEST = 4096
"""Numbers of the largest palette; above it a tensor is written as it is."""
_TRIES = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
                  torch.uint8, torch.int8, torch.bool)
}  # fmt: skip


class PixelCodec:
    """Writes fields as bytes; what it learned of one image's numbers makes the next one faster."""

    def __init__(self) -> None:
        self._palettes: dict[tuple[str, int], _Palette] = {}

    def encode(self, fields: Mapping[str, Any]) -> bytes:
        """Bytes of tensors and plain values, with a check sum.

        Raises:
            TypeError: a tensor of an unusual type, or a value that JSON does not give back as it was.
        """
        table: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for name, value in fields.items():
            if not isinstance(value, Tensor):
                if json.loads(json.dumps(value)) != value:
                    raise TypeError(f"{name}: {type(value).__name__} is no plain value")
                table.append({"name": name, "plain": value})
                continue
            kind = str(value.dtype).removeprefix("torch.")
            if kind not in _DTYPES or value.device.type != "cpu":
                raise TypeError(f"{name}: a tensor of {value.dtype} on {value.device} cannot be written")
            coding, pieces = self._pieces(name, value.detach().contiguous())
            table.append({"name": name, "dtype": kind, "shape": list(value.shape), **coding})
            parts += pieces
        header = json.dumps(table).encode()
        body = b"".join([header, *parts])
        return _HEAD.pack(MAGIC, zlib.crc32(body), len(header)) + body

    def _pieces(self, name: str, value: Tensor) -> tuple[dict[str, Any], list[bytes]]:
        """How a tensor is coded, and its bytes."""
        size = value.element_size()
        raw = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else np.zeros(0, np.uint8)
        if size in (2, 4, 8) and value.numel() > LARGEST:
            numbers = raw.view(f"<u{size}")
            palette = self._palettes.setdefault((name, size), _Palette())
            places = palette.places(numbers)
            if places is not None and palette.numbers.nbytes + places.nbytes < raw.nbytes:
                return (
                    {"palette": len(palette.numbers), "bits": places.itemsize * 8},
                    [palette.numbers.tobytes(), places.tobytes()],
                )
        return {"bytes": int(raw.nbytes)}, [raw.tobytes()]


@dataclass(frozen=True)
class PackedTensor:
    """A tensor that was written, still packed, so that it can be put where it is needed without a copy."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: np.ndarray
    """Its bytes, or its places in the palette."""
    palette: np.ndarray | None = None
    """Different numbers as bit patterns."""

    def into(self, flat: Tensor) -> None:
        """Write the numbers into a contiguous tensor [n] of the same type."""
        if not flat.numel():
            return
        if self.palette is None:
            flat.view(torch.uint8).numpy()[:] = self.content
            return
        numbers = torch.from_numpy(self.palette)
        places = torch.from_numpy(self.content.astype(np.int32))
        torch.index_select(numbers, 0, places, out=flat.view(numbers.dtype))

    def tensor(self) -> Tensor:
        """The tensor by itself."""
        found = torch.empty(self.shape, dtype=self.dtype)
        self.into(found.view(-1))
        return found


def decode(content: bytes) -> Fields:
    """The fields that were written, the tensors as `PackedTensor`.

    Raises:
        ValueError: the bytes are damaged, cut off, or none of ours.
    """
    try:
        magic, checksum, length = _HEAD.unpack_from(content)
        body = memoryview(content)[_HEAD.size :]
        if magic != MAGIC or zlib.crc32(body) != checksum:
            raise ValueError("the check sum differs")
        fields: Fields = {}
        place = length
        for entry in json.loads(bytes(body[:length])):
            if "plain" in entry:
                fields[entry["name"]] = entry["plain"]
                continue
            fields[entry["name"]], place = _packed(entry, body, place)
        return fields
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"not an entry of the pixel cache ({error})") from None


def _packed(entry: Mapping[str, Any], body: memoryview, place: int) -> tuple[PackedTensor, int]:
    """The tensor of an entry, and where the next one begins."""
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if "palette" not in entry:
        stop = place + entry["bytes"]
        return PackedTensor(dtype, shape, np.frombuffer(body[place:stop], dtype=np.uint8)), stop
    middle = place + entry["palette"] * dtype.itemsize
    stop = middle + math.prod(shape) * entry["bits"] // 8
    palette = np.frombuffer(body[place:middle], dtype=f"<i{dtype.itemsize}").copy()
    return PackedTensor(dtype, shape, np.frombuffer(body[middle:stop], dtype=f"<u{entry['bits'] // 8}"), palette), stop


class _Palette:
    """Different numbers of like size (as bit patterns), and a hash table without collisions that finds them."""

    def __init__(self) -> None:
        self.numbers = np.zeros(0, np.uint64)
        self._factor = np.uint64(1)
        self._table = np.zeros(1 << SLOTS_BITS, np.int16)
        self._given_up = False

    def places(self, numbers: np.ndarray) -> np.ndarray | None:
        """The place of each number in the palette, which grows by those it lacks; None if there are too many."""
        if self._given_up:
            return None
        unknown = numbers
        if len(self.numbers):
            found = self._found(numbers)
            strange = self._at(found) != numbers
            if not strange.any():
                return found
            unknown = numbers[strange]
        if not self._learn(unknown):
            self._given_up = True
            return None
        return self._found(numbers)

    def _found(self, numbers: np.ndarray) -> np.ndarray:
        """The place at each number's slot; torch gathers faster than numpy."""
        slots = torch.from_numpy(self._slots(numbers).astype(np.int32, copy=False))
        places = torch.from_numpy(self._table).index_select(0, slots).numpy()
        return places if places.dtype == np.uint8 else places.view(np.uint16)

    def _at(self, places: np.ndarray) -> np.ndarray:
        """The numbers at some places."""
        signed = self.numbers.view(f"i{self.numbers.itemsize}")
        found = torch.from_numpy(signed).index_select(0, torch.from_numpy(places.astype(np.int32)))
        return found.numpy().view(self.numbers.dtype)

    def _slots(self, numbers: np.ndarray) -> np.ndarray:
        bits = numbers.dtype.itemsize * 8
        mixed = numbers * numbers.dtype.type(self._factor & np.uint64((1 << bits) - 1))
        mixed >>= numbers.dtype.type(max(0, bits - SLOTS_BITS))
        return mixed.view(np.int32) if bits == 32 else mixed

    def _learn(self, numbers: np.ndarray) -> bool:
        """Take in the numbers that are not known, and find a factor that gives each a slot of its own."""
        if len(np.unique(numbers[:: max(1, len(numbers) // LARGEST)])) > LARGEST // 2:
            return False  # a sample suffices to see that nearly all differ
        known = np.unique(np.concatenate([self.numbers.astype(numbers.dtype), numbers]))
        if len(known) > LARGEST:
            return False
        rng = np.random.default_rng(len(known))
        for _ in range(_TRIES):
            self._factor = np.uint64(int(rng.integers(1 << 62)) * 2 + 1)
            slots = self._slots(known)
            if len(np.unique(slots)) == len(known):
                self.numbers = known
                self._table = np.zeros(1 << SLOTS_BITS, np.uint8 if len(known) <= 256 else np.int16)
                self._table[slots] = np.arange(len(known))
                return True
        return False
