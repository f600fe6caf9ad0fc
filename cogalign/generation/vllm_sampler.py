"""Rollouts from a vLLM server: the same prompts, distribution and result as sampling in process.

What the two must agree on, and how it is made sure: the prompt's token ids (those that the server reports are
compared), the size of the images (the server is started with the processor's limits), image placeholders (`bad_words`,
minus infinity before the softmax; a `logit_bias` ends at -100 and shrinks with the temperature, and is taken only for
rows without text, which `bad_words` cannot name), and the meaning of the log-probabilities (`--logprobs-mode
processed_logprobs`: after bans, temperature, top-k and top-p).
"""

from __future__ import annotations

import base64
import io
import secrets
import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cogalign.generation.sampling import Rollout, SamplingSettings, banned_ids, end_ids
from cogalign.generation.vllm_client import VllmClient
from cogalign.generation.vllm_server import VllmError, VllmServer, needed_arguments, require_adapter
from cogalign.models.adapt import save_checkpoint
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts, pad_completions
from cogalign.recipe_grpo import VllmSettings
from cogalign.training.seeding import derive_seed

PromptImages = Image.Image | Sequence[Image.Image]
CONNECTIONS = 64
"""Prompts that are under way at the same time; each is one request for its G completions."""
LOWEST_BIAS = -100.0
"""vLLM adds no less to a logit."""


def data_url(image: Image.Image) -> str:
    """The image as a lossless PNG in a data URL."""
    buffer = io.BytesIO()
    # transformers drops an alpha channel, vLLM would paint white behind it
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def banned_words(loaded: LoadedModel) -> list[str]:
    """The image placeholders as texts, each of which is exactly its one token again.

    Raises:
        ValueError: the tokenizer splits one of them.
    """
    words = []
    for token in loaded.family.placeholder_ids(loaded.core, loaded.tokenizer):
        word = str(loaded.tokenizer.convert_ids_to_tokens(token))
        found = loaded.tokenizer(word, add_special_tokens=False)["input_ids"]
        if found != [token]:
            raise ValueError(f"placeholder {word!r}: found token ids {found}, wanted [{token}], to ban it in vLLM")
        words.append(word)
    return words


def banned_bias(loaded: LoadedModel) -> dict[str, float]:
    """For each token without text, which `bad_words` cannot name, the lowest bias that vLLM takes."""
    return {str(token): LOWEST_BIAS for token in loaded.family.textless_ids(loaded.core, loaded.tokenizer)}


def request_body(
    model: str, images: PromptImages, question: str, settings: SamplingSettings, seed: int
) -> dict[str, Any]:
    """A chat completion request for the G completions of one prompt; whatever a server may have defaults for is set."""
    several = [images] if isinstance(images, Image.Image) else images
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in several]
    content.append({"type": "text", "text": question})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "n": settings.num_generations,
        "seed": seed,
        "max_completion_tokens": settings.max_completion_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
    }


