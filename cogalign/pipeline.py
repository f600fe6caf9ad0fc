"""The stages of a run, in order: skip what is finished, go on with what is not, run again what has changed.

What a stage depends on is in its digest: its own settings, the model, the seed, and the digests of
the stages whose results it reads. `stage.json` keeps it, so a changed setting is noticed, and with
it everything that comes after.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from cogalign import __version__
from cogalign.recipe import STAGES, Recipe
from cogalign.recipe_file import recipe_yaml
from cogalign.training.atomic import write_json, write_text
from cogalign.training.context import STAGE_OF_ROLE, StageContext
from cogalign.training.interrupt import Interrupted, check, signals_interrupt
from cogalign.training.progress import format_seconds, say
from cogalign.training.stage_file import StageFile, digest_of, now, read_stage_file, versions

DATA = "data"
SEGMENTER = "segmenter"
MODULES = {
    "segmenter": "cogalign.segmenter.stage",
    "sft": "cogalign.sft.stage",
    "counterfactual": "cogalign.counterfactual.stage",
    "grpo": "cogalign.grpo.stage",
    "evaluate": "cogalign.evaluation.stage",
    "audit": "cogalign.evaluation.audit_stage",
    "export": "cogalign.export",
}
"""Module of each stage; it is imported when the stage runs."""

WITHOUT_EFFECT = ("checkpoint_every", "workers", "quality.batch_size", "cache_gb",
                  *(f"masks.grounding.{name}" for name in ("api_key_env", "concurrency", "timeout", "retries")))  # fmt: skip
"""Settings that do not change a result, and so are in no digest."""
AFTERWARDS = {
    "segmenter": ("worst", "bootstrap"),
    "counterfactual": ("gallery", "quality"),
}
"""Settings that come in after a stage's long work: with another value it runs again where that work lies."""
OF_MODEL = ("sft", "grpo", "evaluate", "audit", "export")
"""Stages that depend on the model and on the run's seed."""

TOGETHER = ("segmenter", "sft", "counterfactual", "grpo")
"""Stages in which all processes of a run take part; the main process alone does the others."""
FOLLOW_EVERY = 0.5
"""Seconds between two looks of a process that waits for the main one."""
PARENT = os.getppid()
"""The process that started this one; an orphan gets another."""

StageFunction = Callable[[StageContext], dict[str, Any]]


def run_recipe(recipe: Recipe, stages: Sequence[str] | None = None, force: bool = False) -> dict[str, Any]:
    """Run a recipe: the data first, then its stages.

    Args:
        recipe: the resolved recipe; everything is written into `recipe.run_dir`.
        stages: stages to run instead of the recipe's.
        force: run them again although they are finished (the data too if `stages` is not given).

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError, OSError: what is wrong with the input, in one message; finished stages are kept.
        Interrupted: a signal stopped the run; the next call goes on.
    """
    run_dir = recipe.run_dir
    wanted = list(recipe.stages if stages is None else stages)
    with _only_one(run_dir), signals_interrupt():
        if is_main_process():
            write_text(run_dir / "recipe.yaml", recipe_yaml(recipe))
        _data(recipe, force and stages is None)
        if "counterfactual" in wanted and SEGMENTER not in wanted and SEGMENTER in inputs_of(recipe, "counterfactual"):
            # Like the data, the segmenter is a means: nobody has to ask for it.
            wanted.insert(wanted.index("counterfactual"), SEGMENTER)
        for stage in wanted:
            again = force and (stages is None or stage in stages)
            _run_stage(StageContext(recipe, run_dir, stage), _function_of(stage), again)
        if stages is None and is_main_process():
            shutil.rmtree(run_dir / "cache", ignore_errors=True)  # of pixels: the stages are done with it
    return summarize(recipe)


