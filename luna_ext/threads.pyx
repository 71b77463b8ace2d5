"""Threads that start even while the interpreter exits.

Since 3.12 Python starts none then, and yet a handler of `atexit` may want a lock with a timeout.
"""

import _thread

from luna_ext.clock cimport luna_now, luna_pause

from luna_ext.pythread cimport (
    NOWAIT_LOCK,
    PYTHREAD_INVALID_THREAD_ID,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_start_new_thread,
    PyThread_type_lock,
)

cdef struct Thread:
    void *life                  # the function to call, borrowed
    PyThread_type_lock begun    # released when the thread has the GIL and its own reference


cdef int beginning = 0       # threads that are being created or have not had the GIL yet
cdef bint ended = False      # the interpreter is about to go; none could begin any more


def start_thread(life):
    """Call `life()` on a new thread, which nobody joins; or raise, if none can be had."""
    try:
        _thread.start_new_thread(life, ())
    except RuntimeError:
        if not start_without_python(life):
            raise


cdef bint start_without_python(object life) except -1:
    """Do not ask Python whether it still wants a thread; whether there is one now."""
    global beginning
    cdef Thread thread
    if ended:
        return False
    thread.life = <void *> life
    thread.begun = PyThread_allocate_lock()
    if thread.begun == NULL:
        raise MemoryError()
    PyThread_acquire_lock(thread.begun, NOWAIT_LOCK)
    beginning += 1
    cdef bint created = PyThread_start_new_thread(live, &thread) != PYTHREAD_INVALID_THREAD_ID
    if created:
        # Its `thread` is ours, and it has to have the GIL before there is none any more.
        with nogil:
            PyThread_acquire_lock(thread.begun, WAIT_LOCK)
    else:
        beginning -= 1
    PyThread_free_lock(thread.begun)
    return created


cdef void live(void *argument) noexcept with gil:
    """A thread's life, from its first moment. What it raises goes to sys.unraisablehook."""
    global beginning
    cdef Thread *thread = <Thread *> argument
    life = <object> thread.life
    beginning -= 1
    PyThread_release_lock(thread.begun)
    life()


cdef int end_threads(double deadline) except -1:
    """Let no more begin. One that has been created has to find an interpreter, so it is waited for,
    until the deadline (seconds of luna_now()).
    """
    global ended
    ended = True
    while beginning > 0 and luna_now() < deadline:
        with nogil:
            luna_pause(0.0005)
    return 0
