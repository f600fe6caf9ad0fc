import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cogalign.grpo.flops import (
    GrpoStep,
    causal_pairs,
    completions_forward,
    grpo_floor,
    prompts_forward,
    sft_floor,
    shapes,
)
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts


def counted(run: object) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def test_forward_counts_are_torchs(own_tiny: LoadedModel, pictures: list) -> None:  # type: ignore[type-arg]
    batch = encode_prompts(own_tiny.processor, pictures[:1], ["What is the diagnosis?"])
    text, vision = shapes(own_tiny.core.config)
    core = own_tiny.core.model
    patches = len(batch["pixel_values"])
    found = counted(lambda: core.visual(batch["pixel_values"], batch["image_grid_thw"]))
    assert vision.forward(patches) == pytest.approx(found, rel=0.03)
    tokens = batch["input_ids"].shape[1]
    whole = counted(lambda: own_tiny.model(**batch, logits_to_keep=1)) - found
    # torch counts all pairs of a causal attention, also those that it leaves out
    assert text.forward(tokens, tokens**2, 1).forward == pytest.approx(whole, rel=0.03)


def test_adapters_add_what_torch_counts(own_tiny: LoadedModel, adapted: LoadedModel, questions: list[str]) -> None:
    ids = torch.randint(0, 100, (2, 30))
    base, with_lora = shapes(adapted.core.config)[0], shapes(adapted.core.config, lora_rank=4)[0]
    found = counted(lambda: adapted.model(input_ids=ids))
    work = with_lora.forward(60, 2 * 30**2, 60)
    assert work.forward == pytest.approx(found, rel=0.03)
    assert work.forward - work.trained == base.forward(60, 2 * 30**2, 60).forward


def test_backward_counts_are_torchs(adapted: LoadedModel) -> None:
    ids = torch.randint(0, 100, (2, 30))
    text = shapes(adapted.core.config, lora_rank=4)[0]
    with FlopCounterMode(display=False) as counter:
        logits = adapted.model(input_ids=ids).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    work = text.forward(60, 2 * 30**2, 60)
    # torch recomputes the scores (half of an attention's forward); the first layer has no gradient of its input to make
    assert work.backward == pytest.approx(counter.get_total_flops() - forward - work.attention / 2, rel=0.1)


def test_a_group_of_one_is_a_plain_sequence_and_the_prompt_is_paid_once(adapted: LoadedModel) -> None:
    text, vision = shapes(adapted.core.config, lora_rank=4)

    def step(group: int) -> GrpoStep:
        return GrpoStep(2, 2, 64, 40, group, 17, True)

    plain = text.forward(2 * 56, 2 * causal_pairs(56), 2 * 17, 2 * 39, 2 * causal_pairs(39))
    one = step(1)
    parts = prompts_forward(text, one), completions_forward(text, one)
    assert sum(part.forward for part in parts) == pytest.approx(plain.forward)
    assert sum(part.backward for part in parts) == pytest.approx(plain.backward)
    floors = [grpo_floor(text, vision, step(group)) for group in (1, 2, 3)]
    costs = [floor["total"] for floor in floors]
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0])
    alone = completions_forward(text, one)  # a further completion of each prompt costs three passes and a backward
    assert costs[1] - costs[0] <= 3 * alone.forward + alone.backward < 0.7 * costs[0]
    assert floors[0]["vision"] == floors[2]["vision"] == 2 * vision.forward(64)


def test_the_floor_is_the_sum_of_its_phases(adapted: LoadedModel) -> None:
    text, vision = shapes(adapted.core.config, lora_rank=4)
    floor = grpo_floor(text, vision, GrpoStep(2, 1, 64, 40, 4, 16, False))
    assert floor["reference"] == 0
    assert floor["total"] == pytest.approx(sum(value for name, value in floor.items() if name != "total"))
    alone = sft_floor(text, vision, samples=3, patches=64, tokens=50, answer=50)
    work = text.forward(150, 3 * causal_pairs(50), 150)
    assert alone["total"] == pytest.approx(3 * vision.forward(64) + work.forward + work.backward)
    assert sft_floor(text, vision, 3, 64, 50, 10)["total"] < alone["total"]
