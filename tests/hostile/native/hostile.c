/* A native policy that does everything it must not. What is wrong with the entry or the table is
 * chosen by a macro when it is compiled; what goes wrong in `decide`, by the option `attack`. */
#include <stdio.h>
#include <stdlib.h>

#include "plastic_plugin.h"

static char attack[32];
static uint32_t decided;
static const plastic_host *host;

static plastic_str text(const char *words) {
    plastic_str s;
    s.ptr = words;
    s.len = strlen(words);
    return s;
}

static int is(const char *name) { return strcmp(attack, name) == 0; }

static int32_t create(const plastic_host *h, void **self) {
    host = h;
    *self = attack;
#ifdef CREATE_FAILS
    return PLASTIC_REFUSED;
#else
    return PLASTIC_OK;
#endif
}

static void destroy(void *self) { (void)self; }

static int32_t describe(void *self, plastic_emit_info emit, void *to) {
    plastic_info info;
    (void)self;
    PLASTIC_CLEAR(info);
    info.name = text("hostile-native");
    info.version = text("0.0.1");
    info.options_schema = text("{\"type\":\"object\"}");
    emit(to, &info);
    return PLASTIC_OK;
}

/* {"attack":"name"} */
static int32_t configure(void *self, plastic_str options) {
    const char *colon = memchr(options.ptr, ':', (size_t)options.len);
    size_t i = 0;
    (void)self;
    memset(attack, 0, sizeof attack);
    if (colon == NULL) return PLASTIC_OK;
    for (colon += 2; *colon != '"' && i + 1 < sizeof attack; i++) attack[i] = *colon++;
    return PLASTIC_OK;
}

static int32_t start(void *self, const plastic_run *run, plastic_slices slices) {
    (void)self;
    (void)run;
    (void)slices;
    decided = 0;
    return PLASTIC_OK;
}

/* An action as a newer header might have it. */
typedef struct {
    plastic_action old;
    uint64_t more[3];
} newer_action;

static int32_t decide(void *self, const plastic_observation *seen, plastic_emit_plan emit, void *to) {
    static uint64_t room[8];
    plastic_action action;
    newer_action newer[3];
    plastic_plan plan;
    uint32_t components[1] = {0};
    char reason[32];
    (void)self;

    sprintf(reason, "decision %u", decided);
    PLASTIC_CLEAR(plan);
    PLASTIC_CLEAR(action);
    action.change = PLASTIC_SET_RANK;
    action.n = 1;
    action.reason = text(reason);
    plan.actions.ptr = &action;
    plan.actions.len = 1;
    /* Only the second step is attacked. */
    if (seen->step != 2) {
        decided++;
        emit(to, &plan);
        return PLASTIC_OK;
    }
    if (is("null-plan")) emit(to, NULL);
    else if (is("unaligned-plan")) emit(to, (const plastic_plan *)(const void *)((const char *)room + 1));
    else if (is("short-plan")) {
        plan.struct_size = 40;
        emit(to, &plan);
    } else if (is("null-actions")) {
        plan.actions.ptr = NULL;
        plan.actions.len = 5;
        emit(to, &plan);
    } else if (is("short-actions")) {
        action.struct_size = 8;
        emit(to, &plan);
    } else if (is("newer-actions")) {
        uint32_t i;
        memset(newer, 0, sizeof newer);
        for (i = 0; i < 3; i++) {
            newer[i].old = action;
            newer[i].old.struct_size = sizeof(newer_action);
            newer[i].old.slice = i;
            newer[i].more[0] = ~UINT64_C(0);
        }
        plan.struct_size = sizeof plan;
        plan.actions.ptr = &newer[0].old;
        plan.actions.len = 3;
        emit(to, &plan);
    } else if (is("uneven-actions")) {
        plastic_action two[2];
        two[0] = two[1] = action;
        two[1].struct_size = 56;
        plan.actions.ptr = two;
        plan.actions.len = 2;
        emit(to, &plan);
    } else if (is("endless-actions")) {
        plan.actions.len = UINT64_C(1) << 60;
        emit(to, &plan);
    } else if (is("endless-text")) {
        action.reason.len = UINT64_C(1) << 40;
        emit(to, &plan);
    } else if (is("no-utf8")) {
        action.reason = text("\xff\xfe");
        emit(to, &plan);
    } else if (is("no-change")) {
        action.change = 99;
        emit(to, &plan);
    } else if (is("null-components")) {
        action.change = PLASTIC_SLEEP;
        action.components.ptr = NULL;
        action.components.len = 3;
        emit(to, &plan);
    } else if (is("unknown-slice")) {
        action.slice = 1000;
        action.change = PLASTIC_SLEEP;
        action.components.ptr = components;
        action.components.len = 1;
        emit(to, &plan);
    } else if (is("bad-attribute")) {
        static plastic_attribute a;
        PLASTIC_CLEAR(a);
        a.kind = 17;
        a.name = text("a");
        plan.attributes.ptr = &a;
        plan.attributes.len = 1;
        emit(to, &plan);
    } else if (is("nan")) {
        static double zero;
        plan.has_predicted = 1;
        plan.predicted = zero / zero;
        emit(to, &plan);
    } else if (is("twice")) {
        emit(to, &plan);
        emit(to, &plan);
    } else if (is("log")) {
        uint32_t i;
        for (i = 0; i < 100000; i++) host->log(host->context, PLASTIC_INFO, text("a line"));
        emit(to, &plan);
    } else if (is("print")) {
        uint32_t i;
        for (i = 0; i < 1000; i++) printf("printed %u, and a number of more words to fill the pipe\n", i);
        fflush(stdout);
        emit(to, &plan);
    } else if (is("refuse")) return PLASTIC_REFUSED;
    else if (is("misfit")) return PLASTIC_MISFIT;
    else if (is("code")) return 77;
    else if (is("segv")) {
        /* Not a constant, or the compiler sees what is coming. */
        volatile uintptr_t nowhere = 8;
        *(volatile int *)nowhere = 1;
    } else if (is("abort")) {
        fputs("the last words\n", stderr);
        abort();
    } else if (is("exit")) exit(3);
    else if (is("hang")) {
        volatile int forever = 1;
        while (forever) {
        }
    } else if (is("memory")) {
        char *p;
        while ((p = malloc(1 << 20)) != NULL) memset(p, 1, 1 << 20);
        fputs("memory allocation of 1048576 bytes failed\n", stderr);
        abort();
    } else if (is("stdin")) {
        /* Closed: not the parent's. */
        sprintf(reason, "read %d", getchar());
        action.reason = text(reason);
        emit(to, &plan);
    } else if (is("environment")) {
        sprintf(reason, "home %s", getenv("HOME") == NULL ? "unknown" : "known");
        action.reason = text(reason);
        emit(to, &plan);
    } else if (is("garble")) {
        /* The socket is some file descriptor above standard error. */
        const char junk[16] = {4, 0, 0, 0, 99, 99, 99, 99};
        extern long write(int, const void *, size_t);
        int fd;
        for (fd = 3; fd < 16 && write(fd, junk, 8) != 8; fd++) {
        }
    }
    return PLASTIC_OK;
}

