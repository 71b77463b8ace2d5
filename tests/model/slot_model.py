"""Searches the rules for locks and claims of one slot in every order of events.

    python tests/model/slot_model.py                     all devices, and how many states each has
    python tests/model/slot_model.py --without MOMENT    what goes wrong without a rule
    python tests/model/slot_model.py --without MOMENT -v ... and by which steps

One slot, and two processes at its device. In process A some threads lock the slot and some claims
are given it, again and again; at any moment one gives up, or hands over to another. Process B locks
and unlocks it at any moment. A request of A takes effect at the device some time after it was sent,
and its reply arrives some time after that, or is lost. Every order is tried: a state is all there
is to know of one moment, and what can come next is worked out once for each state. B needs no
requests: it holds the slot for just as long as the device says so.

What must hold:
- a holder in A has the device's lock, and is the only holder in A;
- an unlock of A meets A's own lock, never that of B, and never none. So it makes no difference
  whether the device checks the owner;
- A never takes the device for one of another kind;
- from everywhere all can come to rest though none gives up or begins anew;
- at rest A's lock is off, but for a slot in doubt on a device that gives a lock once, and for what
  a lost reply has left behind.
"""

import argparse
import enum
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

A, B = "A", "B"
OK, ERROR = "OK", "error"
# What A may know of its device: an OK to a lock call while A surely holds the slot shows that a
# lock is granted again; a call that stays out for the whole moment shows that it is given once.
GRANTS_AGAIN, GIVES_ONCE = "grants again", "gives once"
# What a party does. A thread waits for a lock call, a claim asks; an unproven claim waits for a
# lock call of its own that makes sure. Both then hold the slot and leave it.
IDLE, WAITING, ASKING, UNPROVEN = "idle", "waiting", "asking", "unproven"
HOLDING, LEAVING = "holding", "leaving"


class Rule(enum.Enum):
    """Each can be left out, and then something goes wrong."""

    ONE_HOLDER = (
        "a grant counts for nothing while the slot is held in A, be it a call's or a claim's"
    )
    CLAIM_NUMBER = (
        "a claim proves nothing if an unlock was unanswered when it began, or began since"
    )
    LOCK_NUMBER = "a lock call's grant proves nothing if an unlock began since it was sent"
    AFTER_UNLOCK = "no lock call is sent while an unlock is unanswered"
    MOMENT = "while the kind is unknown, the outstanding lock call gets a moment before an unlock"
    PATIENCE = "the moment is long enough for any answer that can come"
    LATE_GRANT = "a grant without a waiter is unlocked"
    OWED = "what a crossed grant or a doubt leaves open is settled by a lock call, waiter or not"
    DOUBT = "what a claim could not prove is not unlocked"
    SETTLED = "a doubt is unlocked when the device turns out to give a lock once"
    ONLY_ONCE = "a doubt is unlocked only then"
    NO_SECOND_UNLOCK = "an unlock that failed is not repeated"
    ERROR_SHOWS_NOTHING = "an error answer says nothing about the kind of the device"


ALL_RULES = frozenset(Rule)


@dataclass(frozen=True)
class Device:
    """What is not documented about the device."""

    relock: str  # granted, wait or error: a lock call for what its own process holds
    regrant: bool  # a claim may be given what its own process holds
    contention: str  # wait or error: a lock call for what another process holds

    @property
    def kind(self) -> str:
        return GRANTS_AGAIN if self.relock == "granted" else GIVES_ONCE

    def __str__(self) -> str:
        regrant = ", regrant" if self.regrant else ""
        return f"relock {self.relock}{regrant}, contention {self.contention}"


# The one assumption: a claim is given what its process holds only where a second lock is granted.
DEVICES = tuple(
    Device(relock, regrant, contention)
    for relock, regrant in (
        ("granted", False),
        ("granted", True),
        ("wait", False),
        ("error", False),
    )
    for contention in ("wait", "error")
)


class Call(NamedTuple):
    """The one lock call of A that is outstanding."""

    answer: str = ""
    crossed: bool = False  # an unlock began since it was sent


class Party(NamedTuple):
    """A locking thread or a claim of A. A claim that was given up is one with an empty block.

    The code has numbers where `crossed` is: they would only be compared, and never end.
    """

    does: str = IDLE
    answer: str = ""  # of its claim while it asks, of its unlock while it leaves
    crossed: bool = False  # an unlock was unanswered when its claim began, or began since
    calls: bool = False  # the outstanding lock call is its own


