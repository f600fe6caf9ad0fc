"""What the judges learn from."""

import numpy as np
import pytest

from cogalign.counterfactual.quality.judge import Known, Row, lesion_classifier, measure_rows, set_measures
from cogalign.counterfactual.quality.table import Table
from cogalign.data.case import Case
from cogalign.recipe import QualitySettings

SETTINGS = QualitySettings(folds=3, bootstrap=50)
LESION, BACKGROUND = 0, 1
"""Features that tell the lesion and the background."""


def case(name: str, split: str, finding: str) -> Case:
    return Case(name, f"images/{name}.png", (finding,), split, group=name)


def drawn(rng: np.random.Generator, lesion: float, background: float) -> np.ndarray:
    values = rng.normal(size=6)
    values[LESION] += lesion
    values[BACKGROUND] += background
    return values.astype(np.float16)


def world(test_shift: float = 0.0) -> tuple[Table, list[Row], Known]:
    """Lesions lie on background 0, normals on background 6; every third lesion lies on the normals' background."""
    rng = np.random.default_rng(0)
    table, rows, sources, normals = Table(), [], {}, {}
    places, features = [], []

    def put(role: str, name: str, values: np.ndarray) -> None:
        places.append((role, name))
        features.append(values)

    for number in range(60):
        split, name = ("test" if number % 4 == 0 else "train"), f"c{number}"
        ground = 6.0 if number % 3 == 0 else 0.0
        shift = test_shift if split == "test" else 0.0
        sources[name] = case(name, split, "polyp")
        put("before", name, drawn(rng, 3 + shift, ground))
        put("free", name, drawn(rng, -3 + shift, ground))
        rows.append(Row(f"{name}-removal", name, "removal"))
        put("crop", f"{name}-removal", drawn(rng, 3, ground))  # the lesion is still there
    for number in range(60):
        name = f"n{number}"
        normals[name] = case(name, "train", "normal")
        put("place", name, drawn(rng, -3, 6.0))
        put("normal", name, drawn(rng, -3, 6.0))
    table.add_rows((), places, {}, np.stack(features))
    return table, rows, Known(sources, normals)


def test_a_lesion_that_is_left_is_seen_on_the_normals_background_too() -> None:
    table, rows, known = world()
    quality, _ = measure_rows(table, rows, known, SETTINGS)
    left = [quality[row.id]["residual_classifier"] for row in rows]
    on_normal = np.mean([left[number] for number in range(0, 60, 3)])
    elsewhere = np.mean([left[number] for number in range(60) if number % 3])
    assert on_normal == pytest.approx(elsewhere, abs=0.05) and on_normal > 0.5


def test_test_images_teach_the_judges_nothing() -> None:
    results = []
    for shift in (0.0, 50.0):
        table, rows, known = world(test_shift=shift)
        quality, notes = measure_rows(table, rows, known, SETTINGS)
        results.append([quality[row.id]["residual_classifier"] for row in rows] + [notes["lesion_classifier_auc"]])
        results[-1] += [quality[row.id]["realism"] for row in rows]
    assert results[0] == results[1]


def test_without_enough_pairs_of_crops_there_is_no_classifier() -> None:
    table, _, known = world()
    few = Known({name: known.sources[name] for name in ("c1", "c2")}, known.normals)
    assert lesion_classifier(table, few, SETTINGS) is None


def test_transplants_that_look_like_lesions_in_place_leak_nothing_and_odd_ones_do() -> None:
    found = []
    for shift in (0.0, 8.0):
        table, rows, known = world()
        rng = np.random.default_rng(1)
        moved = [Row(f"{row.source}-transplant", row.source, "transplant") for row in rows]
        features = [drawn(rng, 3 + shift, 6.0 if number % 3 == 0 else 0.0) for number in range(60)]
        table.add_rows((), [("crop", row.id) for row in moved], {}, np.stack(features))
        found.append(set_measures(table, [*rows, *moved], known, SETTINGS)["leakage_auc_transplant"]["value"])
    assert found[0] < 0.65 and found[1] > 0.95
    table, rows, known = world()
    assert set_measures(table, rows, known, SETTINGS)["leakage_auc_transplant"] is None
