"""Write `docs/datasets/`: a page for each card in `datasets/`, and a table of all.

python tools/card_pages.py           writes the pages
python tools/card_pages.py --check   fails if a page is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cogalign.cognition.taxonomy import lookup
from cogalign.data.cards.card import Card, Label, Part
from cogalign.data.cards.find import list_cards
from cogalign.data.cards.template import Slot, parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "datasets"

REAL = "real sample and miniature tree"
MINIATURE = "miniature tree"
TESTED_ON = {
    "bkai-neopolyp": MINIATURE,
    "crohnipi": MINIATURE,
    "cvc-clinicdb": MINIATURE,
    "cvc-colondb": MINIATURE,
    "edd2020": MINIATURE,
    "etis-larib": MINIATURE,
    "gastrovision": REAL,
    "hyperkvasir": REAL,
    "hyperkvasir-segmented": REAL,
    "kvasir-capsule": MINIATURE,
    "kvasir-seg": REAL,
    "kvasir-v2": REAL,
    "kvasir-vqa": MINIATURE,
    "kvasir-vqa-x1": MINIATURE,
    "limuc": MINIATURE,
    "polypgen": MINIATURE,
    "see-ai": MINIATURE,
    "sun-seg": MINIATURE,
}
"""On what the tests run each card. `tests/data/importers/test_cards.py` compares this table with what it does."""

Node = dict[str, "Node"]


def page(card: Card) -> str:
    """The page of a card."""
    lines = [f"# {card.title}", "", _note(f"datasets/{card.id}.yaml"), "", card.summary, "", *_facts(card), ""]
    lines += ["## How to get it", "", f"<{card.homepage}>", "", card.obtain.strip(), ""]
    lines += ["## Licence", "", *_licence(card), ""]
    lines += ["## Import", "", "```bash", f"cogalign data import {card.id} SRC OUT", "```", ""]
    lines += ["`SRC` is the folder below, or a folder up to two levels above it. Names of folders and files:", ""]
    lines += ["```text", *_tree(card), "```", ""]
    lines += ["## Labels", "", *_labels(card), ""]
    lines += _section("Known defects", card.defects)
    lines += _section("Not verified", card.unknowns)
    lines += ["## Citation", "", card.citation]
    return "\n".join(lines).rstrip() + "\n"


def overview(cards: list[Card]) -> str:
    """The table of all cards."""
    head = ["id", "data set", "images", "annotated", "groups", "licence", "pass on", "commercial", "tested on"]
    rows = []
    for card in cards:
        name = f"[{card.id}]({card.id}.md)"
        licence = card.licence
        rows.append([name, card.title, _count(card.expected.images), ", ".join(annotated(card)), groups(card),
                     licence.name, licence.redistribution, licence.commercial, TESTED_ON[card.id]])  # fmt: skip
    lines = ["# Data sets", "", _note("datasets/*.yaml"), ""]
    lines += ["`cogalign data import ID SRC OUT` reads each of them. No image is downloaded or passed on by this project:",
              "get a data set from its authors, under their terms. `unknown` means that we found no statement.", ""]  # fmt: skip
    lines += [*_table(head, rows), ""]
    lines += ["`real sample`: tests import real files of the set. `miniature tree`: tests build a small folder to the card's",
              "layout, with the oddities that are known; no file of the real set was at hand. What could not be verified",
              "stands on the page of each set."]  # fmt: skip
    return "\n".join(lines) + "\n"


def annotated(card: Card) -> list[str]:
    """What a data set's annotation holds: labels, boxes, masks, questions."""
    parts = card.layout.parts
    found = ["labels"] if any(isinstance(part.label, str) or not _of_lesions(part) for part in parts) else []
    found += ["boxes"] if any(part.boxes for part in parts) else []
    found += ["masks"] if any(part.mask for part in parts) else []
    return [*found, "labels", "questions"] if card.reader else found


def groups(card: Card) -> str:
    """What gives the groups: the words before the first placeholder, or `none`."""
    found = dict.fromkeys(re.split(r"[-{]", part.group)[0] for part in card.layout.parts if part.group)
    return ", ".join(found) or "none"


def _of_lesions(part: Part) -> bool:
    """Whether the labels of a part are those of its boxes or masks."""
    return isinstance(part.label, Label) and part.label.source is not None


def _note(source: str) -> str:
    return f"<!-- Written by tools/card_pages.py from {source}; do not edit. -->"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _facts(card: Card) -> list[str]:
    """A table of what is known in short."""
    expected = card.expected
    rows = [["images", _count(expected.images)], ["annotated", ", ".join(annotated(card))]]
    rows += [[name, _count(number)] for name, number in (("masks", expected.masks), ("boxes", expected.boxes),
             ("questions", expected.questions)) if number is not None]  # fmt: skip
    group = groups(card) + (f" ({expected.groups:,})" if expected.groups else "")
    rows += [["group", group], ["official split", _split(card)], ["imaging", card.imaging], ["light", card.light]]
    rows += [["tested on", TESTED_ON[card.id]]]
    return _table(["", ""], rows)


