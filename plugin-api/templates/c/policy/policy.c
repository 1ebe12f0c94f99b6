/* A rank policy: every slice keeps the same share of its components. */
#include "plastic_plugin/policy.h"
#include <inttypes.h>

static double keep = 0.5;

static const char *configure(const char *options) {
  keep = plastic_number(options, "keep", 0.5);
  if (keep < 0 || keep > 1) return plastic_error("option keep is %g, expected 0 to 1", keep);
  return NULL;
}

static const char *decide(const plastic_seen *seen, plastic_plan *plan) {
  for (size_t i = 0; i < seen->count; i++) {
    const plastic_slice *slice = &seen->slices[i];
    uint32_t rank = (uint32_t)(keep * slice->max_rank);
    const plastic_state *state = &seen->states[i];
    /* A frozen slice stays as it is; factors of a high rank are larger than the slice itself. */
    if (!state->frozen && plastic_saves(slice, rank) && rank < state->awake) {
      plastic_set_rank(plan, i, rank, "%" PRIu32 " of %" PRIu32, rank, slice->max_rank);
    }
  }
  return NULL;
}

plastic_policy_t plastic_policy = {
    /* .needs = a list such as {"spectrum:fisher", NULL}: statistics to compute; this one looks at none. */
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"keep\":{"
               "\"type\":\"number\",\"minimum\":0,\"maximum\":1,\"default\":0.5,"
               "\"description\":\"Share of its components that a slice keeps.\"}}}",
    .configure = configure,
    .decide = decide,
};
