"""What a stage is told: the recipe, the run folder, and where the other stages' results lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogalign.recipe import ModelRole, Recipe
from cogalign.training.given import given_checkpoint

STAGE_OF_ROLE: dict[str, str] = {"sft": "sft", "aligned": "grpo"}
"""The stage that makes each trained model."""


@dataclass(frozen=True)
class StageContext:
    """One stage of one run.

    Attributes:
        recipe: the resolved recipe.
        run_dir: folder of the run.
        stage: name of the stage, e.g. `sft`.
    """

    recipe: Recipe
    run_dir: Path
    stage: str

    @property
    def folder(self) -> Path:
        """Folder into which the stage writes."""
        return self.run_dir / self.stage

    @property
    def case_set_dir(self) -> Path:
        """Folder of the factual case set."""
        case_set = self.recipe.data.case_set
        return Path(case_set) if case_set else self.run_dir / "data"

    @property
    def counterfactual_dir(self) -> Path:
        """Folder of the case set of pairs."""
        made_before = self.recipe.counterfactual.pairs
        return Path(made_before) if made_before else self.run_dir / "counterfactual"

    def checkpoint(self, role: ModelRole | str) -> Path | None:
        """Weights of one of the run's models.

        Args:
            role: `base`, `sft` or `aligned`.

        Returns:
            None for the base model; else a PEFT adapter folder (`adapter`) or a full model folder (`model`). The SFT model
            is `sft.checkpoint` where the recipe names one.

        Raises:
            ValueError: no such role.
            FileNotFoundError: the stage that makes this model has not run, or `sft.checkpoint` is not there.
        """
        if role == "base":
            return None
        if role not in STAGE_OF_ROLE:
            raise ValueError(f"model role: found {role!r}, wanted base, sft or aligned")
        stage, made_before = STAGE_OF_ROLE[role], self.recipe.sft.checkpoint
        if role == "sft" and made_before is not None:
            return given_checkpoint("sft.checkpoint", made_before)
        for kind in ("adapter", "model"):
            folder = self.run_dir / stage / kind
            if folder.is_dir():
                return folder
        raise FileNotFoundError(
            f"the {role} model is not in {self.run_dir / stage}: run the stage {stage} first (cogalign {stage} RECIPE)"
        )
