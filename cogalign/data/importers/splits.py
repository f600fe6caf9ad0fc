"""The split that a data set's authors made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cogalign.data.cards.card import Folds, SplitRule, Table, as_template
from cogalign.data.cards.template import expand
from cogalign.data.importers.tables import Joined, read_text
from cogalign.data.importers.tree import Tree


class OfficialSplit:
    """The official split of the images of a part. Files that are not there give none."""

    def __init__(self, tree: Tree, rule: SplitRule) -> None:
        self.rule = rule
        self._lists: dict[str, set[str]] = {}
        self._tables: dict[str, Joined] = {}
        for split, pattern in rule.lists.items():
            path = tree.first(pattern)
            if path is None:
                continue
            if isinstance(rule.key, dict):
                table = Table(split, path.relative_to(tree.root).as_posix(), rule.key, rule.delimiter, many=True)
                self._tables[split] = Joined(tree, table, set())
            else:
                self._lists[split] = {line.strip() for line in read_text(path).splitlines() if line.strip()}
        self._folds = _folds(tree, rule.folds) if rule.folds else None

    def of(self, fields: Mapping[str, str]) -> tuple[str | None, dict[str, Any]]:
        """The split of an image, and its fold as the attribute `official_fold`.

        Raises:
            ValueError: two lists hold the image, or its fold has no number.
        """
        extra = {}
        fold = self._fold(fields)
        if fold:
            number = re.search(r"\d+$", fold)
            if number is None:
                raise ValueError(f"official fold: found {fold!r}, wanted a text that ends in a number")
            extra["official_fold"] = int(number.group())
        if self.rule.source is not None:
            own = expand(self.rule.source, fields)
            return (None if own is None else self.rule.values.get(own, own)), extra
        splits = [split for split in self.rule.lists if self._holds(split, fields)]
        if len(splits) > 1:
            raise ValueError(f"it is in several official splits: {', '.join(splits)}")
        return (splits[0] if splits else None), extra

    def _fold(self, fields: Mapping[str, str]) -> str | None:
        """The text of an image's fold, if it has one."""
        rule = self.rule.folds
        if rule is None or rule.file is None:
            return expand(as_template(rule.column), fields) if rule else None
        rows = self._folds.of(fields) if self._folds else []
        return rows[0][rule.column] if rows else None

    def _holds(self, split: str, fields: Mapping[str, str]) -> bool:
        """Whether the list of a split names an image."""
        if split in self._tables:
            return bool(self._tables[split].of(fields))
        if isinstance(self.rule.key, dict) or split not in self._lists:
            return False
        name = expand(self.rule.key, fields) or ""
        suffix = fields["name"].rpartition(".")[2]
        return not self._lists[split].isdisjoint((name, f"{name}.{suffix}", name.removesuffix(f".{suffix}")))


def _folds(tree: Tree, rule: Folds) -> Joined | None:
    """The table of folds, if it is there."""
    if rule.file is None or not tree.all(rule.file):
        return None
    return Joined(tree, Table("folds", rule.file, rule.key, rule.delimiter), {rule.column})
