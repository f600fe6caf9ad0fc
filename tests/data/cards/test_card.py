from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cogalign.data.cards.card import Card
from cogalign.data.cards.find import card_ids, list_cards, read_card

MINIMAL = {
    "id": "made-up", "title": "Made up", "summary": "a test", "homepage": "https://example.org", "obtain": "here", "citation": "none",
    "licence": {"name": "none", "redistribution": "yes", "commercial": "ask"}, "imaging": "endoscopy",
    "layout": {"root_markers": ["images"], "parts": [{"images": "images/{class}/{stem}.{suffix}", "label": "{class}"}]},
}  # fmt: skip


def written(folder: Path, **changes: object) -> Path:
    path = folder / "made-up.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}), encoding="utf-8")
    return path


def part(**changes: object) -> dict[str, object]:
    return {
        "root_markers": ["images"],
        "parts": [{"images": "images/{class}/{stem}.{suffix}", "label": "{class}", **changes}],
    }


def test_a_card_becomes_typed(tmp_path: Path) -> None:
    card = read_card(written(tmp_path, label_map={1: "polyp", "b": None, "c": ["ulcer", "erosion"]}))
    assert isinstance(card, Card) and card.licence.commercial == "ask"
    assert card.label_map == {"1": "polyp", "b": None, "c": ("ulcer", "erosion")}
    assert card.layout.parts[0].repeats == "reject" and card.expected.images is None


BAD = [
    ({"titel": "x"}, r"unknown key `titel` \(nearest: 'title'\)"),
    ({"title": 3}, r"`title`: found 3, wanted a text"),
    ({"id": "Made Up"}, "id: found 'Made Up'"),
    ({"imaging": "endoscop"}, r"`imaging`: found 'endoscop', wanted one of endoscopy, capsule; nearest: 'endoscopy'"),
    ({"licence": {"name": "x", "redistribution": True, "commercial": "no"}}, r"`licence.redistribution`: found True .*needs quotes"),
    ({"licence": {"name": "x", "redistribution": "maybe", "commercial": "no"}}, "licence.redistribution: found 'maybe'"),
    ({"licence": {"name": "x", "redistribution": "yes"}}, "`licence.commercial` is missing"),
    ({"defects": "one"}, "`defects`: found 'one', wanted a list, each item a text"),
    ({"expected": {"images": "many"}}, "`expected.images`: found 'many', wanted a whole number or null"),
    ({"checksums": [{"file": "a.zip", "sha256": "abc"}]}, r"checksums\[0\]: sha256: found 'abc'"),
    ({"label_map": {"a": "polip"}}, r"label_map.a: the taxonomy has no 'polip', nearest: 'polyp'"),
    ({"label_map": {True: "polyp"}}, r"`label_map`: found the key True .*in quotes"),
    ({"layout": {"root_markers": ["x"]}}, "layout.parts: found none"),
    ({"layout": part(lable="x")}, r"unknown key `layout.parts\[0\].lable` \(nearest: 'label'\)"),
    ({"layout": part(key="{stemm}")}, r"layout.parts\[0\]: key: the template '\{stemm\}' names 'stemm', nearest: 'stem'"),
    ({"layout": part(group="{labels.id}")}, "names 'labels.id'"),
    ({"layout": part(images="images/{stem")}, "a brace is not closed"),
    ({"layout": part(images="images/{stem:[}")}, "not a valid pattern"),
    ({"layout": part(organ="liver")}, "found the organ 'liver'"),
    ({"layout": part(mask={"files": "m/{stem}.*", "kind": "colours"})}, "kind 'colours' wants the key `colours`"),
    ({"layout": part(mask={"files": "m/{stem}_{kind}.*"})}, "names 'kind'"),
    ({"layout": part(boxes={"format": "voc"})}, "format 'voc' wants the key `files`"),
    ({"layout": part(boxes={"format": "vocs"})}, "nearest: 'voc'"),
    ({"layout": part(split={"key": "{stem}"})}, "wanted one of `from`, `lists`, `folds`"),
    ({"layout": part(label={"text": "x", "from": "boxes"})}, "wanted exactly one of `text`, `columns` and `from`"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_every_error_names_the_file_and_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        read_card(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_files_that_are_no_cards_are_told(tmp_path: Path) -> None:
    for content, message in ((b"id: [", "not valid YAML"), (b"\xff\xfe\xfa", "not UTF-8"), (b"- a", "wanted keys and values"),
                             (b"id: a\nid: b\n", "the key 'id' is there twice")):  # fmt: skip
        (tmp_path / "made-up.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_card(tmp_path / "made-up.yaml")
    with pytest.raises(FileNotFoundError, match="no such card"):
        read_card(tmp_path / "none.yaml")
    other = written(tmp_path).rename(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="found 'made-up', wanted 'other' as the file's name"):
        read_card(other)


def test_all_cards_of_the_repository_can_be_read() -> None:
    cards = list_cards()
    assert [card.id for card in cards] == card_ids()
    assert {"kvasir-seg", "hyperkvasir", "kvasir-v2", "gastrovision"} <= set(card_ids())
    assert all(read_card(card.id) == card for card in cards)
