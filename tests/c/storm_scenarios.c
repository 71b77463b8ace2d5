/*
 * storm_scenarios.c: what victims do one step at a time, and the file that they do it to.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_step.h"

#include <unistd.h>

#include "application.h"

char *stepped_path;

static CK_SESSION_HANDLE session;

static void first_init_token(void)
{
    init_token(SLOT, 11, 21);
}

static void next_init_token(void)
{
    init_token(SLOT, 11, 22);
}

static void login_so(void)
{
    session = open_session(SLOT);
    login_right(session, CKU_SO, 11);
}

static void login_user(void)
{
    session = open_session(SLOT);
    login_right(session, CKU_USER, 31);
}

static void only_open_session(void)
{
    session = open_session(SLOT);
}

static void act_init_pin(void)
{
    init_pin(session, 31);
}

static void set_so_pin(void)
{
    set_pin(session, 11, 12);
}

static void set_user_pin(void)
{
    set_pin(session, 31, 32);
}

static void login_wrong(void)
{
    expect_rv(login(session, CKU_SO, 99), CKR_PIN_INCORRECT, "C_Login");
}

static void guess_nine_times(void)
{
    session = open_session(SLOT);
    for (unsigned int tries = 1; tries < STATE_PIN_TRIES; tries++)
        login_wrong();
}

static void guess_once_more(void)
{
    expect_rv(login(session, CKU_SO, 99), CKR_PIN_LOCKED, "C_Login");
}

static void login_so_to_change_label(void)
{
    expect_zero(luna_stub_switch(stepped_path, "change_label", "on"), "luna_stub_switch");
    login_so();
}

static void change_label(void)
{
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    uniform_label(22, label);
    expect_rv(CA_ChangeLabel(session, SLOT, label, sizeof label), CKR_OK, "CA_ChangeLabel");
}

static void set_pins(void)
{
    CK_UTF8CHAR so[STATE_PIN_MAX];
    CK_UTF8CHAR user[STATE_PIN_MAX];
    CK_ULONG so_length;
    CK_ULONG user_length;
    pin_of(12, so, &so_length);
    pin_of(32, user, &user_length);
    expect_zero(luna_stub_set_pins(stepped_path, SLOT, so, (uint32_t)so_length, user,
                                   (uint32_t)user_length),
                "luna_stub_set_pins");
}

static void act_open_session(void)
{
    (void)open_session(SLOT);
}

static void close_session(void)
{
    expect_rv(C_CloseSession(session), CKR_OK, "C_CloseSession");
}

static void lock(void)
{
    expect_rv(CA_LockClusteredSlot(SLOT), CKR_OK, "CA_LockClusteredSlot");
}

static void unlock(void)
{
    expect_rv(CA_UnlockClusteredSlot(SLOT), CKR_OK, "CA_UnlockClusteredSlot");
}

static void claim(void)
{
    CK_UNASSIGNED_SLOT_INFO info;
    CK_CHAR cluster_id[] = CLUSTER_ID;
    expect_rv(CA_GetUnassignedSlot(cluster_id, &info), CKR_OK, "CA_GetUnassignedSlot");
}

void initialise(void)
{
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
}

static void nothing(void)
{
}

/* C_Initialize, but for the two tables of sessions that it clears: 50000 steps in no file. */
static void initialise_and_finalise(void)
{
    expect_rv(application_start(CKR_OK, nothing), CKR_OK, "application_start");
    lock();
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
}

static void fault_on(void)
{
    set_fault(stepped_path, RULED, 41);
}

static void fault_other(void)
{
    set_fault(stepped_path, RULED, 42);
}

static void fault_off(void)
{
    set_fault(stepped_path, RULED, 0);
}

static void latency_on(void)
{
    set_latency(stepped_path, RULED, 51);
}

static void latency_off(void)
{
    set_latency(stepped_path, RULED, 0);
}

static void switch_relock(void)
{
    expect_zero(luna_stub_switch(stepped_path, "relock", "error"), "luna_stub_switch");
}

static void disconnect(void)
{
    expect_zero(luna_stub_disconnect(stepped_path, getpid()), "luna_stub_disconnect");
}

static void create(void)
{
    expect_zero(luna_stub_create(stepped_path, CLUSTER_ID, "keyring", KEYRINGS, SLOT, NULL,
                                 0),
                "luna_stub_create");
}

#define NEW TOKEN(0, 0, 0)
#define LABELLED TOKEN(21, 11, 0)
#define WITH_PINS TOKEN(21, 11, 31)

