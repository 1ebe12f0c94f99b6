/*
 * The contract of plastic-host's plugins as a C ABI, version 1.0: for policies and evaluators that
 * are native libraries (.so, .dylib). wit/rank.wit is the authority on what each field means; the
 * names here are the same.
 *
 * A library exports one symbol, the DATA `plastic_plugin_entry`. It names the version of this ABI
 * and hands out a table of functions. The host reads it from the file before it loads the library.
 *
 * Versions     The major version must match. Minor versions only append: fields at the end of
 *              structs, functions at the end of tables. `plastic_entry.min_host_minor` is the
 *              oldest host a plugin can work with; `get` is told the host's minor version.
 * Sizes        Every struct and table begins with its size in bytes, as its writer knew it. Read a
 *              field only where PLASTIC_HAS says it is there. An array of structs is stepped by
 *              the `struct_size` of its first element; all its elements have that one size.
 *              Set a struct up with PLASTIC_CLEAR.
 * Ownership    Nothing is freed, kept or grown across the border. Every pointer is borrowed: what
 *              the host hands over is good until the function returns; what a plugin hands to an
 *              emit function is copied before that returns. Exceptions are written at the field.
 * Answers      are handed over by calling an emit function exactly once, with the `to` that came
 *              with it, before the function returns; none where it returns an error.
 * Texts        are UTF-8, a pointer and a length, without a final zero.
 * Lists        are a pointer and a number of elements; the pointer may be NULL where that is 0.
 * Flags        are uint8_t, 0 or 1. `reserved` fields are 0.
 * Errors       are negative, PLASTIC_OK is 0. After PLASTIC_REFUSED and PLASTIC_PANICKED the text
 *              comes from `last_error`.
 * Unwinding    Nothing is thrown across the border: no C++ exception, no longjmp, no panic.
 * Threads      [main]  one thread at a time for one instance, not always the same thread;
 *              [any]   any thread, several at once;
 *              [call]  only by the plugin, on the thread of the call that lent it, until it returns.
 */
#ifndef PLASTIC_PLUGIN_H
#define PLASTIC_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PLASTIC_MAGIC UINT32_C(0x31434c50) /* "PLC1" in memory, little endian */
#define PLASTIC_ABI_MAJOR UINT32_C(1)
#define PLASTIC_ABI_MINOR UINT32_C(0)

/* plastic_entry.kind */
#define PLASTIC_POLICY UINT32_C(1)
#define PLASTIC_EVALUATOR UINT32_C(2)

/* What a function returns. */
#define PLASTIC_OK 0        /* done */
#define PLASTIC_REFUSED (-1) /* an error for the operator; the instance is as good as before */
#define PLASTIC_PANICKED (-2)/* it broke; the instance is destroyed and made again */
#define PLASTIC_MISFIT (-3)  /* a table or struct is too small, or a pointer is NULL */

/* plastic_attribute.kind */
#define PLASTIC_FLAG UINT32_C(0)
#define PLASTIC_INT UINT32_C(1)
#define PLASTIC_NUM UINT32_C(2)
#define PLASTIC_TEXT UINT32_C(3)
#define PLASTIC_NUMS UINT32_C(4)
#define PLASTIC_TEXTS UINT32_C(5)

/* plastic_action.change */
#define PLASTIC_SET_RANK UINT32_C(0) /* exactly `n` awake, the largest first */
#define PLASTIC_SLEEP_N UINT32_C(1)  /* the `n` smallest awake components go to sleep */
#define PLASTIC_WAKE_N UINT32_C(2)   /* the `n` largest sleeping components wake */
#define PLASTIC_SLEEP UINT32_C(3)    /* these `components` go to sleep (numbered by size, largest 0) */
#define PLASTIC_WAKE UINT32_C(4)     /* these `components` wake */
#define PLASTIC_DENSE UINT32_C(5)    /* back to the base's own weights */
#define PLASTIC_FREEZE UINT32_C(6)   /* accept no change from now on */
#define PLASTIC_THAW UINT32_C(7)     /* accept changes again */

