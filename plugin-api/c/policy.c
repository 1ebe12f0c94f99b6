/* Between the contract's functions and `plastic_policy`.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost. */
#include "policy.h"
#include <stdlib.h>
#include <string.h>

/* `plugin build` takes them from plugin.toml. */
#ifndef PLASTIC_NAME
#define PLASTIC_NAME "test"
#define PLASTIC_VERSION "0.0.0"
#define PLASTIC_SUMMARY ""
#endif

/* What `start` announced; it stays for the run. */
static exports_plastic_policy_run_t the_run;
static exports_plastic_policy_list_slice_t the_slices;

/* The contract's records are the callee's; natively a test owns them. */
#ifdef __wasm__
#define FREE(type, record) type##_free(record)
#else
#define FREE(type, record) (void)(record)
#endif

static const char *const default_phases[] = {"compress", NULL};
static const char *const nothing[] = {NULL};

static plastic_list_string_t texts(const char *const *list) {
  plastic_list_string_t out = {NULL, 0};
  for (; *list != NULL; list++) {
    out.ptr = plastic_room(out.ptr, out.len, sizeof *out.ptr);
    out.ptr[out.len++] = plastic_string(*list);
  }
  return out;
}

/* A string of the contract as one of C; the caller frees it. */
static char *c_string(const plastic_string_t *string) {
  char *text = plastic_memory(NULL, string->len + 1);
  if (string->len > 0) memcpy(text, string->ptr, string->len);
  text[string->len] = 0;
  return text;
}

/* The contract's answer of a function that may fail. */
static bool answer(const char *error, plastic_string_t *err) {
  if (error != NULL) *err = plastic_string(error);
  return error == NULL;
}

void exports_plastic_policy_describe(exports_plastic_policy_info_t *info) {
  memset(info, 0, sizeof *info);
  info->name = plastic_string(PLASTIC_NAME);
  info->version = plastic_string(PLASTIC_VERSION);
  info->summary = plastic_string(PLASTIC_SUMMARY);
  info->phases = texts(plastic_policy.phases ? plastic_policy.phases : default_phases);
  info->needs = texts(plastic_policy.needs ? plastic_policy.needs : nothing);
  info->options_schema = plastic_string(
      plastic_policy.options ? plastic_policy.options
                             : "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}");
}

bool exports_plastic_policy_configure(plastic_string_t *options, plastic_string_t *err) {
  char *text = c_string(options);
  const char *error = plastic_policy.configure ? plastic_policy.configure(text) : NULL;
  bool ok = answer(error, err);
  free(text);
  FREE(plastic_string, options);
  return ok;
}

bool exports_plastic_policy_start(exports_plastic_policy_run_t *run, exports_plastic_policy_list_slice_t *slices,
                                  plastic_string_t *err) {
  FREE(exports_plastic_policy_run, &the_run);
  FREE(exports_plastic_policy_list_slice, &the_slices);
  the_run = *run;
  the_slices = *slices;
  return answer(plastic_policy.start ? plastic_policy.start(&the_run, the_slices.ptr, the_slices.len) : NULL, err);
}

bool exports_plastic_policy_decide(plastic_observation *now, plastic_plan *plan, plastic_string_t *err) {
  memset(plan, 0, sizeof *plan);
  const char *error = NULL;
  if (now->slices.len != the_slices.len) {
    error = plastic_error("the observation has %zu slices, start announced %zu", now->slices.len, the_slices.len);
  } else {
    plastic_seen seen = {&the_run, the_slices.len, the_slices.ptr, now->slices.ptr, now};
    error = plastic_policy.decide(&seen, plan);
  }
  if (error != NULL) FREE(exports_plastic_policy_plan, plan);
  FREE(exports_plastic_policy_observation, now);
  return answer(error, err);
}

