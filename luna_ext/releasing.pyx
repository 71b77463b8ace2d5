"""The way out of a slot's lock: to the next one in this process, or off the device.

The state changes by the rules that mutex.pyx gives.
"""

import logging
import time

from luna_ext.answers cimport says_busy
from luna_ext.calls cimport token_label, unlock_slot
from luna_ext.client cimport Lease
from luna_ext.clock cimport luna_now, luna_pause
from luna_ext.cryptoki cimport CK_RV, CKR_OK
from luna_ext.functions cimport CA_UNLOCK_CLUSTERED_SLOT, error_of
from luna_ext.hold cimport OWNED, RELEASING, Hold
from luna_ext.pending cimport luna_raise_pending
from luna_ext.reports cimport PySys_Audit, debug_is_on, tell_failed_release, tell_unlocked
from luna_ext.waiters cimport FAILED, GRANTED, Waiter

from . import lock_errors
from .errors import CryptokiError, LibraryClosedError
from .lock_errors import means_lost

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

# How long a release waits itself for a claim that may have been given the same slot, before it
# leaves the unlock to a worker.
CLAIM_SECONDS = 0.05
# How long an unlock call is repeated while the device answers that it is busy.
BUSY_SECONDS = 2.0

_log = logging.getLogger("luna_ext")


