"""The interpreter's exit: what is held is unlocked, the client libraries are finalised, in 2 s.

The device calls are made by a bare thread: Python's own cannot be started any more by then, and a
call that never returns must not keep the process.
"""

import logging
import warnings

from libc.stdlib cimport calloc, free

from luna_ext.answers cimport says_busy
from luna_ext.client cimport CLOSED, CLOSING, READY, Client
from luna_ext.clock cimport luna_now, luna_pause
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID, CA_UnlockClusteredSlot_t
from luna_ext.pythread cimport (
    NOWAIT_LOCK,
    PYTHREAD_INVALID_THREAD_ID,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_start_new_thread,
    PyThread_type_lock,
)
from luna_ext.threads cimport end_threads

from . import client as clients

_log = logging.getLogger("luna_ext")

ctypedef CK_RV (*C_Finalize_t)(void *pReserved) noexcept nogil

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef struct Job:
    CA_UnlockClusteredSlot_t unlock     # called for each of the slots
    C_Finalize_t finalize               # called last, unless NULL
    size_t count
    CK_SLOT_ID *slots
    PyThread_type_lock done             # released at the end


def shut_down_all():
    """What is registered with atexit."""
    cdef double deadline = luna_now() + clients.EXIT_SECONDS
    loaded = clients.loaded_clients()
    for client in loaded:
        (<Client> client).exits = PyThread_get_thread_ident()
    messages = [message for client in loaded for message in shut_down(client, deadline)]
    end_threads(deadline)
    for message in messages:
        try:
            warnings.warn(message, ResourceWarning, stacklevel=2)
        except ResourceWarning as warning:
            # A warning that is an error; there is nobody left to raise it to.
            _log.error("%s", warning)


cdef list shut_down(Client client, double deadline):
    """Unlock what is held and finalise, if the device answers. What there is to be said of it."""
    if client.state != READY and client.state != CLOSING:
        return []
    client.state = CLOSING
    places = {}
    for mutex in tuple(client.mutexes.values()):
        place = mutex.lose("the interpreter exits")
        if place is not None:
            places[mutex.slot_id] = place
    if not places or unlock_until(client.unlock_clustered_slot, list(places), deadline):
        # A call that somebody gave up on is not waited for. It may take for ever, and while one is
        # in flight the library cannot be finalised.
        client.drain(max(0.0, deadline - luna_now()), False)
        # Looked at afterwards, for who is draining with us may finalise meanwhile.
        if client.in_flight == 0 and client.initialised_here:
            client.initialised_here = False
            client.answers = False
            if finalize_until(client.functions.C_Finalize, deadline):
                client.state = CLOSED
    return [
        f"slot {slot_id} was still locked, {place}, when the interpreter exited"
        for slot_id, place in places.items()
        if place
    ]


cdef bint unlock_until(CA_UnlockClusteredSlot_t unlock, list slot_ids, double deadline) except -1:
    """Unlock the slots; whether that was done by the deadline (seconds of luna_now())."""
    cdef Job *job = new_job(len(slot_ids))
    job.unlock = unlock
    for index, slot_id in enumerate(slot_ids):
        job.slots[index] = slot_id
    return run_until(job, deadline)


cdef bint finalize_until(C_Finalize_t finalize, double deadline) except -1:
    """Finalise the client library; whether that was done by the deadline."""
    cdef Job *job = new_job(0)
    job.finalize = finalize
    return run_until(job, deadline)


cdef Job *new_job(size_t count) except NULL:
    cdef Job *job = <Job *> calloc(1, sizeof(Job) + count * sizeof(CK_SLOT_ID))
    if job == NULL:
        raise MemoryError()
    job.done = PyThread_allocate_lock()
    if job.done == NULL:
        free(job)
        raise MemoryError()
    job.count = count
    job.slots = <CK_SLOT_ID *> (job + 1)
    return job


cdef void run_job(void *argument) noexcept nogil:
    cdef Job *job = <Job *> argument
    cdef size_t index
    for index in range(job.count):
        while says_busy(job.unlock(job.slots[index])):
            luna_pause(0.02)
    if job.finalize != NULL:
        job.finalize(NULL)
    PyThread_release_lock(job.done)


cdef bint run_until(Job *job, double deadline) except -1:
    """Run the job; whether it was done by the deadline. If not, its thread keeps the job."""
    cdef bint done
    PyThread_acquire_lock(job.done, NOWAIT_LOCK)
    if PyThread_start_new_thread(run_job, job) == PYTHREAD_INVALID_THREAD_ID:
        return False
    with nogil:
        done = PyThread_acquire_lock(job.done, NOWAIT_LOCK)
        # Not a timed wait, of which ThreadSanitizer does not know every form that CPython has.
        while not done and luna_now() < deadline:
            luna_pause(0.0005)
            done = PyThread_acquire_lock(job.done, NOWAIT_LOCK)
    if done:
        PyThread_release_lock(job.done)
        PyThread_free_lock(job.done)
        free(job)
    return done
