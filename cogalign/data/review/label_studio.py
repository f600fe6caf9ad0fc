"""Label Studio: tasks with predictions out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size
from cogalign.data.review.brush import encode
from cogalign.data.review.fields import DIGEST, form_of
from cogalign.data.review.lesions import UNNAMED, Lesion, lesions_of
from cogalign.data.review.report_form import choices, report_controls, report_results
from cogalign.data.review.verdicts import DECISIONS
from cogalign.training.atomic import atomic_file, write_text
from cogalign.training.progress import track

TASKS = "tasks.json"
CONFIG = "labelling.xml"
CASE_KEY = "cogalign_id"
"""Key of a task's data that holds the case's id."""
IMAGE = "image"
BRUSH, POLYGON, RECTANGLE, VERDICT, NOTE = "brush", "polygon", "rectangle", "verdict", "note"
"""Names of the controls in the labelling configuration."""
Images = Literal["link", "inline"]
_COLOURS = ("#d73027", "#4575b4", "#1a9850", "#984ea3", "#ff7f00", "#8c510a", "#01665e", "#c51b7d")
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def export_label_studio(case_set: CaseSet, out: Path, images: Images = "link", reports: bool = False) -> Path:
    """Write `tasks.json` and `labelling.xml` for Label Studio into a folder.

    Factual cases: the lesions are predictions, brush regions where there is a mask, else rectangles, to be refined
    with brush or polygon. Counterfactuals are shown beside their source and get a verdict; those that passed or
    failed the quality gate have it as prediction.

    Args:
        case_set: the cases.
        out: the folder.
        images: `link`: addresses of Label Studio's local file storage, whose root is the case set's folder;
            `inline`: the images' bytes in the tasks.
        reports: show the report of each factual case, filled in, to be corrected field by field.

    Raises:
        FileNotFoundError, ValueError: an image or mask is missing or damaged; reports are wanted, but all cases are
            counterfactuals, whose reports are made from their sources', or none has a report.
    """
    if reports:
        _check_reports(case_set)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / TASKS) as file:
        for number, case in enumerate(track(case_set.cases, "export Label Studio")):
            text = json.dumps(_task(case_set, case, images, reports), ensure_ascii=False)
            file.write((("[\n" if number == 0 else ",\n") + text).encode())
        file.write(b"\n]\n")
    write_text(out / CONFIG, labelling_config(case_set.cases, reports))
    return out


def _check_reports(case_set: CaseSet) -> None:
    """There is a report to review."""
    factual = [case for case in case_set.cases if case.counterfactual_of is None]
    if not factual:
        raise ValueError(f"{case_set.root}: all cases are counterfactuals, wanted factual cases to review reports")
    if all(form_of(case).empty for case in factual):
        raise ValueError(
            f"{case_set.root}: no case has a report, wanted answers with the three headings; "
            "write them with `cogalign data annotate`"
        )


def labelling_config(cases: Iterable[Case], reports: bool = False) -> str:
    """The labelling configuration (XML): labels for the findings of the cases, verdicts and remarks.

    Args:
        cases: the cases of the case set.
        reports: with a form for the report beside the image.
    """
    cases = list(cases)
    paired = any(case.counterfactual_of is not None for case in cases)
    present = {finding for case in cases for finding in case.findings if case.counterfactual_of is None} - {"normal"}
    findings = [finding for finding in FINDINGS if finding in present]
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(_COLOURS[index % len(_COLOURS)])}/>\n"
        for index, name in enumerate([*findings, UNNAMED])
    )
    lines = ["<View>"]
    if reports:
        lines += ['<View style="display: flex; gap: 1em">', '<View style="flex: 3; min-width: 0">']
    if paired:
        lines += [
            '  <Header value="Source"/>',
            '  <Image name="source" value="$source"/>',
            '  <Header value="To judge"/>',
        ]
    lines += [
        '  <Text name="about" value="$about"/>',
        f'  <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true"/>',
    ]
    for tag, name in (("BrushLabels", BRUSH), ("PolygonLabels", POLYGON), ("RectangleLabels", RECTANGLE)):
        if present:
            lines += [f'  <{tag} name="{name}" toName="{IMAGE}">\n{labels}  </{tag}>']
    if reports:
        lines.append('  <Header value="Image and mask" size="5"/>')
    lines += choices(VERDICT, IMAGE, DECISIONS, "single-radio")
    lines.append(f'  <TextArea name="{NOTE}" toName="{IMAGE}" placeholder="remark"/>')
    if reports:
        lines += [
            "</View>",
            '<View style="flex: 2; min-width: 0">',
            *report_controls(cases, IMAGE),
            "</View>",
            "</View>",
        ]
    return "\n".join([*lines, "</View>"]) + "\n"


def _task(case_set: CaseSet, case: Case, images: Images, reports: bool) -> dict[str, Any]:
    """The task of a case."""
    paired = case.counterfactual_of is not None
    about = ", ".join(case.findings) + (f" ({case.intervention} of {case.counterfactual_of})" if paired else "")
    source = case.source_file_name or case.file_name
    data = {
        IMAGE: _address(case_set, case.file_name, images),
        "about": about,
        CASE_KEY: case.id,
        "source": _address(case_set, source, images) if source != case.file_name else "",
    }
    if not paired:
        del data["source"]
    width, height = image_size(case_set.path(case.file_name))
    results = (
        []
        if paired
        else [
            _region(number, lesion, height, width)
            for number, lesion in enumerate(lesions_of(case, case_set.mask(case)))
        ]
    )
    quality = case.attributes.get("quality")
    if isinstance(quality, dict):
        results.append(_verdict("reject" if quality.get("failed") else "accept"))
    if reports and not paired and not case.is_question:
        results += report_results(case, IMAGE)
        data[DIGEST] = form_of(case).digest
    task: dict[str, Any] = {"data": data}
    if results:
        task["predictions"] = [{"model_version": "cogalign", "result": results}]
    return task


def _address(case_set: CaseSet, file_name: str, images: Images) -> str:
    """Where Label Studio finds an image."""
    path = case_set.path(file_name)
    if images == "link":
        return f"/data/local-files/?d={quote(file_name)}"
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: wanted one of {', '.join(_TYPES)} for inline images")
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _region(number: int, lesion: Lesion, height: int, width: int) -> dict[str, Any]:
    """A lesion as a predicted region."""
    label = lesion.finding or UNNAMED
    common = {
        "id": f"lesion-{number}",
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    if lesion.region is not None:
        value: dict[str, Any] = {"format": "rle", "rle": encode(lesion.region.mask()), "brushlabels": [label]}
        return {**common, "from_name": BRUSH, "type": "brushlabels", "value": value}
    xmin, ymin, xmax, ymax = lesion.box
    value = {
        "x": 100 * xmin / width,
        "y": 100 * ymin / height,
        "width": 100 * (xmax - xmin) / width,
        "height": 100 * (ymax - ymin) / height,
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return {**common, "from_name": RECTANGLE, "type": "rectanglelabels", "value": value}


def _verdict(decision: str) -> dict[str, Any]:
    """A predicted verdict."""
    return {
        "id": "verdict",
        "from_name": VERDICT,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [decision]},
    }
