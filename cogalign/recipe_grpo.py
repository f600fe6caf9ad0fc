"""The typed settings of stage 3, group relative policy optimization; `cogalign.recipe` gives them to everybody else.

No heavy import belongs here: `cogalign --help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cogalign.recipe_checks import require as _require

PARTS = ("factual", "removal", "control", "transplant")
ObjectiveName = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]


@dataclass
class RewardWeights:
    """Weights of the rewards in the sum (paper: format 1, cognition 1, diagnosis 2, no others); 0 is not computed."""

    format: float = 1.0
    """All three headings are there (paper)."""
    cognition: float = 1.0
    """Share of the nine keywords that occur anywhere (paper)."""
    diagnosis: float = 2.0
    """The set of diagnoses equals the case's (paper)."""
    structure: float = 0.0
    """Headings once each and in order, one diagnosis line at the end, no repeated sentences."""
    section_cognition: float = 0.0
    """Keywords in their own section, negation understood, stuffing punished."""
    diagnosis_f1: float = 0.0
    """F1 of the set of diagnoses: part credit where several findings are right."""
    diagnosis_near: float = 0.0
    """F1 in which a relative in the taxonomy counts in part."""
    pair: float = 0.0
    """The answers to a case and to its counterfactual agree or differ as the intervention demands."""
    length: float = 0.0
    """1 up to `length_target` tokens, falling to 0 at `max_completion_length`."""


@dataclass
class CustomReward:
    """A reward of an installed package, in TRL's protocol."""

    path: str
    """Dotted path of the function, e.g. `my_package.rewards.my_reward`."""
    weight: float = 1.0
    """Its weight in the sum."""

    def __post_init__(self) -> None:
        parts = self.path.split(".")
        good = len(parts) >= 2 and all(part.isidentifier() for part in parts)
        _require(good, "grpo.custom_rewards.path", self.path, "a dotted path such as my_package.rewards.my_reward")


@dataclass
class RewardSchedule:
    """How a reward's weight changes over the run."""

    reward: str
    """Name of the reward."""
    points: list[list[float]]
    """Pairs of optimizer step and factor on the weight; linear between them, constant outside."""

    def __post_init__(self) -> None:
        pairs = bool(self.points) and all(len(point) == 2 for point in self.points)
        rising = pairs and all(a[0] < b[0] for a, b in zip(self.points, self.points[1:], strict=False))
        _require(rising, "grpo.reward_schedules.points", self.points, "pairs [step, factor] with rising steps")


@dataclass
class VllmSettings:
    """A vLLM server that samples the completions (`grpo.sampler: vllm`)."""

    url: str | None = None
    """Address of a running server, e.g. http://127.0.0.1:8000; null starts one on this machine."""
    python: str | None = None
    """Python of the environment that holds vLLM, for the server that is started; null is this one."""
    port: int = 0
    """Port of the server that is started; 0 takes a free one."""
    start_timeout: float = 600.0
    """Seconds that the server may take until it is healthy."""
    request_timeout: float = 300.0
    """Seconds that one request may take."""
    retries: int = 3
    """Times that a failed request is sent again before the run ends with an error."""
    arguments: list[str] = field(default_factory=list)
    """More arguments of the server that is started, e.g. ["--gpu-memory-utilization", "0.5"]."""

    def __post_init__(self) -> None:
        _require(self.start_timeout > 0, "grpo.vllm.start_timeout", self.start_timeout, "a positive number of seconds")
        _require(self.request_timeout > 0, "grpo.vllm.request_timeout", self.request_timeout, "a positive number")
        _require(self.retries >= 0, "grpo.vllm.retries", self.retries, "0 or more")


@dataclass
class MixSettings:
    """Shares of the prompts of a GRPO step; they are normalised."""

    factual: float = 1.0
    """Cases as they are."""
    removal: float = 0.0
    """Lesion removed: normal."""
    control: float = 0.0
    """Same operator off the lesion: label kept."""
    transplant: float = 0.0
    """Lesion on another background: label kept."""

    def __post_init__(self) -> None:
        shares = [getattr(self, part) for part in PARTS]
        _require(min(shares) >= 0 and sum(shares) > 0, "grpo.mix or sft.mix", shares,
                 "shares of which one is positive, none negative")  # fmt: skip

    @property
    def shares(self) -> dict[str, float]:
        """The parts that the mix has, with their shares."""
        return {part: float(getattr(self, part)) for part in PARTS if getattr(self, part) > 0}

    @property
    def interventions(self) -> list[str]:
        """The interventions that the mix has."""
        return [part for part in self.shares if part != "factual"]

    def __str__(self) -> str:
        return ", ".join(f"{part} {share:g}" for part, share in self.shares.items())


