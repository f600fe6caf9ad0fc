"""What an import found, compared with what the card expects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cogalign.cognition.anatomy import key as plain
from cogalign.data.cards.card import Card
from cogalign.data.importers.base import Photograph
from cogalign.training.file_digest import sha256_of

_SHOWN = 12


@dataclass(frozen=True)
class ImportSummary:
    """What became of a data set."""

    title: str
    out: Path
    cases: int
    quarantined: int
    """Lines of `quarantine.jsonl`."""
    findings: dict[str, int] = field(default_factory=dict)
    """Cases by finding."""
    masks: int = 0
    boxes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Images by class name that the card maps to null."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Cases by class name of a label, mask or box that the card maps to null, beside others which were kept."""
    differences: tuple[str, ...] = ()
    """Where the files differ from what the card expects."""
    divided: int = 0
    """Groups (patients, videos) which the official split divides: then every case is in `train`."""
    sizes: int = 1
    """How many image sizes there are."""
    unchanged: bool = False
    """Whether the import was found finished and nothing was done."""

    def lines(self) -> list[str]:
        """The summary for people."""
        if self.unchanged:
            return [f"{self.out}: {self.title} is there already: {self.cases} cases, nothing to do"]
        found = [f"imported {self.cases} cases of {self.title} into {self.out}: {_counts(self.findings)}"]
        found.append(f"{self.masks} have a mask; {self.boxes} boxes")
        if self.left_out:
            found.append(f"left out, as the card says: {_counts(self.left_out)}")
        if self.ignored:
            found.append(f"classes beside others that the card leaves out: {_counts(self.ignored)}")
        found += [f"differs from the card: {line}" for line in self.differences[:_SHOWN]]
        if len(self.differences) > _SHOWN:
            found.append(f"and {len(self.differences) - _SHOWN} more differences")
        if self.divided:
            found.append(
                f"the official split divides {self.divided} groups: it is kept as attributes.official_split only; "
                "see `cogalign data split`"
            )
        if self.quarantined:
            found.append(f"{self.quarantined} files or tables had a problem: see {self.out / 'quarantine.jsonl'}")
        if self.sizes > 1:
            found.append("images differ in size, which can give the class away; a side makes them alike")
        return found

    def record(self) -> dict[str, Any]:
        """Plain values, from which `restored` makes it again."""
        values = asdict(self)
        del values["out"], values["unchanged"]
        return values


def restored(out: Path, record: dict[str, Any]) -> ImportSummary:
    """The summary of a finished import."""
    names = set(ImportSummary.__dataclass_fields__) - {"out", "unchanged"}
    values = {name: value for name, value in record.items() if name in names}
    return ImportSummary(**{**values, "differences": tuple(values["differences"])}, out=out, unchanged=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def differences(card: Card, photographs: Sequence[Photograph], unread: int) -> list[str]:
    """Where the numbers of files and annotations differ from those that the card expects.

    Args:
        card: `expected` holds the numbers.
        photographs: all that the rules found.
        unread: images that the rules refused.
    """
    expected = card.expected
    images = len({photograph.path for photograph in photographs}) + unread
    masks = sum(photograph.mask is not None for photograph in photographs)
    boxes = sum(len(photograph.boxes) for photograph in photographs)
    groups = len({photograph.group for photograph in photographs if photograph.group})
    questions = sum(
        len(photograph.attributes.get("questions", [])) or bool(photograph.question) for photograph in photographs
    )
    pairs = (("images", images, expected.images), ("masks", masks, expected.masks), ("boxes", boxes, expected.boxes),
             ("groups", groups, expected.groups), ("questions", questions, expected.questions))  # fmt: skip
    found = [
        f"{name}: found {count}, expected {wanted}" for name, count, wanted in pairs if wanted not in (None, count)
    ]
    return found + list(_class_differences(card, photographs))


def _class_differences(card: Card, photographs: Sequence[Photograph]) -> Iterator[str]:
    """Classes whose number of images differs."""
    if not card.expected.classes:
        return
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for photograph in photographs:
        for label in _class_names(photograph):
            shown.setdefault(plain(label), label)
            counts[plain(label)] += 1
    if not counts and any(photograph.label_from == "masks" for photograph in photographs):
        return  # classes that only the pixels tell
    expected = {plain(name): (name, count) for name, count in card.expected.classes.items()}
    none = [label for name, (label, _) in expected.items() if not counts[name]]
    if none:
        yield f"no image of the class {', '.join(none)}"
    others = [f"{label} {counts[name]} of {wanted}" for name, (label, wanted) in expected.items()
              if counts[name] not in (0, wanted)]  # fmt: skip
    if others:
        yield f"classes, found of expected: {', '.join(others)}"
    mapped = {plain(name) for part in card.layout.parts for name in part.label_map} | set(map(plain, card.label_map))
    for name in sorted(counts.keys() - expected.keys() - mapped):
        yield f"class {shown[name]}: found {counts[name]}, not among the card's"


def _class_names(photograph: Photograph) -> tuple[str, ...]:
    """The class names of an image as far as they are known before it is opened."""
    if photograph.labels or photograph.label_from is None:
        return photograph.labels
    if photograph.label_from == "boxes":
        names = [box.label for box in photograph.boxes]
        whole = True
    else:
        files = photograph.mask.files if photograph.mask else ()
        names = [name for _, name in files if name]
        whole = not files
    none = (photograph.none,) if whole and photograph.none else ()
    return tuple(dict.fromkeys(names)) or none


def checksum_differences(card: Card, folders: Sequence[Path]) -> list[str]:
    """Files whose SHA-256 is not the card's, of those that lie in one of the folders."""
    found = []
    for checksum in card.checksums:
        path = next((folder / checksum.file for folder in folders if (folder / checksum.file).is_file()), None)
        if path is None:
            continue
        digest = sha256_of(path)
        if digest != checksum.sha256:
            found.append(f"{checksum.file}: found sha256 {digest}, expected {checksum.sha256}")
    return found
