"""The taxonomy of gastrointestinal findings: the labels that cases carry and that models are to say.

The paper counts 23 single labels but does not print its list. `SINGLE_LABELS` is **our choice**: 23 findings
which cover every class of HyperKvasir, GastroVision, Kvasir-Capsule, SEE-AI and CrohnIPI. How classes are
read that are no lesions:

- Landmarks and normal views (`cecum`, `pylorus`, `z-line`, `bbps-2-3`, ...) are `normal`.
- A bowel that is badly seen (`bbps-0-1`, `impacted-stool`, `Reduced Mucosal View`) is the finding `reduced_view`.
- Treatment that shows (`dyed-lifted-polyps`, resection margins, accessory tools) has findings of its own.
- Grades are folded: `esophagitis-a` and `-b-d`, long and short Barrett's, the Mayo grades, fresh blood and hematin,
  ulcers by size.

Four finer findings (`aphthoid_ulcer`, `edema`, `hemorrhoids`, `venous_lesion`) keep their name, since another one
would be false, and count under a single label, their `parent`: see `single_label`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from cogalign.cognition.anatomy import LANDMARKS, ORGANS, key

_ALL = tuple(ORGANS)
_GUT = ("stomach", "small_bowel", "colon")


@dataclass(frozen=True)
class Finding:
    """A label: what is found in an image."""

    id: str
    """Snake case, e.g. `submucosal_tumor`."""
    name: str
    """Display name, e.g. `Submucosal tumor`; holds no comma, semicolon, slash or `and`."""
    organs: tuple[str, ...]
    """Organs in which the data sets show it (keys of `ORGANS`)."""
    synonyms: tuple[str, ...]
    """Other names, among them every class name of the data sets."""
    parent: str | None
    """The single label under which a finer finding counts; None: it is a single label."""
    normal: bool
    """Whether it means that nothing was found."""
    focal: bool
    """A local lesion (or object) that a mask can hold, so that without it the image is normal."""
    definition: str
    """What it looks like, in a few words that hold for every case of it."""


def _finding(
    finding_id: str,
    name: str,
    definition: str,
    organs: tuple[str, ...],
    synonyms: tuple[str, ...] = (),
    *,
    parent: str | None = None,
    focal: bool = True,
) -> Finding:
    return Finding(finding_id, name, organs, synonyms, parent, finding_id == "normal", focal, definition)


_NORMAL_NAMES = (
    "normal mucosa", "normal clean mucosa", "normal finding", "no finding", "no abnormality", "no lesion", "healthy", "n",
    *(name for row in LANDMARKS.values() for name in (row.id, row.name, *row.synonyms)),
)  # fmt: skip

_TABLE = (
    _finding("normal", "Normal", "normal mucosa without focal lesion", _ALL, _NORMAL_NAMES, focal=False),
    _finding("polyp", "Polyp", "raised focal lesion", _GUT,
             ("polyps", "colon polyp", "colonic polyp", "colorectal polyp", "gastric polyp", "polyp-like",
              "polypoid lesion", "adenoma")),
    _finding("erosion", "Erosion", "shallow mucosal break", _ALL, ("mucosal erosion", "erosive lesion")),
    _finding("ulcer", "Ulcer", "deep mucosal break", _ALL,
             ("ulceration", "U3-10", "U>10", "ulceration 3-10 mm", "ulceration >10 mm", "ulceration over 10 mm")),
    _finding("angiectasia", "Angiectasia", "flat red vascular spot", _GUT,
             ("angiodysplasia", "angioectasia", "vascular ectasia")),
    _finding("bleeding", "Bleeding", "blood in the lumen", _ALL,
             ("blood", "blood in lumen", "blood-fresh", "fresh blood", "blood-hematin", "hematin", "hemorrhage",
              "active bleeding")),
    _finding("erythema", "Erythema", "reddened mucosal area", _ALL, ("erythematous", "erythematous mucosa", "redness", "e")),
    _finding("tumor", "Tumor", "mass lesion of the wall", _ALL,
             ("cancer", "colorectal cancer", "gastric cancer", "esophageal cancer", "carcinoma", "adenocarcinoma",
              "malignant tumor", "malignancy", "neoplasm")),
    _finding("submucosal_tumor", "Submucosal tumor", "bulge from under the mucosa", _GUT,
             ("SMT", "submucosal tumor (SMT)", "submucosal lesion", "subepithelial lesion", "subepithelial tumor")),
    _finding("esophagitis", "Esophagitis", "inflamed esophageal mucosa", ("esophagus",),
             ("esophagitis-a", "esophagitis-b-d", "reflux esophagitis", "esophagitis grade a", "esophagitis grade b-d"),
             focal=False),
    _finding("barretts", "Barrett's esophagus", "columnar mucosa in the esophagus", ("esophagus",),
             ("barrett", "barretts", "barrett esophagus", "BE", "barretts-short-segment", "short-segment-barretts",
              "short-segment Barrett's esophagus"), focal=False),
    _finding("ulcerative_colitis", "Ulcerative colitis", "inflamed colonic mucosa", ("colon",),
             ("UC", "ulcerative-colitis-grade-0-1", "ulcerative-colitis-grade-1", "ulcerative-colitis-grade-1-2",
              "ulcerative-colitis-grade-2", "ulcerative-colitis-grade-2-3", "ulcerative-colitis-grade-3"), focal=False),
    _finding("diverticulum", "Diverticulum", "outpouching of the wall", ("small_bowel", "colon"),
             ("diverticula", "colon diverticula", "diverticulosis", "colon diverticulum")),
    _finding("varices", "Varices", "dilated tortuous veins", ("esophagus", "stomach", "small_bowel"),
             ("varix", "esophageal varices", "gastric varices")),
    _finding("lymphangiectasia", "Lymphangiectasia", "white dilated lymph vessels", ("small_bowel",),
             ("lymphangiectasis", "lymphangiectasias")),
    _finding("foreign_body", "Foreign body", "foreign object in the lumen", _ALL,
             ("foreign bodies", "foreign object", "residual capsule")),
    _finding("stenosis", "Stenosis", "narrowed lumen", _ALL, ("stricture", "narrowing", "s"), focal=False),
    _finding("lymph_follicle", "Lymph follicle", "small pale lymphoid nodules", ("small_bowel", "colon"),
             ("lymphoid follicle", "lymphoid hyperplasia", "lymphoid nodular hyperplasia")),
    _finding("inflammation", "Mucosal inflammation", "inflamed mucosa", _ALL,
             ("inflammation", "inflamed mucosa", "mucosal inflammation large bowel"), focal=False),
    _finding("dyed_lifted_polyp", "Dyed lifted polyp", "lesion lifted by blue dye", ("stomach", "colon"),
             ("dyed lifted polyps", "lifted polyp")),
    _finding("resection_site", "Resection site", "site of an endoscopic resection", ("stomach", "colon"),
             ("resection margin", "dyed resection margin", "resected polyp", "polypectomy site")),
    _finding("instrument", "Instrument", "accessory tool in view", _ALL,
             ("accessory tool", "instruments", "endoscopic instrument", "biopsy forceps")),
    _finding("reduced_view", "Reduced mucosal view", "mucosa hidden by residue", _ALL,
             ("reduced view", "bbps-0-1", "bbps 0", "bbps 1", "impacted stool", "stool", "poor preparation"), focal=False),
    _finding("aphthoid_ulcer", "Aphthoid ulcer", "small aphthoid mucosal break", ("small_bowel", "colon"),
             ("aphthoid ulceration", "aphthous ulcer", "aphthous ulceration", "aphtha", "AU"), parent="ulcer"),
    _finding("edema", "Edema", "swollen mucosal folds", _ALL, ("edematous mucosa", "mucosal edema", "o"),
             parent="inflammation", focal=False),
    _finding("hemorrhoids", "Hemorrhoids", "dilated veins at the anus", ("colon",), ("hemorroids",), parent="varices"),
    _finding("venous_lesion", "Venous lesion", "dilated mucosal vein", ("small_bowel",),
             ("venous", "vein", "venous structure", "phlebectasia"), parent="varices"),
)  # fmt: skip

FINDINGS: dict[str, Finding] = {finding.id: finding for finding in _TABLE}
"""All findings by id."""

SINGLE_LABELS: tuple[str, ...] = tuple(finding.id for finding in _TABLE if finding.parent is None)
"""Ids of the 23 single labels. The paper does not print its list; this one is our choice."""


def _index() -> dict[str, Finding]:
    index: dict[str, Finding] = {}
    for finding in _TABLE:
        for name in (finding.id, finding.name, *finding.synonyms):
            other = index.setdefault(key(name), finding)
            if other is not finding:
                raise ValueError(f"taxonomy: the name {name!r} means both {other.id!r} and {finding.id!r}")
    return index


_BY_KEY = _index()


def lookup(text: str) -> Finding | None:
    """The finding that a name means: id, display name, synonym or class name of a data set; None if there is none.

    Case, spaces, hyphens, underscores, accents, a plural `s` and British spelling make no difference. The
    one-letter codes of CrohnIPI (N, E, O, S) are names too.
    """
    wanted = key(text)
    found = _BY_KEY.get(wanted)
    if found is None and wanted.endswith("s") and len(wanted) > 3:
        found = _BY_KEY.get(wanted[:-1])
    return found


def nearest(text: str) -> str:
    """The id of the finding whose name is most like `text` (for messages: "did you mean ...?")."""
    close = difflib.get_close_matches(key(text), list(_BY_KEY), n=1, cutoff=0.0)
    return _BY_KEY[close[0]].id


def _known(finding_id: str) -> Finding:
    if finding_id not in FINDINGS:
        raise ValueError(
            f"finding: found {finding_id!r}, which the taxonomy does not have; nearest: {nearest(finding_id)!r}"
        )
    return FINDINGS[finding_id]


def name_of(finding_id: str) -> str:
    """The display name of a finding.

    Raises:
        ValueError: the taxonomy has no such id; the message names the nearest.
    """
    return _known(finding_id).name


def single_label(finding_id: str) -> str:
    """The single label (one of `SINGLE_LABELS`) under which a finding counts.

    Raises:
        ValueError: the taxonomy has no such id; the message names the nearest.
    """
    return _known(finding_id).parent or finding_id
