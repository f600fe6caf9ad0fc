import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cogalign.cognition.report import parse
from cogalign.counterfactual import make as make_file
from cogalign.counterfactual.parts import read_rejected
from cogalign.counterfactual.stage import check_pairs, run
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.phantom import write_phantom
from cogalign.recipe import DataSettings, PhantomSettings, QualitySettings, Recipe
from cogalign.training.context import StageContext


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(train=14, validation=2, test=6, size=64, seed=5)
    return write_phantom(settings, tmp_path_factory.mktemp("data") / "phantom")


def context(data: Path, out: Path, **fields: Any) -> StageContext:
    recipe = Recipe(out=str(out), data=DataSettings(case_set=str(data)))
    for name, value in {"fill": "surround_blur", "gallery": 3, **fields}.items():
        setattr(recipe.counterfactual, name, value)
    recipe.counterfactual.quality = fields.get("quality", QualitySettings(enabled=False))
    recipe.trainer.accelerator = "cpu"
    return StageContext(recipe, out, "counterfactual")


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of all results; what stays beside them tells how the work was shared and how long it took."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "progress.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files if not path.parent.name.startswith(("parts-", "quality-", "shards"))}  # fmt: skip


def pixels(pairs: CaseSet, name: str | None) -> np.ndarray:
    assert name is not None
    return np.asarray(Image.open(pairs.path(name)).convert("RGB"))


def test_the_stage_writes_a_case_set_of_pairs(data: Path, tmp_path: Path) -> None:
    metrics = run(context(data, tmp_path))
    pairs, factual = read_case_set(tmp_path / "counterfactual"), read_case_set(data)
    lesions = [case for case in factual.cases if case.split in ("train", "test") and not case.is_normal]
    assert metrics["n"] == len(pairs.cases) > 2 * len(lesions)
    assert metrics["source_cases"] == len(lesions)
    assert sum(sum(row.values()) for row in metrics["counts"].values()) == metrics["n"]
    several = sum(2 * (len(case.findings) == 2) for case in lesions)
    planned = 4 * len(lesions) + several
    assert planned - metrics["n"] == sum(n for reason, n in metrics["left_out"].items() if "normal" not in reason)
    for case in pairs.cases:
        source = factual.by_id[case.counterfactual_of or ""]
        image, before = pixels(pairs, case.file_name), pixels(pairs, case.source_file_name)
        touched = pairs.mask(case)
        assert touched is not None and touched.any()
        assert np.array_equal(before, np.asarray(factual.image(source)))
        ground = before if case.background_of is None else np.asarray(factual.image(factual.by_id[case.background_of]))
        assert np.array_equal(image[~touched], ground[~touched])
        assert np.any(image != before)
        assert parse(case.answer).agrees_with(case.findings)
        gone = case.attributes.get("removed", source.findings if case.intervention == "removal" else ())
        left = tuple(finding for finding in source.findings if finding not in gone)
        assert case.findings == (left or ("normal",))
        assert case.attributes["mask"] == {"provenance": "expert", "confidence": 1.0}
        if case.background_of is not None:
            assert factual.by_id[case.background_of].split == case.split and case.background_of != source.id


