/*
 * windows_client.c: the stand-in on Windows, and two of its applications, of which one dies with a lock.
 *
 *   windows_client <path>   makes a cluster there, and starts itself again without an argument
 *   windows_client          locks a slot of the cluster and keeps it until it is killed
 *
 * Prints what was not as expected; the exit code is 0 if there was nothing.
 *
 * SPDX-License-Identifier: MIT
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <windows.h>

#include "control.h"
#include "cryptoki_v2.h"

#define SLOT 7U
#define LOCKED L"luna_ext-windows_client-locked" /* an event: the second application has the lock */
#define PATIENCE 10000U

static int failures;
static char path[1024]; /* of the cluster, in UTF-8 */

#define EXPECT(condition)                                   \
    do {                                                    \
        if (!(condition)) {                                 \
            (void)printf("%d: %s\n", __LINE__, #condition); \
            failures++;                                     \
        }                                                   \
    } while (0)

static void make_cluster(const wchar_t *wide_path)
{
    EXPECT(WideCharToMultiByte(CP_UTF8, 0, wide_path, -1, path, sizeof path, NULL, NULL) > 0);
    EXPECT(luna_stub_create(path, "cluster-1", "keyring", 3, SLOT, NULL, 0) == 0);
    EXPECT(luna_stub_create(path, "cluster-2", "keyring", 3, SLOT, NULL, 0) == EEXIST);
    EXPECT(C_Initialize(NULL) == CKR_DEVICE_ERROR);
    EXPECT(SetEnvironmentVariableW(L"LUNA_STUB_STATE", wide_path));
}

static void list_and_lock(void)
{
    CK_SLOT_ID slots[3] = {0, 0, 0};
    CK_ULONG count = 3;
    EXPECT(C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK);
    EXPECT(count == 3 && slots[0] == SLOT && slots[2] == SLOT + 2U);
    EXPECT(CA_LockClusteredSlot(SLOT) == CKR_OK);
    EXPECT(CA_UnlockClusteredSlot(SLOT) == CKR_OK);
    EXPECT(CA_LockClusteredSlot(SLOT + 3U) == CKR_SLOT_ID_INVALID);
}

static void claim_and_label(void)
{
    CK_UNASSIGNED_SLOT_INFO claimed = {0};
    CK_UTF8CHAR label[32];
    (void)memset(label, ' ', sizeof label);
    (void)memcpy(label, "payments", 8);
    EXPECT(CA_GetUnassignedSlot((CK_CHAR_PTR) "cluster-1", &claimed) == CKR_OK);
    EXPECT(C_InitToken(claimed.slotID, (CK_UTF8CHAR_PTR) "password", 8, label) == CKR_OK);
    CK_SLOT_ID found = 0;
    CK_ULONG count = 1;
    EXPECT(CA_GetSlotId(label, &found, &count) == CKR_OK);
    EXPECT(count == 1 && found == claimed.slotID);
    EXPECT(CA_UnlockClusteredSlot(claimed.slotID) == CKR_OK);
}

static void expect_owner(int64_t pid)
{
    luna_stub_token tokens[3];
    uint32_t count = 0;
    EXPECT(luna_stub_snapshot(path, tokens, 3, &count) == 0);
    EXPECT(count == 3 && tokens[0].slot_id == SLOT && tokens[0].owner_pid == pid);
}

/* As a test does it from outside. */
static void strike_and_disconnect(void)
{
    const luna_stub_rule once = {.rv = CKR_DEVICE_ERROR, .times = 1, .every = 1, .probability = 1};
    const int64_t own = (int64_t)GetCurrentProcessId();
    EXPECT(luna_stub_fault(path, "CA_LockClusteredSlot", &once) == 0);
    EXPECT(CA_LockClusteredSlot(SLOT) == CKR_DEVICE_ERROR);
    expect_owner(0);
    EXPECT(CA_LockClusteredSlot(SLOT) == CKR_OK);
    expect_owner(own);
    EXPECT(luna_stub_disconnect(path, own) == 0);
    EXPECT(CA_UnlockClusteredSlot(SLOT) == CKR_DEVICE_ERROR);
    expect_owner(0);
    EXPECT(C_Finalize(NULL) == CKR_OK);
    EXPECT(C_Initialize(NULL) == CKR_OK);
    uint32_t calls = 0;
    EXPECT(luna_stub_log(path, NULL, 0, &calls) == 0 && calls > 10);
}

static DWORD WINAPI lock(void *unused)
{
    (void)unused;
    return CA_LockClusteredSlot(SLOT);
}

static HANDLE start_second(void)
{
    wchar_t program[1024] = L"";
    STARTUPINFOW startup = {.cb = sizeof startup};
    PROCESS_INFORMATION second = {0};
    EXPECT(GetModuleFileNameW(NULL, program, 1024) > 0);
    wchar_t command[] = L"windows_client";
    EXPECT(CreateProcessW(program, command, NULL, NULL, FALSE, 0, NULL, NULL, &startup, &second));
    return second.hProcess;
}

static void wait_for_the_lock_of_the_dead(void)
{
    HANDLE locked = CreateEventW(NULL, TRUE, FALSE, LOCKED);
    HANDLE second = start_second();
    EXPECT(WaitForSingleObject(locked, PATIENCE) == WAIT_OBJECT_0);
    HANDLE thread = CreateThread(NULL, 0, lock, NULL, 0, NULL);
    EXPECT(WaitForSingleObject(thread, 200) == WAIT_TIMEOUT);
    EXPECT(TerminateProcess(second, 1));
    EXPECT(WaitForSingleObject(thread, PATIENCE) == WAIT_OBJECT_0);
    DWORD rv = CKR_FUNCTION_FAILED;
    EXPECT(GetExitCodeThread(thread, &rv) && rv == CKR_OK);
    EXPECT(CA_UnlockClusteredSlot(SLOT) == CKR_OK);
}

static void hold_for_ever(void)
{
    EXPECT(C_Initialize(NULL) == CKR_OK);
    EXPECT(CA_LockClusteredSlot(SLOT) == CKR_OK);
    HANDLE locked = OpenEventW(EVENT_MODIFY_STATE, FALSE, LOCKED);
    if (failures == 0 && SetEvent(locked))
        Sleep(INFINITE);
}

int wmain(int argc, wchar_t **argv)
{
    if (argc < 2) {
        hold_for_ever();
        return 1;
    }
    make_cluster(argv[1]);
    EXPECT(C_Initialize(NULL) == CKR_OK);
    list_and_lock();
    claim_and_label();
    strike_and_disconnect();
    wait_for_the_lock_of_the_dead();
    EXPECT(C_Finalize(NULL) == CKR_OK);
    EXPECT(C_Finalize(NULL) == CKR_CRYPTOKI_NOT_INITIALIZED);
    return failures > 0;
}
