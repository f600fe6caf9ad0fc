"""Miniature trees of the data sets whose images have a class: built to each card's layout, oddities included."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE = (60, 48)
"""Width and height of the photographs."""
LESION = (10, 12, 30, 28)
"""xmin, ymin, xmax, ymax of the lesion that masks show; the last two exclusive."""


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A photograph that resembles no other: smooth noise, uint8 (height, width, 3)."""
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    return (smooth.clip(0, 1) * 255).astype(np.uint8)


def photograph(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """Write `pixels(seed)`; the format is the suffix's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path, **({"quality": 95} if "jp" in path.suffix.lower() else {}))
    return path


def drawn(box: tuple[int, int, int, int] | None = LESION, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask as a bool array (height, width); without a box it is empty."""
    mask = np.zeros((size[1], size[0]), bool)
    if box is not None:
        mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write_mask(path: Path, mask: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> Path:
    """A mask of three channels (one in a TIFF); as JPEG at quality 60 it has fringes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if "tif" in path.suffix:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        return path
    image = np.zeros((*mask.shape, 3), np.uint8)
    image[mask] = colour
    Image.fromarray(image).save(path, **({"quality": 60} if "jp" in path.suffix.lower() else {}))
    return path


def odd_tiff(path: Path, image: np.ndarray) -> Path:
    """An RGB TIFF that says Photometric MinIsBlack, as CVC's do: Pillow refuses it, OpenCV makes it grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = image.shape
    content = image.tobytes()
    short, long = 3, 4
    count = 10
    bits = 8 + 2 + 12 * count + 4
    tags = [(256, short, 1, width), (257, short, 1, height), (258, short, 3, bits), (259, short, 1, 1),
            (262, short, 1, 1), (273, long, 1, bits + 6), (277, short, 1, 3), (278, short, 1, height),
            (279, long, 1, len(content)), (284, short, 1, 1)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, count)
    for tag, kind, number, value in tags:
        packed = struct.pack("<HH", value, 0) if kind == short and number == 1 else struct.pack("<I", value)
        head += struct.pack("<HHI", tag, kind, number) + packed
    path.write_bytes(head + struct.pack("<IHHH", 0, 8, 8, 8) + content)
    return path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def kvasir_boxes(*boxes: tuple[int, int, int, int]) -> dict:
    """An entry of Kvasir's box file."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    found = [{"label": "polyp", **dict(zip(sides, box, strict=True))} for box in boxes]
    return {"width": SIZE[0], "height": SIZE[1], "bbox": found}


def hyperkvasir(root: Path) -> Path:
    """Labelled images, two folds whose table spells classes otherwise, one polyp segmented (under another size)."""
    rows = [("lower", "anatomical-landmarks", "ileum", "a"), ("upper", "anatomical-landmarks", "pylorus", "b"),
            ("lower", "pathological-findings", "polyps", "c"), ("lower", "pathological-findings", "hemorrhoids", "d"),
            ("upper", "pathological-findings", "esophagitis-b-d", "e"),
            ("lower", "therapeutic-interventions", "dyed-lifted-polyps", "f"),
            ("lower", "quality-of-mucosal-views", "bbps-0-1", "g"),
            ("lower", "pathological-findings", "polyps", "h")]  # fmt: skip
    lines = ["Video file,Organ,Finding,Classification"]
    for seed, (tract, kind, name, stem) in enumerate(rows):
        photograph(root / f"labeled-images/{tract}-gi-tract/{kind}/{name}/{stem}.jpg", seed)
        lines.append(f"{stem},{tract.title()} GI,{'cecum' if stem == 'h' else name},{kind}")
    write(root / "labeled-images/image-labels.csv", *lines, "zz,Lower GI,cecum,anatomical-landmarks")
    folds = ["c.jpg;polyp;0", "b.jpg;normal-pylorus;3", "d.jpg;hemorroids;4", "e.jpg;oesophagitis-b-d;1"]
    write(root / "official_splits/5_fold_split.csv", "file-name;class-name;split-index", *folds)
    segmented = root / "segmented-images"
    photograph(segmented / "images/c.jpg", 2)
    write_mask(segmented / "masks/c.jpg", drawn())
    write(segmented / "bounding-boxes.json", json.dumps({"c": kvasir_boxes(LESION)}))
    return root


def kvasir_v2(root: Path) -> Path:
    """The eight classes; one suffix in capitals, a features archive and a stray file beside."""
    names = ("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus",
             "normal-z-line", "polyps", "ulcerative-colitis")  # fmt: skip
    for seed, name in enumerate(names):
        photograph(root / "kvasir-dataset-v2" / name / f"{name}{'.JPG' if seed == 0 else '.jpg'}", seed)
    write(root / "kvasir-dataset-v2/polyps/polyps.features", "1,2,3")
    return root


def gastrovision(root: Path) -> Path:
    """One name in three classes, in another split for each; a class outside the split; a row without an image."""
    rows = [("Colon polyps", "100H0004"), ("Erythema", "100H0004"), ("Pylorus", "100H0004"),
            ("Gastroesophageal_junction_normal z-line", "z"), ("Barrett's esophagus", "b"),
            ("Gastric polyps", "g"), ("Accessory tools", "t")]  # fmt: skip
    for seed, (name, stem) in enumerate(rows):
        photograph(root / "Gastrovision" / name / f"{stem}.jpg", seed)
    photograph(root / "Gastrovision/No such class/n.jpg", 99)
    table = [f"{stem}.jpg,{name},60,48,1.5" for name, stem in rows]
    write(root / "GastroVision_metadata.csv", "Filename,Class,Width,Height,Size (kB)", *table, "n.jpg,No such class,60,48,1",
          "lost.jpg,Pylorus,60,48,1")  # fmt: skip
    splits = {"train": "100H0004.jpg,Colon polyps", "validate": "z.jpg,Gastroesophageal_junction_normal z-line",
              "test": "100H0004.jpg,Pylorus"}  # fmt: skip
    for split, line in splits.items():
        write(root / f"Split/{split}.csv", "Filename,Class", line)
    return root


VIDEO = "04a78ef00c5245e0"
OTHER_VIDEO = "131368cc17e44240"


def kvasir_capsule(root: Path) -> Path:
    """Folders in another case than the table, a frame in two classes, corner boxes, halves with other class names."""
    labelled = root / "labelled_images"
    for seed, (name, stem) in enumerate((("Foreign body", f"{VIDEO}_7"), ("Normal clean mucosa", f"{OTHER_VIDEO}_1"),
                                         ("Erosion", f"{VIDEO}_893"), ("Pylorus", f"{OTHER_VIDEO}_2"))):  # fmt: skip
        photograph(labelled / name / f"{stem}.jpg", seed)
    photograph(labelled / "Ulcer" / f"{VIDEO}_893.jpg", 2)
    header = "filename;video_id;frame_number;finding_category;finding_class;x1;y1;x2;y2;x3;y3;x4;y4"
    write(root / "metadata.csv", header,
          f"{VIDEO}_7.jpg;{VIDEO};7;Luminal;Foreign Body;10;12;30;12;30;28;10;28",
          f"{VIDEO}_893.jpg;{VIDEO};893;Luminal;Erosion;10;12;30;12;30;28;10;28",
          f"{VIDEO}_893.jpg;{VIDEO};893;Luminal;Ulcer;40;20;50;20;50;30;40;30",
          f"{OTHER_VIDEO}_1.jpg;{OTHER_VIDEO};1;Luminal;Normal clean mucosa;;;;;;;;",
          f"{OTHER_VIDEO}_2.jpg;{OTHER_VIDEO};2;Anatomy;Pylorus;;;;;;;;")  # fmt: skip
    write(root / "official_splits/split_0.csv", "filename,label", f"{VIDEO}_7.jpg,Foreign Bodies")
    write(root / "official_splits/split_1.csv", "filename,label", f"{OTHER_VIDEO}_1.jpg,Normal")
    return root


def limuc(root: Path) -> Path:
    """BMP files; patient 12 has images of two grades; the patient-based copies must not be read."""
    places = [("train_and_validation_sets", 0, "12_1"), ("train_and_validation_sets", 2, "12_2"),
              ("train_and_validation_sets", 1, "3_1"), ("test_set", 3, "40_1"), ("test_set", 0, "40_2")]  # fmt: skip
    for seed, (subset, grade, name) in enumerate(places):
        photograph(root / subset / f"Mayo {grade}" / f"UC_patient_{name}.bmp", seed)
    photograph(root / "patient_based_classified_images/12/Mayo 0/UC_patient_12_1.bmp", 0)
    return root


def crohnipi(root: Path) -> Path:
    """Seven labels, a table in Latin-1 with an accent in its header, a label nobody knows, an image without a row."""
    labels = {"N": 1, "E": 2, "O": 3, "AU": 4, "U3-10": 5, "U>10": 1, "S": 2, "Autre": 3}
    lines = ["Nom de l'image capturée,Label,Pli"]
    for number, (label, fold) in enumerate(labels.items(), 1):
        photograph(root / f"DataCrohnIPI/imgs/{number:05}.jpg", number)
        lines.append(f"{number:05}.jpg,{label},{fold}")
    photograph(root / "DataCrohnIPI/imgs/00099.jpg", 99)
    write(root / "DataCrohnIPI/CrohnIPI_description.csv", *lines, encoding="iso-8859-1")
    return root


_QUESTIONS = (
    ("Polyps", "p1", "What color is the abnormality?", "pink; red"),
    ("Polyps", "p1", "How many polyps are in the image?", "1"),
    ("Normal", "n1", "Does this image contain any finding?", "no"),
    ("Instrument", "i1", "Is there text?", "yes"),
)


def kvasir_vqa(root: Path) -> Path:
    """Several answers in one text, a row without an image, an image without a row."""
    for seed, stem in enumerate(("p1", "n1", "i1", "unasked")):
        photograph(root / f"images/{stem}.jpg", seed)
    rows = [f'{source},"{question}",{answer},{image}' for source, image, question, answer in _QUESTIONS]
    write(root / "metadata.csv", "source,question,answer,img_id", *rows, "Normal,Is there text?,no,lost")
    return root


def kvasir_vqa_x1(root: Path) -> Path:
    """As Kvasir-VQA, with parquet files: `original` is a text of JSON (one of them broken), classes are a list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kvasir_vqa(root)
    original = json.dumps([{"q": "How many polyps are in the image?", "a": "1"}])
    rows = {
        "train": [("p1", 1, "How many are there?", "One polyp.", original, ["polyp_count"])],
        "test": [("p1", 3, "What is seen?", "A pink polyp.", original, ["polyp_count", "abnormality_color"]),
                 ("n1", 1, "Anything?", "Nothing abnormal.", original, ["finding_count"]),
                 ("i1", 2, "Broken?", "Yes.", "[{'q':", ["text_presence"])],
    }  # fmt: skip
    names = ("img_id", "complexity", "question", "answer", "original", "question_class")
    (root / "data").mkdir()
    for split, found in rows.items():
        columns = {name: [row[index] for row in found] for index, name in enumerate(names)}
        columns["image"] = ["https://example.org/a.jpg"] * len(found)
        pq.write_table(pa.table(columns), root / f"data/{split}-00000-of-00001.parquet")
    return root
