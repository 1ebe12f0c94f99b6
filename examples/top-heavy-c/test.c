/* Runs the policy natively on a made-up model: `make test`. */
#include "plastic_plugin/policy.h"
#include <stdio.h>

int main(void) {
  plastic_run run = {.steps = 8, .parameters = 2 * 64 * 64, .budget = (uint64_t)(0.4 * 2 * 64 * 64)};
  plastic_slice slice = {.rows = 64, .cols = 64, .max_rank = 64, .dense_parameters = 64 * 64, .component_parameters = 128};
  plastic_slice slices[2] = {slice, slice};
  plastic_state states[2] = {{.awake = 64, .dense = true}, {.awake = 64, .dense = true}};
  plastic_observation now = {.step = 1, .awake = 2 * 64 * 64};
  plastic_seen seen = {&run, 2, slices, states, &now};
  slices[1].layer = 1;

  /* A third and two thirds of 0.4 of 2 x 64 x 64, at 128 a component: 8.5 and 17. */
  plastic_plan plan = {0};
  const char *error = plastic_policy.decide(&seen, &plan);
  if (error != NULL || plan.actions.len != 2 || plan.actions.ptr[0].change.val.set_rank != 8 ||
      plan.actions.ptr[1].change.val.set_rank != 17) {
    fprintf(stderr, "expected ranks 8 and 17: %s\n", error ? error : "not so");
    return 1;
  }
  puts("ok");
  return 0;
}
