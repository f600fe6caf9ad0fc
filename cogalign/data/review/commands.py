"""What `cogalign review export` and `cogalign review import` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.review.annotations import Annotation, is_label_studio, read_annotations
from cogalign.data.review.apply import apply_review
from cogalign.data.review.coco import export_coco, is_coco, parse_coco
from cogalign.data.review.label_studio import Images, export_label_studio
from cogalign.data.review.label_studio_import import lesions_and_verdicts
from cogalign.data.review.lesions import Refined
from cogalign.data.review.reports import apply_reports, with_rejections
from cogalign.data.review.resolve import RULES
from cogalign.data.review.verdicts import FORMAT, Verdict, merge_verdicts, parse_verdicts, read_json

Format = Literal["coco", "label-studio"]
_LOG = logging.getLogger(__name__)
FORMATS: tuple[Format, ...] = ("coco", "label-studio")


def export_review(case_set: Path, out: Path, format: str = "coco", images: str = "link", reports: bool = False) -> str:
    """Write a case set for review; returns what to do with it.

    Args:
        case_set: folder of the case set.
        out: `coco`: the JSON file; `label-studio`: a folder for `tasks.json` and `labelling.xml`.
        format: one of `FORMATS`.
        images: Label Studio: `link` to the images through its local file storage, or `inline` them.
        reports: Label Studio: show the reports too, filled in, to be corrected.

    Raises:
        ValueError: format or images is another word; the case set cannot be exported.
        FileNotFoundError: a file of the case set is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"--format: found {format!r}, wanted one of {', '.join(FORMATS)}")
    if images not in ("link", "inline"):
        raise ValueError(f"--images: found {images!r}, wanted link or inline")
    if reports and format != "label-studio":
        raise ValueError(f"--reports: found with --format {format}, wanted --format label-studio")
    cases = read_case_set(case_set)
    if format == "coco":
        export_coco(cases, out)
        return f"wrote {out}; its images are in {case_set}"
    export_label_studio(cases, out, cast(Images, images), reports)
    local = f"; serve {case_set} as Label Studio's local file storage" if images == "link" else ""
    return f"wrote {out}: import tasks.json into a project with the labelling interface of labelling.xml{local}"


def import_review(files: Sequence[Path], case_set: Path, out: Path, resolve: str = "refuse") -> dict[str, int]:
    """Apply review files to a case set and write the result as a new one.

    COCO files, Label Studio exports and verdict files of the gallery are told apart by what they hold. Where reports
    were reviewed, the new case set has a journal of who changed what (`review.jsonl`) and figures of agreement
    (`agreement.md`, `agreement.json`). What is to be told (other findings, odd verdicts, controls of others) is logged
    as warnings and stands in `agreement.md`.

    Args:
        files: at least one.
        case_set: folder of the reviewed case set, which stays as it is.
        out: the new folder, which must not exist.
        resolve: what to do where annotators differ on a report, see `resolve.resolve`.

    Returns:
        Numbers of cases: `kept`, `refined`, `rejected`, `restored`, and verdicts `elsewhere` (see `Applied`); where
        reports were reviewed also `reports passed`, `reports revised`, `reports rejected` and `reports disputed`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: a file is missing.
        ValueError: a file is none of the three, is damaged, does not fit the case set, or contradicts another;
            annotators differ; a corrected report does not hold together.
    """
    if not files:
        raise ValueError("review import: found no file, wanted at least one")
    if resolve not in RULES:
        raise ValueError(f"--resolve: found {resolve!r}, wanted one of {', '.join(RULES)}")
    cases = read_case_set(case_set)
    refined: list[Refined] = []
    verdicts: list[tuple[str, dict[str, Verdict]]] = []
    annotations: list[tuple[str, list[Annotation]]] = []
    for path in files:
        content, where = read_json(path), str(path)
        if is_coco(content):
            refined += parse_coco(content, where, cases)
        elif is_label_studio(content):
            annotations.append((where, read_annotations(content, where, cases)))
        elif isinstance(content, dict) and content.get("format") == FORMAT:
            verdicts.append((where, parse_verdicts(content, where)))
        else:
            raise ValueError(
                f"{path}: found {_looks(content)}, wanted a COCO file, a Label Studio export or verdicts.json"
            )
    reports = apply_reports(annotations, cases, resolve)
    revised = CaseSet(cases.root, [reports.cases.get(case.id, case) for case in cases.cases])
    for where, found in annotations:
        seen = lesions_and_verdicts(found, revised)
        refined += seen.refined
        verdicts.append((where, seen.verdicts))
    merged = with_rejections(merge_verdicts(verdicts), reports.verdicts)
    applied = apply_review(case_set, refined, merged, out, revised=reports.cases, files=reports.files)
    for line in reports.told:
        _LOG.warning("%s", line)
    return {**vars(applied), **reports.counts}


def _looks(content: Any) -> str:
    """What a parsed file looks like, in a few words."""
    if isinstance(content, dict):
        return "an object with " + (", ".join(list(content)[:5]) or "nothing in it")
    return f"a {type(content).__name__}"
