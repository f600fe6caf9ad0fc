import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Qwen2VLImageProcessor

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.collator import SftCollator
from cogalign.data.datamodule import CaseDataset, SftData
from cogalign.models.load import LoadedModel
from cogalign.models.pixel_cache import with_pixel_cache
from cogalign.models.pixel_store import SUFFIX


@pytest.fixture
def case_set(phantom_set: Path) -> CaseSet:
    return read_case_set(phantom_set)


def test_a_case_comes_with_its_own_image_which_nobody_has_decoded(case_set: CaseSet) -> None:
    cases = case_set.split("train")
    dataset = CaseDataset(case_set, cases)
    assert len(dataset) == 20
    for index in range(3):
        case, image = dataset[index]
        assert case == cases[index] and image._im is None
        assert np.array_equal(np.asarray(image), np.asarray(case_set.image(cases[index])))


class Counting(Qwen2VLImageProcessor):
    """Writes a line for every image that it processes, whatever the process."""

    def __call__(self, images: Any, **options: Any) -> Any:
        with open(os.environ["PROCESSED"], "a") as file:
            file.write("image\n" * len(images))
        return super().__call__(images, **options)


def counting(tiny: LoadedModel) -> Any:
    """The tiny model's processor with an image processor that counts."""
    processor = copy.copy(tiny.processor)
    processor.image_processor = Counting(**tiny.processor.image_processor.to_dict())
    return processor


@pytest.mark.parametrize("workers", [0, 2])
def test_over_three_epochs_each_image_is_processed_once_and_batches_are_those_without_a_cache(
    tiny: LoadedModel, case_set: CaseSet, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "processed"
    monkeypatch.setenv("PROCESSED", str(log))
    dataset, plain = CaseDataset(case_set, case_set.split("train")), counting(tiny)
    cached = with_pixel_cache(plain, tmp_path, 1.0)
    assert cached is not plain
    log.unlink()  # what the comparison beforehand wrote

    def batches(processor: Any, workers: int, start: int = 0) -> list[dict[str, Tensor]]:
        data = SftData(dataset, None, SftCollator(processor, "What?", 2048), 4, 15, seed=1, workers=workers)
        data.position = 4 * start
        return list(data.train_dataloader())

    found = batches(cached, workers)
    calls = len(log.read_text().splitlines())
    # two workers may meet at the border of two epochs, with the same image in their batches
    assert calls == 20 if workers == 0 else 20 <= calls <= 24
    assert len(list((tmp_path / "cache").rglob(f"*{SUFFIX}"))) == 20
    expected = batches(plain, 0)
    assert len(found) == len(expected) == 15
    for a, b in zip(found, expected, strict=True):
        assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    later = batches(cached, workers, start=11)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(later, expected[11:], strict=True))
    assert len(log.read_text().splitlines()) == calls + 60


def test_workers_of_the_validation_stay_and_give_the_same_each_time(case_set: CaseSet) -> None:
    data = SftData(*[CaseDataset(case_set, case_set.split("validation"))] * 2, ids, 3, 2, seed=0, workers=1)
    loader = data.val_dataloader()
    assert isinstance(loader, DataLoader)
    first = list(loader)
    workers = [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]
    assert list(loader) == first and [worker.pid for worker in loader._iterator._workers] == workers  # type: ignore[union-attr]


def test_a_dataset_goes_to_a_spawned_worker_without_the_objects_of_its_cases(case_set: CaseSet) -> None:
    cases = case_set.split("train")
    one, all_of_them = (pickle.dumps(CaseDataset(case_set, some)) for some in (cases[:1], cases))
    assert all_of_them.count(b"cogalign.data.case") == one.count(b"cogalign.data.case") == 0
    assert pickle.loads(all_of_them)[7][0] == cases[7]


def ids(samples: list[Any]) -> list[str]:
    return [case.id for case, _ in samples]


def test_the_position_is_part_of_the_state(case_set: CaseSet) -> None:
    def make() -> SftData:
        train, validation = (CaseDataset(case_set, case_set.split(name)) for name in ("train", "validation"))
        return SftData(train, validation, ids, batch_size=3, batches=10, seed=4)

    data = make()
    whole = list(data.train_dataloader())
    assert len(whole) == 10 and whole[0] != whole[7]
    data.position = 12
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
    later.position = 12
    assert list(later.train_dataloader()) == grouped[3:]


def test_without_validation_there_is_no_loader(case_set: CaseSet) -> None:
    data = SftData(CaseDataset(case_set, case_set.split("train")), None, ids, 3, 2, seed=0)
    assert data.val_dataloader() == []
