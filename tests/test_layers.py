"""The floors of the design: a module imports only from floors below its own, or from its own package."""

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cogalign"

CLIS = ("cli", "cli_recipe", "cli_data", "cli_review", "cli_cluster", "cli_models", "cli_study")
RECIPES = ("recipe", "recipe_counterfactual", "recipe_grpo", "recipe_segmenter", "recipe_checks", "recipe_file")
PIPELINE = ("pipeline", "pipeline_digest", "pipeline_locks", "pipeline_phases", "pipeline_ranks")
FLOORS = (
    ("cognition", "models", "training", *RECIPES),
    ("data", "generation", "export", "model_card"),
    ("sft", "segmenter", "counterfactual", "grpo"),
    ("evaluation", "reasoning"),
    PIPELINE,
    ("cluster", "study"),
    CLIS,
    ("__main__",),
)
TOGETHER = {frozenset(("export", "model_card")), *(frozenset(pair) for pair in combinations(CLIS, 2)),
            *(frozenset(pair) for pair in combinations(RECIPES, 2)), *(frozenset(pair) for pair in combinations(PIPELINE, 2))}  # fmt: skip
"""Modules of one floor that belong to one another, as files of a package do."""
OPEN_GROUND_FLOOR = ("cognition", "models", "training", *RECIPES)
"""On the ground floor a neighbour may be used (training and models read the recipe), but never in a circle."""
LIGHT = ("__init__.py", *(f"{name}.py" for name in (*RECIPES, *CLIS, *PIPELINE)), "__main__.py", "data/case.py",
         *(f"training/{name}.py" for name in ("context", "progress", "progress_file", "interrupt", "requeue", "atomic",
                                              "stage_file", "file_lock", "launched", "errors")),
         *(f"cluster/{path.stem}.py" for path in (PACKAGE / "cluster").glob("*.py") if path.stem != "rollout_server"))  # fmt: skip
HEAVY = {"torch", "torchvision", "transformers", "lightning", "peft", "trl", "datasets", "cv2", "skimage", "sklearn",
         "scipy", "pandas", "pyarrow", "matplotlib", "numpy", "PIL", "wandb", "rich", "jsonargparse", "yaml",
         "torchmetrics"}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The package or top-level module below cogalign that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; with `top_level` only those at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_at_import(tree.body)) if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _at_import([child for child in getattr(node, inner, []) if isinstance(child, ast.stmt)])


def own(path: Path) -> set[str]:
    """Parts of cogalign that a file imports."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("cogalign.") and name.count(".")}
    return {part for part in found if part != "__version__"}


def floor(part: str) -> int:
    return next(index for index, parts in enumerate(FLOORS) if part in parts)


def test_every_part_has_a_floor() -> None:
    known = {part for parts in FLOORS for part in parts}
    assert {part_of(path) for path in FILES} - {"__init__"} <= known


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) != "__init__"],
                         ids=lambda path: str(path.relative_to(PACKAGE)))  # fmt: skip
def test_imports_go_down(path: Path) -> None:
    here = part_of(path)
    for there in own(path):
        if there == here or frozenset((here, there)) in TOGETHER:
            continue
        if here in OPEN_GROUND_FLOOR and there in OPEN_GROUND_FLOOR:
            continue
        assert floor(there) < floor(here), f"{path.relative_to(ROOT)} imports cogalign.{there}"


def test_the_ground_floor_has_no_circles() -> None:
    uses = {part: set[str]() for part in OPEN_GROUND_FLOOR}
    for path in FILES:
        if part_of(path) in uses:
            uses[part_of(path)] |= own(path) - {part_of(path)}
    while uses:
        free = [part for part, needed in uses.items() if not needed & uses.keys()]
        assert free, f"these import each other in a circle: {uses}"
        for part in free:
            del uses[part]


@pytest.mark.parametrize("name", LIGHT)
def test_what_help_reads_imports_nothing_heavy(name: str) -> None:
    allowed = {"recipe_file.py": {"yaml"}}.get(name, set())
    found = {module.split(".")[0] for module in imports(PACKAGE / name, top_level=True)} & HEAVY
    assert found <= allowed


def test_no_package_file_imports_anything() -> None:
    light = {"cogalign", "__future__", "pathlib"}
    for path in PACKAGE.rglob("__init__.py"):
        assert {module.split(".")[0] for module in imports(path, top_level=True)} <= light, path


def test_only_tracking_imports_wandb() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any(n.split(".")[0] == "wandb" for n in imports(path))}
    assert users == {"training/tracking.py"}


def test_nothing_imports_pickle_to_load_files() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert "weights_only=False" not in text, path


def test_files_stay_short() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 420}
    assert not long
