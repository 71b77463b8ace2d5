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

# In microseconds: how long a worker waits until its answer is heard by the event loop that it has told,
# before it asks for the GIL itself; and how long if another worker is just doing that.
cdef long long HEARD_WITHIN = 1000
cdef long long HEARD_BY_ANOTHER_WITHIN = 100000

cdef enum Job:
    NO_JOB
    WORK_IS_DUE     # work(subject), with the GIL
    CALL_IS_DUE     # a device call, without the GIL
    ANSWER_IS_DUE   # to hear the answer to it, which may take long
    DISMISSED

# For what a worker needs the GIL.
cdef enum Need:
    FOR_JOB
    FOR_ANSWERS     # no event loop has heard its answer in time
    TO_LEAVE        # it has waited long enough for a job

cdef struct Worker:
    luna_item link              # first: the next one whose answer is to be heard
    PyThread_type_lock wake     # released when there is a job
    uint8_t job                 # a Job, as a mark: a worker that sees it sees the rest of it
    Work work                   # the job
    void *subject               # its argument, with a reference
    SlotCall made               # the call that it makes, or has made
    Hear hear                   # what is to be done with its answer
    luna_bell *bell             # of the event loop that is told of the answer
    uint8_t heard               # a mark: the answer was heard, and the worker has nothing to do
    bint for_good               # marked before: it is not to end by itself
    Worker *behind              # the next idle worker
    long thread_id              # the operating system's ID of its thread

cdef luna_guard pool_guard
cdef Worker *idle_workers = NULL
cdef int idle_count = 0
# Threads that have been created and have not had the GIL yet.
cdef int beginning = 0
# Threads that have a job.
cdef int at_work = 0
# The workers whose calls have come back: those that no thread with the GIL has seen yet,
cdef luna_item *back = NULL
# and those that one has.
cdef luna_item *to_be_heard = NULL
# A mark: one of these workers may ask for the GIL.
cdef uint8_t may_ask = 1
# The interpreter is about to end; no thread could begin any more, or get the GIL.
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
    cdef bint is_new
    cdef Worker *worker = worker_for(subject, &is_new)
    if worker == NULL:
        return False
    worker.work = work
    luna_mark_as(&worker.job, WORK_IS_DUE)
    if is_new:
        return start_worker(worker)
    if wake != NULL:
        wake[0] = worker.wake
    else:
        PyThread_release_lock(worker.wake)
    return True


cdef bint leave_call_to_worker(
    SlotCall *made, Hear hear, object subject, luna_bell *bell
) noexcept:
    """Have a worker make a device call that has begun, without the GIL. The event loop with this bell hears
    its answer: it calls hear(subject, ...). False: no thread can be had.
    """
    cdef bint is_new
    cdef Worker *worker = worker_for(subject, &is_new)
    if worker == NULL:
        return False
    worker.made = made[0]
    worker.hear = hear
    worker.bell = luna_keep_bell(bell)
    luna_mark_as(&worker.job, CALL_IS_DUE)
    if is_new:
        return start_worker(worker)
    PyThread_release_lock(worker.wake)
    return True


cdef int hear_of_fork_quietly() noexcept:
    hear_of_fork()
    return 0


cdef Worker *worker_for(object subject, bint *is_new) noexcept:
    """A worker that has this subject, and no job yet: an idle one, or a new one, whose thread is still to
    be started. NULL: there is none.
    """
    cdef Worker *worker
    if luna_shared_get(&ended):
        # Nor would an idle one get the GIL any more, once the interpreter has taken it for its end.
        return NULL
    worker = take_idle_worker()
    is_new[0] = worker == NULL
    if worker == NULL:
        worker = new_worker()
    if worker != NULL:
        Py_INCREF(subject)
        worker.subject = <void *> subject
    return worker


