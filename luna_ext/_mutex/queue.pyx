# The waiters: the numbers of threads, tasks and greenlets, how long they wait, and how they are
# woken.

# How long a caller with a timeout of 0 waits for the device's answer. There is no try-lock in the
# SDK, so only the answer shows that the lock was free.
cdef double ANSWER_SECONDS = 0.25
# The same for a greenlet, which stops all other greenlets of its thread meanwhile.
cdef double GREENLET_SECONDS = 0.1
# The pauses between tries of a call that the device turns down grow from the one to the other.
cdef double SHORTEST_PAUSE = 0.010
cdef double LONGEST_PAUSE = 0.250
# contention="poll", as benchmarks/polling.py has found it: the pause after a refusal is the longer one at
# first, and shrinks with the time waited, by so much in each second, so that a process that has waited long
# asks more often than one that has just come. Never more often than some 45 times a second.
cdef double POLL_PAUSE = 0.050
cdef double LEAST_POLL_PAUSE = 0.021
cdef double POLL_SHRINKS = 8.0
# While others are known to want the lock, a process that has had it for so long in a row leaves it to them
# for so long.
cdef double RUN_SECONDS = 0.120
cdef double OTHERS_SECONDS = 0.040
# What part of the time in which locks are handed over is left to other processes after it, but no more than
# the above.
cdef double OTHERS_SHARE = 0.04
# How often an event loop looks for waits that have become long, at most.
cdef double LOOK_SECONDS = 0.1
# For how long a refusal shows that others want the lock.
cdef double CONTENDED_SECONDS = 5.0

# ---- numbers ----

cdef luna_guard number_guard
cdef uint64_t last_number = 0
# Of each thread that has a number: the number -> the thread's ident.
cdef dict thread_idents = {}
# Of each task that has a number: a weak reference to the task -> its TaskMark. A WeakKeyDictionary does the
# same in Python code.
cdef dict task_marks = {}
cdef dict loaded_modules = <dict> PyImport_GetModuleDict()
cdef str GREENLET = sys.intern("greenlet")
cdef luna_watch greenlet_watch
luna_begin_watch(&greenlet_watch, loaded_modules, GREENLET)
cdef str MARK = "luna_ext"
cdef object weakref_of = weakref.ref


cdef uint64_t new_number() noexcept nogil:
    """A number that was never used in this process."""
    global last_number
    cdef uint64_t number
    luna_guard_lock(&number_guard)
    last_number += 1
    number = last_number
    luna_guard_unlock(&number_guard)
    return number


cdef class ThreadMark:
    """Lives in a thread's own dictionary: when it goes, the thread has ended."""
    cdef object __weakref__
    cdef uint64_t number     # the thread's
    cdef Inbox inbox         # of the event loop that waited last on this thread; or None


# Weak references to the ThreadMarks; each calls back when its thread ends.
cdef set marks = set()


cdef uint64_t introduce_thread() except 0:
    """Give the calling thread its number."""
    cdef ThreadMark mark
    cdef uint64_t number
    hear_of_fork()
    if luna_number() != 0:
        return luna_number()
    number = new_number()
    cdef unsigned long ident = PyThread_get_thread_ident()
    cdef bint is_main = luna_leads_process() or ident == threading.main_thread().ident
    own = <object> PyThreadState_GetDict()
    mark = ThreadMark.__new__(ThreadMark)
    mark.number = number
    own[MARK] = mark
    thread_idents[number] = ident

    def thread_ended(reference):
        marks.discard(reference)
        thread_idents.pop(number, None)
        if PyThread_get_thread_ident() == ident:
            # A thread of C code may come back to Python, which takes it for a new thread then; so it
            # needs a new number.
            introduce_here(0, False)
        when_thread_ended(number)

    if not is_main:
        marks.add(weakref.ref(mark, thread_ended))
    introduce_here(number, is_main)
    return number


cdef int introduce_here(uint64_t number, bint is_main) noexcept:
    """Set the number in this extension's copy, which each lock reads, and in the device layer's."""
    luna_introduce(number, is_main)
    introduce(number, is_main)
    return 0


cdef inline uint64_t thread_number() except 0:
    """The number of the calling thread."""
    cdef uint64_t number = luna_number()
    return number if number != 0 else introduce_thread()


cdef inline bint greenlets_may_run() noexcept:
    """Whether greenlet is imported in this process. Runs no byte code."""
    cdef PyObject *module = luna_watched(&greenlet_watch)
    # None keeps a module from being imported.
    return module != NULL and module != Py_None


