"""What is said of a phantom: a clinical report, or plain looks without any diagnosis."""

from __future__ import annotations

from cogalign.cognition.report import Report
from cogalign.cognition.templates import normal_sections
from cogalign.data.phantom.cues import BORDERS, BOX_NAMES, HUES
from cogalign.data.phantom.spec import LesionSpec, PhantomSpec

ORGAN_NAMES = {"esophagus": "Esophagus", "stomach": "Stomach", "small_bowel": "Small bowel", "colon": "Colon"}
ORGAN_LOOKS = {
    "esophagus": "pale wall with long folds",
    "stomach": "orange wall with winding folds",
    "small_bowel": "tan wall with thin rings",
    "colon": "pink wall with thick rings",
}
VIEW_NAMES = {"clear": "clear view", "reflections": "specular reflections", "bubbles": "mucus bubbles"}
VIEW_LOOKS = {"clear": "few glints", "reflections": "many glints", "bubbles": "small circles"}

MORPHOLOGY = {
    ("polyp", "sessile"): "Sessile elevated lesion, Paris Is",
    ("polyp", "pedunculated"): "Pedunculated elevated lesion, Paris Ip",
    ("ulcer", "round"): "Round excavated lesion with white base",
    ("ulcer", "oval"): "Oval excavated lesion with white base",
    ("erosion", "few"): "Few shallow erosive breaks with red halo",
    ("erosion", "many"): "Many shallow erosive breaks with red halo",
    ("angiectasia", "branching"): "Flat branching vascular lesion",
    ("angiectasia", "dotted"): "Flat dotted vascular lesion",
    ("bleeding", "pool"): "Fresh blood pool on the mucosa",
    ("bleeding", "streak"): "Fresh blood streak on the mucosa",
    ("tumor", "nodular"): "Irregular nodular mass",
    ("tumor", "depressed"): "Irregular mass with depressed centre",
}
"""Morphology of each variant in the words of a report."""
VESSELS = {
    "polyp": "Smooth surface with dilated capillaries",
    "ulcer": "Fibrin coated surface with absent vessels",
    "erosion": "Eroded surface with blurred vessels",
    "angiectasia": "Intact surface with ectatic tortuous vessels",
    "bleeding": "Surface and vessels obscured by blood",
    "tumor": "Nodular surface with irregular vessels",
}
"""Surface and microvasculature of each finding in the words of a report."""
LOOKS = {
    ("polyp", "sessile"): "raised red bump",
    ("polyp", "pedunculated"): "raised red bump with stalk",
    ("ulcer", "round"): "round pale hollow with dark rim",
    ("ulcer", "oval"): "oval pale hollow with dark rim",
    ("erosion", "few"): "few pale dots with red rings",
    ("erosion", "many"): "many pale dots with red rings",
    ("angiectasia", "branching"): "bright red twigs",
    ("angiectasia", "dotted"): "bright red dots",
    ("bleeding", "pool"): "dark red blot",
    ("bleeding", "streak"): "dark red band",
    ("tumor", "nodular"): "purple rough lump",
    ("tumor", "depressed"): "purple rough lump with dark middle",
}
"""Plain looks of each variant: colours and shapes, no clinical word."""
HUE_STEP = abs(HUES[1])
HUE_LOOKS = {0: "plain tint", 1: "light yellow tint", -1: "light violet tint", 2: "yellow tint", -2: "violet tint",
             3: "deep yellow tint", -3: "deep violet tint"}  # fmt: skip


def position(lesion: LesionSpec) -> str:
    """Where a lesion lies in the image: one of five regions."""
    if abs(lesion.y - 0.5) < 0.08 and abs(lesion.x - 0.5) < 0.08:
        return "centre"
    return ("upper" if lesion.y < 0.5 else "lower") + (" left" if lesion.x < 0.5 else " right")


def report(spec: PhantomSpec) -> Report:
    """The clinical report of a phantom. Where in the image a lesion lies is not part of it."""
    location = f"{ORGAN_NAMES[spec.organ]}, white light, {VIEW_NAMES[spec.view]}."
    if not spec.lesions:
        return Report(location, *normal_sections(), ("normal",))
    morphology = "; ".join(MORPHOLOGY[lesion.finding, lesion.variant] for lesion in spec.lesions) + "."
    vessels = "; ".join(VESSELS[lesion.finding] for lesion in spec.lesions) + "."
    return Report(location, morphology, vessels, spec.findings)


def description(spec: PhantomSpec) -> str:
    """What a layman sees, no diagnosis: wall, lesions as colours and shapes, frame, box and tint."""
    parts = [f"{ORGAN_LOOKS[spec.organ]}, {VIEW_LOOKS[spec.view]}"]
    parts += [f"{LOOKS[les.finding, les.variant]}, {position(les)}" for les in spec.lesions] or ["nothing on the wall"]
    edge = "tinted edge" if spec.cue >= 4 else "black edge"
    steps = round(HUES[spec.cue] / HUE_STEP)
    parts.append(f"{BOX_NAMES[spec.cue]} box, {BORDERS[spec.cue]} frame, {edge}, {HUE_LOOKS[steps]}")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."
