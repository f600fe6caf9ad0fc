"""The paper's protocol as a named split: `cogalign data split DIR --method paper`.

What the paper tells and what it leaves open is in `datasets/protocols/cogalign-paper.yaml`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import yaml

from cogalign.cognition.taxonomy import SINGLE_LABELS, single_label
from cogalign.data.cards.find import cards_folder
from cogalign.data.cards.strict import build
from cogalign.data.case import Case
from cogalign.data.paths import slug
from cogalign.data.splits import LEFT_OUT, assign_splits

PAPER = "cogalign-paper"


@dataclass(frozen=True)
class ProtocolSource:
    """One data set of a protocol."""

    card: str
    """Id of the card that imports it."""
    names: tuple[str, ...]
    """Names that `Case.dataset` may have."""
    test: int
    """Cases in test."""
    several: int = 0
    """How many of them have more than one label. With 0, cases with several labels are left out."""


@dataclass(frozen=True)
class Protocol:
    """Which cases of which data sets go to train and test."""

    id: str
    title: str
    train: int
    test: int
    labels: int
    """Number of single labels."""
    combinations: int
    """Number of combinations of labels; the most frequent ones are taken."""
    sources: tuple[ProtocolSource, ...]
    open: tuple[str, ...]
    """What the protocol's origin does not tell, and what is done instead."""

    @property
    def test_share(self) -> float:
        """Share of the cases that are in test."""
        return self.test / (self.train + self.test)


def read_protocol(name: str = PAPER) -> Protocol:
    """The protocol of a name, from `datasets/protocols/`.

    Raises:
        FileNotFoundError: there is no such protocol.
        ValueError: the file has an error; file and key are named.
    """
    folder = cards_folder() / "protocols"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"protocol {name!r}: no such file in {folder}; there: {known}")
    protocol: Protocol = build(Protocol, yaml.safe_load(path.read_text(encoding="utf-8")), "", str(path))
    if sum(source.test for source in protocol.sources) != protocol.test:
        raise ValueError(f"{path}: `test`: found {protocol.test}, wanted the sum of the sources' test sizes")
    return protocol


def paper_split(
    cases: Sequence[Case], protocol: Protocol, seed: int, grouped: bool = True, validation_share: float = 0.0
) -> tuple[list[Case], list[str]]:
    """The cases with the split of a protocol (`left_out`: not used), and what was decided or is missing.

    Args:
        cases: of any data sets; those that the protocol does not name are left out.
        protocol: see `read_protocol`.
        seed: of the draw; the order of the cases makes no difference.
        grouped: groups stay whole (our advice). False: by image, as the paper seems to have done.
        validation_share: share of the train cases that becomes `validation`; the paper has none.

    Raises:
        ValueError: no case is of the protocol's data sets, a finding is not in the taxonomy, or the share is bad.
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share: found {validation_share!r}, wanted a share in [0, 1)")
    sets = {slug(name): source for source in protocol.sources for name in source.names}
    pool: dict[_Part, list[Case]] = {}
    usable, notes = _usable(cases, sets, protocol)
    if not usable:
        wanted = ", ".join(source.names[0] for source in protocol.sources)
        raise ValueError(f"protocol {protocol.id!r}: found no case of its data sets ({wanted})")
    generator = np.random.default_rng(seed)
    drawn = assign_splits(usable, protocol.test_share, seed, 0.0) if grouped else usable
    for case in sorted(drawn, key=lambda case: case.id):
        pool.setdefault((sets[slug(case.dataset)].card, len(case.findings) > 1), []).append(case)
    homes: dict[str, str] = {}
    for source in protocol.sources:
        for several in (False, True):
            part = pool.get((source.card, several), [])
            test, train = _sizes(source, several, protocol, len(part), notes)
            chosen = _thinned(part, test, train, generator) if grouped else _by_image(part, test, train, generator)
            homes.update(chosen)
            _about_part(source, several, Counter(chosen.values()), test, train, notes)
    if validation_share > 0:
        homes.update(
            _validation([case for case in drawn if homes.get(case.id) == "train"], validation_share, seed, grouped)
        )
    notes.append("split by group: patients, videos and near-duplicates stay together, which the paper does not say of its own"
                 if grouped else "split by image, as the paper seems to have done: see the leak report for what crosses")  # fmt: skip
    notes.append(f"validation: {validation_share:.0%} of train; the paper has none" if validation_share else
                 "no validation split, as in the paper")  # fmt: skip
    notes.append(f"what the paper leaves open: datasets/protocols/{protocol.id}.yaml")
    return [replace(case, split=homes.get(case.id, LEFT_OUT)) for case in cases], notes


_Part = tuple[str, bool]
"""Card of a data set, and whether its cases have several labels."""


def _usable(cases: Sequence[Case], sets: dict[str, ProtocolSource], protocol: Protocol) -> tuple[list[Case], list[str]]:
    """Cases that the protocol can use, with single labels in place of finer findings; and notes on the others."""
    notes: list[str] = []
    named = [case for case in cases if slug(case.dataset) in sets and case.findings and not case.counterfactual_of]
    if len(named) < len(cases):
        notes.append(
            f"{len(cases) - len(named)} cases are left out: of other data sets, without findings or counterfactuals"
        )
    mapped = [replace(case, findings=tuple(sorted({single_label(name) for name in case.findings}))) for case in named]
    mixed = [case for case in mapped if len(case.findings) > 1]
    allowed = [case for case in mixed if sets[slug(case.dataset)].several]
    counts = Counter(case.findings for case in allowed)
    kept = set(sorted(counts, key=lambda names: (-counts[names], names))[: protocol.combinations])
    chosen = [case for case in mapped if len(case.findings) == 1] + [case for case in allowed if case.findings in kept]
    if len(allowed) < len(mixed):
        notes.append(
            f"{len(mixed) - len(allowed)} cases have several labels in a set of single labels and are left out"
        )
    rare = sum(counts.values()) - sum(counts[names] for names in kept)
    if rare:
        notes.append(f"{rare} cases have one of the {len(counts) - len(kept)} rarer combinations and are left out")
    if len(kept) < protocol.combinations:
        notes.append(f"combinations: found {len(kept)}, the paper has {protocol.combinations}")
    absent = [label for label in SINGLE_LABELS if not any(case.findings == (label,) for case in chosen)]
    if absent:
        notes.append(
            f"single labels: found {len(SINGLE_LABELS) - len(absent)} of {protocol.labels}, without {', '.join(absent)}"
        )
    return chosen, notes


def _sizes(source: ProtocolSource, several: bool, protocol: Protocol, there: int, notes: list[str]) -> tuple[int, int]:
    """Cases of a part that go to test and train: the paper's numbers, or in proportion if there are fewer."""
    test = source.several if several else source.test - source.several
    total = round(test / protocol.test_share)
    kind = "cases with several labels" if several else "cases with one label"
    if there >= total:
        return test, total - test
    test = round(there * protocol.test_share)
    missing = "missing" if not there else f"found {there}"
    notes.append(f"{source.names[0]}, {kind}: {missing}, the paper has about {total}; in proportion {test} go to test")
    return test, there - test


