"""Many tokens at once: each label gets an unassigned token."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

from ._cluster import (
    Claim,
    ClusterSlot,
    Ends,
    Library,
    Token,
    copied_pins,
    has_single_identity,
    is_pad,
    same_pin,
    start_thread,
    was_initialised,
)
from .errors import (
    AssignmentConflictError,
    CryptokiError,
    LunaError,
    Meaning,
    NoUnassignedTokenError,
    PinError,
    UnsupportedFunctionError,
    meaning_of,
    named_codes,
)
from .info import CLUSTER_FUNCTIONS, TokenFlag
from .labels import encode_label
from .pin_pad import PinPad

if TYPE_CHECKING:
    # The class itself belongs to the layer below.
    from ._cluster import Pin

__all__ = ["ProvisionProgress", "ProvisionReport", "provision"]

LOCK_SECONDS = 30.0
"""How long to wait for the lock of a token that lacks its user PIN; to assign one takes milliseconds."""

CALLS_WITH_A_PIN = ("C_InitToken", "C_Login", "C_InitPIN", "C_SetPIN")

AnyPin: TypeAlias = str | bytes | bytearray | memoryview | PinPad
_T = TypeVar("_T")


class ProvisionProgress(NamedTuple):
    """The outcome for one label."""

    label: str
    outcome: Literal["assigned", "skipped", "failed"]
    slot_id: int | None
    """Where the token with this label is; None if it failed."""
    error: Exception | None
    """Why it failed."""
    done: int
    """How many labels are finished, this one included."""
    total: int


class _End(NamedTuple):
    label: str
    outcome: Literal["assigned", "skipped", "failed"]
    slot_id: int | None
    error: Exception | None


_Kept: TypeAlias = list[tuple[Claim, Exception | None]]
"""The claims whose tokens could not be assigned, each with its error; their locks are kept until all
workers are done. The last one, without an error, may be the claim that is being worked on."""
_Step: TypeAlias = Callable[[str, _Kept], _End | None]


@dataclass(frozen=True, slots=True)
class ProvisionReport:
    """What `provision()` has done, by label, in the order of the labels.

    Attributes
    ----------
    assigned : dict of str to int
        Slot IDs of the tokens that have got their label, or their user PIN, by this call.
    skipped : dict of str to int
        Slot IDs of the tokens that had their label already.
    fresh : dict of str to int
        Those of `assigned` that were not initialised before. Such a token takes any `so_pin` and keeps
        it: if it was mistyped, these are the tokens that have it.
    failed : dict of str to Exception
        Why a label has no token, or more than one; also an unlock that failed, and a label of which that
        could not be looked up at the end.
    """

    assigned: dict[str, int]
    skipped: dict[str, int]
    failed: dict[str, Exception]
    fresh: dict[str, int] = field(default_factory=dict)


def provision(
    library: Library,
    cluster_id: str,
    labels: Iterable[str],
    *,
    so_pin: AnyPin,
    user_pin: AnyPin | None = None,
    workers: int = 8,
    guard: ClusterSlot | Token | None = None,
    on_progress: Callable[[ProvisionProgress], object] | None = None,
) -> ProvisionReport:
    """Give each label an unassigned token: claim it, assign it, unlock it.

    It can be run again after any crash: labels that are there already are skipped, and a token that
    has its label but not yet its user PIN gets the PIN. A label that fails does not stop the others.

    Parameters
    ----------
    library : Library
        Its client needs all four cluster functions.
    cluster_id : str
        The cluster's ID.
    labels : iterable of str
        Each 1 to 32 bytes of UTF-8, none twice.
    so_pin : str, bytes, bytearray, memoryview or PIN_PAD
        The password that all the keyrings have already, as with `Token.assign()`.
    user_pin : str, bytes, bytearray, memoryview or PIN_PAD, optional
        The PIN that all users are to have; without it none is set. `Token.assign()` says what it means
        with single identity.
    workers : int
        How many tokens are worked on at a time, each on a thread of its own.
    guard : ClusterSlot or Token, optional
        Is locked for as long as the call takes. If all hosts use the same guard, their calls run one
        after the other, and no label is assigned twice. It must not be an unassigned token.
    on_progress : callable, optional
        Called on the caller's thread with a `ProvisionProgress` for each label that is finished.
        What it raises ends the call, as a Ctrl-C does: assignments that have begun are
        finished, nothing stays locked, and the exception goes on.

    Returns
    -------
    ProvisionReport
        Which labels were assigned, skipped, or failed. The error of a label is not raised, but in
        `ProvisionReport.failed`.

    Raises
    ------
    TypeError, ValueError
        For the arguments, before the device is asked.
    UnsupportedFunctionError
        The client library lacks one of the functions.
    LibraryClosedError
        The Library is closed.
    RuntimeError
        A signal handler has forked meanwhile, and this is the child. The parent goes on.
    TokenChangedError, LockLostError, LockReleaseError, CryptokiError
        From the lock of `guard`.

    Notes
    -----
    **Two hosts at once, without a guard.** Both may find that a label is not there, and both
    assign it. No order of calls prevents that, because a lock belongs to a token, not to a label.
    But at the end each label that was assigned is looked up once more. If two tokens have it, it is
    reported as failed, by an `AssignmentConflictError` with both slots in its `slot_ids`; so is a
    label that two tokens had from the beginning.

    **A PIN that is refused** counts towards the lock-out of a token. Until one token that was initialised
    before has accepted the PINs, such tokens are assigned one by one; a fresh one takes any PIN, which
    proves nothing. After the first call with a PIN (C_InitToken, C_Login, C_InitPIN, C_SetPIN) that fails
    all other labels fail without a try, unless its code speaks of the device or its connection. Later a
    `PinError`, or a code without a name, does the same. A token that could not be assigned stays locked
    until the end, so that this call does not try it again for another label.

    **A process that was killed** between C_InitToken and C_InitPIN leaves a token without a user PIN, or,
    with single identity, with `so_pin` in its place. On a token that has its label already, and is not
    known to be without single identity, a `user_pin` that is not `so_pin` is therefore tried once (C_Login
    as user), and set if it is refused and `so_pin` is not (C_SetPIN); on one such token after the other. If
    both are refused its user has chosen another PIN: that is a `PinError`, so leave out the labels of
    tokens that are in use, or `user_pin`.

    For each label it makes 8 device calls, with a user PIN 13: CA_GetSlotId, CA_GetUnassignedSlot,
    C_GetTokenInfo, C_GetSessionInfo, C_InitToken, C_GetTokenInfo, (C_OpenSession, C_Login, C_InitPIN,
    C_Logout, C_CloseSession,) CA_UnlockClusteredSlot, CA_GetSlotId. If that takes longer than 25 ms,
    C_GetSessionInfo comes once more; C_GetTokenInfo does until the PINs are proven.
    """
    if isinstance(labels, str | bytes):
        raise TypeError("labels is an iterable of labels, not a single one")
    wanted: dict[str, None] = {}
    for label in labels:
        encode_label(label, errors="strict")
        if label in wanted:
            raise ValueError(f"labels has {label!r} more than once")
        wanted[label] = None
    if operator.index(workers) < 1:
        raise ValueError(f"workers is at least 1, not {workers}")
    if not isinstance(guard, ClusterSlot | Token | None):
        raise TypeError(f"guard is a ClusterSlot or a Token, not {type(guard).__name__}")
    library.claim(cluster_id)  # checks the argument, and nothing else
    for function in CLUSTER_FUNCTIONS:
        if function not in library.cluster_functions:
            raise UnsupportedFunctionError(
                f"{library.path!r} does not export {function}, which provision() needs: "
                "Luna client 10.6 and newer have it",
                function=function,
            )
    # Only now: the traceback of an error above would keep them.
    pins = _Pins(*copied_pins(so_pin, user_pin))
    run = _Run(library, cluster_id, list(wanted), pins, on_progress)
    try:
        with nullcontext() if guard is None else guard.lock():
            run.each(run.provide, run.labels, workers)
            # One by one: that others have accepted the PINs says nothing of the one that a user has chosen.
            run.each(run.settle_user_pin, run.doubtful, 1)
            run.each(run.look_for_others, list(run.assigned), workers)
        return run.report()
    finally:
        # Tracebacks, of what ends the call too, would keep the copies of the PINs, which are wiped when
        # they go.
        pins.forget()
        _empty_frames(run.failed.values())


class _Pins:
    """The PINs, in copies that no Python code can read, and what is known of them."""

    def __init__(self, so_pin: Pin, user_pin: Pin | None) -> None:
        self.so_pin = so_pin
        self.user_pin = user_pin
        # What it gives is with the worker that tries them first. Not a Lock: eventlet, which patches the
        # module, has its own wait for greenlets of their thread alone.
        self._first_try: Ends[None] = Ends()
        self._first_try.put(None)
        self._taken = False
        """Whether a token was assigned with them: a fresh one, which takes any."""
        self._proven = False
        """Whether a token has accepted them that had a PIN before."""
        # At a pad one PIN is entered at a time.
        self._one_by_one = is_pad(so_pin) or is_pad(user_pin)
        self._refusal: LunaError | ValueError | None = None

    def forget(self) -> None:
        """All work with them is done."""
        del self.so_pin, self.user_pin

    def raise_refused(self) -> None:
        """Raise if they were refused."""
        if self._refusal is not None:
            raise PinError(
                f"not tried, for a call with the PIN failed on another token: {self._refusal}",
                rv=getattr(self._refusal, "rv", None),
                function=getattr(self._refusal, "function", None),
            )

    @property
    def proven(self) -> bool:
        return self._proven

    def try_on(self, fresh: bool, call: Callable[[], bool]) -> None:
        """Call what tries the PINs on a token: one at a time until one has succeeded.

        It returns whether the device has compared them with the token's own.
        """
        with ExitStack() as alone:
            if not self._are_known(fresh):
                alone.callback(self._first_try.put, self._first_try.next())
                if self._are_known(fresh):
                    alone.close()
            self.raise_refused()
            try:
                compared = call()
            except (CryptokiError, ValueError) as error:
                if self._speaks_of_the_pin(error):
                    self._refusal = error
                raise
            if not self._one_by_one:
                self._taken = True
                self._proven = self._proven or compared

    def _are_known(self, fresh: bool) -> bool:
        return self._taken if fresh else self._proven

    def _speaks_of_the_pin(self, error: CryptokiError | ValueError) -> bool:
        # Ten wrong tries may erase a token. A code that is not known to speak of the device or its
        # connection may speak of the PIN.
        if not isinstance(error, CryptokiError):
            # Of PIN_PAD, where there is no pad.
            return self._one_by_one
        if isinstance(error, PinError):
            return True
        # Where it has no name it may do so of a proven PIN as well: this token may have another one.
        return (
            (not self._proven or error.rv not in named_codes())
            and error.function in CALLS_WITH_A_PIN
            and meaning_of(error.rv or 0) not in (Meaning.BUSY, Meaning.LOST, Meaning.GONE)
        )


class _Run:
    """One call of provision()."""

    def __init__(
        self,
        library: Library,
        cluster_id: str,
        labels: list[str],
        pins: _Pins,
        on_progress: Callable[[ProvisionProgress], object] | None,
    ) -> None:
        self.labels = labels
        self.assigned: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self.failed: dict[str, Exception] = {}
        self._fresh: set[str] = set()
        self.doubtful: list[str] = []
        """Labels of tokens whose user has a PIN, which may be the SO's."""
        self._single_identity: bool | None = None
        """Whether the tokens have one PIN for both roles; None: not known."""
        self._library = library
        self._cluster_id = cluster_id
        self._pins = pins
        self._on_progress = on_progress

    def report(self) -> ProvisionReport:
        def in_order(found: dict[str, _T]) -> dict[str, _T]:
            return {label: found[label] for label in self.labels if label in found}

        return ProvisionReport(
            in_order(self.assigned),
            in_order(self._skipped),
            in_order(self.failed),
            {
                label: self.assigned[label]
                for label in in_order(self.assigned)
                if label in self._fresh
            },
        )

    def each(self, step: _Step, labels: list[str], workers: int) -> None:
        """Call `step` with each label, on so many threads, and note its outcome."""
        left = deque(labels)
        ended: Ends[_End | BaseException | None] = Ends()
        over: Ends[None] = Ends()
        leaving: Ends[None] = Ends()
        # An interrupt may lose what the calling thread has just been told; these only grow.
        begun: list[None] = []
        done: list[None] = []
        gone: list[None] = []

        def work() -> None:
            kept: _Kept = []
            try:
                # A child that is forked before they start starts them, too, and leaves the labels alone.
                while not ended.left_behind:
                    try:
                        label = left.popleft()
                    except IndexError:
                        break
                    try:
                        end = step(label, kept)
                    except Exception as error:
                        end = _End(label, "failed", None, error)
                    if end is not None:
                        ended.put(end)
            except BaseException as failure:
                # As a log handler or an audit hook may raise it, to end the program.
                ended.put(failure)
            finally:
                done.append(None)
                ended.put(None)
                try:
                    if kept:
                        # For the next worker that waits.
                        over.put(over.next())
                    with ExitStack() as given_back:
                        for claim, why in kept:
                            given_back.callback(_give_back, claim, why)
                finally:
                    gone.append(None)
                    leaving.put(None)

        try:
            # In one call: no signal handler runs between the start of a thread and its count. And not
            # threading.Thread, which waits until the thread has begun: for ever in a child that a signal
            # handler forks meanwhile.
            begun.extend(map(start_thread, repeat(work, min(workers, len(labels)))))
            working = len(begun)
            while working:
                end = ended.next()
                if end is None:
                    working -= 1
                elif isinstance(end, BaseException):
                    raise end
                else:
                    self._note(end)
        except BaseException:
            # Workers finish the labels that they have begun, and get no others.
            left.clear()
            while len(done) < len(begun) and not ended.left_behind:
                ended.next()
            raise
        finally:
            # Not earlier: a token that failed for one label must not be claimed for another one.
            over.put(None)
            while len(gone) < len(begun) and not leaving.left_behind:
                leaving.next()

    def _note(self, end: _End) -> None:
        label, outcome, slot_id, error = end
        self.assigned.pop(label, None)
        if error is not None:
            self.failed[label] = error
        elif slot_id is not None:
            (self.assigned if outcome == "assigned" else self._skipped)[label] = slot_id
        if self._on_progress is not None:
            done = len(self.assigned) + len(self._skipped) + len(self.failed)
            self._on_progress(ProvisionProgress(*end, done, len(self.labels)))

    # ---- the steps, on any thread ----

    def provide(self, label: str, kept: _Kept) -> _End | None:
        tokens = self._with_label(label)
        if not tokens:
            try:
                return _End(label, "assigned", self._assign(label, kept), None)
            except NoUnassignedTokenError:
                # Another host may have claimed the last token for the same label.
                tokens = self._with_label(label)
                if not tokens:
                    raise
        (token,) = tokens
        user_pin = self._pins.user_pin
        if user_pin is None:
            return _End(label, "skipped", token.slot.slot_id, None)
        if _has_user_pin(token):
            if same_pin(self._pins.so_pin, user_pin) or is_pad(user_pin):
                return _End(label, "skipped", token.slot.slot_id, None)
            # Later: until then a token that is assigned may show that it cannot be the SO's.
            self.doubtful.append(label)
            return None
        # A process was killed after C_InitToken; or another process has the lock and is about to set the
        # PIN.
        with token.lock(timeout=LOCK_SECONDS):
            if _has_user_pin(token):
                return _End(label, "skipped", token.slot.slot_id, None)
            self._single_identity = False
            self._pins.try_on(False, lambda: token._set_user_pin(self._pins.so_pin, user_pin))
        return _End(label, "assigned", token.slot.slot_id, None)

    def settle_user_pin(self, label: str, kept: _Kept) -> _End:
        """Where both roles have one PIN, a process may have been killed before it changed the user's."""
        # Where the label has gone meanwhile, Library.token() says so.
        (token,) = self._with_label(label) or [self._library.token(label)]
        so_pin, user_pin = self._pins.so_pin, self._pins.user_pin
        changed: list[bool] = []
        if user_pin is not None and self._single_identity is not False:

            def compare() -> bool:
                changed.append(token._ensure_user_pin(so_pin, user_pin))
                return changed[0]

            with token.lock(timeout=LOCK_SECONDS):
                self._pins.try_on(False, compare)
        return _End(label, "assigned" if any(changed) else "skipped", token.slot.slot_id, None)

    def look_for_others(self, label: str, kept: _Kept) -> None:
        """Another host may have assigned the same label meanwhile."""
        try:
            self._with_label(label)
        except LunaError as error:
            if not isinstance(error, AssignmentConflictError):
                error.add_note(
                    f"luna_ext: the token in slot {self.assigned[label]} has been given the label "
                    f"{label!r}; whether another one has it too could not be looked up. provision() with "
                    "this label looks again"
                )
            raise

    def _with_label(self, label: str) -> list[Token]:
        """The one token with this label, or none."""
        tokens = self._library.find(label)
        if len(tokens) > 1:
            slot_ids = tuple(token.slot.slot_id for token in tokens)
            conflict = AssignmentConflictError(
                f"the label {label!r} is there {len(tokens)} times, in the slots "
                f"{', '.join(map(str, slot_ids))}: hosts have assigned it at the same moment. "
                "Decide which one stays; a guard prevents it",
                function="CA_GetSlotId",
            )
            conflict.slot_ids = slot_ids
            raise conflict
        return tokens

    def _assign(self, label: str, kept: _Kept) -> int:
        self._pins.raise_refused()
        claim = self._library.claim(self._cluster_id)
        # Before anything is claimed, so that the claim is ended at whatever point an exception comes.
        kept.append((claim, None))
        try:
            token = claim.__enter__()
        except Exception:
            kept.pop()
            raise
        try:
            fresh = not self._pins.proven and not was_initialised(token)
            self._pins.try_on(fresh, lambda: self._assign_claimed(token, label))
        except Exception as error:
            kept[-1] = (claim, error)
            raise
        kept.pop()
        claim.__exit__(None, None, None)
        return token.slot.slot_id

    def _assign_claimed(self, token: Token, label: str) -> bool:
        """Returns whether the token had a PIN before."""
        pins = self._pins
        assigned = token.assign(label, so_pin=pins.so_pin, user_pin=pins.user_pin, unique=False)
        self._single_identity = has_single_identity(assigned)
        if was_initialised(token):
            return True
        self._fresh.add(label)
        return False


def _give_back(claim: Claim, why: Exception | None) -> None:
    # A failed unlock is in the log. A claim that was not granted raises, too.
    with suppress(LunaError):
        claim.__exit__(None if why is None else type(why), why, None)


def _empty_frames(errors: Iterable[BaseException]) -> None:
    """Let the tracebacks' frames keep nothing alive but the functions that they were of."""
    left: list[BaseException | None] = list(errors)
    seen: set[int] = set()
    while left:
        error = left.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        left += (error.__cause__, error.__context__)
        step = error.__traceback__
        while step is not None:
            # One that still runs, such as that of a callback which has raised an error of the report anew.
            with suppress(RuntimeError):
                step.tb_frame.clear()
            step = step.tb_next


def _has_user_pin(token: Token) -> bool:
    return TokenFlag.USER_PIN_INITIALIZED in token.slot.token_info.flags
