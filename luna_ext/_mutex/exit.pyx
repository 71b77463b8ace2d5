# The ends: of a Library, of a thread, of the interpreter; and the fork, which ends all but one
# thread.

# How long the interpreter's exit may take, whatever the device does, and even if threads wait for each
# other.
cdef double EXIT_SECONDS = 2.0
# How much of that is left when the device is not waited for any more. Threads get the error that their
# library is closed at the end of EXIT_SECONDS; most often the interpreter is gone by then.
cdef double LAST_SECONDS = 0.25

# How long close() waits for a thread that is between two calls of an assignment.
cdef double WORK_SECONDS = 1.0

# ---- of a Library ----


cdef int close_client(Locks locks, Share share, bint wait) except -1:
    """End a Library's share, after its locks have come off; with the last one the client is
    finalised.

    Without `wait` the finalising is left to the next Library that is opened, or to the exit.
    """
    locks.client.part(share)
    return finish_closing(locks) if wait else 0


cdef int finish_closing(Locks locks) except -1:
    """Wait until the client is finalised, if its last user has left.

    A call that was given up may take for ever; it is not waited for, and the worker that makes it
    finalises the client when it comes back.
    """
    cdef Client client = locks.client
    cdef Deadline deadline = deadline_in(WORK_SECONDS)
    cdef int out
    # What the parent has left behind is not finalised here.
    hear_of_fork()
    while (
        luna_shared_get(&client.state) == RECONNECTING and not client.shares and left_of_exit() != 0
    ):
        # The thread that initialises it anew does not finalise it.
        client.wait_for_change()
    while luna_shared_get(&client.state) == CLOSING and not client.shares and left_of_exit() != 0:
        client.wait_for_calls(-1, locks.calls_given_up())
        if locks.are_relied_on() and left_of(deadline) > 0:
            # Its logout may be still to come, and the login is that of other processes as well where they
            # have one application ID. Not for longer: the work may be this thread's own, in whose signal
            # handler it closes.
            with nogil:
                luna_pause(0.001)
            continue
        call_came_back(locks)
        out = client.in_flight()
        # Without the GIL, a call may just have come back that had kept C_Finalize from being called.
        if out != 0 and out <= locks.calls_given_up():
            break
    return 0


cdef int call_came_back(Locks locks) except -1:
    """After a call that its caller may have given up: finalise the client if this was the last call
    that close() left behind.
    """
    cdef CK_RV rv = CKR_OK
    if luna_shared_get(&locks.client.state) == CLOSING:
        rv = locks.client.finalize()
    if rv != CKR_OK:
        log.warning("C_Finalize of %s: %s", locks.client.path, rv_name(rv))
    return 0


cdef int plain_call_came_back(Locks locks) noexcept:
    """The same for an event loop, which had found the client ready just before."""
    if luna_shared_get(&locks.client.state) == CLOSING:
        run_on_worker(call_came_back_late, locks)
    return 0


cdef int call_came_back_late(object locks) noexcept:
    call_came_back(locks)
    return 0


# ---- of a thread ----


cdef int when_thread_ended(uint64_t number) except -1:
    """In a thread that ends: have its locks taken off, for it will never release them."""
    if exit_has_begun() or luna_shared_get(&ended):
        return 0
    for client in loaded_clients():
        if (<Client> client).locks is None:
            continue
        for mutex in (<Locks> (<Client> client).locks).all():
            if seen(&(<SlotMutex> mutex).record).owner == number:
                later = partial(take_after_a_while, mutex, number)
                if not run_on_worker(call_function, later):
                    # No thread can be had. What this thread has kept finds the lock gone.
                    mutex.take_from_ended_thread(number)
    return 0


def take_after_a_while(SlotMutex mutex not None, number):
    """Take off the lock of an ended thread, unless something that the thread kept releases it first."""
    with nogil:
        luna_pause(ENDED_SECONDS)
    mutex.take_from_ended_thread(number)


# ---- of the interpreter ----

# The device calls are made by a thread that Python does not know and so does not wait for: a call may
# never return.

cdef struct LastCalls:
    CK_FUNCTION_LIST *functions
    CA_UnlockClusteredSlot_t unlock     # called for each of the slots
    Canary canary                       # asked for before; of generation 0: there is none
    bint lost                           # the canary is gone, and nothing is unlocked any more
    bint finalises                      # C_Finalize is called last
    size_t count
    CK_SLOT_ID *slots
    PyThread_type_lock done             # released at the end


def shut_down_all():
    """The handler of atexit: unlock what is held and finalise the clients, within 2 seconds."""
    cdef Deadline deadline = deadline_in(EXIT_SECONDS - LAST_SECONDS)
    # What the parent holds is not unlocked here.
    hear_of_fork()
    clients = loaded_clients()
    begin_exit(deadline_in(EXIT_SECONDS))
    messages = [message for client in clients for message in shut_down(client, deadline)]
    end_workers(deadline)
    for message in messages:
        log.error("%s", message)
        try:
            warnings.warn(message, ResourceWarning, stacklevel=2)
        except ResourceWarning:
            # The application turns warnings into errors, and there is no caller to get the error.
            pass