def _split(card: Card) -> str:
    """Which official split the card reads."""
    kinds = []
    for part in card.layout.parts:
        if part.split is not None:
            kinds += ["folds"] if part.split.folds else []
            kinds += list(part.split.lists) + list(part.split.values.values())
    return ", ".join(dict.fromkeys(kinds)) or "none"


def _licence(card: Card) -> list[str]:
    licence = card.licence
    rows = [["terms", licence.name], ["may images be passed on", licence.redistribution],
            ["commercial use", licence.commercial]]  # fmt: skip
    return [*_table(["", ""], rows), *(["", licence.note] if licence.note else [])]


def _labels(card: Card) -> list[str]:
    """Class, finding and number of images."""
    maps = {name: value for part in card.layout.parts for name, value in part.label_map.items()} | card.label_map
    counts = card.expected.classes
    rows = []
    for name in [*maps, *(name for name in counts if name not in maps)]:
        known = maps[name] if name in maps else getattr(lookup(name), "id", None)
        ids = [known] if isinstance(known, str) else list(known or [])
        finding = ", ".join(f"`{one}`" for one in ids) or "left out"
        rows.append([name, finding, _count(counts[name]) if name in counts else ""])
    return _table(["class", "finding", "images"], rows)


def _section(title: str, sentences: tuple[str, ...]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""] if sentences else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]


def _tree(card: Card) -> list[str]:
    """The folder tree that the rules read, with what each file is for."""
    roles = dict(reversed(list(_paths(card))))  # of a path with two roles the first counts
    top: Node = {}
    for path in reversed(roles):
        node = top
        for name in path.split("/"):
            node = node.setdefault(name, {})
    return list(_branches(top, "", "", roles))


def _branches(node: Node, indent: str, above: str, roles: dict[str, str]) -> Iterator[str]:
    for name, below in node.items():
        path = f"{above}{name}"
        line = f"{indent}{name}{'/' if below else ''}"
        yield f"{line:<60} {roles[path]}".rstrip() if path in roles else line
        yield from _branches(below, f"{indent}    ", f"{path}/", roles)


def _paths(card: Card) -> Iterator[tuple[str, str]]:
    """Paths for readers and what they are."""
    for part in card.layout.parts:
        known = {piece.name: _slot(piece) for piece in parse(part.images) if isinstance(piece, Slot)}
        yield from ((_shown(path, known), role) for path, role in _templates(part))
    if not card.layout.parts:
        for marker in card.layout.root_markers:
            yield from ((path if "." in path else f"{path}/<img_id>.<suffix>", "") for path in marker.split("|"))


def _templates(part: Part) -> Iterator[tuple[str, str]]:
    """Path templates of a part and what they are."""
    yield part.images, "image"
    if part.mask is not None:
        yield from ((path, "mask") for path in _alternatives(part.mask.files))
    if part.boxes is not None:
        yield from ((path, "boxes") for path in _alternatives(part.boxes.files or part.boxes.file or ""))
    yield from ((path, "table") for table in part.tables for path in _alternatives(table.file))
    if part.split is not None:
        yield from ((path, f"official split: {name}") for name, path in part.split.lists.items())
        if part.split.folds is not None and part.split.folds.file:
            yield part.split.folds.file, "official folds"


def _alternatives(template: str) -> list[str]:
    """The parts of a template between `|` outside braces."""
    return [text for text in re.split(r"\|(?![^{]*})", template) if text]


def _shown(template: str, known: dict[str, str]) -> str:
    """A template for readers; `known` are the placeholders of the images as they are shown."""
    start, text = ("(any folder)/", template[3:]) if template.startswith("**/") else ("", template)
    shown = (known.get(one.name, _slot(one)) if isinstance(one, Slot) else one for one in parse(text))
    return start + "".join(shown).replace("**/", "")


def _slot(slot: Slot) -> str:
    """`{stem}` becomes `<stem>`, `{x:a|b}` becomes `{a,b}`, `{x:word}` is the word."""
    words = (slot.regex or "").split("|")
    if not slot.regex or not all(re.fullmatch(r"[\w -]+", word) for word in words):
        return f"<{slot.name}>"
    return words[0] if len(words) == 1 else "{" + ",".join(words) + "}"


def pages() -> dict[Path, str]:
    """All pages by path."""
    cards = list_cards()
    missing = sorted({card.id for card in cards} ^ set(TESTED_ON))
    if missing:
        raise ValueError(
            f"TESTED_ON in {Path(__file__).name}: {', '.join(missing)}: wanted exactly the ids of the cards"
        )
    return {PAGES / "README.md": overview(cards)} | {PAGES / f"{card.id}.md": page(card) for card in cards}


def out_of_date(wanted: dict[Path, str]) -> list[Path]:
    """Pages that are missing, differ, or belong to no card."""
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return sorted([*changed, *(path for path in PAGES.glob("*.md") if path not in wanted)])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    wanted = pages()
    changed = out_of_date(wanted)
    if parser.parse_args().check:
        for path in changed:
            print(f"{path.relative_to(ROOT)}: out of date; run python tools/card_pages.py", file=sys.stderr)
        return 1 if changed else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in changed:
        if path in wanted:
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    print(f"{len(changed)} of {len(wanted)} pages written to {PAGES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
