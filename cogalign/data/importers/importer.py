"""A public data set becomes a case set, as its card says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from cogalign.data.cards.card import Card
from cogalign.data.caseset import METADATA, write_metadata
from cogalign.data.fingerprints import write_fingerprints
from cogalign.data.held import HELD
from cogalign.data.importers.base import Photograph, Record, Rejected
from cogalign.data.importers.root import ARCHIVES, find_root
from cogalign.data.importers.rules import read_layout
from cogalign.data.importers.state import FOLDER, State, digest, job_digest, settings_digest
from cogalign.data.importers.summary import ImportSummary, checksum_differences, differences, restored
from cogalign.data.importers.tree import shown
from cogalign.data.importers.wanted import Wanted, check_findings, chosen_jobs, planned
from cogalign.data.importers.work import Done, Job, Settings, work
from cogalign.data.parallel import each
from cogalign.data.paths import file_stem, slug
from cogalign.data.sources import Source, write_sources
from cogalign.training.atomic import write_text

QUARANTINE = "quarantine.jsonl"


def read_records(card: Card, src: Path) -> tuple[Path, list[Record]]:
    """The data set's root, and what the card (or its reader) says of the files; no image is opened.

    Raises:
        FileNotFoundError: `src` is no such data set, or is half unpacked.
        ValueError: a table cannot be read, or several folders fit.
    """
    root = find_root(src, card)
    if card.reader is None:
        return root, list(read_layout(root, card))
    reader = import_module(f"cogalign.data.importers.readers.{card.reader}")
    read: Callable[[Path, Card], Iterable[Record]] = reader.read
    return root, list(read(root, card))


def import_card(
    card: Card,
    src: Path,
    out: Path,
    *,
    images: Literal["copy", "reference"] = "copy",
    side: int | None = None,
    limit: int | None = None,
    findings: Sequence[str] = (),
    split: str | None = None,
    workers: int | None = None,
) -> ImportSummary:
    """Write the case set of a data set to `out`: images, masks as PNG, `metadata.jsonl`, fingerprints and sources.

    Every image is decoded once, in processes. What cannot be used goes to `quarantine.jsonl` with the reason. An import
    that was broken off goes on where it was; a finished one of the same card, settings and files is left as it is. What
    an earlier import wrote to `out` is replaced when the new one is done, and stays if that gives no case.

    The split is the authors' own where the card knows it. If that divides a group (patient, video) it is kept as
    `attributes.official_split` alone, and all cases are in `train`.

    Args:
        card: says how the files are read.
        src: folder of the data set, or one up to two levels above it.
        out: folder of the case set.
        images: `copy` keeps the bytes of JPEG, PNG and BMP; `reference` writes symbolic links to them.
        side: makes images and masks squares of so many pixels (PNG).
        limit: at most so many cases of each finding, the first by file name.
        findings: only cases with one of these; empty for all.
        split: of all cases, as `attributes.held_split`, which `split_case_set` keeps; None: they are split as others.
        workers: processes; by default one for each processor.

    Raises:
        FileNotFoundError: `src` is not this data set (the message names the card that fits), or half unpacked.
        FileExistsError: `out` holds something else, or another import is writing to it.
        ValueError: a table cannot be read, an argument is out of range, `out` lies in the data set, or no case is left.
    """
    _check_arguments(images, side, limit)
    check_findings(findings)
    root, records = read_records(card, src)
    _refuse_inside(out, root)
    settings = Settings(card, root, out.absolute(), images == "reference", side)
    jobs = _jobs(card, [record for record in records if isinstance(record, Photograph)])
    refused = [record for record in records if isinstance(record, Rejected)]
    codes = [job_digest(job) for job in jobs]
    own = settings_digest(settings)
    wanted = Wanted(limit, tuple(findings), split)
    state = State(settings.out, own, digest([own, *wanted.digest(), *codes, *map(repr, refused)]))
    record = state.finished()
    if record is not None:
        return restored(out, record)
    with state:
        results = _results(replace(settings, out=state.next), jobs, codes, state, wanted, workers)
        outcome = _Outcome(settings, src, jobs, refused, results, wanted)
        summary = outcome.write(out, lambda: state.publish([codes[number] for number in results]))
        state.finish(summary.record(), again=any(done.again for done in results.values()))
    return summary


def _check_arguments(images: str, side: int | None, limit: int | None) -> None:
    if images not in ("copy", "reference"):
        raise ValueError(f"images: found {images!r}, wanted copy or reference")
    for name, value in (("side", side), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: found {value}, wanted a whole number from 1")


def _refuse_inside(out: Path, root: Path) -> None:
    """Refuse to write into the data set, where the next import would take its images for the data set's own."""
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out}: lies in the folder of the data set ({root}); give a folder outside")


