"""Miniature trees of the data sets with masks and boxes: built to each card's layout, oddities included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.importers.trees import (
    LESION,
    SIZE,
    crohnipi,
    drawn,
    gastrovision,
    hyperkvasir,
    kvasir_boxes,
    kvasir_capsule,
    kvasir_v2,
    kvasir_vqa,
    kvasir_vqa_x1,
    limuc,
    odd_tiff,
    photograph,
    pixels,
    write,
    write_mask,
)

OTHER = (40, 20, 50, 30)
"""A second lesion."""
VOC = " ".join(map(str, LESION))


def kvasir_seg(root: Path) -> Path:
    """JPEG masks with fringes, the misspelt box file, two boxes in an image, the authors' split, one empty mask."""
    folder = root / "Kvasir-SEG"
    for number in range(5):
        photograph(folder / f"images/cju{number}.jpg", number)
        write_mask(
            folder / f"masks/cju{number}.jpg", drawn(None if number == 4 else LESION) | (drawn(OTHER) & (number == 1))
        )
    entries = {f"cju{n}": kvasir_boxes(LESION, *([OTHER] if n == 1 else [])) for n in range(5)}
    write(folder / "kavsir_bboxes.json", json.dumps(entries))
    write(folder / "Data-split/train.txt", "cju0", "cju1.jpg")
    write(folder / "Data-split/val.txt", "cju2")
    return root


def hyperkvasir_segmented(root: Path) -> Path:
    """The segmented images inside a HyperKvasir folder with labelled images beside, which must not be read."""
    hyperkvasir(root)
    return root


def see_ai(root: Path) -> Path:
    """Folders that repeat their name; several boxes and types, an empty text file, an image without one."""
    images = root / "SEE_AI_project_all_images/SEE_AI_project_all_images"
    texts = root / "SEE_AI_project_all_txt/SEE_AI_project_all_txt"
    for number in range(1, 5):
        photograph(images / f"image{number:05}.jpg", number)
    # class, centre, width, height, as shares of 60 x 48 pixels: LESION and OTHER
    write(texts / "image00001.txt", "1 0.333333 0.416667 0.333333 0.333333", "9 0.750000 0.520833 0.166667 0.208333")
    write(texts / "image00002.txt", "11 0.333333 0.416667 0.333333 0.333333")
    (texts / "image00003.txt").write_text("")
    write(root / "all_annotation.csv", ",,angiodysplasia,erosion", ",,0,1")
    return root


def cvc_clinicdb(root: Path) -> Path:
    """The original: native TIFFs which Pillow cannot open. Frames 25 and 26 are of two sequences."""
    for number in (1, 25, 26, 612):
        odd_tiff(root / f"CVC-ClinicDB/Original/{number}.tif", pixels(number))
        write_mask(root / f"CVC-ClinicDB/Ground Truth/{number}.tif", drawn())
    write(root / "CVC-ClinicDB/README.txt", "|      1 to  25    |  1 |")
    return root


def cvc_clinicdb_png(root: Path) -> Path:
    """The copy with PNG and TIF beside each other: every frame once."""
    for number in (1, 25, 26, 612):
        photograph(root / f"PNG/Original/{number}.png", number)
        write_mask(root / f"PNG/Ground Truth/{number}.png", drawn())
        odd_tiff(root / f"TIF/Original/{number}.tif", pixels(number))
        write_mask(root / f"TIF/Ground Truth/{number}.tif", drawn())
    write(root / "metadata.csv", "frame_id,sequence_id,png_image_path", "1,1,PNG/Original/1.png")
    return root


def pranet(root: Path) -> Path:
    """The PraNet pack: Kvasir and ClinicDB together in the training folder, test sets by name."""
    for stem in ("1", "26", "cju0"):
        photograph(root / f"TrainDataset/image/{stem}.png", 1 + len(stem))
        write_mask(root / f"TrainDataset/mask/{stem}.png", drawn())
    places = {"CVC-ClinicDB": ("25",), "CVC-ColonDB": ("1", "380"), "ETIS-LaribPolypDB": ("7",), "Kvasir": ("cju9",)}
    for name, stems in places.items():
        for seed, stem in enumerate(stems):
            photograph(root / f"TestDataset/{name}/images/{stem}.png", 50 + seed + len(name))
            write_mask(root / f"TestDataset/{name}/masks/{stem}.png", drawn())
    return root


def etis_larib(root: Path) -> Path:
    """The original: the mask of 7.tif is p7.tif."""
    for number in (7, 8):
        odd_tiff(root / f"ETIS-LaribPolypDB/{number}.tif", pixels(number))
        write_mask(root / f"Ground Truth/p{number}.tif", drawn())
    return root


