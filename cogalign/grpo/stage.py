"""Stage 3 from a recipe: SFT checkpoint, factual cases and counterfactuals in, aligned checkpoint out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.lazy_image import lazy_image
from cogalign.generation.vllm_server import require_adapter
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.module import GrpoModule
from cogalign.grpo.rewards.build import build_rewards
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.grpo.vllm_rollouts import VllmRollouts
from cogalign.models.adapt import POLICY, save_checkpoint, set_trainable, train_all
from cogalign.models.blocks import prepare_blocks
from cogalign.models.load import LoadedModel, load_model, parameter_counts
from cogalign.models.pixel_cache import cached
from cogalign.recipe import PARTS, GrpoSettings, Recipe
from cogalign.training.atomic import readable
from cogalign.training.context import StageContext
from cogalign.training.finite import FiniteGuard
from cogalign.training.fitting import fit_callbacks
from cogalign.training.last_metrics import last_metrics
from cogalign.training.progress import say
from cogalign.training.seeding import derive_seed, seed_everything
from cogalign.training.tracking import build_loggers, finish_tracking
from cogalign.training.trainer import build_trainer, fit_or_resume

SPLIT = "train"


class PairReader:
    """Images of factual cases and of counterfactuals, each from its own case set."""

    def __init__(self, factual: CaseSet, counterfactual: CaseSet | None) -> None:
        self.factual, self.counterfactual = factual, counterfactual

    def __call__(self, case: Case) -> Image.Image:
        """The image of a case, not decoded yet."""
        if case.intervention is None:
            return lazy_image(self.factual, case)
        assert self.counterfactual is not None
        return lazy_image(self.counterfactual, case)

    def pools(self) -> dict[str, list[Case]]:
        """Training cases by intervention."""
        found: dict[str, list[Case]] = {part: [] for part in PARTS if part != "factual"}
        for case in self.counterfactual.cases if self.counterfactual else ():
            if case.split == SPLIT and case.intervention in found:
                found[case.intervention].append(case)
        return found


def with_findings(case_set: CaseSet) -> CaseSet:
    """The case set without its question cases, of which no reward can tell whether the diagnosis is right.

    Raises:
        ValueError: no training case is left.
    """
    kept = [case for case in case_set.cases if not case.is_question]
    if len(kept) < len(case_set.cases):
        say(f"grpo: {len(case_set.cases) - len(kept)} question cases have no findings: left out")
        if all(case.split != SPLIT for case in kept):
            raise ValueError(f"{case_set.root}: the split {SPLIT} has question cases only, wanted cases with findings")
    return CaseSet(case_set.root, kept)


def open_cases(context: StageContext) -> PairReader:
    """Both case sets; the counterfactual one only if the mix asks for it.

    Raises:
        FileNotFoundError: the mix asks for counterfactuals and the stage `counterfactual` has not run.
    """
    wanted = context.recipe.grpo.mix.interventions
    factual = with_findings(read_case_set(context.case_set_dir))
    if not wanted:
        return PairReader(factual, None)
    if not (context.counterfactual_dir / "metadata.jsonl").is_file():
        raise FileNotFoundError(
            f"{context.counterfactual_dir}: grpo.mix asks for {', '.join(wanted)}, but there are no counterfactuals; "
            "run the stage counterfactual first"
        )
    return PairReader(factual, read_case_set(context.counterfactual_dir))


def prepare_model(context: StageContext) -> LoadedModel:
    """The SFT model: the low-rank matrices of its adapter trainable, or the weights that stage 1 trained."""
    recipe = context.recipe
    loaded = load_model(recipe.model, context.checkpoint("sft"), device="cpu")
    loaded.model.requires_grad_(False)
    if hasattr(loaded.model, "peft_config"):
        prepare_adapter(loaded, recipe.grpo)
    else:
        train_all(loaded, recipe.sft.freeze_vision, recipe.sft.freeze_projector)
    return prepare_blocks(loaded, recipe.trainer, "grpo")


def prepare_adapter(loaded: LoadedModel, settings: GrpoSettings) -> None:
    """Make stage 1's adapter trainable; while its projector stays as it is, each image is encoded once a generation.

    Raises:
        ValueError: the projector is to be trained, and the adapter holds none.
    """
    if not settings.freeze_projector and not loaded.model.peft_config[POLICY].modules_to_save:
        raise ValueError(
            "grpo.freeze_projector: found false and an adapter of stage 1 without a projector; set it to true, or "
            "sft.freeze_projector to false"
        )
    set_trainable(loaded, settings.freeze_projector)


def prompt_sampler(recipe: Recipe, cases: PairReader, stream: str, rank: int, world_size: int) -> PromptSampler:
    """The prompts of one stream for one rank."""
    settings = recipe.grpo
    return PromptSampler(
        cases.factual.split(SPLIT),
        cases.pools(),
        settings.mix,
        settings.prompts_per_step,
        derive_seed(recipe.seed, stream),
        settings.keep_pairs,
        rank,
        world_size,
    )


def build_module(
    recipe: Recipe,
    loaded: LoadedModel,
    cases: PairReader,
    pool: RewardPool,
    rank: int = 0,
    world_size: int = 1,
    rollouts: VllmRollouts | None = None,
    guard: FiniteGuard | None = None,
) -> GrpoModule:
    """The LightningModule of one rank."""
    settings = recipe.grpo
    spare = prompt_sampler(recipe, cases, "replacements", rank, world_size) if settings.dynamic_sampling else None
    return GrpoModule(
        loaded,
        settings,
        prompt_sampler(recipe, cases, "grpo", rank, world_size),
        cases,
        recipe.data.question,
        derive_seed(recipe.seed, "sampling"),
        pool,
        recipe.tracking.sample_every,
        spare,
        rollouts,
        guard,
    )


def open_rollouts(context: StageContext, loaded: LoadedModel, stack: ExitStack) -> VllmRollouts | None:
    """The server that samples, if the recipe asks for one; `stack` closes it."""
    settings = context.recipe.grpo
    if settings.sampler == "hf":
        return None
    require_adapter(loaded)
    rollouts = VllmRollouts(settings.vllm, loaded, context.folder, context.recipe.model.revision)
    stack.callback(rollouts.close)
    return rollouts


def run(context: StageContext) -> dict[str, Any]:
    """Train, write `adapter/` or `model/` into the stage's folder, and return the last metrics."""
    settings = context.recipe.grpo
    rewards = build_rewards(settings)  # a reward that cannot be found ends the run before a model is opened
    with ExitStack() as stack:
        pool = stack.enter_context(RewardPool(rewards, settings.reward_workers, settings.reward_timeout))
        return _run(context, pool, stack)


