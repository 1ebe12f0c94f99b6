/* Runs the policy natively on a made-up model: `make test`. */
#include "plastic_plugin/policy.h"
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                    \
  if (!(condition)) {                                                       \
    fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    exit(1);                                                                \
  }

int main(void) {
  plastic_run run = {.steps = 8, .parameters = 64 * 48, .budget = 64 * 48 / 2};
  plastic_slice slice = {.rows = 64, .cols = 48, .max_rank = 48, .dense_parameters = 64 * 48, .component_parameters = 64 + 48};
  plastic_state state = {.awake = 48, .dense = true, .dense_allowed = true, .parameters = 64 * 48};
  plastic_observation now = {.step = 1, .awake = 64 * 48};
  plastic_seen seen = {&run, 1, &slice, &state, &now};

  plastic_plan plan = {0};
  CHECK(plastic_policy.configure("{\"keep\": 0.25}") == NULL);
  CHECK(plastic_policy.decide(&seen, &plan) == NULL);
  CHECK(plan.actions.len == 1);
  CHECK(plan.actions.ptr[0].change.tag == EXPORTS_PLASTIC_POLICY_CHANGE_SET_RANK);
  CHECK(plan.actions.ptr[0].change.val.set_rank == 12);
  CHECK(plastic_is(plan.actions.ptr[0].reason, "12 of 48"));

  CHECK(plastic_policy.configure("{\"keep\": 2}") != NULL);
  puts("ok");
  return 0;
}
