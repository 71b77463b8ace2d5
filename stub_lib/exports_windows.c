/*
 * exports_windows.c: what the DLL exports beside its own control functions.
 *
 * SPDX-License-Identifier: MIT
 */
#include "functions.h"

/* The header with the functions of PKCS #11 is for clients, too, and cannot say that they are to
   be exported. In a file of its own: the compiler does not see the assembler's section change. */
#if defined(_MSC_VER)
#define EXPORT(name, parameters) __pragma(comment(linker, "/EXPORT:" #name))
#else
#define EXPORT(name, parameters) \
    __asm__(".section .drectve\n\t.ascii \" -export:" #name "\"\n\t.text");
#endif
CRYPTOKI_FUNCTIONS(EXPORT)
CLUSTER_FUNCTIONS(EXPORT)