cdef Worker *take_idle_worker() noexcept:
    """An idle worker, which is at work from now on; NULL: there is none."""
    global idle_workers, idle_count
    cdef Worker *worker
    if luna_number() == 0:
        # In a child whose fork Python has not heard of, the idle workers are the parent's.
        hear_of_fork_quietly()
    luna_guard_lock(&pool_guard)
    worker = idle_workers
    if worker != NULL:
        idle_workers = worker.behind
        idle_count -= 1
    luna_guard_unlock(&pool_guard)
    if worker != NULL:
        luna_shared_add(&at_work, 1)
    return worker


cdef Worker *new_worker() noexcept:
    """A worker without a thread; NULL: there can be none."""
    cdef Worker *worker = <Worker *> calloc(1, sizeof(Worker))
    if worker == NULL:
        return NULL
    worker.wake = PyThread_allocate_lock()
    if worker.wake == NULL:
        free(worker)
        return NULL
    PyThread_acquire_lock(worker.wake, NOWAIT_LOCK)
    return worker


cdef int free_worker(Worker *worker) noexcept:
    PyThread_free_lock(worker.wake)
    free(worker)
    return 0


cdef bint start_worker(Worker *worker) noexcept:
    """Start the thread of a new worker that has a job; if there can be none, the worker goes."""
    luna_shared_add(&beginning, 1)
    luna_shared_add(&at_work, 1)
    if PyThread_start_new_thread(live, worker) == PYTHREAD_INVALID_THREAD_ID:
        luna_shared_add(&beginning, -1)
        luna_shared_add(&at_work, -1)
        luna_drop_bell(worker.bell)
        Py_DECREF(<object> worker.subject)
        free_worker(worker)
        return False
    return True


cdef void live(void *argument) noexcept with gil:
    """What a worker's thread does: one job after the other, until it is dismissed."""
    cdef Worker *worker = <Worker *> argument
    # It begins with a job.
    cdef Need need = FOR_JOB
    cdef bint has_call
    become_worker()
    luna_shared_add(&beginning, -1)
    worker.thread_id = luna_thread_id()
    while True:
        # The thread that gives it a job next also releases `wake`, so the job is not looked at before that.
        has_call = need == FOR_JOB and luna_marked_as(&worker.job) == CALL_IS_DUE
        if need == FOR_ANSWERS:
            # In this order: a worker that has found it not marked has its answer heard here.
            luna_mark(&may_ask)
            hear_answers(NULL)
        elif need == TO_LEAVE:
            if leave_pool(worker):
                break
        elif luna_marked_as(&worker.job) == DISMISSED:
            break
        elif luna_marked_as(&worker.job) == WORK_IS_DUE:
            do_job(worker)
            back_to_pool(worker)
        elif luna_marked_as(&worker.job) == ANSWER_IS_DUE:
            hear_own_answer(worker)
            back_to_pool(worker)
        with nogil:
            gives_way()
            need = make_calls(worker, has_call)
    free_worker(worker)


cdef Need make_calls(Worker *worker, bint has_call) noexcept nogil:
    """Make device calls, and wait for the next job, until the worker needs the GIL."""
    cdef luna_bell *bell
    cdef Need need
    while True:
        if has_call:
            make_slot_call(&worker.made)
            bell = worker.bell
            worker.bell = NULL
            if worker.made.call.rv != CKR_OK:
                luna_drop_bell(bell)
                luna_mark_as(&worker.job, ANSWER_IS_DUE)
                return FOR_JOB
            luna_shared_set8(&worker.heard, 0)
            luna_push(&back, &worker.link)
            # From here on, the worker is that of the thread that hears its answer.
            luna_ring(bell)
            luna_drop_bell(bell)
        need = await_job(worker)
        has_call = need == FOR_JOB and luna_marked_as(&worker.job) == CALL_IS_DUE
        if not has_call:
            return need


