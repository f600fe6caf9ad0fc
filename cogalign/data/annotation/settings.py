"""What a person chooses for `cogalign data annotate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cogalign.models.endpoint import EndpointSettings

Teacher = Literal["template", "endpoint"]
TEACHERS: tuple[Teacher, ...] = ("template", "endpoint")


@dataclass(frozen=True)
class AnnotateSettings:
    """Who annotates which cases, and what it may cost.

    Raises:
        ValueError: a value is out of its range, or one that another needs is missing.
    """

    teacher: Teacher = "endpoint"
    """`endpoint` asks a multimodal model; `template` writes what the annotation supports, offline."""
    endpoint: EndpointSettings | None = None
    """Where the model is; needed for the teacher `endpoint`."""
    attempts: int = 3
    """Answers that a case may cost; what was wrong with one is told in the next question."""
    splits: tuple[str, ...] | None = None
    """Splits to annotate; None for all."""
    limit: int | None = None
    """At most so many cases in this run; None for all."""
    price_in: float | None = None
    """Price of a million tokens of questions, in any currency."""
    price_out: float | None = None
    """Price of a million tokens of answers, in the same currency."""
    max_cost: float | None = None
    """No request goes out that could bring this run above this; needs both prices."""
    overwrite: bool = False
    """Also annotate cases that have a teacher's report already, or one of their own; what a person has read stays."""
    image_side: int = 1024
    """Larger images are sent with this as their longer side."""

    def __post_init__(self) -> None:
        _require(self.teacher in TEACHERS, "teacher", self.teacher, f"one of {', '.join(TEACHERS)}")
        _require(self.teacher == "template" or self.endpoint is not None, "endpoint", None,
                 "the address and the model of the teacher")  # fmt: skip
        _require(self.attempts >= 1, "attempts", self.attempts, "at least 1")
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1")
        _require(self.image_side >= 64, "image_side", self.image_side, "at least 64 pixels")
        for name in ("price_in", "price_out", "max_cost"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < float("inf"), name, value, "0 or more")
        prices = (self.price_in, self.price_out)
        _require((self.price_in is None) == (self.price_out is None), "price_in, price_out", prices, "both or none")
        _require(self.max_cost is None or self.price_in is not None, "max_cost", self.max_cost,
                 "prices beside it: price_in and price_out")  # fmt: skip


def _require(condition: bool, name: str, found: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"annotate.{name}: found {found!r}, wanted {wanted}")
