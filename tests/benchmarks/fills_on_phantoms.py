"""The fills where the truth is known: `python tests/benchmarks/fills_on_phantoms.py FOLDER [--n 200] [--sides 128 256]`.

A phantom is rendered with its lesions and, from the same random streams, without: that is what a perfect removal would
show. Inside the mask each fill is compared with it:

- PSNR and SSIM (scikit-image), the usual measures. Both reward a blur: detail that is real-looking but not the same
  costs as much as detail that is wrong.
- detail: strength of what a blur of 1.5 % of the side takes away, over that of the truth; 1 is ideal, a blur is near 0.

Transplants are checked with the renderer too: it draws the same lesion at the place where the transplant put it, on
the same wall. A random forest that has learnt findings from the colours and the shape of the renderer's own lesions, on
other phantoms, names both; and the mean colours of both are compared. Turned lesions are no problem for either: neither
measure knows directions.

Writes `fills_on_phantoms.md`, `.json` and `.png` to the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from cogalign.counterfactual.fills import FILLS
from cogalign.counterfactual.interventions import EDGE, Operator, transplant
from cogalign.counterfactual.masks import Image, Mask, feathered_alpha, lesion_radius, visible_mucosa
from cogalign.data.phantom.render import render
from cogalign.data.phantom.spec import FINDINGS, PhantomSpec, draw_spec

MEASURES = ("psnr", "ssim", "detail", "milliseconds")
RESAMPLES = 1000
TRAIN = 900
"""Lesions from which the forest learns."""


def specs(n: int, seed: int, lesions: int | None = None) -> list[PhantomSpec]:
    """`n` phantoms with a lesion, or with exactly so many lesions."""
    rng = np.random.default_rng(seed)
    found: list[PhantomSpec] = []
    while len(found) < n:
        spec = draw_spec(rng, 0.5)
        if len(spec.lesions) == lesions or (lesions is None and spec.lesions):
            found.append(spec)
    return found


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval over phantoms."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def compare(made: Image, truth: Image, inside: Mask) -> dict[str, float]:
    """PSNR, SSIM and strength of detail inside the mask."""
    error = (made.astype(np.float64) - truth)[inside]
    _, similarity = structural_similarity(made, truth, channel_axis=-1, full=True)
    strength = []
    for picture in (made, truth):
        grey = picture.astype(np.float32).mean(axis=-1)
        fine = grey - cv2.GaussianBlur(grey, (0, 0), max(1.0, 0.015 * grey.shape[0]))
        strength.append(float(fine[inside].std()))
    return {
        "psnr": float(20 * np.log10(255) - 10 * np.log10(max(float((error**2).mean()), 1e-3))),
        "ssim": float(similarity[inside].mean()),
        "detail": strength[0] / max(strength[1], 1e-6),
    }


def removals(n: int, side: int, operator: Operator) -> dict[str, dict[str, list[float]]]:
    """The measures of each fill on `n` phantoms; `lesion` is the image as it was."""
    names = ["lesion", *FILLS]
    values: dict[str, dict[str, list[float]]] = {name: {measure: [] for measure in MEASURES} for name in names}
    for number, spec in enumerate(specs(n, seed=side)):
        rendered, truth = render(spec, side), render(replace(spec, lesions=()), side).image
        mask = rendered.mask
        radius = lesion_radius(mask)
        alpha = operator.alpha(mask, radius)
        hidden = ~visible_mucosa(rendered.image)
        for name in names:
            start = time.perf_counter()
            made = rendered.image
            if name != "lesion":
                rng = np.random.default_rng([number, 1])
                made = FILLS[name](made, alpha, operator.sigma * radius, hidden, rng)  # type: ignore[index]
            took = 1000 * (time.perf_counter() - start)
            for measure, value in (compare(made, truth, alpha == 1) | {"milliseconds": took}).items():
                values[name][measure].append(value)
    return values


def describe(image: Image, touched: Mask, radius: float, operator: Operator) -> np.ndarray:
    """Colours and shape of a lesion, blind to turns: 10, 50 and 90 % of the colours in it, means and spread in it and
    on the ring around it, compactness, and how the colour runs from the rim to the middle."""  # fmt: skip
    depth = cv2.distanceTransform(touched.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    width = (EDGE * operator.dilate + operator.feather) * radius
    inside = depth > min(width, 0.8 * float(depth.max()))
    outside = cv2.distanceTransform((~touched).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    ring = (outside > 0) & (outside <= max(2.0, 0.35 * radius)) & visible_mucosa(image)
    colours = image[inside].astype(np.float64)
    around = image[ring].astype(np.float64).mean(axis=0) if ring.any() else colours.mean(axis=0)
    deep = depth[inside] > np.median(depth[inside])
    middle = colours[deep].mean(axis=0) if deep.any() else colours.mean(axis=0)
    moments = cv2.HuMoments(cv2.moments(touched.astype(np.uint8), binaryImage=True)).ravel()[:2]
    parts = (
        np.percentile(colours, (10, 50, 90), axis=0).ravel(),
        colours.mean(axis=0),
        colours.mean(axis=0) - around,
        colours.std(axis=0),
        middle - colours.mean(axis=0),
        np.log(moments + 1e-9),
        [radius / image.shape[0]],
    )
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def drawn(spec: PhantomSpec, side: int, operator: Operator) -> np.ndarray:
    """The description of the renderer's own lesion."""
    rendered = render(spec, side)
    radius = lesion_radius(rendered.mask)
    touched = feathered_alpha(rendered.mask, EDGE * operator.dilate * radius, operator.feather * radius) > 0
    return describe(rendered.image, touched, radius, operator)


