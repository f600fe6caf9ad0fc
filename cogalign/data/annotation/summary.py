"""What a run of `cogalign data annotate` did, and what it would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cogalign.data.annotation.cost import Estimate, cost_of
from cogalign.data.annotation.prompt import PATCH
from cogalign.models.endpoint_wire import Usage


@dataclass
class AnnotateSummary:
    """Counts of one run."""

    root: Path
    teacher: str
    chosen: int = 0
    """Cases that were to be annotated."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Cases that were not, by reason."""
    checked: int = 0
    """Reports that passed all checks."""
    reused: int = 0
    """Of these, from answers that an earlier run had paid for."""
    retried: int = 0
    """Of these, after at least one answer that was refused."""
    failed: Counter[str] = field(default_factory=Counter)
    """Cases without a usable answer, by the checks that refused their last one."""
    failed_cases: int = 0
    unanswered: int = 0
    """Cases that the endpoint did not answer; the next run asks again."""
    not_asked: int = 0
    """Cases that were not asked any more, because of `max_cost` or an interruption."""
    flags: Counter[str] = field(default_factory=Counter)
    first_reasons: dict[str, str] = field(default_factory=dict)
    """For each reason of `failed` and `unanswered`, the first case and what was said of it."""
    usage: Usage = field(default_factory=Usage)
    price_in: float | None = None
    price_out: float | None = None
    damaged: int = 0
    """Lines of the ledger that could not be read."""
    estimate: Estimate | None = None
    attempts: int = 1
    stopped: str = ""
    """Why the run ended before its time; empty if it did not."""

    @property
    def cost(self) -> float | None:
        """Of this run's counted tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return cost_of(self.usage, self.price_in, self.price_out)

    def lines(self) -> list[str]:
        """The summary for a person, one line each."""
        return list(self._estimated() if self.estimate is not None else self._done())

    def _left_out(self) -> Iterable[str]:
        if self.left_out:
            yield "left out: " + ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        if self.damaged:
            yield f"annotations.jsonl: {self.damaged} damaged lines are ignored"

    def _estimated(self) -> Iterable[str]:
        told = self.estimate
        assert told is not None
        if self.teacher == "template":
            yield f"{self.root}: {told.cases} cases to annotate by template, which costs nothing"
            yield from self._left_out()
            return
        yield f"{self.root}: {told.cases} cases to ask {self.teacher} about, {told.paid} with answers that are paid for"
        yield from self._left_out()
        yield (
            f"questions: about {told.prompt_tokens:,} tokens, {told.image_tokens:,} of them images "
            f"({PATCH} x {PATCH} pixels a token), {told.text_tokens:,} text (4 characters a token)"
        )
        source = (
            f"as {told.counted} counted answers of this teacher" if told.counted else "a guess, nothing is counted yet"
        )
        yield f"answers: about {told.answer_tokens:,} tokens ({source}); what a model thinks may come on top"
        if self.price_in is not None and self.price_out is not None:
            once = cost_of(Usage(told.prompt_tokens, told.answer_tokens), self.price_in, self.price_out)
            yield f"cost: about {once:.2f} if each first answer is good; each further attempt costs as much per case and more"
        else:
            yield "cost: give the prices of a million tokens (--price-in, --price-out)"
        yield "nothing was asked"

    def _done(self) -> Iterable[str]:
        yield (
            f"{self.root}: {self.checked} of {self.chosen} cases annotated by {self.teacher}"
            + (f", {self.reused} from answers that were paid for before" if self.reused else "")
            + (f", {self.retried} after a retry" if self.retried else "")
        )
        yield from self._left_out()
        if self.failed_cases:
            reasons = ", ".join(f"{name} {count}" for name, count in self.failed.most_common())
            yield f"failed: {self.failed_cases} cases keep what they had ({reasons})"
        if self.unanswered:
            yield f"unanswered: {self.unanswered} cases; the next run asks again"
        if self.not_asked:
            yield f"not asked: {self.not_asked} cases"
        yield from (f"  {name}: {text}" for name, text in self.first_reasons.items())
        if self.flags:
            yield "flags: " + ", ".join(f"{name} {count}" for name, count in self.flags.most_common())
        yield from self._spent()
        if self.stopped:
            yield f"stopped: {self.stopped}"

    def _spent(self) -> Iterable[str]:
        used = self.usage
        if not used.requests:
            return
        line = f"{used.requests} requests, {used.prompt:,} tokens of questions, {used.completion:,} of answers"
        line += f"; cost {self.cost:.2f}" if self.cost is not None else ""
        line += f" ({used.estimated} answers came without a count and are estimated)" if used.estimated else ""
        yield line
        if used.lost:
            yield f"{used.lost} requests were sent and not answered; the provider may bill them too"
