/* Runs the evaluator natively on made-up scores: `make test`. */
#include "plastic_plugin/evaluator.h"
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                    \
  if (!(condition)) {                                                       \
    fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    exit(1);                                                                \
  }

/* The host: every token of a subject has the same log-probability. */
static float candidate_score;

uint32_t plastic_measure_windows(void) { return 3; }

bool plastic_measure_score_windows(plastic_string_t *subject, plastic_list_u32_t *indices,
                                   plastic_list_list_f32_t *ret, plastic_string_t *err) {
  static float scores[4];
  static plastic_list_f32_t windows[8];
  (void)err;
  for (size_t i = 0; i < 4; i++) scores[i] = plastic_is(*subject, "base") ? -1.0f : candidate_score;
  for (size_t i = 0; i < indices->len; i++) windows[i] = (plastic_list_f32_t){scores, 4};
  *ret = (plastic_list_list_f32_t){windows, indices->len};
  return true;
}

static int decision(float score) {
  plastic_task task = {.step = 1};
  plastic_verdict verdict = {0};
  candidate_score = score;
  CHECK(plastic_evaluator.evaluate(&task, &verdict) == NULL);
  CHECK(verdict.metrics.len == 1 && plastic_is(verdict.metrics.ptr[0].name, "loss-increase"));
  return verdict.decision;
}

int main(void) {
  CHECK(plastic_evaluator.configure("{}") == NULL);
  CHECK(decision(-1.05f) == EXPORTS_PLASTIC_JUDGE_DECISION_ACCEPT);
  CHECK(decision(-1.2f) == EXPORTS_PLASTIC_JUDGE_DECISION_REJECT);
  CHECK(plastic_evaluator.configure("{\"max_loss_increase\": 0.5}") == NULL);
  CHECK(decision(-1.2f) == EXPORTS_PLASTIC_JUDGE_DECISION_ACCEPT);
  puts("ok");
  return 0;
}