cdef list shut_down(Client client, Deadline deadline):
    """Unlock what is held and finalise, if the device answers. Returns the warnings' messages."""
    cdef SlotMutex mutex
    cdef Locks locks
    cdef Record now
    cdef int state = luna_shared_get(&client.state)
    if state != READY and state != CLOSING:
        return []
    client.refuse_new_calls()
    locks = locks_of(client)
    slot_ids = []
    messages = []
    for each in locks.all():
        mutex = <SlotMutex> each
        hold = mutex.holds()
        now = seen(&mutex.record)
        if hold and lose(&mutex.record, hold, EXITING, &locks.common):
            # While a call is at work that may erase the token, no other program may have it: C_Finalize, or
            # the end of the process, drops its lock.
            if now.generation == <uint32_t> locks.generation() and now.working == 0:
                slot_ids.append(mutex.slot_id)
            messages.append(
                f"slot {mutex.slot_id} was still locked, {mutex.place()}, when the interpreter "
                "exited"
            )
    if not slot_ids or unlock_until(client, slot_ids, deadline):
        # A call that was given up is not waited for. It may take for ever, and while one is in
        # flight the library cannot be finalised.
        while client.in_flight() > locks.calls_given_up() and left_of(deadline) != 0:
            client.wait_for_calls(left_of(deadline), locks.calls_given_up())
        # Checked only now: a close() that waits for the same calls may have finalised meanwhile.
        if client.take_finalising() and finalize_until(client, deadline):
            client.note_finalised()
    return messages


cdef bint unlock_until(Client client, list slot_ids, Deadline deadline) except -1:
    """Unlock the slots, unless the library turns out to be finalised; whether that was done in time."""
    cdef LastCalls *calls = new_calls(client, len(slot_ids))
    cdef bint lost = False
    cdef bint done
    luna_guard_lock(&client.guard)
    if client.canary.generation == luna_shared_get64(&client.generation):
        calls.canary = client.canary
    luna_guard_unlock(&client.guard)
    for index, slot_id in enumerate(slot_ids):
        calls.slots[index] = slot_id
    done = make_until(calls, deadline, &lost)
    if lost:
        # Other code has initialised the library anew, and finalises it.
        client.initialised_here = False
    return done


cdef bint finalize_until(Client client, Deadline deadline) except -1:
    """Finalise the client library; whether that was done by the deadline."""
    cdef LastCalls *calls = new_calls(client, 0)
    cdef bint lost
    calls.finalises = True
    return make_until(calls, deadline, &lost)


cdef LastCalls *new_calls(Client client, size_t count) except NULL:
    cdef LastCalls *calls = <LastCalls *> calloc(1, sizeof(LastCalls) + count * sizeof(CK_SLOT_ID))
    if calls == NULL:
        raise MemoryError()
    calls.done = PyThread_allocate_lock()
    if calls.done == NULL:
        free(calls)
        raise MemoryError()
    calls.functions = client.functions
    calls.unlock = client.unlock_clustered_slot
    calls.count = count
    calls.slots = <CK_SLOT_ID *> (calls + 1)
    return calls


cdef void make_last_calls(void *argument) noexcept nogil:
    cdef LastCalls *calls = <LastCalls *> argument
    cdef size_t index
    cdef Backoff backoff
    if calls.count != 0:
        look_for_loss(calls)
    for index in range(calls.count):
        backoff.longest = 0
        while not calls.lost and says_busy(calls.unlock(calls.slots[index])):
            luna_pause(next_pause(&backoff))
            look_for_loss(calls)
    if calls.finalises:
        calls.functions.C_Finalize(NULL)
    PyThread_release_lock(calls.done)


cdef void look_for_loss(LastCalls *calls) noexcept nogil:
    """Before an unlock: another process may have the lock by now."""
    if calls.canary.generation != 0 and shows_loss(calls.functions, &calls.canary):
        calls.lost = True


cdef bint make_until(LastCalls *calls, Deadline deadline, bint *lost) except -1:
    """Make the calls; whether that was done by the deadline. If not, their thread keeps them. `lost`: what
    they have found.
    """
    cdef bint done
    PyThread_acquire_lock(calls.done, NOWAIT_LOCK)
    if PyThread_start_new_thread(make_last_calls, calls) == PYTHREAD_INVALID_THREAD_ID:
        return False
    with nogil:
        done = PyThread_acquire_lock(calls.done, NOWAIT_LOCK)
        # Not a timed wait, of which ThreadSanitizer does not know every form that CPython has.
        while not done and left_of(deadline) != 0:
            luna_pause(0.0005)
            done = PyThread_acquire_lock(calls.done, NOWAIT_LOCK)
    if done:
        lost[0] = calls.lost
        PyThread_release_lock(calls.done)
        PyThread_free_lock(calls.done)
        free(calls)
    return done


atexit.register(shut_down_all)


# ---- the fork ----


# The number of the thread that has forked. In the child it has none at first, so that the next look for it
# comes to introduce_thread().
cdef uint64_t number_at_fork = 0
cdef bint number_is_forgotten = False


cdef void forget_number() noexcept nogil:
    """In a child, also of a fork that Python does not hear of."""
    global number_at_fork, number_is_forgotten
    # In a child's child, it may be forgotten already.
    if not number_is_forgotten:
        number_at_fork = luna_number()
    number_is_forgotten = True
    luna_introduce(0, False)


def _after_fork_in_child():
    global forks, watching, watch_stop, number_is_forgotten
    forks += 1
    # It may have forked in the midst of a worker's call, which is the parent's.
    luna_note_asking(NULL)
    luna_guard_forget(&number_guard)
    watching = 0
    watch_stop = new_signal()
    forget_workers()
    forget_heartbeats()
    number = number_at_fork
    number_is_forgotten = False
    if number != 0:
        # The child's only thread is its main thread, whatever it was in the parent.
        introduce_here(number, True)
    for client in loaded_clients():
        if (<Client> client).locks is not None:
            (<Client> client).locks.after_fork()


def _before_fork():
    stop_watching()
    stop_keeper()
    dismiss_idle_workers()


def _after_fork_in_parent():
    resume_keeper()


# In the child, after the device layer's own, which has been registered before.
do_in_child(_after_fork_in_child)
luna_at_fork_in_child(forget_number)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
