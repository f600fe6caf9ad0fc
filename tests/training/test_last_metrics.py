from pathlib import Path

from cogalign.training.last_metrics import last_metrics


def test_the_last_value_of_each_metric(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss,eval_loss\n1,2.5,\n2,2.25,3.5\n3,2.125,\n4,1.0")
    assert last_metrics(tmp_path, ("loss", "eval_loss", "reward")) == {"loss": 2.125, "eval_loss": 3.5, "reward": None}


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert last_metrics(tmp_path, ("loss",)) == {"loss": None}
