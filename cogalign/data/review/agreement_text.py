"""`agreement.md`: the figures of a review as tables."""

from __future__ import annotations

from collections.abc import Sequence

from cogalign.cognition.report import SECTIONS
from cogalign.data.review.agreement import Agreement
from cogalign.data.review.fields import DECISIONS
from cogalign.data.review.statistics import Estimate

_EXPLAINED = """
Shares have Wilson's 95 % interval; means and kappas a bootstrap interval over reports (percentiles, 1000 draws, fixed
seed), none for a single report. *Change* is the edit distance of the section's text: insertions, deletions and
replacements by the longer length; 0: not touched. Kappa takes each combination of findings as one label; `-`: cannot be
computed, e.g. as everybody says the same label throughout. Rejected reports count for the shares alone.
"""


def agreement_text(found: Agreement, told: Sequence[str] = ()) -> str:
    """The figures as markdown.

    Args:
        found: see `agreement`.
        told: remarks of the import, listed at the end.
    """
    lines = ["# Agreement", "", f"{found.cases} reports, reviewed by {', '.join(found.annotators) or 'nobody'}."]
    lines += ["", "## Teacher and reviewers", ""]
    lines += ["| annotator | field | n | pass | revised | rejected | change |", "|---|---|---|---|---|---|---|"]
    for row in found.teacher:
        shares = " | ".join(_percent(row.shares[word]) for word in DECISIONS)
        change = _number(row.change) if row.change is not None else ""
        lines.append(f"| {_cell(row.annotator)} | {row.field} | {row.n} | {shares} | {change} |")
    lines += ["", "| annotator | reports kept | kappa of the findings |", "|---|---|---|"]
    lines += [f"| {_cell(who)} | {kappa.n} | {_number(kappa)} |" for who, kappa in found.teacher_kappa.items()]
    if found.pairs:
        lines += ["", *_pairs(found)]
    lines += _EXPLAINED.splitlines()
    if told:
        lines += ["", "## Told by the import", "", *(f"- {line}" for line in told)]
    return "\n".join(lines) + "\n"


def _pairs(found: Agreement) -> list[str]:
    """The table of the reviewers among one another."""
    heads = ["annotators", "cases", "same verdict", "same findings", "kappa", *SECTIONS]
    lines = ["## Reviewers among one another", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for pair in found.pairs:
        cells = [f"{_cell(pair.one)}, {_cell(pair.other)}", str(pair.cases), _percent(pair.verdict)]
        cells += [_percent(pair.findings), _number(pair.kappa), *(_number(pair.sections[name]) for name in SECTIONS)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Under the sections: similarity of the two texts, 1 for the same."]
    mean = "-" if found.mean_kappa is None else f"{found.mean_kappa:.2f}"
    alpha = f"Krippendorff's alpha of the findings over {found.alpha.n} reports: {_number(found.alpha)}."
    return [*lines, "", f"Mean kappa of the pairs: {mean}. {alpha}"]


def _percent(figure: Estimate) -> str:
    if figure.value is None:
        return "-"
    return f"{100 * figure.value:.0f} % ({100 * (figure.low or 0):.0f} to {100 * (figure.high or 0):.0f})"


def _number(figure: Estimate) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _cell(text: str) -> str:
    """A text within a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
