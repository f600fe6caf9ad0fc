"""Export: the adapter merged, everything written in hub layout, then opened by plain transformers and compared."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogalign.model_card import render_card
from cogalign.models.load import load_model, resolve_name
from cogalign.models.patches import embed_patches_by_convolution
from cogalign.models.whole_parts import as_base, trained_whole
from cogalign.recipe import ModelSettings
from cogalign.training.atomic import readable
from cogalign.training.context import StageContext

RELOAD_TIMEOUT = 3600
"""Seconds that the fresh process may take (a model of 8 B from a slow disk takes minutes)."""


@dataclass(frozen=True)
class Difference:
    """The reloaded export against the model in memory, over all logits of the fixed prompt."""

    max_abs_difference: float
    mean_abs_difference: float
    same_argmax: bool


def run(context: StageContext) -> dict[str, Any]:
    """Export the run's model `export.model` to `context.folder / "model"`.

    The folder gets its name only after a fresh process, which never imports cogalign, has opened it with
    `AutoModelForImageTextToText` and `AutoProcessor` and found the logits of the model in memory on a fixed image and
    prompt, the same inputs from the processor, and the weights' names of the base model.

    Returns:
        `max_abs_difference`, `mean_abs_difference`, `same_argmax`, `parameters`, `bytes`.

    Raises:
        FileNotFoundError: the stage that makes the model has not run.
        ValueError: the reloaded model differs by more than `export.tolerance`, or names of weights differ.
        RuntimeError: the fresh process failed; its last lines are in the message.
    """
    settings = context.recipe.export
    loaded = load_model(context.recipe.model, context.checkpoint(settings.model))
    embed_patches_by_convolution(loaded.model)  # in a short type the product rounds otherwise than who reloads it
    base_keys = file_keys(base_folder(context.recipe.model))
    model = merged(loaded.model, settings.dtype)
    set_generation_defaults(model, loaded.processor.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with _final_name(context.folder / "model") as folder:
        model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        check_keys(model, folder, base_keys)
        difference = compare_reloaded(model, loaded.processor, folder, context.recipe.data.question)
        if not difference.max_abs_difference <= settings.tolerance:  # also true of NaN
            raise ValueError(
                f"export.tolerance: the reloaded export differs by up to {difference.max_abs_difference:.3g} in a logit "
                f"(mean {difference.mean_abs_difference:.3g}), wanted at most {settings.tolerance:.3g}; nothing was "
                f"exported"
            )
        check = asdict(difference)
        (folder / "README.md").write_text(render_card(context, check, parameters, _dtype_name(model)), encoding="utf-8")
        recipe = asdict(context.recipe) | {"out": None}  # where the run lay on this machine is nobody's business
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {**check, "parameters": parameters, "bytes": size}


def merged(model: Any, dtype: str = "auto") -> Any:
    """The model with its PEFT adapter, if it has one, merged into the weights; all of type `dtype`, in eval mode.

    Weights that become wider do so before the adapter is added, so that no sum is rounded to the shorter type. A trained
    projector, which is float32 in memory, gets the type of all others.

    Raises:
        ValueError: the adapter's weights are not finite (PEFT's safe merge).
    """
    if isinstance(model, PeftModel):
        own = model.get_base_model().get_input_embeddings().weight.dtype
        wanted = own if dtype == "auto" else getattr(torch, dtype)
        if wanted.itemsize > own.itemsize:
            cast_weights(model, wanted)
        parts = trained_whole(model)
        model = model.merge_and_unload(safe_merge=True)
        as_base(parts, wanted)
    if dtype != "auto":
        cast_weights(model, getattr(torch, dtype))
    return model.eval()


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Bring all weights, and what else is saved with them (statistics of batch norms), to one type, in place.

    Not `model.to`: it would round the rotary frequencies too, which are not saved and which a fresh load computes in
    float32.
    """
    for part in model.modules():
        saved = [values for name, values in part._buffers.items() if name not in part._non_persistent_buffers_set]
        for values in (*part._parameters.values(), *saved):
            if values is not None and values.is_floating_point():
                values.data = values.data.to(dtype)


def set_generation_defaults(model: Any, tokenizer: Any) -> None:
    """End-of-turn and padding ids of the tokenizer first, the model's other end ids after them; cache switched on."""
    generation = model.generation_config
    before = generation.eos_token_id
    others = before if isinstance(before, list) else [before]
    ends = dict.fromkeys(token for token in (tokenizer.eos_token_id, *others) if token is not None)
    generation.eos_token_id = next(iter(ends)) if len(ends) == 1 else list(ends)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.use_cache = True
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = True  # training switches it off for gradient checkpointing


