/*
 * native.h: what the compiled layers need in C: clocks, the loader, counters, guards, and variables of
 * each thread.
 */
#ifndef LUNA_EXT_NATIVE_H
#define LUNA_EXT_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "Python.h"
#include "pythread.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <sys/eventfd.h>
#include <sys/syscall.h>
#endif

#ifdef _MSC_VER
#include <intrin.h>
#define LUNA_THREAD_LOCAL __declspec(thread)
#define luna_unlikely(condition) (condition)
#else
#define LUNA_THREAD_LOCAL __thread
#define luna_unlikely(condition) __builtin_expect(!!(condition), 0)
#endif

/* ---- clocks, and a pause ---- */

#ifdef _WIN32

/* Nanoseconds. */
static inline uint64_t luna_nanoseconds(void) {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (uint64_t)(1e9 * ((double)count.QuadPart / (double)per_second.QuadPart));
}

static inline void luna_pause(double seconds) {
    Sleep((DWORD)(seconds * 1e3) + 1);
}

#else

static inline uint64_t luna_read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* Nanoseconds. */
static inline uint64_t luna_nanoseconds(void) {
    return luna_read_clock(CLOCK_MONOTONIC);
}

/* To the end, whatever signals come. */
static inline void luna_pause(double seconds) {
    struct timespec left = {(time_t)seconds, 0};
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

#endif

/* Seconds of the same clock. */
static inline double luna_now(void) {
    return 1e-9 * (double)luna_nanoseconds();
}

/*
 * The same clock, in nanoseconds, as it was some milliseconds ago at most: for a fifth of the price, where the
 * system has that.
 */
static inline uint64_t luna_coarse_nanoseconds(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    return luna_read_clock(CLOCK_MONOTONIC_COARSE);
#else
    return luna_nanoseconds();
#endif
}

/* ---- the loader. There is no close: a client library's threads may still run in it ---- */

#ifdef _WIN32

/* A wide path, which has to be absolute, so that no search path is consulted. */
typedef const wchar_t *luna_path_t;

static inline void *luna_open(luna_path_t path) {
    return (void *)LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
}

static inline void *luna_symbol(void *handle, const char *name) {
    return (void *)GetProcAddress((HMODULE)handle, name);
}

/* To be asked on the thread of the failed luna_open, before it does anything else. */
static inline void luna_open_error(char *text, size_t room) {
    snprintf(text, room, "Windows error %lu", (unsigned long)GetLastError());
}

#define luna_path_of(path) PyUnicode_AsWideCharString((path), NULL)
#define luna_path_free(path) PyMem_Free((void *)(path))

#else

typedef const char *luna_path_t;

static inline void *luna_open(luna_path_t path) {
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static inline void *luna_symbol(void *handle, const char *name) {
    return dlsym(handle, name);
}

static inline void luna_open_error(char *text, size_t room) {
    const char *error = dlerror();
    snprintf(text, room, "%s", error != NULL ? error : "unknown error");
}

#define luna_path_of(path) PyBytes_AsString(path)
#define luna_path_free(path) ((void)(path))

#endif

/* ---- forks that Python does not hear of ---- */

/* The handler runs in each forked child, on its only thread. */
#ifdef _WIN32
#define luna_at_fork_in_child(handler) ((void)(handler), 0)
#else
static inline int luna_at_fork_in_child(void (*handler)(void)) {
    return pthread_atfork(NULL, NULL, handler);
}
#endif

/* ---- a thread that can be joined, which Python's own cannot below Python ---- */

/* It is to stay where it is until the thread has begun. */
typedef struct luna_thread {
    void (*run)(void *);
    void *argument;
#ifdef _WIN32
    HANDLE id;
#else
    pthread_t id;
#endif
} luna_thread;

#ifdef _WIN32

static DWORD WINAPI luna_run_thread(LPVOID thread) {
    ((luna_thread *)thread)->run(((luna_thread *)thread)->argument);
    return 0;
}

/* With the GIL. 0: no thread can be had. */
static inline int luna_start_thread(luna_thread *thread) {
    thread->id = CreateThread(NULL, PyThread_get_stacksize(), luna_run_thread, thread, 0, NULL);
    return thread->id != NULL;
}

static inline void luna_join_thread(const luna_thread *thread) {
    WaitForSingleObject(thread->id, INFINITE);
    CloseHandle(thread->id);
}

static inline void luna_leave_thread(const luna_thread *thread) {
    CloseHandle(thread->id);
}

#else

static void *luna_run_thread(void *thread) {
    ((luna_thread *)thread)->run(((luna_thread *)thread)->argument);
    return NULL;
}

/* With the GIL. 0: no thread can be had. */
static inline int luna_start_thread(luna_thread *thread) {
    pthread_attr_t attributes;
    size_t size = PyThread_get_stacksize();
    int failed;
    if (pthread_attr_init(&attributes) != 0) {
        return 0;
    }
    failed = (size != 0 && pthread_attr_setstacksize(&attributes, size) != 0) ||
             pthread_create(&thread->id, &attributes, luna_run_thread, thread) != 0;
    pthread_attr_destroy(&attributes);
    return !failed;
}

static inline void luna_join_thread(const luna_thread *thread) {
    pthread_join(thread->id, NULL);
}

/* It is not joined: it ends by itself. */
static inline void luna_leave_thread(const luna_thread *thread) {
    pthread_detach(thread->id);
}

#endif

/* ---- guards and shared numbers ---- */

/*
 * A guard: where there is a GIL, that is the guard, and these do nothing but mark the guarded stretches,
 * in which no Python code runs. Without a GIL it is a mutex.
 *
 * A shared number is plain where the GIL is held at each access, else atomic.
 */
#ifdef Py_GIL_DISABLED

#define LUNA_GIL 0
/* Each counter is there once per shard. Threads of different shards do not write to one cache line. */
#define LUNA_SHARDS 16
typedef PyMutex luna_guard;
#ifdef __SANITIZE_THREAD__
/* The interpreter is not built for ThreadSanitizer, which has to be told what its mutexes do. */
#include <sanitizer/tsan_interface.h>
#define luna_guard_lock(guard) (PyMutex_Lock(guard), __tsan_acquire(guard))
#define luna_guard_unlock(guard) (__tsan_release(guard), PyMutex_Unlock(guard))
#else
#define luna_guard_lock(guard) PyMutex_Lock(guard)
#define luna_guard_unlock(guard) PyMutex_Unlock(guard)
#endif
/* In a forked child, whose only thread this is: another one of the parent's may have been inside. */
#define luna_guard_forget(guard) memset((guard), 0, sizeof(luna_guard))
#define luna_shared_get(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
#define luna_shared_set(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
#define luna_shared_add(place, amount) __atomic_add_fetch((place), (amount), __ATOMIC_SEQ_CST)
#define luna_shared_take(place) __atomic_exchange_n((place), 0, __ATOMIC_SEQ_CST)
#define luna_shared_set_once(place) (__atomic_exchange_n((place), 1, __ATOMIC_SEQ_CST) == 0)
#define luna_count_get(place) __atomic_load_n((place), __ATOMIC_RELAXED)
#define luna_count_set(place, value) __atomic_store_n((place), (value), __ATOMIC_RELAXED)
#define luna_count_add(place, amount) ((void)__atomic_fetch_add((place), (amount), __ATOMIC_RELAXED))

#else

#define LUNA_GIL 1
#define LUNA_SHARDS 1
typedef char luna_guard;
#define luna_guard_lock(guard) ((void)(guard))
#define luna_guard_unlock(guard) ((void)(guard))
#define luna_guard_forget(guard) ((void)(guard))
#define luna_shared_get(place) (*(place))
#define luna_shared_set(place, value) ((void)(*(place) = (value)))
#define luna_shared_add(place, amount) (*(place) += (amount))
static inline int luna_shared_set_once(int *place) {
    int was_set = *place;
    *place = 1;
    return !was_set;
}
static inline int luna_shared_take(int *place) {
    int taken = *place;
    *place = 0;
    return taken;
}
#define luna_count_get(place) (*(place))
#define luna_count_set(place, value) ((void)(*(place) = (value)))
#define luna_count_add(place, amount) ((void)(*(place) += (amount)))

#endif

/* A mark, a uint8_t, is set without the GIL too. */
#ifdef _MSC_VER
#define luna_mark(place) ((void)(*(volatile uint8_t *)(place) = 1))
#define luna_is_marked(place) (*(volatile uint8_t *)(place))
#define luna_mark_as(place, value) ((void)(*(volatile uint8_t *)(place) = (uint8_t)(value)))
#define luna_marked_as(place) (*(volatile uint8_t *)(place))
#define luna_take_mark(place) (_InterlockedExchange8((volatile char *)(place), 0) != 0)
#define luna_is_first(place) (_InterlockedExchange((volatile long *)(place), 1) == 0)
#else
#define luna_mark(place) __atomic_store_n((place), 1, __ATOMIC_RELEASE)
#define luna_is_marked(place) __atomic_load_n((place), __ATOMIC_ACQUIRE)
/* A mark of several values. A thread that sees one sees what was written before it. */
#define luna_mark_as(place, value) __atomic_store_n((place), (uint8_t)(value), __ATOMIC_RELEASE)
#define luna_marked_as(place) __atomic_load_n((place), __ATOMIC_ACQUIRE)
#define luna_take_mark(place) (__atomic_exchange_n((place), 0, __ATOMIC_ACQ_REL) != 0)
/* Of the threads that mark it, also without the GIL. */
#define luna_is_first(place) (__atomic_exchange_n((place), 1, __ATOMIC_ACQ_REL) == 0)
#endif

/*
 * ---- bells ----
 *
 * What wakes an event loop, without the GIL: a file descriptor that the loop looks at. It goes with the last
 * of those that keep the bell, which may be a thread without the GIL.
 */
#ifdef __linux__
typedef struct luna_bell {
    int fd;
    int kept;           /* by so many */
    int rung;           /* and the loop has not looked yet */
} luna_bell;

/* NULL: there is no memory, or no file descriptor. */
static inline luna_bell *luna_new_bell(void) {
    luna_bell *bell = (luna_bell *)calloc(1, sizeof(luna_bell));
    if (bell != NULL) {
        bell->kept = 1;
        bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (bell->fd < 0) {
            free(bell);
            bell = NULL;
        }
    }
    return bell;
}
static inline luna_bell *luna_keep_bell(luna_bell *bell) {
    __atomic_add_fetch(&bell->kept, 1, __ATOMIC_RELAXED);
    return bell;
}
static inline void luna_drop_bell(luna_bell *bell) {
    if (bell != NULL && __atomic_sub_fetch(&bell->kept, 1, __ATOMIC_ACQ_REL) == 0) {
        close(bell->fd);
        free(bell);
    }
}
/* After what the loop is to look for. Many may ring; the loop is woken once. */
static inline void luna_ring(luna_bell *bell) {
    uint64_t one = 1;
    if (__atomic_exchange_n(&bell->rung, 1, __ATOMIC_SEQ_CST) == 0) {
        (void)!write(bell->fd, &one, sizeof(one));
    }
}
/* Before the loop looks. */
static inline void luna_answer_bell(luna_bell *bell) {
    uint64_t times;
    (void)!read(bell->fd, &times, sizeof(times));
    (void)__atomic_exchange_n(&bell->rung, 0, __ATOMIC_SEQ_CST);
}
static inline int luna_bell_fd(const luna_bell *bell) { return bell->fd; }
#else
typedef struct luna_bell luna_bell;
static inline luna_bell *luna_new_bell(void) { return NULL; }
static inline luna_bell *luna_keep_bell(luna_bell *bell) { return bell; }
static inline void luna_drop_bell(luna_bell *bell) { (void)bell; }
static inline void luna_ring(luna_bell *bell) { (void)bell; }
static inline void luna_answer_bell(luna_bell *bell) { (void)bell; }
static inline int luna_bell_fd(const luna_bell *bell) { (void)bell; return -1; }
#endif

/* ---- a list to which threads without the GIL add ---- */

/* Each of the items begins with its `next`. */
typedef struct luna_item {
    struct luna_item *next;
} luna_item;

#ifdef _MSC_VER
#define luna_exchange_item(place, item) \
    ((luna_item *)_InterlockedExchangePointer((void *volatile *)(place), (item)))
static inline void luna_push(luna_item **list, luna_item *item) {
    luna_item *first;
    do {
        first = *(luna_item *volatile *)list;
        item->next = first;
    } while (_InterlockedCompareExchangePointer((void *volatile *)list, item, first) != first);
}
#else
#define luna_exchange_item(place, item) __atomic_exchange_n((place), (item), __ATOMIC_ACQ_REL)
static inline void luna_push(luna_item **list, luna_item *item) {
    item->next = __atomic_load_n(list, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(list, &item->next, item, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
}
#endif
/* Take all, in the order in which they were added. */
static inline luna_item *luna_take_all(luna_item **list) {
    luna_item *item = luna_exchange_item(list, NULL), *turned = NULL;
    while (item != NULL) {
        luna_item *next = item->next;
        item->next = turned;
        turned = item;
        item = next;
    }
    return turned;
}

/* ---- how long something took, each time ---- */

/* The last one takes what takes longer than 2^39 ns, some 9 minutes. */
#define LUNA_DURATIONS 41

struct luna_lengths {
    uint64_t nanoseconds;                /* of all together */
    uint64_t durations[LUNA_DURATIONS];  /* [n]: those of less than 2^n ns that are not in [n - 1] */
};

/* ---- what is counted of the calls of one C function ---- */

/* A function answers few different errors. The last place is for all that find no other. */
#define LUNA_ERRORS 32
/*
 * A call that takes less is fast: to time it would take a good part of it. Of fast calls one in each stretch
 * of 2^22 ns, some 4 ms, is timed, and the others count as having taken as long as that one. As soon as one
 * is not fast, each is timed. By the coarse clock, whose ticks are 10 ms at most, one of the others is known
 * that was slow all the same.
 */
#define LUNA_FAST 16384 /* nanoseconds */
#define LUNA_SURELY_SLOW 20000000U
#define luna_stretch(clock) ((clock) >> 22)

/* The numbers of calls are exact. They are changed one after the other, so that a reader may find a call in
 * one of them and not yet in the next. */
struct luna_counter {
    struct luna_lengths lengths;
    uint64_t longest;                    /* nanoseconds, of those that were timed */
    uint64_t timed;                      /* calls that were */
    uint64_t sampled;                    /* the stretch in which a fast call was timed; 0: none */
    uint64_t sample;                     /* how long that one took, in nanoseconds */
    uint64_t untimed;                    /* calls since then that were not timed; with a GIL only */
    uint64_t codes[LUNA_ERRORS];         /* the CK_RV that is counted in this place; 0: none yet */
    uint64_t errors[LUNA_ERRORS];
};

/* How many binary digits the number has. */
static inline int luna_bits(uint64_t number) {
#ifdef _MSC_VER
    int bits = 0;
    while (number != 0) {
        number >>= 1;
        bits++;
    }
    return bits;
#else
    return number == 0 ? 0 : 64 - __builtin_clzll(number);
#endif
}

/* So many that took so long, each. */
static inline void luna_count_lengths(struct luna_lengths *lengths, uint64_t nanoseconds, uint64_t times) {
    int digits = luna_bits(nanoseconds);
    luna_count_add(&lengths->nanoseconds, times * nanoseconds);
    luna_count_add(&lengths->durations[digits < LUNA_DURATIONS ? digits : LUNA_DURATIONS - 1], times);
}

static inline void luna_count_length(struct luna_lengths *lengths, uint64_t nanoseconds) {
    luna_count_lengths(lengths, nanoseconds, 1);
}

/*
 * A call that was not timed counts as having taken as long as the sample. Where there is a GIL, it is only
 * numbered, and added to the lengths before these are read, or the sample becomes another.
 */
static inline void luna_add_untimed(struct luna_counter *counter) {
#if LUNA_GIL
    luna_count_lengths(&counter->lengths, counter->sample, counter->untimed);
    counter->untimed = 0;
#else
    (void)counter;
#endif
}

static inline void luna_count_untimed(struct luna_counter *counter) {
#if LUNA_GIL
    counter->untimed++;
#else
    luna_count_length(&counter->lengths, luna_count_get(&counter->sample));
#endif
}

/* Whether a call that begins now is to be timed. */
static inline int luna_is_sample(const struct luna_counter *counter, uint64_t now) {
    return luna_count_get(&counter->sampled) != luna_stretch(now);
}

/* A call that began `now`, of the same stretch, was timed. */
static inline void luna_note_sample(struct luna_counter *counter, uint64_t now, uint64_t nanoseconds) {
    luna_add_untimed(counter);
    luna_count_add(&counter->timed, 1);
    luna_count_set(&counter->sample, nanoseconds);
    luna_count_set(&counter->sampled, nanoseconds < LUNA_FAST ? luna_stretch(now) : 0);
    if (nanoseconds > luna_count_get(&counter->longest)) {
        luna_count_set(&counter->longest, nanoseconds);
    }
}

/* Threads that share a shard may count at a time; each finds or takes a place for its code. */
static inline void luna_count_error(struct luna_counter *counter, uint64_t rv) {
    int place = 0;
    while (place < LUNA_ERRORS - 1) {
        uint64_t code = luna_count_get(&counter->codes[place]);
#ifdef Py_GIL_DISABLED
        if (code == 0 && __atomic_compare_exchange_n(&counter->codes[place], &code, rv, 0,
                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            code = rv;
        }
#else
        if (code == 0) {
            counter->codes[place] = code = rv;
        }
#endif
        if (code == rv) {
            break;
        }
        place++;
    }
    luna_count_add(&counter->errors[place], 1);
}

/* What a call has answered. With the GIL, where there is one. */
static inline void luna_count_answer(struct luna_counter *counter, uint64_t rv) {
    if (luna_unlikely(rv != 0)) {
        luna_count_error(counter, rv);
    }
}

/* ---- coming back to the GIL ---- */

/*
 * Keeps threads that come back from the device from asking for the GIL at the same time. Between two device
 * calls a thread holds the GIL for a few microseconds. CPython puts a thread to sleep that asks for the GIL
 * just then, and to wake it on another CPU takes many times as long; with many threads most of the time
 * was spent so. Instead, a thread that comes back yields the CPU while another one is between two device
 * calls, 20 times at most: if it takes longer, the other thread does other work, and CPython decides.
 */
#if LUNA_GIL

#ifdef _WIN32
#define luna_give_way() SwitchToThread()
static volatile LONG luna_on_its_way;
#define luna_another_is_on_its_way() (luna_on_its_way != 0)
#define luna_set_on_its_way(value) InterlockedExchange(&luna_on_its_way, (value))
#else
#define luna_give_way() sched_yield()
static int luna_on_its_way;
#define luna_another_is_on_its_way() (__atomic_load_n(&luna_on_its_way, __ATOMIC_RELAXED) != 0)
#define luna_set_on_its_way(value) __atomic_store_n(&luna_on_its_way, (value), __ATOMIC_RELAXED)
#endif

/* Without the GIL: the device is about to be called. */
static inline void luna_calls_device(void) {
    luna_set_on_its_way(0);
}

/* Without the GIL: the device has answered. */
static inline void luna_comes_back(void) {
    int times;
    for (times = 0; times < 20 && luna_another_is_on_its_way(); times++) {
        luna_give_way();
    }
}

/* With the GIL again. */
static inline void luna_is_back(void) {
    luna_set_on_its_way(1);
}

#else

#define luna_calls_device() ((void)0)
#define luna_comes_back() ((void)0)
#define luna_is_back() ((void)0)

#endif

/* ---- objects that all threads use ---- */

/*
 * Without a GIL, threads that count references of one object at the same time wait for each other. So on the
 * way of a lock and unlock nothing is counted of an object that slots share. Where Python itself counts, the
 * object is made immortal: no reference is counted any more. For objects that live as long as the process.
 */
#ifdef Py_GIL_DISABLED
#define luna_make_immortal(object) Py_SET_REFCNT((object), (Py_ssize_t)UINT32_MAX + 1)
#else
#define luna_make_immortal(object) ((void)(object))
#endif

/*
 * A new reference to a dict's value; NULL, and no exception: it has none. Where there is no GIL, dict.get()
 * would wait for other threads that look something up in the same dict.
 */
static inline PyObject *luna_look_up(PyObject *dict, PyObject *key) {
    PyObject *value;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyDict_GetItemRef(dict, key, &value) < 0) {
        PyErr_Clear();
    }
#else
    value = PyDict_GetItemWithError(dict, key);
    Py_XINCREF(value);
#endif
    return value;
}

/*
 * A look at one key of one dict, which reads only a number as long as the dict does not change. To look the
 * key up takes many times as long, and where there is no GIL, threads wait for each other there: the dict's
 * keys are counted, and some lookups lock the dict. There, a key is looked up each time after a change.
 */
typedef struct luna_watch {
    PyObject *dict;
    PyObject *key;
    PyObject *value;    /* what was found last, or NULL; borrowed, to be compared and nothing else */
#if PY_VERSION_HEX >= 0x030C0000
    int changed;        /* 1: the dict may have changed since; 2: it cannot be watched */
#else
    uint64_t version;   /* of the dict, when that was found */
#endif
} luna_watch;

static inline PyObject *luna_look_again(luna_watch *watch) {
    PyObject *value = PyDict_GetItemWithError(watch->dict, watch->key);
    if (luna_unlikely(value == NULL)) {
        PyErr_Clear();
    }
    return value;
}

#if PY_VERSION_HEX >= 0x030C0000

#define LUNA_WATCHES 2
static luna_watch *luna_watches[LUNA_WATCHES];

/* Python calls this before the change, under whatever guards the dict. */
static int luna_on_change(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value) {
    int place;
    (void)event, (void)value;
    for (place = 0; place < LUNA_WATCHES && luna_watches[place] != NULL; place++) {
        luna_watch *watch = luna_watches[place];
        int is_other = key != NULL && PyUnicode_CheckExact(key) && PyUnicode_CheckExact(watch->key) &&
                       PyUnicode_Compare(key, watch->key) != 0;
        if (watch->dict == dict && !is_other && luna_shared_get(&watch->changed) == 0) {
            luna_shared_set(&watch->changed, 1);
        }
    }
    return 0;
}

/* When the module is loaded. */
static inline void luna_begin_watch(luna_watch *watch, PyObject *dict, PyObject *key) {
    static int watcher = -1;
    Py_INCREF(dict);
    Py_INCREF(key);
    watch->dict = dict;
    watch->key = key;
    luna_watches[luna_watches[0] == NULL ? 0 : 1] = watch;
    if (watcher < 0) {
        watcher = PyDict_AddWatcher(luna_on_change);
    }
    if (watcher < 0 || PyDict_Watch(watcher, dict) != 0) {
        PyErr_Clear();
        watch->changed = 2;
    }
    watch->value = luna_look_again(watch);
}

static inline PyObject *luna_watched(luna_watch *watch) {
    if (luna_unlikely(luna_shared_get(&watch->changed))) {
#ifdef Py_GIL_DISABLED
        return luna_look_again(watch);
#else
        watch->changed &= 2;
        watch->value = luna_look_again(watch);
#endif
    }
    return watch->value;
}

#else

static inline void luna_begin_watch(luna_watch *watch, PyObject *dict, PyObject *key) {
    Py_INCREF(dict);
    Py_INCREF(key);
    watch->dict = dict;
    watch->key = key;
}

static inline PyObject *luna_watched(luna_watch *watch) {
    uint64_t version = ((PyDictObject *)watch->dict)->ma_version_tag;
    if (luna_unlikely(version != watch->version)) {
        watch->version = version;
        watch->value = luna_look_again(watch);
    }
    return watch->value;
}

#endif

/* ---- variables of each thread ---- */

/* The thread's number, never used again in this process; 0: it has none yet. */
static LUNA_THREAD_LOCAL uint64_t luna_thread_number;
/* Whether it is the main thread, on which Python runs signal handlers; set with the number. */
static LUNA_THREAD_LOCAL int luna_thread_is_main;

/* How often its context had changed when its lineage had joined the one that it has; 0: not known. */
static LUNA_THREAD_LOCAL uint64_t luna_thread_joined_in;

/* Whether it makes calls for other threads, which get their errors. */
static LUNA_THREAD_LOCAL int luna_thread_is_worker;

/* The lock for whose waiters the thread, a worker, makes the lock call; or NULL. */
static LUNA_THREAD_LOCAL void *luna_thread_asks_for;

static inline void *luna_asks_for(void) { return luna_thread_asks_for; }
static inline void luna_note_asking(void *lock) { luna_thread_asks_for = lock; }
static inline int luna_is_worker(void) { return luna_thread_is_worker; }
static inline void luna_become_worker(void) { luna_thread_is_worker = 1; }
static inline uint64_t luna_number(void) { return luna_thread_number; }
static inline int luna_is_main(void) { return luna_thread_is_main; }
static inline void luna_introduce(uint64_t number, int is_main) {
    luna_thread_number = number;
    luna_thread_is_main = is_main;
    luna_thread_joined_in = 0;
}

/*
 * Whether the thread has noted that it is in the same context as now. CPython counts, per thread, how often a
 * context was entered or left, for its own short way to a context variable's value. With the thread's number
 * this is forgotten, for another thread state begins to count anew.
 */
#if PY_VERSION_HEX < 0x030F0000
#define luna_context_count() ((uint64_t)PyThreadState_Get()->context_ver)
#else
#define luna_context_count() ((uint64_t)0)
#endif
static inline void luna_note_joined(int joined) {
    luna_thread_joined_in = joined ? luna_context_count() : 0;
}
/* The number of a thread that has noted it, and is not the main one; else 0. */
static inline uint64_t luna_joined_number(void) {
    uint64_t count = luna_thread_joined_in;
    return count != 0 && count == luna_context_count() && !luna_thread_is_main ? luna_thread_number : 0;
}

static inline int luna_shard(void) {
#if LUNA_SHARDS == 1
    return 0;
#else
    /* The number of the thread's shard, plus 1; 0: none yet. */
    static LUNA_THREAD_LOCAL int luna_thread_shard;
    static int given_out;
    if (luna_unlikely(luna_thread_shard == 0)) {
        luna_thread_shard = __atomic_fetch_add(&given_out, 1, __ATOMIC_RELAXED) % LUNA_SHARDS + 1;
    }
    return luna_thread_shard - 1;
#endif
}

/* Whether the process began with this thread, as far as the operating system tells; else 0. */
static inline int luna_leads_process(void) {
#ifdef __linux__
    return (long)syscall(SYS_gettid) == (long)getpid();
#else
    return 0;
#endif
}

/* The thread's ID at the operating system; 0 where it is not needed. */
static inline long luna_thread_id(void) {
#ifdef __linux__
    return (long)syscall(SYS_gettid);
#else
    return 0;
#endif
}

/* Whether a thread of this process is still there. */
static inline int luna_thread_exists(long id) {
#ifdef __linux__
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/task/%ld", id);
    return access(path, F_OK) == 0;
#else
    (void)id;
    return 0;
#endif
}

/* ---- an exception that C code has set, for Cython to raise ---- */

/* To be called after a C function that has set an exception and is declared noexcept, because on the fast
 * path it is not let through everywhere. */
static inline int luna_raise_pending(void) {
    return PyErr_Occurred() != NULL ? -1 : 0;
}

#endif