cdef class ReleasableHold(Hold):
    """A Hold that can end."""

    cdef int _pass_turn(self) except -1:
        raise NotImplementedError

    cdef bint _hand_over_spare_grant(self) except -1:
        raise NotImplementedError

    # ---- by its holder ----

    cdef int release(self, Lease lease) except -1:
        """Unlock; only the thread that holds the lock may, and through the same Library."""
        cdef double began
        if PySys_Audit("luna_ext.unlock", "K", <unsigned long long> self.slot_id) != 0:
            return self._release_despite_objection(lease)
        if not debug_is_on():
            return self._release(lease)
        began = luna_now()
        self._release(lease)
        return tell_unlocked(began, self.slot_id, False)

    cdef int _release_despite_objection(self, Lease lease) except -1:
        """An audit hook has raised. It may object to anything, but it cannot keep a lock on."""
        try:
            luna_raise_pending()
        except BaseException:
            self._release(lease)
            raise
        return 0

    cdef int _release(self, Lease lease) except -1:
        if (
            not self.state & OWNED
            or self.owner != PyThread_get_thread_ident()
            or self.lease is not lease
        ):
            self.check_mine("CA_UnlockClusteredSlot")
            raise lock_errors.not_owned(
                self.slot_id,
                "it was locked by `async with`, or through another Library, and is released there",
                "CA_UnlockClusteredSlot",
            )
        self._begin_leave()
        return self._finish_leave(True)

    cdef int release_task(self, object key, Waiter waiter) except -1:
        """Unlock on a worker on behalf of a task; the waiter is settled when that is done."""
        try:
            if PySys_Audit("luna_ext.unlock", "K", <unsigned long long> self.slot_id) != 0:
                luna_raise_pending()
        finally:
            self._release_task(key, waiter)
        return 0

    cdef int _release_task(self, object key, Waiter waiter) except -1:
        if key is None or not self.state & OWNED or self.owner_task is not key:
            raise lock_errors.not_owned(
                self.slot_id, "this `async with` does not hold it", "CA_UnlockClusteredSlot"
            )
        self._begin_leave()

        def leave():
            began = luna_now()
            waiter.outcome = GRANTED
            try:
                self._finish_leave(False)
                if debug_is_on():
                    tell_unlocked(began, self.slot_id, False)
            except BaseException as error:
                waiter.error = error
                waiter.outcome = FAILED
            try:
                if waiter.error is not None:
                    tell_failed_release(waiter.error)
            finally:
                waiter.wake()
                self.client.call_came_back()

        self._on_worker(leave)
        return 0

    cdef bint _is_owned_by(self, object key) except -1:
        if not self.state & OWNED:
            return False
        return self.owner == key if isinstance(key, int) else self.owner_task is key

    # ---- in two steps ----

    cdef int _begin_leave(self) except -1:
        """Nobody's lock any more, but still on: nobody else may own it yet."""
        self.owner = 0
        self.owner_task = None
        self.place_code = None
        return 0

    cdef int _finish_leave(self, bint may_wait_on_worker) except -1:
        """After _begin_leave(): hand the device's lock over, or take it off."""
        cdef str lost
        # A claim that was under way before this hold began may have been given this very slot, and
        # the device may have granted us its lock a second time. Until the claim has seen that the
        # slot is taken, an unlock would take its lock away. Most often it comes back in a moment.
        if self.client.claims.oldest != 0 and self.client.claims.others(self.claims_before):
            until = time.monotonic() + CLAIM_SECONDS
            while self.client.claims.others(self.claims_before):
                if may_wait_on_worker and time.monotonic() > until:
                    self._on_worker(self._finish_leave_quietly)
                    return 0
                with nogil:
                    luna_pause(0.0002)
        lost = self.lost
        self.lost = None
        if self.spare_session != self.client.session:
            self.spare_grant = False
        if self.session != self.client.session and not self.spare_grant:
            # The client was finalised since, which dropped the lock; by now it may be another's.
            lost = lost or "its library was closed"
        if lost is not None:
            self.spare_grant = False
            self.state &= ~OWNED
            self._pass_turn()
            self.client.hold_back_at_exit()
            raise lock_errors.lost(self.slot_id, lost)
        if self.spare_grant:
            self.spare_grant = False
            if self._hand_over_spare_grant():
                return 0
        self.state = (self.state & ~OWNED) + RELEASING
        return self._unlock()

    cdef int _unlock(self) except -1:
        """Make the unlock call; RELEASING has been counted."""
        cdef CK_RV rv = CKR_OK
        # Looked at before, for the call cannot raise then; the next line but one must be reached.
        cdef bint answers = self.client.answers
        if answers:
            rv = unlock_slot(self.client, self.slot_id)
            if rv != CKR_OK:
                rv = self._unlock_again(rv)
        self.state -= RELEASING
        self._pass_turn()
        if not answers:
            self.client.hold_back_at_exit()
            raise lock_errors.lost(self.slot_id, "its library was closed")
        if rv != CKR_OK:
            raise self._unlock_error(rv)
        return 0

    cdef CK_RV _unlock_again(self, CK_RV rv) except? 0xFFFFFFFF:
        """Repeat the unlock call while the device is busy. No signal handler runs meanwhile."""
        cdef double until = luna_now() + BUSY_SECONDS
        cdef double delay = 0.01
        while says_busy(rv) and luna_now() + delay < until:
            with nogil:
                luna_pause(delay)
            delay = min(2 * delay, 0.25)
            if not self.client.answers or self.session != self.client.session:
                # Finalised meanwhile, and the lock dropped with it.
                return CKR_OK
            rv = unlock_slot(self.client, self.slot_id)
        return rv

    def _unlock_error(self, CK_RV rv):
        """Why an unlock failed: is the connection gone, and the lock with it?"""
        cause = error_of(rv, CA_UNLOCK_CLUSTERED_SLOT, self.slot_id)
        try:
            token_label(self.client, self.slot_id)
        except CryptokiError as error:
            if means_lost(error):
                why = f"the unlock failed ({cause.rv_name}), the next call too ({error.rv_name})"
                lost = lock_errors.lost(self.slot_id, why, rv=rv)
                lost.__cause__ = cause
                return lost
        except LibraryClosedError:
            pass
        return lock_errors.release_failed(cause)

    # ---- for somebody who does not wait for it ----

    cdef int _leave_later(self) except -1:
        """Give back, on a worker, a grant that its owner cannot take."""
        self._begin_leave()
        self._on_worker(self._finish_leave_quietly)
        return 0

    def _finish_leave_quietly(self, bint may_wait_on_worker=False):
        try:
            try:
                self._finish_leave(may_wait_on_worker)
            except BaseException as error:
                # A client library that has been finalised has dropped its locks.
                if (
                    self.client.exits == 0
                    and self.client.answers
                    and self.session == self.client.session
                ):
                    _log.error("a lock that nobody could release any more: %s", error)
            else:
                if debug_is_on():
                    tell_unlocked(0, self.slot_id, True)
        finally:
            self.client.call_came_back()

    def _on_worker(self, job):
        try:
            self.client.workers.run(job)
        except (RuntimeError, MemoryError):
            # No thread can be had (the interpreter is going down); later is never.
            job()

    # ---- while it is held ----

    cdef int begin_work(self) except -1:
        """Calls begin that rely on the lock: close() must not take it off in their midst."""
        self.busy += 1
        return 0

    cdef int end_work(self) except -1:
        # 0 already if a signal handler has forked in their midst, and this is the child.
        if self.busy > 0:
            self.busy -= 1
        if self.evicted and self.busy == 0:
            self.evicted = False
            self._begin_leave()
            self._finish_leave_quietly(True)
        return 0

    cdef int _keep_spare_grant(self) except -1:
        self.spare_grant = True
        self.spare_session = self.client.session
        return 0