/* plastic_verdict.decision */
#define PLASTIC_ACCEPT UINT32_C(0)
#define PLASTIC_REJECT UINT32_C(1)
#define PLASTIC_ABSTAIN UINT32_C(2)

/* The level of a log line. */
#define PLASTIC_TRACE UINT32_C(0)
#define PLASTIC_DEBUG UINT32_C(1)
#define PLASTIC_INFO UINT32_C(2)
#define PLASTIC_WARN UINT32_C(3)
#define PLASTIC_ERROR UINT32_C(4)

/* Whether the writer of `*p`, a `type`, knew `field`. */
#define PLASTIC_HAS(p, type, field) \
    ((p)->struct_size >= offsetof(type, field) + sizeof(((const type *)0)->field))

/* Sets a struct to zero and writes its size into it. */
#define PLASTIC_CLEAR(s) (memset(&(s), 0, sizeof(s)), (void)((s).struct_size = (uint32_t)sizeof(s)))

/* Element `i` of a list whose elements may be larger or smaller than this header knows. */
#define PLASTIC_AT(type, list, i) \
    ((const type *)(const void *)((const char *)(list).ptr + (size_t)(i) * (list).ptr->struct_size))

#if defined(_WIN32)
#define PLASTIC_EXPORT __declspec(dllexport)
#else
#define PLASTIC_EXPORT __attribute__((visibility("default")))
#endif

/* --- views: what they point at is borrowed; these seven never grow ------------------------------ */

typedef struct plastic_str {
    const char *ptr;
    uint64_t len; /* bytes */
} plastic_str;

typedef struct plastic_strs {
    const plastic_str *ptr;
    uint64_t len;
} plastic_strs;

typedef struct plastic_bytes {
    const uint8_t *ptr;
    uint64_t len;
} plastic_bytes;

typedef struct plastic_u32s {
    const uint32_t *ptr;
    uint64_t len;
} plastic_u32s;

typedef struct plastic_f32s {
    const float *ptr;
    uint64_t len;
} plastic_f32s;

typedef struct plastic_f64s {
    const double *ptr;
    uint64_t len;
} plastic_f64s;

typedef struct plastic_rows {
    const plastic_f32s *ptr;
    uint64_t len;
} plastic_rows;

typedef struct plastic_sequences {
    const plastic_u32s *ptr;
    uint64_t len;
} plastic_sequences;

/* --- types: what both kinds of plugins share ----------------------------------------------------- */

/* A named fact. Names that are not known are ignored. */
typedef struct plastic_attribute {
    uint32_t struct_size;
    uint32_t kind; /* PLASTIC_FLAG ... PLASTIC_TEXTS: which of the fields below holds the value */
    plastic_str name;
    int64_t integer; /* FLAG (0 or 1), INT */
    double number;   /* NUM */
    plastic_str text;
    plastic_f64s numbers;
    plastic_strs texts;
} plastic_attribute;

typedef struct plastic_attributes {
    const plastic_attribute *ptr;
    uint64_t len;
} plastic_attributes;

/* Who a plugin is and what it needs. */
typedef struct plastic_info {
    uint32_t struct_size;
    uint32_t reserved;
    plastic_str name;           /* lower-case, unique on the plugin path */
    plastic_str version;        /* semantic version of the plugin itself */
    plastic_str summary;        /* one sentence for people */
    plastic_strs phases;        /* policy: compress, train, serve; evaluator: none */
    plastic_strs needs;         /* statistics to compute before `decide`, by name */
    plastic_str options_schema; /* JSON Schema (an object schema) of the options */
    plastic_attributes attributes; /* `metrics` (TEXTS), `revises` (FLAG) */
} plastic_info;

