"""The rules of what one thread does: lock, claim, release, look whether it is still held."""

import time
from collections.abc import Sequence
from functools import partial

from driving import ACTORS, OWN_CALLS, SHORT, Driver
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from lock_model import SLOTS, US, Party
from support import (
    AGAIN,
    BUSY,
    CLAIM,
    DEVICE_ERROR,
    LOCK,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    let_device_forget_us,
)

import luna_ext

LONG = 60.0
LONG_HOLD = 0.03
"""Seconds after which the end of a block asks whether the connection is the same."""
NUMBERS = st.integers(0, ACTORS - 1)
SLOT = st.sampled_from(SLOTS)
LIBRARY = st.integers(0, 1)
SELDOM = st.sampled_from([False] * 5 + [True])
GIVE_UP = ("short timed", "short lock")
WAYS = (*OWN_CALLS, "timed", "lock", *GIVE_UP)
AT_ONCE = ("acquire at once", "lock at once")


class LockRules(Driver):
    # ---- locking ----

    @precondition(lambda self: self.idle(0))
    @rule(actor=NUMBERS, slot=SLOT, library=LIBRARY, how=st.sampled_from(WAYS))
    def lock(self, actor: int, slot: int, library: int, how: str) -> None:
        if (idle := self.idle(actor)) is None:
            return
        gives_up = "short" in how and not self.answers_soon(slot, library)
        party = self.party(idle, slot, library, how, SHORT if gives_up else LONG)
        if self.libraries[library].closed:
            self.expect(idle, party.enter, luna_ext.LibraryClosedError)
        elif self.holds(idle, slot):
            self.expect(idle, party.enter, luna_ext.LockReentryError)
        else:
            self.ask(party, slot, gives_up=gives_up)

    @precondition(lambda self: self.idle(0))
    @rule(
        slot=SLOT,
        ways=st.tuples(*[st.tuples(LIBRARY, st.sampled_from(WAYS))] * 3),
    )
    def all_lock(self, slot: int, ways: Sequence[tuple[int, str]]) -> None:
        """One after the other, so that there is a queue."""
        for library, how in ways:
            idle = [actor for actor in self.actors if not actor.busy]
            others = [number for number, actor in enumerate(idle) if not self.holds(actor, slot)]
            if others:
                self.lock(others[0], slot, library, how)
                self.rest()

    @precondition(lambda self: self.idle(0))
    @rule(
        actor=NUMBERS,
        slot=SLOT,
        library=LIBRARY,
        how=st.sampled_from(AT_ONCE),
        asks=SELDOM,
    )
    def lock_at_once(self, actor: int, slot: int, library: int, how: str, asks: bool) -> None:
        model = self.model
        if (idle := self.idle(actor)) is None:
            return
        party = self.party(idle, slot, library, how, 0)
        if self.libraries[library].closed:
            self.expect(idle, party.enter, luna_ext.LibraryClosedError)
        elif model.holder[slot] or model.waiting[slot] or model.call[slot]:
            reentry = self.holds(idle, slot) and party.refusal is not False
            self.expect(idle, party.enter, luna_ext.LockReentryError if reentry else party.refusal)
        elif model.answer(slot) == "granted":
            assert self.lock_at_once_again_and_again(party, slot) is True
            model.holder[slot], model.device[slot] = party, US
        elif asks:
            self.ask(party, slot, gives_up=True)

    @rule(
        actor=NUMBERS,
        slot=SLOT,
        library=LIBRARY,
        how=st.sampled_from(WAYS),
        fault=st.sampled_from(["busy", "again", "error", "lost reply"]),
        times=st.integers(1, 2),
    )
    def lock_with_a_fault(
        self, actor: int, slot: int, library: int, how: str, fault: str, times: int
    ) -> None:
        model = self.model
        polled = any(call and model.answer(at) == "error" for at, call in model.call.items())
        if polled or self.libraries[library].closed or not self.is_free(slot):
            return
        if (idle := self.idle(actor)) is None:
            return
        if fault in ("busy", "again"):
            self.cluster.fault(LOCK, BUSY if fault == "busy" else AGAIN, times=times)
        else:
            self.cluster.fault(LOCK, DEVICE_ERROR, times=1, lost_reply=fault == "lost reply")
            model.device[slot] = US if fault == "lost reply" else None
        gives_up = "short" in how and not self.answers_soon(slot, library)
        party = self.party(idle, slot, library, how, SHORT if gives_up else LONG)
        if fault in ("error", "lost reply") and library == 0:
            self.expect(idle, party.enter, luna_ext.DeviceError)
        else:
            self.ask(party, slot, gives_up=gives_up)
            self.rest()
        self.cluster.fault(LOCK, 0, times=0)

    @rule(
        actor=NUMBERS,
        slot=SLOT,
        library=LIBRARY,
        fault=st.sampled_from(["", "busy", "lost reply"]),
    )
    def claim(self, actor: int, slot: int, library: int, fault: str) -> None:
        model, luna = self.model, self.libraries[library]
        idle = self.idle(actor)
        if idle is None or luna.closed:
            return
        succeeds = model.connected and model.device[slot] is None and fault != "lost reply"
        claim = luna.claim(self.cluster.cluster_id, timeout=LONG if succeeds else 0)
        # The device's choice is left with this slot alone, if with any.
        others = [one for one in SLOTS if one != slot and model.device[one] is None]
        for one in others:
            self.elsewhere.lock(one)
        # What a failed call has left locked may be given, unless it was granted again since.
        left = any(model.device[one] == US and not model.holder[one] for one in SLOTS)
        # And where the reply is lost, it would not be known which one was given.
        unknown = left or fault == "lost reply"
        self.cluster.switch("regrant", "off" if unknown else model.regrant)

        def enter() -> object:
            return enter_in_task() if idle.is_task else claim.__enter__().slot.slot_id

        async def enter_in_task() -> int:
            return (await claim.__aenter__()).slot.slot_id

        end = partial(claim.__aexit__ if idle.is_task else claim.__exit__, None, None, None)

        if not model.connected:
            self.expect(idle, enter, luna_ext.DeviceError)
        elif model.device[slot] is not None:
            self.expect(idle, enter, luna_ext.NoUnassignedTokenError)
        else:
            model.device[slot] = US
            if fault == "lost reply":
                self.cluster.fault(CLAIM, DEVICE_ERROR, times=1, lost_reply=True)
                self.expect(idle, enter, luna_ext.DeviceError)
            else:
                if fault == "busy":
                    self.cluster.fault(CLAIM, BUSY, times=2)
                self.expect(idle, enter, slot)
                model.holder[slot] = Party(idle, library, "own", enter, end, None)
        for one in others:
            self.elsewhere.unlock(one)

    # ---- holding ----

    @precondition(lambda self: self.those_who_can_release())
    @rule(slot=SLOT, fault=st.sampled_from(["", "", "busy", "error", "lost reply"]))
    def release(self, slot: int, fault: str) -> None:
        model, candidates = self.model, self.those_who_can_release()
        slot = slot if slot in candidates else candidates[0]
        party = model.holder[slot]
        assert party is not None
        if model.hands_over(slot):
            if fault:
                self.cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
            next_one = model.waiting[slot].pop(0)
            model.holder[slot] = next_one
            self.expect(party.actor, party.end, None)
            next_one.actor.expect(True)
            self.cluster.fault(UNLOCK, 0, times=0)
            return
        expected: object = None
        if not model.connected or slot in model.lost:
            expected = luna_ext.LockLostError
            # Else a lock that was granted just now would be handed over.
            time.sleep(LONG_HOLD)
        else:
            model.device[slot] = None
            if fault == "busy":
                self.cluster.fault(UNLOCK, BUSY, times=2)
            elif fault:
                expected = luna_ext.LockReleaseError
                self.cluster.fault(UNLOCK, DEVICE_ERROR, times=1, lost_reply=fault == "lost reply")
                model.device[slot] = None if fault == "lost reply" else US
        model.holder[slot] = None
        model.lost.discard(slot)
        self.expect(party.actor, party.end, expected)
        self.cluster.fault(UNLOCK, 0, times=0)
        self.go_on([slot])

    @rule(actor=NUMBERS, slot=SLOT, library=LIBRARY)
    def release_what_is_not_ones_own(self, actor: int, slot: int, library: int) -> None:
        holder, idle = self.model.holder[slot], self.idle(actor)
        if idle is None or self.libraries[library].closed:
            return
        if holder is None or holder.actor is not idle or holder.library != library:
            self.expect(idle, self.slot(library, slot).release, luna_ext.LockNotOwnedError)

    @rule(
        actor=NUMBERS,
        slot=SLOT,
        library=LIBRARY,
        fault=st.booleans(),
    )
    def ensure_held(self, actor: int, slot: int, library: int, fault: bool) -> None:
        model, idle = self.model, self.idle(actor)
        if idle is None or self.libraries[library].closed:
            return
        expected: object = luna_ext.LockNotOwnedError
        if self.holds(idle, slot):
            expected = None
            if fault or not model.connected:
                model.lost.add(slot)
            if slot in model.lost:
                expected = luna_ext.LockLostError
        if fault:
            let_device_forget_us(self.cluster)
        self.expect(idle, self.slot(library, slot).ensure_held, expected)
        for function in (TOKEN_INFO, SESSION_INFO):
            self.cluster.fault(function, 0, times=0)
