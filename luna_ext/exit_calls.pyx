"""The device calls of the interpreter's exit, bounded in time.

They run on a bare thread: Python's own cannot be started any more by then, and a call that never
returns must not keep the process.
"""

import time

from libc.stdlib cimport calloc, free

from luna_ext.answers cimport says_busy
from luna_ext.clock cimport luna_now, luna_pause
from luna_ext.cryptoki cimport CK_SLOT_ID, CA_UnlockClusteredSlot_t

cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock() noexcept nogil
    void PyThread_free_lock(PyThread_type_lock lock) noexcept nogil
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait) noexcept nogil
    void PyThread_release_lock(PyThread_type_lock lock) noexcept nogil
    unsigned long PyThread_start_new_thread(void (*run)(void *) noexcept nogil, void *job)
    const unsigned long PYTHREAD_INVALID_THREAD_ID
    const int NOWAIT_LOCK


cdef struct Job:
    CA_UnlockClusteredSlot_t unlock     # called for each of the slots
    C_Finalize_t finalize               # called last, unless NULL
    size_t count
    CK_SLOT_ID *slots
    PyThread_type_lock done             # released at the end


cdef bint unlock_until(CA_UnlockClusteredSlot_t unlock, list slot_ids, double deadline) except -1:
    """Unlock the slots; whether that was done by the deadline (time.monotonic() seconds)."""
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
    cdef double end = luna_now() + max(0.0, deadline - time.monotonic())
    cdef bint done
    PyThread_acquire_lock(job.done, NOWAIT_LOCK)
    if PyThread_start_new_thread(run_job, job) == PYTHREAD_INVALID_THREAD_ID:
        return False
    with nogil:
        done = PyThread_acquire_lock(job.done, NOWAIT_LOCK)
        # Not a timed wait, of which ThreadSanitizer does not know every form that CPython has.
        while not done and luna_now() < end:
            luna_pause(0.0005)
            done = PyThread_acquire_lock(job.done, NOWAIT_LOCK)
    if done:
        PyThread_release_lock(job.done)
        PyThread_free_lock(job.done)
        free(job)
    return done
