# Threads that make a device call for a caller that must be able to stop waiting for it.
#
# They are started when needed, below Python, which starts none while the interpreter exits; kept
# for the next job; and never joined: a device call may block for minutes and nothing can interrupt
# it, so the process must be able to exit without them.

cdef enum:
    # So many workers are kept for the next job for good,
    KEEP_IDLE = 8
    # and so many for a while: each slot that is locked and unlocked again and again needs one in turns.
    MOST_IDLE = 128

# How long a worker waits for a job that is not kept for good.
cdef double IDLE_SECONDS = 2.0
# How long a fork waits for the threads that have nothing to do to end.
cdef double DISMISSAL_SECONDS = 0.1
# How long a fork waits for workers that have a job: the job may be about to end. A longer wait would be in
# vain for a worker that is in a device call.
cdef double LAST_STEP_SECONDS = 0.005

cdef struct Worker:
    PyThread_type_lock wake     # released when there is a job
    Work work                   # the job
    void *subject               # its argument, with a reference
    Worker *behind              # the next idle worker
    long thread_id              # the operating system's ID of its thread

cdef luna_guard pool_guard
cdef Worker *idle_workers = NULL
cdef int idle_count = 0
# Threads that have been created and have not had the GIL yet.
cdef int beginning = 0
# Threads that have a job.
cdef int at_work = 0
# The interpreter is about to end; no thread could begin any more.
cdef int ended = 0


cdef bint run_on_worker(Work work, object subject) noexcept:
    """Run work(subject) on a thread of its own; do not wait for it. False: no thread can be had.

    Runs no byte code and allocates nothing that the garbage collector tracks, so that it can be
    called where no Python code may run.
    """
    return leave_to_worker(work, subject, NULL)


cdef bint leave_to_worker(Work work, object subject, PyThread_type_lock *wake) noexcept:
    """The same. If `wake` is not NULL, the caller may have to wake the worker, by releasing what `wake`
    points to then: at once, but it may give the GIL up before, so that the worker need not wait for it.
    """
    global idle_workers, idle_count
    cdef Worker *worker
    if luna_number() == 0:
        # In a child whose fork Python has not heard of, the idle workers are the parent's.
        hear_of_fork_quietly()
    luna_guard_lock(&pool_guard)
    worker = idle_workers
    if worker != NULL:
        Py_INCREF(subject)
        worker.work = work
        worker.subject = <void *> subject
        idle_workers = worker.behind
        idle_count -= 1
    luna_guard_unlock(&pool_guard)
    if worker != NULL:
        luna_shared_add(&at_work, 1)
        if wake != NULL:
            wake[0] = worker.wake
        else:
            PyThread_release_lock(worker.wake)
        return True
    return start_worker(work, subject)


cdef int hear_of_fork_quietly() noexcept:
    hear_of_fork()
    return 0


cdef bint start_worker(Work work, object subject) noexcept:
    cdef Worker *worker
    if luna_shared_get(&ended):
        return False
    worker = <Worker *> calloc(1, sizeof(Worker))
    if worker == NULL:
        return False
    worker.wake = PyThread_allocate_lock()
    if worker.wake == NULL:
        free(worker)
        return False
    PyThread_acquire_lock(worker.wake, NOWAIT_LOCK)
    Py_INCREF(subject)
    worker.work = work
    worker.subject = <void *> subject
    luna_shared_add(&beginning, 1)
    luna_shared_add(&at_work, 1)
    if PyThread_start_new_thread(live, worker) == PYTHREAD_INVALID_THREAD_ID:
        luna_shared_add(&beginning, -1)
        luna_shared_add(&at_work, -1)
        Py_DECREF(subject)
        PyThread_free_lock(worker.wake)
        free(worker)
        return False
    return True


