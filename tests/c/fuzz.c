/*
 * fuzz.c: a libFuzzer target. The input first damages a state file, or does not, and then is a
 * sequence of calls: of the PKCS #11 module, of the luna_stub_ functions, by other applications.
 *
 * Without damage the answer to each call is known in advance, and the file's content. With it, no
 * byte outside of the file and of the caller's memory may be touched, a file that C_Initialize
 * refuses stays as it is, and the cluster functions answer what the SDK says they do.
 *
 * SPDX-License-Identifier: MIT
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define MOST_CALLS 100U
#define LARGEST_COUNT (STATE_MAX_KEYRINGS + 1U)
#define SIZE_WITH(keyrings) (sizeof(struct state) + (keyrings) * sizeof(struct state_keyring))
#define LARGEST_FILE SIZE_WITH(LARGEST_COUNT)

/* ---- state files to begin with ---- */

#define TEMPLATES 4U

static struct template {
    const char *cluster_id;
    const char *label;
    uint32_t keyrings;
    uint64_t first_slot;
    const char *pin; /* NULL: the tokens are new; else the PIN of both users of each */
    bool grants; /* claims give what their application holds, and grants count */
    uint8_t *content;
    size_t size;
} templates[TEMPLATES] = {
    {"cluster-1", "keyring", MODEL_TOKENS, 1, NULL, false, NULL, 0},
    {"cluster-1", "keyring", MODEL_TOKENS, 1, "12345678", false, NULL, 0},
    {"cluster-1", "keyring", MODEL_TOKENS, 1, NULL, true, NULL, 0},
    {"a cluster whose ID has 64 bytes, as many as there may be at most",
     "this is a label with 31 bytes: ", 1, UINT64_MAX, NULL, false, NULL, 0},
};

static void make_template(struct template *template)
{
    if (luna_stub_create(FUZZ_PATH, template->cluster_id, template->label, template->keyrings,
                         template->first_slot, (const uint8_t *)template->pin,
                         template->pin == NULL ? 0 : (uint32_t)strlen(template->pin)) != 0)
        memory_fail("luna_stub_create");
    uint8_t *content = memory_file(FUZZ_PATH, &template->size);
    struct state *state = (struct state *)(void *)content;
    atomic_store(&state->switches.regrant, template->grants ? REGRANT_ON : REGRANT_OFF);
    atomic_store(&state->switches.grants, template->grants ? GRANTS_COUNTED : GRANTS_ONCE);
    template->content = malloc(template->size);
    if (template->content == NULL)
        memory_fail("out of memory");
    memcpy(template->content, content, template->size);
    memory_remove_file(FUZZ_PATH);
}

static void model_pin_of(struct model_pin *pin, const char *text)
{
    pin->set = true;
    pin->length = strlen(text);
    memcpy(pin->value, text, pin->length);
}

static void make_model(const struct template *template, bool valid)
{
    memset(&model, 0, sizeof model);
    model.valid = valid;
    model.tokens_count = template->keyrings;
    model.first_slot = template->first_slot;
    model.cluster_id = template->cluster_id;
    model.shortest_pin = STATE_PIN_MIN;
    model.longest_pin = STATE_PIN_MAX;
    model_us()->pid = memory_system.pid;
    model.regrant = template->grants ? REGRANT_ON : REGRANT_OFF;
    model.grants = template->grants ? GRANTS_COUNTED : GRANTS_ONCE;
    const struct state *state = (const struct state *)(const void *)template->content;
    for (unsigned int i = 0; i < template->keyrings; i++) {
        const uint8_t *original = state->keyrings[i].original_label;
        memcpy(model.tokens[i].original, original, STATE_LABEL_SIZE);
        memcpy(model.tokens[i].label, original, STATE_LABEL_SIZE);
        model.tokens[i].initialised = template->pin != NULL;
        if (template->pin == NULL)
            continue;
        model_pin_of(&model.tokens[i].so_pin, template->pin);
        model_pin_of(&model.tokens[i].user_pin, template->pin);
    }
}

