/* The policy of examples/top-heavy as a native library in C: the later a layer, the more of the
 * budget it gets. Same slices, same plan. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "plastic_plugin.h"

/* What it remembers of the slices and of the run. */
typedef struct {
    uint32_t layer;
    uint64_t dense;     /* parameters while dense */
    uint64_t component; /* parameters of one awake component */
} facts;

typedef struct {
    uint64_t budget;
    uint64_t count;
    facts *slices;
    const char *error; /* why the last call failed */
} top_heavy;

static const char *create_error = "";

static plastic_str text(const char *words) {
    plastic_str s;
    s.ptr = words;
    s.len = strlen(words);
    return s;
}

static int32_t create(const plastic_host *host, void **self) {
    (void)host; /* it logs nothing */
    *self = calloc(1, sizeof(top_heavy));
    if (*self == NULL) {
        create_error = "no memory";
        return PLASTIC_PANICKED;
    }
    ((top_heavy *)*self)->error = "";
    return PLASTIC_OK;
}

static void destroy(void *self) {
    free(((top_heavy *)self)->slices);
    free(self);
}

static int32_t describe(void *self, plastic_emit_info emit, void *to) {
    plastic_str phase = text("compress");
    plastic_str need = text("spectrum:fisher");
    plastic_info info;
    (void)self;
    PLASTIC_CLEAR(info);
    info.name = text("top-heavy");
    info.version = text("0.1.0");
    info.summary = text("Gives late layers up to twice the share of the first one, under the budget");
    info.phases.ptr = &phase;
    info.phases.len = 1;
    info.needs.ptr = &need;
    info.needs.len = 1;
    info.options_schema = text("{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}");
    emit(to, &info);
    return PLASTIC_OK;
}

static int32_t configure(void *self, plastic_str options) {
    top_heavy *t = self;
    /* No options: the host sends an empty object. */
    if (options.len == 2) return PLASTIC_OK;
    t->error = "top-heavy takes no options";
    return PLASTIC_REFUSED;
}

static int32_t start(void *self, const plastic_run *run, plastic_slices slices) {
    top_heavy *t = self;
    uint64_t i;
    free(t->slices);
    t->count = 0;
    t->slices = calloc(slices.len ? slices.len : 1, sizeof(facts));
    if (t->slices == NULL) {
        t->error = "no memory for the slices";
        return PLASTIC_PANICKED;
    }
    for (i = 0; i < slices.len; i++) {
        const plastic_slice *s = PLASTIC_AT(plastic_slice, slices, i);
        t->slices[i].layer = s->layer;
        t->slices[i].dense = s->dense_parameters;
        t->slices[i].component = s->component_parameters;
    }
    t->count = slices.len;
    t->budget = run->budget;
    return PLASTIC_OK;
}

static double weight(const facts *s, double last) { return (double)s->dense * (1.0 + (double)s->layer / last); }

static int32_t decide(void *self, const plastic_observation *seen, plastic_emit_plan emit, void *to) {
    enum { REASON = 96 };
    top_heavy *t = self;
    double last = 1.0, total = 0.0;
    plastic_action *actions;
    char *reasons;
    plastic_plan plan;
    uint64_t i, n = 0;

    if (seen->slices.len != t->count) {
        t->error = "the observation has other slices than start announced";
        return PLASTIC_REFUSED;
    }
    actions = calloc(t->count ? t->count : 1, sizeof(plastic_action));
    reasons = calloc(t->count ? t->count : 1, REASON);
    if (actions == NULL || reasons == NULL) {
        free(actions);
        free(reasons);
        t->error = "no memory for the plan";
        return PLASTIC_PANICKED;
    }
    for (i = 0; i < t->count; i++)
        if (t->slices[i].layer > last) last = t->slices[i].layer;
    for (i = 0; i < t->count; i++) total += weight(&t->slices[i], last);
    for (i = 0; i < t->count; i++) {
        const facts *s = &t->slices[i];
        const plastic_slice_state *state = PLASTIC_AT(plastic_slice_state, seen->slices, i);
        double share = (double)t->budget * weight(s, last) / total;
        uint32_t rank = (uint32_t)(share / (double)s->component);
        char *reason = reasons + n * REASON;
        if (state->frozen) continue;
        snprintf(reason, REASON, "layer %" PRIu32 " of %.0f: %" PRIu64 " parameters", s->layer, last, (uint64_t)share);
        PLASTIC_CLEAR(actions[n]);
        actions[n].slice = (uint32_t)i;
        actions[n].reason = text(reason);
        if (s->component * rank < s->dense) {
            actions[n].change = PLASTIC_SET_RANK;
            actions[n].n = rank;
        } else {
            actions[n].change = PLASTIC_DENSE;
        }
        n++;
    }
    PLASTIC_CLEAR(plan);
    plan.actions.ptr = actions;
    plan.actions.len = n;
    emit(to, &plan);
    free(reasons);
    free(actions);
    return PLASTIC_OK;
}

/* Nothing is carried from step to step. */
static int32_t snapshot(void *self, plastic_emit_bytes emit, void *to) {
    plastic_bytes none = {NULL, 0};
    (void)self;
    emit(to, none);
    return PLASTIC_OK;
}

static int32_t restore(void *self, plastic_bytes state) {
    ((top_heavy *)self)->error = "top-heavy keeps no state";
    return state.len == 0 ? PLASTIC_OK : PLASTIC_REFUSED;
}

static void last_error(void *self, plastic_emit_text emit, void *to) {
    emit(to, text(self == NULL ? create_error : ((top_heavy *)self)->error));
}

static const void *get_extension(void *self, plastic_str id) {
    (void)self;
    (void)id;
    return NULL;
}

static const plastic_policy POLICY = {
    sizeof(plastic_policy), 0,       create,  destroy, describe,   configure,
    start,                  decide, snapshot, restore, last_error, get_extension,
};

static const void *get(uint32_t host_minor) {
    (void)host_minor; /* every 1.x host will do */
    return &POLICY;
}

PLASTIC_EXPORT const plastic_entry plastic_plugin_entry = {
    PLASTIC_MAGIC, PLASTIC_ABI_MAJOR, sizeof(plastic_entry), 0, PLASTIC_ABI_MINOR, PLASTIC_POLICY, get,
};
