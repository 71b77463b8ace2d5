"""The lock of one slot in this process: who holds it, who waits, which device call is under way.

The device's owner is the application, so it may not keep this process's threads apart. That is
done here: per slot there is one holder, at most one lock call on its way to the device, and a
queue. The GIL is what protects the state. It changes only between device calls, in code that
runs no Python code between looking and changing.
"""

import logging
import os
import sys
import threading
import time
from collections import OrderedDict

cimport cython
from cpython.ref cimport Py_DECREF

from luna_ext.calls cimport lock_slot, token_label, unlock_slot
from luna_ext.client cimport (
    CA_LOCK_CLUSTERED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    Client,
    error_of,
)
from luna_ext.cryptoki cimport (
    CK_RV,
    CK_SLOT_ID,
    CKR_DEVICE_ERROR,
    CKR_OK,
    CKR_VENDOR_DEFINED,
)

from .backoff import delays
from .errors import (
    CryptokiError,
    LibraryClosedError,
    LockLostError,
    LockNotOwnedError,
    LockReentryError,
    LockReleaseError,
)

cdef extern from "Python.h":
    """
    /* The exception that PyErr_CheckSignals() has set already, for Cython to catch. */
    static int luna_raise_pending(void) {
        return -1;
    }
    """
    unsigned long PyThread_get_thread_ident() noexcept nogil
    int PyErr_CheckSignals() noexcept
    int luna_raise_pending() except -1

    ctypedef struct PyFrameObject:
        pass

    ctypedef struct PyCodeObject:
        pass

    PyFrameObject *PyEval_GetFrame() noexcept
    PyCodeObject *PyFrame_GetCode(PyFrameObject *frame) noexcept
    int PyFrame_GetLasti(PyFrameObject *frame) noexcept
    int PyCode_Addr2Line(PyCodeObject *code, int lasti) noexcept

# SlotMutex.state. A claim may own a slot whose earlier lock or unlock call is still on its way,
# so these are independent of each other.
cdef enum:
    OWNED = 1       # somebody in this process holds the lock
    LOCKING = 2     # a lock call is outstanding, or about to be made
    RELEASING = 4   # one for each outstanding unlock call; the bits above count them

_log = logging.getLogger("luna_ext")
SETTLE_SECONDS = 0.5
_AGAIN = (CKR_VENDOR_DEFINED + 0x41, CKR_VENDOR_DEFINED + 0x1604)


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id):
    """The one SlotMutex of a slot in this process."""
    mutex = client.mutexes.get(slot_id)
    if mutex is None:
        mutex = client.mutexes.setdefault(slot_id, SlotMutex.__new__(SlotMutex, client, slot_id))
    return <SlotMutex> mutex


cdef bint may_pass(CK_RV rv, bint poll) except -1:
    """Whether the error means "not now": by its code, or because the caller says so."""
    return rv in _AGAIN or (poll and rv == CKR_DEVICE_ERROR)


@cython.final
cdef class Waiter:
    """One thread or task in a slot's queue."""


