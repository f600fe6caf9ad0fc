"""Ask a model about image files: `cogalign predict MODEL IMAGE...`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from cogalign.cognition.report import Report, parse
from cogalign.models.pictures import open_image
from cogalign.recipe import DataSettings, ModelSettings

BATCH = 16
"""Images that are asked about at once."""


@dataclass(frozen=True)
class Answer:
    """What a model said about one image."""

    image: Path
    text: str
    finished: bool
    """False if the answer was cut off at its greatest length."""

    @property
    def report(self) -> Report:
        """The text taken apart; total: any text gives a report."""
        return parse(self.text)


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read image files as RGB, turned as their EXIF data say.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no image, or a damaged one; the message names it.
    """
    images = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image")
        try:
            with open_image(path) as image:
                images.append(ImageOps.exif_transpose(image).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: cannot be read as an image ({error})") from None
    return images


def model_settings(model: str) -> tuple[ModelSettings, Path | None]:
    """What to load for a model's name on the command line.

    Args:
        model: an export or another folder in hub layout, a hub id, `tiny`, or a PEFT adapter's folder.

    Returns:
        The settings of the model and, for an adapter, its folder; its base is the one that it names.

    Raises:
        FileNotFoundError: a folder that holds no model; the message names one below it that does.
        ValueError: an adapter that names no base.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return ModelSettings(name=model), None
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise ValueError(
                f"{adapter}: base_model_name_or_path is missing; export the run and give its export folder"
            )
        return ModelSettings(name=base), folder
    if not (folder / "config.json").is_file():
        names = ("export", "grpo/adapter", "grpo/model", "sft/adapter", "sft/model", "adapter", "model")
        near = next((folder / name for name in names if (folder / name).is_dir()), None)
        hint = f"; did you mean {near}?" if near else ""
        raise FileNotFoundError(f"{model}: found neither config.json nor adapter_config.json{hint}")
    return ModelSettings(name=str(folder.resolve())), None


def predict(
    model: str, paths: Sequence[Path], question: str | None = None, *, max_completion_length: int = 512
) -> Iterator[Answer]:
    """Ask a model about images, one answer each, greedy decoding.

    Args:
        model: see `model_settings`.
        paths: image files; all are opened before the model is loaded, so that a bad one costs no time.
        question: asked of each image; None for the paper's.
        max_completion_length: longest answer in tokens.

    Yields:
        Answers in the order of `paths`.

    Raises:
        FileNotFoundError: an image or the model is missing.
        ValueError: an image cannot be read.
    """
    open_images(paths)
    settings, checkpoint = model_settings(model)
    from cogalign.generation.drafts import Drafts
    from cogalign.generation.hf import generate
    from cogalign.models.load import load_model

    loaded = load_model(settings, checkpoint)
    asked = DataSettings().question if question is None else question
    drafts = Drafts()
    for first in range(0, len(paths), BATCH):
        some = paths[first : first + BATCH]
        completions = generate(
            loaded,
            open_images(some),
            [asked] * len(some),
            max_completion_length=max_completion_length,
            drafts=drafts,
        )
        for path, group in zip(some, completions, strict=True):
            yield Answer(path, group[0].text, group[0].finished)


def show(answer: Answer, as_json: bool = False) -> str:
    """An answer for people, or as one line of JSON with its sections and the ids of its diagnoses."""
    report = answer.report
    if as_json:
        content: dict[str, Any] = {
            "image": str(answer.image),
            "text": answer.text,
            "diagnosis": list(report.diagnosis),
            "unknown": list(report.unknown),
            "missing": list(report.missing),
            "finished": answer.finished,
        }
        return json.dumps(content, ensure_ascii=False)
    cut = "" if answer.finished else "\n[cut off at the greatest length]"
    return f"{answer.image}\n{answer.text.strip()}{cut}\n"
