"""Claim: what `Library.claim()` gives. Its block holds an unassigned token."""

import sys
import threading
import time
from functools import partial

cimport cython

from luna_ext.answers cimport says_busy
from luna_ext.calls cimport next_unassigned
from luna_ext.claims cimport Claims
from luna_ext.client cimport Client, Lease
from luna_ext.clock cimport luna_now
from luna_ext.cryptoki cimport (
    CK_RV,
    CK_UNASSIGNED_SLOT_INFO,
    CKR_FUNCTION_FAILED,
    CKR_OK,
)
from luna_ext.functions cimport CA_GET_UNASSIGNED_SLOT, CA_UNLOCK_CLUSTERED_SLOT, error_of
from luna_ext.lock cimport end_block, seconds_of
from luna_ext.mutex cimport mutex_of
from luna_ext.reports cimport LONG_WAIT_SECONDS, begin_wait, warn_of_wait
from luna_ext.token cimport Token, new_token
from luna_ext.waiters cimport FAILED, GRANTED, WAITING, WITHDRAWN, Waiter, sit_out

from .backoff import delays
from .errors import (
    CryptokiError,
    LibraryClosedError,
    LockNotOwnedError,
    LockReentryError,
    LockTimeoutError,
    NoUnassignedTokenError,
)
from .lock import ANSWER_SECONDS, end_task_block
from .tasks import running_task, settled_within, tell

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef enum:
    # How often the device is asked again at once when it gives a slot that this process holds.
    TRIES = 16
    # How many calls are made at a time for those who can stop waiting; the others queue.
    MOST_CALLS = 16

# Known only here: a claim comes from a Library, never from its class.
cdef object _KEY = object()


cdef Claim new_claim(object library, Lease lease, object cluster_id, object timeout):
    if not isinstance(cluster_id, str):
        raise TypeError(f"a cluster ID is a str, not {type(cluster_id).__name__}")
    if not cluster_id or "\0" in cluster_id:
        raise ValueError(f"{cluster_id!r} is no cluster ID: it is empty or contains NUL")
    cdef Claim claim = Claim.__new__(Claim, _KEY)
    claim.library = library
    claim.lease = lease
    claim.cluster_id = cluster_id.encode("utf-8")
    claim.timeout = seconds_of(timeout)
    return claim


@cython.final
cdef class Request(Waiter):
    """Its key is the thread or task that gets the lock."""

    cdef int call_device(self) except -1:
        """Ask for the next unassigned token; `outcome` says what came of it."""
        cdef Client client = self.lease.client
        cdef CK_UNASSIGNED_SLOT_INFO info
        cdef unsigned long long serial
        cdef bint adopted = False
        cdef CK_RV rv
        for _ in range(TRIES):
            if not self.lease.open:
                raise closed(self.lease)
            # No Python code between begin() and end(): a signal handler, say, could release another
            # lock, and that would wait for this claim.
            serial = self.claims.begin()
            self.calling = True
            try:
                rv = next_unassigned(client, self.cluster_id, &info)
                if rv == CKR_OK:
                    self.mutex = mutex_of(client, info.slotID)
                    self.raw_label = info.label[:32]
                    # A slot that this process holds already is its holder's, whatever the device
                    # says; unlocking it here would take it away from there.
                    adopted = self.mutex.adopt(self)
                    self.hold = self.mutex.hold
            finally:
                self.calling = False
                if self.abandoned:
                    self.abandoned = False
                    self.claims.abandoned -= 1
                self.claims.end(serial)
            if rv != CKR_OK or adopted or self.outcome != WAITING:
                break
            rv = CKR_FUNCTION_FAILED
        if adopted and self.outcome != GRANTED:
            # Nobody waits for it any more.
            self.mutex._finish_leave_quietly(True)
        elif self.outcome == WAITING:
            self.error = error_of(rv, CA_GET_UNASSIGNED_SLOT, None)
            self.outcome = FAILED
        return 0

    cdef int withdraw(self) except -1:
        """Whoever waits gives up. What was granted goes back."""
        if self.outcome == WAITING:
            self.outcome = WITHDRAWN
            if self.calling:
                self.abandoned = True
                self.claims.abandoned += 1
        elif self.outcome == GRANTED:
            self.outcome = WITHDRAWN
            # Unless close() has been faster.
            if self.mutex._is_owned_by(self.key):
                self.mutex._leave_later()
        return 0

    cdef int queue_up(self) except -1:
        """Have the call made by a worker."""
        self.claims.requests.append(self)
        if self.claims.servers < MOST_CALLS:
            self.claims.servers += 1
            try:
                self.lease.client.workers.run(partial(serve, self.lease.client, self.claims))
            except BaseException:
                self.claims.servers -= 1
                raise
        return 0


def serve(Client client not None, Claims claims not None):
    """On a worker: make the calls that are asked for, until there are none."""
    cdef Request request
    while claims.requests:
        request = claims.requests.popleft()
        if request.outcome != WAITING:
            continue
        try:
            request.call_device()
        except BaseException as error:
            if request.outcome == WAITING:
                request.error = error
                request.outcome = FAILED
        if request.wake() is False:
            request.withdraw()
        client.call_came_back()
        # Not kept while there is nothing to do: it may hold the last reference to a Library.
        request = None
    claims.servers -= 1


def closed(Lease lease not None):
    return LibraryClosedError(
        f"the Library for {lease.path!r} is closed; open a new one to claim a token",
        function="CA_GetUnassignedSlot",
    )