def test_an_interrupted_stage_goes_on_to_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(context(data, tmp_path / "whole"))
    writes = []
    real = make_file.write_png

    def full_disk(path: Path, image: np.ndarray) -> None:
        writes.append(path)
        if len(writes) > 80:
            raise OSError(28, "No space left on device")
        real(path, image)

    monkeypatch.setattr(make_file, "write_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(context(data, tmp_path / "broken"))
    assert not (tmp_path / "broken/counterfactual/metadata.jsonl").exists()
    again: list[Path] = []
    monkeypatch.setattr(make_file, "write_png", lambda path, image: (again.append(path), real(path, image))[1])
    run(context(data, tmp_path / "broken"))
    assert "going on" in capsys.readouterr().err
    whole, broken = (fingerprint(tmp_path / name / "counterfactual") for name in ("whole", "broken"))
    assert whole == broken
    assert 0 < len(again) < len([name for name in whole if name.startswith(("images", "masks"))])


@pytest.mark.slow
def test_two_ranks_share_the_work_and_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    run(context(data, tmp_path / "one"))
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from cogalign.counterfactual.stage import run\n"
        "from cogalign.recipe import CounterfactualSettings, DataSettings, QualitySettings, Recipe, TrainerSettings\n"
        "from cogalign.training.context import StageContext\n"
        "data, out = sys.argv[1:]\n"
        "recipe = Recipe(out=out, data=DataSettings(case_set=data),\n"
        "    counterfactual=CounterfactualSettings(fill='surround_blur', gallery=3,\n"
        "        quality=QualitySettings(enabled=False)),\n"
        "    trainer=TrainerSettings(accelerator='cpu', devices=2, strategy='ddp'))\n"
        "print(run(StageContext(recipe, Path(out), 'counterfactual'))['n'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), str(data), str(tmp_path / "two")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=480, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(set(done.stdout.split())) == 1
    assert fingerprint(tmp_path / "one/counterfactual") == fingerprint(tmp_path / "two/counterfactual")


def test_worker_processes_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    run(context(data, tmp_path / "one"))
    run(context(data, tmp_path / "two", workers=2))
    assert fingerprint(tmp_path / "one/counterfactual") == fingerprint(tmp_path / "two/counterfactual")


def test_an_error_in_a_worker_process_arrives_in_one_line_and_keeps_the_rest(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    victim = [case for case in read_case_set(copy).split("test") if not case.is_normal][-1]
    (copy / victim.file_name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=Path(victim.file_name).name) as caught:
        run(context(copy, tmp_path / "out", workers=1))
    assert "Traceback" not in str(caught.value)
    assert list((tmp_path / "out/counterfactual").glob("parts-*/rank-0.jsonl"))


def test_a_killed_worker_is_told_of_and_the_next_call_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(context(data, tmp_path / "whole"))
    real = make_file.write_png

    def killed(path: Path, image: np.ndarray) -> None:
        if path.name == "000019-control.png" or path.name.startswith("00002"):
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, image)

    monkeypatch.setattr(make_file, "write_png", killed)  # the worker is forked from this process
    with pytest.raises(ChildProcessError, match="a worker process was killed"):
        run(context(data, tmp_path / "broken", workers=1))
    monkeypatch.undo()
    run(context(data, tmp_path / "broken", workers=1))
    assert "going on" in capsys.readouterr().err
    assert fingerprint(tmp_path / "whole/counterfactual") == fingerprint(tmp_path / "broken/counterfactual")


def test_the_gate_keeps_what_fails_apart_with_its_reason(data: Path, tmp_path: Path) -> None:
    quality = QualitySettings(side=64, bootstrap=50, folds=2, max_seam=1.0)
    metrics = run(context(data, tmp_path, quality=quality, fill="white", limit=6))
    folder = tmp_path / "counterfactual"
    pairs, rejected = read_case_set(folder), read_rejected(folder)
    assert metrics["n"] == len(pairs.cases) and metrics["rejected"]["visible seam"] > 0
    assert sum(bool(case.attributes["quality"]["failed"]) for case in rejected) == len(rejected) > 0
    assert {case.id for case in pairs.cases}.isdisjoint(case.id for case in rejected)
    assert all((folder / case.file_name).is_file() for case in (*pairs.cases, *rejected))
    assert all("failed" not in case.attributes["quality"] for case in pairs.cases)
    assert all(0 <= share <= 1 for share in metrics["yield"].values())


def test_other_limits_grade_again_without_making_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quality = QualitySettings(side=64, bootstrap=50, folds=2, max_seam=1.0)
    first = run(context(data, tmp_path, quality=quality, fill="white", limit=4))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "counterfactual/images").iterdir()}
    quality = QualitySettings(side=64, bootstrap=50, folds=2, max_seam=None, max_residual_classifier=None)
    second = run(context(data, tmp_path, quality=quality, fill="white", limit=4))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "counterfactual/images").iterdir()} == made
    assert first["rejected"]["visible seam"] > 0 and second["n"] > first["n"]
    assert "were made before" in capsys.readouterr().err


