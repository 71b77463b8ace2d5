/*
 * state.c: makes, opens and checks state files, and reads and writes their records as a whole.
 *
 * SPDX-License-Identifier: MIT
 */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "text.h"

static const uint8_t magic[8] = {'L', 'U', 'N', 'A', 'S', 'T', 'U', 'B'};

static uint64_t file_size(uint32_t keyrings)
{
    return sizeof(struct state) + (uint64_t)keyrings * sizeof(struct state_keyring);
}

/* Every slot ID has to exist as CK_SLOT_ID too, which has 4 bytes on some systems. */
static bool slots_fit(uint64_t first_slot, uint32_t keyrings)
{
    uint64_t last = first_slot + (keyrings - 1U);
    return last >= first_slot && last <= (CK_SLOT_ID)~(CK_SLOT_ID)0;
}

/* ---- records ---- */

/* Words are stored with release and loaded with acquire: a reader that finds a word of version n + 2
   then sees that the version is no longer n, and reads again. */
static uint64_t read_record(_Atomic uint64_t *version, _Atomic uint64_t *copies, size_t words,
                            void *record, size_t wanted)
{
    for (;;) {
        uint64_t before = atomic_load_explicit(version, memory_order_acquire);
        _Atomic uint64_t *copy = copies + (before & 1U) * words;
        for (size_t i = 0; i < wanted; i++) {
            uint64_t word = atomic_load_explicit(&copy[i], memory_order_acquire);
            memcpy((uint8_t *)record + i * sizeof word, &word, sizeof word);
        }
        if (atomic_load_explicit(version, memory_order_acquire) == before)
            return before;
    }
}

static void write_record(_Atomic uint64_t *version, _Atomic uint64_t *copies, size_t words,
                         const void *record)
{
    uint64_t next = atomic_load_explicit(version, memory_order_acquire) + 1U;
    _Atomic uint64_t *copy = copies + (next & 1U) * words;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)record + i * sizeof word, sizeof word);
        atomic_store_explicit(&copy[i], word, memory_order_release);
    }
    atomic_store_explicit(version, next, memory_order_release);
}

void state_read_token(struct state_token *token, struct token_record *record)
{
    (void)read_record(&token->version, token->copies[0], STATE_WORDS(*record), record,
                      STATE_WORDS(*record));
}

void state_write_token(struct state_token *token, const struct token_record *record)
{
    write_record(&token->version, token->copies[0], STATE_WORDS(*record), record);
}

void state_read_label(struct state_token *token, uint8_t label[STATE_LABEL_SIZE])
{
    (void)read_record(&token->version, token->copies[0], STATE_WORDS(struct token_record), label,
                      STATE_LABEL_SIZE / sizeof(uint64_t));
}

void state_set_pin(struct token_pin *pin, const uint8_t *value, size_t length)
{
    memset(pin, 0, sizeof *pin);
    if (length > 0)
        memcpy(pin->value, value, length);
    pin->length = (uint32_t)length;
    pin->set = 1;
}

void state_pin_lengths(struct state *state, uint32_t *least, uint32_t *most)
{
    uint32_t lengths = atomic_load(&state->switches.pin_lengths);
    *least = lengths & 0xFFFFU;
    *most = lengths >> 16;
    if (*most > STATE_PIN_MAX) /* in a damaged file */
        *most = STATE_PIN_MAX;
}

void state_set_pin_lengths(struct state *state, uint32_t least, uint32_t most)
{
    atomic_store(&state->switches.pin_lengths, most << 16 | least);
}

uint64_t state_read_fault(struct state_fault_rule *rule, struct fault_rule *record)
{
    return read_record(&rule->version, rule->copies[0], STATE_WORDS(*record), record,
                       STATE_WORDS(*record));
}

void state_write_fault(struct state_fault_rule *rule, const struct fault_rule *record)
{
    write_record(&rule->version, rule->copies[0], STATE_WORDS(*record), record);
}

uint64_t state_read_latency(struct state_latency_rule *rule, struct latency_rule *record)
{
    return read_record(&rule->version, rule->copies[0], STATE_WORDS(*record), record,
                       STATE_WORDS(*record));
}

void state_write_latency(struct state_latency_rule *rule, const struct latency_rule *record)
{
    write_record(&rule->version, rule->copies[0], STATE_WORDS(*record), record);
}

/* The byte lock excludes other openings of the file, the mutex the threads that share this one. */
bool state_write_begin(struct state_file *file)
{
    platform_mutex_lock(&file->writer);
    if (platform_byte_lock(&file->platform, STATE_WRITER_BYTE, true) == 0)
        return true;
    platform_mutex_unlock(&file->writer);
    return false;
}

void state_write_end(struct state_file *file)
{
    platform_byte_unlock(&file->platform, STATE_WRITER_BYTE);
    platform_mutex_unlock(&file->writer);
}

/* ---- creation ---- */

