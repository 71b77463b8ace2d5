/*
 * gil_turn.h: keeps threads that come back from the device out of each other's way to the GIL.
 *
 * Between two device calls a thread holds the GIL for a few microseconds. One that asks for it just
 * then is put to sleep by CPython, and to be woken on another CPU costs many times as long; with many
 * threads most of the time went there. Whoever comes back gives way instead while another one is on
 * its way, some 20 times at most: then that one has work of its own to do, and CPython decides.
 */
#ifndef LUNA_EXT_GIL_TURN_H
#define LUNA_EXT_GIL_TURN_H

#ifdef _WIN32
#include <windows.h>
#define luna_give_way() SwitchToThread()
static volatile LONG luna_on_its_way;
#define luna_somebody_is_on_its_way() (luna_on_its_way != 0)
#define luna_set_on_its_way(value) InterlockedExchange(&luna_on_its_way, (value))
#else
#include <sched.h>
#define luna_give_way() sched_yield()
static int luna_on_its_way;
#define luna_somebody_is_on_its_way() (__atomic_load_n(&luna_on_its_way, __ATOMIC_RELAXED) != 0)
#define luna_set_on_its_way(value) __atomic_store_n(&luna_on_its_way, (value), __ATOMIC_RELAXED)
#endif

/* Without the GIL: the device is about to be called. */
static inline void luna_calls_device(void) {
    luna_set_on_its_way(0);
}

/* Without the GIL: the device has answered. */
static inline void luna_comes_back(void) {
    int times;
    for (times = 0; times < 20 && luna_somebody_is_on_its_way(); times++) {
        luna_give_way();
    }
}

/* With the GIL again. */
static inline void luna_is_back(void) {
    luna_set_on_its_way(1);
}

#endif
