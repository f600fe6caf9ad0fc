import io
import re
from pathlib import Path

import pytest
from PIL import Image

from cogalign.evaluation.storage import read_frame
from cogalign.study.pictures import pictures
from cogalign.study.results import write_results
from cogalign.study.runs import ArmRun, read_curves, read_runs
from cogalign.study.settings import read_study
from tests.evaluation.test_report import page_of
from tests.study.judged_study import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_study(tmp_path_factory.mktemp("study") / "out")
    write_results(out)
    return out


def test_the_page_needs_no_other_file_and_shows_every_arm(study: Path) -> None:
    page, text = page_of(study / "study.html")
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert all(image.get("alt") for image in page.images)
    assert "<script" not in text and "http" not in re.sub(r"data:image/\S+", "", text)
    for words in ("Not a medical device", "SFT longer", "Causal audit: unseen_fill", "polyp recall (cross_source)",
                  "GRPO &lt;ours&gt; against SFT longer", "80.0% · 60.0%"):  # fmt: skip
        assert words in text
    assert "<ours>" not in text
    decides = text.split("Primary measure: image, removal, control and transplant all right.")[1].split("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td>', decides) == [
        ("GRPO &lt;ours&gt; against SFT longer", "+100.0"), ("GRPO &lt;ours&gt; against SFT", "+100.0"),
        ("SFT longer against SFT", "+0.0"),
    ]  # fmt: skip


def test_pictures_are_an_image_and_its_pairs_with_what_each_arm_said(study: Path) -> None:
    page, text = page_of(study / "study.html")
    shown = [str(image["alt"]) for image in page.images if str(image["src"]).startswith("data:image/jpeg")]
    # Six cases: as taken, four kinds of pairs, and the removal and control of the set.
    assert len(shown) == 6 * 7
    assert shown[:7] == [
        "As taken; truth: Polyp", "Lesion removed; truth: Normal", "Control: same operator off the lesion; truth: Polyp",
        "Lesion on another background; truth: Polyp", "Background cue changed; truth: Polyp",
        "Lesion removed (unseen_fill); truth: Normal", "Control: same operator off the lesion (unseen_fill); truth: Polyp",
    ]  # fmt: skip
    removed = text.split("Lesion removed; truth: Normal")[1].split("</figure>")[0]
    assert re.findall(r'<li class="(\w+)">.*?</span> ([^<]*)</li>', removed) == [
        ("wrong", "SFT: Polyp"), ("wrong", "SFT longer: Polyp"), ("right", "GRPO &lt;ours&gt;: Normal"),
    ]  # fmt: skip


def test_cases_are_chosen_whatever_was_said(study: Path) -> None:
    said = [read_frame(study / "arms" / arm / "seed1" / "audit" / "predictions.parquet") for arm in ("sft", "ours")]
    rows = [pictures(study, ["unseen_fill"], {"ours": frame}, {"ours": "Ours"}) for frame in said]
    assert [pair.id for pair in rows[0]] == [pair.id for pair in rows[1]] == ["p00", "p01", "p03", "p05", "p06", "p08"]
    assert rows[0][0].pictures[1].answers != rows[1][0].pictures[1].answers


def test_without_the_case_sets_there_is_a_page_without_pictures(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "arms").symlink_to(study / "arms")
    (out / "study.yaml").write_bytes((study / "study.yaml").read_bytes())
    write_results(out)
    _, text = page_of(out / "study.html")
    assert "Images, and what each arm said" not in text and "Causal audit" in text
    assert (out / "study.json").read_bytes() == (study / "study.json").read_bytes()


def test_the_markdown_has_a_column_an_arm_and_whole_tables(study: Path) -> None:
    lines = (study / "study.md").read_text().splitlines()
    assert "|  | SFT | SFT longer | GRPO <ours> | Images |" in lines
    row = next(line for line in lines if line.startswith("| lesion removed → says normal | 0.0%") and "70.0%" in line)
    assert "(80.0% · 60.0%)" in row and row.endswith("| 10 |")
    head = ""
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            head = head if before.startswith("|") else line
            assert line.count(" |") == head.count(" |"), line


def test_the_plot_for_documents_is_a_png_that_is_not_empty(study: Path) -> None:
    image = Image.open(io.BytesIO((study / "study.png").read_bytes()))
    assert image.format == "PNG" and image.width > 800
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_curves_go_on_where_the_arm_before_ended(study: Path) -> None:
    runs, missing = read_runs(study, read_study(study / "study.yaml"))
    assert missing == [] and [(run.arm, run.seed) for run in runs[-2:]] == [("ours", 1), ("ours", 2)]
    curve = read_curves(runs[-1], "grpo")
    assert curve is not None and curve["step"].tolist() == [61, 80, 100]
    assert set(curve) == {"step", "reward", "rewards/diagnosis/mean", "kl"}
    longer = read_curves(runs[2], "sft")
    assert longer is not None and longer["loss"].tolist() == [3.0, 1.0, 0.5]


def test_a_run_without_curves_has_none(tmp_path: Path) -> None:
    (tmp_path / "grpo").mkdir()
    run = ArmRun("ours", 1, tmp_path, 40, 1.0, 0)
    assert read_curves(run, "grpo") is None
    (tmp_path / "grpo" / "metrics.csv").write_text("")
    assert read_curves(run, "grpo") is None
