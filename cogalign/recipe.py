"""The typed recipe: one dataclass for each part of a run.

A recipe is one YAML file which says a whole run. Its keys are the fields below; every one can be
overridden on the command line (``--sft.steps 10``). No heavy import belongs here: `cogalign --help`
reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cogalign.recipe_checks import require as _require
from cogalign.recipe_counterfactual import EVIDENCE as EVIDENCE
from cogalign.recipe_counterfactual import INTERVENTIONS as INTERVENTIONS
from cogalign.recipe_counterfactual import CounterfactualSettings as CounterfactualSettings
from cogalign.recipe_counterfactual import Evidence as Evidence
from cogalign.recipe_counterfactual import Fill as Fill
from cogalign.recipe_counterfactual import GroundingSettings as GroundingSettings
from cogalign.recipe_counterfactual import Intervention as Intervention
from cogalign.recipe_counterfactual import MaskSettings as MaskSettings
from cogalign.recipe_counterfactual import QualitySettings as QualitySettings
from cogalign.recipe_grpo import PARTS as PARTS
from cogalign.recipe_grpo import CustomReward as CustomReward
from cogalign.recipe_grpo import GrpoSettings as GrpoSettings
from cogalign.recipe_grpo import MixSettings as MixSettings
from cogalign.recipe_grpo import RewardSchedule as RewardSchedule
from cogalign.recipe_grpo import RewardWeights as RewardWeights
from cogalign.recipe_grpo import VllmSettings as VllmSettings
from cogalign.recipe_segmenter import SegmenterSettings as SegmenterSettings


@dataclass
class ModelSettings:
    """The multimodal LLM that is aligned."""

    name: str = "tiny"
    """`tiny` (the packaged base of about one million parameters), `tiny-random`, a hub id or a folder in hub layout."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; `auto` is bfloat16 on a GPU that has it, else float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    min_pixels: int | None = None
    """Least number of pixels to which the processor resizes an image; None keeps the processor's own."""
    max_pixels: int | None = None
    """Largest number of pixels of an image (paper: 450,560 = 440 visual tokens); None keeps the processor's own."""

    def __post_init__(self) -> None:
        if self.min_pixels is not None and self.max_pixels is not None:
            _require(self.min_pixels <= self.max_pixels, "model.min_pixels", self.min_pixels,
                     f"at most model.max_pixels = {self.max_pixels}")  # fmt: skip