def run_fills(recipe: Recipe, names: str | None, limit: int) -> str:
    """Compare fills on a recipe's own images; the results go into `fills/` of its run folder.

    Args:
        recipe: the resolved recipe; its data are prepared if they are not there.
        names: fills, with commas between them; None for all that need no model.
        limit: at most so many cases with lesions.

    Returns:
        The table, and where the files are.

    Raises:
        ValueError: an unknown fill, or no case has an expert's mask.
        FileNotFoundError: the recipe names a segmenter that is not there.
    """
    from cogalign.counterfactual.fills.registry import fills_named

    run_dir, chosen = recipe.run_dir, fills_named(names, recipe.counterfactual.diffusion_model)
    with _only_one(run_dir), signals_interrupt():
        _data(recipe, False)
        from cogalign.counterfactual.locate import segmenter_folder
        from cogalign.counterfactual.quality.compare import compare_fills

        context, out = StageContext(recipe, run_dir, "counterfactual"), run_dir / "fills"
        compare_fills(context, chosen, limit, out, segmenter_folder(context))
    return f"{(out / 'fills.md').read_text(encoding='utf-8')}\n{out} holds the table, the plot and pictures"


def is_main_process() -> bool:
    """Whether this process writes files: not one that Lightning or SLURM started beside the first."""
    return int(os.environ.get("SLURM_PROCID", 0)) == 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0


def inputs_of(recipe: Recipe, stage: str) -> list[str]:
    """Stages whose results a stage reads; `?` at the end marks one that it can do without."""
    if stage in (DATA,):
        return []
    if stage == "counterfactual":
        settings = recipe.counterfactual
        return [DATA, *([SEGMENTER] if settings.masks.segmenter == "run" and settings.pairs is None else [])]
    if stage in ("sft", SEGMENTER):
        return [DATA]
    if stage == "grpo":
        mix = recipe.grpo.mix
        return [DATA, "sft", *(["counterfactual"] if mix.removal or mix.control or mix.transplant else [])]
    if stage == "export":
        return [STAGE_OF_ROLE[recipe.export.model]] if recipe.export.model != "base" else []
    roles = recipe.evaluate.models if stage == "evaluate" else recipe.audit.models
    models = [f"{STAGE_OF_ROLE[role]}?" for role in roles if role != "base"]
    return [DATA, *(["counterfactual"] if stage == "audit" else []), *models]


def stage_digest(recipe: Recipe, stage: str, work_only: bool = False) -> str:
    """Digest of all that a stage's results depend on; input stages are taken as they lie in the run folder.

    Args:
        recipe: the resolved recipe.
        stage: name of the stage.
        work_only: leave out the settings that come in after the stage's long work.

    Raises:
        FileNotFoundError: an input stage has not finished; the message names the command that runs it.
    """
    run_dir = recipe.run_dir
    inputs: dict[str, str] = {}
    for name in inputs_of(recipe, stage):
        needed, name = not name.endswith("?"), name.rstrip("?")
        found = read_stage_file(run_dir / name)
        if found is not None and found.status == "finished":
            inputs[name] = found.digest
        elif needed:
            raise FileNotFoundError(
                f"{stage} needs the results of {name}, which is not finished in {run_dir}; "
                f"run `cogalign {name} RECIPE` first, or `cogalign run RECIPE`"
            )
    settings = asdict(getattr(recipe, stage))
    for name in (*WITHOUT_EFFECT, *(AFTERWARDS.get(stage, ()) if work_only else ())):
        _drop(settings, name)
    whole: dict[str, Any] = {"stage": stage, "settings": settings}
    if stage == SEGMENTER:
        whole |= {"seed": recipe.seed}
    if stage == "counterfactual":
        whole |= _of_pairs(recipe)
    if stage in OF_MODEL:
        whole |= {"model": asdict(recipe.model), "seed": recipe.seed, "question": recipe.data.question}
    if stage == DATA and recipe.data.case_set is not None:
        from cogalign.data.prepare import case_set_digest

        whole["case_set"] = case_set_digest(recipe.data.case_set)
    if stage == DATA and recipe.data.imports:
        from cogalign.data.cards.digest import cards_digest

        whole["cards"] = cards_digest(recipe.data.imports)
    return digest_of(whole, inputs)


