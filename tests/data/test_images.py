import errno
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data import images
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import decode, eight_bits, fingerprint, image_size, load_mask, load_pixels, load_rgb

GREY = np.linspace(0, 255, 24 * 16).reshape(16, 24).astype(np.uint8)
LESION = np.zeros((16, 24), dtype=bool)
LESION[4:9, 6:15] = True


def saved(folder: Path, image: np.ndarray | Image.Image, name: str = "a.png", **options: object) -> Path:
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = np.asarray(load_rgb(saved(tmp_path, GREY)))
    assert image.shape == (16, 24, 3)
    assert all(np.array_equal(image[..., channel], GREY) for channel in range(3))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    image = np.asarray(load_rgb(saved(tmp_path, GREY.astype(np.uint16) * 257)))
    assert np.array_equal(image[..., 0], GREY)


def test_twelve_and_eight_bits_stored_in_sixteen_are_not_black(tmp_path: Path) -> None:
    twelve = np.round(GREY / 255 * 4095).astype(np.uint16)
    assert np.abs(np.asarray(load_rgb(saved(tmp_path, twelve)))[..., 0].astype(int) - GREY).max() <= 1
    assert np.array_equal(np.asarray(load_rgb(saved(tmp_path, GREY.astype(np.uint16))))[..., 0], GREY)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_colours_keep_order_and_shades(tmp_path: Path, suffix: str) -> None:
    colours = np.dstack((GREY, GREY[::-1], GREY // 2))
    path = tmp_path / f"deep{suffix}"
    assert cv2.imwrite(str(path), np.ascontiguousarray(colours[..., ::-1]).astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(load_rgb(path)), colours)


def test_what_is_transparent_becomes_black_and_what_is_opaque_stays(tmp_path: Path) -> None:
    layered = np.dstack((GREY, GREY, GREY, np.where(LESION, 255, 0).astype(np.uint8)))
    image = np.asarray(load_rgb(saved(tmp_path, layered)))
    assert np.array_equal(image[LESION][:, 0], GREY[LESION]) and not image[~LESION].any()
    layered[..., 3] = 255
    assert np.array_equal(np.asarray(load_rgb(saved(tmp_path, layered)))[..., 1], GREY)


def test_sixteen_bit_alpha_works_as_eight_bit_alpha(tmp_path: Path) -> None:
    alpha = np.where(LESION, 65535, 0).astype(np.uint16)
    deep = GREY.astype(np.uint16) * 257
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), np.dstack((deep, deep, deep, alpha)))
    image = np.asarray(load_rgb(path))
    assert np.array_equal(image[LESION][:, 0], GREY[LESION]) and not image[~LESION].any()


