from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.datamodule import CaseDataset, SftData, StepSampler


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    total=st.integers(1, 12),
    world=st.integers(1, 3),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_resumed_sampler_gives_the_rest_of_the_batches(
    size: int, batch_size: int, total: int, world: int, seed: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, total))
    for rank in range(world):
        whole = list(StepSampler(size, batch_size, total, seed, 0, rank, world))
        rest = StepSampler(size, batch_size, total, seed, start, rank, world)
        assert list(rest) == whole[start:] and len(rest) == total
        assert all(len(batch) == batch_size for batch in whole)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), world=st.integers(1, 3), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_case_comes_once_an_epoch_over_all_ranks(size: int, world: int, batch_size: int, seed: int) -> None:
    total = 3 * size  # at least three epochs of batches
    samplers = [StepSampler(size, batch_size, total, seed, 0, rank, world) for rank in range(world)]
    order = [item for index in range(total) for sampler in samplers for item in sampler.batch(index)]
    for epoch in range(3):
        assert Counter(order[epoch * size : (epoch + 1) * size]) == Counter(range(size))


def test_another_seed_and_another_epoch_have_another_order() -> None:
    a, b = (list(StepSampler(50, 50, 2, seed)) for seed in (1, 2))
    assert a[0] != a[1] and a[0] != b[0] and a[0] != sorted(a[0])
    assert a == list(StepSampler(50, 50, 2, 1))


@pytest.fixture
def case_set(phantom_set: Path) -> CaseSet:
    return read_case_set(phantom_set)


def test_a_case_comes_with_its_own_image_and_small_ones_are_read_once(
    case_set: CaseSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = CaseSet.image
    monkeypatch.setattr(CaseSet, "image", lambda self, case: (read.append(case.id), real(self, case))[1])
    cases = case_set.split("train")
    room = 2 * 64 * 64 * 3  # two images fit
    dataset = CaseDataset(case_set, cases, keep_bytes=room)
    assert len(dataset) == 20
    for _ in range(2):
        for index in range(3):
            case, image = dataset[index]
            assert case is cases[index]
            assert np.array_equal(np.asarray(image), np.asarray(real(case_set, case)))
    assert Counter(read) == {cases[0].id: 1, cases[1].id: 1, cases[2].id: 2}


def ids(samples: list[Any]) -> list[str]:
    return [case.id for case, _ in samples]


def test_the_position_is_part_of_the_state(case_set: CaseSet) -> None:
    def make() -> SftData:
        train, validation = (CaseDataset(case_set, case_set.split(name)) for name in ("train", "validation"))
        return SftData(train, validation, ids, batch_size=3, batches=10, seed=4)

    data = make()
    whole = list(data.train_dataloader())
    assert len(whole) == 10 and whole[0] != whole[7]
    data.consumed = 4
    again = make()
    again.load_state_dict(data.state_dict())
    assert list(again.train_dataloader()) == whole[4:]
    assert [len(batch) for batch in again.val_dataloader()] == [3, 1]
    assert [name for batch in again.val_dataloader() for name in batch] == [c.id for c in case_set.split("validation")]


def test_without_validation_there_is_no_loader(case_set: CaseSet) -> None:
    data = SftData(CaseDataset(case_set, case_set.split("train")), None, ids, 3, 2, seed=0)
    assert data.val_dataloader() == []