const struct scenario scenarios[] = {
    {"the first C_InitToken", {NEW, 0, 0}, {LABELLED, 0, 0}, NULL, first_init_token, INITIALISED},
    {"C_InitToken", {WITH_PINS, 0, 0}, {TOKEN(22, 11, 0), 0, 0}, NULL, next_init_token,
     INITIALISED},
    {"C_InitPIN", {LABELLED, 0, 0}, {WITH_PINS, 0, 0}, login_so, act_init_pin, INITIALISED},
    {"C_SetPIN by the SO", {WITH_PINS, 0, 0}, {TOKEN(21, 12, 31), 0, 0}, login_so, set_so_pin,
     INITIALISED},
    {"C_SetPIN", {WITH_PINS, 0, 0}, {TOKEN(21, 11, 32), 0, 0}, login_user, set_user_pin,
     INITIALISED},
    {"C_Login", {WITH_PINS, 0, 0}, {WITH_PINS, 0, 0}, only_open_session, login_wrong, INITIALISED},
    {"the tenth wrong C_Login", {WITH_PINS, 0, 0}, {NEW, 0, 0}, guess_nine_times, guess_once_more,
     INITIALISED},
    {"CA_ChangeLabel", {WITH_PINS, 0, 0}, {TOKEN(22, 11, 31), 0, 0}, login_so_to_change_label,
     change_label, INITIALISED},
    {"luna_stub_set_pins", {WITH_PINS, 0, 0}, {TOKEN(21, 12, 32), 0, 0}, NULL, set_pins,
     INITIALISED},
    {"C_OpenSession", {WITH_PINS, 0, 0}, {WITH_PINS, 0, 0}, NULL, act_open_session, INITIALISED},
    {"C_CloseSession", {WITH_PINS, 0, 0}, {WITH_PINS, 0, 0}, login_so, close_session, INITIALISED},
    {"CA_LockClusteredSlot", {NEW, 0, 0}, {NEW, 0, 0}, NULL, lock, INITIALISED},
    {"CA_UnlockClusteredSlot", {NEW, 0, 0}, {NEW, 0, 0}, lock, unlock, INITIALISED},
    {"CA_GetUnassignedSlot", {NEW, 0, 0}, {NEW, 0, 0}, NULL, claim, INITIALISED},
    {"C_Initialize and C_Finalize", {NEW, 0, 0}, {NEW, 0, 0}, NULL, initialise_and_finalise,
     NOT_INITIALISED},
    {"a first fault", {NEW, 0, 0}, {NEW, 41, 0}, NULL, fault_on, INITIALISED},
    {"another fault", {NEW, 41, 51}, {NEW, 42, 51}, NULL, fault_other, INITIALISED},
    {"no fault", {NEW, 41, 0}, {NEW, 0, 0}, NULL, fault_off, INITIALISED},
    {"a first latency", {NEW, 0, 0}, {NEW, 0, 51}, NULL, latency_on, INITIALISED},
    {"no latency", {NEW, 0, 51}, {NEW, 0, 0}, NULL, latency_off, INITIALISED},
    {"luna_stub_switch", {NEW, 0, 0}, {NEW, 0, 0}, NULL, switch_relock, INITIALISED},
    {"luna_stub_disconnect", {NEW, 0, 0}, {NEW, 0, 0}, lock, disconnect, INITIALISED},
    {"luna_stub_create", {NEW, 0, 0}, {NEW, 0, 0}, NULL, create, WITHOUT_FILE},
};

const size_t scenarios_count = sizeof scenarios / sizeof scenarios[0];

/* ---- the file before ---- */

static void write_token(uint32_t token)
{
    if (LABEL_OF(token) == 0)
        return;
    init_token(SLOT, SO_OF(token), LABEL_OF(token));
    if (USER_OF(token) == 0)
        return;
    session = open_session(SLOT);
    login_right(session, CKU_SO, SO_OF(token));
    init_pin(session, USER_OF(token));
}

void make_file(const struct scenario *scenario)
{
    (void)unlink(stepped_path);
    if (scenario->beginning == WITHOUT_FILE)
        return;
    create();
    expect_zero(luna_stub_switch(stepped_path, "identity", "dual"), "luna_stub_switch");
    if (scenario->before.fault != 0)
        set_fault(stepped_path, RULED, (uint8_t)scenario->before.fault);
    if (scenario->before.latency != 0)
        set_latency(stepped_path, RULED, (uint8_t)scenario->before.latency);
    use_cluster(stepped_path);
    initialise();
    write_token(scenario->before.token);
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
}