static int32_t snapshot(void *self, plastic_emit_bytes emit, void *to) {
    plastic_bytes b;
    (void)self;
    b.ptr = (const uint8_t *)&decided;
    b.len = sizeof decided;
    emit(to, b);
    return PLASTIC_OK;
}

static int32_t restore(void *self, plastic_bytes state) {
    (void)self;
    memcpy(&decided, state.ptr, sizeof decided);
    return PLASTIC_OK;
}

static void last_error(void *self, plastic_emit_text emit, void *to) {
    emit(to, text(self == NULL ? "create says no" : "decide says no"));
}

static const void *get_extension(void *self, plastic_str id) {
    (void)self;
    (void)id;
    return NULL;
}

#ifndef TABLE_SIZE
#define TABLE_SIZE sizeof(plastic_policy)
#endif
#ifndef DECIDE
#define DECIDE decide
#endif
#ifndef TABLE
#define TABLE &POLICY
#endif

/* Larger than its host knows it: a newer table has more functions at its end. */
typedef struct {
    plastic_policy policy;
    void (*more[4])(void);
} newer_policy;

static const newer_policy NEWER = {
    {TABLE_SIZE, 0, create, destroy, describe, configure, start, DECIDE, snapshot, restore, last_error, get_extension},
    {NULL, NULL, NULL, NULL},
};
#define POLICY NEWER.policy

static const void *get(uint32_t host_minor) {
    (void)host_minor;
    return TABLE;
}

#ifndef MAGIC
#define MAGIC PLASTIC_MAGIC
#endif
#ifndef MAJOR
#define MAJOR PLASTIC_ABI_MAJOR
#endif
#ifndef ENTRY_SIZE
#define ENTRY_SIZE sizeof(plastic_entry)
#endif
#ifndef HOST_MINOR
#define HOST_MINOR 0
#endif
#ifndef KIND
#define KIND PLASTIC_POLICY
#endif
#ifndef GET
#define GET get
#endif

#ifdef NO_ENTRY
PLASTIC_EXPORT int something_else(void);
int something_else(void) { return get(0) != NULL; }
#else
PLASTIC_EXPORT const plastic_entry plastic_plugin_entry = {MAGIC, MAJOR, ENTRY_SIZE, HOST_MINOR, 0, KIND, GET};
#endif
