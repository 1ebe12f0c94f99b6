/* What policies and evaluators in C share.
 * Written by `plastic-host plugin new` and `plugin build`; changes made here are lost. */
#include "common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *plastic_memory(void *old, size_t bytes) {
  void *memory = realloc(old, bytes);
  if (memory == NULL && bytes > 0) abort(); /* the host reports it and goes on without this call */
  return memory;
}

void *plastic_room(void *array, size_t count, size_t size) {
  /* Full at 0, 1, 2, 4, 8, ...: then it doubles. */
  bool full = (count & (count - 1)) == 0;
  return full ? plastic_memory(array, (count == 0 ? 1 : 2 * count) * size) : array;
}

plastic_string_t plastic_format(const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  int length = vsnprintf(NULL, 0, format, again);
  va_end(again);
  plastic_string_t string = {NULL, 0};
  if (length <= 0) return string;
  string.ptr = plastic_memory(NULL, (size_t)length + 1);
  string.len = (size_t)length;
  vsnprintf((char *)string.ptr, (size_t)length + 1, format, arguments);
  return string;
}

plastic_string_t plastic_string(const char *text) {
  plastic_string_t string = {NULL, strlen(text)};
  if (string.len > 0) {
    string.ptr = plastic_memory(NULL, string.len);
    memcpy(string.ptr, text, string.len);
  }
  return string;
}

bool plastic_is(plastic_string_t string, const char *text) {
  return string.len == strlen(text) && memcmp(string.ptr, text, string.len) == 0;
}

void plastic_log(uint8_t level, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  plastic_string_t line = plastic_format(format, arguments);
  va_end(arguments);
#ifdef __wasm__
  plastic_host_log(level, &line);
#else
  fprintf(stderr, "%d: %.*s\n", level, (int)line.len, (const char *)line.ptr);
#endif
  free(line.ptr);
}

const char *plastic_error(const char *format, ...) {
  static char text[1000];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (length >= (int)sizeof text) {
    /* Cut between two characters: half of one is no UTF-8, and the host would not take the rest. */
    char *end = text + sizeof text - 1;
    while (end > text && (*(end - 1) & 0xC0) == 0x80) end--;
    if (end > text) end--;
    *end = 0;
  }
  return text;
}

/* ---- options: one flat JSON object ---- */

static const char *skip_space(const char *json) {
  while (*json == ' ' || *json == '\t' || *json == '\n' || *json == '\r') json++;
  return json;
}

/* From a quote to behind the closing one. */
static const char *skip_text(const char *json) {
  for (json++; *json && *json != '"'; json++) {
    if (*json == '\\' && json[1]) json++;
  }
  return *json ? json + 1 : json;
}

/* To behind a value of any kind. */
static const char *skip_value(const char *json) {
  for (int depth = 0; *json; json++) {
    if (*json == '"') {
      json = skip_text(json) - 1;
    } else if (*json == '[' || *json == '{') {
      depth++;
    } else if (*json == ']' || *json == '}') {
      if (depth == 0) return json;
      depth--;
    } else if (*json == ',' && depth == 0) {
      return json;
    }
  }
  return json;
}

/* Where a member's value begins; NULL where there is none. */
static const char *member(const char *json, const char *name) {
  size_t length = strlen(name);
  json = skip_space(json);
  if (*json != '{') return NULL;
  json = skip_space(json + 1);
  while (*json == '"') {
    const char *key = json + 1;
    const char *end = skip_text(json);
    bool found = (size_t)(end - key) == length + 1 && memcmp(key, name, length) == 0;
    json = skip_space(end);
    if (*json != ':') return NULL;
    json = skip_space(json + 1);
    if (found) return json;
    json = skip_value(json);
    if (*json == ',') json = skip_space(json + 1);
  }
  return NULL;
}

double plastic_number(const char *options, const char *name, double otherwise) {
  const char *value = member(options, name);
  if (value == NULL) return otherwise;
  char *end;
  double number = strtod(value, &end);
  return end == value ? otherwise : number;
}

bool plastic_flag(const char *options, const char *name, bool otherwise) {
  const char *value = member(options, name);
  if (value != NULL && strncmp(value, "true", 4) == 0) return true;
  if (value != NULL && strncmp(value, "false", 5) == 0) return false;
  return otherwise;
}

const char *plastic_text(const char *options, const char *name, const char *otherwise, char *buffer, size_t size) {
  const char *value = member(options, name);
  if (value == NULL || *value != '"') {
    snprintf(buffer, size, "%s", otherwise);
  } else {
    int length = (int)(skip_text(value) - value) - 2;
    snprintf(buffer, size, "%.*s", length > 0 ? length : 0, value + 1);
  }
  return buffer;
}
