"""`cogalign data annotate`: reports and keywords for the cases of a case set, by a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cogalign.data.annotation import checks, prompt
from cogalign.data.annotation.choose import choose
from cogalign.data.annotation.cost import ANSWER_TOKENS, Estimate, SpendingLimit
from cogalign.data.annotation.facts import facts_of
from cogalign.data.annotation.ledger import LEDGER, Ledger, read_entries, usage_of
from cogalign.data.annotation.outcome import Outcome, write_back
from cogalign.data.annotation.remarks import Remark
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.data.annotation.summary import AnnotateSummary
from cogalign.data.annotation.teacher import CUT, EndpointTeacher, now, question_of
from cogalign.data.annotation.template import TEMPLATE_VERSION, template_draft
from cogalign.data.annotation.threads import Threads
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.models.endpoint import ChatEndpoint, EndpointError
from cogalign.models.endpoint_http import shown
from cogalign.training.interrupt import Interrupted, signals_interrupt
from cogalign.training.progress import say, track

SILENT = 3
"""After so many cases in a row without an answer (or `concurrency`, if that is more) the endpoint counts as down; if as
many paid answers at the beginning all ended at the token limit, that is too low."""


def annotate_case_set(root: Path, settings: AnnotateSettings, *, estimate_only: bool = False) -> AnnotateSummary:
    """Annotate the cases of a folder, and write `metadata.jsonl` once at the end.

    Each answer goes to `annotations.jsonl` as it comes. A run that was stopped in any way goes on there, and no answer is
    asked for twice. A signal lets the answers that are under way come in, then ends the run; a second one drops them.

    Args:
        root: folder of the case set.
        settings: teacher, cases, limits.
        estimate_only: say what it would cost and ask nothing.

    Raises:
        FileNotFoundError, ValueError: the folder holds no case set, or the settings do not fit it.
        EndpointError: the endpoint cannot be used, or does not answer any more; what was answered is kept and written.
        BlockingIOError: another process annotates this folder.
        Interrupted: a signal came; what was answered is kept and written.
    """
    case_set = read_case_set(root)
    chosen, left_out = choose(case_set, settings)
    teacher = settings.endpoint.model if settings.teacher == "endpoint" and settings.endpoint else "template"
    summary = AnnotateSummary(
        root, teacher, len(chosen), left_out, price_in=settings.price_in, price_out=settings.price_out
    )
    if settings.teacher == "template":
        return _by_template(case_set, chosen, summary, estimate_only)
    if estimate_only:
        return _estimated(case_set, chosen, settings, summary)
    return _by_endpoint(case_set, chosen, settings, summary)


def _by_template(
    case_set: CaseSet, cases: Sequence[Case], summary: AnnotateSummary, estimate_only: bool
) -> AnnotateSummary:
    """Annotate offline."""
    if estimate_only:
        summary.estimate = Estimate(cases=len(cases))
        return summary
    with signals_interrupt():
        outcomes = [_from_template(case_set, case) for case in track(cases, "annotate")]
    _count(summary, outcomes)
    write_back(case_set.root, outcomes, "template", TEMPLATE_VERSION)
    return summary


def _from_template(case_set: CaseSet, case: Case) -> Outcome:
    """The template's report, which goes through the same checks."""
    try:
        facts = facts_of(case_set, case)
    except (ValueError, FileNotFoundError) as error:
        return Outcome(case, "failed", failures=(Remark("image", str(error)),), attempts=1, date=now())
    draft = template_draft(facts)
    told = f"{case.id}\n{prompt.user_text(facts)}\n{TEMPLATE_VERSION}"
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    # Its own words ("annotated") are those of the annotation, not of somebody who looks.
    failures = tuple(remark for remark in checks.failures(draft, facts) if remark.check != "source")
    flags = () if failures else tuple(checks.flags(draft, facts))
    kept = None if failures else draft
    return Outcome(case, "failed" if failures else "checked", kept, key, failures, flags, 1, now())


