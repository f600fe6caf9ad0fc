import cv2
import numpy as np

from cogalign.counterfactual.fills import FILLS
from cogalign.counterfactual.fills.membrane import membrane
from cogalign.counterfactual.masks import feathered_alpha

TEXTURE, SMOOTH = FILLS["texture"], FILLS["surround_blur"]


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def disc(y: int, x: int, radius: int, size: int = 160) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def mucosa(size: int = 160) -> np.ndarray:
    """Shading from left to right, grain of about 6 grey levels and the colour of mucosa."""
    grain = cv2.GaussianBlur(rng(1).standard_normal((size, size, 1)).astype(np.float32), (0, 0), 1.0)
    grain = grain[..., None] / grain.std() * 6
    shading = np.linspace(-30, 30, size)[None, :, None]
    return np.clip(np.array((190.0, 110.0, 95.0)) + shading + grain, 0, 255).astype(np.uint8)


def fine(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float32).mean(axis=-1)
    return grey - cv2.GaussianBlur(grey, (0, 0), 3)


def with_lesion(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[mask] = (120, 20, 30)
    return image


def test_grain_inside_is_as_strong_as_around_and_shading_goes_on() -> None:
    clean, mask = mucosa(), disc(80, 80, 24)
    image = with_lesion(clean, mask)
    alpha = feathered_alpha(mask, 3, 3)
    made, smooth = TEXTURE(image, alpha, 12.0, None, rng()), SMOOTH(image, alpha, 12.0, None, rng())
    inside = alpha == 1
    truth = fine(clean)[inside].std()
    assert 0.75 < fine(made)[inside].std() / truth < 1.3
    assert fine(smooth)[inside].std() < 0.2 * truth
    coarse = [cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 8) for picture in (made, clean)]
    assert np.abs(coarse[0] - coarse[1])[inside].mean() < 4


def test_detail_is_copied_from_the_image_itself() -> None:
    """Vertical stripes: what is copied must run on in the same direction, in step with the surroundings."""
    size = 160
    stripes = np.where((np.arange(size) // 8) % 2 == 0, 20, -20)[None, :, None]
    clean = np.broadcast_to(np.array((180, 110, 95)) + stripes, (size, size, 3)).astype(np.uint8)
    mask = disc(80, 80, 20)
    made = TEXTURE(with_lesion(clean, mask), feathered_alpha(mask, 2, 2), 10.0, None, rng())
    inside = disc(80, 80, 16)
    correlation = np.corrcoef(made[inside].mean(axis=-1), clean[inside].mean(axis=-1))[0, 1]
    assert correlation > 0.8


def test_a_strange_patch_is_not_copied() -> None:
    clean, mask = mucosa(), disc(80, 110, 18)
    image = with_lesion(clean, mask)
    image[20:140, 30:34] = 255  # an instrument
    made = TEXTURE(image, feathered_alpha(mask, 2, 2), 9.0, None, rng())
    assert made[mask].min(axis=-1).max() < 190


def test_with_little_mucosa_grain_takes_the_place_of_patches() -> None:
    clean, mask = mucosa(), disc(80, 80, 40)
    hidden = ~disc(80, 80, 48)
    alpha = feathered_alpha(mask, 3, 3)
    made = TEXTURE(with_lesion(clean, mask), alpha, 20.0, hidden, rng())
    inside = disc(80, 80, 36)
    assert 0.4 < fine(made)[inside].std() / fine(clean)[inside].std() < 2.0
    assert not np.array_equal(made, TEXTURE(with_lesion(clean, mask), alpha, 20.0, hidden, rng(6)))


def test_dark_lumen_beside_the_lesion_is_not_continued() -> None:
    image, mask = mucosa(), disc(80, 60, 18)
    image[:, 86:] = (30, 15, 12)
    made = TEXTURE(image, feathered_alpha(mask, 2, 2), 9.0, None, rng())
    assert made[mask][:, 0].min() > 110


def test_membrane_continues_a_linear_ramp_and_stays_within_what_is_known() -> None:
    ramp = np.broadcast_to(np.linspace(40, 200, 90, dtype=np.float32)[None, :, None], (90, 90, 3))
    known = ~disc(45, 45, 25, 90)
    made = membrane(np.where(known[..., None], ramp, 0).astype(np.float32), known)
    assert np.abs(made - ramp)[~known].max() < 5
    noisy = rng().uniform(50, 90, (90, 90, 3)).astype(np.float32)
    made = membrane(noisy, known)
    assert made[~known].min() >= 50 and made[~known].max() <= 90
