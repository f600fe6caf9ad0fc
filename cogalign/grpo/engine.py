"""The policy and its reference as the GRPO loop uses them: encode prompts, sample groups, score completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from cogalign.data.case import Case
from cogalign.data.collator import question_of
from cogalign.generation.drafts import Drafts
from cogalign.generation.sampling import Rollout, SamplingSettings, sample
from cogalign.generation.uniforms import Share
from cogalign.grpo.demonstrations import with_demonstrations
from cogalign.grpo.experience import Draw, MicroBatch, Prompts
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import Reference
from cogalign.models.features import ImageFeatures, shared_image_features
from cogalign.models.inputs import Inputs
from cogalign.models.load import LoadedModel
from cogalign.models.pixel_ahead import Ahead
from cogalign.models.prefill import Prefill, prefill
from cogalign.models.prompts import distinct_prompts, encode_answers, encode_prompts, to_device
from cogalign.recipe import GrpoSettings
from cogalign.training.heartbeat import beat
from cogalign.training.sharding import is_sharded

Pass = tuple[Tensor, Tensor]
"""Log-probabilities and entropies [N, T]."""


class RolloutServer(Protocol):
    """Another engine that samples, such as `cogalign.generation.vllm_sampler.VllmSampler`."""

    def sample(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        settings: SamplingSettings,
        seed: int,
        prompt: Inputs | None = None,
        places: Sequence[int] | None = None,
    ) -> Rollout:
        """Completions with the log-probabilities that they were sampled with."""
        ...


class Engine:
    """Everything that runs the model, for one rank."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: GrpoSettings,
        read_image: Callable[[Case], Image.Image],
        question: str,
        server: RolloutServer | None = None,
    ) -> None:
        self.loaded, self.settings, self.server = loaded, settings, server
        self.read_image, self.question = read_image, question
        self.reference = Reference(loaded) if settings.beta > 0 else None
        self._stack = ExitStack()
        self.features = ImageFeatures()
        self.ahead = Ahead(loaded.processor)
        """Gets the images of the next generation ready."""
        self.how = SamplingSettings(
            settings.max_completion_length,
            settings.num_generations - settings.demonstrations,
            settings.temperature,
            settings.top_p,
            settings.top_k,
        )

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.loaded.device

    def renew_features(self) -> None:
        """Forget the image features of the generation before."""
        self.close()
        also = self.reference.copies if self.reference is not None else ()
        self.features = self._stack.enter_context(shared_image_features(self.loaded, also))

    def close(self) -> None:
        """Give the model back as it was."""
        self._stack.close()

    def end(self) -> None:
        """Give the model back as it was, and end the thread that looks ahead."""
        self.close()
        self.ahead.close()

    def questions(self, draws: Sequence[Draw]) -> list[str]:
        """The question of each case."""
        return [question_of(draw.case, self.question) for draw in draws]

    def encode(self, draws: Sequence[Draw], images: Sequence[Image.Image] | None = None) -> Prompts:
        """Tensors of the cases' prompts, equal ones once."""
        images = [self.read_image(draw.case) for draw in draws] if images is None else images
        inputs = to_device(encode_prompts(self.loaded.processor, images, self.questions(draws)), self.device)
        return Prompts(*distinct_prompts(self.loaded.family, self.loaded.core, inputs))

    def sample(self, draws: list[Draw], seed: int, keep_start: bool, share: Share | None = None) -> MicroBatch:
        """G completions for each case, `demonstrations` of them its own report.

        Args:
            draws: the cases.
            seed: all randomness comes from it.
            keep_start: keep the prompts' pass with gradient, for the first update.
            share: which cases of the whole step they are; None: all of them.
        """
        beat("sampling")
        share = Share.of_all(len(draws)) if share is None else share
        images = [self.read_image(draw.case) for draw in draws]
        prompts = self.encode(draws, images)
        if self.server is not None:
            tokens = {name: prompts.inputs[name][prompts.place] for name in ("input_ids", "attention_mask")}
            rollout = self.server.sample(images, self.questions(draws), self.how, seed, tokens, share.places)
            return MicroBatch(draws, rollout, prompts)
        if keep_start and self._can_keep():
            with torch.enable_grad():
                prompts.start = prefill(self.loaded.family, self.loaded.model, prompts.inputs)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        told, drafted = self.settings.demonstrations, self.settings.drafts
        answers = encode_answers(self.loaded.processor, [draw.case.answer for draw in draws] if told or drafted else [])
        # of the reports of these cases alone: a run that goes on from a checkpoint guesses as one that was never stopped
        drafts = Drafts(answers) if drafted else None
        rollout = sample(self.loaded, prompts.inputs, self.how, generator, prompts.start, prompts.place, share, drafts)
        if told:
            rollout = with_demonstrations(rollout, answers, told, self.loaded.tokenizer.pad_token_id)
        return MicroBatch(draws, rollout, prompts)

    def _can_keep(self) -> bool:
        """Whether the pass that samples is the pass that trains: shared prompts, no dropout, no sharded weights."""
        if is_sharded(self.loaded.family.text_model(self.loaded.core)):
            return False
        drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in self.loaded.model.modules())
        drops |= bool(getattr(self.loaded.core.config.get_text_config(), "attention_dropout", 0.0))
        return self.loaded.family.shares_prompts(self.loaded.core) and not drops

    def policy(self, micro: MicroBatch) -> Pass:
        """The policy's log-probabilities and entropies, with gradient if it is enabled."""
        prompts = self.prompts(micro)
        start, prompts.start = prompts.start, None  # its graph is freed by one backward pass
        return self._scored(self.loaded.model, micro, prompts, start if torch.is_grad_enabled() else None, True)

    @torch.no_grad()
    def reference_logps(self, micro: MicroBatch) -> Tensor | None:
        """The reference's log-probabilities; None without one."""
        if self.reference is None:
            return None
        with self.reference.active() as model:
            return self._scored(model, micro, self.prompts(micro))[0]

    @torch.no_grad()
    def old_logps(self, micro: MicroBatch) -> Tensor:
        """The policy's log-probabilities before any update, without gradient."""
        return self._scored(self.loaded.model, micro, self.prompts(micro))[0]

    @torch.no_grad()
    def warm(self, micro: MicroBatch) -> None:
        """Encode the prompts of a micro-batch, and their images in the very batch in which they were encoded first."""
        family, core = self.loaded.family, self.loaded.core
        prompts = self.prompts(micro)
        images = {name: prompts.inputs[name] for name in family.image_names if name in prompts.inputs}
        if images and "get_image_features" in vars(family.body(core)):
            family.body(core).get_image_features(**images)

    def prompts(self, micro: MicroBatch) -> Prompts:
        """The prompts of a micro-batch, encoded again where they are not there."""
        if micro.prompts is None:
            micro.prompts = self.encode(micro.draws)
        return micro.prompts

    def _scored(
        self, model: Any, micro: MicroBatch, prompts: Prompts, start: Prefill | None = None, with_entropy: bool = False
    ) -> Pass:
        beat("scoring")
        owner = prompts.place.repeat_interleave(self.settings.num_generations)
        ids, mask, temperature = micro.rollout.ids, micro.rollout.mask, self.settings.temperature
        return completion_logps(self.loaded, model, prompts.inputs, ids, mask, owner, temperature, start, with_entropy)
