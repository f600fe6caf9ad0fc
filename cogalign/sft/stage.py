"""Stage 1 from a recipe: base model and case set in, adapter (or full model) out."""

from __future__ import annotations

from typing import Any

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.collator import SftCollator, question_of
from cogalign.data.datamodule import CaseDataset, SftData
from cogalign.generation.hf import generate
from cogalign.models.adapt import add_lora, keep_frozen_in_eval, save_checkpoint, train_all
from cogalign.models.blocks import prepare_blocks
from cogalign.models.load import LoadedModel, load_model, parameter_counts
from cogalign.models.pixel_cache import with_pixel_cache
from cogalign.recipe import Recipe
from cogalign.sft.given import check_given, origin_of
from cogalign.sft.module import SftModule
from cogalign.sft.passes import passes_of
from cogalign.sft.samples import counts_of, open_pairs, training_samples
from cogalign.sft.start import open_start
from cogalign.training.atomic import readable
from cogalign.training.context import StageContext
from cogalign.training.finite import FiniteGuard
from cogalign.training.fitting import fit_callbacks
from cogalign.training.given import given_checkpoint
from cogalign.training.last_metrics import last_metrics
from cogalign.training.launched import is_main_process
from cogalign.training.progress import say
from cogalign.training.seeding import derive_seed, seed_everything
from cogalign.training.strategies import devices_of
from cogalign.training.tracking import build_loggers, finish_tracking
from cogalign.training.trainer import build_trainer, fit_or_resume

SAMPLES = 4
SAMPLE_LENGTH = 512


def prepare_model(recipe: Recipe) -> LoadedModel:
    """The base model, or that of `sft.start`, with what stage 1 trains."""
    settings = recipe.sft
    loaded = _untrained(recipe) if settings.start is None else open_start(recipe.model, settings)
    keep_frozen_in_eval(loaded, settings.freeze_vision or settings.lora is not None)
    return prepare_blocks(loaded, recipe.trainer, "sft")


def _untrained(recipe: Recipe) -> LoadedModel:
    """The base model with a fresh adapter, or with all its weights trainable that are not frozen."""
    settings = recipe.sft
    loaded = load_model(recipe.model, device="cpu")
    loaded.model.requires_grad_(False)
    if settings.lora is not None:
        return add_lora(loaded, settings.lora, derive_seed(recipe.seed, "lora"), settings.freeze_projector)
    return train_all(loaded, settings.freeze_vision, settings.freeze_projector)


def prepare_data(
    recipe: Recipe, case_set: CaseSet, loaded: LoadedModel, passes: int = 1, pairs: CaseSet | None = None
) -> SftData:
    """The loaders; validation on the first cases of the split `validation`, if there is one.

    An optimizer step takes `passes` batches of each device. Images are decoded and processed in `sft.workers`
    processes, once a run as far as `data.cache_gb` reaches. `pairs` are the counterfactuals, where `sft.mix` has any.
    """
    settings = recipe.sft
    train, mixture = training_samples(recipe, case_set, pairs)
    validation = None
    if settings.validate_every and "validation" in case_set.splits:
        validation = CaseDataset(case_set, case_set.split("validation")[: settings.validation_limit])
    processor = with_pixel_cache(loaded.processor, recipe.run_dir, recipe.data.cache_gb)
    collate = SftCollator(processor, recipe.data.question, settings.max_length)
    batches = settings.steps * passes
    lengths = collate.text_lengths(train.cases) if settings.group_by_length else None
    seed = derive_seed(recipe.seed, "sft")
    return SftData(
        train, validation, collate, settings.batch_size, batches, seed, settings.workers, lengths, passes, mixture
    )


def _sample_writer(recipe: Recipe, data: SftData, loaded: LoadedModel) -> Any:
    """A function that lets the model write on a few validation cases, for the table of samples."""
    dataset = data.validation
    if dataset is None or not recipe.tracking.sample_every or recipe.trainer.strategy.startswith("deepspeed"):
        return None  # under ZeRO-3 a pass is a collective, and only the first rank writes samples
    assert isinstance(dataset, CaseDataset)

    def write() -> list[dict[str, Any]]:
        pairs = [dataset[index] for index in range(min(SAMPLES, len(dataset)))]
        completions = generate(
            loaded,
            [image for _, image in pairs],
            [question_of(case, recipe.data.question) for case, _ in pairs],
            max_completion_length=min(SAMPLE_LENGTH, recipe.evaluate.max_completion_length),
        )
        return [
            {"image": image, "id": case.id, "answer": case.answer, "completion": group[0].text}
            for (case, image), group in zip(pairs, completions, strict=True)
        ]

    return write


def run(context: StageContext) -> dict[str, Any]:
    """Train, write `adapter/` or `model/` into the stage's folder, and return the last metrics.

    With `sft.checkpoint` nothing is trained or written: it is checked, and what is known of it is returned.
    """
    recipe, settings = context.recipe, context.recipe.sft
    if settings.checkpoint is not None:
        return check_given(recipe) if is_main_process() else {}
    passes = passes_of(settings, devices_of(recipe.trainer))
    seed_everything(derive_seed(recipe.seed, "sft"))
    loaded = prepare_model(recipe)
    pairs = open_pairs(context)
    data = prepare_data(recipe, read_case_set(context.case_set_dir), loaded, passes, pairs)
    guard = FiniteGuard(context.folder, recipe.trainer.nonfinite_limit)
    module = SftModule(loaded, settings, _sample_writer(recipe, data, loaded), guard)
    callbacks = fit_callbacks(recipe, context.folder, "sft", settings.steps, settings.checkpoint_every)
    options: dict[str, Any] = {"val_check_interval": 1.0, "limit_val_batches": 0}
    if data.validation is not None:
        # Lightning counts batches here, not steps, and wants no interval beyond the last batch
        every = min(settings.validate_every, settings.steps) * passes
        options = {"val_check_interval": every, "check_val_every_n_epoch": None}
    trainer = build_trainer(
        recipe,
        folder=context.folder,
        stage="sft",
        max_steps=settings.steps,
        callbacks=callbacks,
        loggers=build_loggers(recipe, context),
        accumulate_grad_batches=passes,
        gradient_clip_val=settings.max_grad_norm,
        **options,
    )
    counts = parameter_counts(loaded.model)
    say(f"sft: {counts['trainable_parameters']:,} of {counts['parameters']:,} parameters are trained")
    fit_or_resume(trainer, module, data, context.folder, "sft")
    written = save_checkpoint(loaded, context.folder)
    if trainer.is_global_zero:
        readable(written)
    trainer.strategy.barrier("saved")  # no rank goes on to the next stage before the files are there
    finish_tracking()
    last = last_metrics(context.folder, ("loss", "eval_loss"))
    more: dict[str, Any] = {} if pairs is None else {"samples": counts_of(recipe, data.position)}
    if settings.start is not None:
        more["start"] = origin_of(given_checkpoint("sft.start", settings.start))
    return {"steps": trainer.global_step, "num_tokens": module.tokens_seen, **counts, **last, **more}