def test_pairs_that_were_made_before_are_checked_and_counted(data: Path, tmp_path: Path) -> None:
    made = run(context(data, tmp_path / "one"))
    folder = tmp_path / "one/counterfactual"
    again = run(context(data, tmp_path / "two", pairs=str(folder)))
    assert (again["n"], again["counts"]) == (made["n"], made["counts"])
    assert not (tmp_path / "two/counterfactual/images").exists()
    with pytest.raises(ValueError, match=r"counterfactual\.pairs: .*wanted one of removal"):
        run(context(data, tmp_path / "two", pairs=str(data)))


def test_pairs_of_a_case_set_that_was_split_otherwise_are_refused() -> None:
    cases = [Case(name, f"{name}.png", ("polyp",), split) for name, split in (("a", "train"), ("b", "test"))]
    case_set = CaseSet(Path("data"), cases)
    moved = {"counterfactual_of": "a", "intervention": "transplant", "background_of": "b"}
    judged = Case("c", "c.png", ("polyp",), "test", **{**moved, "counterfactual_of": "b", "background_of": "a"})
    assert check_pairs(CaseSet(Path("pairs"), [judged]), case_set)["n"] == 1
    for split, wanted in (
        ("test", "'a', which it shows, is in 'train'"),
        ("train", "'b', which it shows, is in 'test'"),
    ):
        taught = Case("c", "c.png", ("polyp",), split, **moved)
        with pytest.raises(ValueError, match=f"pairs, case 'c': found the split '{split}', but {wanted}"):
            check_pairs(CaseSet(Path("pairs"), [taught]), case_set)


def test_another_setting_replaces_the_old_pairs(data: Path, tmp_path: Path) -> None:
    run(context(data, tmp_path))
    metrics = run(context(data, tmp_path, interventions=["removal"], fill="white", limit=2))
    pairs = read_case_set(tmp_path / "counterfactual")
    assert metrics["counts"] == {split: {"removal": 2, "control": 0, "transplant": 0, "background": 0}
                                 for split in ("test", "train")}  # fmt: skip
    assert len(list((tmp_path / "counterfactual/images").iterdir())) == len(pairs.cases) == 4
    assert {case.fill for case in pairs.cases} == {"white"}


def test_a_lesion_beyond_the_area_limits_is_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    masks = [case for case in read_case_set(data).cases if case.split == "train" and case.mask_file_name]
    areas = sorted(float(np.mean(read_case_set(data).mask(case))) for case in masks)
    middle = areas[len(areas) // 2]
    metrics = run(context(data, tmp_path, splits=["train"], interventions=["removal"], max_area=middle))
    assert metrics["left_out"]["lesion larger than max_area"] == sum(area > middle for area in areas)
    assert metrics["n"] == sum(area <= middle for area in areas)


def test_a_damaged_image_stops_the_stage_with_its_name(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    victim = next(case for case in read_case_set(copy).split("test") if not case.is_normal)
    (copy / victim.file_name).write_bytes((copy / victim.file_name).read_bytes()[:200])
    with pytest.raises(ValueError, match=Path(victim.file_name).name):
        run(context(copy, tmp_path / "out"))


class Sheet(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        self.rows += tag == "tr"


def test_the_gallery_is_self_contained_and_holds_as_many_cases_as_asked(data: Path, tmp_path: Path) -> None:
    run(context(data, tmp_path))
    sheet = Sheet()
    sheet.feed((tmp_path / "counterfactual/gallery.html").read_text())
    assert sheet.rows >= 1 + 3
    assert len(sheet.sources) > 3 * 4 and all(source.startswith("data:image/jpeg;base64,") for source in sheet.sources)


def test_hugging_face_opens_the_pairs(data: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run(context(data, tmp_path, limit=3))
    folder = tmp_path / "counterfactual"
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(table["id"]) == sorted(row["id"] for row in rows)
    assert table[0]["image"].size == table[0]["source"].size == table[0]["mask"].size


def test_an_encoder_that_cannot_be_loaded_stops_the_stage_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    quality = QualitySettings(encoder="resnet5O", side=64)
    with pytest.raises(ValueError, match=r"counterfactual\.quality\.encoder: found 'resnet5O'"):
        run(context(data, tmp_path, quality=quality, limit=1))
    assert not list((tmp_path / "counterfactual").rglob("*.png"))