void exports_plastic_policy_snapshot(plastic_list_u8_t *state) {
  state->len = 0;
  const void *bytes = plastic_policy.snapshot ? plastic_policy.snapshot(&state->len) : NULL;
  state->ptr = state->len > 0 ? plastic_memory(NULL, state->len) : NULL;
  if (state->len > 0) memcpy(state->ptr, bytes, state->len);
}

bool exports_plastic_policy_restore(plastic_list_u8_t *state, plastic_string_t *err) {
  const char *error = NULL;
  if (plastic_policy.restore) {
    error = plastic_policy.restore(state->ptr, state->len);
  } else if (state->len > 0) {
    error = "this policy keeps no state";
  }
  bool ok = answer(error, err);
  FREE(plastic_list_u8, state);
  return ok;
}

/* ---- planning ---- */

static void act(plastic_plan *plan, size_t slice, uint8_t tag, uint32_t n, const char *why, va_list arguments) {
  plan->actions.ptr = plastic_room(plan->actions.ptr, plan->actions.len, sizeof *plan->actions.ptr);
  exports_plastic_policy_action_t *action = &plan->actions.ptr[plan->actions.len++];
  memset(action, 0, sizeof *action);
  action->slice = (uint32_t)slice;
  action->change.tag = tag;
  action->change.val.set_rank = n; /* the same place for every change that counts */
  action->reason = plastic_format(why, arguments);
}

#define ACT(tag, n)                        \
  va_list arguments;                       \
  va_start(arguments, why);                \
  act(plan, slice, tag, n, why, arguments); \
  va_end(arguments)

void plastic_set_rank(plastic_plan *plan, size_t slice, uint32_t rank, const char *why, ...) {
  ACT(EXPORTS_PLASTIC_POLICY_CHANGE_SET_RANK, rank);
}

void plastic_sleep(plastic_plan *plan, size_t slice, uint32_t n, const char *why, ...) {
  ACT(EXPORTS_PLASTIC_POLICY_CHANGE_SLEEP_N, n);
}

void plastic_wake(plastic_plan *plan, size_t slice, uint32_t n, const char *why, ...) {
  ACT(EXPORTS_PLASTIC_POLICY_CHANGE_WAKE_N, n);
}

void plastic_dense(plastic_plan *plan, size_t slice, const char *why, ...) {
  ACT(EXPORTS_PLASTIC_POLICY_CHANGE_DENSE, 0);
}

void plastic_predict(plastic_plan *plan, double loss_increase) {
  plan->predicted.is_some = true;
  plan->predicted.val = loss_increase;
}

void plastic_stop(plastic_plan *plan, const char *why, ...) {
  va_list arguments;
  va_start(arguments, why);
  plan->stop.is_some = true;
  plan->stop.val = plastic_format(why, arguments);
  va_end(arguments);
}

/* ---- asking ---- */

bool plastic_saves(const plastic_slice *slice, uint64_t rank) {
  /* rank * component < dense, where the product may not fit. */
  uint64_t dense = slice->dense_parameters, component = slice->component_parameters;
  return dense > 0 && (component == 0 || rank <= (dense - 1) / component);
}

const float *plastic_series(const plastic_seen *seen, size_t slice, const char *need, size_t *length) {
  const char *const *needs = plastic_policy.needs ? plastic_policy.needs : nothing;
  *length = 0;
  for (uint32_t n = 0; needs[n] != NULL; n++) {
    if (strcmp(needs[n], need) != 0) continue;
    /* The host sends needs one after the other, slices in order: look there first. */
    size_t count = seen->now->series.len, guess = n * seen->count + slice;
    for (size_t tried = 0; tried <= count; tried++) {
      size_t at = tried == 0 ? guess : tried - 1;
      if (at >= count) continue;
      const exports_plastic_policy_series_t *series = &seen->now->series.ptr[at];
      size_t end = (size_t)series->offset + series->len;
      if (series->slice == slice && series->need == n && end <= seen->now->values.len) {
        *length = series->len;
        return seen->now->values.ptr + series->offset;
      }
    }
  }
  return NULL;
}
