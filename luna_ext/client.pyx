"""The loaded client library: its functions, C_Initialize, the calls in flight, fork, close."""

import logging
import os
import sys
import threading
import time

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memset

from luna_ext.claims cimport Claims
from luna_ext.cryptoki cimport (
    CK_C_GetFunctionList_t,
    CK_C_INITIALIZE_ARGS,
    CK_RV,
    CKF_OS_LOCKING_OK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_OK,
    CA_GetSlotId_t,
    CA_GetUnassignedSlot_t,
    CA_LockClusteredSlot_t,
    CA_UnlockClusteredSlot_t,
)
from luna_ext.functions cimport (
    C_FINALIZE,
    C_INITIALIZE,
    CA_GET_SLOT_ID,
    CA_GET_UNASSIGNED_SLOT,
    CA_LOCK_CLUSTERED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    FUNCTION_COUNT,
    error_of,
    name_of,
    stats_of,
)
from luna_ext.loader cimport luna_open, luna_open_error, luna_path_t, luna_symbol
from luna_ext.ticks cimport luna_measure_tick, luna_ticks
from luna_ext.workers cimport Workers

from . import holders
from .errors import LibraryClosedError, LibraryLoadError, UnsupportedFunctionError, rv_name

cdef extern from "Python.h":
    """
    #ifdef _WIN32
    #define luna_path_of(path) PyUnicode_AsWideCharString((path), NULL)
    #define luna_path_free(path) PyMem_Free((void *)(path))
    #else
    #define luna_path_of(path) PyBytes_AsString(path)
    #define luna_path_free(path) ((void)(path))
    #endif
    """
    unsigned long PyThread_get_thread_ident() noexcept nogil
    luna_path_t luna_path_of(object path) except NULL
    void luna_path_free(luna_path_t path) noexcept

EXIT_SECONDS = 2.0
# The exit's own time, and then time for a slow machine to come to its end.
HOLD_BACK_SECONDS = 3 * EXIT_SECONDS
# How long a new Library waits for abandoned calls of the one before, to begin with a clean slate.
REOPEN_SECONDS = 1.0
# How often close() looks whether the calls that are still out have been given up meanwhile.
RECOUNT_SECONDS = 0.05

_log = logging.getLogger("luna_ext")

# The loaded libraries by their handle. dlopen gives one handle per library, by whatever path,
# so that two Library objects on one library share its Client and through it every lock.
_clients = {}

# Known only here: `handle` is an address that has to come from the loader.
cdef object _KEY = object()


cdef Client load_client(str path):
    """The Client of the library at an absolute path; loads the library the first time."""
    cdef Client client
    cdef void *handle
    cdef char[512] reason
    encoded = path if sys.platform == "win32" else os.fsencode(path)
    cdef luna_path_t c_path = luna_path_of(encoded)
    try:
        with nogil:
            handle = luna_open(c_path)
            if handle == NULL:
                luna_open_error(reason, sizeof(reason))
    finally:
        luna_path_free(c_path)
    if handle == NULL:
        raise LibraryLoadError(
            f"{path!r} cannot be loaded as a library of this platform: "
            f"{(<bytes> (<const char *> reason)).decode('utf-8', 'replace')}"
        )
    key = <size_t> handle
    client = _clients.get(key)
    if client is None:
        client = _clients.setdefault(key, Client.__new__(Client, path, key, _KEY))
    return client


@cython.final
cdef class Lease:
    """One Library's share of a Client."""

    def __cinit__(self, Client client not None, str path not None):
        self.client = client
        self.path = path
        self.open = True
        self.evicted = {}


