"""What the rules of a card, or a reader, say of a data set's files: paths and texts, nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cogalign.data.cards.card import MaskRule


@dataclass(frozen=True)
class RawBox:
    """A box as the annotation has it: pixels, or with `relative` shares of the image's width and height."""

    label: str
    """The data set's own class name."""
    xmin: float
    ymin: float
    xmax: float
    """Exclusive, as `ymax`."""
    ymax: float
    relative: bool = False


BINARY = MaskRule(files="*")


@dataclass(frozen=True)
class RawMask:
    """The mask files of one image: path and, with kind `per_class`, the data set's own class name of each."""

    files: tuple[tuple[Path, str], ...]
    rule: MaskRule = BINARY


@dataclass(frozen=True)
class Photograph:
    """One case of a data set: an image with what its annotation says."""

    path: Path
    key: str
    """Unique in the data set; the case's id is made from it."""
    labels: tuple[str, ...] = ()
    """Class names as the data set writes them. Empty: the image has none (with `label_from`: see there)."""
    label_from: Literal["boxes", "masks"] | None = None
    """Whether the classes are those of its boxes or masks."""
    none: str | None = "normal"
    """With `label_from`: the finding if there is neither box nor mask; None: the image is left out."""
    label_map: tuple[tuple[str, str | tuple[str, ...] | None], ...] = ()
    """Findings by class name, before the card's own map."""
    organ: str | None = None
    mask: RawMask | None = None
    boxes: tuple[RawBox, ...] = ()
    size: tuple[int, int] | None = None
    """Width and height that the annotation states, if it does."""
    group: str = ""
    """Patient, video or sequence, without the data set's name."""
    split: str | None = None
    """The data set's own split: `train`, `validation`, `test`, or a name of its own."""
    question: str = ""
    answer: str = ""
    """Text of a question set; empty: the report that the classes give."""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and its mask files."""
        return (self.path, *(path for path, _ in self.mask.files)) if self.mask else (self.path,)


@dataclass(frozen=True)
class Rejected:
    """A file or table that cannot be used, or has a problem."""

    path: Path
    reason: str


Record = Photograph | Rejected