/* A measured figure. */
typedef struct plastic_metric {
    uint32_t struct_size;
    uint8_t higher_is_better;
    uint8_t has_low;
    uint8_t has_high;
    uint8_t reserved;
    plastic_str name;
    plastic_str unit; /* nats, tokens/s, bytes, ms, or empty */
    double value;
    double low;  /* confidence interval, where has_low and has_high are 1 */
    double high;
} plastic_metric;

typedef struct plastic_metrics {
    const plastic_metric *ptr;
    uint64_t len;
} plastic_metrics;

/* --- policy -------------------------------------------------------------------------------------- */

/* The run that is about to begin. */
typedef struct plastic_run {
    uint32_t struct_size;
    uint32_t steps;    /* at most */
    plastic_str phase; /* compress, train or serve */
    uint64_t seed;
    uint64_t parameters; /* of all slices when everything is awake */
    uint64_t budget;     /* parameters that may stay awake */
    plastic_attributes attributes;
} plastic_run;

/* What never changes about a slice: one linear projection, y = W x, W of rows x cols. */
typedef struct plastic_slice {
    uint32_t struct_size;
    uint32_t layer;
    plastic_str name; /* as the checkpoint names it */
    plastic_str kind; /* q_proj, down_proj, ... */
    uint32_t group;   /* slices of one group read the same input */
    uint32_t rows;
    uint32_t cols;
    uint32_t max_rank; /* min(rows, cols) */
    uint64_t dense_parameters;
    uint64_t component_parameters; /* rows + cols */
    plastic_attributes attributes;
} plastic_slice;

typedef struct plastic_slices {
    const plastic_slice *ptr;
    uint64_t len;
} plastic_slices;

/* What changes about a slice; the place in the list is the slice's id. */
typedef struct plastic_slice_state {
    uint32_t struct_size;
    uint32_t awake; /* components awake; max_rank while dense */
    uint32_t dwell; /* steps since the last change */
    uint8_t dense;
    uint8_t dense_allowed;
    uint8_t frozen;
    uint8_t reserved;
    uint64_t parameters;   /* awake now */
    uint64_t bytes;        /* of the awake part in memory */
    uint64_t parked_bytes; /* of the parked components */
} plastic_slice_state;

typedef struct plastic_slice_states {
    const plastic_slice_state *ptr;
    uint64_t len;
} plastic_slice_states;

/* One statistic of one slice: `values[offset .. offset + len]`. */
typedef struct plastic_series {
    uint32_t struct_size;
    uint32_t slice;
    uint32_t need; /* place in info.needs, which the last plan's `requests` continue */
    uint32_t offset;
    uint32_t len;
} plastic_series;

typedef struct plastic_series_list {
    const plastic_series *ptr;
    uint64_t len;
} plastic_series_list;

/* What became of the last plan. */
typedef struct plastic_outcome {
    uint32_t struct_size;
    uint32_t step;
    plastic_str fate; /* committed, held, rejected, refused, failed */
    plastic_str reason;
    uint8_t has_predicted;
    uint8_t has_measured;
    uint8_t reserved[6];
    double predicted; /* rise of the loss, nats per token */
    double measured;
    plastic_metrics metrics;
} plastic_outcome;

/* One change of one slice. */
typedef struct plastic_action {
    uint32_t struct_size;
    uint32_t slice;
    uint32_t change; /* PLASTIC_SET_RANK ... PLASTIC_THAW */
    uint32_t n;      /* SET_RANK, SLEEP_N, WAKE_N */
    plastic_u32s components; /* SLEEP, WAKE */
    plastic_str reason;
} plastic_action;

typedef struct plastic_actions {
    const plastic_action *ptr;
    uint64_t len;
} plastic_actions;

/* One rule over all slices: a component stays awake iff value^2 / component_parameters >= level. */
typedef struct plastic_threshold {
    uint32_t struct_size;
    uint32_t need; /* place in info.needs */
    double level;
    plastic_str reason;
} plastic_threshold;

