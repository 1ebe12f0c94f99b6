/* A policy in a few lines: the later a layer, the more of the budget it gets. */
#include "plastic_plugin/policy.h"
#include <inttypes.h>

static double weight(const plastic_slice *slice, double last) {
  return (double)slice->dense_parameters * (1.0 + slice->layer / last);
}

static const char *decide(const plastic_seen *seen, plastic_plan *plan) {
  double last = 1, total = 0;
  for (size_t i = 0; i < seen->count; i++) {
    if (seen->slices[i].layer > last) last = seen->slices[i].layer;
  }
  for (size_t i = 0; i < seen->count; i++) total += weight(&seen->slices[i], last);
  for (size_t i = 0; i < seen->count; i++) {
    if (seen->states[i].frozen) continue;
    const plastic_slice *slice = &seen->slices[i];
    double share = (double)seen->run->budget * weight(slice, last) / total;
    uint64_t rank = (uint64_t)(share / (double)slice->component_parameters);
    const char *why = "layer %" PRIu32 " of %.0f: %" PRIu64 " parameters";
    if (plastic_saves(slice, rank)) {
      plastic_set_rank(plan, i, (uint32_t)rank, why, slice->layer, last, (uint64_t)share);
    } else {
      plastic_dense(plan, i, why, slice->layer, last, (uint64_t)share);
    }
  }
  return NULL;
}

static const char *const needs[] = {"spectrum:fisher", NULL};

plastic_policy_t plastic_policy = {.needs = needs, .decide = decide};
