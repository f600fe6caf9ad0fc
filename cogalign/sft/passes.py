"""How many forward passes of each device make an optimizer step."""

from __future__ import annotations

from typing import Any

from cogalign.recipe import SftSettings


def passes_of(settings: SftSettings, devices: int) -> int:
    """Forward passes a device and optimizer step: `accumulate`, or what `global_batch` asks for.

    Args:
        settings: of the stage.
        devices: over all machines.

    Raises:
        ValueError: `global_batch` is no multiple of batch_size x devices; names the nearest numbers that work.
    """
    wanted, once = settings.global_batch, settings.batch_size * devices
    if wanted is None:
        return settings.accumulate
    if wanted % once:
        options = {
            f"sft.batch_size {{}} on {devices} devices": nearest(settings.batch_size, wanted, devices),
            f"{{}} devices with sft.batch_size {settings.batch_size}": nearest(devices, wanted, settings.batch_size),
            "sft.global_batch {}": [n for n in (wanted // once * once, wanted // once * once + once) if n],
        }
        told = "; ".join(text.format(" or ".join(map(str, numbers))) for text, numbers in options.items() if numbers)
        raise ValueError(
            f"sft.global_batch: found {wanted}, wanted a multiple of sft.batch_size x devices = "
            f"{settings.batch_size} x {devices} = {once}; nearest that work: {told}"
        )
    return wanted // once


def nearest(value: int, total: int, other: int) -> list[int]:
    """The next smaller and the next larger number n for which n x other divides total; fewer if there are none."""
    fits = [n for n in range(1, total // other + 1) if total % (n * other) == 0]
    below, above = [n for n in fits if n < value], [n for n in fits if n > value]
    return below[-1:] + above[:1]


def realign(loops: dict[str, Any], steps: int, passes: int) -> None:
    """Count the batches of a checkpoint as this run would have counted them (in place).

    Lightning counts batches and not optimizer steps; it accumulates gradients and validates by that number.

    Args:
        loops: `checkpoint["loops"]`.
        steps: optimizer steps that were done.
        passes: batches an optimizer step, in this run.
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    shift = steps * passes - progress["current"]["ready"]
    for part in ("total", "current"):
        progress[part] = {name: count + shift for name, count in progress[part].items()}