/* An empty plan holds everything as it is. */
typedef struct plastic_plan {
    uint32_t struct_size;
    uint8_t has_predicted;
    uint8_t has_stop;
    uint8_t reserved[2];
    plastic_actions actions;
    const plastic_threshold *threshold; /* applied before `actions`; NULL for none */
    double predicted;                   /* rise of the loss over the base, nats per token */
    plastic_strs requests;              /* statistics wanted next time, beyond `needs` */
    plastic_str stop;                   /* ends the run after this step; says why */
    plastic_attributes attributes;
} plastic_plan;

typedef struct plastic_observation {
    uint32_t struct_size;
    uint32_t step;  /* from 1 */
    uint64_t awake; /* parameters awake in all slices */
    plastic_slice_states slices;
    plastic_series_list series;
    plastic_f32s values;
    plastic_bytes asleep;   /* 1 beside each value whose component sleeps, or empty */
    plastic_metrics metrics; /* of the current state; empty before the first commit */
    const plastic_outcome *last;  /* NULL at the first step */
    const plastic_plan *proposed; /* of the policies before this one; NULL where there are none */
    plastic_attributes attributes;
} plastic_observation;

/* --- evaluator ------------------------------------------------------------------------------------ */

typedef struct plastic_task {
    uint32_t struct_size;
    uint32_t step;
    uint64_t seed;
    plastic_attributes attributes;
} plastic_task;

typedef struct plastic_verdict {
    uint32_t struct_size;
    uint32_t decision; /* PLASTIC_ACCEPT, PLASTIC_REJECT, PLASTIC_ABSTAIN */
    plastic_str reason;
    plastic_metrics metrics; /* name the rise of the loss over the base `loss-increase` */
    plastic_attributes attributes;
} plastic_verdict;

/* A prompt with the answer that is right. */
typedef struct plastic_question {
    uint32_t struct_size;
    uint32_t reserved;
    plastic_str prompt;
    plastic_str answer;
} plastic_question;

/* --- emit functions: [call]; what they are given is borrowed until they return ------------------- */

typedef void (*plastic_emit_info)(void *to, const plastic_info *info);
typedef void (*plastic_emit_plan)(void *to, const plastic_plan *plan);
typedef void (*plastic_emit_verdict)(void *to, const plastic_verdict *verdict);
typedef void (*plastic_emit_text)(void *to, plastic_str text);
typedef void (*plastic_emit_bytes)(void *to, plastic_bytes bytes);
typedef void (*plastic_emit_tokens)(void *to, plastic_u32s tokens);
typedef void (*plastic_emit_rows)(void *to, plastic_rows rows);
typedef void (*plastic_emit_metrics)(void *to, plastic_metrics metrics);
typedef void (*plastic_emit_question)(void *to, const plastic_question *question);

/* --- what the host offers ------------------------------------------------------------------------- */

/* Handed to `create`, owned by the host, good until `destroy` returns: an instance may keep it. */
typedef struct plastic_host {
    uint32_t struct_size;
    uint32_t abi_minor; /* the host's */
    void *context;      /* the host's; first argument of its functions */
    /* [main] One line for the operator. Lines beyond the limit are dropped. */
    void (*log)(void *context, uint32_t level, plastic_str message);
    /* [main] A table of an optional ability of the host, owned by the host, good until `destroy`
     * returns; NULL where it has none of that name. */
    const void *(*get_extension)(void *context, plastic_str id);
} plastic_host;

/* What an evaluator may ask the host to measure: all [call], during `evaluate`. `subject` is `base`,
 * `current` or `candidate`. A function answers by calling `emit` on this thread before it returns;
 * on PLASTIC_REFUSED it has not, and `last_error` has the text. The time is the host's. */