static void fill_keyring(struct state_keyring *keyring, const struct state_plan *plan,
                         uint32_t number)
{
    char text[64];
    (void)snprintf(text, sizeof text, "%s%u", plan->label, number);
    text_pad(keyring->original_label, STATE_LABEL_SIZE, text);
    (void)snprintf(text, sizeof text, "%010llu%06u",
                   (unsigned long long)(plan->identity % UINT64_C(10000000000)), number);
    text_pad(keyring->serial, STATE_SERIAL_SIZE, text);
    struct token_record record;
    memset(&record, 0, sizeof record);
    memcpy(record.label, keyring->original_label, STATE_LABEL_SIZE);
    if (plan->password != NULL) {
        record.initialised = 1;
        state_set_pin(&record.so_pin, plan->password, plan->password_length);
        state_set_pin(&record.user_pin, plan->password, plan->password_length);
    }
    state_write_token(&keyring->token, &record);
}

static void fill(void *memory, const void *context)
{
    const struct state_plan *plan = context;
    struct state *state = memory;
    state->header.version = STATE_VERSION;
    state->header.header_size = sizeof(struct state);
    state->header.function_count = FUNCTION_COUNT;
    state->header.fault_size = sizeof(struct state_fault);
    state->header.application_count = STATE_APPLICATIONS;
    state->header.application_size = sizeof(struct state_application);
    state->header.keyring_count = plan->keyrings;
    state->header.keyring_size = sizeof(struct state_keyring);
    state->header.log_entries = STATE_LOG_ENTRIES;
    state->header.log_entry_size = sizeof(struct state_log_entry);
    state->header.first_slot = plan->first_slot;
    state->header.file_size = file_size(plan->keyrings);
    state->header.identity = plan->identity;
    state_set_pin_lengths(state, STATE_PIN_MIN, STATE_PIN_MAX);
    memcpy(state->header.cluster_id, plan->cluster_id, strlen(plan->cluster_id));
    for (uint32_t i = 0; i < plan->keyrings; i++)
        fill_keyring(&state->keyrings[i], plan, i + 1U);
    memcpy(state->header.magic, magic, sizeof magic);
}

int state_create(const char *path, const struct state_plan *plan)
{
    if (plan->keyrings < 1 || plan->keyrings > STATE_MAX_KEYRINGS)
        return EINVAL;
    if (!slots_fit(plan->first_slot, plan->keyrings))
        return EINVAL;
    if (plan->password != NULL &&
        (plan->password_length < STATE_PIN_MIN || plan->password_length > STATE_PIN_MAX))
        return EINVAL;
    size_t id_length = strlen(plan->cluster_id);
    if (id_length < 1 || id_length > STATE_CLUSTER_ID_SIZE)
        return EINVAL;
    char digits[16];
    int index_length = snprintf(digits, sizeof digits, "%u", plan->keyrings);
    if (strlen(plan->label) + (size_t)index_length > STATE_LABEL_SIZE)
        return EINVAL;
    return platform_create(path, (size_t)file_size(plan->keyrings), fill, plan);
}

/* ---- opening ---- */

/* Why this is not a state file; NULL: it is one. */
static const char *find_defect(const struct state *state, uint64_t size)
{
    const struct state_header *header = &state->header;
    if (size < sizeof(struct state_header))
        return "truncated: shorter than a header";
    if (memcmp(header->magic, magic, sizeof magic) != 0)
        return "not a state file";
    if (header->version != STATE_VERSION)
        return "a state file of another version";
    if (header->header_size != sizeof(struct state) || header->function_count != FUNCTION_COUNT ||
        header->fault_size != sizeof(struct state_fault) ||
        header->application_count != STATE_APPLICATIONS ||
        header->application_size != sizeof(struct state_application) ||
        header->keyring_size != sizeof(struct state_keyring) ||
        header->log_entries != STATE_LOG_ENTRIES ||
        header->log_entry_size != sizeof(struct state_log_entry))
        return "a state file of another layout";
    if (header->keyring_count < 1 || header->keyring_count > STATE_MAX_KEYRINGS)
        return "damaged: the number of keyrings is out of range";
    if (header->file_size != file_size(header->keyring_count))
        return "damaged: its sizes do not add up";
    if (size != header->file_size)
        return size < header->file_size ? "truncated" : "longer than its header says";
    if (!slots_fit(header->first_slot, header->keyring_count))
        return "damaged: the slot IDs wrap around";
    if (memchr(header->cluster_id, 0, STATE_CLUSTER_ID_SIZE + 1U) == NULL)
        return "damaged: the cluster ID has no end";
    return NULL;
}

int state_open(const char *path, struct state_file *file, const char **reason)
{
    memset(file, 0, sizeof *file);
    int error = platform_open(path, &file->platform);
    if (error != 0) {
        *reason = error == EBADMSG ? "empty or not a regular file"
                  : error == EPERM ? "belongs to another user"
                                   : strerror(error);
        return error;
    }
    file->state = file->platform.memory;
    *reason = find_defect(file->state, file->platform.size);
    if (*reason != NULL) {
        platform_close(&file->platform);
        return EBADMSG;
    }
    file->keyring_count = file->state->header.keyring_count;
    file->first_slot = file->state->header.first_slot;
    platform_mutex_reset(&file->writer);
    return 0;
}

void state_close(struct state_file *file)
{
    platform_close(&file->platform);
    file->state = NULL;
}
