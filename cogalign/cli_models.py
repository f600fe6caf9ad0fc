"""`cogalign models`: checkpoints that are assembled on this machine, without a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cogalign.cli_data import Parser, UsageError

if TYPE_CHECKING:
    from PIL import Image

NAMES = ("smol", "tiny-smol")
IMAGES = 48
"""Images that the projector is fitted to."""
PHANTOM_SEED = 11
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def models(arguments: list[str]) -> int:
    """`cogalign models assemble NAME OUT [--images FOLDER] [--dtype TYPE] [--seed N]`."""
    parser = Parser(prog="cogalign models", description="Checkpoints from packaged weights, without a model hub.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "write a multimodal LLM from packaged weights, in hub layout"
    assemble = commands.add_parser("assemble", help=text, description=text)
    assemble.add_argument("name", metavar="NAME", choices=NAMES,
                          help="smol (EfficientNet-Lite0 and SmolLM2-135M-Instruct) or tiny-smol (random, for tests)")  # fmt: skip
    assemble.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    assemble.add_argument("--images", type=Path, default=None, metavar="FOLDER",
                          help="photographs that the projector is fitted to (default: phantoms)")  # fmt: skip
    assemble.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the weights")
    assemble.add_argument("--seed", type=int, default=0, help="seed of the projector")
    found = parser.parse_args(arguments)
    if found.seed < 0:
        raise UsageError(f"--seed: found {found.seed}, wanted at least 0")
    photographs = image_files(found.images) if found.images is not None else None
    from cogalign.models.smol.assemble import assemble_smol, assemble_twin
    from cogalign.training.interrupt import signals_interrupt

    write = assemble_smol if found.name == "smol" else assemble_twin
    with signals_interrupt():
        images, source = (phantoms(), "phantoms") if photographs is None else (opened(photographs), "photographs")
        done = write(found.out, images, source, found.dtype, found.seed)
    print(f"{found.out} is written: {done['parameters']:,} parameters, {done['dtype']}, sha256 {done['sha256'][:12]}")
    return 0


def phantoms() -> list[Image.Image]:
    """Phantoms of all findings and views, drawn on the fly; always the same."""
    import numpy as np
    from PIL import Image

    from cogalign.data.phantom.render import render
    from cogalign.data.phantom.spec import draw_spec

    rng = np.random.default_rng(PHANTOM_SEED)
    return [Image.fromarray(render(draw_spec(rng, confounding=0.0), 224).image) for _ in range(IMAGES)]


def image_files(folder: Path) -> list[Path]:
    """At most `IMAGES` files of images in a folder and those below, evenly spread over their sorted names.

    Raises:
        NotADirectoryError: it is no folder.
        FileNotFoundError: it holds no image.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"--images: {folder} is no folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"--images: {folder} holds no image ({', '.join(SUFFIXES)})")
    count = min(IMAGES, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def opened(files: list[Path]) -> list[Image.Image]:
    """The images of files, RGB."""
    from cogalign.data.images import load_rgb

    return [load_rgb(path) for path in files]
