/*
 * platform_windows_files.c: the files of platform.h, and the locks on their bytes, on Windows.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602 /* the precise wall clock, the token of the thread */
#endif
#define WIN32_LEAN_AND_MEAN
#include "platform_windows.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

#include "platform.h"

/* ---- errors ---- */

/* Not all that a system call can answer, but what a user can do something about. */
static int errno_of(DWORD error)
{
    switch (error) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_DRIVE:
    case ERROR_INVALID_NAME:
    case ERROR_BAD_NETPATH:
    case ERROR_BAD_NET_NAME:
        return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
        return EACCES;
    case ERROR_WRITE_PROTECT:
        return EROFS;
    case ERROR_FILE_EXISTS:
    case ERROR_ALREADY_EXISTS:
        return EEXIST;
    case ERROR_LOCK_VIOLATION:
        return EAGAIN;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
        return ENOMEM;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL:
        return ENOSPC;
    case ERROR_TOO_MANY_OPEN_FILES:
        return EMFILE;
    case ERROR_FILENAME_EXCED_RANGE:
        return ENAMETOOLONG;
    default:
        return EIO;
    }
}

/* ---- paths ---- */

/* Paths of more than 259 characters are taken only with one of these before them. */
#define LONG_PATH L"\\\\?\\"
#define LONG_SHARE L"\\\\?\\UNC\\"

static wchar_t *lengthen(const wchar_t *full)
{
    const wchar_t *prefix = L"";
    if (full[0] != L'\\' && full[1] == L':') {
        prefix = LONG_PATH;
    } else if (wcsncmp(full, L"\\\\", 2) == 0 && full[2] != L'?' && full[2] != L'.') {
        prefix = LONG_SHARE;
        full += 2;
    }
    size_t room = wcslen(prefix) + wcslen(full) + 1U;
    wchar_t *path = malloc(room * sizeof *path);
    if (path != NULL)
        (void)swprintf(path, room, L"%ls%ls", prefix, full);
    return path;
}

/* What CreateFileW and its like take for a path, to be freed; NULL with an errno value. */
static wchar_t *system_path(const char *path, int *error)
{
    wchar_t *given = windows_widen(path, error);
    if (given == NULL)
        return NULL;
    wchar_t *result = NULL;
    DWORD room = GetFullPathNameW(given, 0, NULL, NULL);
    wchar_t *full = malloc((room + 1U) * sizeof *full);
    DWORD length = full == NULL ? 0 : GetFullPathNameW(given, room, full, NULL);
    if (length > 0 && length < room)
        result = lengthen(full);
    if (result == NULL)
        *error = full == NULL || length > 0 ? ENOMEM : ENOENT;
    free(full);
    free(given);
    return result;
}

/* ---- files ---- */

/* A file that is smaller grows; size 0: as large as it is. */
static int map_file(HANDLE handle, size_t size, void **memory)
{
    HANDLE mapping = CreateFileMappingW(handle, NULL, PAGE_READWRITE,
                                        (DWORD)((uint64_t)size >> 32), (DWORD)size, NULL);
    if (mapping == NULL)
        return errno_of(GetLastError());
    *memory = MapViewOfFile(mapping, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, size);
    int error = *memory == NULL ? errno_of(GetLastError()) : 0;
    (void)CloseHandle(mapping); /* the view keeps it */
    return error;
}

static int map_regular(HANDLE handle, struct platform_file *file)
{
    LARGE_INTEGER size;
    if (GetFileType(handle) != FILE_TYPE_DISK)
        return EBADMSG;
    if (!GetFileSizeEx(handle, &size))
        return errno_of(GetLastError());
    if (size.QuadPart <= 0)
        return EBADMSG;
    file->size = (size_t)size.QuadPart;
    return map_file(handle, 0, &file->memory);
}