def test_palettes_are_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(LESION.astype(np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = np.asarray(load_rgb(saved(tmp_path, image)))
    assert found[0, 0].tolist() == [10, 20, 30] and found[5, 7].tolist() == [200, 100, 50]


def test_a_file_that_is_cut_off_is_an_error_with_its_name(tmp_path: Path) -> None:
    for name, image in (("a.png", GREY), ("deep.png", GREY.astype(np.uint16) * 257)):
        path = saved(tmp_path, image, name)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match=name):
            load_rgb(path)
        with pytest.raises(ValueError, match=name):
            load_mask(path)


@pytest.mark.parametrize("value", [1, 2, 16, 60, 100, 128, 200, 255])
def test_a_mask_of_any_value_range_is_read(tmp_path: Path, value: int) -> None:
    assert np.array_equal(load_mask(saved(tmp_path, LESION.astype(np.uint8) * np.uint8(value))), LESION)


@pytest.mark.parametrize("value", [1, 255, 4095, 65535])
def test_a_sixteen_bit_mask_is_read(tmp_path: Path, value: int) -> None:
    assert np.array_equal(load_mask(saved(tmp_path, LESION.astype(np.uint16) * np.uint16(value))), LESION)


@pytest.mark.parametrize("value", [1.0, 255.0])
def test_a_mask_of_floats_is_read(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path, Image.fromarray(LESION.astype(np.float32) * np.float32(value)), "a.tiff")
    assert np.array_equal(load_mask(path), LESION)


def test_classes_of_a_label_mask_are_all_lesion(tmp_path: Path) -> None:
    labels = LESION.astype(np.uint8)
    labels[4:9, 12:15] = 3
    assert np.array_equal(load_mask(saved(tmp_path, labels)), LESION)


def test_masks_of_one_bit_three_channels_and_a_colour_are_read(tmp_path: Path) -> None:
    grey = LESION.astype(np.uint8) * np.uint8(255)
    nothing = np.zeros_like(grey)
    for image in (Image.fromarray(LESION), np.dstack([grey] * 3), np.dstack((grey, nothing, nothing)),
                  np.dstack((nothing, nothing, grey))):  # fmt: skip
        assert np.array_equal(load_mask(saved(tmp_path, image)), LESION)


def test_masks_with_an_alpha_channel_are_read_whichever_holds_the_lesion(tmp_path: Path) -> None:
    grey = LESION.astype(np.uint8) * np.uint8(255)
    full, nothing = np.full_like(grey, 255), np.zeros_like(grey)
    for colour, alpha in ((grey, full), (grey, grey), (full, grey), (nothing, grey)):
        assert np.array_equal(load_mask(saved(tmp_path, np.dstack((colour, colour, colour, alpha)))), LESION)


def test_fringes_of_a_jpeg_mask_do_not_count_and_a_dim_jpeg_mask_does_not_vanish(tmp_path: Path) -> None:
    big = np.kron(LESION, np.ones((8, 8), dtype=bool))
    for peak in (255, 80):
        path = saved(tmp_path, big.astype(np.uint8) * np.uint8(peak), "a.jpg", quality=60)
        assert np.array_equal(load_mask(path), big)
    noise = np.random.default_rng(0).integers(0, 9, big.shape).astype(np.uint8)
    assert not load_mask(saved(tmp_path, noise, "a.jpg")).any()


def test_empty_and_full_masks_stay_empty_and_full(tmp_path: Path) -> None:
    assert not load_mask(saved(tmp_path, np.zeros((8, 8), np.uint8))).any()
    assert load_mask(saved(tmp_path, np.full((8, 8), 255, np.uint8))).all()
    assert load_mask(saved(tmp_path, np.ones((8, 8), np.uint8))).all()


def test_a_mask_of_another_size_than_its_image_is_an_error_that_names_both(tmp_path: Path) -> None:
    saved(tmp_path, GREY, "image.png")
    saved(tmp_path, np.zeros((10, 12), np.uint8), "mask.png")
    case = Case("a", "image.png", ("polyp",), "train", mask_file_name="mask.png")
    with pytest.raises(ValueError, match=r"12 x 10 pixels, wanted 24 x 16"):
        CaseSet(tmp_path, [case]).mask(case)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_eight_bits_keeps_the_order_and_the_range(values: list[int]) -> None:
    deep = np.array(values, dtype=np.uint16)
    found = eight_bits(deep)
    assert found.dtype == np.uint8
    order = np.argsort(deep, kind="stable")
    assert np.all(np.diff(found[order].astype(int)) >= 0)
    if deep.max() <= 255:
        assert np.array_equal(found, deep)


@pytest.mark.parametrize("plan", ["contig", "separate"])
def test_colours_that_a_tiff_calls_grey_are_read_as_colours(tmp_path: Path, plan: str) -> None:
    colours = np.dstack((GREY, GREY[::-1], GREY // 2))
    stored = colours if plan == "contig" else np.moveaxis(colours, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=plan)
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "a.tif")), colours)
    assert not decode(tmp_path / "a.tif").plain


