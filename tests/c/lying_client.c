/*
 * lying_client.c: stands for a client library whose C_GetSlotList or CA_GetSlotId is wrong about how
 * many slots there are. Both know MATCHES slots, FIRST_MATCH and those that follow; all else is the
 * stand-in's, but for the manufacturer's name.
 *
 *   -DSTAND_IN="path"   the stand-in's shared library
 *
 * lie_about() says which of the two lies, and how. Until then neither does.
 *
 * SPDX-License-Identifier: MIT
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cryptoki_v2.h"

#define MATCHES 6U
#define FIRST_MATCH 2U
/* More than a caller expects. */
#define MANY 40U
/* The keyrings of the largest cluster: more than a caller comes to by doubling. */
#define MOST 3500U
/* What is in a place that no slot was written to: a caller that reads it is found out. */
#define POISON ((CK_SLOT_ID)0xBAD510U)
#define HUGE_COUNT ((CK_ULONG)1 << (8U * sizeof(CK_ULONG) - 3U))
/* A caller that asks so often would never stop. */
#define PATIENCE 1000U

/* ---- for the test ---- */

void lie_about(const char *function, const char *kind);
unsigned long calls_of_the_liar(void);

static char liar[64];
static char lie[64];
static unsigned long calls;

void lie_about(const char *function, const char *kind)
{
    (void)snprintf(liar, sizeof liar, "%s", function);
    (void)snprintf(lie, sizeof lie, "%s", kind);
    calls = 0;
}

unsigned long calls_of_the_liar(void)
{
    return calls;
}

/* ---- the truth, and the lies ---- */

static CK_ULONG less(CK_ULONG one, CK_ULONG other)
{
    return one < other ? one : other;
}

static void write_matches(CK_SLOT_ID *slots, CK_ULONG places)
{
    for (CK_ULONG i = 0; i < places; i++)
        slots[i] = FIRST_MATCH + i % (places > 2U * MATCHES ? places : MATCHES);
}

static CK_RV truth(CK_SLOT_ID *slots, CK_ULONG *count, CK_ULONG matches)
{
    CK_ULONG room = *count;
    *count = matches;
    if (slots == NULL)
        return CKR_OK;
    if (room < matches)
        return CKR_BUFFER_TOO_SMALL;
    write_matches(slots, matches);
    return CKR_OK;
}

static int it_is(const char *kind)
{
    return strcmp(lie, kind) == 0;
}

/* The answer to a call that only counts. */
static CK_RV count_falsely(CK_ULONG *count)
{
    *count = MATCHES;
    if (it_is("too many to begin with"))
        *count = MATCHES + 30U;
    else if (it_is("too few to begin with") || it_is("too few to begin with, and never how many"))
        *count = 1;
    else if (it_is("none to begin with") || it_is("many, and never how many"))
        *count = 0;
    else if (it_is("many, and how many to a question alone"))
        *count = MANY;
    else if (it_is("most, and how many to a question alone"))
        *count = MOST;
    else if (it_is("huge"))
        *count = HUGE_COUNT;
    else if (it_is("largest"))
        *count = ~(CK_ULONG)0;
    else if (it_is("each twice"))
        *count = 2U * MATCHES;
    return CKR_OK;
}

/* The answer to a call for the slots. All of the room is there to be written to. */
static CK_RV list_falsely(CK_SLOT_ID *slots, CK_ULONG *count)
{
    CK_ULONG room = *count;
    if (it_is("nothing written, and all is well"))
        return CKR_OK;
    for (CK_ULONG i = 0; i < room; i++)
        slots[i] = POISON;
    if (it_is("too few to begin with, and never how many") && room < MATCHES)
        return CKR_BUFFER_TOO_SMALL;
    if (it_is("many, and never how many") || it_is("many, and how many to a question alone")) {
        if (room < MANY)
            return CKR_BUFFER_TOO_SMALL;
        return truth(slots, count, MANY);
    }
    if (it_is("most, and how many to a question alone"))
        return room < MOST ? CKR_BUFFER_TOO_SMALL : truth(slots, count, MOST);
    if (it_is("too small, but enough")) {
        *count = less(room, MATCHES);
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("too small for none")) {
        *count = 0;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("too small for an unknown number"))
        return CKR_BUFFER_TOO_SMALL;
    if (it_is("one more each time")) {
        *count = room + 1U;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("twice as many each time")) {
        *count = 2U * room + 1U;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("huge")) {
        *count = HUGE_COUNT;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("largest")) {
        *count = ~(CK_ULONG)0;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (it_is("more than was asked for")) {
        write_matches(slots, less(room, MATCHES));
        *count = room + 4U;
        return CKR_OK;
    }
    if (it_is("huge, and all is well")) {
        write_matches(slots, less(room, MATCHES));
        *count = HUGE_COUNT;
        return CKR_OK;
    }
    if (it_is("each twice"))
        return truth(slots, count, 2U * MATCHES);
    return truth(slots, count, MATCHES);
}

static CK_RV answer(const char *function, CK_SLOT_ID *slots, CK_ULONG *count)
{
    if (strcmp(function, liar) != 0)
        return truth(slots, count, MATCHES);
    if (++calls > PATIENCE)
        return CKR_GENERAL_ERROR;
    return slots == NULL ? count_falsely(count) : list_falsely(slots, count);
}

static CK_RV get_slot_list(CK_BBOOL tokenPresent, CK_SLOT_ID_PTR pSlotList, CK_ULONG_PTR pulCount)
{
    (void)tokenPresent;
    return answer("C_GetSlotList", pSlotList, pulCount);
}

CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount)
{
    (void)label;
    return answer("CA_GetSlotId", pSlotId, pulCount);
}

/* ---- the rest ---- */

static CK_FUNCTION_LIST_PTR list;

static CK_RV get_info(CK_INFO_PTR pInfo)
{
    CK_RV rv = list->C_GetInfo(pInfo);
    if (rv == CKR_OK)
        memcpy(pInfo->manufacturerID, "A liar's maker                  ", sizeof pInfo->manufacturerID);
    return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    static CK_FUNCTION_LIST functions;
    CK_RV (*function)(CK_FUNCTION_LIST_PTR_PTR);
    void *library = dlopen(STAND_IN, RTLD_NOW | RTLD_LOCAL);
    *(void **)&function = library == NULL ? NULL : dlsym(library, "C_GetFunctionList");
    CK_RV rv = function == NULL ? CKR_GENERAL_ERROR : function(&list);
    if (rv != CKR_OK)
        return rv;
    functions = *list;
    functions.C_GetInfo = get_info;
    functions.C_GetSlotList = get_slot_list;
    *ppFunctionList = &functions;
    return CKR_OK;
}
