import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cogalign.data.cards.find import read_card
from cogalign.data.importers.base import Photograph, Rejected
from cogalign.data.importers.readers import kvasir_vqa, kvasir_vqa_x1
from tests.data.importers import trees


def test_an_image_of_two_sources_is_rejected_and_names_with_a_suffix_are_the_same_image(tmp_path):
    trees.photograph(tmp_path / "images/a.JPG", 1)
    trees.photograph(tmp_path / "images/b.jpg", 2)
    lines = ["Polyps,One?,1,a.jpg", "Polyps,Two?,2,a", "Polyps,One?,1,b", "Normal,Two?,2,b"]
    trees.write(tmp_path / "metadata.csv", "source,question,answer,img_id", *lines)
    found = list(kvasir_vqa.read(tmp_path, read_card("kvasir-vqa")))
    assert [record.key for record in found if isinstance(record, Photograph)] == ["a"]
    assert len(found[0].attributes["questions"]) == 2
    assert isinstance(found[1], Rejected) and "several sources for it: Polyps, Normal" in found[1].reason


def test_a_table_without_a_column_is_an_error_that_names_it(tmp_path):
    trees.photograph(tmp_path / "images/a.jpg", 1)
    trees.write(tmp_path / "metadata.csv", "source,question,answers,img_id", "Polyps,One?,1,a")
    with pytest.raises(ValueError, match=r"metadata\.csv: wanted a column 'answer'.*nearest: 'answers'"):
        list(kvasir_vqa.read(tmp_path, read_card("kvasir-vqa")))


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1 cut off"])
def test_a_broken_parquet_file_is_an_error_that_names_it(content, tmp_path):
    trees.kvasir_vqa(tmp_path)
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet: not a table of questions"):
        list(kvasir_vqa_x1.read(tmp_path, read_card("kvasir-vqa-x1")))


def test_a_parquet_file_without_a_column_is_an_error_that_names_the_nearest(tmp_path):
    trees.kvasir_vqa(tmp_path)
    columns = {name: ["x"] for name in (*kvasir_vqa_x1.COLUMNS[:-1], "question_classes")}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"wanted a column 'question_class'.*nearest: 'question_classes'"):
        list(kvasir_vqa_x1.read(tmp_path, read_card("kvasir-vqa-x1")))


def test_a_file_whose_name_tells_no_split_gives_questions_without_one(tmp_path):
    trees.kvasir_vqa(tmp_path)
    row = {"img_id": ["p1"], "complexity": [1], "question": ["Q?"], "answer": ["A"], "original": ["[]"],
           "question_class": [["text_presence"]]}  # fmt: skip
    pq.write_table(pa.table(row), tmp_path / "part-0.parquet")
    records = list(kvasir_vqa_x1.read(tmp_path, read_card("kvasir-vqa-x1")))
    found = next(record for record in records if isinstance(record, Photograph))
    assert found.key == "p1" and found.attributes["questions"] == [
        {"question": "Q?", "answer": "A", "complexity": 1, "question_class": ["text_presence"], "original": []}
    ]
