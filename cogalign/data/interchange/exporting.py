"""From a case set to files of another tool: one for each split, with the images beside them."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.interchange.formats import Format, format_of
from cogalign.data.interchange.importing import new_folder
from cogalign.data.interchange.vlmevalkit import READ_AS_MISSING, choices_of
from cogalign.data.sources import Source, datasets_of, read_sources, write_sources
from cogalign.data.splits import LEFT_OUT
from cogalign.training.progress import track

Images = Literal["copy", "reference", "relative"]
Use = Literal["redistribution", "commercial"]


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote."""

    out: Path
    format: str
    files: dict[str, int]
    """Rows of each file."""
    without_answer: int = 0
    warnings: list[str] = field(default_factory=list)
    left_out: int = 0
    """Cases that the split left out, and that no `splits` named."""

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        lines = [f"{self.out / name} is written: {count} rows" for name, count in self.files.items()]
        if self.without_answer:
            lines.append(f"{self.without_answer} cases are left out: they have no answer, which {self.format} needs")
        if self.left_out:
            lines.append(f"{self.left_out} cases are left out, as by the split; --splits {LEFT_OUT} writes them")
        return lines + [f"warning: {warning}" for warning in self.warnings]


def export_case_set(
    case_set: Path,
    out: Path,
    format: str,
    *,
    splits: Sequence[str] | None = None,
    images: Images = "copy",
    require: Use | None = None,
) -> ExportSummary:
    """Write a case set in another tool's format: a file for each split in a new folder.

    Args:
        case_set: folder of the case set.
        out: the new folder; it appears when it is finished, or not at all.
        format: a name of `FORMATS` that can be written.
        splits: only these; by default all but `left_out`, the cases that a split left out.
        images: `copy` images, masks and sources into the folder; `reference`: symbolic links to them; `relative`: neither,
            the paths in the files are relative to the case set. Formats that hold the images in the file need none.
        require: refuse if a data set's licence is not known to allow this use; by default a warning names those that do
            not allow redistribution.

    Raises:
        FileNotFoundError: there is no such case set, or a file of it is missing.
        FileExistsError: `out` exists and is not empty.
        ValueError: the format or a split is unknown, a case cannot be written in it, no case is left, or `require` fails.
    """
    kind = format_of(format, writes=True)
    if images not in ("copy", "reference", "relative"):
        raise ValueError(f"images: found {images!r}, wanted copy, reference or relative")
    cases = read_case_set(case_set)
    wanted = splits or [name for name in cases.splits if name != LEFT_OUT]
    chosen = [case for name in wanted for case in cases.split(name)]
    left_out = 0 if splits else sum(case.split == LEFT_OUT for case in cases.cases)
    sources = read_sources(cases.root)
    chosen = [_with_licence(case, sources) for case in chosen]
    kept = [case for case in chosen if case.answer or not kind.needs_answer]
    if not kept:
        raise ValueError(f"{cases.root}: none of the {len(chosen)} cases has an answer, which {kind.name} needs")
    warnings = licence_warnings(kept, sources, require)
    if kind.name == "vlmevalkit":
        warnings += _misread(kept)
    names = file_names(list(dict.fromkeys(case.split for case in kept)), kind)
    with new_folder(Path(out)) as folder:
        for split, name in names.items():
            assert kind.write is not None  # `format_of` saw to it
            kind.write(folder / name, [case for case in kept if case.split == split], cases.root)
        if images != "relative" and not kind.holds_images:
            _place(cases, kept, folder, link=images == "reference")
        counts = Counter(title for case in kept for title in datasets_of(case))
        here = [replace(one, cases=counts[one.title]) for one in sources if counts[one.title]]
        if here:
            write_sources(folder, here)
    rows = Counter(case.split for case in kept)
    files = {name: rows[split] for split, name in names.items()}
    return ExportSummary(Path(out), kind.name, files, len(chosen) - len(kept), warnings, left_out)


def licence_warnings(cases: Sequence[Case], sources: Sequence[Source], require: Use | None) -> list[str]:
    """What the licences of the cases' data sets do not allow, a line each.

    Raises:
        ValueError: `require` is given and the licence of a data set is not known to allow that use.
    """
    use: Use = require or "redistribution"
    known = {source.title: source for source in sources}
    counts = Counter(title for case in cases for title in datasets_of(case))
    told: dict[str, list[str]] = {}
    for title, count in counts.items():
        source = known.get(title)
        answer = getattr(source.licence, use) if source else "unknown"
        licence = source.licence.name if source else "no licence known"
        told.setdefault(answer, []).append(f"{title or 'cases without a data set'} ({licence}, {count} cases)")
    refused = [name for answer in ("no", "ask", "unknown") for name in told.get(answer, ())]
    if require and refused:
        raise ValueError(
            f"require {require}: not known to be allowed for {', '.join(refused)}; leave these cases out or ask"
        )
    verbs = {"no": "forbids", "ask": "allows on request only", "unknown": "does not say whether it allows"}
    return [f"the licence {verb} {use}: {', '.join(told[answer])}" for answer, verb in verbs.items() if answer in told]


def file_names(splits: Sequence[str], kind: Format) -> dict[str, str]:
    """A file name for each split.

    Raises:
        ValueError: two splits would have the same one.
    """
    names = {split: re.sub(r"[^A-Za-z0-9._-]+", "-", split).strip(".-") + kind.suffixes[0] for split in splits}
    if len({name.lower() for name in names.values()}) < len(names) or kind.suffixes[0] in names.values():
        raise ValueError(f"splits: found {', '.join(map(repr, splits))}, whose files would have the same name or none")
    return names


def _with_licence(case: Case, sources: Sequence[Source]) -> Case:
    """The case with the name of its data set's licence, if it has none itself."""
    found = next((source.licence.name for source in sources if source.title == case.dataset), "")
    return replace(case, licence=found) if found and not case.licence else case


def _misread(cases: Sequence[Case]) -> list[str]:
    """A warning for choices and answers that VLMEvalKit's reader takes for missing cells."""
    texts = (text for case in cases for text in (case.answer, *choices_of(case).values()))
    found = [text for text in texts if text in READ_AS_MISSING]
    if not found:
        return []
    return [f"{len(found)} answers or choices such as {found[0]!r} are read by VLMEvalKit (pandas) as missing cells"]


def _place(case_set: CaseSet, cases: Sequence[Case], folder: Path, *, link: bool) -> None:
    """Copy or link the files of the cases under their own names, each once."""
    named = [name for case in cases for name in (case.file_name, case.mask_file_name, case.source_file_name) if name]
    for name in track(list(dict.fromkeys(named)), "export images"):
        source, target = case_set.path(name), folder / name
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file; cogalign data check lists all that is wrong")
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.symlink(source.resolve(), target)
        else:
            shutil.copyfile(source, target)