cdef object loaded_module(str name):
    """A module if it is imported, else None."""
    cdef PyObject *found = luna_look_up(loaded_modules, name)
    if found == NULL:
        return None
    module = <object> found
    Py_DECREF(module)
    return module


cdef object of_loaded_module(str module, str name):
    """What a module calls by this name; None if it is not imported, or another thread is just importing
    it and has not come to that.
    """
    return getattr(loaded_module(module), name, None)


cdef uint64_t caller_number() except 0:
    """The number of the calling thread, or of the greenlet that it runs. Runs no byte code."""
    cdef uint64_t number = thread_number()
    return greenlet_number(number) if greenlets_may_run() else number


cdef uint64_t greenlet_number(uint64_t thread) except 0:
    getcurrent = of_loaded_module(GREENLET, "getcurrent")
    current = None if getcurrent is None else getcurrent()
    if current is None or current.parent is None:
        return thread
    own = current.__dict__
    number = own.get(MARK)
    if number is None:
        number = own.setdefault(MARK, new_number())
    return number


cdef bint in_greenlet_hub() except -1:
    """Whether other greenlets would stand still while the calling thread waits."""
    if not greenlets_may_run():
        return False
    gevents_hub = of_loaded_module("gevent._hub_local", "get_hub_if_exists")
    if gevents_hub is not None and gevents_hub() is not None:
        return True
    if hasattr(of_loaded_module("eventlet.hubs", "_threadlocal"), "hub"):
        return True
    getcurrent = of_loaded_module(GREENLET, "getcurrent")
    current = None if getcurrent is None else getcurrent()
    if current is None or current.parent is None:
        return False
    # gevent's pool of native threads runs its work in a greenlet, which waits for no other.
    return type(current).__name__ != "_WorkerGreenlet"


cdef double patience_here(double seconds) except? -2:
    """For how many of these seconds the calling thread may wait; -1: without limit. Less than that
    only where a wait would stop other greenlets.
    """
    if (seconds < 0 or seconds > GREENLET_SECONDS) and in_greenlet_hub():
        return GREENLET_SECONDS
    return seconds


@cython.final
@cython.no_gc
cdef class TaskMark:
    pass


def forget_task(reference):
    """Called when the task of this weak reference goes."""
    task_marks.pop(reference, None)


cdef TaskMark known_mark(object task):
    """The mark of a task that has a number; else None."""
    return task_marks.get(weakref_of(task))


cdef TaskMark mark_of_task(object task):
    cdef TaskMark mark = known_mark(task)
    if mark is None:
        mark = TaskMark.__new__(TaskMark)
        mark.number = new_number()
        mark.task = weakref_of(task, forget_task)
        mark = task_marks.setdefault(mark.task, mark)
    return mark


cdef uint64_t task_number(object task) except 0:
    """The number of an asyncio task."""
    return mark_of_task(task).number


# ---- what a holder has started ----

# The Lineage of each context. A context that is copied, as asyncio does for a task or a thread that a task
# starts, takes it along: so what a holder has started can be told from others.
cdef object lineages = ContextVar("luna_ext")
# Older ones are forgotten: tasks may start each other for ever.
cdef int LONGEST_LINEAGE = 16


@cython.final
@cython.no_gc
cdef class Lineage:
    pass


cdef Lineage present_lineage():
    cdef PyObject *found = NULL
    if PyContextVar_Get(<PyObject *> lineages, NULL, &found) != 0:
        luna_raise_pending()
    if found == NULL:
        return None
    lineage = <Lineage> found
    Py_DECREF(lineage)
    return lineage


cdef Lineage new_lineage(uint64_t number, Lineage parent):
    cdef Lineage lineage = Lineage.__new__(Lineage)
    lineage.number = number
    lineage.parent = parent
    lineage.length = 1 if parent is None else parent.length + 1
    return lineage


cdef int join_lineage(uint64_t number) except -1:
    """Before a lock is asked for: whatever this thread, task or greenlet starts may rely on it. A thread
    notes that it has done that in the context in which it is; see luna_joined_number().
    """
    cdef Lineage present
    # A context that has another Lineage is to be looked at again by its thread, too.
    luna_note_joined(False)
    if not is_of_lineage(number):
        present = present_lineage()
        if present is not None and present.length == LONGEST_LINEAGE:
            present = new_lineage(present.number, None)
        lineages.set(new_lineage(number, present))
    luna_note_joined(number == luna_number())
    return 0


cdef bint is_of_lineage(uint64_t number) except -1:
    """Whether the calling code was started by this thread, task or greenlet, or by what it has started."""
    cdef Lineage lineage = present_lineage()
    while lineage is not None:
        if lineage.number == number:
            return True
        lineage = lineage.parent
    return False


