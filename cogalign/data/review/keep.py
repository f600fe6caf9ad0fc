"""Files beside `metadata.jsonl` that a reviewed case set takes over."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cogalign.data.caseset import CaseSet
from cogalign.data.side_files import side_file
from cogalign.data.sources import datasets_of, read_sources, write_sources

KEPT = ("fingerprints.npz", "quarantine.jsonl", "review.jsonl", "agreement.json", "agreement.md")
"""Files that hold for the reviewed case set as they are; the images are the same files."""


def keep_files(case_set: CaseSet, folder: Path) -> None:
    """Take over what the new folder does not have yet; the sources count the cases that are left.

    Args:
        case_set: folder of the old case set, with the cases of the new one.
        folder: the new folder.

    Raises:
        ValueError: `sources.json` is damaged, or one of the files is a link out of the case set.
    """
    for name in KEPT:
        if (path := side_file(case_set.root, name)).is_file() and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    sources = read_sources(case_set.root)
    if sources:
        left = Counter(name for case in case_set.cases for name in datasets_of(case))
        write_sources(folder, [replace(source, cases=left[source.title]) for source in sources])
