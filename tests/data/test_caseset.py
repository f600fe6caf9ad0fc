import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data.case import Box, Case
from cogalign.data.caseset import METADATA, CaseSetWriter, read_case_set

IMAGE = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)
MASK = np.zeros((20, 24), dtype=bool)
MASK[2:6, 3:9] = True


def plain(number: int, **fields: object) -> Case:
    values: dict = {"id": f"c{number}", "file_name": f"images/c{number}.png", "findings": ("normal",), "split": "train"}
    return Case(**{**values, **fields})


def lesion(number: int, **fields: object) -> Case:
    return plain(
        number,
        findings=("polyp",),
        mask_file_name=f"masks/c{number}.png",
        boxes=(Box("polyp", 3, 2, 9, 6),),
        keywords={"location": ["colon"], "morphology": ["raised"], "microvasculature": ["regular"]},
        **fields,
    )


def write_lines(root: Path, *lines: object) -> None:
    root.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / METADATA).write_text("\n".join(texts) + "\n")


def test_what_is_written_is_read_again(tmp_path):
    cases = [plain(0, attributes={"cue": [1, 2]}), lesion(1, split="test", answer="Ein Bericht — ß")]
    with CaseSetWriter(tmp_path / "set") as writer:
        writer.add(cases[0], IMAGE)
        writer.add(cases[1], Image.fromarray(IMAGE), MASK)
    found = read_case_set(tmp_path / "set")
    assert found.by_id == {case.id: case for case in cases}
    assert found.splits == ["train", "test"]
    assert [case.id for case in found.split("test")] == ["c1"]
    np.testing.assert_array_equal(np.asarray(found.image(found.by_id["c1"])), IMAGE)
    np.testing.assert_array_equal(found.mask(found.by_id["c1"]), MASK)
    assert found.mask(found.by_id["c0"]) is None


