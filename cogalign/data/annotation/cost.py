"""What annotation costs: a purse that stays below a limit, and an estimate before anything is asked."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cogalign.models.endpoint_wire import Usage

MILLION = 1_000_000
ANSWER_TOKENS = 450
"""Of an answer, as long as none was counted: three sections of 50 words and nine keywords, as JSON."""
UNSURE = 2.0
"""Until a server has told how it counts, a question may have so many times the tokens of our estimate."""


def cost_of(usage: Usage, price_in: float, price_out: float) -> float:
    """Price of the tokens that were counted; prices are those of a million tokens."""
    return (usage.prompt * price_in + usage.completion * price_out) / MILLION


class SpendingLimit:
    """Lets a request go only if it cannot bring the cost above a limit; safe for threads.

    What is under way counts with the longest answer, until its tokens are known. Where the limit would be passed only by
    what is under way, `take` waits for that to end. A request without an answer counts as if it had the longest: it may be
    billed. How many tokens a question has is an estimate, corrected by what the server counted so far.

    Args:
        limit: in the currency of the prices.
        price_in: of a million tokens of questions.
        price_out: of a million tokens of answers.
    """

    def __init__(self, limit: float, price_in: float, price_out: float) -> None:
        self._limit, self._prices = limit, (price_in, price_out)
        self._spent = 0.0
        self._under_way: list[float] = []
        self._ratio = 0.0
        self._changed = threading.Condition()
        self.refused = False
        """Whether a request was held back."""

    @property
    def spent(self) -> float:
        """So far, requests without an answer included."""
        return self._spent

    def take(self, prompt: int, completion: int) -> bool:
        """Whether a request may go; waits while that depends on requests that are under way."""
        with self._changed:
            while True:
                need = self._price(prompt, completion)
                if self._spent + need > self._limit:
                    self.refused = True
                    return False
                if self._spent + sum(self._under_way) + need <= self._limit:
                    self._under_way.append(need)
                    return True
                self._changed.wait()

    def settle(self, prompt: int, completion: int, usage: Usage) -> None:
        """Count what a request has cost."""
        with self._changed:
            if self._under_way:
                taken = self._price(prompt, completion)
                self._under_way.remove(min(self._under_way, key=lambda value: abs(value - taken)))
            if usage.lost:
                self._spent += self._price(prompt, completion)
            self._spent += cost_of(usage, *self._prices)
            if usage.prompt and not usage.estimated and prompt:
                self._ratio = max(self._ratio, usage.prompt / prompt)
            self._changed.notify_all()

    def _price(self, prompt: int, completion: int) -> float:
        ratio = self._ratio or UNSURE
        return cost_of(Usage(round(prompt * ratio), completion), *self._prices)


@dataclass
class Estimate:
    """What the remaining cases would cost, before anything is asked."""

    cases: int = 0
    """Cases that need at least one question."""
    paid: int = 0
    """Cases whose answers are in the ledger."""
    image_tokens: int = 0
    text_tokens: int = 0
    answer_tokens: int = 0
    """One answer a case."""
    counted: int = 0
    """Answers of this teacher in the ledger, from which lengths are taken; 0: rules of thumb."""

    @property
    def prompt_tokens(self) -> int:
        """Of one question a case."""
        return self.image_tokens + self.text_tokens