/* Access to a directory as if it were a file is denied, whatever its permissions. */
static int open_error(const wchar_t *path)
{
    int error = errno_of(GetLastError());
    DWORD attributes = GetFileAttributesW(path);
    bool directory = attributes != INVALID_FILE_ATTRIBUTES &&
                     (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
    return directory ? EBADMSG : error;
}

int platform_open(const char *path, struct platform_file *file)
{
    int error = 0;
    wchar_t *wide = system_path(path, &error);
    if (wide == NULL)
        return error;
    /* Without security attributes no child inherits the handle, and with it the locks. */
    HANDLE handle = CreateFileW(wide, GENERIC_READ | GENERIC_WRITE,
                                FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                                OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    error = handle == INVALID_HANDLE_VALUE ? open_error(wide) : map_regular(handle, file);
    if (error == 0)
        file->handle = (intptr_t)handle;
    else if (handle != INVALID_HANDLE_VALUE)
        (void)CloseHandle(handle);
    free(wide);
    return error;
}

void platform_close(struct platform_file *file)
{
    (void)UnmapViewOfFile(file->memory);
    (void)CloseHandle((HANDLE)file->handle);
    file->memory = NULL;
    file->handle = (intptr_t)INVALID_HANDLE_VALUE;
}

/* The security attributes of a file for one user alone. They point into themselves. */
struct private_access {
    SECURITY_ATTRIBUTES attributes;
    SECURITY_DESCRIPTOR descriptor;
    union {
        ACL acl;
        BYTE room[sizeof(ACL) + sizeof(ACCESS_ALLOWED_ACE) + SECURITY_MAX_SID_SIZE];
    } list;
};

/* The user is named rather than "the owner", which is a whole group for what an administrator makes
   with raised privileges. Protected: the directory's own entries would be added otherwise. */
static bool make_private(struct private_access *access)
{
    union {
        TOKEN_USER token;
        BYTE room[sizeof(TOKEN_USER) + SECURITY_MAX_SID_SIZE];
    } user;
    DWORD size = 0;
    access->attributes.nLength = sizeof access->attributes;
    access->attributes.lpSecurityDescriptor = &access->descriptor;
    access->attributes.bInheritHandle = FALSE;
    return GetTokenInformation(GetCurrentThreadEffectiveToken(), TokenUser, &user, sizeof user,
                               &size) &&
           InitializeAcl(&access->list.acl, sizeof access->list, ACL_REVISION) &&
           AddAccessAllowedAce(&access->list.acl, ACL_REVISION, FILE_ALL_ACCESS,
                               user.token.User.Sid) &&
           InitializeSecurityDescriptor(&access->descriptor, SECURITY_DESCRIPTOR_REVISION) &&
           SetSecurityDescriptorDacl(&access->descriptor, TRUE, &access->list.acl, FALSE) &&
           SetSecurityDescriptorControl(&access->descriptor, SE_DACL_PROTECTED, SE_DACL_PROTECTED);
}

static int make_file(const wchar_t *path, size_t size,
                     void (*fill)(void *memory, const void *context), const void *context)
{
    struct private_access access;
    if (!make_private(&access))
        return errno_of(GetLastError());
    HANDLE handle = CreateFileW(path, GENERIC_READ | GENERIC_WRITE, 0, &access.attributes,
                                CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
    if (handle == INVALID_HANDLE_VALUE)
        return errno_of(GetLastError());
    void *memory;
    int error = map_file(handle, size, &memory);
    if (error == 0) {
        fill(memory, context);
        (void)UnmapViewOfFile(memory);
    }
    (void)CloseHandle(handle);
    if (error != 0)
        (void)DeleteFileW(path);
    return error;
}

static wchar_t *temporary_path(const wchar_t *path, int *error)
{
    uint64_t number;
    if (!platform_random(&number, sizeof number)) {
        *error = EIO;
        return NULL;
    }
    size_t room = wcslen(path) + 1U + 2U * sizeof number + 1U;
    wchar_t *temporary = malloc(room * sizeof *temporary);
    if (temporary == NULL)
        *error = ENOMEM;
    else
        (void)swprintf(temporary, room, L"%ls.%016llx", path, (unsigned long long)number);
    return temporary;
}

int platform_create(const char *path, size_t size, void (*fill)(void *memory, const void *context),
                    const void *context)
{
    int error = 0;
    wchar_t *wide = system_path(path, &error);
    if (wide == NULL)
        return error;
    wchar_t *temporary = NULL;
    if (GetFileAttributesW(wide) != INVALID_FILE_ATTRIBUTES)
        error = EEXIST;
    else
        temporary = temporary_path(wide, &error);
    if (temporary != NULL) {
        error = make_file(temporary, size, fill, context);
        /* Without a flag that allows it, no file is replaced. */
        if (error == 0 && !MoveFileExW(temporary, wide, 0)) {
            error = errno_of(GetLastError());
            (void)DeleteFileW(temporary);
        }
    }
    free(temporary);
    free(wide);
    return error;
}

/* ---- locks on bytes of the file ---- */

static OVERLAPPED one_byte(uint64_t offset)
{
    OVERLAPPED place = {0};
    place.Offset = (DWORD)offset;
    place.OffsetHigh = (DWORD)(offset >> 32);
    return place;
}

/* A call that waits in the system would hold up all others on the same handle, so none does. */
static bool try_lock(struct platform_file *file, uint64_t offset, DWORD flags)
{
    OVERLAPPED place = one_byte(offset);
    return LockFileEx((HANDLE)file->handle, flags | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &place);
}

int platform_byte_lock(struct platform_file *file, uint64_t offset, bool wait)
{
    while (!try_lock(file, offset, LOCKFILE_EXCLUSIVE_LOCK)) {
        int error = errno_of(GetLastError());
        if (!wait || error != EAGAIN)
            return error;
        platform_sleep(1000U);
    }
    return 0;
}

void platform_byte_unlock(struct platform_file *file, uint64_t offset)
{
    OVERLAPPED place = one_byte(offset);
    (void)UnlockFileEx((HANDLE)file->handle, 0, 1, 0, &place);
}

/* Windows has no call for this, so the lock is tried: a shared one, so that two askers do not exclude
   each other. A process that wants the byte itself at this moment finds it taken. It must not be called
   for a byte that this platform_file has locked: beside its own exclusive lock the system would grant
   the shared one, and the unlocking would take off the exclusive one. */
bool platform_byte_locked(struct platform_file *file, uint64_t offset)
{
    if (!try_lock(file, offset, 0))
        return true;
    platform_byte_unlock(file, offset);
    return false;
}