/* ---- damage ---- */

static size_t keyring_offset(void)
{
    return offsetof(struct state, keyrings) +
           input_below(MODEL_TOKENS) * sizeof(struct state_keyring);
}

/* Of the length or the failures of a PIN, in one of its token's two copies. */
static size_t pin_offset(void)
{
    static const size_t fields[] = {
        offsetof(struct token_record, so_pin) + offsetof(struct token_pin, length),
        offsetof(struct token_record, so_pin) + offsetof(struct token_pin, failures),
        offsetof(struct token_record, user_pin) + offsetof(struct token_pin, length),
        offsetof(struct token_record, user_pin) + offsetof(struct token_pin, failures),
    };
    return keyring_offset() + offsetof(struct state_keyring, token) +
           offsetof(struct state_token, copies) +
           input_below(2) * sizeof(struct token_record) + fields[input_below(4)];
}

/* Somewhere in the file, mostly where it matters: one of so many kinds of places. */
#define PLACES 12U

static size_t some_offset(unsigned int place)
{
    switch (place) {
    case 0:
        return (size_t)input_bytes(4);
    case 1:
    case 2:
        return input_below(sizeof(struct state_header));
    case 3:
        return offsetof(struct state, switches) + input_below(sizeof(struct state_switches));
    case 4:
        return offsetof(struct state, faults) +
               input_below(FUNCTION_COUNT) * sizeof(struct state_fault) +
               (size_t)input_bytes(2) % sizeof(struct state_fault);
    case 5:
        return offsetof(struct state, applications) +
               input_below(4) * sizeof(struct state_application) +
               (size_t)input_bytes(2) % sizeof(struct state_application);
    case 6:
        return offsetof(struct state, log) + (size_t)input_bytes(2) % sizeof(struct state_log);
    case 7:
    case 8:
    case 9:
        return pin_offset();
    default:
        return keyring_offset() + (size_t)input_bytes(2) % sizeof(struct state_keyring);
    }
}

static const uint64_t limits[] = {
    0,       1,        STATE_PIN_TRIES - 1U, STATE_PIN_TRIES, STATE_PIN_MAX, STATE_PIN_MAX + 1U,
    FUNCTION_COUNT, STATE_APPLICATIONS, UINT32_MAX, INT64_MAX, UINT64_MAX,
};

#define LIMITS (sizeof limits / sizeof limits[0])

/* libFuzzer takes these for coverage: it would not notice otherwise that one damage is not another,
   and keep the inputs that have it. */
__attribute__((used, section("__libfuzzer_extra_counters"))) static uint8_t
    damages[PLACES][LIMITS + 1U];

static void damage(uint8_t *content, size_t size)
{
    static const unsigned int widths[] = {1, 2, 4, 8};
    unsigned int place = input_below(PLACES);
    size_t offset = some_offset(place) % size;
    unsigned int choice = input_below(16);
    unsigned int width = widths[choice % 4U];
    unsigned int limit = choice < 8 ? LIMITS : input_below(LIMITS);
    uint64_t value = limit == LIMITS ? input_bytes(width) : limits[limit];
    damages[place][limit]++;
    /* Fields are words, more often than not. */
    if (choice >= 4)
        offset -= offset % width;
    for (unsigned int i = 0; i < width && offset + i < size; i++)
        content[offset + i] = (uint8_t)(value >> 8U * i);
}

/* C_Initialize and C_Finalize would sleep out a latency that does not end before the clock does. */
static void shorten_latencies(struct state *state)
{
    static const enum function_id lives[] = {FUNCTION_C_Initialize, FUNCTION_C_Finalize};
    for (unsigned int i = 0; i < 2U * LATENCY_MOMENTS; i++) {
        struct state_latency_rule *rule = &state->faults[lives[i / 2U]].latencies[i % 2U].rule;
        for (unsigned int word = 0; word < 2U * STATE_WORDS(struct latency_rule); word++)
            atomic_fetch_and(&rule->copies[0][0] + word, (UINT64_C(1) << 50) - 1U);
    }
}

