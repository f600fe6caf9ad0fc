import io
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.fingerprints import FINGERPRINTS, complete_fingerprints, fingerprints_of, write_fingerprints
from cogalign.data.images import fingerprint, load_rgb


def photograph(path: Path, seed: int, size: tuple[int, int] = (60, 48)) -> None:
    """A JPEG that resembles no other: smooth noise."""
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth.clip(0, 1) * 255).astype(np.uint8)).save(path, quality=95)


@pytest.fixture
def case_set(tmp_path: Path) -> CaseSet:
    for number in range(4):
        photograph(tmp_path / f"images/{number}.jpg", number)
    cases = [Case(f"c{n}", f"images/{n}.jpg", ("polyp",), "train") for n in range(4)]
    return CaseSet(tmp_path, cases)


def plain(prints) -> list[tuple]:
    assert all(one.thumbnail.dtype == np.uint8 for one in prints)
    return [(one.digest, one.bits, one.size, one.thumbnail.tobytes()) for one in prints]


def test_stored_fingerprints_are_those_of_the_images(case_set):
    fresh = fingerprints_of(case_set)
    assert (case_set.root / FINGERPRINTS).is_file()
    assert plain(fingerprints_of(case_set)) == plain(fresh)
    for case, found in zip(case_set.cases, fresh, strict=True):
        wanted = fingerprint(np.asarray(load_rgb(case_set.path(case.file_name))))
        assert (found.digest, found.bits, found.size) == (wanted.digest, wanted.bits, wanted.size)
        assert np.abs(found.thumbnail.astype(np.float32) - wanted.thumbnail).max() <= 0.5


def test_what_is_stored_is_not_decoded_again(case_set):
    write_fingerprints(case_set.root, [case.file_name for case in case_set.cases], fingerprints_of(case_set))
    path = case_set.path("images/2.jpg")
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)  # no image any more, but of the same size and time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(fingerprints_of(case_set)) == 4


def test_a_changed_image_is_decoded_again_and_the_file_renewed(case_set):
    before = fingerprints_of(case_set)
    photograph(case_set.path("images/1.jpg"), 99)
    after = fingerprints_of(case_set)
    assert [one.digest == other.digest for one, other in zip(before, after, strict=True)] == [True, False, True, True]
    with np.load(case_set.root / FINGERPRINTS) as arrays:
        assert arrays["digests"][1].tobytes().hex() == after[1].digest


def test_cases_may_share_an_image_and_come_in_any_order(case_set):
    whole = fingerprints_of(case_set)
    some = CaseSet(case_set.root, [case_set.cases[2], case_set.cases[0], case_set.cases[2]])
    assert plain(fingerprints_of(some)) == plain([whole[2], whole[0], whole[2]])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no zip"])
def test_a_broken_file_is_made_anew(case_set, content):
    wanted = plain(fingerprints_of(case_set))
    (case_set.root / FINGERPRINTS).write_bytes(content)
    assert plain(fingerprints_of(case_set)) == wanted


def test_a_broken_file_of_any_kind_is_made_anew(case_set):
    wanted = plain(fingerprints_of(case_set))
    path = case_set.root / FINGERPRINTS
    whole = path.read_bytes()
    with np.load(path) as arrays:
        content = dict(arrays)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "|u1", "fortran_order": False, "shape": (10**13,)})
    encrypted = bytearray(whole)
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for start in (n for n in range(len(whole)) if whole.startswith(mark, n)):
            encrypted[start + place] |= 1
    path.write_bytes(bytes(encrypted))
    assert plain(fingerprints_of(case_set)) == wanted
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("names.npy", huge.getvalue())
    assert plain(fingerprints_of(case_set)) == wanted
    for name, array in (
        ("thumbnails", content["thumbnails"][:2]),
        ("thumbnails", np.full((4, 32, 32), np.nan, np.float32)),
        ("bits", np.array([-1, -2, -3, -4])),
        ("bits", np.array(["a", "b", "c", "d"])),
        ("sizes", np.zeros((4, 3), np.int32)),
        ("times", content["times"].astype(np.float64)),
        ("names", np.frombuffer(b'{"a": 1}', np.uint8)),
    ):
        np.savez(path, **{**content, name: array})
        assert plain(fingerprints_of(case_set)) == wanted
    np.savez_compressed(path, **content)  # we never compress: it could hold far more than memory does
    assert plain(fingerprints_of(case_set)) == wanted
    assert path.read_bytes() == whole


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_stop_a_search(case_set, data):
    wanted = {one.digest for one in fingerprints_of(case_set)}
    path = case_set.root / FINGERPRINTS
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    assert len(fingerprints_of(case_set)) == 4
    path.unlink()
    assert {one.digest for one in fingerprints_of(case_set)} == wanted


def test_forged_entries_are_not_believed_where_fresh_ones_are_wanted(case_set):
    wanted = plain(fingerprints_of(case_set))
    write_fingerprints(case_set.root, [case.file_name for case in case_set.cases], fingerprints_of(case_set)[::-1])
    forged = (case_set.root / FINGERPRINTS).read_bytes()
    assert plain(fingerprints_of(case_set)) == wanted[::-1]
    assert plain(fingerprints_of(case_set, fresh=True)) == wanted
    assert (case_set.root / FINGERPRINTS).read_bytes() == forged


def test_completing_keeps_the_entries_of_unchanged_files(case_set):
    now = fingerprints_of(case_set)
    names = [case.file_name for case in case_set.cases]
    originals = now[::-1]  # stands for prints of larger originals
    write_fingerprints(case_set.root, names[:3], originals[:3])
    photograph(case_set.path(names[1]), 77)
    new = fingerprint(np.asarray(load_rgb(case_set.path(names[1]))))
    complete_fingerprints(case_set.root, dict(zip(names, [now[0], new, *now[2:]], strict=True)))
    digests = [one.digest for one in fingerprints_of(case_set)]
    assert digests == [originals[0].digest, new.digest, originals[2].digest, now[3].digest]


def test_a_link_in_place_of_the_file_is_not_followed(case_set, tmp_path):
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_bytes(b"mine")
    (case_set.root / FINGERPRINTS).symlink_to(elsewhere)
    assert len(fingerprints_of(case_set)) == 4
    assert elsewhere.read_bytes() == b"mine" and not (case_set.root / FINGERPRINTS).is_symlink()


def test_an_unreadable_image_and_too_few_names_are_told(case_set):
    with pytest.raises(ValueError, match="2 names and 4 fingerprints"):
        write_fingerprints(case_set.root, ["a", "b"], fingerprints_of(case_set))
    case_set.path("images/3.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"3\.jpg: not a readable image"):
        fingerprints_of(case_set)


def test_processes_give_what_one_process_gives(tmp_path):
    for number in range(70):
        photograph(tmp_path / f"{number}.jpg", number, size=(24, 20))
    many = CaseSet(tmp_path, [Case(f"c{n}", f"{n}.jpg", ("polyp",), "train") for n in range(70)])
    alone = plain(fingerprints_of(many, workers=1))
    (tmp_path / FINGERPRINTS).unlink()
    assert plain(fingerprints_of(many, workers=2)) == alone