@dataclass
class GrpoSettings:
    """Stage 3: group relative policy optimization."""

    steps: int = 200
    """Optimizer steps (paper: 200)."""
    prompts_per_step: int = 32
    """Prompts of an optimizer step over all devices (paper: 256 completions / G)."""
    num_generations: int = 8
    """G, completions of a prompt (paper: 8)."""
    freeze_projector: bool = True
    """Keep a projector that stage 1 trained beside its adapter (`sft.freeze_projector: false`) as it is; with full weights stage 1's
    settings hold."""
    projector_learning_rate: float | None = None
    """Peak learning rate of a projector that is trained; None is `learning_rate`."""
    demonstrations: int = 0
    """How many of the G are the case's own report instead of sampled: a group without a right answer then teaches (paper: none)."""
    drafts: bool = False
    """Guess completions from the cases' reports and check many tokens of a guess at once (`sampler: hf`); the distribution stays."""
    micro_batch: int = 32
    """Prompts sampled and scored at once on a device; gradients are accumulated over the rest."""
    steps_per_generation: int = 1
    """Optimizer steps' worth of prompts that are sampled together before the first update."""
    num_iterations: int = 1
    """mu, times that each batch of completions is used for an optimizer step."""
    objective: ObjectiveName = "grpo"
    """Loss: `grpo` (paper), `dr_grpo`, `dapo`, `bnpo`, `gspo` (ratio of whole sequences), `cispo`."""
    learning_rate: float = 1e-6
    """Peak learning rate (paper: 1e-6)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up the learning rate stays, or decays to zero."""
    warmup_share: float = 0.03
    """Share of the steps with a linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    beta: float = 0.04
    """Weight of the KL divergence from the SFT model (paper: 0.04); 0 spares the reference pass."""
    epsilon: float = 0.2
    """Clip range below the ratio 1."""
    epsilon_high: float | None = None
    """Clip range above the ratio 1 (clip-higher); None is `epsilon`."""
    delta: float | None = None
    """Largest ratio at all (two-sided clip), above 1 + epsilon_high; None for no such limit."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence (Schulman)."""
    mask_truncated: bool = False
    """Completions that were cut off at the length limit teach nothing."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the standard deviation of their group, of all completions, or not."""
    aggregation: Literal["sum", "gdpo"] = "sum"
    """`sum` weighs and adds the rewards, then normalises; `gdpo` normalises each reward, then weighs and adds."""
    dynamic_sampling: int = 0
    """Times that groups whose rewards do not differ are replaced by new prompts; 0 keeps them."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus of the sampling; 1 for all tokens."""
    top_k: int = 0
    """Only the k likeliest tokens are sampled; 0 for all."""
    max_completion_length: int = 512
    """Longest completion in tokens."""
    length_target: int = 256
    """Length in tokens up to which the reward `length` is 1."""
    sampler: Literal["hf", "vllm"] = "hf"
    """Who samples: this process, or a vLLM server."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    """The vLLM server, for `sampler: vllm`."""
    importance: Literal["truncate", "mask", "none"] = "truncate"
    """Correction where the sampler's probabilities differ from the policy's (`sampler: vllm`), token by token."""
    importance_cap: float = 2.0
    """Largest correction; beyond it the factor is cut to it (`truncate`) or the token left out (`mask`)."""
    reward_weights: RewardWeights = field(default_factory=RewardWeights)
    """Weights of the rewards."""
    reward_schedules: list[RewardSchedule] = field(default_factory=list)
    """Changes of the weights over the run."""
    custom_rewards: list[CustomReward] = field(default_factory=list)
    """Rewards of installed packages beside ours."""
    reward_workers: int = 1
    """Processes that compute rewards."""
    reward_timeout: float = 30.0
    """Seconds that one reward may take for a batch; what it has not judged then is missing."""
    mix: MixSettings = field(default_factory=MixSettings)
    """Shares of factual cases and of each intervention."""
    keep_pairs: bool = True
    """A counterfactual comes in the same step as its factual case where the shares allow it."""
    checkpoint_every: int = 25
    """Optimizer steps between two checkpoints from which an interrupted stage goes on."""

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "micro_batch", "num_iterations", "max_completion_length",
                     "steps_per_generation", "reward_workers", "length_target"):  # fmt: skip
            _require(getattr(self, name) >= 1, f"grpo.{name}", getattr(self, name), "at least 1")
        rate = self.projector_learning_rate
        _require(rate is None or rate > 0, "grpo.projector_learning_rate", rate, "null or a positive number")
        _require(self.num_generations >= 2, "grpo.num_generations", self.num_generations, "at least 2")
        _require(0 <= self.demonstrations <= self.num_generations - 1, "grpo.demonstrations", self.demonstrations,
                 f"0 to num_generations - 1 = {self.num_generations - 1}: at least one completion is the policy's")  # fmt: skip
        _require(not self.demonstrations or self.sampler == "hf", "grpo.demonstrations", self.demonstrations,
                 "0 with sampler vllm, which gives no log-probability of a report")  # fmt: skip
        _require(not self.drafts or self.sampler == "hf", "grpo.drafts", self.drafts,
                 "false with sampler vllm, which samples in its own way")  # fmt: skip
        _require(0 < self.top_p <= 1, "grpo.top_p", self.top_p, "a share in (0, 1]")
        _require(self.temperature > 0, "grpo.temperature", self.temperature, "a positive number")
        _require(self.top_k >= 0, "grpo.top_k", self.top_k, "0 or more")
        _require(self.dynamic_sampling >= 0, "grpo.dynamic_sampling", self.dynamic_sampling, "0 or more")
        _require(self.reward_timeout > 0, "grpo.reward_timeout", self.reward_timeout, "a positive number of seconds")
        _require(self.importance_cap >= 1, "grpo.importance_cap", self.importance_cap, "at least 1")
        high = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        _require(
            self.delta is None or self.delta > high, "grpo.delta", self.delta, f"more than 1 + epsilon_high = {high}"
        )
