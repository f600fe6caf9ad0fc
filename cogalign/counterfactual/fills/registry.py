"""The fills by their name in a recipe."""

from __future__ import annotations

from cogalign.counterfactual.fills.blur import gaussian_blur, surround_blur
from cogalign.counterfactual.fills.composite import FillFunction
from cogalign.counterfactual.fills.flat import mean, white
from cogalign.counterfactual.fills.inpaint import biharmonic, navier_stokes, telea
from cogalign.counterfactual.fills.texture import texture
from cogalign.recipe import Fill

FILLS: dict[Fill, FillFunction] = {
    "gaussian_blur": gaussian_blur,
    "white": white,
    "mean": mean,
    "surround_blur": surround_blur,
    "telea": telea,
    "navier_stokes": navier_stokes,
    "biharmonic": biharmonic,
    "texture": texture,
}
"""All but `diffusion`, which needs a model."""


def fill_function(name: Fill, diffusion_model: str | None = None) -> FillFunction:
    """The fill of a recipe.

    Args:
        name: `counterfactual.fill`.
        diffusion_model: hub id or folder of an inpainting pipeline, for `diffusion`.

    Raises:
        ValueError: an unknown name, or `diffusion` without a model.
    """
    if name == "diffusion":
        if diffusion_model is None:
            raise ValueError("counterfactual.diffusion_model: found None, wanted a hub id or a folder")
        from cogalign.counterfactual.fills.diffusion import diffusion

        return diffusion(diffusion_model)
    if name not in FILLS:
        raise ValueError(f"counterfactual.fill: found {name!r}, wanted one of {', '.join(FILLS)}, diffusion")
    return FILLS[name]


def fills_named(names: str | None, diffusion_model: str | None = None) -> list[Fill]:
    """The fills of a text with commas between their names; None for all that can be used.

    Args:
        names: e.g. `gaussian_blur, texture`.
        diffusion_model: without one, `diffusion` is not among all.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    known: dict[str, Fill] = {name: name for name in (*FILLS, "diffusion")}
    if names is None:
        return [name for name in known.values() if name != "diffusion" or diffusion_model is not None]
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen or any(name not in known for name in chosen):
        raise ValueError(f"--fills: found {names!r}, wanted some of {', '.join(known)}, with commas between them")
    return [known[name] for name in chosen]
