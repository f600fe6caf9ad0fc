"""A contact sheet of phantoms: `python -m cogalign.data.phantom.sheet OUT.jpg`. A row for each finding, the last for two."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cogalign.data.phantom.render import render
from cogalign.data.phantom.spec import FINDINGS, PhantomSpec, draw_spec


def contact_sheet(columns: int = 10, size: int = 128, seed: int = 0) -> Image.Image:
    """Phantoms side by side, confounded: in a row the background is mostly the same."""
    rng = np.random.default_rng(seed)
    wanted: dict[tuple[str, ...], list[PhantomSpec]] = {(finding,): [] for finding in FINDINGS}
    mixed: list[PhantomSpec] = []
    while any(len(found) < columns for found in (*wanted.values(), mixed)):
        spec = draw_spec(rng, 0.95)
        found = wanted.get(spec.findings, mixed)
        if len(found) < columns:
            found.append(spec)
    rows = [np.concatenate([render(spec, size).image for spec in row], 1) for row in (*wanted.values(), mixed)]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Command line."""
    contact_sheet().save(Path(sys.argv[1]), quality=88)


if __name__ == "__main__":
    main()