def transplants(n: int, side: int, operator: Operator) -> dict[str, Any]:
    """How well transplanted lesions are told by a forest that knows the renderer's own, and how far the colours moved."""
    from sklearn.ensemble import RandomForestClassifier

    learnt = specs(TRAIN, seed=1000 + side, lesions=1)
    forest = RandomForestClassifier(300, random_state=0)
    forest.fit([drawn(spec, side, operator) for spec in learnt], [spec.findings[0] for spec in learnt])
    names, moved, own = [], [], []
    for number, spec in enumerate(specs(n, seed=2000 + side, lesions=1)):
        wall = replace(spec, lesions=(), cue=0, seed=spec.seed + 1)
        source, background = render(spec, side), render(wall, side).image
        edited = transplant(source.image, source.mask, background, None, operator, np.random.default_rng([number, 2]))
        if edited is None:
            continue
        (move,) = edited.moves if len(edited.moves) == 1 else (None,)
        if move is None:
            continue  # a lesion of several pieces, each at a place of its own: the renderer draws them in one place
        shift = [(move.target[k] + move.target[k + 2] - move.source[k] - move.source[k + 2]) / 2 / side for k in (1, 0)]
        lesion = spec.lesions[0]
        there = replace(wall, lesions=(replace(lesion, y=lesion.y + shift[0], x=lesion.x + shift[1]),))
        moved.append(describe(edited.image, edited.touched, lesion_radius(source.mask), operator))
        own.append(drawn(there, side, operator))
        names.append(spec.findings[0])
    right = {"transplanted": forest.predict(moved) == names, "drawn there": forest.predict(own) == names}
    colours = np.asarray(moved)[:, 9:12], np.asarray(own)[:, 9:12]
    return {
        "n": len(names),
        "accuracy": {kind: interval(values.astype(float)) for kind, values in right.items()},
        "colour_correlation": float(np.corrcoef(colours[0].ravel(), colours[1].ravel())[0, 1]),
        "colour_distance": interval(np.abs(colours[0] - colours[1]).mean(axis=1)),
        "by_finding": {
            finding: {kind: float(values[np.asarray(names) == finding].mean()) for kind, values in right.items()}
            for finding in FINDINGS
            if finding in names
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """Both tables."""
    lines = []
    for side, fills in result["removal"].items():
        lines += [f"Removal, {result['n']} phantoms of {side} x {side}, inside the mask; mean [95 % interval]", ""]
        lines += ["| fill | PSNR (dB) | SSIM | detail (1 is ideal) | ms an image |", "|---|---|---|---|---|"]
        for name, row in fills.items():
            cells = [_cell(row[measure], places) for measure, places in zip(MEASURES, (1, 3, 2, 1), strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    for side, row in result["transplant"].items():
        lines += [f"Transplant, {row['n']} phantoms of {side} x {side}", "", "| lesion | told right |", "|---|---|"]
        lines += [f"| {kind} | {_cell(values, 3)} |" for kind, values in row["accuracy"].items()]
        lines += ["", f"Mean colour, transplanted against drawn there: correlation {row['colour_correlation']:.3f}, "
                  f"distance {_cell(row['colour_distance'], 1)} grey levels", ""]  # fmt: skip
    return "\n".join(lines)


def _cell(values: Sequence[float], places: int) -> str:
    mean, low, high = (f"{value:.{places}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def plot(result: dict[str, Any], path: Path) -> None:
    """PSNR, SSIM and detail of each fill with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, measure, title in zip(axes, MEASURES, ("PSNR (dB)", "SSIM", "detail over the truth's"), strict=False):
        for number, (side, fills) in enumerate(result["removal"].items()):
            means, lows, highs = np.array([row[measure] for row in fills.values()]).T
            at = np.arange(len(fills)) + 0.25 * (number - 0.5)
            axis.errorbar(means, at, xerr=(means - lows, highs - means), fmt="o", label=f"{side} x {side}", capsize=2)
        axis.set_yticks(range(len(fills)), list(fills))
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[2].axvline(1.0, color="grey", lw=0.8)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256])
    chosen = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    operator = Operator()
    result: dict[str, Any] = {"n": chosen.n, "removal": {}, "transplant": {}}
    for side in chosen.sides:
        removals(2, side, operator)  # imports and caches
        values = removals(chosen.n, side, operator)
        result["removal"][str(side)] = {
            name: {measure: interval(column) for measure, column in row.items()} for name, row in values.items()
        }
        result["transplant"][str(side)] = transplants(chosen.n, side, operator)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (chosen.folder / "fills_on_phantoms.json").write_text(json.dumps(result, indent=2) + "\n")
    (chosen.folder / "fills_on_phantoms.md").write_text(markdown(result))
    plot(result, chosen.folder / "fills_on_phantoms.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
