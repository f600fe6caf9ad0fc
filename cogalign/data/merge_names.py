"""Ids and file names that stay unique when case sets are put together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.paths import file_stem, slug

FILES = ("file_name", "mask_file_name", "source_file_name")


@dataclass
class Renamed:
    """Ids and file names in use; file names in lower case, since some file systems do not tell `A.png` from `a.png`."""

    ids: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def unique_names(origin: CaseSet, taken: Renamed) -> tuple[list[Case], list[dict[str, str]]]:
    """The cases of a set with names that are not taken yet, and for each the new name of its files -> the old one.

    A name that is taken gets the name of the set's folder in front. References among the cases of the set
    (`counterfactual_of`, `background_of`) follow. `taken` gains the new names.
    """
    prefix = file_stem(slug(origin.root.resolve().name) or "set")
    own_ids = set(origin.by_id)
    ids: dict[str, str] = {}
    for case in origin.cases:
        ids[case.id] = _unused(case.id, f"{prefix}-{case.id}", taken.ids, own_ids)
    taken.ids.update(ids.values())
    files: dict[str, str] = {}
    own = {name for case in origin.cases for key in FILES if (name := getattr(case, key))}
    reserved = {name.lower() for name in own}
    for name in sorted(own):
        path = PurePosixPath(name.replace("\\", "/"))
        files[name] = _unused(name, str(path.with_name(f"{prefix}-{path.name}")), taken.files, reserved, lower=True)
    taken.files.update(new.lower() for new in files.values())
    cases, lists = [], []
    for case in origin.cases:
        changed: dict[str, Any] = {key: files[name] for key in FILES if (name := getattr(case, key))}
        for key in ("counterfactual_of", "background_of"):
            if value := getattr(case, key):
                changed[key] = ids.get(value, value)
        cases.append(replace(case, id=ids[case.id], **changed))
        lists.append({files[name]: name for key in FILES if (name := getattr(case, key))})
    return cases, lists


def _unused(name: str, prefixed: str, taken: set[str], own: set[str], *, lower: bool = False) -> str:
    """The name if it is free, else the prefixed one, with a number if other names of the set or the merge have that."""

    def key(text: str) -> str:
        return text.lower() if lower else text

    if key(name) not in taken:
        return name
    number, unused = 1, prefixed
    while key(unused) in taken or key(unused) in own:
        number += 1
        path = PurePosixPath(prefixed)
        unused = str(path.with_name(f"{path.stem}-{number}{path.suffix}")) if lower else f"{prefixed}-{number}"
    return unused
