import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd

from cogalign.data.caseset import CaseSetWriter, read_case_set
from cogalign.evaluation import audit_stage, stage
from cogalign.evaluation.report import RATE_NAMES, read_curves, write_report
from cogalign.recipe import AuditSet, AuditSettings
from cogalign.training.context import StageContext

Make = Callable[..., StageContext]
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order and gathers what the page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(path: Path) -> tuple[Page, str]:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    return page, re.sub(r"\s+", " ", text)


def test_the_report_of_a_whole_run_needs_no_other_file(make_context: Make, asked: list[str]) -> None:
    stage.run(make_context("evaluate"))
    audit_stage.run(make_context("audit"))
    page, text = page_of(make_context().run_dir / "report.html")
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert all(image.get("alt") for image in page.images)
    assert "<script" not in text and "http" not in re.sub(r"data:image/\S+", "", text)
    for words in ("Not a medical device", "Lesion removed", "95% CI", "aligned against sft", *RATE_NAMES.values()):
        assert words in text
    # Eight pairs of five pictures, and plots of accuracy, audit, rewards and of the findings of two splits.
    assert len(page.images) == 8 * 5 + 5
    assert text.count('class="right"') > 40 and text.count('class="wrong"') > 40


def test_the_report_shows_other_audit_sets_and_the_blurred_background(
    make_context: Make, painted: Path, asked: list[str], tmp_path: Path
) -> None:
    # Removals of another shade: the other pictures of that set would be those of the run.
    pairs = read_case_set(painted / "counterfactual")
    with CaseSetWriter(tmp_path / "dark") as writer:
        for case in pairs.cases:
            if case.intervention in ("removal", "control"):
                pixels = np.asarray(pairs.image(case))
                writer.add(case, pixels // 2 if case.intervention == "removal" else pixels)
    settings = AuditSettings(
        batch_size=8, bootstrap=50, background_blur=0.3, sets=[AuditSet("unseen_fill", str(tmp_path / "dark"))]
    )
    context = make_context("audit", audit=settings)
    audit_stage.run(context)
    page, text = page_of(context.run_dir / "report.html")
    assert "Audit set unseen_fill" in text and "All but the lesion blurred → diagnosis kept" in text
    assert "Lesion removed (unseen_fill)" in text and "operator off the lesion (unseen_fill)" not in text
    # Eight pairs of five pictures and one of the set; plots of the audit, of the set and of the rewards.
    assert len(page.images) == 8 * 6 + 3
    rows = text.split("Audit set unseen_fill")[1].split("<tbody>")[1].split("</tbody>")[0]
    assert rows.count('<th scope="row">') == 3 and rows.count("<td>–</td>") == 3 * 3


def test_a_report_before_any_stage_says_what_has_not_run(make_context: Make) -> None:
    context = make_context()
    (context.run_dir / "grpo" / "logs" / "metrics.csv").unlink()
    _, text = page_of(write_report(context))
    assert "The stage evaluate has not run yet" in text and "The stage audit has not run yet" in text
    assert "No reward curves" in text


def test_what_a_model_writes_cannot_break_the_page(make_context: Make, asked: list[str]) -> None:
    context = make_context("audit")
    audit_stage.run(context)
    path = context.folder / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame["completion"] = "<script>alert(1)</script></pre>"
    frame["unknown"] = [["<b>&"]] * len(frame)
    frame.to_parquet(path)
    _, text = page_of(write_report(context))
    assert "<script" not in text and "&lt;script&gt;" in text and "“&lt;b&gt;&amp;”" in text


def test_curves_of_a_resumed_run_are_joined_by_step(tmp_path: Path) -> None:
    first, second = tmp_path / "version_0" / "metrics.csv", tmp_path / "version_1" / "metrics.csv"
    for path, steps, level in ((first, [0, 1, 2], 0.1), (second, [2, 3], 0.9)):
        path.parent.mkdir()
        pd.DataFrame({"step": steps, "reward": level, "kl": level}).to_csv(path, index=False)
    second.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.csv").write_text("")
    curves = read_curves(tmp_path)
    assert curves is not None
    assert curves["step"].tolist() == [0, 1, 2, 3] and curves["reward"].tolist() == [0.1, 0.1, 0.9, 0.9]


def test_a_log_without_rewards_gives_no_curves(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,1.0\n")
    assert read_curves(tmp_path) is None
