"""Rewards of GRPO: the paper's three and ours, in TRL's protocol. No torch at import: worker processes read this.

The process pool is in `cogalign.grpo.rewards.pool`.
"""

from cogalign.grpo.rewards.build import REWARDS, base_weights, build_rewards
from cogalign.grpo.rewards.diagnosis import diagnosis_f1_reward, diagnosis_near_reward
from cogalign.grpo.rewards.length import length_reward
from cogalign.grpo.rewards.pair import pair_reward
from cogalign.grpo.rewards.paper import cognition_reward, diagnosis_reward, format_reward
from cogalign.grpo.rewards.protocol import Completion, Reward, completion_text
from cogalign.grpo.rewards.schedule import weights_at
from cogalign.grpo.rewards.section import section_cognition_reward
from cogalign.grpo.rewards.structure import structure_reward
from cogalign.grpo.rewards.total import score, total_rewards

__all__ = [
    "REWARDS",
    "Completion",
    "Reward",
    "base_weights",
    "build_rewards",
    "cognition_reward",
    "completion_text",
    "diagnosis_f1_reward",
    "diagnosis_near_reward",
    "diagnosis_reward",
    "format_reward",
    "length_reward",
    "pair_reward",
    "score",
    "section_cognition_reward",
    "structure_reward",
    "total_rewards",
    "weights_at",
]