def compare_prompt(question: str, ours: Sequence[int], theirs: Sequence[int], needed: Sequence[str]) -> None:
    """Refuse a prompt that the server reads otherwise than we do.

    Raises:
        ValueError: the token ids differ; names the lengths and the first place where they do.
    """
    if list(ours) == list(theirs):
        return
    pairs = zip(ours, theirs, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    raise ValueError(
        f"question {question!r}: found a prompt of {len(theirs)} tokens in vLLM and of {len(ours)} here, different from "
        f"token {place} on (vLLM {list(theirs[place : place + 5])}, here {list(ours[place : place + 5])}), wanted the "
        f"same; a server that was not started here needs the same model folder and {' '.join(needed)}"
    )


class VllmSampler:
    """Samples completions from a vLLM server with the adapter that was synced last."""

    def __init__(
        self,
        loaded: LoadedModel,
        server: VllmServer,
        settings: VllmSettings,
        *,
        first: bool = True,
        run: str | None = None,
    ) -> None:
        """Connect to a healthy server.

        Args:
            loaded: the policy; gives processor, tokenizer and, in `sync`, the adapter.
            server: where completions are sampled.
            settings: `grpo.vllm` of the recipe.
            first: whether this process gives the adapter to the server; of several, one does it for all.
            run: what tells this run's adapters from those of others; the same in all its processes. None draws one.

        Raises:
            ValueError: the model has no adapter.
            VllmError: the server does not give the log-probabilities that are needed.
        """
        require_adapter(loaded)
        self.loaded, self.server, self.first = loaded, server, first
        self.client = VllmClient(server, settings, CONNECTIONS)
        self.base = self.client.base_name()
        self.adapter: str | None = None
        self._folder: Path | None = None
        # unlike any other run's on the same server: vLLM keeps cached prompts by the adapter's name
        self.run, self._version = secrets.token_hex(4) if run is None else run, 0
        self._ends = end_ids(loaded)
        self._never: dict[str, Any] = {"bad_words": banned_words(loaded), "logit_bias": banned_bias(loaded)}
        self._banned = set(banned_ids(loaded, torch.device("cpu")).tolist())
        self._needed = [shlex.quote(word) for word in needed_arguments(loaded)]
        self.client.require_sampling_distribution(self.base, self._ends[0])

    def sync(self, folder: Path) -> str:
        """Give the policy's adapter, as it is now, to the server; completions come from it from now on.

        Only the adapter is written and loaded under a new name; no weights are merged. The one before is unloaded
        and deleted. All processes of a run call it, and none samples before the first one is done.

        Args:
            folder: of this run alone, on a file system that the server reads; adapters that an interrupted run left
                there are deleted.

        Returns:
            The adapter's name on the server.

        Raises:
            VllmError: the server did not take it.
        """
        self._version += 1
        name = f"policy-{self.run}-{self._version}"
        written = save_checkpoint(self.loaded, folder / name)  # all processes: weights may be divided over them
        if self.first:
            self.client.load_adapter(name, str(written.resolve()))
        before, self.adapter, self._folder = self.adapter, name, folder / name
        if self.first and before is not None:
            self.client.unload_adapter(before)
        for left in folder.glob("policy-*") if self.first else ():  # also of tries that failed
            if left.name != name:
                shutil.rmtree(left, ignore_errors=True)
        return name

    def reload(self) -> None:
        """Give the adapter that was synced last to a server that was started again."""
        if self.first and self.adapter is not None and self._folder is not None:
            self.client.load_adapter(self.adapter, str((self._folder / "adapter").resolve()))

    def sample(
        self,
        images: Sequence[PromptImages],
        questions: Sequence[str],
        settings: SamplingSettings,
        seed: int,
        prompt: Inputs | None = None,
        places: Sequence[int] | None = None,
    ) -> Rollout:
        """Draw `settings.num_generations` completions for each of the P prompts.

        The same seed gives the same completions, as far as the server's floating point does not depend on how it
        batches. With top-k and top-p off, `logps` are those of `completion_logps`; otherwise those of the cut
        distribution, which really was sampled from.

        Args:
            images: one a prompt, or a list of several.
            questions: one a prompt.
            settings: how tokens are drawn.
            seed: of the whole step; each prompt gets its own from it.
            prompt: tensors of `encode_prompts` for the same images and questions, where they are there already.
            places: of the P prompts in the whole step, which their seeds come from; None: they are the step.

        Returns:
            The rollout on the model's device, with `logps` [P * G, T] in float32, 0 at padding.

        Raises:
            ValueError: the server's prompt has other token ids than ours.
            VllmError: the server died or refused.
        """
        if prompt is None:
            prompt = encode_prompts(self.loaded.processor, images, questions)
        where = range(len(images)) if places is None else places
        bodies = [
            self._body(image, question, settings, derive_seed(seed, "vllm", place))
            for place, image, question in zip(where, images, questions, strict=True)
        ]
        with ThreadPoolExecutor(min(CONNECTIONS, max(1, len(bodies)))) as threads:
            answers = list(threads.map(self.client.chat, bodies))
        for question, ids, mask, answer in zip(
            questions, prompt["input_ids"], prompt["attention_mask"], answers, strict=True
        ):
            compare_prompt(question, ids[mask.bool()].tolist(), answer["prompt_token_ids"], self._needed)
        choices = [choice for answer in answers for choice in sorted(answer["choices"], key=lambda one: one["index"])]
        return self._rollout(choices, len(bodies) * settings.num_generations)

    def _body(self, images: PromptImages, question: str, settings: SamplingSettings, seed: int) -> dict[str, Any]:
        body = request_body(self.adapter or self.base, images, question, settings, seed)
        return body | self._never | {"stop_token_ids": self._ends}

    def _rollout(self, choices: Sequence[dict[str, Any]], wanted: int) -> Rollout:
        """Tensors of the completions in `choices`."""
        if len(choices) != wanted:
            raise VllmError(f"{self.server.url}: found {len(choices)} completions, wanted {wanted}")
        completions = [list(choice["token_ids"]) for choice in choices]
        found = [[float(token["logprob"]) for token in choice["logprobs"]["content"]] for choice in choices]
        for completion, values in zip(completions, found, strict=True):
            if len(completion) != len(values):
                raise VllmError(f"{self.server.url}: {len(completion)} tokens have {len(values)} log-probabilities")
            found_banned = self._banned & set(completion)
            if found_banned:
                raise VllmError(
                    f"{self.server.url}: found the token {min(found_banned)} in a completion, in spite of bad_words and "
                    "logit_bias; it is an image placeholder or has no text"
                )
        ids, mask = pad_completions(completions, self.loaded.tokenizer.pad_token_id)
        logps = torch.zeros(ids.shape)
        for row, values in enumerate(found):
            logps[row, : len(values)] = torch.tensor(values)
        ends = set(self._ends)
        finished = torch.tensor([bool(completion) and completion[-1] in ends for completion in completions])
        device = self.loaded.device
        moved: list[Tensor] = [tensor.to(device) for tensor in (ids, mask, finished, logps)]
        return Rollout(moved[0], moved[1], moved[2], logps=moved[3])

    def close(self) -> None:
        """Unload the adapter, delete its files and close the connections; the server goes on until its own `close`.

        A server that ends meanwhile, because another process of the run closes it, is no error.
        """
        if self.first and self.adapter is not None and self.server.healthy():
            with suppress(VllmError):
                self.client.unload_adapter(self.adapter)
        if self.first and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.adapter = self._folder = None
        self.client.close()