def _about_part(
    source: ProtocolSource, several: bool, found: Counter[str], test: int, train: int, notes: list[str]
) -> None:
    """Say where whole groups made a number that the protocol does not want."""
    if (found["test"], found["train"]) != (test, train):
        kind = "several labels" if several else "one label"
        notes.append(f"{source.names[0]}, {kind}: {found['test']} test and {found['train']} train instead of {test} and "
                     f"{train}, since groups stay whole")  # fmt: skip


def _by_image(part: Sequence[Case], test: int, train: int, generator: np.random.Generator) -> dict[str, str]:
    """The splits of exactly so many cases of a part, by id."""
    chosen = _drawn(part, test + train, generator)
    tests = {case.id for case in _drawn(chosen, test, generator)}
    return {case.id: "test" if case.id in tests else "train" for case in chosen}


def _thinned(part: Sequence[Case], test: int, train: int, generator: np.random.Generator) -> dict[str, str]:
    """At most so many of the cases that the draw by group put into test and train, by id."""
    found: dict[str, str] = {}
    for split, number in (("test", test), ("train", train)):
        there = [case for case in part if case.split == split]
        found.update((case.id, split) for case in _drawn(there, min(number, len(there)), generator))
    return found


def _drawn(cases: Sequence[Case], number: int, generator: np.random.Generator) -> list[Case]:
    """So many cases at even distances in the order of label, class and group (systematic sampling)."""
    if not number:
        return []
    chance = generator.random(len(cases))
    order = sorted(
        range(len(cases)),
        key=lambda i: (cases[i].findings, str(cases[i].attributes.get("class", "")), cases[i].group, chance[i]),
    )
    places = np.floor((np.arange(number) + generator.random()) * (len(cases) / number)).astype(np.int64)
    return [cases[order[place]] for place in np.minimum(places, len(cases) - 1).tolist()]


def _validation(train: Sequence[Case], share: float, seed: int, grouped: bool) -> dict[str, str]:
    """Cases of train that become validation, by id."""
    pool = train if grouped else [replace(case, group="") for case in train]
    return {case.id: "validation" for case in assign_splits(pool, 0.0, seed, share) if case.split == "validation"}
