"""Against a real vLLM server: what it samples is what this process would sample, with the same probabilities."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cogalign.generation.draw import nucleus, only_likeliest
from cogalign.generation.sampling import Rollout, SamplingSettings, end_ids
from cogalign.generation.vllm_sampler import VllmSampler, request_body
from cogalign.generation.vllm_server import VllmError, VllmServer
from cogalign.models.adapt import POLICY
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import append_completions, encode_prompts
from cogalign.recipe_grpo import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
GROUP = 4
Prompts = tuple[list[Image.Image], list[str]]


@pytest.fixture(scope="module")
def prompts(pictures: list[Image.Image], questions: list[str]) -> Prompts:
    return pictures, questions


def plain_logits(loaded: LoadedModel, prompts: Prompts, rollout: Rollout) -> Tensor:
    """Logits [P * G, T, V] of transformers' own full forward, image placeholders ruled out."""
    images = [image for image in prompts[0] for _ in range(GROUP)]
    asked = [question for question in prompts[1] for _ in range(GROUP)]
    prompt = encode_prompts(loaded.processor, images, asked)
    full, _ = append_completions(prompt, rollout.ids, rollout.mask)
    with torch.no_grad():
        logits = loaded.model(**full).logits[:, prompt["input_ids"].shape[1] - 1 : -1].float()
    logits[..., loaded.family.placeholder_ids(loaded.core, loaded.tokenizer)] = float("-inf")
    return logits


