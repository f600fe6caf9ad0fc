"""The case set of a run: the one that is named, or phantoms or public data sets written into the run's folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogalign.data.caseset import METADATA, read_case_set
from cogalign.data.paths import allow_links_into, inside
from cogalign.recipe import DataSettings, ImportSettings
from cogalign.training.atomic import write_json
from cogalign.training.file_digest import sha256_of
from cogalign.training.progress import say

if TYPE_CHECKING:
    from cogalign.data.split_summary import SplitSummary

SETTINGS = "prepared.json"
"""The settings from which a folder was made; `metadata.jsonl` beside it says that it is finished."""
_SOURCES = ("case_set", "phantom", "imports")
_USED = {
    "phantom": ("phantom",),
    "imports": ("imports", "root", "images", "image_side", "overlays", "split", "test_share", "seed"),
}


def prepare(settings: DataSettings, folder: Path) -> Path:
    """The folder of a run's case set: `settings.case_set`, or `folder`, into which phantoms or imports are written.

    A second call with the same settings finds the work done. A call that was broken off, or one with other
    settings, makes the case set anew.

    Raises:
        ValueError: not exactly one of `case_set`, `phantom` and `imports` is given, or the data have an error.
        FileNotFoundError: the case set or a data set is not there.
        FileExistsError: `folder` holds a case set that this function did not make.
    """
    source = _source(settings)
    follow_references(settings)
    if source == "case_set":
        return read_case_set(str(settings.case_set)).root
    wanted = _made_from(settings, source)
    if (folder / METADATA).is_file():
        found = _read_settings(folder / SETTINGS)
        if found is None:
            raise FileExistsError(
                f"{folder}: holds a case set of other origin; wanted an empty folder, or data.case_set"
            )
        if found == wanted:
            shutil.rmtree(_parts(folder), ignore_errors=True)  # a call that was broken off at its very end leaves it
            return folder
        (folder / METADATA).unlink()
    write_json(folder / SETTINGS, wanted)
    if source == "phantom" and settings.phantom is not None:
        from cogalign.data.phantom import write_phantom

        write_phantom(settings.phantom, folder)
    else:
        _import_data_sets(settings, folder)
    return folder


def follow_references(settings: DataSettings) -> None:
    """Let links lead into `data.root` where the recipe says that imported images stay there."""
    if settings.imports and settings.images == "reference":
        allow_links_into(settings.root)


def _parts(folder: Path) -> Path:
    """Where data sets are imported one by one before they are merged into `folder`."""
    return folder.with_name(f"{folder.name}.imports")


def _import_data_sets(settings: DataSettings, folder: Path) -> None:
    """Import each data set beside `folder`, merge them into it and draw the split.

    What was imported before an interruption is found again. `prepared.json` stays in `folder` throughout. Where the
    split leaks, the merged set stays beside with its leak report, and nothing comes into `folder`.

    Raises:
        ValueError: the split leaks, or a wanted split is empty.
    """
    from cogalign.data.merge import OVERVIEW, merge_case_sets
    from cogalign.data.overlay_change import change_overlays
    from cogalign.data.overview import write_overview
    from cogalign.data.splits import split_case_set

    parts = _parts(folder)
    whole = parts / "merged"
    sets = [_import(item, settings, parts / str(number)) for number, item in enumerate(settings.imports or ())]
    shutil.rmtree(whole, ignore_errors=True)
    merge_case_sets(sets, whole)
    summary = split_case_set(
        whole,
        settings.split,
        test_share=settings.test_share,
        validation_share=settings.test_share / 2 * (1 - settings.test_share),
        seed=settings.seed,
        rest="stratify",
    )
    for line in summary.lines():
        say(line)
    if summary.failed:
        raise ValueError(_failed(summary, whole, settings.split))
    if settings.overlays != "keep":
        say(change_overlays(whole, settings.overlays, settings.seed))
        write_overview(read_case_set(whole), whole / OVERVIEW)
    _move_in(whole, folder)
    shutil.rmtree(parts)


def _failed(summary: SplitSummary, whole: Path, method: str) -> str:
    """Why no run can be made of a split, where its report lies, and what to do."""
    found = [f"the splits {' and '.join(summary.empty)} are empty"] if summary.empty else []
    if summary.leaks.failed:
        found.append(f"{sum(leak.fails for leak in summary.leaks.leaks)} pairs leak between splits")
    other = "" if method == "stratified" else "set data.split: stratified, or "
    command = "cogalign data split" + ("" if method == "stratified" else f" --method {method} --repair")
    return (
        f"data.split {method}: {'; '.join(found)}: see {whole / 'leaks.md'} and {whole / 'split.json'}; {other}move {whole} "
        f"elsewhere, split it there ('{command}'; for other data change data.imports) and name it as data.case_set"
    )


def _import(item: ImportSettings, settings: DataSettings, out: Path) -> Path:
    """One data set as a case set of its own; what is wrong with a path is said before anything is read."""
    from cogalign.data.cards.find import read_card
    from cogalign.data.importers.importer import import_card
    from cogalign.data.importers.wanted import check_findings

    root = Path(settings.root)
    source = inside(root, item.path) if item.path not in ("", ".") else root
    if not source.is_dir():
        raise FileNotFoundError(f"data.imports.path: no folder {source}")
    try:
        check_findings(item.findings)
    except ValueError as error:
        raise ValueError(f"data.imports.{error}") from None
    summary = import_card(
        read_card(item.card),
        source,
        out,
        images=settings.images,
        side=settings.image_side,
        limit=item.limit,
        findings=item.findings,
        split=item.split,
    )
    for line in summary.lines():
        say(line)
    return out


def _move_in(whole: Path, folder: Path) -> None:
    """Move what is in `whole` to `folder`, the metadata last."""
    names: Sequence[str] = sorted((path.name for path in whole.iterdir()), key=lambda name: (name == METADATA, name))
    for name in names:
        target = folder / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(whole / name, target)


def case_set_digest(root: str | os.PathLike[str]) -> str:
    """SHA-256 of a case set's `metadata.jsonl`, as 64 hexadecimal digits.

    Raises:
        FileNotFoundError: there is no `metadata.jsonl`.
    """
    path = Path(root) / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a case set is a folder of images with a {METADATA}")
    return sha256_of(path)


def _source(settings: DataSettings) -> str:
    """Which of the three sources is given."""
    given = [name for name in _SOURCES if getattr(settings, name)]
    if len(given) != 1:
        found = " and ".join(f"data.{name}" for name in given) or "none of them"
        raise ValueError(f"data: found {found}, wanted exactly one of data.case_set, data.phantom and data.imports")
    return given[0]


def _made_from(settings: DataSettings, source: str) -> dict[str, Any]:
    """The settings, and the cards, on which the files of a case set depend, as plain JSON values."""
    values = asdict(settings)
    found: dict[str, Any] = json.loads(json.dumps({name: values[name] for name in _USED[source]}))
    if source == "imports":
        from cogalign.data.cards.digest import cards_digest

        found["cards"] = cards_digest(settings.imports or ())
    return found


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings of an earlier call, or None if there are none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("imports"), list):  # keys that came later, as they were then
        content = {"overlays": "keep", **content}
        content["imports"] = [{"findings": [], "split": None, **item} for item in content["imports"]]
    return content