def _estimated(
    case_set: CaseSet, cases: Sequence[Case], settings: AnnotateSettings, summary: AnnotateSummary
) -> AnnotateSummary:
    """What the cases would cost that the ledger does not answer."""
    entries, summary.damaged = read_entries(case_set.root / LEDGER)
    told = [usage_of(entry) for entry in entries if entry.answer is not None and entry.teacher == summary.teacher]
    lengths = [usage.completion for usage in told if usage.completion and not usage.estimated]
    estimate = Estimate(counted=len(lengths))
    ledger = Ledger(case_set.root)
    for entry in entries:
        ledger.keep(entry)
    teacher = EndpointTeacher(case_set, settings, ledger, None)
    for case in track(cases, "estimate"):
        try:
            question = question_of(case_set, case, settings)
        except (ValueError, FileNotFoundError):
            continue  # it will fail without being asked about
        if teacher.answer(question).kind != "not_asked":
            estimate.paid += 1
            continue
        estimate.cases += 1
        estimate.image_tokens += question.image_tokens
        estimate.text_tokens += question.text_tokens
    mean = sum(lengths) / len(lengths) if lengths else ANSWER_TOKENS
    estimate.answer_tokens = round(mean * estimate.cases)
    summary.estimate = estimate
    return summary


def _by_endpoint(
    case_set: CaseSet, cases: Sequence[Case], settings: AnnotateSettings, summary: AnnotateSummary
) -> AnnotateSummary:
    """Ask the endpoint; whatever ends the run, what was answered is written."""
    asked = settings.endpoint
    assert asked is not None
    purse = None
    if settings.max_cost is not None and settings.price_in is not None and settings.price_out is not None:
        purse = SpendingLimit(settings.max_cost, settings.price_in, settings.price_out)
    with Ledger(case_set.root) as ledger:
        summary.damaged = ledger.damaged
        endpoint = ChatEndpoint(asked, name="annotate.endpoint", purse=purse)
        teacher = EndpointTeacher(case_set, settings, ledger, endpoint)
        try:
            with signals_interrupt():
                outcomes, error = _all(teacher, endpoint, cases, max(SILENT, asked.concurrency))
        finally:
            endpoint.close()
    _count(summary, outcomes)
    summary.not_asked = summary.chosen - sum(outcome.kind != "not_asked" for outcome in outcomes)
    if purse is not None and purse.refused:
        summary.stopped = (
            f"the next request could bring the cost above {settings.max_cost:g}; raise --max-cost to go on"
        )
    write_back(case_set.root, outcomes, summary.teacher, prompt.PROMPT_VERSION)
    if error is not None:
        for line in summary.lines():
            say(line)
        raise error
    return summary


def _all(
    teacher: EndpointTeacher, endpoint: ChatEndpoint, cases: Sequence[Case], patience: int
) -> tuple[list[Outcome], BaseException | None]:
    """The outcomes of all cases, or of those until something went wrong, and what that was."""
    outcomes: list[Outcome] = []
    silent = cut = 0
    first = True  # no answer of this run had its end
    threads = Threads(teacher.annotate, cases, endpoint.settings.concurrency)
    try:
        for outcome in track(threads, "annotate", len(cases)):
            outcomes.append(outcome)
            silent = silent + 1 if outcome.kind == "unanswered" else 0
            if silent >= patience:
                reason = outcome.failures[0].text
                raise EndpointError(f"{shown(endpoint.settings.url)}: {silent} cases in a row without an answer: {reason}; "
                                    "what was answered is kept, run again to go on")  # fmt: skip
            if outcome.usage.requests and outcome.kind in ("checked", "failed"):
                first = first and any(failure.check == CUT for failure in outcome.failures)
                cut += first
            if first and cut >= patience:
                raise EndpointError(f"{endpoint.settings.model}: not one of {cut} cases has a whole answer: "
                                    f"{outcome.failures[0].text}; what was answered is kept")  # fmt: skip
    except (Interrupted, KeyboardInterrupt, Exception) as error:
        # What is under way will be billed: it may come in, unless a second signal ends the waiting.
        endpoint.stop()
        if isinstance(error, Interrupted | KeyboardInterrupt):
            say("waiting for the answers that are under way; once more Ctrl-C drops them")
        outcomes += threads.finish()
        return outcomes, error
    return outcomes, None


def _count(summary: AnnotateSummary, outcomes: Sequence[Outcome]) -> None:
    """Add outcomes to a summary."""
    for outcome in outcomes:
        summary.usage += outcome.usage
        names = sorted({failure.check for failure in outcome.failures})
        if outcome.kind == "checked":
            summary.checked += 1
            summary.reused += bool(summary.teacher != "template" and not outcome.usage.requests)
            summary.retried += outcome.attempts > 1
            summary.flags.update({flag.check for flag in outcome.flags})
        elif outcome.kind == "failed":
            summary.failed_cases += 1
            summary.failed.update(names)
        elif outcome.kind == "unanswered":
            summary.unanswered += 1
        for failure in outcome.failures:
            summary.first_reasons.setdefault(failure.check, f"{outcome.case.id}: {failure.text}")
