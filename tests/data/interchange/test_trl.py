"""What is written for TRL is taken by the installed TRL as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cogalign.data.interchange.commands import export_case_set
from cogalign.models.load import LoadedModel
from tests.data.interchange.conftest import REPORT


def loaded(path: Path, root: Path) -> Any:
    """The rows as the library datasets reads them, images decoded."""
    from datasets import Image, List, load_dataset

    kind = "parquet" if path.suffix == ".parquet" else "json"
    rows = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(root / "cache"))
    if kind == "json":  # as docs/interchange.md says: paths become images
        rows = rows.map(lambda row: {"images": [str(path.parent / name) for name in row["images"]]})
        rows = rows.cast_column("images", List(Image()))
    return rows


@pytest.mark.parametrize("name", ["trl", "trl-parquet"])
def test_trl_makes_training_batches_of_the_rows(name: str, case_set: Path, tmp_path: Path, tiny: LoadedModel) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    export_case_set(case_set, tmp_path / "out", name)
    suffix = ".parquet" if name == "trl-parquet" else ".jsonl"
    rows = loaded(tmp_path / "out" / f"test{suffix}", tmp_path)
    assert rows[0]["images"][0].size == (32, 24) and {"findings", "id", "group"} <= set(rows.column_names)
    collate = DataCollatorForVisionLanguageModeling(tiny.processor, max_length=None, completion_only_loss=True)
    batch = collate([dict(row) for row in rows])
    assert batch["input_ids"].shape[0] == len(rows) == 3 and "pixel_values" in batch
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        learnt = tiny.tokenizer.decode(ids[labels != -100], skip_special_tokens=True)
        asked = tiny.tokenizer.decode(ids[labels == -100], skip_special_tokens=True)
        assert row["completion"][0]["content"].split()[0] in learnt and row["prompt"][0]["content"] in asked
        assert row["prompt"][0]["content"] not in learnt


def test_sft_trainer_takes_the_data_set(case_set: Path, tmp_path: Path, own_tiny: LoadedModel) -> None:
    from trl import SFTConfig, SFTTrainer

    export_case_set(case_set, tmp_path / "out", "trl")
    rows = loaded(tmp_path / "out" / "train.jsonl", tmp_path)
    settings = SFTConfig(str(tmp_path / "run"), max_length=None, report_to=[], use_cpu=True, bf16=False, max_steps=1,
                         per_device_train_batch_size=1, gradient_checkpointing=False, save_strategy="no")  # fmt: skip
    trainer = SFTTrainer(own_tiny.model, settings, train_dataset=rows, processing_class=own_tiny.processor)
    batch = next(iter(trainer.get_train_dataloader()))
    learnt = own_tiny.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100], skip_special_tokens=True)
    assert learnt.strip() == REPORT.strip()
