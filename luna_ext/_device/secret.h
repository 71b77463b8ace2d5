/*
 * secret.h: memory for a secret, in pages of its own: kept out of the swap, out of core dumps and out of forked
 * children, as far as the system can and lets this process do it.
 */
#ifndef LUNA_EXT_SECRET_H
#define LUNA_EXT_SECRET_H

#include <stddef.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#endif

/* `size` bytes, all zero; NULL: there is no memory. */
static inline void *luna_take_secret(size_t size) {
#ifdef _WIN32
    void *memory = VirtualAlloc(NULL, size, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
    if (memory != NULL) {
        (void)VirtualLock(memory, size);
    }
    return memory;
#else
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* What is refused, or not known to this system, is no reason to work without the secret. */
    (void)mlock(memory, size);
#ifdef MADV_DONTDUMP
    (void)madvise(memory, size, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    (void)madvise(memory, size, MADV_WIPEONFORK);
#endif
    return memory;
#endif
}

/* Wipes it, and gives it back. */
static inline void luna_drop_secret(void *memory, size_t size) {
    /* Through a volatile pointer, so that the compiler may not drop the stores as dead. */
    volatile unsigned char *byte = (volatile unsigned char *)memory;
    for (size_t index = 0; index < size; index++) {
        byte[index] = 0;
    }
#ifdef _WIN32
    (void)VirtualFree(memory, 0, MEM_RELEASE);
#else
    (void)munmap(memory, size);
#endif
}

#endif
