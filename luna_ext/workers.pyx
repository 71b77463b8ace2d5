"""Threads that make a device call for somebody who must be able to stop waiting for it."""

from functools import partial
from queue import SimpleQueue

cimport cython

from .threads import start_thread

cdef enum:
    KEEP_IDLE = 8


@cython.final
cdef class Workers:
    """Threads that are started when needed, kept for the next job, and never joined.

    A device call may block for minutes and nothing can interrupt it, so the process must be able
    to exit without them.
    """

    def __cinit__(self):
        self.idle = []

    cdef int run(self, object job) except -1:
        """Run `job` on a thread of its own; do not wait for it.

        Runs no byte code, so that no signal handler can interrupt it half way: either it raises
        (no thread can be had) and the job will not run, or the job will run.
        """
        inbox = self.idle.pop() if self.idle else None
        if inbox is None:
            inbox = SimpleQueue()
            start_thread(partial(self.serve, inbox))
        inbox.put(job)
        return 0

    def serve(self, inbox):
        """A worker's life."""
        while True:
            job = inbox.get()
            run_job(job)
            # Not kept until the next one comes: it may hold the last reference to a Library.
            job = None
            if len(self.idle) >= KEEP_IDLE:
                return
            self.idle.append(inbox)


cdef void run_job(object job) noexcept:
    """What a job raises (in a handler of log records, say) goes to sys.unraisablehook."""
    job()
