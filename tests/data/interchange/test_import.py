"""Files as other tools write them: what becomes a case, what is refused, and how it is said."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.caseset import read_case_set
from cogalign.data.interchange.commands import import_interchange
from tests.data.interchange.conftest import REPORT, Lines, picture


def swift(question: str, answer: str | None, *images: str, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "<image>" * len(images) + question}]
    return {"messages": messages + ([{"role": "assistant", "content": answer}] if answer is not None else []),
            "images": list(images), **extra}  # fmt: skip


def reasons(folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["path"]: row["reason"] for row in rows}


def test_foreign_rows_become_question_cases_or_cases_with_the_findings_they_tell(lines: Lines, tmp_path: Path) -> None:
    path = lines(
        swift("Where is it?", "in the cecum", "a.png", solution="cecum", category="place"),
        swift("What is it?", REPORT, "a.png"),
        swift("What is it?", "polyps", "a.png", findings=["Polyps"], id="mine"),
        swift("What is it?", "The diagnosis is Martian flu.", "b/val/c.png"),
    )
    done = import_interchange("ms-swift", path, tmp_path / "out")
    cases = read_case_set(tmp_path / "out")
    assert [case.findings for case in cases.cases] == [(), ("polyp",), ("polyp",), ()]
    assert [case.id for case in cases.cases] == ["a", "a-2", "mine", "b/valx/c"] and done.renamed == 1
    assert [case.split for case in cases.cases] == ["train", "train", "train", "validation"]
    assert [case.group for case in cases.cases] == ["a", "a", "a", "b/valx/c"]  # an image never crosses splits
    assert cases.cases[0].attributes == {"solution": "cecum", "category": "place"}
    assert (done.cases, done.questions, done.images, done.splits) == (4, 2, 2, {"train": 3, "validation": 1})
    assert (tmp_path / "out" / cases.cases[3].file_name).is_file() and cases.image(cases.cases[3]).size == (32, 24)
    assert "4 cases of 2 images" in done.lines()[0]


def test_rows_for_reinforcement_learning_say_the_answer_beside_the_question(lines: Lines, tmp_path: Path) -> None:
    path = lines(
        swift("Q", None, "a.png", solution="cecum"), swift("R", None, "a.png", solution="x") | {"answer": REPORT}
    )
    import_interchange("ms-swift", path, tmp_path / "out")
    first, second = read_case_set(tmp_path / "out").cases
    assert (first.answer, first.findings) == ("cecum", ()) and (second.answer, second.findings) == (REPORT, ("polyp",))


def test_what_is_wrong_with_a_row_is_said_and_the_import_goes_on(lines: Lines, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir(exist_ok=True)
    path = lines(
        swift("Q", "A", "a.png"),
        swift("Q", "A", "gone.png"),
        swift("Q", "A", "broken.png"),
        swift("Q", "A", "empty.png"),
        swift("Q", "A", "../outside.png"),
        swift("Q", "A", "/etc/hostname"),
        swift("Q", "A", "a.png", "b/val/c.png"),
        swift("Q", "A"),
        swift("Q", "A", "a.png"),
        swift("Q", None, "a.png"),
        swift("Q", "A", "a.png", findings=["Plyop"], id="x"),
        swift("Q", "A", "a.png", boxes=[{"xmin": 1}], id="y"),
        swift("<image>Q", "A", "a.png"),
        {"messages": [{"role": "user", "content": "Q"}, {"role": "user", "content": "Q"}], "images": ["a.png"]},
        {"messages": [{"role": "robot", "content": "Q"}], "images": ["a.png"]},
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "A"}], "images": ["a.png"], "id": "z"}',
    )
    (path.parent / "broken.png").write_bytes((path.parent / "a.png").read_bytes()[:60])
    (path.parent / "empty.png").touch()
    picture(tmp_path / "outside.png")
    done = import_interchange("ms-swift", path, tmp_path / "out")
    assert done.cases == 1 and sum(done.quarantined.values()) == 15
    found = reasons(tmp_path / "out")
    for line, words in {
        2: "'gone.png': no such file", 3: "not a readable image", 4: "not a readable image", 5: "stays inside",
        6: "not inside the folder of the images", 7: "2 images, but a case has exactly one", 8: "0 images", 9: "came before",
        10: "neither findings nor an answer", 11: "nearest: 'polyp'", 12: "field 'boxes'", 13: "2 tags <image> for 1 images",
        14: "do not alternate", 15: "robot", 16: "surrogates",
    }.items():  # fmt: skip
        assert words in found[f"data.jsonl line {line}"], line
    assert str(tmp_path) not in "".join(found.values())
    assert any("15 rows could not be used" in line for line in done.lines())


def test_several_turns_become_questions_about_one_image(lines: Lines, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "cecum"},
            {"from": "human", "value": "What?"}, {"from": "gpt", "value": "The diagnosis is ulcer."}]  # fmt: skip
    path = lines(name="list.json")
    path.write_text(json.dumps([{"id": 7, "image": "a.png", "conversations": talk}]))
    import_interchange("llava", path, tmp_path / "out")
    first, second = read_case_set(tmp_path / "out").cases
    assert (first.id, first.question, first.answer, first.findings) == ("7-q1", "Where?", "cecum", ())
    assert (second.id, second.question, second.findings) == ("7-q2", "What?", ("ulcer",))
    assert first.file_name == second.file_name and first.group == second.group == "a"


def test_colonvqa_keeps_predictions_and_reads_choices_and_splits_from_paths(tmp_path: Path) -> None:
    name = "Positive-images/SUN/Val/polyp/x.png"
    picture(tmp_path / "data" / name)
    talk = [{"from": "human", "value": "<image>\nWhich? <A> polyp, <B> ulcer"}, {"from": "gpt", "value": "<A> polyp"},
            {"from": "prediction", "value": "<B> ulcer"}]  # fmt: skip
    (tmp_path / "json").mkdir()
    path = tmp_path / "json" / "Task_10.json"
    path.write_text(json.dumps([{"id": name, "image": name, "conversations": talk}]))
    import_interchange("colonvqa", path, tmp_path / "out", tmp_path / "data")
    (case,) = read_case_set(tmp_path / "out").cases
    assert case.attributes == {"prediction": "<B> ulcer", "choices": {"A": "polyp", "B": "ulcer"}}
    assert (case.answer, case.split, case.findings) == ("<A> polyp", "validation", ())


@pytest.mark.parametrize(
    ("solution", "answer", "findings", "attributes"),
    [
        ("<think>It is red.</think><answer>B</answer>", "B", (), {"think": "It is red."}),
        ("<answer> C </answer>", "C", (), {}),
        ("no tags", "no tags", (), {}),
        (f"<think>{REPORT.rpartition(chr(10))[0]}</think>\n<answer>Polyp</answer>", REPORT, ("polyp",), {}),
    ],
)
def test_colonr1_solutions(solution: str, answer: str, findings: tuple[str, ...], attributes: Any, lines: Lines, tmp_path: Path) -> None:  # fmt: skip
    path = lines({"image": "a.png", "problem": "<image>\nWhat?", "solution": solution}, name="r1.json")
    import_interchange("colonr1", path, tmp_path / "out")
    (case,) = read_case_set(tmp_path / "out").cases
    assert (case.question, case.answer, case.findings, case.attributes) == ("What?", answer, findings, attributes)


def endobench(path: Path, image: Path) -> Path:
    """A TSV in EndoBench's columns: the second row has the first one's image, the fourth a path."""
    text = base64.b64encode(image.read_bytes()).decode()
    head = "index\timage\timage_path\tquestion\tA\tB\tC\tD\tanswer\tcategory\thint\n"
    rows = [f'0\t{text}\t\t"What\nis ""it""?"\tpolyp\tulcer\tNone\t\tC\tlesion\t\n',
            "1\t0\t\tWhere?\tcecum\tpylorus\t\t\tA\tplace\tLook.\n", "2\t77\t\tQ\tx\ty\t\t\tA\tplace\t\n",
            f"3\t\t{image.name}\tQ\tx\ty\t\t\tB\tplace\t\n", "4\t?not base64?" + "x" * 80 + "\t\tQ\tx\ty\t\t\tB\tplace\t\n"]  # fmt: skip
    path.write_text(head + "".join(rows), encoding="utf-8")
    return path


def test_endobench_tsv(tmp_path: Path) -> None:
    path = endobench(tmp_path / "EndoBench.tsv", picture(tmp_path / "x.png"))
    done = import_interchange("vlmevalkit", path, tmp_path / "out")
    first, second, third = read_case_set(tmp_path / "out").cases
    assert first.question == 'What\nis "it"?\nA. polyp\nB. ulcer\nC. None\nAnswer with the letter of one choice.'
    assert first.attributes == {"category": "lesion", "choices": {"A": "polyp", "B": "ulcer", "C": "None"},
                                "stem": 'What\nis "it"?', "index": "0"}  # fmt: skip
    assert (first.answer, first.split, first.findings) == ("C", "test", ())
    assert second.file_name == first.file_name != third.file_name and second.question.startswith(
        "Look.\nWhere?\nA. cecum"
    )
    found = reasons(tmp_path / "out")
    assert "index '77'" in found["EndoBench.tsv row 3"] and "base64" in found["EndoBench.tsv row 5"]
    assert done.images == 2


def test_kvasir_vqa_x1_parquet_with_a_folder_of_images(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"img_id": name, "complexity": level, "question": f"Q{level}?", "answer": "No polyp", "image": "https://example.org/x",
         "original": '[{"q": "Is there a polyp?", "a": "no"}]', "question_class": ["polyp_count", "location"]}
        for name, level in (("clb1", 1), ("clb1", 2), ("clb2", 3))
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test-00000-of-00001.parquet")
    picture(tmp_path / "images" / "clb1.png")
    import_interchange("kvasir-vqa-x1-parquet", tmp_path / "data", tmp_path / "out", tmp_path / "images")
    first, second = read_case_set(tmp_path / "out").cases
    assert first.attributes == {"complexity": 1, "question_class": ["polyp_count", "location"], "image_url": "https://example.org/x",
                                "original": [{"q": "Is there a polyp?", "a": "no"}]}  # fmt: skip
    assert (first.group, first.file_name, first.dataset, first.split) == ("clb1", "clb1.png", "Kvasir-VQA-x1", "test")
    assert second.id != first.id and second.file_name == first.file_name
    assert "'clb2'" in reasons(tmp_path / "out")["test-00000-of-00001.parquet row 3"]


BAD = [
    ("ms-swift", '{"messages": [', r"line 2: not JSON"), ("ms-swift", "[1]", "line 2: found list"),
    ("ms-swift", '{"query": "x"}', "line 2: key 'messages': missing among query"),
    ("trl", '{"prompt": "x"}', "line 2: key 'prompt': found 'x'"), ("trl", '{"prompt": []}', "key 'completion': missing"),
    ("llava", '{"image": "a.png"}', "line 2: key 'conversations': missing among image"),
    ("colonr1", '{"image": "a.png", "problem": "x"}', "line 2: key 'solution'"),
    ("vlmevalkit", "index\tquestion\n1\tx\n", "wanted answer, image or image_path too"),
    ("vlmevalkit", "index\tquestion\tanswer\timage\n1\tx\n", "row 1: found another number of cells"),
    ("kvasir-vqa-x1-parquet", "text", "not parquet"), ("colonvqa", '"text"', "found str, wanted a JSON list"), ("colonvqa", '7', "found int"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BAD)
def test_a_file_of_another_format_is_an_error_and_leaves_nothing(name: str, text: str, words: str, lines: Lines, tmp_path: Path) -> None:  # fmt: skip
    good = {
        "messages": [],
        "conversations": [],
        "prompt": [],
        "completion": [],
        "image": "a.png",
        "problem": "Q",
        "solution": "A",
    }
    path = lines(good, text) if "line" in words or "key" in words else lines(text)
    path = path.rename(path.with_suffix(".x"))
    if words == "found int":
        path.write_text("7")
    with pytest.raises(ValueError, match=words) as error:
        import_interchange(name, path, tmp_path / "out")
    assert "data.x" in str(error.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["foreign"]


def test_wrong_places_are_named(lines: Lines, tmp_path: Path) -> None:
    path = lines(swift("Q", "A", "gone.png"))
    with pytest.raises(ValueError, match=r"no row could be used: 1 x image '\.\.\.': no such file"):
        import_interchange("ms-swift", path, tmp_path / "out")
    with pytest.raises(ValueError, match="nearest: 'ms-swift'"):
        import_interchange("swift", path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        import_interchange("ms-swift", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"found a\.png, b, data\.jsonl, wanted files \*\.tsv"):
        import_interchange("vlmevalkit", path.parent, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not empty"):
        import_interchange("ms-swift", path, path.parent)
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        import_interchange("ms-swift", path, tmp_path / "out", tmp_path / "nowhere")


def test_names_that_would_make_hugging_face_guess_splits_are_changed(tmp_path: Path) -> None:
    picture(tmp_path / "src" / "images" / "test-01.png")
    picture(tmp_path / "src" / "images" / "testx-01.png", 5)
    path = tmp_path / "src" / "data.jsonl"
    path.write_text("".join(json.dumps(swift("Q", "A", f"images/{name}-01.png")) + "\n" for name in ("testx", "test")))
    import_interchange("ms-swift", path, tmp_path / "out", split="test")
    cases = read_case_set(tmp_path / "out")
    assert [case.file_name for case in cases.cases] == ["images/testx-01.png", "images/testx-01_2.png"]
    assert cases.image(cases.cases[0]).tobytes() != cases.image(cases.cases[1]).tobytes()
    from datasets import load_dataset

    table = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 2 and set(table["split"]) == {"test"}


def test_an_absolute_path_inside_the_folder_of_the_images_is_taken(tmp_path: Path) -> None:
    image = picture(tmp_path / "pictures" / "a.png")
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(swift("Q", "A", str(image))) + "\n")
    import_interchange("ms-swift", path, tmp_path / "out", tmp_path / "pictures")
    assert read_case_set(tmp_path / "out").cases[0].file_name == "a.png"


def test_questions_about_one_image_load_as_an_imagefolder(case_set: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    table = load_dataset("imagefolder", data_dir=str(case_set), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 4 and table[2]["image"].tobytes() == table[3]["image"].tobytes()