static size_t some_size(size_t size)
{
    switch (input_below(4)) {
    case 0:
        return 1U + (size_t)input_bytes(4) % size;
    case 1:
        return size - input_below(sizeof(struct state_keyring) + 1U);
    case 2:
        return size + input_byte();
    default:
        return 1U + input_below(2U * sizeof(struct state_header));
    }
}

/* Another number of keyrings, in a file that has the right size for it. */
static size_t change_count(struct state *state)
{
    static const uint32_t counts[] = {0, 1, 2, 3, 5, 64, STATE_MAX_KEYRINGS, LARGEST_COUNT};
    uint32_t count = counts[input_below(8)];
    state->header.keyring_count = count;
    return (size_t)(state->header.file_size = SIZE_WITH(count));
}

/* All that the rest of the code relies on. */
static void check_accepted(const struct state_file *file)
{
    uint64_t last = file->first_slot + file->keyring_count - 1U;
    if (file->keyring_count < 1 || file->keyring_count > STATE_MAX_KEYRINGS ||
        file->platform.size != SIZE_WITH(file->keyring_count) || last < file->first_slot)
        memory_fail("C_Initialize takes what is no state file");
}

/* Answers whether it is still worth calling anything. */
static bool put_damaged_file(const struct template *template)
{
    static alignas(64) uint8_t content[LARGEST_FILE]; /* to get it each time takes its time */
    size_t size = template->size;
    unsigned int choice = input_below(16);
    memcpy(content, template->content, size);
    if (choice == 0)
        size = some_size(size);
    else if (choice == 1)
        size = change_count((struct state *)(void *)content);
    if (size > template->size)
        memset(content + template->size, 0, size - template->size);
    unsigned int patches = choice < 2 ? input_below(3) : 1U + input_below(4);
    for (unsigned int i = 0; i < patches; i++)
        damage(content, size);
    (void)memory_put_file(FUZZ_PATH, content, size);
    struct state_file file;
    const char *reason;
    memory_system.state_path = FUZZ_PATH;
    bool usable = state_open(FUZZ_PATH, &file, &reason) == 0;
    if (usable) {
        check_accepted(&file);
        shorten_latencies(file.state);
        state_close(&file);
    } else if (C_Initialize(NULL) != CKR_DEVICE_ERROR) {
        memory_fail("C_Initialize takes what state_open() refuses");
    } else if (memcmp(memory_file(FUZZ_PATH, &size), content, size) != 0) {
        memory_fail("C_Initialize has written to a file that it refused");
    }
    return usable;
}

/* Another process writes nonsense while this one has the file open, or the system refuses to do
   something soon. */
static void trouble(void)
{
    size_t size = 0;
    uint8_t *content = memory_file(FUZZ_PATH, &size);
    if (input_below(2) == 0) {
        damage(content, size);
        shorten_latencies((struct state *)(void *)content);
    } else {
        memory_system.fails_in = 1U + input_below(8);
    }
}

/* ---- one run ---- */

static void call_something(void)
{
    unsigned int choice = input_below(16);
    if (choice < 11)
        fuzz_pkcs11_call();
    else if (choice < 13)
        fuzz_control_call();
    else if (choice < 15 || model.valid)
        fuzz_others_act();
    else
        trouble();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memory_reset();
    for (unsigned int i = 0; i < TEMPLATES && templates[i].content == NULL; i++)
        make_template(&templates[i]);
    input = (struct input){data, data + size};
    unsigned int beginning = input_byte();
    const struct template *template = &templates[beginning % TEMPLATES];
    bool valid = beginning < 128;
    make_model(template, valid);
    memory_system.blocked = fuzz_others_have_to_act;
    if (valid)
        (void)memory_put_file(FUZZ_PATH, template->content, template->size);
    else if (!put_damaged_file(template))
        return 0;
    if (beginning % 16 < 12)
        fuzz_initialize();
    for (unsigned int calls = 0; calls < MOST_CALLS && input_left(); calls++)
        call_something();
    fuzz_end();
    return 0;
}