def picked(logits: Tensor, rollout: Rollout) -> Tensor:
    """Log-probabilities of the tokens that were drawn, without padding."""
    return logits.log_softmax(-1).gather(2, rollout.ids[..., None])[..., 0][rollout.mask.bool()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_transformers(
    sampler: VllmSampler, policy: LoadedModel, prompts: Prompts, temperature: float
) -> None:
    rollout = sampler.sample(*prompts, SamplingSettings(32, GROUP, temperature), seed=3)
    assert rollout.logps is not None and rollout.ids.shape[0] == len(prompts[0]) * GROUP
    theirs = rollout.logps[rollout.mask.bool()]
    ours = picked(plain_logits(policy, prompts, rollout) / temperature, rollout)
    apart = (ours - theirs).abs()
    print(f"\ntemperature {temperature}: {len(apart)} tokens, max {apart.max():.1e}, mean {apart.mean():.1e}")
    assert float(apart.max()) < 1e-4
    with policy.model.disable_adapter():  # an adapter that the server ignored would not be noticed otherwise
        without = picked(plain_logits(policy, prompts, rollout) / temperature, rollout)
    assert float((without - theirs).abs().mean()) > 0.05
    assert bool((rollout.logps[rollout.mask == 0] == 0).all())


def test_top_k_and_nucleus_cut_the_same_tokens(sampler: VllmSampler, policy: LoadedModel, prompts: Prompts) -> None:
    rollout = sampler.sample(*prompts, SamplingSettings(32, GROUP, 0.8, top_p=0.7, top_k=30), seed=4)
    assert rollout.logps is not None
    logits = plain_logits(policy, prompts, rollout) / 0.8
    cut = nucleus(only_likeliest(logits.flatten(0, 1), 30), 0.7).view_as(logits)
    apart = (picked(cut, rollout) - rollout.logps[rollout.mask.bool()]).abs()
    assert float(apart.max()) < 1e-4


def test_a_seed_repeats_its_completions_and_another_does_not(sampler: VllmSampler, prompts: Prompts) -> None:
    how = SamplingSettings(24, GROUP)
    first, again, other = (sampler.sample(*prompts, how, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.ids, again.ids) and torch.equal(first.mask, again.mask)
    assert not torch.equal(first.ids, other.ids[:, : first.ids.shape[1]])
    rows = {tuple(row) for row in first.ids.tolist()}
    assert len(rows) == len(first.ids)  # neither prompts nor the members of a group share random numbers


def test_prompts_that_are_sampled_apart_get_what_they_get_together(sampler: VllmSampler, prompts: Prompts) -> None:
    """A rank, or a micro-batch, names the places of its prompts in the whole step."""
    how = SamplingSettings(16, GROUP)
    whole = sampler.sample(*prompts, how, seed=7)
    for places in ([0, 1], [2, 3]):
        images, questions = ([part[place] for place in places] for part in prompts)
        some = sampler.sample(images, questions, how, seed=7, places=places)
        rows = slice(places[0] * GROUP, (places[-1] + 1) * GROUP)
        wanted = [ids[mask.bool()].tolist() for ids, mask in zip(whole.ids[rows], whole.mask[rows], strict=True)]
        assert [ids[mask.bool()].tolist() for ids, mask in zip(some.ids, some.mask, strict=True)] == wanted


def test_completions_end_with_their_end_token_and_no_later(
    sampler: VllmSampler, policy: LoadedModel, prompts: Prompts
) -> None:
    rollout = sampler.sample(*prompts, SamplingSettings(64, 16, 2.0), seed=5)
    ends = torch.tensor(end_ids(policy))
    lengths = rollout.mask.sum(1)
    last = rollout.ids.gather(1, lengths[:, None] - 1)[:, 0]
    assert torch.equal(torch.isin(last, ends), rollout.finished)
    assert int((torch.isin(rollout.ids, ends) & rollout.mask.bool()).sum()) == int(rollout.finished.sum())
    assert bool((lengths[~rollout.finished] == 64).all())
    assert bool(rollout.finished.any()) and not bool(rollout.finished.all())


def test_image_placeholders_are_never_sampled(sampler: VllmSampler, policy: LoadedModel, prompts: Prompts) -> None:
    placeholders = torch.tensor(policy.family.placeholder_ids(policy.core, policy.tokenizer))
    how = SamplingSettings(64, 16, 2.0)
    rollout = sampler.sample(*prompts, how, seed=6)
    assert not bool(torch.isin(rollout.ids[rollout.mask.bool()], placeholders).any())
    # the same request without our ban: this model does want to write them
    body = request_body(sampler.adapter or "", prompts[0][0], prompts[1][0], how, seed=6)
    free = [token for choice in sampler.client.chat(body)["choices"] for token in choice["token_ids"]]
    assert bool(torch.isin(torch.tensor(free), placeholders).any())


def test_after_a_sync_completions_come_from_the_new_adapter(
    sampler: VllmSampler,
    policy: LoadedModel,
    prompts: Prompts,
    shake: Callable[[LoadedModel, int], None],
    tmp_path: Path,
) -> None:
    before = {name: value.clone() for name, value in policy.model.named_parameters() if "lora_B" in name}
    how = SamplingSettings(24, GROUP)
    first, old = sampler.sample(*prompts, how, seed=9), sampler.adapter
    try:
        shake(policy, 11)
        new = sampler.sync(tmp_path / "adapters")
        second = sampler.sample(*prompts, how, seed=9)
        assert second.logps is not None
        ours = picked(plain_logits(policy, prompts, second), second)
        assert float((ours - second.logps[second.mask.bool()]).abs().max()) < 1e-4
    finally:
        for name, value in policy.model.named_parameters():
            if name in before:
                value.data.copy_(before[name])
    assert first.ids.shape != second.ids.shape or not torch.equal(first.ids, second.ids)
    offered = [model["id"] for model in sampler.client.request("GET", "/v1/models").json()["data"]]
    assert new in offered and old not in offered
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [new]
    files = {path.name for path in (tmp_path / "adapters" / new / POLICY).parent.rglob("*") if path.is_file()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files


def test_a_prompt_that_the_server_reads_otherwise_is_an_error(
    sampler: VllmSampler, policy: LoadedModel, prompts: Prompts
) -> None:
    smaller = copy.deepcopy(policy.processor)
    smaller.image_processor.size = type(smaller.image_processor.size)(shortest_edge=64 * 64, longest_edge=64 * 64)
    prompt = encode_prompts(smaller, *prompts)
    with pytest.raises(ValueError, match=r"'What\?'.* tokens in vLLM and of .* here.*--mm-processor-kwargs"):
        sampler.sample(*prompts, SamplingSettings(4, 2), seed=1, prompt=prompt)


def test_a_refused_request_says_why(sampler: VllmSampler, prompts: Prompts) -> None:
    with pytest.raises(VllmError, match=r"refused /v1/chat/completions: HTTP 400.*temperature"):
        sampler.sample(*prompts, SamplingSettings(4, 2, temperature=5.0), seed=1)


def test_a_running_server_is_attached_to_and_left_running(
    server: VllmServer, policy: LoadedModel, prompts: Prompts, tmp_path: Path
) -> None:
    settings = VllmSettings(url=server.url + "/v1/")
    with VllmServer(settings, policy, tmp_path) as attached:
        sampler = VllmSampler(policy, attached, settings)
        sampler.sync(tmp_path / "adapters")
        assert sampler.sample(*prompts, SamplingSettings(4, 2), seed=1).ids.shape == (8, 4)
        sampler.close()
    assert server.healthy() and not list(tmp_path.rglob("*.safetensors"))


def test_a_server_whose_worker_dies_is_an_error_with_its_log_and_no_wait(
    sampler: VllmSampler, server: VllmServer, prompts: Prompts
) -> None:
    """Last in this file: it ends the server that the other tests use."""
    assert server.group is not None
    for pid in members(server.group, "VLLM::Worker"):
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(VllmError, match=r"(has ended|failed \d times)(.|\n)*vllm\.log"):
        sampler.sample(*prompts, SamplingSettings(8, 2), seed=1)
    assert time.monotonic() - started < 60
    group = server.group
    server.close()
    assert members(group, "") == []


def members(group: int, name: str) -> list[int]:
    """Processes of a process group whose name begins with `name`; zombies are not counted."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = file.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, _, its_group = tail.split()[:3]
        if int(its_group) == group and state != "Z" and head.partition("(")[2].startswith(name):
            found.append(int(file.parent.name))
    return found
