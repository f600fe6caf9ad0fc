"""One row of times and counts for each optimizer step of a `GrpoModule`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from cogalign.generation.uniforms import Share
from cogalign.grpo.benchmark_summary import Row, seconds_of
from cogalign.grpo.collect import MIX
from cogalign.grpo.experience import Draw, MicroBatch
from cogalign.grpo.module import GrpoModule


@dataclass(frozen=True)
class Sampled:
    """What is kept of a micro-batch until its step has ended: small tensors, read when nothing is timed."""

    draws: list[Draw]
    lengths: Tensor
    finished: Tensor
    prompt_mask: Tensor
    grid: Tensor | None


class Recorder(Callback):
    """One row of times and counts for each optimizer step; everything is counted outside of what is timed.

    Images are counted where they enter the vision encoder, apart from the module's own count.
    """

    def __init__(self, module: GrpoModule) -> None:
        self.module, self.engine = module, module.engine
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._sampled: list[Sampled] = []
        self._encoded = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside the block samples and images that enter the vision encoder are noted."""
        with ExitStack() as stack:
            stack.enter_context(_replaced(self.engine, "sample", self._noting(self.engine.sample)))
            family = self.engine.loaded.family
            copies = self.engine.reference.copies if self.engine.reference is not None else ()
            for core in (self.engine.loaded.core, *copies) if family.image_names else ():
                body = family.body(core)
                stack.enter_context(_replaced(body, "get_image_features", self._counted(core, body.get_image_features)))
            if not family.image_names:
                self.notes.append("images encoded are not counted: this model family has no class of its own")
            stack.callback(self.engine.close)  # also after a signal: the features let go of the encoder first
            yield

    def _noting(self, sample: Any) -> Any:
        def noting(draws: list[Draw], seed: int, keep_start: bool, share: Share | None = None) -> MicroBatch:
            micro: MicroBatch = sample(draws, seed, keep_start, share)
            assert micro.prompts is not None
            inputs, rollout = micro.prompts.inputs, micro.rollout
            grid = inputs.get("image_grid_thw")
            kept = Sampled(list(draws), rollout.mask.sum(1), rollout.finished, inputs["attention_mask"], grid)
            self._sampled.append(kept)
            return micro

        return noting

    def _counted(self, core: Any, encoder: Any) -> Any:
        family = self.engine.loaded.family

        def counted(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(family.image_names, args, strict=False)), **kwargs}
            images = {name: given[name] for name in family.image_names if given.get(name) is not None}
            self._encoded += len(family.pieces(core, images))
            return encoder(*args, **kwargs)

        return counted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the row of the step that has just ended."""
        row = {**seconds_of(self.module.shown_metrics), **self._counts(self._sampled)}
        if self.engine.loaded.family.image_names:
            row["images_encoded"] = float(self._encoded)
        self.rows.append(row)
        self._sampled, self._encoded = [], 0

    def _counts(self, sampled: Sequence[Sampled]) -> Row:
        """Counts over the micro-batches that a step has sampled; distinct means by content, of image and question."""
        mix = [micro for micro in sampled if micro.draws[0].origin[0] == MIX]
        images, _ = self._distinct(sampled)
        mix_images, mix_prompts = self._distinct(mix)
        grids = [micro.grid for micro in sampled if micro.grid is not None]
        return {
            "completions": float(sum(len(micro.lengths) for micro in sampled)),
            "completion_tokens": float(sum(int(micro.lengths.sum()) for micro in sampled)),
            "truncated": float(sum(int((~micro.finished.bool()).sum()) for micro in sampled)),
            "distinct_images": float(images),
            "mix_images": float(mix_images),
            "mix_prompts": float(mix_prompts),
            "mix_completions": float(sum(len(micro.lengths) for micro in mix)),
            "mix_tokens": float(sum(int(micro.lengths.sum()) for micro in mix)),
            "prompt_rows": float(sum(len(micro.prompt_mask) for micro in sampled)),
            "prompt_tokens": float(sum(int(micro.prompt_mask.sum()) for micro in sampled)),
            "images": float(sum(len(grid) for grid in grids)),
            "patches": float(sum(int(grid.prod(1).sum()) for grid in grids)),
        }

    def _distinct(self, sampled: Sequence[Sampled]) -> tuple[int, int]:
        """Images, and pairs of image and question, that differ."""
        draws = [draw for micro in sampled for draw in micro.draws]
        seen = [_fingerprint(self.engine.read_image(draw.case)) for draw in draws]
        return len(set(seen)), len(set(zip(seen, self.engine.questions(draws), strict=True)))


def _fingerprint(image: Image.Image) -> bytes:
    return sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).digest()


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner` with another method of this name inside the block."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
