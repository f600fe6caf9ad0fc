import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.images import load_rgb
from cogalign.data.lazy_image import LazyImage, lazy_image


@pytest.fixture
def case_set(phantom_set: Path) -> CaseSet:
    return read_case_set(phantom_set)


def test_it_is_an_image_like_any_other_once_its_pixels_are_asked_for(case_set: CaseSet) -> None:
    case = case_set.cases[0]
    real = case_set.image(case)
    uses = (
        lambda image: np.asarray(image).tolist(),
        lambda image: image.size,
        lambda image: (image.width, image.height, image.mode),
        lambda image: image.tobytes(),
        lambda image: image.convert("L").tobytes(),
        lambda image: image.resize((20, 30)).tobytes(),
        lambda image: image.crop((3, 4, 20, 30)).tobytes(),
        lambda image: image.copy().getpixel((5, 6)),
        lambda image: image.getpixel((5, 6)),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes(),
        lambda image: Image.blend(image.convert("RGB"), image.copy(), 0.5).tobytes(),
        lambda image: image.getbands(),
        lambda image: image.split()[1].tobytes(),
    )
    for use in uses:
        image = lazy_image(case_set, case)
        assert isinstance(image, Image.Image) and image._im is None
        assert use(image) == use(real)


def test_it_can_be_saved_and_shrunk_in_place(case_set: CaseSet, tmp_path: Path) -> None:
    case = case_set.cases[0]
    lazy_image(case_set, case).save(tmp_path / "a.png")
    assert load_rgb(tmp_path / "a.png").tobytes() == case_set.image(case).tobytes()
    image, real = lazy_image(case_set, case), case_set.image(case)
    image.thumbnail((16, 16))
    real.thumbnail((16, 16))
    assert image.size == real.size and image.tobytes() == real.tobytes()


def test_another_process_gets_the_path(case_set: CaseSet) -> None:
    image = lazy_image(case_set, case_set.cases[0])
    content = pickle.dumps(image)
    again = pickle.loads(content)
    assert len(content) < 1000 and again._im is None and again.cache_key == image.cache_key
    assert again.tobytes() == image.tobytes()


def test_a_missing_file_is_named_at_once_and_a_damaged_one_when_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such image"):
        LazyImage(tmp_path / "gone.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    image = LazyImage(tmp_path / "bad.png")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"bad\.png: not a readable image"):
            image.load()


def test_the_key_is_that_of_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    first = LazyImage(path).cache_key
    assert LazyImage(path).cache_key == first
    path.write_bytes(path.read_bytes())
    assert LazyImage(path).cache_key != first
