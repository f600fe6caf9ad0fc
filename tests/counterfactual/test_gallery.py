import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cogalign.counterfactual.gallery import SIDE, data_uri, outlined, write_gallery
from cogalign.counterfactual.gallery_table import table
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set

SHAPE = (30, 40)


def image(number: int) -> np.ndarray:
    return np.full((*SHAPE, 3), 20 * number, dtype=np.uint8)


def square() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5:15, 5:15] = True
    return mask


def a_case(name: str, **fields: Any) -> Case:
    masked = fields.pop("masked", True)
    values: dict[str, Any] = {"id": name, "file_name": f"images/{name}.png", "findings": ("polyp",), "split": "train"}
    values["mask_file_name"] = f"masks/{name}.png" if masked else None
    return Case(**{**values, **fields})


def made(source: str, kind: str, quality: dict[str, Any] | None = None, **attributes: Any) -> Case:
    if quality is not None:
        attributes["quality"] = quality
    findings = ("normal",) if kind == "removal" else ("polyp",)
    return a_case(f"{source}-{kind}", findings=findings, counterfactual_of=source, intervention=kind, fill="mean",
                  split="test" if source == "s2" else "train", attributes=attributes)  # fmt: skip


@pytest.fixture
def factual(tmp_path: Path) -> CaseSet:
    with CaseSetWriter(tmp_path / "data") as writer:
        for number in range(3):
            writer.add(
                a_case(f"s{number}", masked=number != 2, split="test" if number == 2 else "train"),
                image(number),
                square() if number != 2 else None,
            )
    return read_case_set(tmp_path / "data")


CASES = [
    made("s0", "removal", {"seam": 1.25, "residual_segmenter": 0.5, "realism": None}, mask={"provenance": "box", "confidence": 0.7}),
    made("s0", "control"),
    made("s1", "removal", {"seam": 3.5, "failed": ["visible seam", "<b>odd</b>"]}),
    made("s1", "control", {"seam": 4.5, "failed": ["visible seam"]}),
    made("s2", "removal", {"seam": float("nan"), "residual_classifier": True}),
]  # fmt: skip


@pytest.fixture
def pairs(tmp_path: Path) -> CaseSet:
    with CaseSetWriter(tmp_path / "pairs") as writer:
        for number, case in enumerate(CASES):
            writer.add(case, image(number + 4), square())
    return CaseSet(tmp_path / "pairs", CASES)


