"""From a file of another tool to a case set."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cogalign.data.case import Case
from cogalign.data.caseset import write_metadata
from cogalign.data.interchange.cases import Place, cases_of, split_told
from cogalign.data.interchange.formats import Format, format_of
from cogalign.data.interchange.pictures import Pictures
from cogalign.data.interchange.sample import Sample
from cogalign.data.sources import SOURCES, datasets_of, read_sources, write_sources
from cogalign.training.atomic import append_lines
from cogalign.training.progress import track

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class ImportSummary:
    """What an import brought."""

    out: Path
    format: str
    cases: int
    questions: int
    """Cases without findings."""
    images: int
    splits: dict[str, int]
    renamed: int
    """Ids that occurred before and got a number."""
    quarantined: dict[str, int]
    """Rows that could not be used, by reason (without what differs from row to row)."""

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        lines = [f"{self.out} is written: {self.cases} cases of {self.images} images ({splits})"]
        if self.questions:
            lines.append(f"{self.questions} are question cases: they have an answer, but no findings")
        if self.renamed:
            lines.append(f"{self.renamed} ids occurred before and got a number at their end")
        if self.quarantined:
            count = sum(self.quarantined.values())
            lines.append(f"{count} rows could not be used, see {self.out / QUARANTINE}:")
            lines += [f"  {number} x {reason}" for reason, number in self.quarantined.items()]
        return lines


def import_interchange(
    format: str, src: Path, out: Path, images_root: Path | None = None, *, split: str | None = None
) -> ImportSummary:
    """Make a case set of a file in another tool's format.

    Images are found relative to `images_root`, must lie inside it, are opened once and copied as they are. A row that
    cannot be used (no image or several, a broken one, a field of the wrong type, the same row again) goes to
    `quarantine.jsonl` with the reason. The folder appears when it is finished, or not at all.

    Args:
        format: a name of `FORMATS`.
        src: the file, or a folder with files of the format.
        out: the new folder.
        images_root: folder of the images; by default that of `src`.
        split: split of all cases; by default that of the row, else what the names of the file or of the image's folder
            tell, else `train` (`test` for benchmarks).

    Raises:
        FileNotFoundError: no such file or folder, or no file of the format in it.
        FileExistsError: `out` exists and is not empty.
        ValueError: the format is unknown, a file is not of it (file, row and key are named), or no row could be used.
    """
    kind = format_of(format)
    src = Path(src)
    files = files_of(kind, src)
    root = Path(images_root) if images_root is not None else src if src.is_dir() else src.parent
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of images")
    with new_folder(Path(out)) as folder:
        job = _Import(kind, folder, root, split)
        for file in files:
            for sample in track(kind.read(file), f"import {file.name}"):
                job.add(file, sample)
        if not job.cases:
            why = "; ".join(f"{count} x {reason}" for reason, count in job.reasons.most_common(3)) or "it has no row"
            raise ValueError(f"{src}: no row could be used: {why}")
        write_metadata(folder, [case.to_row() for case in job.cases])
        _carry_sources(src if src.is_dir() else src.parent, folder, job.cases)
    return job.summary(Path(out))


def files_of(kind: Format, src: Path) -> list[Path]:
    """The file itself, or the files of the format in a folder, by name.

    Raises:
        FileNotFoundError: there is none; says what is there.
    """
    if src.is_file():
        return [src]
    if not src.is_dir():
        raise FileNotFoundError(f"{src}: no such file or folder")
    for suffix in kind.suffixes:
        found = sorted(
            path for path in src.rglob(f"*{suffix}") if path.name not in (QUARANTINE, SOURCES, "metadata.jsonl")
        )
        if found:
            return found
    there = ", ".join(sorted(path.name for path in src.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{src}: found {there}, wanted files *{' or *'.join(kind.suffixes)} of the format {kind.name}"
    )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name only when the block ends without an error.

    Raises:
        FileExistsError: `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: is not empty; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)  # mkdtemp makes it for the owner only
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class _Import:
    """Cases, ids and reasons of a running import."""

    def __init__(self, kind: Format, folder: Path, root: Path, split: str | None) -> None:
        self.kind, self.folder, self.split = kind, folder, split
        self.pictures = Pictures(folder, root)
        self.cases: list[Case] = []
        self.reasons: Counter[str] = Counter()
        self._ids: dict[str, set[tuple[str, str, str]]] = {}
        self._renamed = 0

    def add(self, file: Path, sample: Sample) -> None:
        """Take the cases of a row, or note why not."""
        path = f"{file.name} {sample.place}"
        try:
            found = list(self._cases(file, sample))
        except ValueError as error:
            self._refuse(path, str(error))
            return
        for case in found:
            content = (case.file_name, case.question, case.answer)
            before = self._ids.setdefault(case.id, set())
            if content in before:
                self._refuse(path, f"id {case.id!r}: the same image, question and answer came before")
                continue
            if before:
                self._renamed += 1
                case = replace(case, id=self._free(f"{case.id}-{len(before) + 1}"))
            before.add(content)
            self._ids.setdefault(case.id, set()).add(content)
            self.cases.append(case)

    def _free(self, name: str) -> str:
        """The name, with a number if it is taken."""
        tried, count = name, 1
        while tried in self._ids:
            count += 1
            tried = f"{name}-{count}"
        return tried

    def _cases(self, file: Path, sample: Sample) -> Iterator[Case]:
        """The cases of a row, whose files are copied."""
        if sample.problem:
            raise ValueError(sample.problem)
        if len(sample.pictures) != 1:
            raise ValueError(f"{len(sample.pictures)} images, but a case has exactly one")
        if self.kind.needs_answer and not all(answer for _, answer in sample.turns):
            raise ValueError("a question without an answer")
        picture = sample.pictures[0]
        name = self.pictures.add(picture)
        split = self.split or split_told(file.stem, str(PurePosixPath(picture.path).parent)) or self.kind.split
        place = Place(
            name, PurePosixPath(name).with_suffix("").as_posix(), split, PurePosixPath(name).with_suffix("").as_posix()
        )
        for case in cases_of(sample, place):
            for other in (case.mask_file_name, case.source_file_name):
                if other is not None:
                    self.pictures.add_file(other)
            yield replace(case, split=self.split) if self.split else case

    def _refuse(self, path: str, reason: str) -> None:
        plain = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
        append_lines(self.folder / QUARANTINE, [{"dataset": self.kind.name, "path": path, "reason": plain}])
        self.reasons[_kind_of_reason(plain)] += 1

    def summary(self, out: Path) -> ImportSummary:
        """What there is now."""
        return ImportSummary(
            out, self.kind.name, len(self.cases), sum(case.is_question for case in self.cases),
            len({case.file_name for case in self.cases}), dict(Counter(case.split for case in self.cases)), self._renamed,
            dict(self.reasons.most_common()),
        )  # fmt: skip


def _kind_of_reason(reason: str) -> str:
    """A reason without the names in quotation marks, so that equal ones can be counted."""
    parts = reason.split("'")
    return "'...'".join(parts[::2]) if len(parts) % 2 else reason


def _carry_sources(folder: Path, out: Path, cases: list[Case]) -> None:
    """Take over the `sources.json` that lies beside the file, for the data sets that are here."""
    counts = Counter(name for case in cases for name in datasets_of(case))
    sources = [replace(one, cases=counts[one.title]) for one in read_sources(folder) if counts[one.title]]
    if sources:
        write_sources(out, sources)