def base_folder(settings: ModelSettings) -> Path | None:
    """Folder with the base model's files: the package's, one on disk, or one in the hub's local cache; else None."""
    if settings.name == "tiny-random":
        return None
    name = resolve_name(settings.name)
    if Path(name).is_dir():
        return Path(name)
    for file_name in ("model.safetensors", "model.safetensors.index.json"):
        found = try_to_load_from_cache(name, file_name, revision=settings.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def file_keys(folder: Path | None) -> set[str] | None:
    """Names of the weights in a folder's safetensors files; None where there are none."""
    keys: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        with safe_open(path, "pt") as file:
            keys |= set(file.keys())
    return keys or None


def check_keys(model: Any, folder: Path, base_keys: set[str] | None) -> None:
    """Compare the names of the exported weights with those of the base model's files.

    Servers find weights by name, so a prefix that changed in merging would make an export that only we can open. Tied
    weights may be written or not.

    Args:
        model: The merged model.
        folder: The export.
        base_keys: Names in the base model's files; None when they are not on this disk.

    Raises:
        ValueError: names differ; the message has the first of them.
    """
    exported = file_keys(folder) or set()
    wanted = base_keys if base_keys is not None else set(model.state_dict())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing, extra = sorted(wanted - exported - tied), sorted(exported - wanted - tied)
    if missing or extra:
        raise ValueError(
            f"export: names of weights differ from the base model's: {len(missing)} missing (first: "
            f"{(missing or ['none'])[0]}), {len(extra)} unknown (first: {(extra or ['none'])[0]}); nothing was exported"
        )


def compare_reloaded(model: Any, processor: Any, folder: Path, question: str) -> Difference:
    """Logits of `model` and of the export in `folder`, opened in a fresh process, on a fixed image and `question`.

    Raises:
        ValueError: the exported processor makes other inputs than the one in memory.
        RuntimeError: the fresh process failed.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pixels = fixed_image()
    inputs = processor(text=[prompt], images=[Image.fromarray(pixels)], return_tensors="pt").to(model.device)
    with torch.no_grad():
        logits = model(**inputs).logits.float().cpu()
    reloaded = _reload(model, folder, {"pixels": torch.from_numpy(pixels)}, question)
    for name, value in inputs.items():
        if not torch.equal(reloaded.pop(f"inputs.{name}", torch.empty(0)), value.cpu()):
            raise ValueError(f"export: the reloaded processor gives another {name!r} for the fixed image and prompt")
    return difference_of(logits, reloaded["logits"])


def difference_of(logits: Tensor, other: Tensor) -> Difference:
    """Differences of two tensors of logits, [..., vocabulary].

    Raises:
        ValueError: their shapes differ.
    """
    if logits.shape != other.shape:
        raise ValueError(f"export: the reloaded logits have the shape {list(other.shape)}, not {list(logits.shape)}")
    distance = (logits.double() - other.double()).abs()
    same = torch.equal(logits.argmax(dim=-1), other.argmax(dim=-1))
    return Difference(distance.max().item(), distance.mean().item(), same)


def fixed_image(height: int = 96, width: int = 128) -> np.ndarray:
    """A picture of colour ramps and a disc, uint8 [height, width, 3]: the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x * y) % 256], axis=-1)
    picture[(x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 5) ** 2] = (220, 80, 60)
    return picture.astype(np.uint8)


def reload_and_run(folder: str, given: str, result: str, device: str, attention: str, threads: int) -> None:
    """Open an export with plain transformers and save its logits; runs alone in a fresh process, from its source."""
    import sys

    import torch
    from PIL import Image
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(threads)
    with safe_open(given, "pt") as file:
        pixels, question = file.get_tensor("pixels"), file.metadata()["question"]
    processor = AutoProcessor.from_pretrained(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype="auto", attn_implementation=attention, output_loading_info=True
    )
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        sys.exit(f"weights do not fit the model: {wrong}")
    model = model.to(device).eval()
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[Image.fromarray(pixels.numpy())], return_tensors="pt").to(device)
    with torch.no_grad():
        logits = model(**inputs).logits.float().cpu()
    tensors = {f"inputs.{name}": value.cpu().contiguous() for name, value in inputs.items()}
    if "cogalign" in sys.modules:
        sys.exit("the fresh process imported cogalign; it must not")
    save_file({"logits": logits.contiguous(), **tensors}, result)


def _reload(model: Any, folder: Path, given: dict[str, Tensor], question: str) -> dict[str, Tensor]:
    """Run `reload_and_run` in a fresh process: its logits and the inputs it made."""
    code = f"from __future__ import annotations\n{inspect.getsource(reload_and_run)}\nimport json, sys\n"
    code += "reload_and_run(**json.loads(sys.argv[1]))\n"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, result = Path(scratch) / "inputs.safetensors", Path(scratch) / "result.safetensors"
        save_file(given, inputs, metadata={"question": question})
        arguments = {
            "folder": str(folder.resolve()),
            "given": str(inputs),
            "result": str(result),
            "device": str(model.device),
            "attention": model.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }
        # -P: the working folder is not searched for modules, so nothing there can stand in for a library.
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, json.dumps(arguments)],
            env=os.environ | offline, capture_output=True, text=True, timeout=RELOAD_TIMEOUT, cwd=scratch,
        )  # fmt: skip
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise RuntimeError(f"export: a fresh process could not open the export with plain transformers:\n{last}")
        return load_file(result)


def _dtype_name(model: Any) -> str:
    """The type of the weights, e.g. `float32`."""
    return str(model.dtype).removeprefix("torch.")


@contextmanager
def _final_name(final: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `final` only when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (final.with_name(f".{final.name}.{suffix}") for suffix in ("partial", "old"))
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if final.exists():
            final.rename(old)
        readable(partial)
        partial.rename(final)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
