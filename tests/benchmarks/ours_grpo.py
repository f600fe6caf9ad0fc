"""Our side of `grpo_vs_trl.py`: `GrpoModule` on the tiny Qwen3-VL; one JSON object on stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from peer import settings
from peer.meter import Meter, memory_mb, reset_peak
from peer.ours_common import make_trainer, open_model, read_image, write_cases
from peer.tiny_qwen3vl import TinyConfig
from torch.utils.data import DataLoader

from cogalign.generation.sampling import end_ids
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.module import GrpoModule
from cogalign.grpo.rewards.build import build_rewards
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts
from cogalign.recipe import CustomReward, GrpoSettings, MixSettings, RewardWeights


def never_end(loaded: LoadedModel) -> None:
    """Rule the tokens that end a completion out, as TRL's side does by `min_new_tokens`: all have the full length."""
    ends = end_ids(loaded)

    class Endless(type(loaded.family)):  # type: ignore[misc]
        """The family, with the end tokens among those that are never sampled."""

        def placeholder_ids(self, model: Any, tokenizer: Any) -> list[int]:
            return sorted({*super().placeholder_ids(model, tokenizer), *ends})

    loaded.family = Endless()


def grpo_settings(args: argparse.Namespace) -> GrpoSettings:
    """Settings of the same step as TRL's."""
    return GrpoSettings(
        steps=args.steps + args.warmup,
        prompts_per_step=args.prompts,
        num_generations=args.group,
        micro_batch=args.prompts,
        learning_rate=1e-5,
        beta=settings.BETA,
        max_completion_length=args.completion_tokens,
        reward_weights=RewardWeights(format=0, cognition=0, diagnosis=0),
        custom_rewards=[CustomReward("peer.reward.even_token_reward")],
    )


def instrument(module: GrpoModule, meter: Meter) -> None:
    """Time the module's phases by wrapping its methods."""
    meter.wrap(module.engine, "sample", "sampling")
    meter.wrap(module.engine, "reference_logps", "scoring")
    meter.wrap(module, "_update", "update")


def train(args: argparse.Namespace, cfg: TinyConfig, meter: Meter, folder: Path) -> dict[str, Any]:
    """Train and give back what is not in the meter."""
    loaded = open_model(cfg, folder / "model", meter)
    never_end(loaded)
    chosen = grpo_settings(args)
    cases = write_cases(settings.prompts(cfg, args.prompts * chosen.steps), [], folder)
    sampler = PromptSampler(cases, {}, MixSettings(), args.prompts, args.seed)
    prompt = encode_prompts(loaded.processor, [read_image(folder, c) for c in cases], [c.question for c in cases])
    prompt_tokens = float(prompt["attention_mask"].sum(1).float().mean())
    with RewardPool(build_rewards(chosen), chosen.reward_workers, chosen.reward_timeout) as pool:
        module = GrpoModule(loaded, chosen, sampler, partial(read_image, folder), "", args.seed, pool)
        instrument(module, meter)
        trainer = make_trainer(args, meter, folder, chosen.steps)
        reset_peak()
        start = memory_mb()["now"]
        trainer.fit(module, DataLoader(range(chosen.steps), batch_size=None))  # type: ignore[arg-type]
    length = module.shown_metrics["completions/mean_length"]
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "start": start,
        "mean_completion_length": length,
        "trainable_parameters": trainable,
        "prompt_tokens": prompt_tokens,
    }


def main() -> None:
    """Command line."""
    args = settings.grpo_options(__doc__ or "").parse_args()
    cfg, meter = settings.set_up(args), Meter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        extra = train(args, cfg, meter, Path(folder))
    settings.write_result("ours", args, meter, extra.pop("start"), extra)


if __name__ == "__main__":
    main()
