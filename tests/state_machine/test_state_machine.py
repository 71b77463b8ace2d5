"""Any sequence of calls by threads, tasks, two Libraries and two processes, against a small model.

The model says which party holds which slot; the rules do the same with real Libraries, and wait until
no call is under way that can end.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from actors import MainThread
from driving import OWN_CALLS, Driver
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from lock_model import SLOTS, THEM, US
from lock_rules import GIVE_UP, LIBRARY, SLOT, WAYS, LockRules
from surroundings import Surroundings

import luna_ext

LONG = os.environ.get("LUNA_EXT_STRESS") == "long"
LONG_WAIT = 60.0
MAIN_THREAD = MainThread()


def can_queue(machine: Driver) -> bool:
    return machine.model.connected and machine.idle(0) is not None


class Machine(LockRules):
    """What happens to several threads at a time."""

    @initialize()
    def begin(self) -> None:
        for library in (0, 1):
            self.open_library(library)

    # ---- sequences that random rules would seldom make ----

    @precondition(lambda self: self.those_who_can_release())
    @rule(slot=SLOT)
    def hear_of_the_loss_and_release(self, slot: int) -> None:
        candidates = self.those_who_can_release()
        slot = slot if slot in candidates else candidates[0]
        party = self.model.holder[slot]
        assert party is not None
        idle = [actor for actor in self.actors if not actor.busy]
        self.ensure_held(idle.index(party.actor), slot, party.library, True)
        self.rest()
        self.release(slot, "")

    @precondition(can_queue)
    @rule(
        slot=SLOT,
        ways=st.tuples(*[st.tuples(LIBRARY, st.sampled_from(WAYS))] * 3),
        then=st.sampled_from(["error", "unlock", "disconnect"]),
    )
    def all_lock_behind_the_other_process(
        self, slot: int, ways: Sequence[tuple[int, str]], then: str
    ) -> None:
        self.lock_behind_the_other_process(slot, ways, then)

    @precondition(can_queue)
    @rule(slot=SLOT, library=LIBRARY, how=st.sampled_from(GIVE_UP))
    def give_up_behind_the_other_process(self, slot: int, library: int, how: str) -> None:
        """When the grant comes, no thread or task waits for it any more."""
        self.lock_behind_the_other_process(slot, [(library, how)], "unlock")

    @precondition(can_queue)
    @rule(
        slot=SLOT,
        ways=st.tuples(*[st.sampled_from(OWN_CALLS)] * 2),
        library=LIBRARY,
        then=st.sampled_from(["error", "disconnect"]),
    )
    def fail_behind_the_other_process(
        self, slot: int, ways: tuple[str, str], library: int, then: str
    ) -> None:
        """Then the next waiter makes the lock call; it fails as well, or waits for the unlock."""
        self.lock_behind_the_other_process(slot, [(0, ways[0]), (library, ways[1])], then)

    def lock_behind_the_other_process(
        self, slot: int, ways: Sequence[tuple[int, str]], then: str
    ) -> None:
        if not self.is_free(slot) or not self.open_libraries():
            return
        self.switch_contention("wait")
        self.lock_elsewhere(slot)
        self.rest()
        self.all_lock(slot, ways)
        if then == "error":
            self.switch_contention("error")
        elif then == "disconnect":
            self.disconnect()
        self.rest()
        self.unlock_elsewhere(slot)

    # ---- the device, and the other process ----

    @precondition(lambda self: None in self.model.device.values())
    @rule(slot=SLOT)
    def lock_elsewhere(self, slot: int) -> None:
        if self.model.device[slot] is None:
            self.elsewhere.lock(slot)
            self.model.device[slot] = THEM

    @precondition(lambda self: THEM in self.model.device.values())
    @rule(slot=SLOT)
    def unlock_elsewhere(self, slot: int) -> None:
        if self.model.device[slot] == THEM:
            self.elsewhere.unlock(slot)
            self.model.device[slot] = None
            self.go_on([slot])

    @rule(contention=st.sampled_from(["wait", "error"]))
    def switch_contention(self, contention: str) -> None:
        self.cluster.switch("contention", contention)
        self.model.contention = contention
        self.go_on()

    @rule(relock=st.sampled_from(["granted", "wait", "error"]))
    def switch_relock(self, relock: str) -> None:
        self.cluster.switch("relock", relock)
        self.model.relock = relock
        self.go_on()

    @rule(regrant=st.sampled_from(["on", "off"]))
    def switch_regrant(self, regrant: str) -> None:
        self.cluster.switch("regrant", regrant)
        self.model.regrant = regrant

    @precondition(lambda self: self.open_libraries() and US in self.model.device.values())
    @rule()
    def disconnect(self) -> None:
        self.cluster.disconnect(os.getpid())
        self.model.connected = False
        self.forget_our_locks()
        self.go_on()

    # ---- signals, and forks ----

    @rule(
        slot=SLOT,
        library=LIBRARY,
        how=st.sampled_from([way for way in WAYS if way not in GIVE_UP]),
        forks=st.booleans(),
    )
    def interrupt_a_wait(self, slot: int, library: int, how: str, forks: bool) -> None:
        """The main thread waits as well, until a signal handler raises; which may have forked."""
        if not self.libraries[library].closed and not self.answers_soon(slot, library):
            party = self.party(MAIN_THREAD, slot, library, how, LONG_WAIT)
            self.model.waiting[slot].append(party)
            assert not self.model.go_on(slot)
            self.interrupt(party, slot, forks=forks)
            self.leave_queue(party, slot)

    @precondition(lambda self: THEM in self.model.device.values())
    @rule(slot=SLOT, library=LIBRARY, how=st.sampled_from(WAYS))
    def unlock_elsewhere_in_a_handler(self, slot: int, library: int, how: str) -> None:
        """What the main thread waits for comes while its signal handler runs."""
        model = self.model
        if self.libraries[library].closed or model.device[slot] != THEM or model.waiting[slot]:
            return
        if not model.holder[slot] and model.answer(slot) == "wait" and not model.call[slot]:
            party = self.party(MAIN_THREAD, slot, library, how, LONG_WAIT)
            with self.signal_to_waiting(slot, lambda: self.elsewhere.unlock(slot)):
                assert party.enter()
            party.end()
            model.device[slot] = None

    @precondition(lambda self: self.open_libraries())
    @rule()
    def fork(self) -> None:
        self.fork_and_look()

    # ---- the Libraries ----

    @rule(library=LIBRARY)
    def close(self, library: int) -> None:
        if self.libraries[library].closed or not self.can_close(library):
            return
        model, last = self.model, len(self.open_libraries()) == 1
        evicted, ended = [], {}
        for slot in SLOTS:
            for party in [one for one in model.waiting[slot] if one.library == library]:
                self.leave_queue(party, slot)
                ended[party.actor] = luna_ext.LibraryClosedError
            holder = model.holder[slot]
            if holder is not None and holder.library == library:
                evicted.append((holder, slot))
                model.holder[slot] = None
                if model.connected and slot not in model.lost:
                    model.device[slot] = None
                model.lost.discard(slot)
        self.close_library(library, len(evicted))
        if last:
            self.forget_our_locks()
        for actor, result in ended.items():
            actor.expect(result)
        self.go_on()
        for party, slot in evicted:
            if not party.actor.busy:
                self.expect(
                    party.actor, self.slot(library, slot).ensure_held, luna_ext.LockLostError
                )
                self.expect(party.actor, party.end, luna_ext.LockLostError)

    @precondition(lambda self: len(self.open_libraries()) < 2)
    @rule(library=LIBRARY)
    def open(self, library: int) -> None:
        # Beside an open one, a new Library would initialise anew if the connection is lost.
        if self.libraries[library].closed and (self.model.connected or not self.open_libraries()):
            if not self.open_libraries():
                self.model.connected = True
            self.open_library(library)

    @precondition(lambda self: not self.model.connected)
    @rule()
    def connect_again(self) -> None:
        for library in (0, 1):
            self.close(library)
        for library in (0, 1):
            self.open(library)

    # ---- what always holds ----

    @invariant()
    def rests_where_the_model_does(self) -> None:
        if self.libraries:
            self.rest()

    def come_to_an_end(self) -> None:
        """All holders release, in any order that is possible; then nothing may be left locked."""
        for slot in SLOTS:
            self.unlock_elsewhere(slot)
        self.switch_relock("granted")
        self.switch_contention("wait")
        while candidates := self.those_who_can_release():
            self.release(candidates[0], "")
        for library in (0, 1):
            self.close(library)
        # Calls that were given up may not have come back yet, and the next sequence has the slots.
        self.open(0)
        self.rest()
        self.close(0)
        self.rest()
        assert all(luna.closed for luna in self.libraries)
        assert not any(actor.busy for actor in self.actors)
        assert self.owners() == dict.fromkeys(SLOTS)
        for slot in SLOTS:
            self.elsewhere.lock(slot)
        assert self.owners() == dict.fromkeys(SLOTS, THEM)


@pytest.fixture
def surroundings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Surroundings]:
    # 5 s; longer in builds in which tests may take longer. A lost wake-up is to be found soon.
    patience = float(request.config.getini("faulthandler_timeout")) / 12
    surroundings = Surroundings(tmp_path, monkeypatch, patience)
    yield surroundings
    surroundings.end()


@pytest.mark.limit(20 if LONG else 2)
def test_any_sequence_of_calls_ends_as_the_model_says(surroundings: Surroundings) -> None:
    run_state_machine_as_test(
        lambda: Machine(surroundings),
        settings=settings(
            max_examples=600 if LONG else 60,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=not LONG,
            # To look for a shorter sequence takes minutes.
            phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
