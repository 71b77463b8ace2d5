/*
 * storm_victim.c: processes that write, lock and create until they are killed.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_kill.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void will_be(struct value *value, uint32_t wanted)
{
    atomic_store(&value->wanted, wanted);
}

static void is_now(struct value *value)
{
    atomic_store(&value->settled, atomic_load(&value->wanted));
    atomic_fetch_add(&lane->writes, 1U);
}

static uint8_t some_value(void)
{
    return (uint8_t)(1U + random_below(255));
}

/* ---- victims that write ---- */

static void change_label(CK_SLOT_ID slot, struct value *token)
{
    uint32_t old = atomic_load(&token->settled);
    uint8_t so = LABEL_OF(old) == 0 ? some_value() : SO_OF(old);
    uint8_t label = some_value();
    will_be(token, TOKEN(label, so, 0));
    init_token(slot, so, label);
    is_now(token);
}

static void change_pins(CK_SLOT_ID slot, struct value *token)
{
    uint32_t old = atomic_load(&token->settled);
    uint8_t label = LABEL_OF(old);
    uint8_t so = some_value();
    uint8_t user = some_value();
    uint8_t next_user = some_value();
    if (label == 0)
        return;
    CK_SESSION_HANDLE session = open_session(slot);
    if (one_in(4)) /* a wrong one is counted in the file */
        expect_rv(login(session, CKU_SO, (uint8_t)(SO_OF(old) + 1U)), CKR_PIN_INCORRECT,
                  "C_Login with a wrong PIN");
    login_right(session, CKU_SO, SO_OF(old));
    will_be(token, TOKEN(label, so, USER_OF(old)));
    set_pin(session, SO_OF(old), so);
    is_now(token);
    will_be(token, TOKEN(label, so, user));
    init_pin(session, user);
    is_now(token);
    expect_rv(C_Logout(session), CKR_OK, "C_Logout");
    login_right(session, CKU_USER, user);
    will_be(token, TOKEN(label, so, next_user));
    set_pin(session, user, next_user);
    is_now(token);
    expect_rv(C_CloseSession(session), CKR_OK, "C_CloseSession");
}

static void change_fault(void)
{
    uint8_t value = one_in(4) ? 0 : some_value();
    will_be(&lane->fault, value);
    set_fault(cluster_path, lane_function(), value);
    is_now(&lane->fault);
}

static void change_latency(void)
{
    uint8_t value = one_in(4) ? 0 : some_value();
    will_be(&lane->latency, value);
    set_latency(cluster_path, lane_function(), value);
    is_now(&lane->latency);
}

static void change_switch(void)
{
    const char *name = one_in(2) ? "log" : one_in(2) ? "contention" : "unlock_owner";
    const char *value = name[0] == 'l'   ? (one_in(4) ? "off" : "on")
                        : name[0] == 'c' ? (one_in(4) ? "error" : "wait")
                                         : (one_in(2) ? "checked" : "unchecked");
    expect_zero(luna_stub_switch(cluster_path, name, value), "luna_stub_switch");
}

static void lock_and_unlock(unsigned int keyring)
{
    uint64_t ticket = take_ticket(&killing->exclusion, VICTIM_PARTY, 0);
    CK_RV rv = CA_LockClusteredSlot(slot_of(keyring));
    /* With contention=error, while another process has it. */
    if (rv == CKR_DEVICE_ERROR && keyring < COMMON)
        return;
    expect_rv(rv, CKR_OK, "CA_LockClusteredSlot");
    section_enter(&killing->exclusion, keyring, ticket);
    if (one_in(2))
        nap(random_below(30));
    section_leave(&killing->exclusion, keyring, ticket);
    expect_rv(CA_UnlockClusteredSlot(slot_of(keyring)), CKR_OK, "CA_UnlockClusteredSlot");
}

static void claim(void)
{
    CK_UNASSIGNED_SLOT_INFO info;
    CK_CHAR cluster_id[] = CLUSTER_ID;
    uint64_t ticket = take_ticket(&killing->exclusion, VICTIM_PARTY, 0);
    CK_RV rv = CA_GetUnassignedSlot(cluster_id, &info);
    if (rv == CKR_FUNCTION_FAILED)
        return;
    expect_rv(rv, CKR_OK, "CA_GetUnassignedSlot");
    if (info.slotID < FIRST_SLOT || info.slotID >= FIRST_SLOT + COMMON)
        fail("CA_GetUnassignedSlot: slot %lu is assigned", info.slotID);
    unsigned int keyring = (unsigned int)(info.slotID - FIRST_SLOT);
    section_enter(&killing->exclusion, keyring, ticket);
    section_leave(&killing->exclusion, keyring, ticket);
    expect_rv(CA_UnlockClusteredSlot(info.slotID), CKR_OK, "CA_UnlockClusteredSlot");
}

void start_over(void)
{
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
}

/* A child that outlives the victim and calls nothing: it must not keep the victim's locks. */
static void fork_survivor(void)
{
    pid_t victim = getpid();
    pid_t lane_pid = getppid();
    pid_t child = fork();
    if (child < 0)
        fail("fork: %s", strerror(errno));
    if (child != 0)
        return;
    for (pid_t parent = victim; parent == victim || parent == lane_pid; parent = getppid())
        nap(500);
    _exit(0);
}

/* Its parts in the order in which a program would use them, and always again. */
_Noreturn void be_writer(void)
{
    bool forked = false;
    (void)setpgid(0, 0); /* for its lane to find the children that it leaves */
    watch_for(60, "a victim that writes");
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
    atomic_store(&lane->begun, true);
    for (;;) {
        unsigned int token = random_below(TOKENS);
        CK_SLOT_ID slot = slot_of(keyring_of(token));
        switch (random_below(11)) {
        case 0:
        case 1:
        case 2:
            change_label(slot, &lane->tokens[token]);
            break;
        case 3:
        case 4:
            change_pins(slot, &lane->tokens[token]);
            break;
        case 5:
            change_fault();
            break;
        case 6:
            change_latency();
            break;
        case 7:
            change_switch();
            break;
        case 8:
            lock_and_unlock(one_in(2) ? random_below(COMMON) : keyring_of(token));
            break;
        case 9:
            claim();
            break;
        default:
            if (one_in(8))
                start_over();
            if (!forked && one_in(8)) {
                fork_survivor();
                forked = true;
            }
            break;
        }
    }
}

/* ---- victims that create ---- */

_Noreturn void be_creator(void)
{
    (void)setpgid(0, 0);
    watch_for(60, "a victim that creates");
    int error = luna_stub_create(created_path, CLUSTER_ID, "keyring", TOKENS, FIRST_SLOT, NULL, 0);
    if (error != (atomic_load(&lane->file_settled) ? EEXIST : 0))
        fail("luna_stub_create: %s", strerror(error));
    atomic_store(&lane->file_settled, true);
    expect_zero(luna_stub_switch(created_path, "identity", "dual"), "luna_stub_switch");
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
    atomic_store(&lane->begun, true);
    for (;;) {
        for (unsigned int i = 0; i < TOKENS; i++)
            change_label(slot_of(i), &lane->tokens[i]);
    }
}