class State(NamedTuple):
    device: str = ""  # whose lock is set
    kind: str = ""  # what A takes the device for
    call: Call | None = None
    late: tuple[str, ...] = ()  # the answers of unlocks that belong to no party
    owed: bool = False  # a lock call is to be sent, also without a waiter
    doubt: bool = False  # A may hold the slot, by a claim that was not proven
    lost: bool = False  # A's lock may be set by a lost reply; for the search, A does not know it
    threads: tuple[Party, ...] = ()  # sorted, for one is like the other
    claims: tuple[Party, ...] = ()

    @property
    def parties(self) -> tuple[Party, ...]:
        return self.threads + self.claims

    @property
    def held(self) -> bool:
        return any(party.does == HOLDING for party in self.parties)

    @property
    def waited_for(self) -> bool:
        return any(party.does in (WAITING, UNPROVEN) for party in self.parties)

    @property
    def leaving(self) -> bool:
        return bool(self.late) or any(party.does == LEAVING for party in self.parties)


# What leads to other things that must not be.
MISTAKEN = "the device is taken for another kind"
# Without a rule there may be no end: once something is wrong, so many states are enough.
ENOUGH = 20_000


class Step(NamedTuple):
    what: str
    state: State
    # Nothing forces it to come: a beginning, giving up, a lost reply, a lock of B.
    optional: bool = False