def test_hugging_face_opens_it_with_masks_sources_and_differing_attributes(tmp_path):
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "test" / "train"  # words from which the library guesses splits, above the folder
    with CaseSetWriter(root) as writer:
        for number in range(6):
            writer.add(plain(number, attributes={f"key{number}": number if number % 2 else "text"}), IMAGE)
        counterfactual = lesion(6, counterfactual_of="c0", source_file_name="sources/c0.png", intervention="control")
        writer.add(counterfactual, IMAGE, MASK, source=IMAGE // 2)
    table = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache"))["train"]
    assert table.num_rows == 7
    rows = {row["id"]: row for row in table}
    assert rows["c0"]["mask"] is None and rows["c0"]["source"] is None
    np.testing.assert_array_equal(np.asarray(rows["c0"]["image"]), IMAGE)
    np.testing.assert_array_equal(np.asarray(rows["c6"]["mask"]) > 0, MASK)
    np.testing.assert_array_equal(np.asarray(rows["c6"]["source"]), IMAGE // 2)
    assert json.loads(rows["c3"]["attributes"]) == {"key3": 3}
    assert rows["c6"]["boxes"][0]["xmax"] == 9


def test_a_column_that_is_empty_in_most_rows_has_its_type_in_the_first_lines(tmp_path):
    # Hugging Face takes the types from the first 10 MB: a mask after that would break the table.
    with CaseSetWriter(tmp_path) as writer:
        for number in range(20):
            writer.add(plain(number), IMAGE)
        writer.add(lesion(20), IMAGE, MASK)
    first = [json.loads(line) for line in (tmp_path / METADATA).read_text().splitlines()[:2]]
    assert [row["mask_file_name"] for row in first] == [None, "masks/c20.png"]


def test_an_error_in_the_block_leaves_no_metadata_and_removes_the_old_one(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        writer.add(plain(0), IMAGE)
    with pytest.raises(RuntimeError, match="power cut"), CaseSetWriter(tmp_path) as writer:
        writer.add(plain(0), IMAGE)
        raise RuntimeError("power cut")
    assert not (tmp_path / METADATA).exists()
    with pytest.raises(FileNotFoundError, match=METADATA):
        read_case_set(tmp_path)


@pytest.mark.parametrize(
    ("case", "mask", "message"),
    [
        (plain(0, file_name="../c0.png"), None, "stays inside"),
        (plain(0, file_name="/tmp/c0.png"), None, "stays inside"),
        (plain(0, file_name="images/c0.jpg"), None, "ends in .png"),
        (plain(0, file_name="images/test-0.png"), None, "the word 'test'"),
        (plain(9), None, "id was already written"),
        (plain(0, file_name="images/c9.png"), None, "file was already written"),
        (lesion(0), None, "mask missing"),
        (plain(0), MASK, "mask given"),
        (lesion(0), MASK[:5], r"shape \(5, 24\)"),
    ],
)
def test_the_writer_refuses(tmp_path, case, mask, message):
    with CaseSetWriter(tmp_path) as writer:
        writer.add(plain(9), IMAGE)
        with pytest.raises(ValueError, match=message):
            writer.add(case, IMAGE, mask)


def test_the_writer_refuses_floats_and_an_empty_set(tmp_path):
    with pytest.raises(ValueError, match="float64"), CaseSetWriter(tmp_path) as writer:
        writer.add(plain(0), IMAGE / 255)
    with pytest.raises(ValueError, match="no case was written"), CaseSetWriter(tmp_path):
        pass


def test_revise_sets_rows_but_not_files(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        writer.add(plain(0), IMAGE)
        with pytest.raises(ValueError, match="same ids"):
            writer.revise([plain(1)])
        writer.revise([plain(0, split="validation")])
    assert read_case_set(tmp_path).splits == ["validation"]


def test_a_shared_source_is_written_once(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        writer.add(plain(0, source_file_name="sources/a.png"), IMAGE, source=IMAGE)
        writer.add(plain(1, source_file_name="sources/a.png"), IMAGE, source=IMAGE // 2)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sources/a.png")), IMAGE)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: not JSON"),
        (['["a"]'], "line 1: found list"),
        ([plain(0).to_row(), plain(0).to_row()], "line 2: id 'c0' is already on line 1"),
        ([plain(0).to_row(), {"id": "a"}], "line 2: field 'file_name'"),
        ([{**plain(0).to_row(), "finding": 1}], "line 1: field 'finding': unknown .nearest: 'findings'"),
        ([{**plain(0).to_row(), "boxes": [{"xmin": 1}]}], "line 1: field 'boxes'"),
        ([{**plain(0).to_row(), "attributes": "{"}], "line 1: field 'attributes'"),
        ([{**plain(0).to_row(), "keywords": {"location": "a"}}], "field 'keywords.location'"),
        ([{**plain(0).to_row(), "organ": 3}], "field 'organ'"),
        ([""], "found no case"),
    ],
)
def test_reading_names_file_and_line(tmp_path, lines, message):
    write_lines(tmp_path, *lines)
    with pytest.raises(ValueError, match=message) as error:
        read_case_set(tmp_path)
    assert METADATA in str(error.value)


def test_a_row_may_leave_out_what_is_not_known(tmp_path):
    write_lines(
        tmp_path, {"id": "a", "file_name": "a.png", "findings": ["polyp"], "split": "test", "attributes": {"x": 1}}
    )
    case = read_case_set(tmp_path).cases[0]
    assert (case.organ, case.attributes, case.mask_file_name) == ("unknown", {"x": 1}, None)


def test_unknown_splits_and_paths_that_leave_the_folder_are_refused(tmp_path):
    with CaseSetWriter(tmp_path / "set") as writer:
        writer.add(plain(0), IMAGE)
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    found = read_case_set(tmp_path / "set")
    with pytest.raises(ValueError, match="wanted one of train"):
        found.split("tset")
    for bad in ("../x.png", "/etc/passwd", "images/../../x", "link/x.png", "", "C:/x", "a\0b"):
        with pytest.raises(ValueError, match="path"):
            found.path(bad)


def test_a_mask_of_another_size_and_a_cut_off_image_are_errors(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        writer.add(lesion(0), IMAGE, MASK)
    found = read_case_set(tmp_path)
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "masks/c0.png")
    with pytest.raises(ValueError, match="found 8 x 9 pixels, wanted 24 x 20"):
        found.mask(found.cases[0])
    content = (tmp_path / "images/c0.png").read_bytes()
    (tmp_path / "images/c0.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable image"):
        found.image(found.cases[0])
    (tmp_path / "images/c0.png").unlink()
    with pytest.raises(FileNotFoundError, match="no such image"):
        found.image(found.cases[0])


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(
    attributes=st.dictionaries(st.text(max_size=5), plain_json, max_size=3),
    words=st.lists(st.text(max_size=5), max_size=3),
    answer=st.text(max_size=20),
)
def test_rows_round_trip_through_json(attributes, words, answer):
    case = lesion(0, attributes=attributes, answer=answer, counterfactual_of="x", fill="white")
    case = Case(**{**case.__dict__, "keywords": {"location": words}})
    assert Case.from_row(json.loads(json.dumps(case.to_row()))) == case


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(list(plain(0).to_row())), plain_json, max_size=8))
def test_any_row_parses_or_names_a_field(changes):
    try:
        case = Case.from_row({**plain(0).to_row(), **changes})
    except ValueError as error:
        assert "field '" in str(error)
    else:
        assert Case.from_row(case.to_row()) == case
