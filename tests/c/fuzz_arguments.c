/*
 * fuzz_arguments.c: the input, and arguments out of it. All memory that a call is given is exactly
 * as large as it is told.
 *
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#define MOST_ARGUMENTS 8U

struct input input;

bool input_left(void)
{
    return input.next < input.end;
}

uint64_t input_bytes(unsigned int count)
{
    uint64_t value = 0;
    for (unsigned int i = 0; i < count && input_left(); i++)
        value |= (uint64_t)*input.next++ << 8U * i;
    return value;
}

static void *arguments[MOST_ARGUMENTS];
static unsigned int arguments_count;

void *exactly(size_t size)
{
    if (arguments_count == MOST_ARGUMENTS)
        memory_fail("too many arguments");
    void *memory = malloc(size);
    if (memory == NULL)
        memory_fail("out of memory");
    return arguments[arguments_count++] = memory;
}

void release_arguments(void)
{
    while (arguments_count > 0)
        free(arguments[--arguments_count]);
}

/* ---- arguments of one call ---- */

CK_SLOT_ID some_slot(void)
{
    unsigned int choice = input_below(16);
    if (choice == 15)
        return (CK_SLOT_ID)input_bytes(8);
    /* Mostly one that exists, else one just before or behind them. */
    uint64_t index = choice == 14 ? UINT64_MAX : choice % (model.tokens_count + 1U);
    return (CK_SLOT_ID)(model.first_slot + index);
}

CK_SESSION_HANDLE some_session(void)
{
    unsigned int choice = input_byte();
    CK_SESSION_HANDLE handle = model.sessions[choice % MODEL_SESSIONS].handle;
    if (choice < 192)
        return model.sessions[0].open ? model.sessions[0].handle : handle;
    if (choice < 240)
        return handle;
    return choice < 248 ? handle + (choice % 2 == 0 ? 1U : SESSION_PLACES)
                        : (CK_SESSION_HANDLE)input_bytes(8);
}

/* A length that no PIN may have: of one in the damaged file, if there is any. */
static CK_ULONG wrong_length(void)
{
    static const CK_ULONG lengths[] = {STATE_PIN_MAX + 1U, UINT32_MAX, UINT64_MAX};
    size_t size = 0;
    struct state *state = (struct state *)(void *)memory_file(FUZZ_PATH, &size);
    for (unsigned int i = 0; i < model.tokens_count && size >= sizeof *state; i++) {
        if (size < sizeof *state + (i + 1U) * sizeof state->keyrings[0])
            break;
        struct token_record record;
        state_read_token(&state->keyrings[i].token, &record);
        if (record.so_pin.length > STATE_PIN_MAX)
            return record.so_pin.length;
        if (record.user_pin.length > STATE_PIN_MAX)
            return record.user_pin.length;
    }
    return lengths[input_below(3)];
}

struct pin some_pin(void)
{
    static const char *const pins[] = {
        "12345678", "123456789", "1234567", "", "123456", "0123456789012345",
        "01234567890123456"};
    struct pin pin;
    unsigned int choice = input_below(16);
    if (choice < 11) {
        const char *text = pins[choice < 7 ? choice : 0];
        pin.length = strlen(text);
        pin.value = exactly(pin.length);
        memcpy(pin.value, text, pin.length);
    } else if (choice == 11) {
        pin = (struct pin){NULL, input_below(2) == 0 ? 0U : input_byte()};
    } else if (choice < 15) { /* nothing of it may be read, so there is nothing */
        pin = (struct pin){exactly(1), wrong_length()};
    } else {
        pin.length = input_byte() + input_below(8);
        pin.value = exactly(pin.length);
        memset(pin.value, input_byte(), pin.length);
    }
    return pin;
}

CK_UTF8CHAR *some_label(void)
{
    unsigned int choice = input_below(16);
    if (choice == 15)
        return NULL;
    CK_UTF8CHAR *label = exactly(STATE_LABEL_SIZE);
    if (choice < 8)
        memcpy(label, model.tokens[choice % MODEL_TOKENS].original, STATE_LABEL_SIZE);
    else
        memset(label, choice < 14 ? 'a' + (int)(choice % 3U) : (int)input_byte(), STATE_LABEL_SIZE);
    return label;
}

struct room some_room(void)
{
    struct room room = {NULL, NULL, 0};
    unsigned int choice = input_byte();
    room.given = choice % (MODEL_TOKENS + 3U);
    if (choice >= 8) {
        room.count = exactly(sizeof *room.count);
        *room.count = room.given;
    }
    if (choice % 16 != 15)
        room.words = exactly(room.given * sizeof *room.words);
    return room;
}

/* NULL now and then. */
void *some_memory(size_t size)
{
    if (input_below(16) == 15)
        return NULL;
    void *memory = exactly(size);
    memset(memory, UNTOUCHED, size);
    return memory;
}
