"""What a case set holds, for a person: counts, pictures of them, licences and overlays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.groups import crossing_groups
from cogalign.data.overlays import NOTABLE, cramers_v, overlays_markdown
from cogalign.data.overview_plots import class_histogram, cooccurrence_plot
from cogalign.data.side_files import own_folder
from cogalign.data.sources import Source, allows, read_sources, sources_of, strictest
from cogalign.training.atomic import write_bytes, write_text

NO_SOURCE = "no data set"


def write_overview(case_set: CaseSet, out: Path) -> None:
    """Write `summary.md`, `classes.svg`, `cooccurrence.svg`, `licences.md` and `overlays.md` of a case set to a folder.

    Nothing is decoded: overlays are told as `flag_overlays` left them in the cases.

    Raises:
        ValueError: `sources.json` cannot be read, or `out` lies in the case set but is a symbolic link out of it.
        OSError: the folder cannot be written.
    """
    cases = case_set.cases
    sources = sources_of(read_sources(case_set.root), cases)
    out = own_folder(case_set.root, out)
    by_source = counts_by_source(cases)
    write_bytes(out / "classes.svg", class_histogram(by_source))
    write_bytes(out / "cooccurrence.svg", cooccurrence_plot(cooccurrence(cases), by_source))
    write_text(out / "licences.md", licences_markdown(sources, cases))
    write_text(out / "overlays.md", overlays_markdown(cases))
    write_text(out / "summary.md", summary_markdown(cases, sources))


def counts_by_source(cases: Sequence[Case]) -> dict[str, Counter[str]]:
    """For each data set how many cases have each finding; a case with several counts for each."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        counts.setdefault(case.dataset or NO_SOURCE, Counter()).update(set(case.findings))
    return dict(sorted(counts.items()))


def cooccurrence(cases: Sequence[Case]) -> dict[tuple[str, str], int]:
    """In how many cases two findings stand together; (a, a) counts the cases in which a stands alone."""
    counts: Counter[tuple[str, str]] = Counter()
    for case in cases:
        findings = sorted(set(case.findings))
        if len(findings) == 1:
            counts[findings[0], findings[0]] += 1
        counts.update((one, other) for one in findings for other in findings if one != other)
    return dict(counts)


def licences_markdown(sources: Sequence[Source], cases: Sequence[Case]) -> str:
    """A page on what may be done with the cases of each data set."""
    by_title = {source.title: source for source in sources}
    lines = [
        "# Licences",
        "",
        "| data set | cases | redistribution | commercial use | licence |",
        "|---|---:|---|---|---|",
    ]
    for source in sources:
        licence = source.licence
        name = f"[{source.title}]({source.homepage})" if source.homepage else source.title or NO_SOURCE
        lines.append(
            f"| {name} | {source.cases} | {licence.redistribution} | {licence.commercial} | {_cell(licence.name)} |"
        )
    lines.append("")
    for use, title in (("redistribution", "may be passed on"), ("commercial", "may be used commercially")):
        allowed = [source for source in sources if getattr(source.licence, use) == "yes"]
        number = sum(allows(case, by_title, use) == "yes" for case in cases)
        names = ", ".join(source.title for source in allowed) or "no data set"
        overall = strictest(getattr(source.licence, use) for source in sources)
        lines.append(f"- {number} of {len(cases)} cases {title}: {names}. All together: **{overall}**.")
    lines.append("")
    lines.append("`ask`: the owner allows it on request. `unknown`: the licence does not say, so do not assume it.")
    for source in sources:
        notes = [text for text in (source.licence.note, f"Cite: {source.citation}" if source.citation else "") if text]
        if notes:
            lines += ["", f"**{source.title or NO_SOURCE}.** {' '.join(notes)}"]
    return "\n".join(lines) + "\n"


def summary_markdown(cases: Sequence[Case], sources: Sequence[Source]) -> str:
    """A page with the counts of a case set."""
    groups = Counter(case.group or case.id for case in cases)
    splits = list(dict.fromkeys(case.split for case in cases))
    crossing = crossing_groups(cases)
    lines = [
        "# Overview",
        "",
        f"{len(cases)} cases of {len(sources)} data sets in {len(groups)} groups (the largest has "
        f"{max(groups.values(), default=0)} cases). Masks: {sum(case.mask_file_name is not None for case in cases)}. "
        f"Boxes: {sum(bool(case.boxes) for case in cases)}. Several findings: "
        f"{sum(len(set(case.findings)) > 1 for case in cases)}. "
        f"Repeat a photograph: {sum('duplicate_of' in case.attributes for case in cases)}.",
        "",
    ]
    if crossing:
        lines += [f"**Groups in more than one split: {len(crossing)}. Results on them would be too good.**", ""]
    association = cramers_v(
        [", ".join(sorted(case.findings)) for case in cases], [case.dataset or NO_SOURCE for case in cases]
    )
    if association is not None:
        told = (
            " **The data set tells the finding: a shortcut that a model can take.**" if association >= NOTABLE else ""
        )
        lines += [f"Findings and data sets: Cramer's V {association:.2f} (0 none, 1 the same thing).{told}", ""]
    lines += _table("finding", splits, [(name, case.split) for case in cases for name in set(case.findings)])
    lines += _table("data set", splits, [(case.dataset or NO_SOURCE, case.split) for case in cases])
    lines += _table("organ", splits, [(case.organ, case.split) for case in cases])
    lines += [
        "![Cases of each finding](classes.svg)",
        "",
        "![Findings together, and by data set](cooccurrence.svg)",
        "",
        "[Licences](licences.md) · [Overlays](overlays.md)",
    ]
    return "\n".join(lines) + "\n"


def _table(what: str, splits: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of a table of counts by split, the most frequent first."""
    counts = Counter(pairs)
    totals = Counter(name for name, _ in pairs)
    lines = [f"| {what} | cases | {' | '.join(map(_cell, splits))} |", f"|---|---:|{'---:|' * len(splits)}"]
    for name, total in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"| {_cell(name)} | {total} | {' | '.join(str(counts[name, split]) for split in splits)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """A text that does not break a table."""
    return " ".join(text.split()).replace("|", "\\|")