@cython.final
cdef class SlotMutex:
    """See the module."""

    def __cinit__(self, Client client, slot_id):
        self.client = client
        self.slot_id = slot_id
        self.waiters = OrderedDict()

    # ---- acquiring ----

    cdef int acquire(self, unsigned long lease, bint poll) except -1:
        """Lock, however long it takes, with the device call on the caller's own thread."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.client.lock_clustered_slot == NULL or self.client.unlock_clustered_slot == NULL:
            self._need_functions()
        if self.state != 0 or self.waiting != 0:
            return self._wait_turn(me, lease, poll, False)
        self.state = LOCKING
        self.caller = me
        return self._call_device(me, lease, poll)

    cdef bint acquire_within(self, unsigned long lease, bint poll, double seconds) except -1:
        """Lock with the device call on a worker, so that the caller can give up; -1: never.

        Whether the lock was granted in time.
        """
        signal = threading.Lock()
        signal.acquire()
        cdef Waiter waiter = self.ask(PyThread_get_thread_ident(), lease, poll, signal.release)
        try:
            signal.acquire(timeout=seconds)
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == WAITING:
            self.withdraw(waiter)
            return False
        if waiter.outcome == FAILED:
            raise waiter.error
        return True

    cdef Waiter ask(self, object key, unsigned long lease, bint poll, object wake):
        """Queue up for a lock that a worker gets. Whoever asks has to withdraw() or release."""
        self._need_functions()
        self._refuse_reentry(key)
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.key = key
        waiter.lease = lease
        waiter.poll = poll
        waiter.wake = wake
        self._enqueue(waiter, False)
        return waiter

    cdef int withdraw(self, Waiter waiter) except -1:
        """The waiter gives up. A grant that it has been given already goes back."""
        if waiter.outcome == WAITING:
            self._dequeue(waiter)
        elif waiter.outcome == TURN:
            self.caller = 0
            self.state &= ~LOCKING
            self._pass_turn()
        elif waiter.outcome == GRANTED:
            self._unlock_later()
        return 0

    cdef bint adopt(self, unsigned long lease) except -1:
        """Own the lock that CA_GetUnassignedSlot has set; False when it is somebody's already.

        If a lock call for this very slot is under way, its answer is awaited for a moment: a device
        that grants a process its own lock again would answer it at once, and our unlock would take
        that grant away.
        """
        cdef double until
        if self.state & LOCKING:
            until = time.monotonic() + SETTLE_SECONDS
            while self.state & LOCKING and time.monotonic() < until:
                try:
                    time.sleep(SETTLE_SECONDS / 100)
                except BaseException:
                    if not self.state & OWNED:
                        self._own(PyThread_get_thread_ident(), lease)
                        self._unlock_later()
                    raise
        if self.state & OWNED:
            return False
        self._own(PyThread_get_thread_ident(), lease)
        return True

    def _need_functions(self):
        # Without the unlock function a lock would never come off: refuse both together.
        self.client.need(CA_LOCK_CLUSTERED_SLOT)
        self.client.need(CA_UNLOCK_CLUSTERED_SLOT)

    cdef int _wait_turn(self, unsigned long me, unsigned long lease, bint poll, bint first) except -1:
        self._refuse_reentry(me)
        signal = threading.Lock()
        signal.acquire()
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.key = me
        waiter.lease = lease
        waiter.own_call = True
        waiter.poll = poll
        waiter.wake = signal.release
        self._enqueue(waiter, first)
        try:
            signal.acquire()
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == FAILED:
            raise waiter.error
        if waiter.outcome == TURN:
            return self._call_device(me, lease, poll)
        return 0

    cdef int _call_device(self, unsigned long me, unsigned long lease, bint poll) except -1:
        """Make the lock call on this thread; LOCKING is set and `caller` is this thread."""
        cdef CK_RV rv
        try:
            rv = lock_slot(self.client, self.slot_id)
            if rv != CKR_OK:
                self._insist(rv, poll)
        except BaseException:
            self.caller = 0
            self.state &= ~LOCKING
            self._pass_turn()
            raise
        self.caller = 0
        self.state &= ~LOCKING
        if self.state & OWNED:
            # A claim came back with this slot first. The device has granted this process twice;
            # the second grant is handed over when the claim ends.
            self.spare_grant = True
            return self._wait_turn(me, lease, poll, True)
        self._own(me, lease)
        # A signal that came during the call is seen here, where nothing can be left locked: after
        # the return of acquire() the caller has no chance to release.
        return self.check_signals()

    cdef int check_signals(self) except -1:
        """Run pending signal handlers; if one raises, the lock that was just taken goes back."""
        if PyErr_CheckSignals() != 0:
            self._interrupted()
        return 0

    cdef int _insist(self, CK_RV rv, bint poll) except -1:
        """Try again while the error means "not now"; raise any other."""
        for delay in delays():
            if not may_pass(rv, poll):
                raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
            time.sleep(delay)
            rv = lock_slot(self.client, self.slot_id)
            if rv == CKR_OK:
                return 0
        return 0

    cdef int _interrupted(self) except -1:
        try:
            luna_raise_pending()
        except BaseException:
            self._unlock_later()
            raise
        return 0

    cdef int _own(self, object key, unsigned long lease) except -1:
        self.state |= OWNED
        if isinstance(key, int):
            self.owner = key
        else:
            self.owner_task = key
        self.lease = lease
        self.hold += 1
        return 0

    def lock_on_worker(self):
        """Make the lock call for whoever waits first when it comes back."""
        cdef Waiter first
        cdef CK_RV rv = CKR_DEVICE_ERROR
        try:
            for delay in delays():
                rv = lock_slot(self.client, self.slot_id)
                if rv == CKR_OK:
                    break
                first = self._first()
                if first is None:
                    break
                if not may_pass(rv, first.poll):
                    raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
                time.sleep(delay)
                if self._first() is None:
                    break
        except BaseException as error:
            self.state &= ~LOCKING
            first = self._first()
            if first is not None:
                self._settle(first, FAILED, error)
            self._pass_turn()
            return
        self.state &= ~LOCKING
        if rv != CKR_OK:
            self._pass_turn()
        elif self.state & OWNED:
            self.spare_grant = True
        else:
            self._hand_over()

    # ---- the queue ----

    cdef Waiter _first(self):
        return next(iter(self.waiters.values()), None)

    cdef int _enqueue(self, Waiter waiter, bint first) except -1:
        self.waiters[waiter.key] = waiter
        if first:
            self.waiters.move_to_end(waiter.key, last=False)
        self.waiting = len(self.waiters)
        self._pass_turn()
        return 0

    cdef int _dequeue(self, Waiter waiter) except -1:
        del self.waiters[waiter.key]
        self.waiting = len(self.waiters)
        return 0

    cdef int _pass_turn(self) except -1:
        """If nobody holds the lock and no call is out, see to it that the first waiter gets it."""
        cdef Waiter first
        if self.state != 0 or self.waiting == 0:
            return 0
        self.state = LOCKING
        first = self._first()
        if first.own_call:
            self.caller = first.key
            self._settle(first, TURN, None)
            return 0
        try:
            self.client.workers.run(self.lock_on_worker)
        except BaseException as error:
            self.state &= ~LOCKING
            self._settle(first, FAILED, error)
            self._pass_turn()
        return 0

    cdef int _hand_over(self) except -1:
        """The device's lock is on and nobody owns it: the first waiter does, or it comes off."""
        cdef Waiter first
        while self.waiting != 0:
            first = self._first()
            self._own(first.key, first.lease)
            if self._settle(first, GRANTED, None):
                return 0
            self.state &= ~OWNED
            self.owner = 0
            self.owner_task = None
        self.state += RELEASING
        self._finish_unlock_quietly()
        return 0

    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1:
        """End a wait. 0 when nobody listens any more."""
        self._dequeue(waiter)
        waiter.outcome = outcome
        waiter.error = error
        return waiter.wake() is not False

    cdef int _refuse_reentry(self, object key) except -1:
        cdef bint thread = isinstance(key, int)
        if thread and self.state & OWNED and self.owner == key:
            what = "this thread holds the lock already"
        elif key in self.waiters or (thread and self.state & LOCKING and self.caller == key):
            what = "the caller waits for this lock already"
        elif not thread and self.owner_task is key:
            what = "this task holds the lock already"
        elif thread and self.owner_task is not None and self.owner_task is current_task():
            what = "this task holds the lock already"
        elif thread and self.owner_task is not None and runs_here(self.owner_task):
            what = (
                "a task of this thread's event loop holds the lock, and could not release it while "
                "the loop is blocked; use `async with slot.lock()`"
            )
        else:
            return 0
        raise LockReentryError(
            f"slot {self.slot_id}: {what}; waiting for it would never end",
            function="CA_LockClusteredSlot",
            slot_id=self.slot_id,
        )

    # ---- releasing ----

    cdef int release(self) except -1:
        """Unlock; only the thread that holds the lock may."""
        if not self.state & OWNED or self.owner != PyThread_get_thread_ident():
            self.check_mine("CA_UnlockClusteredSlot")
            raise LockNotOwnedError(
                f"slot {self.slot_id} is held by this task; only the end of its "
                "`async with` releases it",
                function="CA_UnlockClusteredSlot",
                slot_id=self.slot_id,
            )
        if self._leave():
            self._unlock()
        return 0

    cdef int release_for(self, object key, Waiter waiter) except -1:
        """Unlock on a worker on behalf of a task; the waiter is settled when that is done."""
        if not self.state & OWNED or self.owner_task is not key:
            self.check_mine("CA_UnlockClusteredSlot")
        if not self._leave():
            waiter.outcome = GRANTED
            waiter.wake()
            return 0
        self._on_worker(lambda: self._unlock_for(waiter))
        return 0

    def _unlock_for(self, Waiter waiter):
        try:
            self._unlock()
        except BaseException as error:
            waiter.error = error
            waiter.outcome = FAILED
        else:
            waiter.outcome = GRANTED
        if waiter.wake() is False and waiter.error is not None:
            _log.error("slot %d: %s", self.slot_id, waiter.error)

    cdef bint _leave(self) except -1:
        """End the hold in this process; whether the device has to be told."""
        cdef str lost = self.lost
        self.owner = 0
        self.owner_task = None
        self.lost = None
        self.place_code = None
        self.state &= ~OWNED
        if lost is not None:
            self.spare_grant = False
            self._pass_turn()
            raise self._lost_error(lost)
        if self.spare_grant:
            self.spare_grant = False
            if self.waiting != 0:
                self._hand_over()
                return False
        self.state += RELEASING
        return True

    cdef int _unlock(self) except -1:
        """Make the unlock call; RELEASING has been counted."""
        cdef CK_RV rv
        try:
            rv = unlock_slot(self.client, self.slot_id)
        except LibraryClosedError as closed:
            self.state -= RELEASING
            self._pass_turn()
            raise self._lost_error("its library was closed") from closed
        except BaseException:
            self.state -= RELEASING
            self._pass_turn()
            raise
        self.state -= RELEASING
        if self.waiting != 0:
            self._pass_turn()
        if rv != CKR_OK:
            raise self._unlock_error(rv)
        return 0

    def _unlock_error(self, CK_RV rv):
        """Why an unlock failed: is the connection gone, and the lock with it?"""
        cause = error_of(rv, CA_UNLOCK_CLUSTERED_SLOT, self.slot_id)
        try:
            token_label(self.client, self.slot_id)
        except CryptokiError as error:
            lost = self._lost_error(
                f"the unlock failed ({cause.rv_name}) and so does every call ({error.rv_name})", rv
            )
            lost.__cause__ = cause
            return lost
        failed = LockReleaseError(
            f"{cause}. The lock may stay set until this process disconnects",
            rv=rv,
            function=cause.function,
            slot_id=self.slot_id,
        )
        failed.__cause__ = cause
        return failed

    def _lost_error(self, str reason, rv=None, function="CA_UnlockClusteredSlot"):
        return LockLostError(
            f"slot {self.slot_id}: the lock was lost while it was held: {reason}. Somebody else may "
            "have worked on the token meanwhile; check it before you go on",
            rv=rv,
            function=function,
            slot_id=self.slot_id,
        )

    cdef int _unlock_later(self) except -1:
        """Give back, on a worker, a grant that its owner cannot take."""
        try:
            if self._leave():
                self._on_worker(self._finish_unlock_quietly)
        except LockLostError as error:
            _log.error("%s", error)
        return 0

    def _finish_unlock_quietly(self):
        try:
            self._unlock()
        except BaseException as error:
            _log.error("a lock that nobody waited for any more did not come off: %s", error)

    def _on_worker(self, job):
        try:
            self.client.workers.run(job)
        except RuntimeError:
            # No thread can be had (the interpreter is going down); later is never.
            job()

    # ---- being asked ----

    def held(self):
        """Whether somebody in this process holds the lock."""
        return self.state & OWNED != 0

    cdef bint is_mine(self) except -1:
        """Whether the calling thread or task holds the lock."""
        if not self.state & OWNED:
            return False
        if self.owner_task is None:
            return self.owner == PyThread_get_thread_ident()
        return self.owner_task is current_task()

    cdef int check_mine(self, str function) except -1:
        if self.is_mine():
            return 0
        if self.inherited:
            who = "the parent process held it at the fork, this process does not"
        elif self.state & OWNED:
            who = "another thread or task of this process holds it"
        else:
            who = "it is not locked by this process"
        raise LockNotOwnedError(
            f"slot {self.slot_id} is not held by the caller: {who}. Nothing was done",
            function=function,
            slot_id=self.slot_id,
        )

    cdef bytes ensure_held(self):
        """Ask the device for the token's label; an error means that the lock may be gone."""
        cdef bytes label = None
        self.check_mine("C_GetTokenInfo")
        if self.lost is None:
            try:
                label = token_label(self.client, self.slot_id)
            except CryptokiError as error:
                if error.rv in _AGAIN:
                    raise
                self.lost = f"the device does not answer any more ({error.rv_name})"
                raise self._lost_error(self.lost, error.rv, error.function) from error
        if self.lost is not None:
            raise self._lost_error(self.lost)
        return label

    cdef int note_place(self) except -1:
        """Remember who calls, for the warning about a lock that nobody releases."""
        cdef PyFrameObject *frame = PyEval_GetFrame()
        if frame != NULL:
            self.place_code = <object> PyFrame_GetCode(frame)
            Py_DECREF(self.place_code)  # PyFrame_GetCode gave a reference of its own
            self.place_lasti = PyFrame_GetLasti(frame)
        return 0

    cdef str place(self):
        if self.place_code is None:
            return "in a with statement"
        line = PyCode_Addr2Line(<PyCodeObject *> self.place_code, self.place_lasti)
        return f"at {self.place_code.co_filename}:{line}"

    # ---- losing it ----

    def lose(self, str reason):
        """Mark a held lock as lost, because it is about to be unlocked under its holder."""
        if not self.state & OWNED or self.lost is not None:
            return False
        self.lost = reason
        return True

    def close_lease(self, unsigned long lease, str path):
        """The Library of this lease closes: its waiters fail, its hold ends.

        Where the lock was taken if it was held, else None.
        """
        cdef Waiter waiter
        for waiter in tuple(self.waiters.values()):
            if waiter.lease == lease and waiter.outcome == WAITING:
                self._settle(
                    waiter,
                    FAILED,
                    LibraryClosedError(
                        f"the Library for {path!r} was closed while slot {self.slot_id} was "
                        "waited for",
                        slot_id=self.slot_id,
                    ),
                )
        if not self.state & OWNED or self.lease != lease:
            return None
        place = self.place()
        if self.lose("its Library was closed"):
            self.state += RELEASING
            self._finish_unlock_quietly()
        return place

    def after_fork(self):
        """In the child nothing is held: the application that holds the lock is the parent."""
        if self.is_mine():
            self.inherited = True
        self.state = 0
        self.owner = 0
        self.owner_task = None
        self.caller = 0
        self.lost = None
        self.spare_grant = False
        self.place_code = None
        self.waiters = OrderedDict()
        self.waiting = 0

    cdef bint ended_by_fork(self) except -1:
        """At the end of a with block: whether it began in the parent process, so nothing is due."""
        if not self.inherited or self.is_mine():
            return False
        self.inherited = False
        _log.warning(
            "slot %d: a with block that began before the fork ends in the child (PID %d); the "
            "parent holds the lock, nothing is unlocked",
            self.slot_id,
            os.getpid(),
        )
        return True


def current_task():
    """The running asyncio Task; None, without importing asyncio, where there can be none."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


def runs_here(task):
    """Whether the task belongs to the event loop that this thread is running."""
    try:
        return task.get_loop() is sys.modules["asyncio"].get_running_loop()
    except RuntimeError:
        return False
