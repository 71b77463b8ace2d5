"""What the lock of a slot should do: a small model for the state machine to compare with."""

from collections.abc import Callable
from typing import NamedTuple

from actors import Actor, MainThread

import luna_ext

SLOTS = (1, 2)
US, THEM = "us", "them"
POLLS = 1
"""The Library that tries again when the device answers an error; Library 0 does not."""
HANDS_OVER = 1
"""The Library whose blocks hand the lock over; those of Library 0 do not."""


class Party(NamedTuple):
    """A thread or task that waits for a slot, or holds it."""

    actor: Actor | MainThread
    library: int
    call: str
    """Who makes the lock call: the actor on its "own", or a "worker"."""
    enter: Callable[[], object]
    end: Callable[[], object]
    refusal: object
    """What the call returns or raises when the time is up."""


class Model:
    """The holder of each slot, its waiters in order, and whose lock the device has."""

    def __init__(self) -> None:
        self.holder: dict[int, Party | None] = dict.fromkeys(SLOTS)
        self.device: dict[int, str | None] = dict.fromkeys(SLOTS)
        self.call: dict[int, str | None] = dict.fromkeys(SLOTS)  # who made the one that is out
        self.waiting: dict[int, list[Party]] = {slot: [] for slot in SLOTS}
        self.lost: set[int] = set()  # slots whose loss ensure_held() has reported
        self.contention, self.relock, self.regrant = "wait", "granted", "on"
        self.connected = True

    def answer(self, slot: int) -> str:
        answers = {None: "granted", US: self.relock, THEM: self.contention}
        return answers[self.device[slot]] if self.connected else "error"

    def hands_over(self, slot: int) -> bool:
        """Whether the holder's release makes the first waiter the holder, without a call."""
        party = self.holder[slot]
        return (
            party is not None
            and party.library == HANDS_OVER
            and bool(self.waiting[slot])
            and not self.call[slot]
            and self.connected
            and slot not in self.lost
        )

    def go_on(self, slot: int) -> dict[Actor | MainThread, object]:
        ended: dict[Actor | MainThread, object] = {}
        queue = self.waiting[slot]
        while not self.holder[slot] and (queue or self.call[slot]):
            answer = self.answer(slot)
            if answer == "wait" or (answer == "error" and queue and queue[0].library == POLLS):
                self.call[slot] = self.call[slot] or queue[0].call
                break
            self.call[slot] = None
            first = queue.pop(0) if queue else None
            if answer == "granted":
                self.holder[slot], self.device[slot] = first, US if first else None
            if first:
                ended[first.actor] = True if answer == "granted" else luna_ext.DeviceError
        return ended
