"""Where the threads of this process stand: as text for people, and as the one place that a message names."""

from __future__ import annotations

import linecache
import site
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = tuple(
    {str(Path(path).resolve()) for path in (*sysconfig.get_paths().values(), *site.getsitepackages())}
    - {str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("data", "scripts")}
)
"""Folders of Python's and other people's code."""
COMPILERS = ("/torch/_inductor/", "/torch/_dynamo/", "/triton/compiler/")
RUNNING_COMPILED = "/torch/_dynamo/eval_frame.py"
COLLECTIVES = {
    "all_reduce", "broadcast", "barrier", "monitored_barrier", "all_gather", "all_gather_into_tensor",
    "all_gather_object", "reduce", "reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single",
    "broadcast_object_list", "gather", "gather_object", "scatter", "scatter_object_list", "send", "recv",
}  # fmt: skip
"""Functions of torch.distributed in which a process waits for others."""


@dataclass(frozen=True)
class Line:
    """One line of a stack."""

    file: str
    number: int
    function: str

    @property
    def own(self) -> bool:
        """Whether it is this package's or the user's code, and no library's."""
        path = str(Path(self.file).resolve())
        inside = path.startswith(f"{PACKAGE}/") or not path.startswith(LIBRARIES)
        return inside and not self.file.startswith("<")

    def __str__(self) -> str:
        path = Path(self.file)
        near = path.resolve()
        shown = near.relative_to(PACKAGE.parent) if near.is_relative_to(PACKAGE) else Path(*path.parts[-2:])
        return f"{shown}:{self.number} ({self.function})"


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Attributes:
        where: the innermost line of own code, e.g. `cogalign/grpo/rewards/pool.py:88 (collect)`.
        collective: the operation in which it waits for other processes, if it does.
        compiling: whether torch.compile is at work, which may take long and gives no sign.
    """

    where: str
    collective: str | None = None
    compiling: bool = False


def lines_of(frame: FrameType | None) -> list[Line]:
    """A stack, the innermost line first."""
    found = []
    while frame is not None:
        found.append(Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def place_of(lines: list[Line]) -> Place:
    """Where a stack stands.

    Args:
        lines: the innermost first.
    """
    own = next((line for line in lines if line.own), lines[0] if lines else None)
    waits = next((name for line in lines if (name := collective_of(line)) is not None), None)
    compiling = any(part in line.file and RUNNING_COMPILED not in line.file for line in lines for part in COMPILERS)
    return Place(str(own) if own is not None else "?", waits, compiling)


def collective_of(line: Line) -> str | None:
    """The collective operation that a line of torch's belongs to.

    Gradients are exchanged inside the backward pass, in C++: the line in which Python called it is all that is seen.
    """
    if "/torch/distributed/" in line.file and line.function in COLLECTIVES:
        return line.function
    if line.file.endswith("torch/autograd/graph.py") and line.function == "_engine_run_backward":
        return "the backward pass (sum of gradients)"
    return None


def main_place() -> Place:
    """Where the main thread of this process stands."""
    return place_of(lines_of(sys._current_frames().get(threading.main_thread().ident or 0)))


def all_stacks() -> str:
    """The stacks of all threads as text, the main thread first, innermost line last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main, frames = threading.main_thread().ident, sys._current_frames()
    parts = []
    for ident in sorted(frames, key=lambda one: (one != main, one)):
        parts.append(f"thread {names.get(ident, ident)}:")
        parts += [shown(line) for line in reversed(lines_of(frames[ident]))]
        parts.append("")
    return "\n".join(parts)


def main_stack() -> str:
    """The stack of the main thread without the libraries' lines, but for the innermost one; innermost line last."""
    lines = lines_of(sys._current_frames().get(threading.main_thread().ident or 0))
    return "\n".join(shown(line) for number, line in reversed(list(enumerate(lines))) if line.own or number == 0)


def shown(line: Line) -> str:
    """One line of a stack with its source."""
    source = linecache.getline(line.file, line.number).strip()
    return f"  {line.file}:{line.number} in {line.function}" + (f"\n    {source}" if source else "")