@dataclass
class Page(HTMLParser):
    """What the tests look at: elements with their attributes, and the text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, *names: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.elements if found == tag and all(name in attrs for name in names)]


def write(pairs: CaseSet, factual: CaseSet, path: Path, **fields: Any) -> Page:
    good = [case for case in pairs.cases if not case.attributes.get("quality", {}).get("failed")]
    bad = [case for case in pairs.cases if case not in good]
    write_gallery(CaseSet(pairs.root, good), factual, path, **{"limit": 9, "rejected": bad, **fields})
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture
def page(pairs: CaseSet, factual: CaseSet, tmp_path: Path) -> Page:
    return write(pairs, factual, tmp_path / "gallery.html", left_out={"no mask": 7}, summary={"removal": {"seam": 1.5}})


def test_a_case_whose_counterfactuals_were_all_rejected_keeps_its_row(page: Page) -> None:
    assert [row["data-id"] for row in page.all("tr", "data-id")] == ["s0", "s1", "s2"]
    figures = {figure["data-id"]: figure for figure in page.all("figure", "data-of")}
    assert figures.keys() == {case.id for case in CASES}
    assert [name for name, figure in figures.items() if figure.get("data-failed")] == ["s1-removal", "s1-control"]
    assert page.text.count("rejected: visible seam") == 2


def test_it_needs_nothing_from_elsewhere_and_allows_nothing_else(page: Page, tmp_path: Path) -> None:
    text = (tmp_path / "gallery.html").read_text()
    sources = [attrs[name] for _, attrs in page.elements for name in ("src", "href", "action") if name in attrs]
    assert len(sources) > 8 and all((source or "").startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = [meta["content"] or "" for meta in page.all("meta", "http-equiv")]
    for kind in ("style", "script"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "style"]


def test_rows_carry_their_worst_measures_for_sorting(page: Page) -> None:
    first, second, third = page.all("tr", "data-id")
    assert (first["data-seam"], first["data-residual_segmenter"], first["data-confidence"]) == ("1.25", "0.5", "0.7")
    assert second["data-seam"] == "4.5" and "data-confidence" not in second
    assert not [name for name in third if name in ("data-seam", "data-realism", "data-residual_classifier")]
    options = {option["value"] for option in page.all("option")}
    assert {"seam", "residual_segmenter", "residual_classifier", "realism", "confidence", "id"} <= options
    assert {"train", "test", "visible seam", "removal", "control"} <= options


def test_the_head_tells_yield_reasons_and_exclusions(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "5 counterfactuals of 3 cases, fill mean: 3 passed the quality gate, 2 did not" in words
    assert "removal2 of 3 (67 %)" in words and "control1 of 2 (50 %)" in words
    assert "visible seam2" in words and "no mask7" in words
    assert "box" in words and "confidence 0.70" in words


def test_texts_from_the_cases_are_no_markup(page: Page) -> None:
    assert "rejected: <b>odd</b>" in page.text and not page.all("b")


def test_every_picture_says_what_it_shows(page: Page) -> None:
    alts = [picture["alt"] or "" for picture in page.all("img")]
    assert all(alts)
    assert "removal of s1: Normal; rejected: visible seam, <b>odd</b>" in alts
    assert "outline of the mask of s0, 8.3 % of the image" in alts and "s2: no mask" in alts
    shots = page.all("button", "aria-pressed")
    assert len([shot for shot in shots if "shot" in (shot.get("class") or "")]) == len(CASES) + 2


def test_the_mask_of_a_file_comes_before_the_cases_own(pairs: CaseSet, factual: CaseSet, tmp_path: Path) -> None:
    found = np.zeros(SHAPE, dtype=np.uint8)
    found[:15] = 255
    cv2.imwrite(str(tmp_path / "found.png"), found)
    page = write(
        pairs, factual, tmp_path / "g.html", masks={"s2": tmp_path / "found.png", "s0": tmp_path / "found.png"}
    )
    alts = [picture["alt"] for picture in page.all("img")]
    assert {f"outline of the mask of {name}, 50.0 % of the image" for name in ("s0", "s2")} <= set(alts)


def test_a_limit_spreads_over_all_sources_and_zero_shows_none(pairs: CaseSet, factual: CaseSet, tmp_path: Path) -> None:
    page = write(pairs, factual, tmp_path / "g.html", limit=1)
    assert [row["data-id"] for row in page.all("tr", "data-id")] == ["s1"]
    assert not write(pairs, factual, tmp_path / "g.html", limit=0).all("img")


def test_several_counterfactuals_of_a_kind_stand_in_one_cell(factual: CaseSet, tmp_path: Path) -> None:
    cases = [made("s0", "control"), a_case("s0-control-1", counterfactual_of="s0", intervention="control")]
    with CaseSetWriter(tmp_path / "twice") as writer:
        for case in cases:
            writer.add(case, image(1), square())
    page = write(CaseSet(tmp_path / "twice", cases), factual, tmp_path / "g.html")
    assert [figure["data-id"] for figure in page.all("figure", "data-of")] == ["s0-control", "s0-control-1"]
    assert len(page.all("td")) == 3


def test_pictures_are_reduced_and_the_outline_keeps_off_the_rest() -> None:
    uri = data_uri(np.zeros((1000, 500, 3), dtype=np.uint8))
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (SIDE, SIDE // 2, 3)
    drawn = outlined(image(5), square())
    assert (drawn != image(5)).any() and np.array_equal(drawn[20:], image(5)[20:])


def test_summaries_of_any_depth_become_tables() -> None:
    deep = {"n": 3, "fills": {"mean": {"seam": 1.23456, "seam_ci": [1.0, 1.5], "auc": None}, "telea": {"kid": 2.0}}}
    first, second = table(deep)
    assert first.rows == (("n", "3"),)
    assert (second.title, second.columns) == ("fills", ("", "seam", "auc", "kid"))
    assert second.rows == (("mean", "1.235 [1, 1.5]", "–", ""), ("telea", "", "", "2"))
    assert table({}) == []
