"""What a study runs: the recipe of the shared part, of each audit set and of each arm and seed, and their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cogalign.recipe import STAGES, Recipe
from cogalign.study.keys import check_keys, flat, laid_over, without
from cogalign.study.settings import OWN, PRIMARY, ROLES, StudySettings, read_study

SHARED = "shared"
BASE = "recipes/recipe.yaml"
"""The recipe that all runs share, with the overrides of the command line, below the study's folder."""


@dataclass(frozen=True)
class Run:
    """One process of a study: a recipe that `cogalign run` goes through.

    Attributes:
        name: of its recipe's file, without the suffix.
        label: for the screen.
        recipe: resolved.
        needs: names of the runs whose results it reads.
        steps: optimizer steps of its own; 0 where it trains no model.
        total: those of the arms before it included.
        arm, seed: of a training; None for the shared part and for audit sets.
    """

    name: str
    label: str
    recipe: Recipe
    needs: tuple[str, ...] = ()
    steps: int = 0
    total: int = 0
    arm: str | None = None
    seed: int | None = None

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.recipe.run_dir / "log.txt"


@dataclass(frozen=True)
class Plan:
    """A whole study, resolved.

    Attributes:
        study: its settings, without what the command line overrides.
        out: its folder.
        base: the recipe that all runs share.
        runs: in order; what a run needs comes before it.
    """

    study: StudySettings
    out: Path
    base: Recipe
    runs: tuple[Run, ...]

    def recipe_file(self, run: Run) -> Path:
        """Where the recipe of a run is written."""
        return self.out / "recipes" / f"{run.name}.yaml"

    def files(self) -> dict[Path, str]:
        """All files that say what is run, with their content."""
        import yaml

        from cogalign.recipe_file import recipe_yaml

        settings = asdict(replace(self.study, recipe=BASE))
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
        return {
            self.out / BASE: recipe_yaml(self.base),
            **{self.recipe_file(run): recipe_yaml(run.recipe) for run in self.runs},
            self.out / "study.yaml": text,
        }

    def with_needed(self, names: set[str]) -> list[Run]:
        """The runs of these names and all that they need, in order."""
        wanted = set(names)
        for run in reversed(self.runs):
            wanted |= set(run.needs) if run.name in wanted else set()
        return [run for run in self.runs if run.name in wanted]


