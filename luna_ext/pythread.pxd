"""pythread.h: threads and locks below Python's own. Only declarations."""

cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock() noexcept nogil
    void PyThread_free_lock(PyThread_type_lock lock) noexcept nogil
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait) noexcept nogil
    void PyThread_release_lock(PyThread_type_lock lock) noexcept nogil
    unsigned long PyThread_start_new_thread(void (*run)(void *) noexcept nogil, void *argument)
    const unsigned long PYTHREAD_INVALID_THREAD_ID
    const int NOWAIT_LOCK
