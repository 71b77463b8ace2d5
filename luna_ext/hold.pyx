"""The holding of a slot's lock in this process: by whom, since when, and whether it is lost."""

import logging
import os

from cpython.ref cimport Py_DECREF

from luna_ext.calls cimport token_label
from luna_ext.client cimport Client, Lease

from . import lock_errors
from .errors import CryptokiError
from .lock_errors import means_lost
from .tasks import current_task

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

    ctypedef struct PyFrameObject:
        pass

    ctypedef struct PyCodeObject:
        pass

    PyFrameObject *PyEval_GetFrame() noexcept
    PyCodeObject *PyFrame_GetCode(PyFrameObject *frame) noexcept
    int PyFrame_GetLasti(PyFrameObject *frame) noexcept
    int PyCode_Addr2Line(PyCodeObject *code, int lasti) noexcept

_log = logging.getLogger("luna_ext")


cdef class Hold:
    """Who holds a slot's lock; SlotMutex decides who gets it."""

    def __cinit__(self, Client client not None, slot_id):
        self.client = client
        self.slot_id = slot_id

    cdef int own(self, object key, Lease lease) except -1:
        """A new hold, by a thread (its ident) or a task."""
        if isinstance(key, int):
            return self.own_by_thread(key, lease)
        self.owner_task = key
        return self.own_by_thread(0, lease)

    cdef int own_by_thread(self, unsigned long ident, Lease lease) except -1:
        self.state |= OWNED
        self.owner = ident
        self.lease = lease
        self.hold += 1
        self.session = self.client.session
        self.claims_before = self.client.claims.newest
        return 0

    def held(self):
        """The number of the present hold by somebody in this process; 0 if there is none."""
        return self.hold if self.state & OWNED else 0

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
        raise lock_errors.not_owned(self.slot_id, who, function)

    cdef bytes ensure_held(self):
        """Ask the device for the token's label; a device that is gone has dropped the lock."""
        cdef bytes label = None
        self.check_mine("C_GetTokenInfo")
        cdef unsigned long long hold = self.hold
        if self.lost is None:
            try:
                label = token_label(self.client, self.slot_id)
            except CryptokiError as error:
                if not means_lost(error):
                    raise
                why = f"the device does not answer any more ({error.rv_name})"
                if self.hold == hold and self.is_mine():
                    self.lost = why
                raise lock_errors.lost(
                    self.slot_id, why, rv=error.rv, function=error.function
                ) from error
        if self.lost is not None:
            self.client.hold_back_at_exit()
            raise lock_errors.lost(self.slot_id, self.lost)
        if self.hold != hold or not self.is_mine():
            raise lock_errors.lost(self.slot_id, "its Library was closed")
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

    def lose(self, str reason):
        """Mark a held lock as lost, because it is about to be unlocked under its holder.

        Where it was taken, "" if it is being given back already; None if it is not held.
        """
        if not self.state & OWNED or self.lost is not None:
            return None
        self.lost = reason
        return "" if self.owner == 0 and self.owner_task is None else self.place()

    cdef int forget(self) except -1:
        """In a forked child: the lock is the parent's."""
        # Still true in a grandchild: the block began in the grandparent.
        self.inherited = self.inherited or self.owner_task is not None or self.is_mine()
        self.state = 0
        self.owner = 0
        self.owner_task = None
        self.lost = None
        self.place_code = None
        return 0

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