def _jobs(card: Card, photographs: Sequence[Photograph]) -> list[Job]:
    """The photographs by file name, each with the id of its case and the stem of its files, none of them twice."""
    jobs = []
    taken: set[str] = set()
    for photograph in sorted(photographs, key=lambda one: (one.path.name, one.key)):
        wanted = slug(f"{card.id} {photograph.key}")
        number, case_id = 1, wanted
        while case_id in taken or file_stem(case_id) in taken:
            number += 1
            case_id = f"{wanted}-{number}"
        taken |= {case_id, file_stem(case_id)}
        jobs.append(Job(photograph, case_id, file_stem(case_id)))
    return jobs


def _results(
    settings: Settings, jobs: Sequence[Job], codes: Sequence[str], state: State, wanted: Wanted, workers: int | None
) -> dict[int, Done]:
    """What became of the jobs that are wanted, by number. With a limit, those that fail are replaced by later ones."""
    results = {number: state.known[code] for number, code in enumerate(codes) if code in state.known}
    plans: dict[int, tuple[str, ...] | Done | None] = {}
    while True:
        chosen = list(chosen_jobs(settings.card, jobs, results, plans, wanted))
        missing = [number for number in chosen if number not in results]
        if not missing:
            return {number: results[number] for number in (*chosen, *_failed(results)) if number in results}
        items = [jobs[number] for number in missing]
        finished = each(partial(work, settings), items, f"import {settings.card.title}", workers)
        with closing(cast("Generator[Done]", finished)):  # a signal that comes here ends the processes
            for number, done in zip(missing, finished, strict=True):
                results[number] = done
                state.add(codes[number], done)


def _failed(results: dict[int, Done]) -> list[int]:
    """Numbers of the jobs that gave no case."""
    return [number for number, done in results.items() if done.row is None]


