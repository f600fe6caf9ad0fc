"""Rates of an audit set that only repeat those of the study's own pairs: its keys did not change these images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cogalign.data.caseset import METADATA, CaseSet, read_case_set
from cogalign.evaluation.audit import RATES
from cogalign.evaluation.audit_sets import kind_in
from cogalign.training.file_digest import sha256_of


def case_set(folder: Path) -> CaseSet | None:
    """A case set of the study; None where its folder was not kept."""
    return read_case_set(folder) if (folder / METADATA).exists() else None


def repeated_kinds(out: Path, sets: Sequence[str], audited: pd.DataFrame) -> dict[str, list[str]]:
    """For each audit set the kinds of counterfactuals whose images are, to the byte, those of the study's own pairs.

    Args:
        out: the study's folder; a set whose images were not kept is left out.
        sets: names of the audit sets.
        audited: `audit/predictions.parquet` of any run, which says what was asked.
    """
    own = case_set(out / "shared" / "counterfactual")
    found: dict[str, list[str]] = {}
    for name in sets if own is not None else ():
        pairs = case_set(out / "sets" / name / "counterfactual")
        kinds = [kind for kind in RATES if own and pairs and _repeats(own, pairs, audited, kind, kind_in(name, kind))]
        if kinds:
            found[name] = kinds
    return found


def _repeats(own: CaseSet, pairs: CaseSet, audited: pd.DataFrame, kind: str, kind_of_set: str) -> bool:
    """Whether all images that were asked about in a set were asked about as the study's own, and none beside them."""
    images = [
        {_image(folder, name) for name in audited[audited["kind"] == asked]["id"]}
        for folder, asked in ((own, kind), (pairs, kind_of_set))
    ]
    return bool(images[1]) and images[0] == images[1]


def _image(folder: CaseSet, name: str) -> tuple[str, str]:
    """Content of a case's image, by checksum; its id where the file is gone, which equals no other."""
    case = folder.by_id.get(name)
    try:
        return ("image", sha256_of(folder.path(case.file_name))) if case else (str(folder.root), name)
    except FileNotFoundError:
        return str(folder.root), name
