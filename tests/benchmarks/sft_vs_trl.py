"""Our SFT step against TRL's `SFTTrainer`, on mixed lengths: `python tests/benchmarks/sft_vs_trl.py [--json FILE]`.

Same tiny image-heavy Qwen3-VL, LoRA, images and lengths of answers, each side with its own way to make batches. Batches
of like lengths differ in size, so the mean over an epoch's steps is the fair measure of a step: `step_ratio` is TRL's
mean CPU seconds for a real token over ours, `step_ratio_median` the ratio of the medians of a step. The loss on TRL's
first batch has to be the same on both sides.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from peer import pair, settings
from peer.machine import matmul_rate
from peer.tiny_qwen3vl import build_config

from cogalign.grpo.flops import sft_floor, shapes

LARGEST_DIFFERENCE = 1e-5
SCRIPTS = {"trl": "trl_sft.py", "ours": "ours_sft.py"}


def seconds_a_token(side: pair.Side, unit: str) -> float:
    """Mean seconds of a token without padding."""
    return float(side["per_step"][unit]["mean"] / side["per_step"]["tokens_real"]["mean"])


def floor_of(side: pair.Side, options: dict[str, Any]) -> dict[str, float]:
    """Operations that a step of our side's mean sizes cannot avoid."""
    cfg = settings.tiny_config(options)
    text, vision = shapes(build_config(cfg), settings.LORA_RANK)
    batch, counts = options["batch"], side["per_step"]
    real, answer = (counts[name]["mean"] / batch for name in ("tokens_real", "tokens_supervised"))
    return sft_floor(text, vision, batch, 4 * options["visual_tokens"], real, answer)


def compare(options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Run both sides and compare them.

    Raises:
        ValueError: the losses on TRL's first batch differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        both = {name: {**options, "first_batch": Path(folder) / "first.pt"} for name in SCRIPTS}
        sides = pair.run_rounds(SCRIPTS, both, rounds)
    result = pair.compared("sft_vs_trl", sides, options["threads"])
    difference = sides["ours"]["loss_difference"]
    if difference > LARGEST_DIFFERENCE:
        raise ValueError(
            f"loss on TRL's first batch: relative difference {difference:.1e}, wanted {LARGEST_DIFFERENCE}"
        )
    result["step_ratio_median"] = result.pop("step_ratio")
    result["step_ratio_wall_median"] = result.pop("step_ratio_wall")
    for key, unit in (("step_ratio", "step_s"), ("step_ratio_wall", "step_wall_s")):
        result[key] = round(seconds_a_token(sides["trl"], unit) / seconds_a_token(sides["ours"], unit), 3)
    floor, rate = floor_of(sides["ours"], options), matmul_rate(options["threads"])
    result |= {
        "loss_difference": difference,
        "floor_flops": floor["total"],
        "floor_flops_by_phase": floor,
        "matmul_flops_per_s": rate,
        "floor_seconds": round(floor["total"] / rate, 3),
    }
    return result


def main() -> None:
    """Command line."""
    parser = settings.sft_options((__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="times that both sides run, in turn")
    parser.add_argument("--json", type=Path, help="file of the result; it is printed without")
    options = vars(parser.parse_args())
    target, rounds = options.pop("json"), options.pop("rounds")
    pair.pin(options["threads"])
    result = compare(options, rounds)
    pair.write_json(result, target)
    print(
        f"SFT step: {result['step_ratio']}x as fast as TRL's a token ({result['step_ratio_median']}x by medians), "
        f"memory {result['memory_ratio']} of TRL's, loss differs by {result['loss_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