@dataclass(frozen=True)
class _Outcome:
    """All that an import found."""

    settings: Settings
    src: Path
    jobs: Sequence[Job]
    refused: Sequence[Rejected]
    results: dict[int, Done]
    wanted: Wanted

    def write(self, as_given: Path, publish: Callable[[], None]) -> ImportSummary:
        """Write what stands beside images and masks, `metadata.jsonl` last.

        Args:
            as_given: the folder as the user wrote it.
            publish: puts images and masks in their place; called once it is known that there is a case.
        """
        folder, card = self.settings.out, self.settings.card
        numbers = [number for number in sorted(self.results) if self.results[number].row is not None]
        dones = [self.results[number] for number in numbers]
        rows = [done.row for done in dones if done.row is not None]
        lines = list(self._quarantine())
        refused = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not rows:
            there = (folder / METADATA).is_file()
            write_text(folder / (FOLDER if there else "") / QUARANTINE, refused)
            first = f"; the first: {lines[0]['path']}: {lines[0]['reason']}" if lines else self._nothing()
            kept = f"; {as_given} stays as it was, the reasons are in its {FOLDER}/{QUARANTINE}" if there else ""
            raise ValueError(f"{self.src}: no case of {self.settings.card.title} could be imported{first}{kept}")
        publish()
        write_text(folder / QUARANTINE, refused)
        (folder / FOLDER / QUARANTINE).unlink(missing_ok=True)
        _remove_strays(folder, {row[name] for row in rows for name in ("file_name", "mask_file_name") if row[name]})
        prints = [done.print_ for done in dones if done.print_ is not None]
        write_fingerprints(folder, [row["file_name"] for row in rows], prints)
        write_sources(folder, [Source(card.id, card.title, card.licence, card.citation, card.homepage, len(rows))])
        divided = _divided_groups(rows)
        if divided:
            rows = [{**row, "split": "train"} for row in rows]
        if self.wanted.split:
            rows = [held_in(self.wanted.split, row) for row in rows]
        write_metadata(folder, rows)
        return ImportSummary(
            title=card.title,
            out=as_given,
            cases=len(rows),
            quarantined=len(lines),
            findings=dict(Counter(finding for row in rows for finding in row["findings"])),
            masks=sum(row["mask_file_name"] is not None for row in rows),
            boxes=sum(len(row["boxes"]) for row in rows),
            left_out=dict(Counter(name for done in self.results.values() for name in done.left_out)),
            ignored=dict(Counter(name for done in dones for name in done.ignored)),
            differences=(
                *self._differences(),
                *checksum_differences(card, (self.src, self.src.parent, self.settings.root)),
            ),
            divided=divided,
            sizes=len({print_.size for print_ in prints}) if self.settings.side is None else 1,
        )

    def _differences(self) -> list[str]:
        photographs = [job.photograph for job in self.jobs]
        known = {photograph.path for photograph in photographs}
        unread = {one.path for one in self.refused if one.path not in known and "without an image" not in one.reason}
        images = [path for path in unread if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")]
        return differences(self.settings.card, photographs, len(images))

    def _quarantine(self) -> Iterator[dict[str, str]]:
        """The lines of the quarantine file; paths are relative to the data set's folder."""
        failed = ((self.jobs[number].photograph.path, done.reason) for number, done in sorted(self.results.items()))
        for path, reason in (*((one.path, one.reason) for one in self.refused), *failed):
            if reason:
                relative = (
                    path.relative_to(self.settings.root).as_posix()
                    if path.is_relative_to(self.settings.root)
                    else path.name
                )
                text = reason.replace(str(path), relative).replace(f"{self.settings.root}/", "")
                yield {"dataset": self.settings.card.title, "path": shown(relative), "reason": shown(text)}

    def _nothing(self) -> str:
        """A hint at why there is no case and nothing was refused: no finding that is wanted, or packed images."""
        if self.wanted.findings and self.jobs:
            plans = (planned(self.settings.card, job.photograph) for job in self.jobs)
            there = sorted({finding for plan in plans if isinstance(plan, tuple) for finding in plan})
            return (
                f"; wanted the findings {', '.join(self.wanted.findings)}, its labels tell {', '.join(there) or 'none'}"
            )
        packed = sorted(path.name for path in self.settings.root.glob("*") if path.name.lower().endswith(ARCHIVES))
        return f"; {packed[0]} is packed: unpack it first" if packed else "; no image lies where the card wants it"


def held_in(split: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `metadata.jsonl` whose case goes to a split, and stays there when others are split anew."""
    attributes = {**json.loads(row["attributes"]), HELD: split}
    return {**row, "split": split, "attributes": json.dumps(attributes, sort_keys=True, ensure_ascii=False)}


def _divided_groups(rows: Sequence[dict[str, Any]]) -> int:
    """How many groups have cases in several splits."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        if row["group"]:
            splits.setdefault(row["group"], set()).add(row["split"])
    return sum(len(found) > 1 for found in splits.values())


def _remove_strays(folder: Path, wanted: set[str]) -> None:
    """Remove files of images and masks that no row names (of sources that were taken away meanwhile)."""
    for name in ("images", "masks"):
        for path in (folder / name).iterdir():
            if f"{name}/{path.name}" not in wanted:
                path.unlink()
        if not any((folder / name).iterdir()):
            (folder / name).rmdir()