@dataclass
class LoraSettings:
    """Low-rank adapters on the linear layers of the language model."""

    r: int = 16
    """Rank (paper: 16)."""
    alpha: int = 32
    """Scale numerator (paper: 32)."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""

    def __post_init__(self) -> None:
        _require(self.r >= 1, "lora.r", self.r, "at least 1")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a share in [0, 1)")


@dataclass
class PhantomSettings:
    """Procedural endoscopy made for this run."""

    train: int = 2000
    """Images of the split `train`."""
    validation: int = 100
    """Images of the split `validation`."""
    test: int = 300
    """Images of the split `test`, and as many of `test_shifted`."""
    size: int = 128
    """Side of an image in pixels."""
    seed: int = 3
    """Seed of the generator."""
    confounding: float = 0.95
    """Probability that the background (guide box colour, border, hue) tells the finding."""
    multi_label: float = 0.12
    """Share of the images that hold two different findings."""
    text: Literal["report", "description"] = "report"
    """`report`: clinical reports with diagnoses; `description`: plain looks, no diagnoses (for the base model)."""

    def __post_init__(self) -> None:
        _require(0 <= self.confounding <= 1, "data.phantom.confounding", self.confounding, "a share in [0, 1]")
        _require(self.size >= 32, "data.phantom.size", self.size, "at least 32 pixels")


@dataclass
class ImportSettings:
    """One public data set on disk, in its official layout."""

    card: str
    """Id of a card of `datasets/` (`cogalign data cards` lists them), or the path of a card of your own."""
    path: str
    """Folder of the data set, relative to `data.root`."""
    limit: int | None = None
    """At most so many cases for each finding (the first by file name)."""
    findings: list[str] = field(default_factory=list)
    """Only cases with one of these findings; empty for all."""
    split: str | None = None
    """Split of all its cases, e.g. `cross_source`: a data set that is not trained on; null: they are split as the others."""

    def __post_init__(self) -> None:
        _require(self.split != "", "data.imports.split", self.split, "a name or null")


@dataclass
class DataSettings:
    """Where the cases come from: exactly one of `case_set`, `phantom`, `imports`."""

    case_set: str | None = None
    """A case set (imagefolder with metadata.jsonl) on disk."""
    phantom: PhantomSettings | None = None
    """Make phantoms for this run."""
    imports: list[ImportSettings] | None = None
    """Import public data sets below `root`."""
    root: str = "."
    """Folder that holds the public data sets; no import leaves it."""
    images: Literal["copy", "reference"] = "copy"
    """What imports do with images: copy the files as they are, or refer to them where they lie (symbolic links)."""
    image_side: int | None = None
    """Resize all imported images to squares of this side, so that resolution does not give the class away."""
    overlays: Literal["keep", "mask", "randomise"] = "keep"
    """Burned-in text and guide boxes of imported images: kept, painted over, or replaced by those of images drawn at random."""
    split: Literal["stratified", "official"] = "stratified"
    """Split of imported cases: drawn by label and group, or the data sets' own (cases without one are drawn)."""
    test_share: float = 0.2
    """Share of the imported cases that go to `test`; as large a share of the rest, halved, is `validation`."""
    cache_gb: float | None = 4.0
    """Most disk space for images as the processor made them, in the run's folder; null makes them anew each time."""
    question: str = "Based on the image, what is the diagnosis?"
    """The question of every prompt (paper's query)."""
    seed: int = 3
    """Seed of the split of imported cases."""


StrategyName = Literal["auto", "ddp", "fsdp2", "deepspeed_2", "deepspeed_3"]


@dataclass
class TrainerSettings:
    """What Lightning's trainer runs on."""

    accelerator: str = "auto"
    """`auto`, `cpu` or `gpu`."""
    devices: int | str = "auto"
    """Number of devices, or `auto`."""
    num_nodes: int = 1
    """Number of machines."""
    strategy: StrategyName = "auto"
    """How devices share the work: `auto` (`ddp` where there are several), `ddp`, `fsdp2`, `deepspeed_2`, `deepspeed_3`."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto` is bf16-mixed where the device has bfloat16 arithmetic, else 32-true."""
    threads: int | None = None
    """CPU threads of torch; None leaves torch's choice."""
    activation_checkpointing: bool = False
    """Compute the language model's activations again in the backward pass, instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile the language model's blocks with `torch.compile`, where the stage can use it."""
    keep_checkpoints: int = 2
    """Checkpoints that a stage keeps; a damaged newest one falls back to the one before."""
    sharded_checkpoints: bool = False
    """With `fsdp2`, every device writes its part of a checkpoint; false writes one file that any strategy loads."""
    timeout: float = 1800.0
    """Seconds without progress after which a stage is ended, with the place in the code where each process stands."""
    nonfinite_limit: int = 3
    """Steps in a row with a loss or gradient that is not finite, each skipped and its batch saved, until the stage ends."""

    def __post_init__(self) -> None:
        for name in ("num_nodes", "keep_checkpoints", "nonfinite_limit"):
            _require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), "at least 1")
        _require(self.timeout > 0, "trainer.timeout", self.timeout, "a positive number of seconds")
        _require(not self.sharded_checkpoints or self.strategy == "fsdp2", "trainer.sharded_checkpoints",
                 self.sharded_checkpoints, f"false with the strategy {self.strategy}: only fsdp2 shards")  # fmt: skip