def _drop(settings: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.get(section, {})
    settings.pop(name, None)


def _of_pairs(recipe: Recipe) -> dict[str, Any]:
    """What the pairs depend on beside the case set: a segmenter in a folder, the recipe's own model, pairs made before."""
    masks = recipe.counterfactual.masks
    found: dict[str, Any] = {}
    if recipe.counterfactual.pairs is not None:
        from cogalign.data.prepare import case_set_digest

        return {"pairs": case_set_digest(recipe.counterfactual.pairs)}
    if masks.segmenter not in (None, "run"):
        folder = Path(str(masks.segmenter)).expanduser()
        files = [folder / name for name in ("config.json", "model.safetensors")]
        found["segmenter"] = [sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    if "grounding" in masks.evidence and masks.grounding.url is None:
        found |= {"model": asdict(recipe.model)}
    return found


def summarize(recipe: Recipe) -> dict[str, Any]:
    """Write `summary.json` from the stages' `stage.json`, and give its content back."""
    stages: dict[str, Any] = {}
    for stage in (DATA, *STAGES):
        found = read_stage_file(recipe.run_dir / stage)
        if found is not None:
            stages[stage] = {"status": found.status, "seconds": found.seconds, "metrics": found.metrics}
    summary = {"recipe": recipe.name, "version": __version__, "stages": stages}
    if is_main_process():
        write_json(recipe.run_dir / "summary.json", summary)
    return summary


def _data(recipe: Recipe, force: bool) -> None:
    """Run the pseudo-stage `data`, unless it is finished."""
    from cogalign.data.prepare import follow_references

    follow_references(recipe.data)
    _run_stage(StageContext(recipe, recipe.run_dir, DATA), _prepare_data, force)


def _prepare_data(context: StageContext) -> dict[str, Any]:
    """The pseudo-stage `data`: the case set of the run."""
    from cogalign.data.caseset import read_case_set
    from cogalign.data.prepare import prepare

    case_set = read_case_set(prepare(context.recipe.data, context.folder))
    return {"cases": {split: len(case_set.split(split)) for split in case_set.splits}}


def _function_of(stage: str) -> StageFunction:
    """The function of a stage, imported when it is called."""

    def function(context: StageContext) -> dict[str, Any]:
        metrics: dict[str, Any] = importlib.import_module(MODULES[stage]).run(context)
        return metrics

    return function


def _run_stage(context: StageContext, function: StageFunction, force: bool) -> None:
    """Skip, go on with, or run one stage, and keep its `stage.json` and the summary true."""
    check()
    if not is_main_process():
        _follow(context, function, force)
        return
    stage, folder, recipe = context.stage, context.folder, context.recipe
    digest = stage_digest(recipe, stage)
    before = read_stage_file(folder)
    same = before is not None and before.digest == digest
    if before is not None and before.status == "finished" and same and not force:
        say(f"{stage}: finished before, skipped")
        summarize(recipe)
        return
    work = stage_digest(recipe, stage, work_only=True)
    again = stage in AFTERWARDS and before is not None and before.work == work and not same
    resumed = before is not None and ((same and before.status != "finished") or again) and not force
    if resumed and before is not None:
        say(f"{stage}: " + ("with other settings, but its work is there" if again else f"not finished ({before.status})")
            + ", going on")  # fmt: skip
    else:
        _move_aside(stage, folder, before, same)
        say(f"{stage}: starting")
    record = StageFile(
        stage=stage, digest=digest, work=work, started=now(), versions=versions(), seeds=_seeds(recipe, stage),
        seconds=before.seconds if resumed and before else 0.0, resumed=before.resumed + 1 if resumed and before else 0,
    )  # fmt: skip
    if resumed and before is not None:
        record.started = before.started
    _write(record, context)
    _execute(context, function, record)


def _follow(context: StageContext, function: StageFunction, force: bool) -> None:
    """What a process beside the main one does: take part in the stages that share their work, wait for the others.

    The main process decides by what it writes into `stage.json` whether a stage is skipped or runs.

    Raises:
        RuntimeError: the main process is gone.
    """
    old = read_stage_file(context.folder) if force else None
    took_part = False
    while True:
        check()
        record = read_stage_file(context.folder)
        if record is not None and record.digest == _digest_if_ready(context):
            fresh = old is None or record.started != old.started
            if record.status == "finished" and fresh:
                return
            if record.status == "running" and context.stage in TOGETHER and not took_part:
                function(context)
                took_part = True
                continue
        if os.getppid() != PARENT:  # in a container the main process may itself be process 1
            raise RuntimeError(f"{context.stage}: the main process has ended, so this one ends too")
        time.sleep(FOLLOW_EVERY)


def _digest_if_ready(context: StageContext) -> str | None:
    """The stage's digest, or None while its inputs are not finished."""
    try:
        return stage_digest(context.recipe, context.stage)
    except FileNotFoundError:
        return None


def _execute(context: StageContext, function: StageFunction, record: StageFile) -> None:
    """Call the stage and write how it ended."""
    start, earlier = time.monotonic(), record.seconds
    try:
        record.metrics = function(context) or {}
        record.status = "finished"
    except (Interrupted, KeyboardInterrupt):
        record.status = "interrupted"
        raise
    except BaseException as error:
        record.status = "failed"
        record.message = (str(error).strip() or type(error).__name__)[:2000]
        raise
    finally:
        record.seconds = round(earlier + time.monotonic() - start, 3)
        record.finished = now()
        _finish_tracking(failed=record.status != "finished")
        _write(record, context)
    say(f"{context.stage}: finished in {format_seconds(record.seconds)}")


def _finish_tracking(failed: bool) -> None:
    """End the stage's wandb run, if the stage used tracking at all."""
    if "cogalign.training.tracking" in sys.modules:
        from cogalign.training.tracking import finish_tracking

        finish_tracking(failed)


def _write(record: StageFile, context: StageContext) -> None:
    """Write `stage.json` and `summary.json`; on a full disk the stage's own error stays the one that is seen."""
    try:
        record.write(context.folder)
        summarize(context.recipe)
    except OSError as error:
        if record.status in ("finished", "running"):
            raise
        say(f"warning: {context.folder / 'stage.json'} could not be written ({error})")


def _move_aside(stage: str, folder: Path, before: StageFile | None, same: bool) -> None:
    """Make room for a stage that runs anew: what it had made is renamed to `<stage>.replaced`."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    aside = folder.with_name(f"{folder.name}.replaced")
    reason = "runs again" if same else "made with other settings or inputs"
    if before is None:
        reason = "no stage.json says what it was made with"
    if aside.exists():
        say(f"{stage}: the older {aside} is deleted")
        shutil.rmtree(aside)
    say(f"{stage}: {reason}; the folder that is there becomes {aside.name}")
    os.replace(folder, aside)


def _seeds(recipe: Recipe, stage: str) -> dict[str, int]:
    """The seeds that a stage uses."""
    if stage == DATA:
        phantom = recipe.data.phantom
        return {"phantom": phantom.seed} if phantom is not None else {"split": recipe.data.seed}
    if stage == "counterfactual":
        return {"counterfactual": recipe.counterfactual.seed}
    return {"run": recipe.seed}


@contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that two runs do not write into it at once.

    Raises:
        ValueError: another process holds it.
    """
    if not is_main_process():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run_dir}: another cogalign run is writing here; wait, or give another --out") from None
        except OSError:
            pass  # a file system without locks
        yield