def polypgen(root: Path) -> Path:
    """Box names that differ by centre, a missing box, a name that ends in an underscore, overlays, stray texts."""
    top = root / "PolypGen2021_MultiCenterData_v3"
    for seed, (center, stem) in enumerate(((1, "100H0001"), (2, "C2_01"), (3, "C3_EndoCV2021_00488"),
                                           (3, "C3_EndoCV2021_00489_"), (6, "C6_empty"), (6, "C6_100H0050"))):  # fmt: skip
        folder = top / f"data_C{center}"
        photograph(folder / f"images_C{center}/{stem}.jpg", seed)
        empty = stem == "C6_empty"
        write_mask(folder / f"masks_C{center}/{stem.rstrip('_')}_mask.jpg", drawn(None if empty else LESION))
        if center in (1, 2) or stem == "C6_100H0050":
            write(folder / f"bbox_C{center}/{stem}{'' if center == 2 else '_mask'}.txt", f"polyp {VOC}")
    photograph(top / "data_C6/bbox_images_C6/C6_100H0050_bbox.jpg", 90)
    photograph(top / "data_C1/images_C1/957OLCV1_100H0002_mask_bbox.jpg", 91)
    photograph(top / "imagesAll_positive/100H0001.jpg", 0)
    positive = top / "sequenceData/positive/seq2"
    for number in (1, 2):
        photograph(positive / f"images_seq2/frame{number}.jpg", 20 + number)
        write_mask(positive / f"masks_seq2/frame{number}_mask.jpg", drawn())
        write(positive / f"masks_seq2/frame{number}_mask.txt", "stray")
    write(positive / "bbox_seq2/frame1_mask.txt", f"polyp {VOC}", "polyp " + " ".join(map(str, OTHER)))
    photograph(top / "sequenceData/negativeOnly/seq2_neg/frame1.jpg", 30)
    return root


def bkai_neopolyp(root: Path) -> Path:
    """Coloured JPEG masks: red, green, both, none; test images without masks; folders that repeat their name."""
    red, green = drawn(LESION), drawn(OTHER)
    kinds = {"a1": (red, None), "b2": (None, green), "c3": (red, green), "d4": (None, None)}
    for seed, (stem, (first, second)) in enumerate(kinds.items()):
        photograph(root / f"train/train/{stem}.jpeg", seed)
        image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        for mask, colour in ((first, (255, 0, 0)), (second, (0, 255, 0))):
            if mask is not None:
                image[mask] = colour
        path = root / f"train_gt/train_gt/{stem}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    photograph(root / "test/test/e5.jpeg", 50)
    return root


def edd2020(root: Path) -> Path:
    """Several masks an image, classes without a finding, boxes with a class at the end."""
    top = root / "EDD2020_release-I_2020-01-15"
    masks = {"EDD2020_A1": {"BE": LESION, "suspicious": OTHER}, "EDD2020_A2": {"polyp": LESION},
             "EDD2020_A3": {"HGD": LESION}, "EDD2020_A4": {"BE": LESION, "cancer": OTHER}}  # fmt: skip
    for seed, (stem, classes) in enumerate(masks.items()):
        photograph(top / f"originalImages/{stem}.jpg", seed)
        for name, box in classes.items():
            write_mask(top / f"masks/{stem}_{name}.tif", drawn(box))
        write(top / f"bbox/{stem}.txt", *(f"{' '.join(map(str, box))} {name}" for name, box in classes.items()))
    write(top / "class_list.txt", "BE", "suspicious", "HGD", "cancer", "polyp")
    return root


def sun_seg(root: Path) -> Path:
    """Clips of cases, seen and unseen tests, the nearly-COCO box files, pathology by frame."""
    places = [("TrainDataset", 1, 1, "fa"), ("TestEasyDataset/Seen", 1, 3, "fb"), ("TestEasyDataset/Unseen", 2, 1, "fc"),
              ("TestHardDataset/Unseen", 3, 1, "fd")]  # fmt: skip
    for seed, (subset, case, clip, stem) in enumerate(places):
        folder = root / "SUN-SEG" / subset
        photograph(folder / f"Frame/case{case}_{clip}/{stem}.jpg", seed)
        write_mask(folder / f"GT/case{case}_{clip}/{stem}.png", drawn())
        write_mask(folder / f"Edge/case{case}_{clip}/{stem}.png", drawn(OTHER))
        image = {"id": f"case{case}_{clip}-{stem}", "width": SIZE[0], "height": SIZE[1],
                 "case_name": f"case{case}_{clip}", "file_name": stem}  # fmt: skip
        sides = [LESION[0], LESION[1], LESION[2] - LESION[0], LESION[3] - LESION[1]]
        content = {"info": {}, "images": [image], "annotation": [{"id": image["id"], "bbox": sides}]}
        write(folder / "Detection/bbox_annotation.json", json.dumps(content))
        pathology = "invasive_carcinoma" if case == 2 else "low_grade_adenoma"
        write(folder / "Classification/classification.txt", f"{stem}.jpg\t{pathology}")
    return root


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "bkai-neopolyp": bkai_neopolyp,
    "crohnipi": crohnipi,
    "cvc-clinicdb": cvc_clinicdb,
    "cvc-colondb": pranet,
    "edd2020": edd2020,
    "etis-larib": etis_larib,
    "gastrovision": gastrovision,
    "hyperkvasir": hyperkvasir,
    "hyperkvasir-segmented": hyperkvasir_segmented,
    "kvasir-capsule": kvasir_capsule,
    "kvasir-seg": kvasir_seg,
    "kvasir-v2": kvasir_v2,
    "kvasir-vqa": kvasir_vqa,
    "kvasir-vqa-x1": kvasir_vqa_x1,
    "limuc": limuc,
    "polypgen": polypgen,
    "see-ai": see_ai,
    "sun-seg": sun_seg,
}
"""The builder of every card's miniature tree, by card id."""