def make_plan(path: Path, out: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a study and resolve the recipes of its runs; nothing is written.

    Args:
        path: the study's file.
        out: its folder; by default `runs/<name>`.
        overrides: nested keys of the command line; they go before what the study and its arms say.

    Raises:
        FileNotFoundError: the study or its recipe is not there.
        ValueError: what is wrong in the study or in a recipe that follows from it.
    """
    from cogalign.recipe_file import build_recipe, read_mapping

    study, over, source = read_study(path), dict(flat(overrides or {})), str(path)
    check_keys(study, over, source)
    study = without(study, over)
    recipe = path.parent / study.recipe
    content = laid_over(read_mapping(recipe), over)
    folder = _as_seen_from_here(Path("runs") / study.name if out is None else out)
    maker = _Maker(study, content, folder, source)
    runs = (maker.shared(), *maker.sets(), *maker.arms())
    if study.equal_steps:
        _check_steps(study, runs, source)
    base = build_recipe(content, str(recipe))
    _check_primary(study, base, source)
    return Plan(study, folder, base, runs)


class _Maker:
    """Makes the runs of one study."""

    def __init__(self, study: StudySettings, content: Mapping[str, Any], out: Path, source: str) -> None:
        self.study, self.content, self.out, self.source = study, content, out, source
        self._shared = self.shared().recipe
        self._sets = [run.recipe for run in self.sets()]

    def _recipe(self, own: Mapping[str, object], given: Mapping[str, Any], what: str) -> Recipe:
        """The shared recipe with keys of a part of the study and those that the study gives it."""
        from cogalign.recipe_file import build_recipe

        return build_recipe(laid_over(laid_over(self.content, own), given), f"{self.source}: {what}")

    def shared(self) -> Run:
        """The case set, the segmenter and the counterfactuals that all arms read."""
        given = {"name": f"{self.study.name}-{SHARED}", "out": str(self.out / SHARED), "stages": ["counterfactual"]}
        recipe = self._recipe({}, given, "recipe")
        settings = recipe.counterfactual
        if settings.masks.segmenter == "run" and (settings.pairs is None or self.study.sets):
            recipe = replace(recipe, stages=["segmenter", "counterfactual"])
        self._check_split(recipe, recipe, "recipe")
        return Run(SHARED, SHARED, recipe)

    def sets(self) -> Iterator[Run]:
        """The audit sets: the shared cases, with other counterfactuals."""
        for name, own in self.study.sets.items():
            given = self._cases() | {
                "name": f"{self.study.name}-{name}", "out": str(self.out / "sets" / name), "stages": ["counterfactual"],
                "counterfactual.pairs": own.get("counterfactual.pairs"),
            }  # fmt: skip
            recipe = self._recipe(own, given, f"sets.{name}")
            if recipe.counterfactual.masks.segmenter == "run":
                given["counterfactual.masks.segmenter"] = str(self.out / SHARED / "segmenter")
            recipe = self._recipe(own, given, f"sets.{name}")
            self._check_split(recipe, self._shared, f"sets.{name}")
            if not self._differs(own):
                raise ValueError(
                    f"{self.source}: sets.{name}: its counterfactuals would be those that all arms read; "
                    "wanted e.g. another counterfactual.fill"
                )
            yield Run(f"set-{name}", f"set {name}", recipe, (SHARED,))

    def arms(self) -> Iterator[Run]:
        """The trainings, seed by seed; each after the one at whose checkpoint it starts."""
        ready = (SHARED, *(f"set-{name}" for name in self.study.sets))
        for seed in self.study.seeds:
            made: dict[str, Run] = {}
            for name in self.study.ordered:
                arm = self.study.arms[name]
                recipe = self._arm_recipe(name, seed, made)
                steps = recipe.sft.steps if arm.trains == "sft" else recipe.grpo.steps
                before = made[arm.after] if arm.after else None
                made[name] = Run(
                    f"{name}-seed{seed}",
                    f"{name} seed {seed}",
                    recipe,
                    ready + ((before.name,) if before else ()),
                    steps,
                    steps + (before.total if before else 0),
                    name,
                    seed,
                )
                yield made[name]

    def _arm_recipe(self, name: str, seed: int, made: Mapping[str, Run]) -> Recipe:
        arm, role = self.study.arms[name], ROLES[self.study.arms[name].trains]
        sets = [asdict(item) for item in self._shared.audit.sets]
        sets += [
            {"name": one, "pairs": _pairs(recipe)} for one, recipe in zip(self.study.sets, self._sets, strict=True)
        ]
        given: dict[str, Any] = self._cases() | {
            "name": f"{self.study.name}-{name}-seed{seed}",
            "out": str(self.out / "arms" / name / f"seed{seed}"),
            "seed": seed,
            # `sft` checks the checkpoint where it trains none, `counterfactual` the pairs
            "stages": [one for one in STAGES if one in ("sft", "counterfactual", arm.trains, "evaluate", "audit")],
            "counterfactual.pairs": _pairs(self._shared),
            "evaluate.models": [role],
            "audit.models": [role],
            "audit.sets": sets,
        }
        if arm.after is not None:
            key = "sft.checkpoint" if arm.trains == "grpo" else "sft.start"
            given[key] = str(self._checkpoint(arm.after, made[arm.after].recipe))
        return self._recipe(arm.set, given, f"arms.{name}")

    def _checkpoint(self, name: str, recipe: Recipe) -> Path:
        """What an arm leaves behind: an adapter, or a model where all weights are trained."""
        kind = "model" if recipe.sft.lora is None else "adapter"
        return recipe.run_dir / self.study.arms[name].trains / kind

    def _cases(self) -> dict[str, Any]:
        """The keys that name the shared case set."""
        case_set = self._shared.data.case_set or str(self.out / SHARED / "data")
        return {"data.case_set": case_set, "data.phantom": None, "data.imports": None}

    def _differs(self, own: Mapping[str, object]) -> bool:
        """Whether an audit set is made in another way than the counterfactuals that all arms read."""
        plain = replace(self._shared.counterfactual, splits=[])
        other = self._recipe(own, {}, "sets").counterfactual
        return replace(other, splits=[]) != plain

    def _check_split(self, recipe: Recipe, judged: Recipe, what: str) -> None:
        """The audit reads one split; whether it is there is better said before the training."""
        settings, split = recipe.counterfactual, judged.audit.split
        if settings.pairs is None and split not in settings.splits:
            raise ValueError(
                f"{self.source}: {what}: counterfactual.splits: found {settings.splits}, wanted {split!r} among them, "
                "which the audit reads (audit.split)"
            )


def _pairs(recipe: Recipe) -> str:
    """Folder of the counterfactuals that a recipe makes or names."""
    return recipe.counterfactual.pairs or str(recipe.run_dir / "counterfactual")


def _as_seen_from_here(out: Path) -> Path:
    """One spelling of a folder, since recipes hold it and their digests with them: relative if it is below this one."""
    found, here = Path(os.path.abspath(out)), Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) and found != here else found


def _check_steps(study: StudySettings, runs: tuple[Run, ...], source: str) -> None:
    """Arms from which no other one starts have as many optimizer steps in all.

    Raises:
        ValueError: two of them that differ.
    """
    starts = {arm.after for arm in study.arms.values()}
    ends = [run for run in runs if run.arm is not None and run.arm not in starts]
    for run in ends:
        if run.total != ends[0].total:
            raise ValueError(
                f"{source}: arms.{run.arm} has {run.total} optimizer steps with those of the arms before it, "
                f"arms.{ends[0].arm} has {ends[0].total}; wanted as many, or equal_steps: false"
            )


def _check_primary(study: StudySettings, base: Recipe, source: str) -> None:
    """The measure that decides is one of those that the study takes; whether there is such a thing is better said first.

    Raises:
        ValueError: it is not, or a set's name is that of the study's own pairs.
    """
    sets = [*study.sets, *(item.name for item in base.audit.sets)]
    if OWN in sets:
        raise ValueError(
            f"{source}: recipe: audit.sets: found {OWN!r}, the name of the study's own pairs; wanted another"
        )
    if study.primary == PRIMARY:
        return  # without what knows the names, which takes seconds to load
    from cogalign.study.measures import NAMES

    places = [OWN, *sets, *base.evaluate.splits]
    where, _, name = study.primary.rpartition("/")
    if where not in places or name not in NAMES:
        raise ValueError(f"{source}: primary: found {study.primary!r}, wanted one of {', '.join(places)}, then a slash, "
                         f"then one of {', '.join(NAMES)}")  # fmt: skip
