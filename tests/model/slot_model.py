"""Searches the rules for locks and claims of one slot in every order of events.

    python tests/model/slot_model.py                     all devices, and how many states each has
    python tests/model/slot_model.py --without PROMPT    what goes wrong without a rule
    python tests/model/slot_model.py --without PROMPT -v ... and by which steps

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
- at rest A's lock is off, but for a slot in doubt on a device that gives a lock once, for what a
  lost reply has left behind, and for a grant too many on a device that counts them.

That A makes no more than so many calls on trial is left out: it may make one, or none, each time.
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
# A device that counts its grants takes A's lock off after so many unlocks as there were; a count of
# two is full.
TWICE = "A, twice"
OK, ERROR = "OK", "error"
# Unlocks that are not sent, though their holds have ended: a waiter may be handed the lock instead. Before
# the first a lock call on trial may be made; the second waits for the moment of a lock call to pass.
UNSENT, DUE = "unsent", "due"
# What A may know of its device: an OK to a lock call while A surely holds the slot shows that a
# lock is granted again; a call that is answered promptly after an unlock, and not in the moment
# before, shows that it is given once.
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
    PROMPT = "a call that did not wait for the unlock is answered in the moment before, or late"
    LATE_GRANT = "a grant without a waiter is unlocked"
    OWED = "what a crossed grant or a doubt leaves open is settled by a lock call, waiter or not"
    ASKED_SINCE = "a refusal settles it only if the call was sent since"
    DOUBT = "what a claim could not prove is not unlocked"
    SETTLED = "a doubt is unlocked when the device turns out to give a lock once"
    ONLY_ONCE = "a doubt is unlocked only then"
    NO_SECOND_UNLOCK = "an unlock that failed is not repeated"
    ERROR_SHOWS_NOTHING = "an error answer says nothing about the kind of the device"
    TRIAL_FIRST = "a trial is made only before the unlock is sent, so while the lock is surely on"
    TRIAL_CROSSED = "a trial that is granted after its moment proves nothing: an unlock crossed it"
    TRIAL_ENDS = "nor does it show then that a lock is granted again"
    TRIAL_SENT = "a trial that was not sent when its moment is over never is"
    HANDED_FIRST = "a lock is handed over only before its unlock is sent"
    BACK = "a call that was back before the unlock was sent, heard or not, has not waited for it"

    # That of Enum takes long.
    __hash__ = object.__hash__


ALL_RULES = frozenset(Rule)


@dataclass(frozen=True)
class Device:
    """What is not documented about the device."""

    relock: str  # granted, wait or error: a lock call for what its own process holds
    regrant: bool  # a claim may be given what its own process holds
    contention: str  # wait or error: a lock call for what another process holds
    counts: bool = False  # each grant takes an unlock of its own

    @property
    def kind(self) -> str:
        return GRANTS_AGAIN if self.relock == "granted" else GIVES_ONCE

    def __str__(self) -> str:
        regrant = ", regrant" if self.regrant else ""
        counts = ", counts" if self.counts else ""
        return f"relock {self.relock}{regrant}{counts}, contention {self.contention}"


# The one assumption: a claim is given what its process holds only where a second lock is granted.
DEVICES = tuple(
    Device(relock, regrant, contention, counts)
    for relock, regrant, counts in (
        ("granted", False, False),
        ("granted", True, False),
        ("granted", False, True),
        ("granted", True, True),
        ("wait", False, False),
        ("error", False, False),
    )
    for contention in ("wait", "error")
)


class Call(NamedTuple):
    """The one lock call of A that is outstanding."""

    answer: str = ""
    crossed: bool = False  # an unlock began since it was sent
    waited: bool = False  # for the unlock that was sent after a moment
    too_early: bool = False  # to settle what has been owed since
    trial: bool = False  # made while A's lock was surely on, and the moment of that lasts
    unsent: bool = False  # a worker is to send it, and comes to it late


class Party(NamedTuple):
    """A locking thread or a claim of A. A claim that was given up is one with an empty block.

    The code has numbers where `crossed` is: they would only be compared, and never end.
    """

    does: str = IDLE
    answer: str = ""  # of its claim while it asks, of its unlock while it leaves
    crossed: bool = False  # an unlock was unanswered when its claim began, or was sent since
    calls: bool = False  # the outstanding lock call is its own
    asked: bool = False  # a lock call was sent since it came back unproven


class State(NamedTuple):
    device: str = ""  # whose lock is set
    kind: str = ""  # what A takes the device for
    call: Call | None = None
    late: tuple[str, ...] = ()  # the answers of unlocks that belong to no party
    owed: bool = False  # a lock call is to be sent, also without a waiter
    doubt: bool = False  # A may hold the slot, by a claim that was not proven
    # A's lock may be set by a lost reply, or by a grant too many; for the search, A does not know it.
    lost: bool = False
    spare: bool = False
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
    def leaving(self) -> int:
        return len(self.late) + sum(party.does == LEAVING for party in self.parties)

    @property
    def ours(self) -> bool:
        return self.device in (A, TWICE)


THREADS, CLAIMS = State._fields.index("threads"), State._fields.index("claims")
# So many unlocks of no party are unanswered at most, or there were no end of states.
WORKERS = 2
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

    def __init__(self, device: Device, rules: frozenset[Rule], others: bool, losses: bool):
        self.device = device
        self.losses = losses  # whether replies and unlocks are lost
        self.others = others  # whether A learns of the device at other slots as well
        self.has = {rule: rule in rules for rule in Rule}
        self.wrong: list[str] = []  # what the last steps did that must not be

    def steps(self, state: State) -> Iterator[Step]:
        yield from self.steps_of_b(state)
        yield from self.steps_of_call(state)
        yield from self.steps_without_party(state)
        for place in (THREADS, CLAIMS):
            parties = state[place]
            for i, party in enumerate(parties):
                if i and party == parties[i - 1]:
                    continue  # its steps are those of its like
                others = parties[:i] + parties[i + 1 :]

                def put(state: State, party: Party, place=place, others=others) -> State:
                    # Not _replace(), which takes half the time of all.
                    changed = list(state)
                    changed[place] = tuple(sorted((*others, party)))
                    return State._make(changed)

                yield from self.steps_of_party(state, party, put, place == CLAIMS)

    # ---- the device, and B ----

    def steps_of_b(self, state: State) -> Iterator[Step]:
        if not state.device:
            yield Step("B locks", state._replace(device=B), optional=True)
        elif state.device == B:
            yield Step("B unlocks", state._replace(device=""))

    def blocked(self, state: State) -> bool:
        """Whether a lock call of A has no answer for now."""
        if state.ours:
            return self.device.relock == "wait"
        return state.device == B and self.device.contention == "wait"

    def granted(self, state: State) -> str:
        """Whose lock is set when A has been granted it."""
        return TWICE if state.ours and self.device.counts else A

    def unlocked(self, state: State) -> tuple[State, str]:
        """An unlock of A takes effect; the state and the answer."""
        if state.device == TWICE:
            return state._replace(device=A, spare=True), OK
        if state.device == A:
            return state._replace(device="", lost=False, spare=False), OK
        self.wrong.append("A unlocks B's lock" if state.device == B else "A unlocks nothing")
        return state, ERROR

    def effects_of_unlock(self, state: State) -> Iterator[tuple[str, State, str, bool]]:
        after, answer = self.unlocked(state)
        yield "takes effect", after, answer, False
        if state.ours and self.losses:
            yield "takes effect, its reply is lost", after, ERROR, True
            yield "is lost", state._replace(lost=True), ERROR, True

    # ---- what is common to many steps ----

    @staticmethod
    def begun_unlock(state: State) -> State:
        """The hold ends: the lock call that its unlock will cross, be it sent at once or after a moment. Of
        a refusal it makes no difference.
        """
        call = state.call
        if call is not None and call.answer != ERROR:
            call = call._replace(crossed=True)
        return state._replace(call=call)

    @staticmethod
    def sent_unlock(state: State) -> State:
        """The claims that it crosses: it may have been handed over until now."""
        claims = (
            claim._replace(crossed=True)
            if claim.does == ASKING and claim.answer != ERROR
            else claim
            for claim in state.claims
        )
        return state._replace(claims=tuple(sorted(claims)))

    def begun_without_party(self, state: State, phase: str = "") -> State:
        state = self.owned(self.begun_unlock(state))
        state = state if phase else self.sent_unlock(state)
        return state._replace(late=tuple(sorted((*state.late, phase))))

    @staticmethod
    def owned(state: State) -> State:
        """What ends when a party becomes the holder, or its grant is unlocked at once."""
        return state._replace(doubt=False, owed=False, lost=False, spare=False)

    # ---- the outstanding lock call ----

    def steps_of_call(self, state: State) -> Iterator[Step]:
        call = state.call
        if call is None:
            if state.owed and self.may_send(state):
                yield Step("a lock call that is owed is sent", self.sent(state))
        elif call.unsent:
            after = state._replace(call=call._replace(unsent=False))
            yield Step("the lock call on trial is sent", after)
        elif not call.answer:
            if not self.blocked(state):
                yield from self.effects_of_call(state, call)
        elif not any(party.calls for party in state.parties):
            if call.answer == ERROR:
                yield Step("a given up lock call is refused", self.refused(state, call))
                return
            for after, counts in self.heard(state, call):
                if not counts:
                    yield Step("a late grant counts for nothing", after)
                elif not state.waited_for:
                    if self.has[Rule.LATE_GRANT]:
                        after = self.begun_without_party(after, "" if after.kind else UNSENT)
                    yield Step("a late grant is unlocked", after)

    def effects_of_call(self, state: State, call: Call) -> Iterator[Step]:
        granted = not state.device or (state.ours and self.device.relock == "granted")
        refused = Call(ERROR, too_early=call.too_early)
        if not granted:
            yield Step("the lock call is refused", state._replace(call=refused))
            return
        after = state._replace(device=self.granted(state), call=call._replace(answer=OK))
        yield Step("the lock call takes effect: OK", after)
        if self.losses:
            after = after._replace(call=refused, lost=True)
            yield Step("the lock call takes effect, its reply is lost", after, True)

    def may_send(self, state: State) -> bool:
        if state.call is not None or state.held:
            return False
        return not (state.leaving and self.has[Rule.AFTER_UNLOCK])

    def may_try(self, state: State) -> bool:
        """Whether a lock call may be made on trial, before the one unlock that is due. A claim has
        to be under way, or a slot in doubt, this one or another.
        """
        called_for = self.others or state.doubt
        called_for = called_for or any(claim.does == ASKING for claim in state.claims)
        return called_for and state.call is None and not state.held and state.leaving == 1

    def tried(self, state: State, unsent: bool) -> State:
        """The unlock that is due will cross it."""
        call = Call(crossed=self.has[Rule.TRIAL_CROSSED], trial=True, unsent=unsent)
        return self.sent(state)._replace(call=call)

    @staticmethod
    def sent(state: State) -> State:
        claims = (
            claim._replace(asked=True) if claim.does == UNPROVEN else claim
            for claim in state.claims
        )
        return state._replace(call=Call(), claims=tuple(sorted(claims)))

    def heard(self, state: State, call: Call) -> Iterator[tuple[State, bool]]:
        """The lock call was granted; whether the grant counts."""
        state = state._replace(call=None)
        if (state.held and self.has[Rule.ONE_HOLDER]) or call.trial:
            yield state._replace(kind=GRANTS_AGAIN), False
            return
        if call.waited and not state.kind:
            yield state._replace(kind=GIVES_ONCE), True
        if call.crossed and state.kind != GIVES_ONCE and self.has[Rule.LOCK_NUMBER]:
            # Also if there is a waiter, for it may give up before it asks again.
            yield self.owing(state._replace(doubt=state.doubt or not state.kind)), False
        else:
            yield state, True

    def refused(self, state: State, call: Call) -> State:
        kind = state.kind
        if not self.has[Rule.ERROR_SHOWS_NOTHING]:
            kind = kind or GIVES_ONCE
        owed = state.owed and call.too_early and self.has[Rule.ASKED_SINCE]
        return state._replace(call=None, kind=kind, owed=owed)

    # ---- what no party does ----

    def steps_without_party(self, state: State) -> Iterator[Step]:
        if self.others and not state.kind:
            what = f"at another slot A learns that the device {self.device.kind}"
            yield Step(what, state._replace(kind=self.device.kind), True)
        for i, answer in enumerate(state.late):
            rest = state.late[:i] + state.late[i + 1 :]

            def put(state: State, answer: str, rest=rest) -> State:
                late = (*rest, answer) if answer is not None else rest
                return state._replace(late=tuple(sorted(late)))

            yield from self.steps_of_unlock(state, answer, put, "a late hold")
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

    def steps_of_unlock(
        self, state: State, answer: str, put: Callable[[State, str | None], State], name: str
    ) -> Iterator[Step]:
        """`put` gives the unlock another answer, or with None ends it."""
        if answer == UNSENT:
            yield Step(f"{name} sends its unlock", self.sent_unlock(put(state, "")))
        elif answer == DUE:
            yield from self.steps_of_moment(state, put, name)
        elif not answer:
            for how, after, reply, optional in self.effects_of_unlock(state):
                # A refusal counts for as much as an OK.
                heard = OK if self.has[Rule.NO_SECOND_UNLOCK] else reply
                yield Step(f"the unlock of {name} {how}: {reply}", put(after, heard), optional)
        else:
            after = put(state, None)
            if answer == ERROR and not self.has[Rule.NO_SECOND_UNLOCK]:
                after = self.begun_without_party(after)
            yield Step(f"the unlock of {name} has its answer: {answer}", after)
        first = answer == UNSENT or (not answer and not self.has[Rule.TRIAL_FIRST])
        if first and not state.kind and self.may_try(state):
            state = put(state, DUE if answer else answer)
            what = f"before its unlock, {name} makes a lock call on trial"
            yield Step(what, self.tried(state, False))
            # One that the worker comes to too late is none at all; else there are more ways.
            if not self.has[Rule.TRIAL_SENT]:
                yield Step(f"{what}, which is not sent yet", self.tried(state, True))

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
                yield from self.proven(state, put)
            else:
                after = self.doubted(put(state, Party()), party.asked)
                yield Step("a claim cannot be proven in time", after)
        elif does == HOLDING:
            yield from self.steps_of_holding(state, put, name)
        else:

            def put_answer(state: State, answer: str | None) -> State:
                return put(state, Party() if answer is None else party._replace(answer=answer))

            yield from self.steps_of_unlock(state, party.answer, put_answer, name)
            unsent = party.answer in (UNSENT, DUE) or not self.has[Rule.HANDED_FIRST]
            if unsent and state.call is None and state.leaving == 1 and not state.held:
                yield from self.steps_of_handover(put(state, Party()), name)

    def steps_of_handover(self, state: State, name: str) -> Iterator[Step]:
        """In place of the unlock of `name`: any waiter, for which one is the first is left open."""
        for place, does in ((THREADS, WAITING), (CLAIMS, UNPROVEN)):
            parties = state[place]
            waiter = next((party for party in parties if party.does == does), None)
            if waiter is not None:
                others = list(parties)
                others[others.index(waiter)] = Party(HOLDING)
                changed = list(state)
                changed[place] = tuple(sorted(others))
                after = self.owned(State._make(changed))
                yield Step(f"{name} hands over to one that is {does}", after, True)

    def steps_of_asking(self, state: State, party: Party, put) -> Iterator[Step]:
        if not party.answer:
            refused = Party(ASKING, ERROR)
            if state.device and not (state.ours and self.device.regrant):
                yield Step("a claim is refused", put(state, refused))
                return
            after = state._replace(device=self.granted(state))
            yield Step("a claim takes effect: OK", put(after, party._replace(answer=OK)))
            if self.losses:
                after = put(after._replace(lost=True), refused)
                yield Step("a claim takes effect, its reply is lost", after, True)
        elif party.answer == ERROR:
            yield Step("a claim gets nothing", put(state, Party()))
        elif state.held and self.has[Rule.ONE_HOLDER]:
            yield Step("a claim leaves the slot to its holder", put(state, Party()))
        elif (
            (party.crossed or state.leaving)
            and state.kind != GIVES_ONCE
            and self.has[Rule.CLAIM_NUMBER]
        ):
            yield Step("a claim proves nothing", put(state, Party(UNPROVEN)))
        else:
            yield from self.proven(state, put)

    def proven(self, state: State, put) -> Iterator[Step]:
        yield Step("a claim holds", self.owned(put(state, Party(HOLDING))))
        if len(state.late) < WORKERS:
            phase = DUE if state.call is not None and not state.kind else ""
            after = self.begun_without_party(put(state, Party()), phase)
            yield Step("a claim was given up, and is unlocked", after)

    def steps_of_waiting(self, state: State, party: Party, put, name: str) -> Iterator[Step]:
        call = state.call
        if self.may_send(state):
            after = self.sent(put(state, party._replace(calls=True)))
            yield Step(f"{name} sends a lock call", after)
        if call is None or not call.answer:
            return
        if call.answer == OK:
            for after, counts in self.heard(state, call):
                if party.calls and not counts:
                    after = put(after, party._replace(calls=False))
                    yield Step(f"the grant of {name} counts for nothing", after)
                elif counts and (party.calls or not any(each.calls for each in state.parties)):
                    after = self.owned(put(after, Party(HOLDING)))
                    yield Step(f"{name} is granted the slot, and holds", after)
        elif party.calls:
            after = self.refused(state, call)
            if party.does == WAITING:
                yield Step("a thread is refused, and tries again", put(after, Party(WAITING)))
            elif state.kind == GIVES_ONCE:
                after = put(after, party._replace(calls=False))
                yield Step("a claim is refused a proof that it needs no more", after)
            else:
                yield Step("a claim is refused its proof", self.doubted(put(after, Party())))

    def steps_of_holding(self, state: State, put, name: str) -> Iterator[Step]:
        phase = DUE if state.call is not None and not state.kind else UNSENT
        after = self.begun_unlock(put(state, Party(LEAVING, phase)))
        yield Step(f"{name} ends its hold", after)

    def steps_of_moment(self, state: State, put, name: str) -> Iterator[Step]:
        call = state.call
        if call is not None:
            if call.unsent:
                # Sent as late as that, it may be answered as if it had waited.
                call = call._replace(waited=True, trial=False)
            elif call.answer:
                # Its thread has not come to hear it.
                call = call._replace(waited=not self.has[Rule.BACK])
            else:
                waited = self.blocked(state) or not self.has[Rule.PROMPT]
                trial = call.trial and not self.has[Rule.TRIAL_ENDS]
                call = call._replace(waited=waited, trial=trial)
            state = state._replace(call=call)
        yield Step(f"{name} sends its unlock", self.sent_unlock(put(state, "")))

    # ---- what is owed and what is in doubt ----

    def owing(self, state: State) -> State:
        if not self.has[Rule.OWED]:
            return state
        call = state.call and state.call._replace(too_early=True)
        return state._replace(owed=True, call=call)

    def doubted(self, state: State, asked: bool = True) -> State:
        """A claim ends without a proof. Unless a call was sent since it came back, one is owed: an
        earlier call may have met the device before the claim did.
        """
        if state.held:
            return state
        state = state._replace(doubt=True)
        return state if asked else self.owing(state)

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
        if state.ours and self.device.kind == GIVES_ONCE and (state.doubt or state.lost):
            return True
        waits = any(party.does == WAITING for party in state.parties)
        return not (waits or state.call or state.owed or state.device == B)

    def wrong_at_rest(self, state: State) -> str | None:
        if not state.ours or state.lost or state.spare:
            return None
        if not state.doubt:
            return "left locked"
        return "left locked in doubt" if self.device.kind == GRANTS_AGAIN else None


class Result(NamedTuple):
    device: Device
    states: int
    in_doubt: int  # of those at rest
    kinds: frozenset[str]  # what A takes the device for, here or there
    wrong: dict[str, list[str]]  # what must not be: the steps that lead there
    spare: list[str]  # the steps that lead to rest with the lock set by a grant too many, if any do


def search(
    device: Device,
    rules: frozenset[Rule] = ALL_RULES,
    threads: int = 2,
    claims: int = 1,
    others: bool = True,
    losses: bool = True,
    first: bool = False,
) -> Result:
    """Look at all that can be reached; with `first` no further than the first that must not be."""
    slot = Slot(device, rules, others, losses)
    begin = State(threads=(Party(),) * threads, claims=(Party(),) * claims)
    came_from: dict[State, tuple[State, str] | None] = {begin: None}
    forced_from: dict[State, list[State]] = {}
    wrong: dict[str, list[str]] = {}
    spare: list[str] = []
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
            if state.spare and not spare:
                spare = way(state)
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
    kinds = frozenset(state.kind for state in came_from)
    return Result(device, len(came_from), doubts, kinds, wrong, spare)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [rule.name for rule in Rule]
    parser.add_argument("--without", action="append", choices=names, default=[], metavar="RULE")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--claims", type=int)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the steps")
    options = parser.parse_args()
    rules = ALL_RULES - {Rule[name] for name in options.without}
    crews = [(2, 1), (1, 2)]
    if options.threads is not None or options.claims is not None:
        crews = [(options.threads or 0, options.claims or 0)]
    began = time.monotonic()
    failed = False
    with ProcessPoolExecutor() as pool:
        searches = [
            (threads, claims, pool.submit(search, device, rules, threads, claims))
            for threads, claims in crews
            for device in DEVICES
        ]
        for threads, claims, future in searches:
            result = future.result()
            failed = failed or bool(result.wrong)
            found = "; ".join(sorted(result.wrong)) or f"all holds, {result.in_doubt} end in doubt"
            if result.spare:
                found += ", a grant too many may stay"
            print(
                f"threads {threads}, claims {claims}, {result.device!s:<50}"
                f"{result.states:>8,} states: {found}",
                flush=True,
            )
            ways = {**result.wrong, "a grant too many": result.spare}
            for what, steps in ways.items() if options.verbose else ():
                if steps:
                    print(f"  {what}:", *steps, sep="\n    ")
    print(f"{time.monotonic() - began:.1f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
