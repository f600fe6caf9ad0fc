import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

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


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image.paste((255, 0, 0), (0, 0, 9, 9)),
        lambda image: image.putpixel((1, 1), (255, 0, 0)),
        lambda image: image.putdata([(9, 8, 7)] * (image.width * image.height)),
        lambda image: image.putalpha(7),
        lambda image: image.frombytes(bytes(3 * image.width * image.height)),
        lambda image: image.thumbnail((16, 16)),
        lambda image: ImageDraw.Draw(image).rectangle((1, 1, 20, 20), fill=(0, 255, 0)),
    ],
    ids=["paste", "putpixel", "putdata", "putalpha", "frombytes", "thumbnail", "draw"],
)
def test_an_image_that_was_changed_is_not_that_of_the_file_any_more(
    case_set: CaseSet, edit: Callable[[Image.Image], object]
) -> None:
    image, real = lazy_image(case_set, case_set.cases[0]), case_set.image(case_set.cases[0])
    edit(image)
    edit(real)
    assert image.cache_key is None
    assert (image.mode, image.size, image.tobytes()) == (real.mode, real.size, real.tobytes())
    assert pickle.loads(pickle.dumps(image)).tobytes() == real.tobytes()


def test_single_pixels_cannot_be_written_past_the_key(case_set: CaseSet) -> None:
    def write(image: Image.Image) -> None:
        pixels = image.load()
        assert pixels is not None
        pixels[0, 0] = (1, 2, 3)

    image = lazy_image(case_set, case_set.cases[0])
    before = image.tobytes()
    with pytest.raises(ValueError, match="readonly"):
        write(image)
    assert image.cache_key is not None and image.tobytes() == before
    own = image.copy()
    write(own)
    assert own.getpixel((0, 0)) == (1, 2, 3)
