"""Write smol: a multimodal LLM of 139 million parameters from packages, in hub layout, without a model hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cogalign import __version__
from cogalign.models.load import quiet_transformers
from cogalign.models.smol.card import render_card
from cogalign.models.smol.folder import new_folder
from cogalign.models.smol.join import join
from cogalign.models.smol.packages import TEXT, VISION, Found, find
from cogalign.models.smol.parts import Parts, packaged_parts
from cogalign.models.smol.projector import WIDER
from cogalign.models.smol.twin import random_parts
from cogalign.training.atomic import write_json, write_text
from cogalign.training.file_digest import sha256_of

if TYPE_CHECKING:
    from PIL import Image

ASSEMBLY = "assembly.json"
"""What the checkpoint was made of."""


def assemble_smol(
    out: Path,
    images: Sequence[Image.Image],
    source: str,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    seed: int = 0,
) -> dict[str, Any]:
    """Write smol into the new folder `out`. The same packages, images and settings give the same bytes.

    Args:
        out: gets its name when all is written.
        images: what the projector is fitted to.
        source: what they are, for the model card.
        dtype: type of the weights.
        seed: of the projector.

    Returns:
        The content of `assembly.json`: packages, images, `parameters`, `sha256` of the weights.

    Raises:
        FileExistsError: `out` is there and not empty.
        ValueError, FileNotFoundError: a package is not there or not the one that is known, or the images are no good.
    """
    quiet_transformers()
    with new_folder(out) as folder:
        found = (find(TEXT), find(VISION))
        return write(folder, packaged_parts(*found), images, source, dtype, seed, found)


def assemble_twin(
    out: Path,
    images: Sequence[Image.Image],
    source: str,
    dtype: Literal["bfloat16", "float32"] = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """Write a twin of smol with random weights, of the same classes and small in everything; as `assemble_smol`."""
    quiet_transformers()
    with new_folder(out) as folder:
        return write(folder, random_parts(seed), images, source, dtype, seed, ())


def write(
    folder: Path, parts: Parts, images: Sequence[Image.Image], source: str, dtype: str, seed: int,
    found: Sequence[Found],
) -> dict[str, Any]:  # fmt: skip
    """Join the parts and write everything into the folder; as `assemble_smol`."""
    model, processor = join(parts, images, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    content = {
        "cogalign": __version__,
        "packages": [
            {"name": f.package.name, "version": f.package.version, "file": f.package.file, "sha256": f.package.sha256,
             "licence": f.package.licence, "what": f.package.what}
            for f in found
        ],
        "projector": {
            "images": len(images), "source": source, "sha256": pixel_digest(images), "seed": seed, "wider": WIDER,
        },
        "dtype": dtype,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256_of(folder / "model.safetensors"),
    }  # fmt: skip
    write_json(folder / ASSEMBLY, content)
    for each in found:
        write_text(folder / "LICENSES" / f"{each.package.name}.txt", each.licence)
    write_text(folder / "README.md", render_card(content, parts.visual_tokens, parts.side))
    return content


def pixel_digest(images: Sequence[Image.Image]) -> str:
    """Checksum of the pixels of images, in their order."""
    digest = hashlib.sha256()
    for image in images:
        pixels = np.asarray(image.convert("RGB"))
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()