def test_a_broken_tiff_is_a_value_error_that_names_the_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([GREY] * 3), photometric="minisblack", planarconfig="contig")
    content = (tmp_path / "a.tif").read_bytes()
    for broken in (content[: len(content) // 2], content[:6], b"II*\0" + bytes(20)):
        (tmp_path / "a.tif").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.tif: not a readable image"):
            load_rgb(tmp_path / "a.tif")


def test_an_image_above_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 16 - 1)
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([GREY] * 3), photometric="minisblack", planarconfig="contig")
    content = saved(tmp_path, np.dstack([GREY] * 3), "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])  # cut off: decoding it would give another error
    for name in ("a.tif", "b.png"):
        for read in (load_rgb, load_mask):
            with pytest.raises(ValueError, match="24 x 16 pixels, which is above the limit of 383 pixels"):
                read(tmp_path / name)


def test_only_what_every_library_reads_alike_is_plain(tmp_path: Path) -> None:
    colours = Image.fromarray(np.dstack([GREY] * 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = [saved(tmp_path, colours, name) for name in ("a.jpg", "b.png", "c.bmp")] + [saved(tmp_path, GREY, "d.png")]
    others = [saved(tmp_path, colours, "e.tif"), saved(tmp_path, colours, "f.jpg", exif=turned.tobytes()),
              saved(tmp_path, GREY.astype(np.uint16) * 257, "g.png"), saved(tmp_path, colours.convert("RGBA"), "h.png")]  # fmt: skip
    assert [decode(path).plain for path in (*plain, *others)] == [True] * 4 + [False] * 4


def test_a_coloured_jpeg_mask_is_not_read_by_its_brightness(tmp_path: Path) -> None:
    big = np.kron(LESION, np.ones((8, 8), dtype=bool))
    colours = np.dstack([np.zeros(big.shape, np.uint8), np.zeros(big.shape, np.uint8), big.astype(np.uint8) * 255])
    path = saved(tmp_path, colours, "blue.jpg", quality=95, subsampling=0)
    assert (load_mask(path) ^ big).mean() < 0.01  # blue alone has a brightness of 29


def test_a_grey_jpeg_mask_of_three_channels_is_read_as_the_general_way_reads_it(tmp_path: Path) -> None:
    big = np.kron(LESION, np.ones((9, 7), dtype=bool)).astype(np.uint8) * np.uint8(255)
    path = saved(tmp_path, np.dstack([big] * 3), "a.jpg", quality=70)
    assert np.array_equal(load_mask(path), np.asarray(load_rgb(path).convert("L")) > 127)


@settings(max_examples=15, deadline=None)
@given(st.integers(256, 900), st.integers(256, 900), st.integers(0, 99))
def test_the_thumbnail_is_the_area_mean_of_the_image(width: int, height: int, seed: int) -> None:
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    image = (cv2.resize(noise, (width, height)) * 255).astype(np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    whole = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    difference = np.abs(fingerprint(image).thumbnail - whole)
    assert difference.mean() < 1.0 and difference.max() < 8.0  # edges of up to one in 128 pixels are left out


def test_pixels_are_those_of_the_image_whatever_decodes_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (37, 45, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    options = ({"quality": 90}, {"quality": 60, "progressive": True}, {"subsampling": 0}, {"exif": turned.tobytes()})
    paths = [saved(tmp_path, noise, f"{n}.jpg", **more) for n, more in enumerate(options)]
    paths += [saved(tmp_path, GREY, "grey.jpg"), saved(tmp_path, Image.fromarray(noise).convert("CMYK"), "cmyk.jpg")]
    paths += [saved(tmp_path, noise, "a.png")]
    for path in paths:
        image, plain = load_pixels(path)
        assert np.array_equal(image, np.asarray(load_rgb(path))) and plain == decode(path).plain, path.name


def test_pixels_of_a_cut_jpeg_are_refused_and_trailing_bytes_are_not(tmp_path: Path) -> None:
    path = saved(tmp_path, np.random.default_rng(4).integers(0, 255, (64, 64, 3), dtype=np.uint8), "a.jpg")
    content = path.read_bytes()
    for end in (len(content) // 2, len(content) * 9 // 10, 3):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"a\.jpg: not a readable image"):
            load_pixels(path)
    path.write_bytes(content + bytes(9))
    assert load_pixels(path)[0].shape == (64, 64, 3)


def test_a_postscript_file_is_not_opened_whatever_it_is_called(tmp_path: Path) -> None:
    saved(tmp_path, np.dstack([GREY] * 3), "a.eps").rename(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"%!PS")
    for read in (load_rgb, load_mask, load_pixels):
        with pytest.raises(ValueError, match=r"a\.png: not a readable image \(cannot identify the format\)"):
            read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="cannot identify"):
        image_size(tmp_path / "a.png")


def test_every_reader_opens_images_by_their_formats() -> None:
    package = Path(images.__file__).parents[1]
    found = {path.name for path in package.rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")}
    assert found == {"pictures.py"}


def test_all_formats_are_known_to_pillow(tmp_path: Path) -> None:
    Image.init()
    assert set(images.FORMATS) <= set(Image.OPEN)
    for name in ("a.gif", "a.webp", "a.jp2", "a.tif", "a.ppm", "a.bmp"):
        assert np.abs(np.asarray(load_rgb(saved(tmp_path, GREY, name)))[..., 0].astype(int) - GREY).mean() < 8


def test_what_the_disk_does_not_give_is_told_apart_from_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, GREY)

    def failing(source: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(images, "open_image", failing)
        for read in (load_rgb, load_mask, load_pixels):
            with pytest.raises(images.Unreadable, match=r"a\.png: cannot be read now \(Input/output error\)"):
                read(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="not a readable image") as raised:
        load_rgb(path)
    assert not isinstance(raised.value, images.Unreadable)


def test_a_tiff_of_many_samples_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    many = np.zeros((16, 24, 80), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", many, photometric="minisblack", planarconfig="contig")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])  # decoding it would give another error
    with pytest.raises(ValueError, match="found 80 samples a pixel, wanted 1, 3 or 4"):
        load_rgb(tmp_path / "a.tif")


def test_a_tiff_of_many_layers_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    deep = np.zeros((32, 16, 32, 1), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    with pytest.raises(ValueError, match="wanted one layer of at most 8 bytes a pixel"):
        images._from_tiff(tmp_path / "a.tif")
