/*
 * text.h: the blank padded text fields of PKCS #11.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_TEXT_H
#define STUB_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* What the module calls itself wherever it is asked. */
#define TEXT_MANUFACTURER "luna_ext stand-in, not an HSM"

static inline void text_pad(uint8_t *field, size_t size, const char *text)
{
    size_t length = strlen(text);
    memset(field, ' ', size);
    memcpy(field, text, length < size ? length : size);
}

#endif
