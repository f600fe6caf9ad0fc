"""From features to measures: of each counterfactual, and of the set. Pure on a table; reads no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogalign.counterfactual.quality.probes import (
    LEAST,
    Estimate,
    Fitted,
    auc_estimate,
    cross_fit,
    probe_auc,
)
from cogalign.counterfactual.quality.realism import Normals, kid
from cogalign.counterfactual.quality.table import Table
from cogalign.counterfactual.quality.views import Role
from cogalign.data.case import Case
from cogalign.data.spread import spread_evenly
from cogalign.recipe import QualitySettings

MOST = 1500
"""Pictures of each side that a probe is trained on, at most."""
SEED = 0
TRAIN = "train"
"""The split from which classifier and references are fitted."""


@dataclass(frozen=True)
class Row:
    """What a measure needs to know of a counterfactual."""

    id: str
    source: str
    intervention: str
    partial: bool = False

    @classmethod
    def of(cls, case: Case) -> Row:
        """From the case of a counterfactual."""
        return cls(case.id, case.counterfactual_of or "", case.intervention or "", "removed" in case.attributes)


@dataclass(frozen=True)
class Known:
    """The source cases and the sampled normals, by id."""

    sources: Mapping[str, Case]
    normals: Mapping[str, Case]

    def group(self, case_id: str) -> str:
        """The patient or video of a source or normal; a case without one is its own group."""
        case = self.sources.get(case_id) or self.normals[case_id]
        return case.group or case.id

    def groups(self, ids: Sequence[str]) -> list[str]:
        """The groups of several."""
        return [self.group(case_id) for case_id in ids]

    def teachers(self, cases: Mapping[str, Case]) -> list[str]:
        """Ids of the cases that judges learn from: those of `train`, where there are any; test images teach nothing."""
        train = [case_id for case_id, case in cases.items() if case.split == TRAIN]
        return train or list(cases)

    @property
    def same_data_sets(self) -> list[str]:
        """Ids of the normals that come from a data set of the sources."""
        datasets = {case.dataset for case in self.sources.values()}
        return [case_id for case_id, case in self.normals.items() if case.dataset in datasets]

    @property
    def confounded(self) -> bool:
        """Whether most normals come from other data sets than the sources: then images differ by hospital, too."""
        return 2 * len(self.same_data_sets) < len(self.normals)


def lesion_classifier(table: Table, known: Known, settings: QualitySettings) -> tuple[Fitted, Estimate] | None:
    """A classifier of patches, lesion or not, cross-fitted by source group; and its own out-of-fold AUC.

    Positives are crops around the lesions of source images, negatives crops of the same size of lesion-free mucosa of
    the *same* images. Images with lesions and normals may differ in their background (another hospital, another frame):
    a classifier that sees normals learns that too, and would then pass the removals whose background says "normal". A
    case is judged by a model that never saw its group, and no other split than `Known.teachers` takes part.

    Returns:
        None with fewer than `LEAST` groups that have both crops.
    """
    there = [name for name in known.teachers(known.sources) if table.has("before", name) and table.has("free", name)]
    both = spread_evenly(there, MOST)
    if len(set(known.groups(both))) < LEAST:
        return None
    lesion, _ = table.features("before", both)
    free, _ = table.features("free", both)
    features, labels = np.concatenate((lesion, free)), np.repeat((1, 0), (len(lesion), len(free)))
    groups = known.groups([*both, *both])
    fitted = cross_fit(features, labels, groups, folds=settings.folds, seed=SEED)
    quality = auc_estimate(fitted.out_of_fold, labels, groups, resamples=settings.bootstrap, seed=SEED)
    return fitted, quality


def measure_rows(
    table: Table, rows: Sequence[Row], known: Known, settings: QualitySettings
) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
    """The measures of each counterfactual by id, and what is to be said of the measures themselves.

    `seam`; for removals `residual_segmenter`, `residual_classifier` (probability of a lesion after; `lesion_before`
    before), `realism_image`, `realism_patch` and `realism`, the one of the two that is judged; for controls and
    transplants `lesion_seen`, the classifier's probability at the edit. What could not be measured is None.
    """
    quality: dict[str, dict[str, float | None]] = {
        row.id: {"seam": None, **table.numbers.get(row.id, {})} for row in rows
    }
    classifier = lesion_classifier(table, known, settings)
    _classify(quality, table, rows, known, None if classifier is None else classifier[0])
    notes = _realism(quality, table, rows, known)
    notes["lesion_classifier_auc"] = None if classifier is None else classifier[1].plain()
    for values in quality.values():
        values.update({name: None if value is None else round(float(value), 4) for name, value in values.items()})
    return quality, notes


def _classify(
    quality: dict[str, dict[str, float | None]],
    table: Table,
    rows: Sequence[Row],
    known: Known,
    fitted: Fitted | None,
) -> None:
    """Add the classifier's probabilities."""
    by_id = {row.id: row for row in rows}
    for row in rows:
        if row.intervention == "removal":
            quality[row.id].update(lesion_before=None, residual_classifier=None)
        elif row.intervention in ("control", "transplant"):
            quality[row.id]["lesion_seen"] = None
    if fitted is None:
        return
    crops, ids = table.features("crop", by_id)
    after = fitted.probabilities(crops, known.groups([by_id[one].source for one in ids]))
    before: dict[str, float] = {}
    for owners in (list(known.sources), list(by_id)):
        found, there = table.features("before", owners)
        groups = known.groups([by_id[one].source if one in by_id else one for one in there])
        before.update(zip(there, fitted.probabilities(found, groups).tolist(), strict=True))
    for case_id, probability in zip(ids, after.tolist(), strict=True):
        row = by_id[case_id]
        if row.intervention == "removal":
            quality[case_id]["residual_classifier"] = probability
            quality[case_id]["lesion_before"] = before.get(case_id if row.partial else row.source)
        else:
            quality[case_id]["lesion_seen"] = probability