typedef struct plastic_measure {
    uint32_t struct_size;
    uint32_t reserved;
    void *context; /* the host's; first argument of its functions */
    /* Number of windows of evaluation text. */
    uint32_t (*windows)(void *context);
    /* Token ids of one window. */
    int32_t (*window)(void *context, uint32_t index, plastic_emit_tokens emit, void *to);
    /* Log-probabilities of tokens 1.. of each sequence, given the tokens before. */
    int32_t (*score)(void *context, plastic_str subject, plastic_sequences sequences, plastic_emit_rows emit, void *to);
    /* The same for windows of the evaluation text. */
    int32_t (*score_windows)(void *context, plastic_str subject, plastic_u32s indices, plastic_emit_rows emit, void *to);
    /* Text that follows the prompt, greedily decoded. */
    int32_t (*generate)(void *context, plastic_str subject, plastic_str prompt, uint32_t max_tokens,
                        plastic_emit_text emit, void *to);
    int32_t (*tokenize)(void *context, plastic_str text, plastic_emit_tokens emit, void *to);
    int32_t (*detokenize)(void *context, plastic_u32s tokens, plastic_emit_text emit, void *to);
    /* scored-tokens-per-second, awake-parameters, resident-bytes, peak-bytes. */
    int32_t (*counters)(void *context, plastic_str subject, plastic_emit_metrics emit, void *to);
    /* KL(reference || of) of the next-token distributions, nats, at tokens 1.. of each window. */
    int32_t (*divergence)(void *context, plastic_str reference, plastic_str of, plastic_u32s indices,
                          plastic_emit_rows emit, void *to);
    /* Number of prompts with answers in the evaluation text. */
    uint32_t (*examples)(void *context);
    int32_t (*example)(void *context, uint32_t index, plastic_emit_question emit, void *to);
    /* first-token-ms, token-ms (median; interval: 5th and 95th percentile), decode-tokens-per-second. */
    int32_t (*timing)(void *context, plastic_str subject, uint32_t prompt_tokens, uint32_t new_tokens,
                      plastic_emit_metrics emit, void *to);
    /* Why the last of these functions refused. */
    void (*last_error)(void *context, plastic_emit_text emit, void *to);
} plastic_measure;

/* --- what a plugin offers: tables it owns, good for as long as the process lives ------------------ */

/* `self` is the plugin's own, made by `create`, never read by the host. All functions are required. */
typedef struct plastic_policy {
    uint32_t struct_size;
    uint32_t reserved;
    /* [main] Makes an instance and writes it to `*self`. Several may live at once. */
    int32_t (*create)(const plastic_host *host, void **self);
    /* [main] The last call on an instance; frees it. */
    void (*destroy)(void *self);
    /* [main] Who it is. Called again after `configure`, since options may change the needs. */
    int32_t (*describe)(void *self, plastic_emit_info emit, void *to);
    /* [main] Options as a JSON object; called before `start`. */
    int32_t (*configure)(void *self, plastic_str options);
    /* [main] Called once a run, before the first `decide`. */
    int32_t (*start)(void *self, const plastic_run *run, plastic_slices slices);
    /* [main] Asks for a plan. */
    int32_t (*decide)(void *self, const plastic_observation *seen, plastic_emit_plan emit, void *to);
    /* [main] State to carry over a resume or a reload; may be empty. */
    int32_t (*snapshot)(void *self, plastic_emit_bytes emit, void *to);
    /* [main] Puts a snapshot back, after `start`. */
    int32_t (*restore)(void *self, plastic_bytes state);
    /* [main] Why the last call on `self` failed; with `self` NULL, why the last `create` on this
     * thread failed. */
    void (*last_error)(void *self, plastic_emit_text emit, void *to);
    /* [main] A table of an optional ability, NULL for none: "plastic.report/1" is a plastic_report. */
    const void *(*get_extension)(void *self, plastic_str id);
} plastic_policy;