@dataclass
class TrackingSettings:
    """Weights & Biases; a CSV file is always written beside it."""

    wandb: bool = True
    """Log to wandb (offline unless WANDB_MODE says otherwise)."""
    project: str = "cogalign"
    """wandb project."""
    entity: str | None = None
    """wandb team or user."""
    sample_every: int = 50
    """Optimizer steps between two tables of sampled completions with images; 0 for none."""


@dataclass
class SftSettings:
    """Stage 1: supervised fine-tuning on hierarchical clinical cognition."""

    checkpoint: str | None = None
    """Folder of a stage-1 adapter or model made before; the stage then checks it and trains none."""
    start: str | None = None
    """Folder of an adapter or model from which the training goes on; null starts from `model`."""
    steps: int = 400
    """Optimizer steps (paper: 400)."""
    batch_size: int = 16
    """Samples a forward pass and device."""
    accumulate: int = 1
    """Forward passes an optimizer step; with `global_batch` it follows from that."""
    global_batch: int | None = None
    """Samples an optimizer step over all devices (paper: 128); null: batch_size x devices x accumulate."""
    learning_rate: float = 1e-4
    """Peak learning rate (paper: 1e-4)."""
    warmup_share: float = 0.03
    """Share of the steps with a linear warm-up; cosine decay to zero after it."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """Adapters; null trains all weights that are not frozen."""
    freeze_vision: bool = True
    """Keep the vision encoder fixed (paper: yes)."""
    freeze_projector: bool = True
    """Keep the projector (the patch merger) fixed (paper: yes)."""
    projector_learning_rate: float | None = None
    """Peak learning rate of a projector that is trained; None is `learning_rate`."""
    max_length: int = 2048
    """Longest sequence in tokens, image tokens included; a longer sample is an error, never cut."""
    validate_every: int = 100
    """Optimizer steps between two validations; 0 for none."""
    validation_limit: int = 64
    """Cases of a validation."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints from which an interrupted stage goes on."""
    workers: int = 0
    """Processes that load images."""
    group_by_length: bool = False
    """Batches hold answers of like length: less padding, but where length tells the finding, batches of like findings."""
    balance: int = 1
    """Most often that a case is taken in an epoch, to even out the findings within each data set that has several."""
    mix: MixSettings = field(default_factory=MixSettings)
    """Shares of factual cases and of each intervention among the samples."""

    def __post_init__(self) -> None:
        _require(self.balance >= 1, "sft.balance", self.balance, "at least 1")
        _require(self.checkpoint is None or self.start is None, "sft.start", self.start,
                 "null, since sft.checkpoint is given: nothing is trained then")  # fmt: skip
        for name in ("steps", "batch_size", "accumulate", "max_length", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"sft.{name}", getattr(self, name), "at least 1")
        _require(self.learning_rate > 0, "sft.learning_rate", self.learning_rate, "a positive number")
        rate = self.projector_learning_rate
        _require(rate is None or rate > 0, "sft.projector_learning_rate", rate, "null or a positive number")
        _require(rate is None or not self.freeze_projector, "sft.projector_learning_rate", rate,
                 "null, as sft.freeze_projector is true")  # fmt: skip


ModelRole = Literal["base", "sft", "aligned"]


@dataclass
class EvaluateSettings:
    """Accuracy of the models on the splits of the case set."""

    models: list[ModelRole] = field(default_factory=lambda: ["base", "sft", "aligned"])
    """Which of the run's models are judged."""
    splits: list[str] = field(default_factory=lambda: ["test", "test_shifted"])
    """Splits that are judged, those that the case set has."""
    limit: int | None = None
    """At most so many cases a split; None for all."""
    batch_size: int = 64
    """Prompts generated at once."""
    max_completion_length: int = 512
    """Longest completion in tokens (greedy decoding)."""
    bootstrap: int = 1000
    """Resamples of the confidence intervals."""


