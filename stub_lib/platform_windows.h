/*
 * platform_windows.h: what the parts of platform.h on Windows share.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_PLATFORM_WINDOWS_H
#define STUB_PLATFORM_WINDOWS_H

#include <wchar.h>

/* UTF-8 as UTF-16, to be freed; NULL with an errno value. */
wchar_t *windows_widen(const char *text, int *error);

#endif