@cython.final
cdef class Client:
    """One loaded PKCS #11 library and this process's calls into it.

    There is one Client per library and process, shared by every Library object on it. It is
    never unloaded, for the vendor's threads may run in it; close() only finalises it.
    """

    def __cinit__(self, str path, size_t handle, key):
        cdef CK_C_GetFunctionList_t get_function_list
        cdef CK_RV rv
        if key is not _KEY:
            raise TypeError("a Client comes from load_client()")
        self.path = path
        self.handle = <void *> handle
        get_function_list = <CK_C_GetFunctionList_t> luna_symbol(
            self.handle, b"C_GetFunctionList"
        )
        if get_function_list == NULL:
            raise LibraryLoadError(
                f"{path!r} is a library, but no PKCS #11 module: "
                "it does not export C_GetFunctionList"
            )
        with nogil:
            rv = get_function_list(&self.functions)
            self.tick = luna_measure_tick()
        if rv != CKR_OK or self.functions == NULL:
            raise LibraryLoadError(
                f"{path!r} gives no function list: C_GetFunctionList: {rv_name(rv)}",
                rv=rv,
                function="C_GetFunctionList",
            )
        self.get_slot_id = <CA_GetSlotId_t> luna_symbol(self.handle, b"CA_GetSlotId")
        self.get_unassigned_slot = <CA_GetUnassignedSlot_t> luna_symbol(
            self.handle, b"CA_GetUnassignedSlot"
        )
        self.lock_clustered_slot = <CA_LockClusteredSlot_t> luna_symbol(
            self.handle, b"CA_LockClusteredSlot"
        )
        self.unlock_clustered_slot = <CA_UnlockClusteredSlot_t> luna_symbol(
            self.handle, b"CA_UnlockClusteredSlot"
        )
        self.is_stub = luna_symbol(self.handle, b"luna_stub_create") != NULL
        self.state = CLOSED
        self.transition = threading.Lock()
        self.leases = set()
        self.mutexes = {}
        self.workers = Workers()
        self.claims = Claims.__new__(Claims)

    cdef bint has(self, int function) noexcept:
        if function == CA_GET_SLOT_ID:
            return self.get_slot_id != NULL
        if function == CA_GET_UNASSIGNED_SLOT:
            return self.get_unassigned_slot != NULL
        if function == CA_LOCK_CLUSTERED_SLOT:
            return self.lock_clustered_slot != NULL
        if function == CA_UNLOCK_CLUSTERED_SLOT:
            return self.unlock_clustered_slot != NULL
        return True

    cdef int need(self, int function, str path) except -1:
        """Refuse, before anything was done, what the loaded client cannot do."""
        if not self.has(function):
            name = name_of(function)
            raise UnsupportedFunctionError(
                f"{path!r} does not export {name}: "
                "Luna client 10.6 and newer have it, other PKCS #11 libraries do not",
                function=name,
            )
        return 0

    def cluster_functions(self):
        """The names of the cluster extensions that the library exports."""
        functions = range(CA_GET_SLOT_ID, FUNCTION_COUNT)
        return frozenset(name_of(function) for function in functions if self.has(function))

    def open(self, path):
        """Initialise the library unless it is; a new user's Lease."""
        # First: a signal that is seen at the end would leave a lease that nobody ends.
        self._publish()
        if self.state == CLOSING:
            self.drain(-1, False)
            self.drain(REOPEN_SECONDS, True)
            self.call_came_back()
        lease = Lease(self, path)
        with self.transition:
            if self.state == CLOSING:
                # An abandoned call may take for ever. What it belongs to is as good as new.
                self.state = READY
            rv = CKR_OK if self.state == READY else self._initialise()
            if rv == CKR_OK:
                self.leases.add(lease)
        if rv != CKR_OK:
            raise error_of(rv, C_INITIALIZE, None)
        return lease

    def close(self, Lease lease not None, bint wait=True):
        """End a lease; with the last one, finalise after the last call came back.

        With `wait` false the finalisation is left to somebody who may wait: the next open(), or
        the interpreter's exit.
        """
        lease.open = False
        self.leases.discard(lease)
        if not self.leases and self.state == READY:
            self.state = CLOSING
        elif not self.leases and self.state == FORKED:
            self.state = CLOSED
        if wait:
            self.finish_closing()

    def finish_closing(self):
        """Wait until the library is finalised, if its last user has left.

        A lock call that somebody has given up on may take for ever; it is not waited for, and
        whoever made it finalises the library when it comes back.
        """
        while self.state == CLOSING and not self.leases:
            # Not under `transition`: a signal handler may close the library in here once more.
            self.drain(-1, False)
            self.call_came_back()
            if self.in_flight <= self.abandoned():
                return

    def call_came_back(self):
        """After a call that nobody may have waited for: finalise, if that is what is left to do."""
        cdef CK_RV rv = CKR_OK
        if self.state == CLOSING and not self.leases:
            with self.transition:
                if self.state == CLOSING and not self.leases and self.in_flight == 0:
                    rv = self._finalize()
        # Not under `transition`: logging runs Python code, which may come back here.
        if rv != CKR_OK:
            _log.warning("C_Finalize of %s: %s", self.path, rv_name(rv))

    def holds(self):
        """The slots that this process holds, each with the number of its hold."""
        held = {slot_id: mutex.held() for slot_id, mutex in tuple(self.mutexes.items())}
        return {slot_id: hold for slot_id, hold in held.items() if hold}

    def _publish(self):
        """Begin to tell who holds locks, if the environment asks for it; once in a process."""
        if not self.publishes and os.environ.get(holders.VARIABLE):
            self.publishes = True
            holders.publish(self.path, self.holds)

    def is_open(self):
        """Whether calls are possible, after a fork perhaps by initialising anew."""
        return self.state == READY or self.state == FORKED

    def stats(self):
        """What this process's calls have come to: {C function: FunctionStats}."""
        return stats_of(self.counters)

    cdef int make_ready(self) except -1:
        """begin_call()'s slow path: a fork's first call, or nobody may call any more."""
        cdef CK_RV rv = CKR_OK
        if self.state == FORKED:
            self._publish()
            with self.transition:
                if self.state == FORKED:
                    rv = self._initialise()
            if rv != CKR_OK:
                raise error_of(rv, C_INITIALIZE, None)
        if self.state != READY:
            self.refuse()
        return 0

    cdef int hold_back_at_exit(self) except -1:
        """Keep a thread from hearing, and telling on stderr, that the interpreter's exit has ended
        its lock or call. It seldom wakes up, as any daemon thread at exit.
        """
        if self.exits != 0 and self.exits != PyThread_get_thread_ident():
            time.sleep(HOLD_BACK_SECONDS)
        return 0

    cdef int refuse(self) except -1:
        self.hold_back_at_exit()
        raise LibraryClosedError(f"the library {self.path!r} is closed; open a new one to go on")

    def _initialise(self):
        """What C_Initialize answers, if an error. Under `transition`: no Python code may run."""
        cdef CK_C_INITIALIZE_ARGS arguments
        cdef CK_RV rv
        memset(&arguments, 0, sizeof(arguments))
        arguments.flags = CKF_OS_LOCKING_OK
        cdef uint64_t began
        with nogil:
            began = luna_ticks(self.tick)
            rv = self.functions.C_Initialize(&arguments)
            call_returned(self, C_INITIALIZE, began, rv)
        if rv != CKR_OK:
            # Somebody else in this process did it; then finalising is theirs, too.
            if rv != CKR_CRYPTOKI_ALREADY_INITIALIZED:
                return rv
        self.initialised_here = rv == CKR_OK
        self.answers = True
        self.session += 1
        self.state = READY
        return CKR_OK

    def _finalize(self):
        cdef CK_RV rv = CKR_OK
        cdef bint ours = self.initialised_here
        cdef uint64_t began
        self.initialised_here = False
        if ours:
            self.answers = False
            with nogil:
                began = luna_ticks(self.tick)
                rv = self.functions.C_Finalize(NULL)
                call_returned(self, C_FINALIZE, began, rv)
        self.state = CLOSED
        return rv

    cdef bint drain(self, double seconds, bint abandoned) except -1:
        """Wait until no call is in flight; -1: for ever. Whether that is so.

        Without `abandoned`, lock calls that nobody waits for any more are not waited for either.
        """
        deadline = time.monotonic() + seconds
        while self.in_flight > (0 if abandoned else self.abandoned()):
            left = RECOUNT_SECONDS if seconds < 0 else deadline - time.monotonic()
            if left <= 0:
                return False
            drained = threading.Lock()
            drained.acquire()
            self.drained = drained
            if self.in_flight:
                # Not only woken by the last call: calls may be given up, and several may wait.
                drained.acquire(timeout=min(left, RECOUNT_SECONDS))
        return True

    cdef Py_ssize_t abandoned(self) except -1:
        """How many lock calls and claims are in flight for which nobody waits."""
        locks = sum([mutex.is_abandoned() for mutex in tuple(self.mutexes.values())])
        return locks + self.claims.abandoned

    def after_fork(self):
        """In the child: nothing is held, nothing in flight; the first call initialises anew."""
        # A close() that another thread of the parent was in will not come to its end here.
        self.leases = {lease for lease in self.leases if (<Lease> lease).open}
        self.exits = 0
        if self.state == READY and self.leases:
            self.state = FORKED
        elif self.state != FORKED or not self.leases:
            self.state = CLOSED
        self.initialised_here = False
        self.answers = False
        self.publishes = False
        self.in_flight = 0
        self.claims = Claims.__new__(Claims)
        memset(self.counters, 0, sizeof(self.counters))
        self.transition = threading.Lock()
        self.drained = None
        self.workers = Workers()
        for mutex in self.mutexes.values():
            mutex.after_fork()


def loaded_clients():
    """All that this process has loaded."""
    return tuple(_clients.values())


def _after_fork_in_child():
    for client in loaded_clients():
        client.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
