/* What policies and evaluators in C share: messages, errors and options.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost. */
#ifndef PLASTIC_COMMON_H
#define PLASTIC_COMMON_H

#include "plastic.h"
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lets the compiler check a format against its arguments. */
#define PLASTIC_PRINTF(format, first) __attribute__((__format__(__printf__, format, first)))

/* Sends a line to the operator. Level: 0 trace, 1 debug, 2 info, 3 warning, 4 error. */
void plastic_log(uint8_t level, const char *format, ...) PLASTIC_PRINTF(2, 3);

/* An error to return: one sentence for the operator. It lies in memory of the SDK's and holds until
 * the next error. */
const char *plastic_error(const char *format, ...) PLASTIC_PRINTF(1, 2);

/* An option's value, from the JSON object that `configure` gets; `otherwise` where it is not given or
 * of another type. The host has checked types and ranges against the schema. */
double plastic_number(const char *options, const char *name, double otherwise);
bool plastic_flag(const char *options, const char *name, bool otherwise);

/* A text, copied into `buffer` of `size` bytes, cut to fit and always ended with 0. Escapes stay as
 * they are: options with a fixed list of values have none. */
const char *plastic_text(const char *options, const char *name, const char *otherwise, char *buffer, size_t size);

/* Whether a string of the contract, which does not end with 0, is this text. */
bool plastic_is(plastic_string_t string, const char *text);

/* A new string of the contract. */
plastic_string_t plastic_string(const char *text);
plastic_string_t plastic_format(const char *format, va_list arguments);

/* For the SDK itself: memory that is there or ends the call; the array with room for one more. */
void *plastic_memory(void *old, size_t bytes);
void *plastic_room(void *array, size_t count, size_t size);

#endif
