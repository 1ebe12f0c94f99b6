/* An evaluator in C: fill in `plastic_evaluator`, and `plastic-host plugin build` does the rest.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.
 *
 * What the host can be asked to measure are the functions plastic_measure_... of plastic.h, made from
 * rank.wit. Functions answer NULL, or an error: one sentence for the operator, made by plastic_error. */
#ifndef PLASTIC_EVALUATOR_H
#define PLASTIC_EVALUATOR_H

#include "common.h"

typedef exports_plastic_judge_task_t plastic_task;
typedef exports_plastic_judge_verdict_t plastic_verdict;

/* An evaluator. What is NULL is left out. */
typedef struct {
  const char *options; /* JSON Schema of the options; where it is NULL there are none */
  const char *(*configure)(const char *options);
  const char *(*evaluate)(const plastic_task *task, plastic_verdict *verdict);
} plastic_evaluator_t;

/* The evaluator: yours. */
extern plastic_evaluator_t plastic_evaluator;

/* ---- judging, with a reason for people, in the manner of printf ---- */

void plastic_accept(plastic_verdict *verdict, const char *why, ...) PLASTIC_PRINTF(2, 3);
void plastic_reject(plastic_verdict *verdict, const char *why, ...) PLASTIC_PRINTF(2, 3);
void plastic_abstain(plastic_verdict *verdict, const char *why, ...) PLASTIC_PRINTF(2, 3);
/* Adds a figure, lower being better; name the rise of the loss over the base `loss-increase`. */
void plastic_metric(plastic_verdict *verdict, const char *name, double value, const char *unit);

/* ---- measuring: `subject` is "base", "current" or "candidate" ---- */

/* Mean loss over the evaluation text in nats per token, and the number of tokens it was taken over. */
const char *plastic_loss(const char *subject, double *nats, uint64_t *tokens);

#endif
