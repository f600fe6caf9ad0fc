"""Our GRPO step against TRL's `GRPOTrainer`: `python tests/benchmarks/grpo_vs_trl.py [--visual-tokens N] [--json FILE]`.

Same tiny image-heavy Qwen3-VL, LoRA, prompts, G and lengths (every completion has exactly `--completion-tokens`
tokens), frozen tower, reference pass. Each side runs in a process of its own on the same core. Ratios are TRL's median
over ours; without the ending `_wall` they are of CPU seconds, which other work on the machine disturbs least.

With `--groups 2 4 8 16 32` the step's time for each G stands beside TRL's, as a table and with `--plot` as a figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peer import pair, settings
from peer.machine import matmul_rate
from peer.tiny_qwen3vl import build_config

from cogalign.grpo.flops import GrpoStep, grpo_floor, shapes

SCRIPTS = {"trl": "trl_grpo.py", "ours": "ours_grpo.py"}
LARGEST_BATCH = 64
"""Completions that TRL's side runs at once when several G are measured; more are accumulated, to spare memory."""


def floor_of(ours: pair.Side, options: dict[str, Any]) -> dict[str, float]:
    """Operations of a step that nobody can avoid, by phase."""
    text, vision = shapes(build_config(settings.tiny_config(options)), settings.LORA_RANK)
    step = GrpoStep(
        prompts=options["prompts"],
        images=options["prompts"],
        patches=4 * options["visual_tokens"],
        prompt_tokens=ours["prompt_tokens"],
        group=options["group"],
        completion_tokens=options["completion_tokens"],
        reference=settings.BETA > 0,
    )
    return grpo_floor(text, vision, step)


def compare(options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Run both sides for one G and compare them.

    Raises:
        ValueError: a side's completions have another length than the one asked for.
    """
    sides = pair.run_rounds(SCRIPTS, dict.fromkeys(SCRIPTS, options), rounds)
    for name, side in sides.items():
        if side["mean_completion_length"] != options["completion_tokens"]:
            raise ValueError(
                f"{name}: completions of {side['mean_completion_length']} tokens, wanted all tokens asked for"
            )
    ours = sides["ours"]["per_step"]
    floor, rate = floor_of(sides["ours"], options), matmul_rate(options["threads"])
    return {
        **pair.compared("grpo_vs_trl", sides, options["threads"]),
        "sampling_ratio": pair.ratio(sides, "sampling_s"),
        "sampling_ratio_wall": pair.ratio(sides, "sampling_wall_s"),
        "images_encoded_per_step": ours["vision_images"]["median"],
        "distinct_images_per_step": options["prompts"],
        "floor_flops": floor["total"],
        "floor_flops_by_phase": floor,
        "matmul_flops_per_s": rate,
        "floor_seconds": round(floor["total"] / rate, 3),
        "floor_share": round(floor["total"] / rate / ours["step_s"]["median"], 3),
    }


def compare_groups(options: dict[str, Any], own: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Both sides for every G; the file of the result grows with each."""
    results: dict[int, dict[str, Any]] = {}
    for group in own.groups:
        batch = options["prompts"] * group
        micro = LARGEST_BATCH if batch > LARGEST_BATCH and batch % LARGEST_BATCH == 0 else 0
        chosen = {**options, "group": group, "micro_batch": options["micro_batch"] or micro}
        results[group] = compare(chosen, own.rounds)
        if own.json:
            pair.write_json({"benchmark": "grpo_vs_trl_groups", "groups": results}, own.json)
    return results


def median(side: pair.Side, name: str) -> float:
    """Median of a measurement."""
    return float(side["per_step"][name]["median"])


def table(results: dict[int, dict[str, Any]]) -> str:
    """The step's time by G, in Markdown."""
    lines = [
        "| G | TRL, CPU s a step | cogalign, CPU s a step | ratio | sampling ratio | memory, ours/TRL | floor, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group, result in results.items():
        trl, ours = (median(result[side], "step_s") for side in ("trl", "ours"))
        cells = [f"{trl:.2f}", f"{ours:.2f}", f"{result['step_ratio']:.1f}", f"{result['sampling_ratio']:.1f}"]
        cells += [f"{result['memory_ratio']:.2f}", f"{result['floor_seconds']:.2f}"]
        lines.append("| " + " | ".join([str(group), *cells]) + " |")
    return "\n".join(lines)


def plot(results: dict[int, dict[str, Any]], options: dict[str, Any], target: Path) -> None:
    """Seconds of a step by G, both sides and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "cogalign"  # the same figure gives the same file
    groups = list(results)
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for side, label, colour in (("trl", "TRL", "#b2402f"), ("ours", "cogalign", "#20639b")):
        axes.plot(groups, [median(results[g][side], "step_s") for g in groups], "o-", label=label, color=colour)
    floor = [results[g]["floor_seconds"] for g in groups]
    axes.plot(groups, floor, ":", label="floor (operations / matmul rate)", color="#666666")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(groups, [str(group) for group in groups])
    axes.set_xlabel("G, completions of a prompt")
    axes.set_ylabel("CPU seconds a step")
    tokens = f"{options['visual_tokens']} visual tokens, {options['completion_tokens']} completion tokens"
    axes.set_title(f"GRPO step: {options['prompts']} prompts, {tokens}", fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def parse() -> tuple[dict[str, Any], argparse.Namespace]:
    """Options of the sides, and those of this script."""
    parser = settings.grpo_options((__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="times that both sides run, in turn")
    parser.add_argument("--groups", type=int, nargs="+", help="values of G to measure, in place of --group")
    parser.add_argument("--plot", type=Path, help="figure of the step's time by G (.svg or .png)")
    parser.add_argument("--json", type=Path, help="file of the result; it is printed without")
    given = vars(parser.parse_args())
    own = argparse.Namespace(**{name: given.pop(name) for name in ("rounds", "groups", "plot", "json")})
    if own.plot and not own.groups:
        parser.error("--plot: needs --groups, e.g. --groups 2 4 8 16 32")
    return given, own


def main() -> None:
    """Command line."""
    options, own = parse()
    pair.pin(options["threads"])
    if own.groups:
        results = compare_groups(options, own)
        print(table(results))
        if own.plot:
            plot(results, options, own.plot)
        return
    result = compare(options, own.rounds)
    pair.write_json(result, own.json)
    print(table({options["group"]: result}))


if __name__ == "__main__":
    main()