def current_task():
    """The asyncio task that this thread is running, or None; asyncio is not imported for it."""
    asyncio = loaded_module("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except (RuntimeError, AttributeError):
        # No loop runs; or another thread is just importing asyncio, and none runs yet.
        return None


def runs_loop():
    """Whether this thread is running an event loop of asyncio: in a task, in a callback, or in a signal
    handler between two of them.
    """
    asyncio = loaded_module("asyncio")
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except (RuntimeError, AttributeError):
        return False


# ---- time ----


cdef Deadline answer_by(double timeout) noexcept nogil:
    """When a wait with this timeout is over; -1: never. 0: it does not wait for another holder, but only
    the device's answer shows that the lock was free.
    """
    return deadline_in(timeout or ANSWER_SECONDS)


cdef double next_pause(Backoff *backoff) noexcept nogil:
    """Seconds to wait: random, from 10 ms to a limit that grows to 250 ms, so that clients that were
    turned down at the same moment do not ask again at the same moment.
    """
    backoff.longest = min(LONGEST_PAUSE, 2 * max(backoff.longest, SHORTEST_PAUSE))
    return SHORTEST_PAUSE + by_chance() * (backoff.longest - SHORTEST_PAUSE)


cdef double by_chance() noexcept nogil:
    """A random number from 0 to 1, of the clock's lowest bits, which differ from process to process."""
    cdef uint64_t bits = luna_nanoseconds() * <uint64_t> 0x9E3779B97F4A7C15
    return <double> (bits >> 11) / <double> (<uint64_t> 1 << 53)


cdef double about(double seconds) noexcept nogil:
    """So long, give or take a fifth: processes that were turned down together shall not ask together."""
    return seconds * (0.8 + 0.4 * by_chance())


cdef double poll_pause(double waited) noexcept nogil:
    """Seconds until a lock call is made again that found the lock with another process."""
    return about(max(LEAST_POLL_PAUSE, POLL_PAUSE / (1 + POLL_SHRINKS * waited)))


# ---- a lock that other processes want ----


cdef void note_contention(Rare *rare) noexcept nogil:
    """Another process had the lock. NULL: there is no memory to keep that."""
    if rare != NULL:
        luna_shared_set64(&rare.contention.met, microseconds_now())
        luna_shared_set64(&rare.contention.run_began, 0)


cdef inline bint is_contended(Rare *rare) noexcept nogil:
    return rare != NULL and luna_shared_get64(&rare.contention.met) != 0


cdef inline void note_grant(Rare *rare) noexcept nogil:
    if is_contended(rare) and luna_shared_get64(&rare.contention.run_began) == 0:
        luna_shared_set64(&rare.contention.run_began, microseconds_now())


cdef inline void note_unlock(Rare *rare) noexcept nogil:
    if is_contended(rare):
        luna_shared_set64(&rare.contention.freed, microseconds_now())


cdef double turn_of_others(Rare *rare) noexcept nogil:
    """Seconds that are left to other processes before the lock is asked for again."""
    cdef uint64_t met, run_began, now
    cdef double left, idle
    if not is_contended(rare):
        return 0
    met = luna_shared_get64(&rare.contention.met)
    now = microseconds_now()
    if now - met > <uint64_t> (1e6 * CONTENDED_SECONDS):
        luna_shared_set64(&rare.contention.met, 0)
        luna_shared_set64(&rare.contention.run_began, 0)
        return 0
    run_began = luna_shared_get64(&rare.contention.run_began)
    idle = 1e-6 * <double> (now - luna_shared_get64(&rare.contention.freed))
    if idle < OTHERS_SECONDS and now - run_began < <uint64_t> (1e6 * RUN_SECONDS):
        return 0
    # They have had their turn by now, or are given it.
    luna_shared_set64(&rare.contention.run_began, 0)
    if run_began == 0:
        return 0
    left = about(OTHERS_SECONDS) - idle
    return left if left > 0 else 0


cdef uint64_t microseconds_now() noexcept nogil:
    return <uint64_t> (1e6 * luna_now())


# ---- the tasks of an event loop ----

# Calls a function from a frame of Python, which uvloop's debug mode looks for. A thread that runs compiled
# code alone has none.
cdef object call_from_frame = eval("lambda function, argument: function(argument)")


cdef bint tell_loop(object reference, object call) except -1:
    """Have the event loop of a weak reference make a call without arguments. False: it is closed."""
    loop = reference()
    if loop is None:
        return False
    try:
        call_from_frame(loop.call_soon_threadsafe, call)
    except BaseException as error:
        if isinstance(error, Exception) and loop.is_closed():
            return False
        # It has no memory for that, or a signal handler has raised; and a task waits.
        again = run_on_worker(tell_loop_later, (reference, call))
        if not again or not isinstance(error, Exception):
            raise
    return True


cdef int tell_loop_later(object what) noexcept:
    """On a worker: try it again, until the event loop has been told, or is closed."""
    cdef Backoff backoff
    cdef bint logged = False
    reference, call = what
    backoff.longest = 0
    while True:
        with nogil:
            luna_pause(next_pause(&backoff))
        loop = reference()
        try:
            if loop is not None and not loop.is_closed():
                call_from_frame(loop.call_soon_threadsafe, call)
            return 0
        except Exception as error:
            # Not kept while this thread pauses.
            loop = None
            if not logged:
                logged = True
                tell_of_deaf_loop(repr(error))


cdef int tell_of_deaf_loop(str error) noexcept:
    log.error("an event loop cannot be told of a lock; that is tried again until it can: %s", error)
    return 0


@cython.final
cdef class Inbox:

    def __dealloc__(self):
        luna_drop_bell(self.bell)

    cdef bint put(self, object future) except -1:
        """Have the future that the weak reference `future` refers to settled. False: the loop is closed."""
        loop = self.loop()
        if loop is None:
            return False
        # In this order: the loop first notes that it was told, and then looks.
        self.came_in.append(future)
        if self.bell != NULL:
            if luna_shared_get(&self.hearing):
                # It looks next. No Python code may run while it hears answers.
                return True
            luna_ring(self.bell)
        if self.bell != NULL or not luna_shared_set_once(&self.told):
            # A closed loop never looks.
            return not loop.is_closed()
        try:
            told = tell_loop(self.loop, self.look)
        except BaseException:
            luna_shared_set(&self.told, 0)
            raise
        if not told:
            luna_shared_set(&self.told, 0)
            self.came_in.clear()
        return told

    def look(self):
        """In the event loop: settle what has come in."""
        # In a forked child, where the loop may go on, the bell is still the parent's.
        if self.bell != NULL and self.made_in == forks:
            luna_answer_bell(self.bell)
            luna_shared_set(&self.hearing, 1)
            hear_answers(self.bell)
            luna_shared_set(&self.hearing, 0)
        luna_shared_set(&self.told, 0)
        try:
            while self.came_in:
                settle_now(self.came_in.popleft())
        finally:
            # A signal handler has raised: the others have to be settled anyway.
            if self.came_in:
                if self.bell != NULL:
                    luna_ring(self.bell)
                elif luna_shared_set_once(&self.told):
                    self.loop().call_soon(self.look)

    cdef int watch(self, Waiter waiter) except -1:
        """Have a wait that now begins warned of when it becomes long, unless it is taken out of `waits`.
        One timer serves all.
        """
        self.waits[waiter] = None
        if not self.watches:
            # In this order, for a signal handler may raise.
            self.loop().call_later(LONG_WAIT_SECONDS, self.look_for_long_waits)
            self.watches = True
        return 0

    def look_for_long_waits(self):
        """In the event loop."""
        cdef double left
        self.watches = False
        for waiter in list(self.waits):
            left = (<Waiter> waiter).wait.began + LONG_WAIT_SECONDS - luna_now()
            if left > 0:
                self.loop().call_later(max(left, LOOK_SECONDS), self.look_for_long_waits)
                self.watches = True
                return
            self.waits.pop(waiter, None)
            # Not here: a log handler may raise.
            self.loop().call_soon(warn_of_lock, waiter, (<Waiter> waiter).mutex)


# Of each event loop that has one: the loop -> its Inbox. Both are weak; the loop keeps the Inbox.
cdef object inboxes = weakref.WeakKeyDictionary()


cdef Inbox inbox_of(object loop):
    """For the tasks of the event loop that this thread runs: what all of them share."""
    cdef ThreadMark mark = (<dict> PyThreadState_GetDict()).get(MARK)
    cdef Inbox inbox = None if mark is None else mark.inbox
    if inbox is None or inbox.loop() is not loop:
        reference = inboxes.get(loop)
        inbox = None if reference is None else reference()
    # In a forked child, the thread that was to tell the loop may exist in the parent only.
    if inbox is None or inbox.made_in != forks:
        inbox = new_inbox(loop, inbox is None)
        inboxes[loop] = weakref.ref(inbox)
    if mark is not None:
        mark.inbox = inbox
    return inbox


cdef Inbox new_inbox(object loop, bint with_bell):
    """Without a bell in a forked child, for a loop that shares its selector with the parent's; and where
    there is no GIL that a worker could do without.
    """
    cdef Inbox inbox = Inbox.__new__(Inbox)
    inbox.loop = weakref.ref(loop)
    inbox.came_in = deque()
    inbox.waits = {}
    inbox.made_in = forks
    inbox.bell = luna_new_bell() if with_bell and LUNA_GIL else NULL
    if inbox.bell != NULL:
        try:
            loop.add_reader(luna_bell_fd(inbox.bell), inbox.look)
        except Exception:
            # It does not look at file descriptors, or not at one more.
            luna_drop_bell(inbox.bell)
            inbox.bell = NULL
    return inbox


# ---- one wait ----


cdef class Waiter:

    def __dealloc__(self):
        if self.signal != NULL:
            PyThread_free_lock(self.signal)

    cdef int prepare(self, uint64_t number, uint64_t home, Share share) except -1:
        self.share = share
        self.seat.number = number
        self.seat.home = home
        self.seat.share = share.number
        self.seat.poll = share.poll
        self.seat.waiter = <void *> self
        return 0

    cdef int wait_in_thread(self) except -1:
        """The calling thread is the one that waits."""
        self.signal = new_signal()
        return 0

    cdef int wait_in_task(self, object future) except -1:
        """A task of this thread's event loop awaits the future, which is kept weakly: a task that nothing
        else keeps can never run again, and has to be collected.
        """
        cdef Inbox earlier = self.inbox
        cdef Inbox inbox = earlier if earlier is not None else inbox_of(future.get_loop())
        cdef object reference = weakref_of(future)
        # The thread that ends the wait may look at them just now. None is freed under the guard.
        luna_guard_lock(&self.guard)
        self.inbox = inbox
        self.future = reference
        luna_guard_unlock(&self.guard)
        self.seat.bell = inbox.bell
        return 0

    cdef int be_told_with(self, Waiter other) noexcept:
        """What is to be told is told to the event loop of this other one's task, which may wait later."""
        self.inbox = other.inbox
        self.seat.bell = other.seat.bell
        return 0

    cdef bint wake(self) except -1:
        """Wake the thread or task, whose wait has ended. False: the task can never run again."""
        if self.signal != NULL:
            PyThread_release_lock(self.signal)
            return True
        cdef Inbox inbox
        luna_guard_lock(&self.guard)
        inbox = self.inbox
        future = self.future
        luna_guard_unlock(&self.guard)
        if future is None:
            return False
        if future() is None:
            # The task awaits it no more: its time was up, and it has seen for itself how its wait stands;
            # or it was collected, and its coroutine withdraws. What it was granted may be in use by now.
            return True
        return inbox.put(future)

    cdef object failure(self):
        """The exception of FAILED, which the calling thread is to raise."""
        hold_back_at_exit()
        if self.error is None and self.signal != NULL:
            # The thread that has ended the wait sets `error` next, and then wakes the waiter.
            with nogil:
                PyThread_acquire_lock(self.signal, WAIT_LOCK)
        return self.error


cdef int sit_out(
    Waiter waiter, Wait *wait, Deadline deadline, object warn, PyThread_type_lock wake
) except -1:
    """Wait until the waiter is woken, or until the deadline. If that becomes long, `warn` is called. `wake`
    is released as soon as the wait begins, unless it is NULL.
    """
    cdef double long_from = wait.began + LONG_WAIT_SECONDS
    # A wait whose limit is about LONG_WAIT_SECONDS ends with an error instead.
    if deadline.end > long_from + 0.1:
        if release_and_wait_on(wake, waiter.signal, max(0.0, long_from - luna_now())):
            return 0
        wake = NULL
        warn()
    release_and_wait_on(wake, waiter.signal, left_of(deadline))
    return 0


def settle(future):
    """In the event loop: give the future that the weak reference `future` refers to its result."""
    settle_now(future)


cdef int settle_now(object reference) except -1:
    future = reference()
    if future is not None and not future.done():
        future.set_result(None)
    return 0


cdef int wake_unlinked(Seat *seat, object error) except -1:
    """Wake a waiter that was just taken out of the queue, which held a reference to it."""
    cdef Waiter waiter = <Waiter> seat.waiter
    Py_DECREF(waiter)
    return wake_with(waiter, error)


cdef int wake_with(Waiter waiter, object error) except -1:
    """Wake a waiter whose wait has ended, in this error unless it is None."""
    if error is not None:
        waiter.error = error
    try:
        return waiter.wake()
    except BaseException:
        # A signal handler raised while the event loop was called. The waiter has to be woken anyway.
        waiter.wake()
        raise