def _realism(
    quality: dict[str, dict[str, float | None]], table: Table, rows: Sequence[Row], known: Known
) -> dict[str, Any]:
    """Add the distances of images to real normals and of patches to untouched mucosa; says which is judged."""
    normals, normal_ids = table.features("normal", spread_evenly(known.teachers(known.normals), MOST))
    there = [name for name in known.teachers(known.sources) if table.has("free", name)]
    free, free_ids = table.features("free", spread_evenly(there, MOST))
    references: dict[str, tuple[Normals | None, Role]] = {
        "realism_image": (Normals.of(normals, known.groups(normal_ids)), "image"),
        "realism_patch": (Normals.of(free, known.groups(free_ids)), "crop"),
    }
    # Whole images differ in their background too, and where that tells the finding (another hospital, another frame) a
    # limit on them would keep the counterfactuals whose background says "normal": the shortcut that is to be unlearned.
    judged = "realism_image" if references["realism_patch"][0] is None else "realism_patch"
    removals = {row.id: row for row in rows if row.intervention == "removal"}
    for name, (reference, role) in references.items():
        for case_id in removals:
            quality[case_id][name] = None
        if reference is None:
            continue
        features, ids = table.features(role, removals)
        distances = reference.distance(features, known.groups([removals[one].source for one in ids]))
        for case_id, distance in zip(ids, distances.tolist(), strict=True):
            quality[case_id][name] = distance
    for case_id in removals:
        quality[case_id]["realism"] = quality[case_id][judged]
    return {
        "realism_judged": judged.removeprefix("realism_"),
        "normals": len(normal_ids),
        "confounded": known.confounded,
    }


def set_measures(
    table: Table, rows: Sequence[Row], known: Known, settings: QualitySettings, suffix: str = ""
) -> dict[str, Any]:
    """Fill leakage and KID of counterfactuals that were made with one fill; None where there are too few pictures.

    `leakage_auc_image`: removals against real normals; `leakage_auc_image_same`: only normals of the sources' own data
    sets; `leakage_auc_patch`: filled against untouched patches of the same images; `leakage_auc_patch_control`: the
    same with the controls' patches; `leakage_auc_transplant`: transplanted lesions against lesions where they grew, with
    the mucosa around them; `leakage_auc_paired` and `leakage_auc_paired_patch`: normals with the fill against
    the same normals without, whole and only the place; `kid_image`: removals against normals; `kid_patch`: filled
    against untouched patches.

    Args:
        table: what was measured.
        rows: counterfactuals with this fill.
        known: sources and normals.
        settings: folds and resamples.
        suffix: of the ids under which normals with this fill are in the table.
    """
    source_of = {row.id: row.source for row in rows}

    def of(role: Role, ids: Sequence[str], cut: int = 0) -> tuple[Any, list[str]]:
        features, there = table.features(role, spread_evenly([one for one in ids if table.has(role, one)], MOST))
        plain = [one[: len(one) - cut] for one in there]
        return features, known.groups([source_of.get(one, one) for one in plain])

    def compare(first: tuple[Any, list[str]], second: tuple[Any, list[str]]) -> dict[str, Any] | None:
        found = probe_auc(first[0], second[0], first[1], second[1], folds=settings.folds,
                          resamples=settings.bootstrap, seed=SEED)  # fmt: skip
        return None if found is None else found.plain()

    def distance(first: tuple[Any, list[str]], second: tuple[Any, list[str]]) -> dict[str, Any] | None:
        found = kid(first[0], second[0], first[1], second[1], seed=SEED)
        return None if found is None else found.plain()

    removals = [row.id for row in rows if row.intervention == "removal" and not row.partial]
    controls = [row.id for row in rows if row.intervention == "control"]
    transplants = [row.id for row in rows if row.intervention == "transplant"]
    normals, filled = list(known.normals), [case_id + suffix for case_id in known.normals]
    images, real = of("image", removals), of("normal", normals)
    free = of("free", list(dict.fromkeys(source_of.values())))
    crops = of("crop", removals)
    cut = len(suffix)
    with_fill = [one for one in normals if table.has("filled", one + suffix)]
    return {
        "leakage_auc_image": compare(images, real),
        "leakage_auc_image_same": compare(images, of("normal", known.same_data_sets)) if known.confounded else None,
        "leakage_auc_patch": compare(crops, free),
        "leakage_auc_patch_control": compare(of("crop", controls), free),
        "leakage_auc_transplant": compare(
            of("crop", transplants), of("before", list(dict.fromkeys(source_of.values())))
        ),
        "leakage_auc_paired": compare(of("filled", filled, cut), of("normal", with_fill)),
        "leakage_auc_paired_patch": compare(of("filled_place", filled, cut), of("place", with_fill)),
        "kid_image": distance(images, real),
        "kid_patch": distance(crops, free),
    }
