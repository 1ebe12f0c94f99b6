/* An evaluator: accepts a change while the mean loss rises no more than allowed. */
#include "plastic_plugin/evaluator.h"
#include <math.h>

static double max_loss_increase = 0.1;

static const char *configure(const char *options) {
  max_loss_increase = plastic_number(options, "max_loss_increase", 0.1);
  if (max_loss_increase < 0 || max_loss_increase > 100) {
    return plastic_error("option max_loss_increase is %g, expected 0 to 100", max_loss_increase);
  }
  return NULL;
}

static const char *evaluate(const plastic_task *task, plastic_verdict *verdict) {
  (void)task;
  double base, candidate;
  uint64_t tokens;
  const char *error = plastic_loss("base", &base, &tokens);
  if (error == NULL) error = plastic_loss("candidate", &candidate, &tokens);
  if (error != NULL) return error;

  double rise = candidate - base;
  if (!isfinite(rise)) {
    plastic_reject(verdict, "the candidate's loss is no number");
    return NULL;
  }
  if (rise <= max_loss_increase) {
    plastic_accept(verdict, "loss %.4f -> %.4f nats/token", base, candidate);
  } else {
    plastic_reject(verdict, "loss %.4f -> %.4f nats/token", base, candidate);
  }
  plastic_metric(verdict, "loss-increase", rise, "nats");
  return NULL;
}

plastic_evaluator_t plastic_evaluator = {
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"max_loss_increase\":{"
               "\"type\":\"number\",\"minimum\":0,\"maximum\":100,\"default\":0.1,"
               "\"description\":\"Highest rise of the mean loss that is accepted, nats per token.\"}}}",
    .configure = configure,
    .evaluate = evaluate,
};