class Slot:
    """What can happen next, by the rules of A on one device."""

    def __init__(self, device: Device, rules: frozenset[Rule] = ALL_RULES, faults: bool = True):
        self.device = device
        self.faults = faults
        self.has = {rule: rule in rules for rule in Rule}
        self.wrong: list[str] = []  # what the last steps did that must not be

    def steps(self, state: State) -> Iterator[Step]:
        yield from self.steps_of_b(state)
        yield from self.steps_of_call(state)
        yield from self.steps_without_party(state)
        for which in ("threads", "claims"):
            parties = getattr(state, which)
            for i, party in enumerate(parties):
                if i and party == parties[i - 1]:
                    continue  # its steps are those of its like
                others = parties[:i] + parties[i + 1 :]

                def put(state: State, party: Party, which=which, others=others) -> State:
                    return state._replace(**{which: tuple(sorted((*others, party)))})

                yield from self.steps_of_party(state, party, put, which == "claims")

    # ---- the device, and B ----

    def steps_of_b(self, state: State) -> Iterator[Step]:
        if not state.device:
            yield Step("B locks", state._replace(device=B), optional=True)
        elif state.device == B:
            yield Step("B unlocks", state._replace(device=""))

    def blocked(self, state: State) -> bool:
        """Whether a lock call of A has no answer for now."""
        if state.device == A:
            return self.device.relock == "wait"
        return state.device == B and self.device.contention == "wait"

    def unlocked(self, state: State) -> tuple[State, str]:
        """An unlock of A takes effect; the state and the answer."""
        if state.device == A:
            return state._replace(device="", lost=False), OK
        self.wrong.append("A unlocks B's lock" if state.device == B else "A unlocks nothing")
        return state, ERROR

    def effects_of_unlock(self, state: State) -> Iterator[tuple[str, State, str, bool]]:
        after, answer = self.unlocked(state)
        yield "takes effect", after, answer, False
        if self.faults and state.device == A:
            yield "takes effect, its reply is lost", after, ERROR, True
            yield "is lost", state._replace(lost=True), ERROR, True

    # ---- what is common to many steps ----

    @staticmethod
    def begun_unlock(state: State) -> State:
        """What an unlock that begins crosses."""
        return state._replace(
            call=state.call and state.call._replace(crossed=True),
            claims=tuple(
                sorted(
                    claim._replace(crossed=True) if claim.does == ASKING else claim
                    for claim in state.claims
                )
            ),
        )

    def begun_without_party(self, state: State) -> State:
        state = self.owned(self.begun_unlock(state))
        return state._replace(late=tuple(sorted((*state.late, ""))))

    @staticmethod
    def owned(state: State) -> State:
        """What ends when a party becomes the holder, or its grant is unlocked at once."""
        return state._replace(doubt=False, owed=False, lost=False)

    # ---- the outstanding lock call ----

    def steps_of_call(self, state: State) -> Iterator[Step]:
        call = state.call
        if call is None:
            if state.owed and self.may_send(state):
                yield Step("a call that is owed is sent", state._replace(call=Call(), owed=False))
        elif not call.answer:
            if not self.blocked(state):
                yield from self.effects_of_call(state, call)
        elif not any(party.calls for party in state.parties):
            state = state._replace(call=None)
            if call.answer == ERROR:
                yield Step("a given up lock call has an error", self.learned_of_error(state))
            elif (ignored := self.ignored(state, call)) is not None:
                yield Step("a late grant counts for nothing", ignored)
            elif not state.waited_for:
                if self.has[Rule.LATE_GRANT]:
                    state = self.begun_without_party(state)
                yield Step("a late grant is unlocked", state)

    def effects_of_call(self, state: State, call: Call) -> Iterator[Step]:
        granted = not state.device or (state.device == A and self.device.relock == "granted")
        answer = OK if granted else ERROR
        after = state._replace(device=state.device or A, call=call._replace(answer=answer))
        yield Step(f"the lock call takes effect: {answer}", after)
        if self.faults and granted:
            after = after._replace(call=call._replace(answer=ERROR), lost=True)
            yield Step("the lock call takes effect, its reply is lost", after, True)

    def may_send(self, state: State) -> bool:
        if state.call is not None or state.held:
            return False
        return not (state.leaving and self.has[Rule.AFTER_UNLOCK])

    def ignored(self, state: State, call: Call) -> State | None:
        """The state if this grant counts for nothing."""
        if state.held and self.has[Rule.ONE_HOLDER]:
            return state._replace(kind=GRANTS_AGAIN)
        if call.crossed and state.kind != GIVES_ONCE and self.has[Rule.LOCK_NUMBER]:
            return self.owing(state)
        return None

    def learned_of_error(self, state: State) -> State:
        if self.has[Rule.ERROR_SHOWS_NOTHING]:
            return state
        return state._replace(kind=state.kind or GIVES_ONCE)

    # ---- what no party does ----

    def steps_without_party(self, state: State) -> Iterator[Step]:
        if not state.kind:
            what = f"at another slot A learns that the device {self.device.kind}"
            yield Step(what, state._replace(kind=self.device.kind), True)
        for i, answer in enumerate(state.late):
            rest = state.late[:i] + state.late[i + 1 :]
            if answer:
                after = state._replace(late=rest)
                yield from self.answered_unlock(after, answer, "a late unlock")
                continue
            for how, after, answer, optional in self.effects_of_unlock(state):
                after = after._replace(late=tuple(sorted((*rest, answer))))
                yield Step(f"a late unlock {how}: {answer}", after, optional)
        if state.doubt:
            ended = state._replace(doubt=False)
            settled = state.kind == GIVES_ONCE and self.has[Rule.SETTLED]
            wrongly = state.kind == GRANTS_AGAIN and not self.has[Rule.ONLY_ONCE]
            if state.held:
                if state.kind:
                    yield Step("a doubt ends, the slot is held", ended)
            elif settled or wrongly or not self.has[Rule.DOUBT]:
                yield Step("what was in doubt is unlocked", self.begun_without_party(ended))
            elif state.kind == GRANTS_AGAIN:
                yield Step("a doubt ends", ended)

    def answered_unlock(self, state: State, answer: str, name: str) -> Iterator[Step]:
        """`state` is that without the unlock."""
        what = f"{name} has its answer: {answer}"
        if answer == ERROR and not self.has[Rule.NO_SECOND_UNLOCK]:
            state = self.begun_without_party(state)
        yield Step(what, state)

    # ---- threads and claims ----

    def steps_of_party(
        self, state: State, party: Party, put: Callable[[State, Party], State], claim: bool
    ) -> Iterator[Step]:
        name = "a claim" if claim else "a thread"
        does = party.does
        if does == IDLE:
            party = Party(ASKING, crossed=state.leaving) if claim else Party(WAITING)
            yield Step(f"{name} begins", put(state, party), True)
        elif does == ASKING:
            yield from self.steps_of_asking(state, party, put)
        elif does in (WAITING, UNPROVEN):
            yield from self.steps_of_waiting(state, party, put, name)
            if does == WAITING:
                yield Step(f"{name} gives up", put(state, Party()), True)
            elif state.kind == GIVES_ONCE and not state.held:
                yield Step("a claim is proven", self.owned(put(state, Party(HOLDING))))
            else:
                yield Step(
                    "a claim cannot be proven in time",
                    self.doubted(put(state, Party()), party.calls),
                )
        elif does == HOLDING:
            yield from self.steps_of_holding(state, put, name)
        elif not party.answer:
            for how, after, answer, optional in self.effects_of_unlock(state):
                after = put(after, party._replace(answer=answer))
                yield Step(f"{name}'s unlock {how}: {answer}", after, optional)
        else:
            yield from self.answered_unlock(put(state, Party()), party.answer, f"{name}'s unlock")

    def steps_of_asking(self, state: State, party: Party, put) -> Iterator[Step]:
        if not party.answer:
            given = not state.device or (state.device == A and self.device.regrant)
            answer = OK if given else ERROR
            after = state._replace(device=A) if given else state
            after = put(after, party._replace(answer=answer))
            yield Step(f"a claim takes effect: {answer}", after)
            if self.faults and given:
                after = put(state._replace(device=A, lost=True), party._replace(answer=ERROR))
                yield Step("a claim takes effect, its reply is lost", after, True)
        elif party.answer == ERROR:
            yield Step("a claim gets nothing", put(state, Party()))
        elif state.held and self.has[Rule.ONE_HOLDER]:
            yield Step("a claim leaves the slot to its holder", put(state, Party()))
        elif party.crossed and state.kind != GIVES_ONCE and self.has[Rule.CLAIM_NUMBER]:
            yield Step("a claim proves nothing", put(state, Party(UNPROVEN)))
        else:
            yield Step("a claim holds", self.owned(put(state, Party(HOLDING))))

    def steps_of_waiting(self, state: State, party: Party, put, name: str) -> Iterator[Step]:
        call = state.call
        if self.may_send(state):
            after = put(state._replace(call=Call(), owed=False), party._replace(calls=True))
            yield Step(f"{name} sends a lock call", after)
        if call is None or not call.answer:
            return
        if party.calls and call.answer == ERROR:
            after = self.learned_of_error(state._replace(call=None))
            if party.does == WAITING:
                yield Step("a thread is refused, and tries again", put(after, Party(WAITING)))
            elif state.kind != GIVES_ONCE:
                yield Step("a claim is refused its proof", self.doubted(put(after, Party())))
            else:
                yield Step("a claim is proven all the same", put(after, Party(UNPROVEN)))
        elif call.answer == OK:
            ignored = self.ignored(state, call)
            if party.calls and ignored is not None:
                after = put(ignored._replace(call=None), party._replace(calls=False))
                yield Step(f"the grant of {name} counts for nothing", after)
            elif ignored is None and (
                party.calls or not any(other.calls for other in state.parties)
            ):
                after = self.owned(put(state._replace(call=None), Party(HOLDING)))
                yield Step(f"{name} is granted the slot, and holds", after)

    def steps_of_holding(self, state: State, put, name: str) -> Iterator[Step]:
        waiter = next((party for party in state.threads if party.does == WAITING), None)
        if waiter is not None:
            after = put(state, Party())
            threads = list(after.threads)
            threads[threads.index(waiter)] = Party(HOLDING)
            after = after._replace(threads=tuple(sorted(threads)))
            yield Step(f"{name} hands over to a thread", after, True)
        call, kind = state.call, state.kind
        if call is None or kind == GIVES_ONCE or not self.has[Rule.MOMENT]:
            pass
        elif call.answer:
            return  # it is taken in within the moment
        elif kind == GRANTS_AGAIN:
            pass  # the answer is late
        elif self.blocked(state) or not self.has[Rule.PATIENCE]:
            kind = GIVES_ONCE
        else:
            return
        state = self.begun_unlock(put(state, Party(LEAVING)))
        yield Step(f"{name} begins its unlock", state._replace(kind=kind))

    # ---- what is owed and what is in doubt ----

    def owing(self, state: State) -> State:
        return state._replace(owed=True) if self.has[Rule.OWED] else state

    def doubted(self, state: State, sent: bool = True) -> State:
        """A claim ends without a proof. Unless it sent a lock call, one is owed: that of another
        party may have met the device before the claim did.
        """
        if state.held:
            return state
        state = state._replace(doubt=True)
        return state if sent else self.owing(state)

    # ---- what is looked at ----

    def wrong_in(self, state: State) -> Iterator[str]:
        holders = sum(party.does == HOLDING for party in state.parties)
        if holders > 1:
            yield "two holders in A"
        if holders and state.device == B:
            yield "a holder in A and one in B"
        if holders and not state.device:
            yield "a holder without the device's lock"
        if state.kind not in ("", self.device.kind):
            yield MISTAKEN

    def rests(self, state: State) -> bool:
        """Nothing is left to do. Behind a lock that A does not know of, threads may wait on."""
        if state.late or any(party.does not in (IDLE, WAITING) for party in state.parties):
            return False
        if state.doubt and state.kind:
            return False
        if state.device == A and self.device.kind == GIVES_ONCE and (state.doubt or state.lost):
            return True
        waits = any(party.does == WAITING for party in state.parties)
        return not (waits or state.call or state.owed or state.device == B)

    def wrong_at_rest(self, state: State) -> str | None:
        if state.device != A or state.lost:
            return None
        if not state.doubt:
            return "left locked"
        return "left locked in doubt" if self.device.kind == GRANTS_AGAIN else None


