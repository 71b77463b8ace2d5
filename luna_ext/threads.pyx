"""Threads that start even while the interpreter exits.

Since 3.12 Python starts none then, and yet a handler of `atexit` may want a lock with a timeout.
"""

import _thread

from cpython.ref cimport Py_DECREF, Py_INCREF

from luna_ext.clock cimport luna_now, luna_pause
from luna_ext.pythread cimport PYTHREAD_INVALID_THREAD_ID, PyThread_start_new_thread

cdef int beginning = 0       # threads that have been created and have not had the GIL yet
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
    if ended:
        return False
    # The thread's own reference.
    Py_INCREF(life)
    beginning += 1
    if PyThread_start_new_thread(live, <void *> life) == PYTHREAD_INVALID_THREAD_ID:
        beginning -= 1
        Py_DECREF(life)
        return False
    return True


cdef void live(void *argument) noexcept with gil:
    """A thread's life, from its first moment. What it raises goes to sys.unraisablehook."""
    global beginning
    beginning -= 1
    life = <object> argument
    Py_DECREF(life)
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
