"""What a split came to: lines for the console, `split.json`, and `split.svg` with each finding's share of each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.groups import given_group
from cogalign.data.leaks import LeakReport
from cogalign.data.splits import LEFT_OUT, group_of
from cogalign.training.atomic import write_json, write_text

FAR = 0.1
"""A finding whose share of the test cases is further than this from the wanted one is told."""
_DRAWN = ("train", "validation", "test", LEFT_OUT)
_COLOURS = {"train": "#4c78a8", "validation": "#f2b34c", "test": "#d1495b", LEFT_OUT: "#d0d0d0"}
_OTHERS = ("#6a9f58", "#967aa1", "#85b6b2", "#a87c4f")
_BAR, _LEFT, _ROW = 480, 190, 20

SUMMARY_FILES = ("split.json", "split.svg")

Table = dict[str, dict[str, int]]
"""Cases by name and split."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split came to."""

    root: Path
    method: str
    settings: dict[str, Any]
    """Seed, shares and options of the draw."""
    cases: int
    groups: int
    joined: int
    """Cases that are in another group than the one they came with: they show a photograph of that group, or are made of one."""
    given_joined: int
    """Given groups (patients, videos, sequences) that are now together with another one."""
    largest: tuple[str, int, int]
    """The group with most cases: its name, its cases, and how many given groups it joins."""
    empty: list[str]
    """Splits that were wanted and have no case."""
    splits: dict[str, int]
    findings: Table
    sources: Table
    finding_groups: dict[str, int]
    """In how many groups a finding is."""
    notes: list[str]
    leaks: LeakReport

    @property
    def failed(self) -> bool:
        """Whether something leaks, or a split that was wanted is empty."""
        return self.leaks.failed or bool(self.empty)

    def lines(self) -> list[str]:
        """The summary for a console."""
        used = sum(number for name, number in self.splits.items() if name != LEFT_OUT)
        shares = ", ".join(
            f"{name} {number}" + (f" ({number / used:.1%})" if name != LEFT_OUT and used else "")
            for name, number in self.splits.items()
        )
        settings = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                             for name, value in self.settings.items() if value is not None)  # fmt: skip
        joined = (
            f"; {self.joined} cases joined another group (repeated photographs, counterfactuals)" if self.joined else ""
        )
        head = f"{self.root}: {self.method} split ({settings}) of {self.cases} cases in {self.groups} groups{joined}"
        return [head, shares, *self._large(), *self._empty(), *self.notes, *self._far(), *self.leaks.lines()]

    def _large(self) -> list[str]:
        """The largest group, and what was joined."""
        name, cases, given = self.largest
        if cases < 2:
            return []
        of = f", which joins {given} given groups" if given > 1 else ""
        joined = (
            f"; {self.given_joined} given groups (patients, videos) were joined to others" if self.given_joined else ""
        )
        return [f"largest group: {name!r} with {cases} cases ({cases / self.cases:.1%}){of}{joined}"]

    def _empty(self) -> list[str]:
        """What to do about a split without cases."""
        if not self.empty:
            return []
        return [
            f"EMPTY: {', '.join(self.empty)}: {self.groups} groups, which stay whole, could not fill it; look at the "
            "largest group, import more, or ask for other shares"
        ]

    def _far(self) -> list[str]:
        """Findings that are not where they should be."""
        # A data set that is kept apart in a split of its own has no share in the draw.
        drawn = {name: sum(home.get(split, 0) for split in _DRAWN) for name, home in self.findings.items()}
        absent = [
            name
            for name, home in self.findings.items()
            if "test" in self.splits and drawn[name] and not home.get("test")
        ]
        lines = []
        if absent:
            told = ", ".join(f"{name} ({self.finding_groups[name]} groups)" for name in absent)
            lines.append(f"not in test: {told}")
        wanted = self.settings.get("test_share")
        if self.method == "stratified" and isinstance(wanted, float):
            far = [
                f"{name} {home['test'] / drawn[name]:.0%} ({self.finding_groups[name]} groups)"
                for name, home in self.findings.items()
                if home.get("test") and abs(home["test"] / drawn[name] - wanted) > FAR
            ]
            if far:
                lines.append(f"share of test far from {wanted:.0%}, since groups stay whole: {', '.join(far)}")
        return lines