class Result(NamedTuple):
    device: Device
    states: int
    in_doubt: int
    wrong: dict[str, list[str]]  # what must not be: the steps that lead there


def search(
    device: Device,
    rules: frozenset[Rule] = ALL_RULES,
    threads: int = 2,
    claims: int = 1,
    faults: bool = True,
    first: bool = False,
) -> Result:
    """Look at all that can be reached; with `first` no further than the first that must not be."""
    slot = Slot(device, rules, faults)
    begin = State(threads=(Party(),) * threads, claims=(Party(),) * claims)
    came_from: dict[State, tuple[State, str] | None] = {begin: None}
    forced_from: dict[State, list[State]] = {}
    wrong: dict[str, list[str]] = {}
    todo = deque([begin])
    rest = []

    def way(state: State, last: str = "") -> list[str]:
        steps = [last] if last else []
        while (before := came_from[state]) is not None:
            state, what = before
            steps.append(what)
        return steps[::-1]

    while todo and not (wrong and (first or len(came_from) > ENOUGH)):
        state = todo.popleft()
        if slot.rests(state):
            rest.append(state)
            if (left := slot.wrong_at_rest(state)) and left not in wrong:
                wrong[left] = way(state)
        for what, after, optional in slot.steps(state):
            if slot.wrong:
                for thing in slot.wrong:
                    wrong.setdefault(thing, way(state, what))
                slot.wrong.clear()
                continue
            if not optional:
                forced_from.setdefault(after, []).append(state)
            if after not in came_from:
                came_from[after] = (state, what)
                bad = [*slot.wrong_in(after)]
                for thing in bad:
                    wrong.setdefault(thing, way(after))
                if not bad or bad == [MISTAKEN]:
                    todo.append(after)
    if not wrong:
        # What comes to rest by forced steps alone; the others are stuck.
        comes_to_rest = set(rest)
        todo = deque(rest)
        while todo:
            for before in forced_from.get(todo.popleft(), ()):
                if before not in comes_to_rest:
                    comes_to_rest.add(before)
                    todo.append(before)
        stuck = next((state for state in came_from if state not in comes_to_rest), None)
        if stuck is not None:
            wrong["stuck"] = [*way(stuck), str(stuck)]
    doubts = sum(state.doubt for state in rest)
    return Result(device, len(came_from), doubts, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--without", action="append", choices=[rule.name for rule in Rule], default=[]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--claims", type=int, default=2)
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    rules = ALL_RULES - {Rule[name] for name in options.without}
    began = time.monotonic()
    failed = False
    with ProcessPoolExecutor() as pool:
        searches = [
            pool.submit(
                search, device, rules, options.threads, options.claims, not options.no_faults
            )
            for device in DEVICES
        ]
        for future in searches:
            result = future.result()
            failed = failed or bool(result.wrong)
            found = "; ".join(sorted(result.wrong)) or f"all holds, {result.in_doubt} end in doubt"
            print(f"{result.device!s:<44} {result.states:>8,} states: {found}", flush=True)
            for what, steps in result.wrong.items() if options.verbose else ():
                print(f"  {what}:", *steps, sep="\n    ")
    print(f"{time.monotonic() - began:.1f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
