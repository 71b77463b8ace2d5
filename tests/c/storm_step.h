/*
 * storm_step.h: what victims do one step at a time.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STORM_STEP_H
#define STORM_STEP_H

#include "storm.h"
#include "storm_client.h"

#define KEYRINGS 2U
#define SLOT 1U
#define OTHER_SLOT 2U
#define CLUSTER_ID "step"
#define RULED FUNCTION_C_DigestInit

/* What the file holds, in values. */
struct values {
    uint32_t token;
    uint32_t fault;
    uint32_t latency;
};

/* What has been done before. */
enum beginning { INITIALISED, NOT_INITIALISED, WITHOUT_FILE };

/* One thing that a victim does. */
struct scenario {
    const char *name;
    struct values before;
    struct values after;
    void (*prepare)(void); /* before its steps are counted; may be NULL */
    void (*act)(void);
    enum beginning beginning;
};

extern const struct scenario scenarios[];
extern const size_t scenarios_count;

extern char *stepped_path; /* what the victim works on */

/* The file before a scenario. */
void make_file(const struct scenario *scenario);
void initialise(void);

#endif
