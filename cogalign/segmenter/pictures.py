"""What people look at: the worst cases as a sheet (PNG and HTML), and the curves of the training."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from cogalign.data.caseset import CaseSet
from cogalign.models.segmenter import Segmenter
from cogalign.segmenter.judge import Judged
from cogalign.training.atomic import write_bytes, write_text
from cogalign.training.tracking import METRICS_FILE, read_rows

HEIGHT = 240
"""Height of a picture on the sheet."""
TRUTH, FOUND = (0, 255, 255), (255, 230, 0)
"""Colours of the outlines: the expert's and the net's."""
TEMPLATE = "worst.html.j2"
Pixels = NDArray[np.uint8]


def outline(image: Pixels, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Pixels:
    """The image [H, W, 3] with the outline of a mask [H, W]."""
    drawn = image.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, colour, max(1, round(image.shape[0] / 160)))
    return drawn


def heat(image: Pixels, probability: NDArray[np.float32]) -> Pixels:
    """The probability [H, W] as colour over a grey image [H, W, 3]."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colour = cv2.cvtColor(
        cv2.applyColorMap(np.rint(probability * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB
    )
    return np.asarray(cv2.addWeighted(grey, 0.4, colour, 0.6, 0), dtype=np.uint8)


def panels(image: Pixels, truth: NDArray[np.bool_], probability: NDArray[np.float32]) -> list[Pixels]:
    """Image, the expert's outline, the net's outline and the probability, each `HEIGHT` pixels high."""
    pictures = [
        image,
        outline(image, truth, TRUTH),
        outline(image, probability > 0.5, FOUND),
        heat(image, probability),
    ]
    width = max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    return [np.asarray(cv2.resize(one, (width, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8) for one in pictures]


def write_worst(judged: Sequence[Judged], segmenter: Segmenter, case_set: CaseSet, folder: Path, count: int) -> None:
    """Write `worst.png` and `worst.html`: the images with lesions whose masks have the lowest Dice, worst first.

    Args:
        judged: of one split.
        segmenter: calibrated.
        case_set: holds the images.
        folder: where the two files go.
        count: cases shown; with 0, or no image with a lesion, nothing is written.
    """
    lesions = sorted((one for one in judged if not one.row["normal"]), key=lambda one: one.row["dice"])[:count]
    rows, strips = [], []
    for one in lesions:
        image = np.asarray(case_set.image(one.case))
        truth = case_set.mask(one.case)
        assert truth is not None  # lesions are cases with a mask
        pictures = panels(image, truth, segmenter.probabilities([image])[0])
        rows.append({**one.row, "pictures": [_uri(picture) for picture in pictures]})
        strip = np.hstack(pictures)
        cv2.putText(strip, f"Dice {one.row['dice']:.2f}", (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        strips.append(strip)
    if not strips:
        return
    width = max(strip.shape[1] for strip in strips)
    sheet = np.vstack([np.pad(strip, ((0, 4), (0, width - strip.shape[1]), (0, 0))) for strip in strips])
    write_bytes(folder / "worst.png", _encoded(sheet, ".png"))
    environment = Environment(
        loader=PackageLoader("cogalign.segmenter", "."), autoescape=select_autoescape(["j2", "html"])
    )
    page = environment.get_template(TEMPLATE).render(rows=rows, split=rows[0]["split"], total=len(judged))
    write_text(folder / "worst.html", page)


def _encoded(picture: Pixels, kind: str) -> bytes:
    done, content = cv2.imencode(kind, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, kind
    return bytes(content)


def _uri(picture: Pixels) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(_encoded(picture, ".jpg")).decode("ascii")


def write_curves(history: Mapping[int, Mapping[str, float]], folder: Path, steps_per_epoch: int, best: int) -> None:
    """Write `curves.png`: the losses, and Dice and IoU on validation, over the epochs.

    Args:
        history: the validations by optimizer step.
        folder: of the stage, with its `metrics.csv`.
        steps_per_epoch: optimizer steps of an epoch.
        best: the step whose weights are kept.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _, rows = read_rows(folder / METRICS_FILE)
    losses = [float(row["loss"]) for row in rows if row.get("loss")]
    count = len(losses) // steps_per_epoch
    means = np.array(losses[: count * steps_per_epoch]).reshape(count, -1).mean(1) if count else np.array([])
    left.plot(np.arange(1, count + 1), means, color="#767676", label="training (augmented)")
    epochs = [history[step]["epoch"] for step in sorted(history)]
    left.plot(epochs, [history[step]["loss"] for step in sorted(history)], color="#0069aa", label="validation")
    for name, colour in (("dice", "#0069aa"), ("iou", "#d98200")):
        right.plot(epochs, [history[step][name] for step in sorted(history)], color=colour, label=name)
    right.axvline(best / steps_per_epoch, color="#999999", linestyle=":", label="best")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="validation, without flips", ylim=(0, 1))
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.grid(color="#e3e3e3", linewidth=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(folder / "curves.png", buffer.getvalue())
