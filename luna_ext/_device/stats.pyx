# The C functions that are called: their names, their errors, and what is counted of each.

NAMES = (
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_SetPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_GetSessionInfo",
    "C_Login",
    "C_Logout",
    "CA_ChangeLabel",
    "CA_GetSlotId",
    "CA_GetUnassignedSlot",
    "CA_LockClusteredSlot",
    "CA_UnlockClusteredSlot",
)
# The name under which errors are counted that found no place in their function's table.
OTHER_ERRORS = "other"

cdef enum:
    MOST_CODES = 16

# The codes that errors.py says mean "busy", and "lost", for C; 0 ends them.
cdef CK_RV[MOST_CODES] busy_codes
cdef CK_RV[MOST_CODES] lost_codes


cdef int learn_codes(CK_RV *codes, object meaning) except -1:
    known = codes_that_mean(meaning)
    if len(known) >= MOST_CODES:
        raise ValueError(f"more than {MOST_CODES - 1} codes mean {meaning}")
    for index, rv in enumerate(known):
        codes[index] = rv
    return 0


learn_codes(busy_codes, Meaning.BUSY)
learn_codes(lost_codes, Meaning.LOST)


cdef bint is_among(CK_RV rv, CK_RV *codes) noexcept nogil:
    cdef int index = 0
    while codes[index] != 0:
        if codes[index] == rv:
            return True
        index += 1
    return False


cdef bint says_busy(CK_RV rv) noexcept nogil:
    """Whether nothing was done, and the same call may succeed later."""
    return is_among(rv, busy_codes)


cdef bint says_lost(CK_RV rv) noexcept nogil:
    """Whether the device does not know this application any more, nor its locks."""
    return is_among(rv, lost_codes)


cdef str name_of(int function):
    return NAMES[function]


cdef object error_of(CK_RV rv, int function, object slot_id):
    return error_for(rv, NAMES[function], slot_id)


cdef uint64_t total(Traffic *traffic, size_t place) noexcept nogil:
    """The sum, over all shards, of the number at this offset in a Traffic."""
    cdef uint64_t sum = 0
    cdef int shard
    for shard in range(LUNA_SHARDS):
        sum += luna_count_get(<uint64_t *> (<char *> &traffic[shard] + place))
    return sum


cdef size_t place_of(Traffic *traffic, uint64_t *number) noexcept nogil:
    return <size_t> (<char *> number - <char *> traffic)


cdef double average_seconds(Client client, int function) noexcept:
    """How long a call of this C function takes; 0: none was made."""
    cdef Traffic *traffic = client.traffic
    cdef luna_counter *counter = &traffic.counters[function]
    cdef uint64_t calls = 0
    cdef int n
    luna_add_untimed(counter)
    for n in range(LUNA_DURATIONS):
        calls += total(traffic, place_of(traffic, &counter.lengths.durations[n]))
    if calls == 0:
        return 0
    return 1e-9 * total(traffic, place_of(traffic, &counter.lengths.nanoseconds)) / calls


# ---- of locks ----


cdef void count_wait(Client client, uint64_t nanoseconds) noexcept nogil:
    """A lock was got so long after it was asked for."""
    if nanoseconds >= LUNA_FAST:
        luna_count_length(&client.traffic[luna_shard()].waits, nanoseconds)


cdef void count_hold(Client client, uint64_t nanoseconds) noexcept nogil:
    """A lock comes off that was held so long; those are not counted here that were held for less than a
    tick of the coarse clock.
    """
    luna_count_length(&client.traffic[luna_shard()].holds, nanoseconds)


cdef void count_timeout(Client client) noexcept nogil:
    luna_count_add(&client.traffic[luna_shard()].timeouts, 1)


cdef tuple lengths_of(Traffic *traffic, luna_lengths *lengths):
    """A histogram, and the seconds of all together."""
    histogram = tuple([
        total(traffic, place_of(traffic, &lengths.durations[n])) for n in range(LUNA_DURATIONS)
    ])
    return histogram, total(traffic, place_of(traffic, &lengths.nanoseconds)) / 1e9


# ---- for the application ----


cdef dict stats_of(Traffic *traffic):
    """FunctionStats of each function that was called, by name. Other threads may count meanwhile."""
    from .info import FunctionStats

    cdef luna_counter *counter
    cdef uint64_t longest
    cdef int shard
    stats = {}
    for function in range(FUNCTION_COUNT):
        counter = &traffic.counters[<int> function]
        luna_add_untimed(counter)
        histogram, seconds = lengths_of(traffic, &counter.lengths)
        if any(histogram):
            longest = 0
            for shard in range(LUNA_SHARDS):
                longest = max(
                    longest, luna_count_get(&traffic[shard].counters[<int> function].longest)
                )
            stats[NAMES[function]] = FunctionStats(
                calls=sum(histogram),
                errors=errors_of(traffic, function),
                total_seconds=seconds,
                max_seconds=longest / 1e9,
                histogram=histogram,
                timed=total(traffic, place_of(traffic, &counter.timed)),
            )
    return stats


cdef dict errors_of(Traffic *traffic, int function):
    cdef luna_counter *counter
    cdef uint64_t count
    cdef int shard
    errors = {}
    for shard in range(LUNA_SHARDS):
        counter = &traffic[shard].counters[function]
        for place in range(LUNA_ERRORS):
            count = luna_count_get(&counter.errors[place])
            if count:
                code = luna_count_get(&counter.codes[place])
                name = rv_name(code) if code else OTHER_ERRORS
                errors[name] = errors.get(name, 0) + count
    return errors
