"""Cluster profiles: what is read, and what is refused before a script is made of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cogalign.cluster.profile import Profile, read_profile
from cogalign.cluster.profile_checks import seconds_of_limit

ROOT = Path(__file__).resolve().parents[2]


def read(folder: Path, text: str) -> Profile:
    path = folder / "mine.yaml"
    path.write_text(text)
    return read_profile(path)


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.yaml")), ids=lambda path: path.name)
def test_the_packaged_profiles_are_valid_and_every_key_has_a_comment(path: Path) -> None:
    profile = read_profile(path)
    assert profile.command == "cogalign"
    for name in yaml.safe_load(path.read_text()):
        line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
        below = path.read_text().split(line + "\n", 1)[1].split("\n", 1)[0]
        assert "#" in line or "#" in below, f"{path.name}: {name} has no comment"


def test_every_key_is_explained_in_its_class() -> None:
    source = (ROOT / "cogalign" / "cluster" / "profile.py").read_text()
    for field in fields(Profile):
        assert f"    {field.name}: " in source
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


def test_an_unknown_key_names_the_nearest_of_the_profile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key `gpus_pernode`; did you mean `gpus_per_node`\?"):
        read(tmp_path, "gpus_pernode: 4")
    with pytest.raises(
        ValueError, match=r"unknown key `stages\.sft\.partion`; did you mean `stages\.sft\.partition`\?"
    ):
        read(tmp_path, "stages: {sft: {partion: x}}")
    with pytest.raises(
        ValueError, match=r"unknown key `learning_rate` \(known: "
    ) as error:  # a key of recipes is no hint
        read(tmp_path, "learning_rate: 4")
    assert "sft.learning_rate" not in str(error.value)


def test_a_file_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such cluster profile; did you mean .*slurm/mini\.yaml\?"):
        read_profile(ROOT / "slurm" / "minni.yaml")


def test_an_unknown_job_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stages: found 'grop', wanted the name of a job .*did you mean grpo\?"):
        read(tmp_path, "stages: {grop: {time: '1:00:00'}}")


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_APIKEY", "MY_SECRET", "DB_PASSWORD", "aws_secret_key"]
)
def test_secrets_are_refused_without_being_shown(tmp_path: Path, name: str) -> None:
    for section in ("environment", "nccl"):
        with pytest.raises(ValueError, match=rf"{section}\.{name}: looks like a secret.*export {name}=") as error:
            read(tmp_path, f"{section}: {{{name}: hf_abc123}}")
        assert "hf_abc123" not in str(error.value)


def test_names_that_only_look_like_secrets_are_taken(tmp_path: Path) -> None:
    profile = read(tmp_path, "environment: {TOKENIZERS_PARALLELISM: 'false', MONKEY: 1, KEYBOARD: x}")
    assert profile.environment == {"TOKENIZERS_PARALLELISM": "false", "MONKEY": 1, "KEYBOARD": "x"}


@pytest.mark.parametrize(("text", "message"), [
    ("time: 12:00:00", r'time: found 43200, wanted a time in quotes'),
    ("time: 'soon'", r"time: found 'soon', wanted a time in quotes"),
    ("memory: 64GB", r"memory: found '64GB', wanted a number with K, M, G or T"),
    ("partition: \"a\\nb\"", r"partition: found 'a\\nb', wanted one line of text"),
    ("modules: [\"x\\ny\"]", r"modules\[0\]: found 'x\\ny', wanted one line"),
    ("setup: [\"x\\ry\"]", r"setup\[0\]: found 'x\\ry', wanted one line"),
    ("environment: {A: \"x\\ny\"}", r"environment\.A: found 'x\\ny', wanted one line"),
    ("environment: {A-B: x}", r"environment: found 'A-B', wanted the name of an environment variable"),
    ("environment: {A: true}", r"environment\.A: found True .* wanted a text or a whole number or a number"),
    ("sbatch: [-x]", r"sbatch\[0\]: found '-x', wanted an option such as --exclusive"),
    ("command: \"cogalign 'x\"", r"command: found .* wanted a command \(No closing quotation\)"),
    ("command: ''", r"command: found '', wanted"),
    ("gpus_per_node: 4\ntasks_per_node: 2", r"tasks_per_node: found 2, wanted 4, one process for each"),
    ("container: {engine: docker}", r"container\.engine: found 'docker' .* one of none, pyxis, apptainer"),
    ("container: {engine: pyxis}", r"container\.image: found None, wanted an image for the engine pyxis"),
    ("container: {engine: pyxis, image: x, mounts: ['/a,b:/c']}", r"container\.mounts\[0\]: found '/a,b:/c'"),
    ("counterfactual: {shards: 0}", r"counterfactual\.shards: found 0, wanted at least 1"),
    ("scratch: tmp", r"scratch: found 'tmp', wanted an absolute path, or a variable"),
    ("signal_before: 0", r"signal_before: found 0, wanted at least 1 second"),
    ("time: '3'", r"signal_before: found 180, wanted less than the 180 seconds of time"),
    ("stages: {sft: {time: '2:30'}}", r"signal_before: found 180, wanted less than the 150 seconds of stages\.sft\.time"),
    ("rollout_server: {port: 80}", r"rollout_server\.port: found 80, wanted 1024"),
    ("max_restarts: -1", r"max_restarts: found -1, wanted 0 or more"),
])  # fmt: skip
def test_values_that_would_break_a_script_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(("text", "seconds"), [
    ("30", 1800), ("30:10", 1810), ("2:00:01", 7201), ("1-2", 93_600), ("1-2:03", 93_780), ("1-2:03:04", 93_784), ("0", None),
])  # fmt: skip
def test_a_time_limit_is_read_as_sbatch_reads_it(text: str, seconds: int | None) -> None:
    assert seconds_of_limit(text) == seconds
