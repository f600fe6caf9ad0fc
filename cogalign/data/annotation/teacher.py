"""Asking a multimodal model for the report of one case, until an answer passes the checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from cogalign.data.annotation import checks, prompt
from cogalign.data.annotation.draft import Draft, read_draft
from cogalign.data.annotation.facts import Facts, facts_of
from cogalign.data.annotation.ledger import Entry, Ledger
from cogalign.data.annotation.outcome import Kind, Outcome
from cogalign.data.annotation.remarks import Remark
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size
from cogalign.models.endpoint import Answer, ChatEndpoint, EndpointSettings, EndpointStopped
from cogalign.models.endpoint_wire import Message, Usage, data_uri, estimate, turn
from cogalign.training.file_digest import sha256_of

CUT = "cut"
"""Check of an answer that ended at the token limit before it had its form: as long, it would be cut again."""
FORM = ("json", "sections", "language", "keywords")
"""Checks that an answer fails because its end is missing."""


@dataclass(frozen=True)
class Question:
    """What is asked about one case, before any answer."""

    case: Case
    facts: Facts
    key: str
    size: tuple[int, int]
    """Width and height of the image as it is sent."""

    @property
    def image_tokens(self) -> int:
        """About how many tokens the image is."""
        return prompt.image_tokens(*self.size)

    @property
    def text_tokens(self) -> int:
        """About how many tokens the texts are."""
        return estimate([turn("system", prompt.system_text()), turn("user", prompt.user_text(self.facts))])


def question_of(case_set: CaseSet, case: Case, settings: AnnotateSettings) -> Question:
    """The question about a case. The image's header and bytes are read, it is not decoded.

    Raises:
        ValueError, OSError: the image or the mask is missing, not readable, or they differ in size.
    """
    assert settings.endpoint is not None
    facts = facts_of(case_set, case)
    path = case_set.path(case.file_name)
    size = prompt.sent_size(*image_size(path), settings.image_side)
    key = prompt.digest(case.id, sha256_of(path), facts, settings.endpoint.model, sampling(settings))
    return Question(case, facts, key, size)


def sampling(settings: AnnotateSettings) -> dict[str, Any]:
    """What of the settings changes an answer."""
    asked: EndpointSettings | None = settings.endpoint
    assert asked is not None
    return {
        "max_completion_length": asked.max_completion_length,
        "temperature": asked.temperature,
        "reasoning_effort": asked.reasoning_effort,
        "image_side": settings.image_side,
    }


def examine(text: str, cut: bool, facts: Facts) -> tuple[Draft | None, list[Remark], list[Remark]]:
    """The draft in an answer (None if it is refused), what refuses it, and its flags."""
    draft = read_draft(text, cut)
    if isinstance(draft, list):
        return None, draft, []
    failures = checks.failures(draft, facts)
    return (None if failures else draft), failures, checks.flags(draft, facts)


class EndpointTeacher:
    """Asks about cases; `annotate` may be called from several threads.

    Args:
        case_set: the cases' folder.
        settings: attempts, size of the images, sampling.
        ledger: what was answered before; new answers go there at once.
        endpoint: who is asked; None: nobody, only the ledger is read.
    """

    def __init__(
        self, case_set: CaseSet, settings: AnnotateSettings, ledger: Ledger, endpoint: ChatEndpoint | None
    ) -> None:
        assert settings.endpoint is not None
        self._case_set, self._settings = case_set, settings
        self._ledger, self._endpoint = ledger, endpoint
        self._model = settings.endpoint.model

    def annotate(self, case: Case) -> Outcome:
        """What comes of a case: answers of the ledger first, then new ones, up to the number of attempts.

        Raises:
            EndpointError: the endpoint cannot be used at all.
            OSError: the ledger cannot be written.
        """
        try:
            return self.answer(question_of(self._case_set, case, self._settings))
        except (ValueError, FileNotFoundError) as error:
            return Outcome(case, "failed", failures=(Remark("image", str(error)),), date=now())

    def answer(self, question: Question) -> Outcome:
        """What comes of a question; see `annotate`.

        Raises:
            ValueError, FileNotFoundError: the image cannot be decoded.
            EndpointError, OSError: as `annotate`.
        """
        case = question.case
        talk: list[Message] = []
        used = Usage()
        remarks: list[Remark] = []
        date = ""
        known = self._ledger.answers(question.key)
        for attempt in range(1, self._settings.attempts + 1):
            entry = known[attempt - 1] if attempt <= len(known) else None
            if entry is None:
                if self._endpoint is None:
                    return Outcome(case, "not_asked", key=question.key)
                talk = talk or self._opening(question, known)
                asked = self._ask(question, talk, attempt)
                if isinstance(asked, Outcome):
                    return _with_usage(asked, used)
                entry = asked
                used += Usage(**entry.usage)
            date = entry.date
            draft, remarks, flags = examine(entry.answer or "", entry.cut, question.facts)
            if draft is not None:
                return Outcome(case, "checked", draft, question.key, (), tuple(flags), attempt, date, used)
            if entry.cut and attempt >= len(known) and all(remark.check in FORM for remark in remarks):
                remarks = [_at_the_limit(self._settings)]
                return Outcome(case, "failed", None, question.key, tuple(remarks), (), attempt, date, used)
            if talk:
                talk += _correction(entry.answer or "", remarks)
        attempts = self._settings.attempts
        return Outcome(case, "failed", None, question.key, tuple(remarks), (), attempts, date, used)

    def _opening(self, question: Question, known: list[Entry]) -> list[Message]:
        """The conversation up to the next question, with the image and the answers of the ledger."""
        image = self._case_set.image(question.case)
        if image.size != question.size:
            image = image.resize(question.size, Image.Resampling.LANCZOS)
        uri = data_uri(np.asarray(image))
        talk = [turn("system", prompt.system_text()), turn("user", prompt.user_text(question.facts), [uri])]
        for entry in known:
            _, failures, _ = examine(entry.answer or "", entry.cut, question.facts)
            talk += _correction(entry.answer or "", failures)
        return talk

    def _ask(self, question: Question, talk: list[Message], attempt: int) -> Entry | Outcome:
        """A new answer, already in the ledger; an outcome where there is none."""
        assert self._endpoint is not None
        try:
            answer = self._endpoint.ask(talk, prompt.SCHEMA, estimate(talk, question.image_tokens))
        except EndpointStopped as stopped:
            if stopped.usage.prompt or stopped.usage.lost:  # requests before the stop that the provider may bill
                self._ledger.add(self._entry(question, attempt, Answer(None, "stopped", stopped.usage)))
            return Outcome(question.case, "not_asked", key=question.key, usage=stopped.usage)
        failures: list[Remark] = []
        flags: list[Remark] = []
        entry = self._entry(question, attempt, answer)
        try:
            if answer.text is not None:
                _, failures, flags = examine(answer.text, answer.cut, question.facts)
        finally:  # whatever the checks do, what is paid for is kept
            if answer.text is not None or answer.usage.prompt or answer.usage.lost:
                self._ledger.add(replace(entry, failed=_names(failures), flags=_names(flags)))
        if answer.text is not None:
            return entry
        remark = Remark("refused" if answer.refused else "unanswered", answer.reason)
        kind: Kind = "failed" if answer.refused else "unanswered"
        return Outcome(question.case, kind, None, question.key, (remark,), (), attempt, entry.date, answer.usage)

    def _entry(self, question: Question, attempt: int, answer: Answer) -> Entry:
        """The line of the ledger for an answer, or for requests without one."""
        return Entry(
            key=question.key,
            case=question.case.id,
            attempt=attempt,
            teacher=self._model,
            prompt=prompt.PROMPT_VERSION,
            date=now(),
            answer=answer.text,
            cut=answer.cut,
            reason=answer.reason,
            usage=asdict(answer.usage),
        )


def _at_the_limit(settings: AnnotateSettings) -> Remark:
    """What a person can do about an answer that was cut."""
    assert settings.endpoint is not None
    return Remark(
        CUT, f"the answer ended at the limit of {settings.endpoint.max_completion_length} tokens, and is not asked for "
        "again: raise --max-completion-length (what a model thinks counts), or lower --reasoning-effort"
    )  # fmt: skip


def _correction(text: str, failures: list[Remark]) -> list[Message]:
    """An answer and what is wrong with it; an empty answer is not repeated, servers refuse empty turns."""
    said = [turn("assistant", text)] if text.strip() else []
    return [*said, turn("user", prompt.retry_text(failures))] if said else []


def _names(remarks: list[Remark]) -> list[str]:
    """Names of the checks, each once."""
    return sorted({remark.check for remark in remarks})


def _with_usage(outcome: Outcome, before: Usage) -> Outcome:
    """The outcome with what was used before."""
    return replace(outcome, usage=before + outcome.usage)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
