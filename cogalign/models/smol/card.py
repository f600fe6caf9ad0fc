"""The model card of an assembled checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render_card(assembly: Mapping[str, Any], visual_tokens: int, side: int) -> str:
    """The text of the checkpoint's `README.md`.

    Args:
        assembly: content of `assembly.json`.
        visual_tokens: of an image.
        side: height and width of an image in pixels.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(**assembly, visual_tokens=visual_tokens, side=side)
