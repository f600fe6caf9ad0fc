from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.datamodule import CaseDataset, SftData


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


def test_lengths_group_the_batches_and_the_position_stays_exact(case_set: CaseSet) -> None:
    cases = case_set.split("train")
    lengths = [len(case.answer) for case in cases]
    of = dict(zip((case.id for case in cases), lengths, strict=True))

    def make(lengths: list[int] | None) -> SftData:
        return SftData(CaseDataset(case_set, cases), None, ids, 4, 10, seed=4, lengths=lengths)

    def spread(batches: list[list[str]]) -> int:
        return sum(max(of[i] for i in batch) - min(of[i] for i in batch) for batch in batches)

    grouped = list(make(lengths).train_dataloader())
    assert spread(grouped) < 0.7 * spread(list(make(None).train_dataloader()))
    later = make(lengths)
    later.consumed = 3
    assert list(later.train_dataloader()) == grouped[3:]


def test_without_validation_there_is_no_loader(case_set: CaseSet) -> None:
    data = SftData(CaseDataset(case_set, case_set.split("train")), None, ids, 3, 2, seed=0)
    assert data.val_dataloader() == []
