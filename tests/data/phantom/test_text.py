import re

import numpy as np

from cogalign.cognition.keywords import count_found, extract
from cogalign.cognition.report import parse, render
from cogalign.cognition.taxonomy import FINDINGS as TAXONOMY
from cogalign.data.phantom.spec import FINDINGS, VARIANTS, LesionSpec, PhantomSpec, draw_spec
from cogalign.data.phantom.text import LOOKS, MORPHOLOGY, VESSELS, description, position, report


def specs(count: int = 400) -> list[PhantomSpec]:
    rng = np.random.default_rng(2)
    return [draw_spec(rng, 0.5, 0.3) for _ in range(count)]


def test_a_report_earns_nine_of_nine_keywords_and_parses_back() -> None:
    for spec in specs():
        told = report(spec)
        text, keywords = render(told), extract(told)
        assert [len(words) for words in keywords.values()] == [3, 3, 3]
        assert count_found(text, keywords) == 9
        assert parse(text) == told and parse(text).agrees_with(spec.findings)
        assert not told.missing and not told.unknown


def test_reports_of_different_findings_do_not_share_their_keywords() -> None:
    singles = {spec.findings: spec for spec in specs() if len(spec.findings) == 1}
    assert len(singles) == 7
    for findings, spec in singles.items():
        for other, another in singles.items():
            if findings != other:
                mine = {name: words for name, words in extract(report(spec)).items() if name != "location"}
                assert count_found(render(report(another)), mine) < 6


def test_a_description_names_no_finding() -> None:
    names = {name.lower() for finding in TAXONOMY.values()
             for name in (finding.name, finding.id.replace("_", " "), *finding.synonyms) if len(name) > 1}  # fmt: skip
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})\b")
    texts = [description(spec) for spec in specs()] + list(LOOKS.values())
    assert len(set(texts)) > 300
    for text in texts:
        assert pattern.search(text.lower()) is None, text
        assert not parse(text).diagnosis


def test_a_description_tells_lesions_positions_and_cues() -> None:
    spec = next(s for s in specs() if len(s.lesions) == 2)
    text = description(spec).lower()
    for lesion in spec.lesions:
        assert f"{LOOKS[lesion.finding, lesion.variant]}, {position(lesion)}" in text
    cues = {description(PhantomSpec("colon", (), cue, "smooth", "clear", 0)) for cue in range(len(FINDINGS))}
    assert len(cues) == 7 and all("nothing on the wall" in text.lower() for text in cues)


def test_every_variant_has_words_of_its_own() -> None:
    variants = {(finding, variant) for finding, names in VARIANTS.items() for variant in names}
    assert set(LOOKS) == set(MORPHOLOGY) == variants and set(VESSELS) == set(VARIANTS)
    for table in (LOOKS, MORPHOLOGY, VESSELS):
        assert len(set(table.values())) == len(table)


def test_positions_in_words() -> None:
    def at(y: float, x: float) -> str:
        return position(LesionSpec("polyp", "sessile", y, x, 0.1, 0.0, 0))

    assert [at(0.5, 0.55), at(0.3, 0.3), at(0.3, 0.7), at(0.7, 0.3), at(0.7, 0.7)] == [
        "centre", "upper left", "upper right", "lower left", "lower right"
    ]  # fmt: skip
