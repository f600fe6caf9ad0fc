import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from cogalign.counterfactual import locate as locate_file
from cogalign.counterfactual.evidence import NO_EVIDENCE, NOTHING_PROPOSED, NOTHING_SEEN
from cogalign.counterfactual.locate import NO_ANSWER, Located, locate
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set, write_metadata
from cogalign.data.images import load_mask
from cogalign.data.phantom import write_phantom
from cogalign.recipe import DataSettings, GroundingSettings, PhantomSettings, Recipe, SegmenterSettings
from cogalign.training.context import StageContext


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose masks are on the disk but not in the metadata, so that boxes are all that is known."""
    settings = PhantomSettings(train=12, validation=1, test=4, size=96, seed=5)
    folder = write_phantom(settings, tmp_path_factory.mktemp("data") / "phantom")
    cases = read_case_set(folder).cases
    truth = {case.id: case.mask_file_name for case in cases}
    (folder / "truth.json").write_text(json.dumps(truth))
    write_metadata(folder, [replace(case, mask_file_name=None).to_row() for case in cases])
    return folder


def context(data: Path, out: Path, **fields: Any) -> StageContext:
    recipe = Recipe(out=str(out), data=DataSettings(case_set=str(data)))
    recipe.trainer.accelerator = "cpu"
    masks = recipe.counterfactual.masks
    recipe.counterfactual.workers = fields.pop("workers", 0)
    for name, value in {"min_confidence": 0.3, **fields}.items():
        setattr(masks, name, value)
    return StageContext(recipe, out, "counterfactual")


def with_lesions(data: Path) -> tuple[CaseSet, list[Case]]:
    case_set = read_case_set(data)
    return case_set, [case for case in case_set.cases if case.boxes]


def run(data: Path, out: Path, cases: Sequence[Case] | None = None, **fields: Any) -> dict[str, Located]:
    case_set, own = with_lesions(data)
    return locate(context(data, out, **fields), case_set, own if cases is None else cases)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def listed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "counterfactual/located.jsonl").read_text().splitlines()]


def test_boxes_become_masks_near_the_truth_and_all_cases_are_listed(data: Path, tmp_path: Path) -> None:
    located = run(data, tmp_path)
    case_set, cases = with_lesions(data)
    assert list(located) == [case.id for case in cases] == [row["id"] for row in listed(tmp_path)]
    truth = json.loads((data / "truth.json").read_text())
    reached = []
    for case, row in zip(cases, listed(tmp_path), strict=True):
        one = located[case.id]
        if one.file is None:
            assert one.reason == row["reason"]
            continue
        mask = load_mask(one.file)
        reached.append(dice(mask, load_mask(case_set.path(truth[case.id]))))
        assert one.provenance == row["provenance"] == "box+grabcut" and 0.3 <= one.confidence == row["confidence"] <= 1
        assert row["file_name"] == f"located/{case_set.cases.index(case):06d}.png"
    assert len(reached) >= len(cases) / 2 and np.mean(reached) > 0.75


def test_workers_find_the_same(data: Path, tmp_path: Path) -> None:
    one, two = run(data, tmp_path / "one"), run(data, tmp_path / "two", workers=1)
    assert [asdict(value) | {"file": None} for value in one.values()] == [
        asdict(value) | {"file": None} for value in two.values()
    ]


def test_experts_masks_and_cases_without_evidence_come_back_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: object, **options: object) -> None:
        raise AssertionError("no case was to be looked at")

    monkeypatch.setattr(locate_file, "build_trainer", nothing)
    truth = json.loads((data / "truth.json").read_text())
    case_set, cases = with_lesions(data)
    drawn = [replace(case, mask_file_name=truth[case.id]) for case in cases]
    normal = next(case for case in case_set.cases if not case.boxes)
    located = run(data, tmp_path, [*drawn, normal])
    assert all(located[case.id] == Located(case_set.path(truth[case.id]), "expert", 1.0) for case in cases)
    assert located[normal.id] == Located(None, reason=NO_EVIDENCE)
    assert listed(tmp_path)[0] == {
        "id": drawn[0].id, "file_name": truth[drawn[0].id], "provenance": "expert", "confidence": 1.0
    }  # fmt: skip
    boxed = run(data, tmp_path / "expert", cases, evidence=["expert"])
    assert {one.reason for one in boxed.values()} == {NO_EVIDENCE}


def test_an_interrupted_search_goes_on_and_finds_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locate_file, "BATCH", 2)
    whole = run(data, tmp_path / "whole")
    real, written = locate_file.write_mask, []

    def full_disk(path: Path, mask: np.ndarray) -> None:
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, mask)

    monkeypatch.setattr(locate_file, "write_mask", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(data, tmp_path / "broken")
    assert not (tmp_path / "broken/counterfactual/located.jsonl").exists()
    rank = next((tmp_path / "broken/counterfactual/located").glob("*.jsonl"))
    rank.write_bytes(rank.read_bytes() + b'{"id": "cut o')
    again: list[Path] = []
    monkeypatch.setattr(locate_file, "write_mask", lambda path, mask: (again.append(path), real(path, mask))[1])
    broken = run(data, tmp_path / "broken")
    assert "going on" in capsys.readouterr().err
    assert listed(tmp_path / "whole") == listed(tmp_path / "broken")
    masks = [one for one in whole.values() if one.file is not None]
    assert 0 < len(again) < len(masks)
    for name, one in broken.items():
        other = whole[name].file
        assert one.file is None or (other is not None and one.file.read_bytes() == other.read_bytes())


def test_what_is_found_is_not_looked_for_twice_but_other_settings_look_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(data, tmp_path)
    used: list[int] = []
    real = locate_file.build_trainer
    monkeypatch.setattr(locate_file, "build_trainer", lambda *a, **k: (used.append(1), real(*a, **k))[1])
    assert run(data, tmp_path) == first and not used
    victim = next(one.file for one in first.values() if one.file is not None)
    victim.unlink()
    assert run(data, tmp_path) == first and victim.is_file() and len(used) == 1
    none = run(data, tmp_path, min_confidence=1.0)
    assert len(used) == 2 and all(one.file is None for one in none.values())
    assert not list((tmp_path / "counterfactual/located").glob("*.png"))
    assert len(list((tmp_path / "counterfactual/located").glob("*.jsonl"))) == 1


class BoxServer(BaseHTTPRequestHandler):
    """An endpoint that knows the cases' boxes by their images; it refuses the first case and sees nothing in the second."""

    known: ClassVar[list[tuple[np.ndarray, Case]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        uri = body["messages"][0]["content"][0]["image_url"]["url"]
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        apart = [float(np.abs(image.astype(float) - shown).mean()) for image, _ in self.known]
        index = int(np.argmin(apart))
        boxes = [] if index == 1 else [
            {"bbox_2d": [box.xmin, box.ymin, box.xmax, box.ymax], "label": box.finding}
            for box in self.known[index][1].boxes
        ]  # fmt: skip
        content = f"```json\n{json.dumps(boxes)}\n```"
        answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(422 if index == 0 else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_proposed_boxes_are_asked_for_cases_without_other_evidence(data: Path, tmp_path: Path) -> None:
    case_set, cases = with_lesions(data)
    bare = [replace(case, boxes=()) for case in cases]
    BoxServer.known = [(np.asarray(case_set.image(case)), case) for case in cases]
    server = ThreadingHTTPServer(("127.0.0.1", 0), BoxServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    grounding = GroundingSettings(url=f"http://127.0.0.1:{server.server_port}/v1", model="seer", retries=0)
    try:
        located = run(data, tmp_path, bare, evidence=["expert", "box", "grounding"], grounding=grounding)
    finally:
        server.shutdown()
        server.server_close()
    provenances = {one.provenance for one in located.values() if one.file is not None}
    assert provenances == {"grounding+grabcut"}
    silent, blind = located[cases[0].id], located[cases[1].id]
    assert silent.reason == NO_ANSWER and blind.reason == NOTHING_PROPOSED


def test_the_recipes_own_model_is_asked_without_an_endpoint(data: Path, tmp_path: Path) -> None:
    case_set, cases = with_lesions(data)
    told = context(data, tmp_path, evidence=["grounding"])
    told.recipe.model.name = "tiny-random"
    told.recipe.counterfactual.masks.grounding.max_completion_length = 4
    located = locate(told, case_set, [replace(cases[0], boxes=())])
    assert located[cases[0].id].reason == NOTHING_PROPOSED


def test_a_segmenter_that_is_not_there_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage segmenter first"):
        run(data, tmp_path, segmenter="run")
    with pytest.raises(FileNotFoundError, match=r"no segmenter in .*elsewhere"):
        run(data, tmp_path, segmenter=str(tmp_path / "elsewhere"))


def test_the_runs_segmenter_is_used_for_boxes_and_alone(data: Path, tmp_path: Path) -> None:
    from cogalign.models.segmenter import Segmenter, build, config_of

    config = config_of(SegmenterSettings(encoder="resnet18", side=64, pretrained=False, flips=False))
    Segmenter(build(config, pretrained=False), config).save(tmp_path / "segmenter/model")
    _, cases = with_lesions(data)
    some = [cases[0], replace(cases[1], boxes=())]
    located = run(data, tmp_path, some, evidence=["expert", "box", "segmenter"], segmenter="run", min_confidence=0.0)
    boxed, alone = located[some[0].id], located[some[1].id]
    assert boxed.provenance in ("box+segmenter", "box+grabcut")
    assert alone.provenance == "segmenter" or alone.reason in (NOTHING_SEEN, "lesion larger than max_area",
                                                               "lesion smaller than min_area", "full-frame mask")  # fmt: skip


def test_a_damaged_image_stops_the_search_with_its_name(data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data, tmp_path / "copy")
    _, cases = with_lesions(data)
    victim = tmp_path / "copy" / cases[3].file_name
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(ValueError, match=victim.name):
        run(tmp_path / "copy", tmp_path / "out")


@pytest.mark.slow
def test_two_ranks_share_the_work_and_find_the_same(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from cogalign.counterfactual.locate import locate\n"
        "from cogalign.data.caseset import read_case_set\n"
        "from cogalign.recipe import DataSettings, Recipe, TrainerSettings\n"
        "from cogalign.training.context import StageContext\n"
        "data, out = sys.argv[1:]\n"
        "recipe = Recipe(out=out, data=DataSettings(case_set=data),\n"
        "    trainer=TrainerSettings(accelerator='cpu', devices=2, strategy='ddp'))\n"
        "recipe.counterfactual.masks.min_confidence = 0.3\n"
        "case_set = read_case_set(data)\n"
        "cases = [case for case in case_set.cases if case.boxes]\n"
        "context = StageContext(recipe, Path(out), 'counterfactual')\n"
        "first = locate(context, case_set, cases)\n"
        "assert locate(context, case_set, cases) == first\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), str(data), str(tmp_path / "two")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert listed(tmp_path / "one") == listed(tmp_path / "two")
    ranks = [path.name for path in (tmp_path / "two/counterfactual/located").glob("*.jsonl")]
    assert len(ranks) == 2


def test_a_damaged_image_in_a_worker_is_one_line_and_what_was_found_is_kept(data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data, tmp_path / "copy")
    _, cases = with_lesions(data)
    victim = tmp_path / "copy" / cases[3].file_name
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(ValueError, match=victim.name) as caught:
        run(tmp_path / "copy", tmp_path / "out", workers=1)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    lines = next((tmp_path / "out/counterfactual/located").glob("*.jsonl")).read_text().splitlines()
    assert len(lines) == min(locate_file.BATCH, len(cases)) - 1


def test_an_endpoint_that_cannot_be_reached_is_one_line_on_the_command_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cogalign.cli import main

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: deaf\nout: {tmp_path / 'out'}\ndata: {{case_set: {data}}}\nstages: [counterfactual]\n"
        "trainer: {accelerator: cpu}\ncounterfactual:\n  quality: {enabled: false}\n  masks:\n"
        "    evidence: [grounding]\n    grounding: {url: 'http://127.0.0.1:9/v1', model: seer, retries: 0}\n"
    )
    assert main(["counterfactual", str(recipe)]) == 1
    said = capsys.readouterr().err
    assert "cogalign: error: http://127.0.0.1:9/v1 failed" in said and "Traceback" not in said
