"""What is sampled does not depend on how the work is cut: into micro-batches, or over ranks."""

from pathlib import Path

from cogalign.grpo.rewards.pool import RewardPool
from cogalign.grpo.experience import Draw
from cogalign.models.load import LoadedModel
from tests.grpo.test_module import build, pool
from cogalign.training.seeding import derive_seed


def test_pin(adapted: LoadedModel, phantom_set: Path, pool: RewardPool) -> None:
    module = build(adapted, phantom_set, pool, beta=0.0, micro_batch=4)
    from cogalign.grpo.collect import Collector, Ranks
    from cogalign.training.stopwatch import Stopwatch
    col = Collector(module.engine, module.judge, module.settings, module.sampler, None, 1, Ranks())
    for index in (0, 3):
        micros = col._sampled(0, index, None)
        assert len(micros) == 1
        print([[int(t) for t in row[m.bool()]] for row, m in zip(micros[0].rollout.ids, micros[0].rollout.mask)])
    col.streams[1] = module.sampler
    micros = col._sampled(1, 2, 3)
    print([[int(t) for t in row[m.bool()]] for row, m in zip(micros[0].rollout.ids, micros[0].rollout.mask)])
    print([d.origin for d in micros[0].draws])
