"""The pages of the cards: `tools/card_pages.py`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cogalign.data.cards.find import card_ids, list_cards
from tests.data.importers.test_cards import REAL_SAMPLES

TOOL = Path(__file__).resolve().parents[3] / "tools" / "card_pages.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("card_pages", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card_pages.py", "--check"])
    assert tool.main() == 0, capsys.readouterr().err


def test_check_fails_on_a_page_that_differs_is_missing_or_belongs_to_no_card(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "PAGES", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", ["card_pages.py"])
    assert tool.main() == 0
    (tmp_path / "docs/limuc.md").write_text("changed")
    (tmp_path / "docs/edd2020.md").unlink()
    (tmp_path / "docs/gone.md").write_text("of no card")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["card_pages.py", "--check"])
    assert tool.main() == 1
    told = capsys.readouterr().err
    assert [name for name in ("limuc", "edd2020", "gone") if f"docs/{name}.md: out of date" in told] == [
        "limuc",
        "edd2020",
        "gone",
    ]
    assert told.count("out of date") == 3


def test_what_the_pages_say_of_the_tests_is_what_the_tests_do(tool):
    assert sorted(tool.TESTED_ON) == card_ids()
    assert {name for name, kind in tool.TESTED_ON.items() if kind == tool.REAL} == REAL_SAMPLES


@pytest.mark.parametrize("card", list_cards(), ids=lambda card: card.id)
def test_a_page_names_the_command_every_class_and_every_defect(tool, card):
    text = tool.page(card)
    assert f"cogalign data import {card.id} SRC OUT" in text and card.licence.name in text
    for name, value in card.label_map.items():
        finding = f"`{value}`" if isinstance(value, str) else "left out"
        assert f"| {name} | {finding} |" in text
    assert [sentence for sentence in (*card.defects, *card.unknowns) if f"- {sentence}" not in text] == []
    assert f"[{card.id}]({card.id}.md)" in tool.overview(list_cards())