@dataclass
class AuditSet:
    """Counterfactuals made in another way, e.g. with another fill, that are audited beside the run's own."""

    name: str
    """Its name in the metrics."""
    pairs: str
    """Folder of the pairs: the folder `counterfactual` of a run on the same case set."""

    def __post_init__(self) -> None:
        fine = self.name.replace("_", "").replace("-", "").isalnum()
        _require(fine, "audit.sets.name", self.name, "letters, digits, - and _")


@dataclass
class AuditSettings:
    """The causal audit: does the model read the lesion or the background?"""

    models: list[ModelRole] = field(default_factory=lambda: ["base", "sft", "aligned"])
    """Which of the run's models are judged."""
    split: str = "test"
    """The split whose counterfactuals are used; `counterfactual.splits` must hold it."""
    limit: int | None = None
    """At most so many cases for each rate; None for all."""
    batch_size: int = 64
    """Prompts generated at once."""
    max_completion_length: int = 512
    """Longest completion in tokens (greedy decoding)."""
    bootstrap: int = 1000
    """Resamples of the confidence intervals."""
    spots: int = 12
    """Bubbles and reflections drawn on an image for `spot_drop`."""
    sets: list[AuditSet] = field(default_factory=list)
    """Other sets of pairs, audited beside the run's own."""
    background_blur: float | None = None
    """Sigma of a blur of all but the lesions, over the image's shorter side, for `background_blur_keep_rate`; null leaves it out."""

    def __post_init__(self) -> None:
        names = [item.name for item in self.sets]
        _require(len(names) == len(set(names)), "audit.sets", names, "each name once")
        _require(self.background_blur is None or self.background_blur > 0, "audit.background_blur",
                 self.background_blur, "a positive number or null")  # fmt: skip


@dataclass
class ExportSettings:
    """The model that is taken home: adapter merged, hub layout, reloaded and compared."""

    model: ModelRole = "aligned"
    """Which of the run's models is exported."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights written; `auto` keeps the type that the model was loaded in."""
    tolerance: float = 1e-3
    """Largest difference of a logit between the model in memory and the reloaded export (same dtype)."""


STAGES = ("segmenter", "sft", "counterfactual", "grpo", "evaluate", "audit", "export")
USUAL_STAGES = STAGES[1:]
"""What a recipe runs that does not say it: a segmenter is trained once, and used in many runs."""


@dataclass
class Recipe:
    """A whole run."""

    name: str = "run"
    """Name of the run; its folder is `runs/<name>` unless `out` is given."""
    out: str | None = None
    """Folder of the run."""
    seed: int = 1
    """Seed of the training stages."""
    stages: list[str] = field(default_factory=lambda: list(USUAL_STAGES))
    """Stages that `cogalign run` goes through, in order."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The multimodal LLM that is aligned."""
    data: DataSettings = field(default_factory=DataSettings)
    """Where the cases come from."""
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    """The net that finds lesions."""
    sft: SftSettings = field(default_factory=SftSettings)
    """Stage 1."""
    counterfactual: CounterfactualSettings = field(default_factory=CounterfactualSettings)
    """Stage 2."""
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    """Stage 3."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """Accuracy."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    """Lesion or background?"""
    export: ExportSettings = field(default_factory=ExportSettings)
    """The model that is taken home."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """What Lightning's trainer runs on."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        _require(not unknown, "stages", unknown, f"some of {', '.join(STAGES)}")
        ordered = [stage for stage in STAGES if stage in self.stages]
        _require(self.stages == ordered, "stages", self.stages, f"the order {ordered}")
        vllm = self.grpo.vllm
        longest = max(vllm.request_timeout, vllm.start_timeout)
        _require(self.grpo.sampler != "vllm" or self.trainer.timeout > longest, "trainer.timeout", self.trainer.timeout,
                 f"more than grpo.vllm's request_timeout and start_timeout ({longest:g}): waiting for the server is no hang")  # fmt: skip

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.out) if self.out else Path("runs") / self.name