typedef struct plastic_evaluator {
    uint32_t struct_size;
    uint32_t reserved;
    /* [main] As in plastic_policy. */
    int32_t (*create)(const plastic_host *host, void **self);
    void (*destroy)(void *self);
    int32_t (*describe)(void *self, plastic_emit_info emit, void *to);
    int32_t (*configure)(void *self, plastic_str options);
    /* [main] Asks for a verdict on the candidate; `measure` is good until it returns. */
    int32_t (*evaluate)(void *self, const plastic_task *task, const plastic_measure *measure,
                        plastic_emit_verdict emit, void *to);
    /* [main] As in plastic_policy. */
    void (*last_error)(void *self, plastic_emit_text emit, void *to);
    const void *(*get_extension)(void *self, plastic_str id);
} plastic_evaluator;

/* Extension "plastic.report/1" of a policy. */
#define PLASTIC_REPORT "plastic.report/1"
typedef struct plastic_report {
    uint32_t struct_size;
    uint32_t reserved;
    /* [main] What the policy did and why, for people; asked when a run ends. */
    int32_t (*report)(void *self, plastic_emit_text emit, void *to);
} plastic_report;

/* The one exported symbol, constant data. */
typedef struct plastic_entry {
    uint32_t magic;          /* PLASTIC_MAGIC */
    uint32_t abi_major;      /* PLASTIC_ABI_MAJOR */
    uint32_t struct_size;    /* sizeof(plastic_entry) */
    uint32_t min_host_minor; /* oldest host it can work with */
    uint32_t abi_minor;      /* PLASTIC_ABI_MINOR it was built with */
    uint32_t kind;           /* PLASTIC_POLICY or PLASTIC_EVALUATOR */
    /* [any] A plastic_policy or a plastic_evaluator, as `kind` says; NULL refuses this host. */
    const void *(*get)(uint32_t host_minor);
} plastic_entry;

extern PLASTIC_EXPORT const plastic_entry plastic_plugin_entry;

/* --- the layout, checked by whichever compiler reads this; src/abi/mod.rs has the same numbers ---- */

#define PLASTIC_ASSERT(name, condition) typedef char plastic_assert_##name[(condition) ? 1 : -1]
#define PLASTIC_SIZE(type, size) PLASTIC_ASSERT(type, sizeof(type) == (size))

PLASTIC_ASSERT(pointer, sizeof(void *) == 8);
PLASTIC_SIZE(plastic_str, 16);
PLASTIC_SIZE(plastic_strs, 16);
PLASTIC_SIZE(plastic_bytes, 16);
PLASTIC_SIZE(plastic_u32s, 16);
PLASTIC_SIZE(plastic_f32s, 16);
PLASTIC_SIZE(plastic_f64s, 16);
PLASTIC_SIZE(plastic_rows, 16);
PLASTIC_SIZE(plastic_sequences, 16);
PLASTIC_SIZE(plastic_attribute, 88);
PLASTIC_SIZE(plastic_info, 120);
PLASTIC_SIZE(plastic_metric, 64);
PLASTIC_SIZE(plastic_run, 64);
PLASTIC_SIZE(plastic_slice, 88);
PLASTIC_SIZE(plastic_slice_state, 40);
PLASTIC_SIZE(plastic_series, 20);
PLASTIC_SIZE(plastic_outcome, 80);
PLASTIC_SIZE(plastic_action, 48);
PLASTIC_SIZE(plastic_threshold, 32);
PLASTIC_SIZE(plastic_plan, 88);
PLASTIC_SIZE(plastic_observation, 128);
PLASTIC_SIZE(plastic_task, 32);
PLASTIC_SIZE(plastic_verdict, 56);
PLASTIC_SIZE(plastic_question, 40);
PLASTIC_SIZE(plastic_host, 32);
PLASTIC_SIZE(plastic_measure, 120);
PLASTIC_SIZE(plastic_policy, 88);
PLASTIC_SIZE(plastic_evaluator, 64);
PLASTIC_SIZE(plastic_report, 16);
PLASTIC_SIZE(plastic_entry, 32);

#ifdef __cplusplus
}
#endif

#endif
