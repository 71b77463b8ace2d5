# The SlotMutexes of a client, by the IDs of their slots. A dict, whose keys are objects, would take nearly
# as much for a slot as its lock does. Nothing is ever taken out: a SlotMutex lives as long as the process,
# as its client does.


cdef inline void **kept_at(Table *table, uint32_t number) noexcept nogil:
    """Where the SlotMutex of this number is. Blocks stay where they are."""
    # The first block has the first FIRST_BLOCK; each of the others as many as all before it.
    cdef int block = luna_bits(number // FIRST_BLOCK)
    return &table.blocks[block][number - (0 if block == 0 else (FIRST_BLOCK // 2) << block)]


cdef inline uint32_t first_place(Table *table, CK_SLOT_ID slot_id) noexcept nogil:
    """Where to look for a slot first; there may be another one, then it is further on."""
    cdef uint64_t mixed = <uint64_t> slot_id * <uint64_t> 0x9E3779B97F4A7C15
    return <uint32_t> (mixed >> 32) & (table.room - 1)


cdef int64_t find_slot(Table *table, CK_SLOT_ID slot_id) noexcept:
    """The number of a slot, or -1. Under the guard."""
    cdef uint32_t place, number
    if table.room == 0:
        return -1
    place = first_place(table, slot_id)
    while table.places[place] != 0:
        number = table.places[place] - 1
        if (<SlotMutex> kept_at(table, number)[0]).slot_id == slot_id:
            return number
        place = (place + 1) & (table.room - 1)
    return -1


cdef void put_down(Table *table, CK_SLOT_ID slot_id, uint32_t number) noexcept nogil:
    cdef uint32_t place = first_place(table, slot_id)
    while table.places[place] != 0:
        place = (place + 1) & (table.room - 1)
    table.places[place] = number + 1


cdef bint make_room(Table *table) noexcept:
    """For one slot more; False: there is no memory."""
    cdef uint32_t *earlier = table.places
    cdef uint32_t *places
    cdef uint32_t number
    cdef uint32_t room = 2 * table.room if table.room else FIRST_BLOCK
    cdef int block = luna_bits(table.count // FIRST_BLOCK)
    if table.blocks[block] == NULL:
        table.blocks[block] = <void **> PyMem_RawCalloc(
            FIRST_BLOCK if block == 0 else (FIRST_BLOCK // 2) << block, sizeof(void *)
        )
    if table.blocks[block] == NULL:
        return False
    # A fifth is kept free, so that no search is long.
    if 5 * (<uint64_t> table.count + 1) > 4 * <uint64_t> table.room:
        places = <uint32_t *> PyMem_RawCalloc(room, sizeof(uint32_t))
        if places == NULL:
            return False
        table.places = places
        table.room = room
        for number in range(table.count):
            put_down(table, (<SlotMutex> kept_at(table, number)[0]).slot_id, number)
        PyMem_RawFree(earlier)
    return True


cdef int64_t keep_slot(Table *table, SlotMutex mutex) noexcept:
    """Take the SlotMutex of a slot in, unless there is one. The slot's number; -1: there is no memory."""
    cdef int64_t number
    luna_guard_lock(&table.guard)
    number = find_slot(table, mutex.slot_id)
    if number < 0 and table.count < MOST_KEPT and make_room(table):
        number = table.count
        Py_INCREF(mutex)
        kept_at(table, table.count)[0] = <void *> mutex
        put_down(table, mutex.slot_id, table.count)
        # Last: all() does not take the guard.
        luna_shared_set32(&table.count, table.count + 1)
    luna_guard_unlock(&table.guard)
    return number
