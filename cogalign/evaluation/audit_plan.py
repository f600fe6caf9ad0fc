"""What the audit asks every model: unedited images, the same under spots or blurred, the run's pairs and those of other sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cogalign.counterfactual.plan import unsuitable
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSet, read_case_set
from cogalign.data.lazy_image import lazy_image
from cogalign.evaluation.audit import BACKGROUND_BLUR, RATES, REMAINING, kind_of
from cogalign.evaluation.audit_sets import FACTUAL, Answered, kind_in
from cogalign.evaluation.collect import Job, stamp
from cogalign.evaluation.perturbations import blur_background, spots
from cogalign.evaluation.selection import spread, stream
from cogalign.recipe import AuditSet
from cogalign.training.context import StageContext

Kinds = dict[str, list[Case]]
"""Counterfactuals by the kind under which the audit asks about them."""


def plan(context: StageContext) -> list[Job]:
    """The jobs of the audit; an unedited image is asked about once, whatever sets have pairs of it.

    Raises:
        FileNotFoundError: a folder of pairs, or an image of it, is not there.
        ValueError: a folder of pairs has none of the split, or is of another case set.
    """
    settings = context.recipe.audit
    factual_set = read_case_set(context.case_set_dir)
    folders: dict[str | None, CaseSet] = {None: read_case_set(context.counterfactual_dir)}
    folders |= {item.name: read_audit_set(item) for item in settings.sets}
    asked = {name: _edited(context, pairs, name, factual_set) for name, pairs in folders.items()}
    plain = spread([case for case in factual_set.split(settings.split) if not case.is_question], settings.limit)
    blurred = _blurred(context, factual_set)
    wanted = {case.id for cases in (plain, *(job.cases for job in blurred)) for case in cases}
    wanted.update(str(case.counterfactual_of) for kinds in asked.values() for cases in kinds.values() for case in cases)
    sources = [case for case in factual_set.cases if case.id in wanted]
    jobs = [Job(FACTUAL, sources, partial(lazy_image, factual_set), stamp(factual_set))]
    jobs += [_spotted(context, factual_set, plain), *blurred]
    answered = Answered()
    if settings.sets:
        answered.add(FACTUAL, sources, partial(_file, factual_set))
    for name, kinds in asked.items():
        pairs = folders[name]
        for kind, cases in kinds.items():
            # Without other sets no file is read: the run's own pairs are asked as they are, twins or not.
            same = answered.add(kind_in(name, kind), cases, partial(_file, pairs)) if settings.sets else {}
            images = partial(lazy_image, pairs)
            jobs.append(Job(kind_in(name, kind), cases, images, stamp(pairs), {} if name is None else same))
    return jobs


def read_audit_set(item: AuditSet) -> CaseSet:
    """The pairs of an audit set.

    Raises:
        FileNotFoundError: there is no such folder; the message names the key.
        ValueError: it is no case set.
    """
    folder = Path(item.pairs)
    if not (folder / METADATA).is_file():
        raise FileNotFoundError(
            f"audit.sets, {item.name!r}: {folder} has no {METADATA}; wanted the folder `counterfactual` of a finished run"
        )
    return read_case_set(folder)


def absent_kinds(jobs: Sequence[Job], name: str | None) -> list[str]:
    """The kinds of the causal score of which a set (None: the run's own pairs) has no counterfactual."""
    there = {job.kind for job in jobs}
    return [kind for kind in RATES if kind_in(name, kind) not in there]


def _edited(context: StageContext, pairs: CaseSet, name: str | None, factual_set: CaseSet) -> Kinds:
    """The counterfactuals of the split in a folder of pairs, by kind; a kind that has none is left out."""
    settings = context.recipe.audit
    rows = [case for case in pairs.cases if case.split == settings.split and case.counterfactual_of]
    if not rows:
        found = ", ".join(sorted({case.split for case in pairs.cases}))
        add = "add it to counterfactual.splits" + ("" if name is None else f" of the run that made audit set {name!r}")
        raise ValueError(
            f"audit.split: found {settings.split!r}, but {pairs.root} has counterfactuals of {found} only; "
            f"{add}, or see left_out.json there for why its cases have none"
        )
    by_kind = {kind: [case for case in rows if kind_of(case) == kind] for kind in (*RATES, REMAINING)}
    kinds = {kind: spread(cases, settings.limit) for kind, cases in by_kind.items() if cases}
    sources = {str(case.counterfactual_of) for cases in kinds.values() for case in cases}
    missing = sorted(sources - factual_set.by_id.keys())
    if missing:
        raise ValueError(
            f"{pairs.root}: counterfactual_of {missing[0]!r} is not in {factual_set.root}; "
            + ("run the stage counterfactual again" if name is None else f"audit set {name!r} is of another case set")
        )
    return kinds


def _spotted(context: StageContext, factual_set: CaseSet, cases: Sequence[Case]) -> Job:
    count, seed = context.recipe.audit.spots, context.recipe.seed

    def spotted(case: Case) -> Image.Image:
        return Image.fromarray(spots(np.asarray(factual_set.image(case)), stream(seed, case.id), count))

    return Job("spots", cases, spotted, f"{count} spots, seed {seed}, {stamp(factual_set)}")


def _blurred(context: StageContext, factual_set: CaseSet) -> list[Job]:
    """The cases of the split with focal lesions whose masks the case set holds, sharp on a blurred background."""
    settings = context.recipe.audit
    sigma = settings.background_blur
    if sigma is None:
        return []

    def masked(case: Case) -> bool:
        mask = factual_set.mask(case) if unsuitable(case) is None else None
        return mask is not None and bool(mask.any())

    def blurred(case: Case) -> Image.Image:
        mask = factual_set.mask(case)
        assert mask is not None  # chosen by it
        return Image.fromarray(blur_background(np.asarray(factual_set.image(case)), mask, sigma))

    cases = spread([case for case in factual_set.split(settings.split) if masked(case)], settings.limit)
    return [Job(BACKGROUND_BLUR, cases, blurred, f"blur {sigma:g}, {stamp(factual_set)}")] if cases else []


def _file(case_set: CaseSet, case: Case) -> Path:
    return case_set.path(case.file_name)
