/* Between the contract's functions and `plastic_evaluator`.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost. */
#include "evaluator.h"
#include <stdlib.h>
#include <string.h>

/* `plugin build` takes them from plugin.toml. */
#ifndef PLASTIC_NAME
#define PLASTIC_NAME "test"
#define PLASTIC_VERSION "0.0.0"
#define PLASTIC_SUMMARY ""
#endif

/* The contract's records are the callee's; natively a test owns them. */
#ifdef __wasm__
#define FREE(type, record) type##_free(record)
#else
#define FREE(type, record) (void)(record)
#endif

/* Windows asked for at once: the host batches them. */
enum { BATCH = 8 };

/* The contract's answer of a function that may fail. */
static bool answer(const char *error, plastic_string_t *err) {
  if (error != NULL) *err = plastic_string(error);
  return error == NULL;
}

void exports_plastic_judge_describe(exports_plastic_judge_info_t *info) {
  memset(info, 0, sizeof *info);
  info->name = plastic_string(PLASTIC_NAME);
  info->version = plastic_string(PLASTIC_VERSION);
  info->summary = plastic_string(PLASTIC_SUMMARY);
  info->options_schema = plastic_string(
      plastic_evaluator.options ? plastic_evaluator.options
                                : "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}");
}

bool exports_plastic_judge_configure(plastic_string_t *options, plastic_string_t *err) {
  char *text = plastic_memory(NULL, options->len + 1);
  if (options->len > 0) memcpy(text, options->ptr, options->len);
  text[options->len] = 0;
  bool ok = answer(plastic_evaluator.configure ? plastic_evaluator.configure(text) : NULL, err);
  free(text);
  FREE(plastic_string, options);
  return ok;
}

bool exports_plastic_judge_evaluate(plastic_task *task, plastic_verdict *verdict, plastic_string_t *err) {
  memset(verdict, 0, sizeof *verdict);
  const char *error = plastic_evaluator.evaluate(task, verdict);
  if (error != NULL) FREE(exports_plastic_judge_verdict, verdict);
  FREE(exports_plastic_judge_task, task);
  return answer(error, err);
}

#define JUDGE(what)                                \
  va_list arguments;                               \
  va_start(arguments, why);                        \
  verdict->decision = EXPORTS_PLASTIC_JUDGE_DECISION_##what; \
  verdict->reason = plastic_format(why, arguments); \
  va_end(arguments)

void plastic_accept(plastic_verdict *verdict, const char *why, ...) { JUDGE(ACCEPT); }

void plastic_reject(plastic_verdict *verdict, const char *why, ...) { JUDGE(REJECT); }

void plastic_abstain(plastic_verdict *verdict, const char *why, ...) { JUDGE(ABSTAIN); }

void plastic_metric(plastic_verdict *verdict, const char *name, double value, const char *unit) {
  verdict->metrics.ptr = plastic_room(verdict->metrics.ptr, verdict->metrics.len, sizeof *verdict->metrics.ptr);
  exports_plastic_judge_metric_t *metric = &verdict->metrics.ptr[verdict->metrics.len++];
  memset(metric, 0, sizeof *metric);
  metric->name = plastic_string(name);
  metric->value = value;
  metric->unit = plastic_string(unit);
}

const char *plastic_loss(const char *subject, double *nats, uint64_t *tokens) {
  uint32_t windows = plastic_measure_windows();
  double sum = 0;
  *tokens = 0;
  for (uint32_t first = 0; first < windows; first += BATCH) {
    uint32_t numbers[BATCH];
    plastic_list_u32_t indices = {numbers, 0};
    while (indices.len < BATCH && first + indices.len < windows) {
      numbers[indices.len] = first + (uint32_t)indices.len;
      indices.len++;
    }
    plastic_string_t who = {(uint8_t *)subject, strlen(subject)}, err;
    plastic_list_list_f32_t scores;
    if (!plastic_measure_score_windows(&who, &indices, &scores, &err)) {
      return plastic_error("%.*s", (int)err.len, (const char *)err.ptr);
    }
    for (size_t w = 0; w < scores.len; w++) {
      for (size_t t = 0; t < scores.ptr[w].len; t++) sum -= (double)scores.ptr[w].ptr[t];
      *tokens += scores.ptr[w].len;
    }
    FREE(plastic_list_list_f32, &scores);
  }
  if (*tokens == 0) return "there is no evaluation text: the data is shorter than one window";
  *nats = sum / (double)*tokens;
  return NULL;
}
