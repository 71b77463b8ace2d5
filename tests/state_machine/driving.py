"""Does to real Libraries what a state machine's rules say, and waits until they rest."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Literal

from actors import Actor, Loop, MainThread, TaskActor
from hypothesis.errors import StopTest
from hypothesis.stateful import RuleBasedStateMachine
from lock_model import SLOTS, THEM, US, Model, Party
from support import CLAIM, LOCK, SESSION_INFO, TOKEN_INFO, UNLOCK
from surroundings import Surroundings

import luna_ext
from luna_ext.stub import Cluster

CONTENTION: tuple[Literal["block", "poll"], ...] = ("block", "poll")
HANDOVER = (0.0, 1000.0)
"""Of the two Libraries."""
OWN_CALLS = ("acquire", "with")
"""The ways to lock that make the device call on the caller's own thread."""
SHORT = 0.1
ACTORS = 4


class Interrupted(Exception):
    """What the handler of a signal raises."""


class Driver(RuleBasedStateMachine):
    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__()
        self.surroundings = surroundings
        self.elsewhere = surroundings.elsewhere
        self.patience = surroundings.patience
        self.cluster = Cluster(keyrings=len(SLOTS))
        self.elsewhere.open(self.cluster.path)
        self.loop = Loop()
        # In turn, for the first ones are chosen most often.
        self.actors: list[Actor] = [
            TaskActor(self.patience, self.loop) if number % 2 else Actor(self.patience)
            for number in range(ACTORS)
        ]
        self.signaller = Actor(self.patience)
        self.model = Model()
        self.libraries: list[luna_ext.Library] = []
        self.slots: list[list[luna_ext.ClusterSlot]] = [[], []]
        # Slots for which a call that was given up may not have come back yet.
        self.given_up: set[int] = set()

    def teardown(self) -> None:
        error = sys.exception()
        try:
            if error is None:
                self.come_to_an_end()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self.break_off(error)

    def come_to_an_end(self) -> None:
        raise NotImplementedError

    def break_off(self, error: BaseException | None) -> None:
        """No call may be left that would disturb the next sequence."""
        for function in (LOCK, UNLOCK, CLAIM, TOKEN_INFO, SESSION_INFO):
            self.cluster.fault(function, 0, times=0)
        if error is None:
            self.elsewhere.close()
        else:
            # Hypothesis ends a sequence by StopTest when it has seen enough.
            if not isinstance(error, StopTest):
                self.surroundings.hurry()
            self.surroundings.abandon(self.cluster, self.libraries)
        for actor in [*self.actors, self.signaller]:
            with contextlib.suppress(TimeoutError, CancelledError):
                actor.end()
        self.loop.end(self.patience)
        self.cluster.destroy()

    # ---- what there is ----

    def idle(self, number: int) -> Actor | None:
        idle = [actor for actor in self.actors if not actor.busy]
        return idle[number % len(idle)] if idle else None

    def slot(self, library: int, slot: int) -> luna_ext.ClusterSlot:
        return self.slots[library][SLOTS.index(slot)]

    def open_library(self, library: int) -> None:
        luna = self.cluster.library(contention=CONTENTION[library], handover=HANDOVER[library])
        self.libraries[library:] = [luna, *self.libraries[library + 1 :]]
        self.slots[library] = [luna.slot(slot) for slot in SLOTS]

    def open_libraries(self) -> list[luna_ext.Library]:
        return [luna for luna in self.libraries if not luna.closed]

    def holds(self, actor: Actor, slot: int) -> bool:
        party = self.model.holder[slot]
        return party is not None and party.actor is actor

    def is_free(self, slot: int) -> bool:
        """Whether a lock call would be granted at once."""
        model = self.model
        return (
            model.holder[slot] is None
            and not model.call[slot]
            and (model.connected and model.device[slot] is None)
        )

    def those_who_can_release(self) -> list[int]:
        """The slots whose holders do not wait for another one."""
        holders = self.model.holder.items()
        return [slot for slot, party in holders if party and not party.actor.busy]

    def answers_soon(self, slot: int, library: int) -> bool:
        """Whether a lock call waits for no holder or waiter of this process, and not for the device."""
        model = self.model
        if model.holder[slot] or model.waiting[slot] or model.call[slot]:
            return False
        return model.answer(slot) in (("granted", "error"), ("granted",))[library]

    def can_close(self, library: int) -> bool:
        """Whether close() would neither wait for the device nor leave a call of its own there."""
        model, last = self.model, len(self.open_libraries()) == 1
        for slot in SLOTS:
            waits = model.call[slot] and model.answer(slot) == "wait"
            own = model.call[slot] == "own" and model.waiting[slot][0].library == library
            if waits and (last or own):
                return False
        return True

    def party(
        self, actor: Actor | MainThread, slot: int, library: int, how: str, timeout: float
    ) -> Party:
        target = self.slot(library, slot)
        refusal: object = luna_ext.LockTimeoutError
        if actor.is_task:
            limited = "timed" in how or "short" in how or "at once" in how
            lock = target.lock(timeout=timeout if limited else None)

            async def enter_in_task() -> bool:
                return await lock.__aenter__() is target

            end_in_task = partial(lock.__aexit__, None, None, None)
            return Party(actor, library, "worker", enter_in_task, end_in_task, refusal)
        if "acquire" in how or "timed" in how:
            refusal = False
            arguments = {"acquire": {}, "acquire at once": {"blocking": False}}
            enter: Callable[[], object] = partial(
                target.acquire, **arguments.get(how, {"timeout": timeout})
            )
            end: Callable[[], object] = target.release
        else:
            block = (
                target if how == "with" else target.lock(timeout=None if how == "lock" else timeout)
            )
            end = partial(block.__exit__, None, None, None)

            def enter() -> bool:
                return block.__enter__() is target

        # The main thread leaves every call to a worker.
        own = how in OWN_CALLS and isinstance(actor, Actor)
        call = "own" if own else "worker"
        return Party(actor, library, call, enter, end, refusal)

    # ---- doing ----

    def ask(self, party: Party, slot: int, *, gives_up: bool) -> None:
        """Lock, fail, wait, or give up after a short while: whatever the model says."""
        model, actor = self.model, party.actor
        model.waiting[slot].append(party)
        ended = model.go_on(slot)
        actor.begin(party.enter)
        if actor in ended:
            result = ended[actor]
        elif gives_up:
            self.leave_queue(party, slot)
            result = party.refusal
        else:
            return
        actor.expect(result)

    def leave_queue(self, party: Party, slot: int) -> None:
        model, queue = self.model, self.model.waiting[slot]
        own = model.call[slot] == "own" and queue[0] is party
        queue.remove(party)
        if own or (not queue and model.answer(slot) == "error"):
            model.call[slot] = None
        self.given_up.add(slot)

    def lock_at_once_again_and_again(self, party: Party, slot: int) -> object:
        """A device that takes too long for "at once" is no fault of the lock."""
        deadline = time.monotonic() + self.patience
        while (result := party.actor.call(party.enter)) is party.refusal:
            assert time.monotonic() < deadline
            self.given_up.add(slot)
            self.rest()
        return result

    def expect(self, actor: Actor, function: Callable[[], object], result: object) -> None:
        actor.begin(function)
        actor.expect(result)

    def close_library(self, library: int, evicted: int) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.libraries[library].close()
        assert [warning.category for warning in caught] == [ResourceWarning] * evicted

    def go_on(self, slots: Iterable[int] = SLOTS) -> None:
        """After a change: each waiter that the model lets go on must go on, with the model's result."""
        for slot in slots:
            if not self.model.waiting[slot] and self.model.call[slot]:
                self.given_up.add(slot)
            for actor, result in self.model.go_on(slot).items():
                actor.expect(result)

    def forget_our_locks(self) -> None:
        for slot, owner in self.model.device.items():
            self.model.device[slot] = None if owner == US else owner

    # ---- the main thread: signals, and forks ----

    def waiting_for(self, slot: int) -> int:
        """How many wait for a slot, by its repr; without the thread that makes the lock call."""
        found = re.search(r"(\d+) waiting", repr(self.slot(0, slot)))
        return int(found[1]) if found else 0

    @contextlib.contextmanager
    def signal_to_waiting(self, slot: int, handler: Callable[[], object]) -> Iterator[None]:
        """The main thread gets a signal as soon as it waits for the slot as well."""
        before, deadline = self.waiting_for(slot), time.monotonic() + self.patience

        def send() -> None:
            while self.waiting_for(slot) <= before:
                assert time.monotonic() < deadline, "the main thread does not wait"
                time.sleep(0.0005)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        previous = signal.signal(signal.SIGUSR1, lambda number, frame: handler())
        try:
            self.signaller.begin(send)
            yield
        finally:
            self.signaller.expect(None)
            signal.signal(signal.SIGUSR1, previous)

    def interrupt(self, party: Party, slot: int, *, forks: bool) -> None:
        def handler() -> None:
            if forks:
                self.fork_and_look()
            raise Interrupted

        with self.signal_to_waiting(slot, handler), contextlib.suppress(Interrupted):
            raise AssertionError(f"{party.enter()}, and not interrupted")

    def fork_and_look(self) -> None:
        """In the child nothing is held, and a free slot can be locked."""
        free = [slot for slot in SLOTS if self.model.device[slot] is None and self.is_free(slot)]
        library = next(number for number in (0, 1) if not self.libraries[number].closed)
        with warnings.catch_warnings():
            # Newer versions of Python warn of forks beside threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(int(self.patience) + 1)
                code = (
                    0 if all(self.is_right_in_child(library, slot, free) for slot in SLOTS) else 2
                )
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def is_right_in_child(self, library: int, slot: int, free: Sequence[int]) -> bool:
        target = self.slot(library, slot)
        held = target.locked() or self.waiting_for(slot)
        with contextlib.suppress(luna_ext.LockNotOwnedError):
            target.release()
            held = True
        if slot in free and not held:
            with target:
                return self.owner_is_child(slot)
        return not held

    def owner_is_child(self, slot: int) -> bool:
        return {token.slot_id: token.owner for token in self.cluster.tokens()}[slot] == os.getpid()

    # ---- waiting ----

    def rest(self) -> None:
        """Wait until what can be observed is what the model says."""
        expected = {slot: self.expected(slot) for slot in SLOTS}
        deadline = time.monotonic() + self.patience
        while (observed := self.observed()) != expected:
            assert time.monotonic() < deadline, f"{observed}, not {expected}"
            time.sleep(0.001)
        while self.given_up and self.open_libraries():
            self.find_free(self.given_up.pop(), deadline)
        for actor in self.actors:
            assert actor.busy == actor.still_waits()

    def expected(self, slot: int) -> tuple[object, ...]:
        """Whether a lock call is at the device, what the slot says, and the device's owner."""
        model = self.model
        in_call = bool(model.call[slot]) and model.answer(slot) == "wait"
        waiting = len(model.waiting[slot]) - (model.call[slot] == "own")
        return in_call, model.holder[slot] is not None, waiting, model.device[slot]

    def observed(self) -> dict[int, tuple[object, ...]]:
        # In this order: a grant that came meanwhile is to be seen with its answer.
        calls = {
            call.slot_id: call.rv is None
            for call in self.cluster.log()
            if call.function == LOCK and call.pid == os.getpid()
        }
        slots = {}
        for slot in SLOTS:
            slots[slot] = self.slot(0, slot).locked(), self.waiting_for(slot)
        owners = self.owners()
        return {slot: (calls.get(slot, False), *slots[slot], owners[slot]) for slot in SLOTS}

    def owners(self) -> dict[int, str | None]:
        names = {None: None, os.getpid(): US, self.elsewhere.pid: THEM}
        return {token.slot_id: names[token.owner] for token in self.cluster.tokens()}

    def find_free(self, slot: int, deadline: float) -> None:
        """Wait until the call that was given up has come back: another one is made then."""
        model = self.model
        if model.holder[slot] or model.waiting[slot] or model.call[slot]:
            return
        # After a reconnection only: then the device has no lock of ours.
        if in_the_way := model.answer(slot) == "wait":
            self.elsewhere.unlock(slot)
        # Not a new Library: that would initialise anew if the connection is lost.
        luna = self.open_libraries()[0]
        with contextlib.suppress(luna_ext.DeviceError):
            while not luna.slot(slot).acquire(False):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert in_the_way or model.answer(slot) == "granted"
            luna.slot(slot).release()
            if model.device[slot] == US:
                # What a failed call had left locked is off now.
                model.device[slot] = None
        if in_the_way:
            self.elsewhere.lock(slot)
