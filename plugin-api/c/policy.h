/* A rank policy in C: fill in `plastic_policy`, and `plastic-host plugin build` does the rest.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.
 *
 * The records are those of the contract (plastic.h, made from rank.wit, says what each field means).
 * Functions answer NULL, or an error: one sentence for the operator, made by plastic_error. */
#ifndef PLASTIC_POLICY_H
#define PLASTIC_POLICY_H

#include "common.h"

typedef exports_plastic_policy_run_t plastic_run;
typedef exports_plastic_policy_slice_t plastic_slice;
typedef exports_plastic_policy_slice_state_t plastic_state;
typedef exports_plastic_policy_observation_t plastic_observation;
typedef exports_plastic_policy_plan_t plastic_plan;

/* What a policy is shown at each step. A slice's id is its place in `slices` and `states`. */
typedef struct {
  const plastic_run *run;
  size_t count;                   /* slices */
  const plastic_slice *slices;    /* what never changes about them */
  const plastic_state *states;    /* what does */
  const plastic_observation *now; /* step, statistics, metrics, the fate of the last plan, ... */
} plastic_seen;

/* A policy. What is NULL is left out. */
typedef struct {
  const char *const *phases; /* ends with NULL; where it is NULL: "compress" */
  const char *const *needs;  /* statistics, ends with NULL; `configure` may change it */
  const char *options;       /* JSON Schema of the options; where it is NULL there are none */
  const char *(*configure)(const char *options);
  const char *(*start)(const plastic_run *run, const plastic_slice *slices, size_t count);
  const char *(*decide)(const plastic_seen *seen, plastic_plan *plan);
  /* State to carry over a resume: bytes that stay in place until the next call. */
  const void *(*snapshot)(size_t *length);
  const char *(*restore)(const void *state, size_t length);
} plastic_policy_t;

/* The policy: yours. */
extern plastic_policy_t plastic_policy;

/* ---- planning: a slice at most once, with a reason for people, in the manner of printf ---- */

/* Exactly `rank` components awake, the largest first. */
void plastic_set_rank(plastic_plan *plan, size_t slice, uint32_t rank, const char *why, ...) PLASTIC_PRINTF(4, 5);
/* Puts the `n` smallest awake components to sleep. */
void plastic_sleep(plastic_plan *plan, size_t slice, uint32_t n, const char *why, ...) PLASTIC_PRINTF(4, 5);
/* Wakes the `n` largest sleeping components. */
void plastic_wake(plastic_plan *plan, size_t slice, uint32_t n, const char *why, ...) PLASTIC_PRINTF(4, 5);
/* Back to the base's own weights. */
void plastic_dense(plastic_plan *plan, size_t slice, const char *why, ...) PLASTIC_PRINTF(3, 4);
/* Predicts the rise of the loss over the base, in nats per token. */
void plastic_predict(plastic_plan *plan, double loss_increase);
/* Ends the run after this step. */
void plastic_stop(plastic_plan *plan, const char *why, ...) PLASTIC_PRINTF(2, 3);

/* ---- asking ---- */

/* Whether factors of this rank are smaller than the dense slice. */
bool plastic_saves(const plastic_slice *slice, uint64_t rank);
/* A statistic of a slice, by its name in `needs`, such as "spectrum:fisher"; NULL and 0 where the
 * host sent none. */
const float *plastic_series(const plastic_seen *seen, size_t slice, const char *need, size_t *length);

#endif