cdef void live(void *argument) noexcept with gil:
    """What a worker's thread does: one job after the other, until it is dismissed."""
    global idle_workers, idle_count
    cdef Worker *worker = <Worker *> argument
    cdef bint kept = True
    cdef bint for_good
    become_worker()
    luna_shared_add(&beginning, -1)
    worker.thread_id = luna_thread_id()
    while kept:
        do_job(worker)
        luna_guard_lock(&pool_guard)
        kept = idle_count < MOST_IDLE
        for_good = idle_count < KEEP_IDLE
        if kept:
            worker.behind = idle_workers
            idle_workers = worker
            idle_count += 1
        luna_guard_unlock(&pool_guard)
        luna_shared_add(&at_work, -1)
        if kept:
            rest(worker, for_good)
            # Woken without a job: it is dismissed.
            luna_guard_lock(&pool_guard)
            kept = worker.work != NULL
            luna_guard_unlock(&pool_guard)
    PyThread_free_lock(worker.wake)
    free(worker)


cdef int rest(Worker *worker, bint for_good) noexcept:
    """Wait for a job, or to be dismissed. One that is not kept for good dismisses itself after a while."""
    cdef bint woken = True
    with nogil:
        gives_way()
        if for_good:
            PyThread_acquire_lock(worker.wake, WAIT_LOCK)
        else:
            woken = PyThread_acquire_lock_timed(
                worker.wake, <long long> (1e6 * IDLE_SECONDS), 0
            ) == PY_LOCK_ACQUIRED
    if not woken and not leave_pool(worker):
        # Another thread has taken it out of the pool, and wakes it next.
        with nogil:
            PyThread_acquire_lock(worker.wake, WAIT_LOCK)
    return 0


cdef bint leave_pool(Worker *worker) noexcept:
    """Take an idle worker out of the pool; False if it is not there any more."""
    global idle_count
    cdef Worker **place = &idle_workers
    cdef bint found
    luna_guard_lock(&pool_guard)
    while place[0] != NULL and place[0] != worker:
        place = &place[0].behind
    found = place[0] != NULL
    if found:
        place[0] = worker.behind
        idle_count -= 1
    luna_guard_unlock(&pool_guard)
    return found


cdef int do_job(Worker *worker) noexcept:
    # The subject is not kept until the next job comes: it may hold the last reference to a Library.
    subject = <object> worker.subject
    Py_DECREF(subject)
    if worker.work(subject) != 0:
        # Nor is it while the lock call lasts: only the mutex is.
        subject = (<Waiter> subject).mutex
        lock_for_next(subject)
    worker.work = NULL
    return 0


cdef int dismiss_idle_workers() noexcept:
    """End the idle workers, before a fork: Python wants a process to have only one thread then."""
    global idle_workers, idle_count
    cdef long[MOST_IDLE] ids
    cdef int count = 0
    cdef int index
    cdef Worker *worker
    cdef Deadline deadline
    wait_for_none(&at_work, deadline_in(LAST_STEP_SECONDS))
    deadline = deadline_in(DISMISSAL_SECONDS)
    luna_guard_lock(&pool_guard)
    worker = idle_workers
    idle_workers = NULL
    idle_count = 0
    luna_guard_unlock(&pool_guard)
    while worker != NULL:
        ids[count] = worker.thread_id
        count += 1
        # Read first: the worker frees itself when it ends.
        behind = worker.behind
        PyThread_release_lock(worker.wake)
        worker = behind
    with nogil:
        for index in range(count):
            while luna_thread_exists(ids[index]) and left_of(deadline) != 0:
                luna_pause(0.00005)
    return 0


cdef int call_function(object function) noexcept:
    """Call the function. What it raises, as a log handler might, goes to sys.unraisablehook."""
    function()
    return 0


cdef int call_on_worker(object function) except -1:
    """Call a Python function on a worker; do not wait for it."""
    if not run_on_worker(call_function, function):
        raise RuntimeError("can't start new thread")
    return 0


def start_thread(function):
    """Call `function()` on a thread of its own, which is never joined."""
    call_on_worker(function)


cdef int end_workers(Deadline deadline) except -1:
    """Start no more workers. A thread that was created already needs the interpreter when it begins,
    so it is waited for, until the deadline.
    """
    luna_shared_set(&ended, 1)
    return wait_for_none(&beginning, deadline)


cdef int forget_workers() except -1:
    """In a forked child: the workers exist only in the parent."""
    global idle_workers, idle_count, beginning, at_work
    idle_workers = NULL
    idle_count = 0
    beginning = 0
    at_work = 0
    return 0