@cython.final
cdef class Claim:
    """What `Library.claim()` gives: its ``with`` or ``async with`` holds an unassigned token."""

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("a Claim comes from Library.claim()")

    def __enter__(self):
        cdef Request request
        self._begin()
        try:
            for delay in delays():
                request = self._request(PyThread_get_thread_ident())
                if self.timeout == 0:
                    # Nothing to be missed by waiting for the answer: the fastest way.
                    request.call_device()
                else:
                    self._ask_and_wait(request)
                self.token = self._token_of(request)
                if self.token is not None:
                    return self.token
                time.sleep(self._pause(delay))
                if luna_now() - self.wait.began > LONG_WAIT_SECONDS:
                    self._warn()
        finally:
            self.entered = self.token is not None

    def __exit__(self, exc_type, exc_value, traceback):
        cdef Token token = self._end()
        end_block(token.slot.mutex, token.slot.lease, exc_value)

    async def __aenter__(self):
        cdef Request request
        loop, task = running_task()
        self._begin()
        try:
            for delay in delays():
                answered = loop.create_future()
                request = self._request(task)
                request.wake = partial(tell, loop, answered)
                try:
                    request.queue_up()
                    await self._settled(
                        answered, -1 if self.timeout == 0 else self._seconds_left()
                    )
                except BaseException:
                    request.withdraw()
                    raise
                self.token = self._token_of(request)
                if self.token is not None:
                    self.task = task
                    return self.token
                await self._settled(loop.create_future(), self._pause(delay))
        finally:
            self.entered = self.token is not None

    async def __aexit__(self, exc_type, exc_value, traceback):
        cdef Token token = self._end()
        task, self.task = self.task, None
        await end_task_block(token.slot.mutex, token.slot.lease, task, exc_type, exc_value)

    def __reduce__(self):
        raise TypeError("a Claim belongs to its process")

    cdef int _begin(self) except -1:
        # What would end the claim has to be there before it begins.
        self.lease.client.need(CA_GET_UNASSIGNED_SLOT, self.lease.path)
        self.lease.client.need(CA_UNLOCK_CLUSTERED_SLOT, self.lease.path)
        sys.audit("luna_ext.claim", self.cluster_id.decode())
        if self.entered:
            raise LockReentryError(
                "this claim's block is running already; call claim() once more for another token",
                function="CA_GetUnassignedSlot",
            )
        begin_wait(&self.wait, False)
        self.refusal = None
        self.entered = True
        return 0

    cdef Token _end(self):
        token = self.token
        if token is None:
            raise LockNotOwnedError(
                "this claim's block was not entered; there is nothing to release",
                function="CA_UnlockClusteredSlot",
            )
        self.token = None
        self.entered = False
        return token

    cdef Request _request(self, object key):
        cdef Request request = Request.__new__(Request)
        request.key = key
        request.lease = self.lease
        request.cluster_id = self.cluster_id
        request.claims = self.lease.client.claims
        return request

    cdef int _ask_and_wait(self, Request request) except -1:
        signal = threading.Lock()
        signal.acquire()
        request.wake = signal.release
        try:
            request.queue_up()
            sit_out(signal, &self.wait, self.cluster_id, self._seconds_left())
        except BaseException:
            request.withdraw()
            raise
        return 0

    async def _settled(self, future, seconds):
        patience = max(0.0, self.wait.began + LONG_WAIT_SECONDS - luna_now())
        await settled_within(future, seconds, patience, self._warn)

    def _warn(self):
        warn_of_wait(&self.wait, self.cluster_id)

    cdef double _seconds_left(self) except? -1:
        return max(0.0, self.wait.began + self.timeout - luna_now())

    cdef Token _token_of(self, Request request):
        """What the request has given; None if it may be asked again."""
        cdef Token token
        if request.outcome == WAITING:
            request.withdraw()
            raise self._out_of_time()
        if request.outcome == FAILED:
            if not may_change(request.error):
                raise request.error
            self.refusal = request.error
            return None
        request.mutex.confirm(request.key, self.lease, &self.wait)
        try:
            token = new_token(self.library.slot(request.mutex.slot_id), request.raw_label, None)
        except BaseException:
            # The library was closed; perhaps close() came late enough to see to this lock itself.
            request.withdraw()
            raise
        token.claimed = request.hold
        return token

    def _pause(self, double delay):
        """Seconds until it is worth asking again; raises when the time is up."""
        cdef double limit = self.timeout
        if limit == 0 and self.refusal.rv != CKR_FUNCTION_FAILED:
            limit = ANSWER_SECONDS
        cdef double left = self.wait.began + limit - luna_now()
        if left <= 0:
            raise self._out_of_time()
        # The last one must leave the device time to answer.
        return min(delay, left / 2)

    def _out_of_time(self):
        cluster_id = self.cluster_id.decode()
        if self.refusal is None:
            return LockTimeoutError(
                f"the device has not given a token of cluster {cluster_id!r} within "
                f"{self.timeout:g} s, nor said that there is none. Nothing is locked; try again, "
                "or wait longer",
                function="CA_GetUnassignedSlot",
            )
        if self.refusal.rv != CKR_FUNCTION_FAILED:
            return self.refusal
        return NoUnassignedTokenError(
            f"cluster {cluster_id!r} has no unassigned token"
            + (f", and none became free within {self.timeout:g} s" if self.timeout else ""),
            rv=CKR_FUNCTION_FAILED,
            function="CA_GetUnassignedSlot",
        )


def may_change(error):
    """Whether the device's answer to a claim may be another one soon: none left, or busy."""
    return isinstance(error, CryptokiError) and (
        error.rv == CKR_FUNCTION_FAILED or says_busy(error.rv)
    )