def _run(context: StageContext, pool: RewardPool, stack: ExitStack) -> dict[str, Any]:
    recipe, settings = context.recipe, context.recipe.grpo
    seed_everything(derive_seed(recipe.seed, "grpo"))
    loaded = prepare_model(context)
    trainer = build_trainer(
        recipe,
        folder=context.folder,
        stage="grpo",
        max_steps=settings.steps,
        callbacks=fit_callbacks(recipe, context.folder, "grpo", settings.steps, settings.checkpoint_every),
        loggers=build_loggers(recipe, context),
    )
    rollouts = open_rollouts(context, loaded, stack)
    with_cache = cached(loaded, context.run_dir, recipe.data.cache_gb)
    cases, rank, ranks = open_cases(context), trainer.global_rank, trainer.world_size
    guard = FiniteGuard(context.folder, recipe.trainer.nonfinite_limit)
    module = build_module(recipe, with_cache, cases, pool, rank, ranks, rollouts, guard)
    stack.callback(module.engine.end)
    say(f"grpo: {settings.prompts_per_step} prompts x {settings.num_generations} completions a step")
    # the module knows its own position; the loader only counts optimizer steps
    steps: DataLoader[Any] = DataLoader(range(settings.steps), batch_size=None)  # type: ignore[arg-type]
    fit_or_resume(trainer, module, steps, context.folder, "grpo")
    written = save_checkpoint(loaded, context.folder)  # all ranks: weights may be divided over them; the first writes
    if trainer.is_global_zero:
        readable(written)
    trainer.strategy.barrier("saved")  # no rank goes on to the next stage before the files are there
    finish_tracking()
    last = last_metrics(context.folder, ("reward", "kl", "entropy", "frac_reward_zero_std"))
    return {
        "steps": module.optimizer_step_count,
        "num_tokens": module.tokens_seen,
        **parameter_counts(loaded.model),
        **last,
    }