def summarise(
    root: Path,
    method: str,
    settings: dict[str, Any],
    after: Sequence[Case],
    notes: list[str],
    leaks: LeakReport,
    wanted: Mapping[str, float],
) -> SplitSummary:
    """The summary of a split.

    Args:
        root: folder of the case set.
        method: how it was split.
        settings: of the draw.
        after: the cases with their new splits and groups.
        notes: what else is to be said.
        leaks: what crosses the new splits.
        wanted: share of the used cases that each split should have. One that should have at least one case, and has
            none, is told as empty.
    """
    counts = Counter(case.split for case in after)
    used = sum(number for name, number in counts.items() if name != LEFT_OUT)
    empty = [name for name, share in wanted.items() if share * max(used, 1) >= 1 and not counts[name]]
    groups: dict[str, set[str]] = {}
    for case in after:
        for finding in case.findings:
            groups.setdefault(finding, set()).add(group_of(case))
    return SplitSummary(
        root,
        method,
        settings,
        len(after),
        len({group_of(case) for case in after}),
        sum((given_group(case) or case.id) != group_of(case) for case in after),
        *_joined(after),
        empty,
        _by_split(counts),
        _table(after, lambda case: case.findings),
        _table(after, lambda case: (case.dataset,)),
        {name: len(groups[name]) for name in sorted(groups)},
        notes,
        leaks,
    )


def _joined(cases: Sequence[Case]) -> tuple[int, tuple[str, int, int]]:
    """How many given groups are together with another one; name, cases and given groups of the largest group."""
    given: dict[str, set[str]] = {}
    for case in cases:
        given.setdefault(group_of(case), set()).update(filter(None, [given_group(case)]))
    sizes = Counter(group_of(case) for case in cases)
    name = min(sizes, key=lambda name: (-sizes[name], name))
    return sum(len(names) for names in given.values() if len(names) > 1), (name, sizes[name], len(given[name]))


def write_summary(summary: SplitSummary, folder: Path) -> None:
    """Write `split.json` and `split.svg`.

    Raises:
        OSError: the folder cannot be written to.
    """
    content = {
        "method": summary.method,
        "settings": summary.settings,
        "cases": summary.cases,
        "groups": summary.groups,
        "joined": summary.joined,
        "given_groups_joined": summary.given_joined,
        "largest_group": {"name": summary.largest[0], "cases": summary.largest[1], "given_groups": summary.largest[2]},
        "empty": summary.empty,
        "splits": summary.splits,
        "findings": summary.findings,
        "sources": summary.sources,
        "notes": summary.notes,
        "leaks": summary.leaks.counts,
        "failed": summary.failed,
    }
    write_json(folder / "split.json", content)
    write_text(folder / "split.svg", picture(summary))


def picture(summary: SplitSummary) -> str:
    """An SVG with a bar for each finding and data set: which share of its cases is in which split."""
    others = iter(_OTHERS * len(summary.splits))
    colours = {name: _COLOURS.get(name) or next(others) for name in summary.splits}
    rows = [("all cases", summary.splits), *_titled(summary.findings), *_titled(summary.sources)]
    height = (len(rows) + 2) * _ROW + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _BAR + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (name, colour) in enumerate(colours.items()):
        left = _LEFT + number * 110
        parts.append(f'<rect x="{left}" y="6" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 16}" y="16">{escape(name)}</text>')
    for index, (name, home) in enumerate(rows, start=1):
        parts.extend(_bar(name, home, colours, index * _ROW + 10))
    return "\n".join((*parts, "</svg>", ""))


def _bar(name: str, home: dict[str, int], colours: dict[str, str], top: int) -> Iterable[str]:
    """A name, its bar, and its number of cases."""
    total = sum(home.values())
    yield f'<text x="{_LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(name or "(no data set)")}</text>'
    left = float(_LEFT)
    for split, colour in colours.items():
        number = home.get(split, 0)
        if number:
            width = _BAR * number / total
            title = f"<title>{escape(f'{name}, {split}: {number} of {total} ({number / total:.1%})')}</title>"
            yield f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 5}" fill="{colour}">{title}</rect>'
            left += width
    yield f'<text x="{_LEFT + _BAR + 8}" y="{top + 12}">{total}</text>'


def _titled(table: Table) -> list[tuple[str, dict[str, int]]]:
    """Rows of a table, the largest first."""
    return sorted(table.items(), key=lambda row: (-sum(row[1].values()), row[0]))


def _table(cases: Sequence[Case], names_of: Callable[[Case], Sequence[str]]) -> Table:
    """Cases by name and split."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        for name in names_of(case):
            counts.setdefault(name, Counter())[case.split] += 1
    return {name: _by_split(counts[name]) for name in sorted(counts)}


def _by_split(counts: Counter[str]) -> dict[str, int]:
    """Counts in the order of the splits that everybody knows, then by name."""
    known = list(_COLOURS)
    return {
        name: counts[name]
        for name in sorted(counts, key=lambda name: (known.index(name) if name in known else 3, name))
    }