cdef Need await_job(Worker *worker) noexcept nogil:
    """Wait for a job, or to be dismissed. One that is not kept for good ends by itself after a while."""
    cdef long long patience = HEARD_WITHIN
    while not luna_is_marked(&worker.heard):
        if PyThread_acquire_lock_timed(worker.wake, patience, 0) == PY_LOCK_ACQUIRED:
            return FOR_JOB
        if not luna_is_marked(&worker.heard) and luna_take_mark(&may_ask):
            return FOR_ANSWERS
        patience = HEARD_BY_ANOTHER_WITHIN
    if worker.for_good:
        PyThread_acquire_lock(worker.wake, WAIT_LOCK)
        return FOR_JOB
    if (
        PyThread_acquire_lock_timed(worker.wake, <long long> (1e6 * IDLE_SECONDS), 0)
        == PY_LOCK_ACQUIRED
    ):
        return FOR_JOB
    # If another thread has taken it out of the pool, that wakes it next.
    return TO_LEAVE


cdef int back_to_pool(Worker *worker) noexcept:
    """The worker has nothing to do any more: it is kept for the next job, or dismissed."""
    global idle_workers, idle_count
    cdef bint kept
    worker.subject = NULL
    luna_mark_as(&worker.job, NO_JOB)
    luna_shared_add(&at_work, -1)
    luna_guard_lock(&pool_guard)
    kept = idle_count < MOST_IDLE
    worker.for_good = not kept or idle_count < KEEP_IDLE
    if not kept:
        luna_mark_as(&worker.job, DISMISSED)
    luna_mark(&worker.heard)
    if kept:
        worker.behind = idle_workers
        idle_workers = worker
        idle_count += 1
    luna_guard_unlock(&pool_guard)
    if not kept:
        PyThread_release_lock(worker.wake)
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
    return 0


# ---- the answers to calls that were made without the GIL ----


cdef int hear_answers(luna_bell *here) noexcept:
    """Hear the answers of all calls that have come back. `here` is the bell of the event loop that does it;
    NULL: a worker does.
    """
    global to_be_heard
    cdef luna_item **end = &to_be_heard
    cdef luna_item *first
    if luna_number() == 0:
        # In a child whose fork Python has not heard of, they are the parent's.
        hear_of_fork_quietly()
    luna_guard_lock(&pool_guard)
    while end[0] != NULL:
        end = &end[0].next
    end[0] = luna_take_all(&back)
    luna_guard_unlock(&pool_guard)
    # A finalizer may run in between, and wait for an answer that is among these: each is taken alone.
    while True:
        luna_guard_lock(&pool_guard)
        first = to_be_heard
        if first != NULL:
            to_be_heard = first.next
        luna_guard_unlock(&pool_guard)
        if first == NULL:
            return 0
        hear_answer(<Worker *> first, here)


cdef int hear_answer(Worker *worker, luna_bell *here) noexcept:
    subject = <object> worker.subject
    cdef Heard heard = worker.hear(subject, &worker.made, here, False)
    if heard == NOT_HEARD:
        luna_mark_as(&worker.job, ANSWER_IS_DUE)
        PyThread_release_lock(worker.wake)
        return 0
    Py_DECREF(subject)
    back_to_pool(worker)
    if heard == TURN_IS_DUE:
        # Most often the same worker makes the next call.
        (<Waiter> subject).mutex.pass_turn()
    return 0


cdef int hear_own_answer(Worker *worker) noexcept:
    subject = <object> worker.subject
    Py_DECREF(subject)
    worker.hear(subject, &worker.made, NULL, True)
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
        luna_mark_as(&worker.job, DISMISSED)
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
    """Give no worker a job any more. A thread that was created already needs the interpreter when it
    begins, so it is waited for, until the deadline.
    """
    luna_shared_set(&ended, 1)
    return wait_for_none(&beginning, deadline)


cdef int forget_workers() except -1:
    """In a forked child: the workers exist only in the parent."""
    global idle_workers, idle_count, beginning, at_work, back, to_be_heard
    luna_guard_forget(&pool_guard)
    idle_workers = NULL
    back = NULL
    to_be_heard = NULL
    luna_mark(&may_ask)
    idle_count = 0
    beginning = 0
    at_work = 0
    return 0
