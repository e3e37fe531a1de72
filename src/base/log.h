/* SPDX-License-Identifier: Apache-2.0 */
/* One line per change of state, object first, past tense: "node n3 joined".
 *
 * Level by who must act: error = someone now, warning = someone later, info = a change of state,
 * debug = the developer. The sink decides where lines go; before one is set they go to stderr.
 * Library and pure code never logs above debug. No secrets, ever. */
#pragma once
#include "base/util.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

typedef void log_sink(enum log_level level, const char *area, const char *line);

/* Not thread safe: call before threads start. `sink` NULL means stderr. */
void log_set(log_sink *sink, enum log_level most);
void log_line(enum log_level level, const char *area, const char *fmt, ...) _printf_(3, 4);
bool log_wants(enum log_level level);
const char *log_level_name(enum log_level level);

#define log_error(area, ...)   log_line(LOG_ERROR, area, __VA_ARGS__)
#define log_warning(area, ...) log_line(LOG_WARNING, area, __VA_ARGS__)
#define log_info(area, ...)    log_line(LOG_INFO, area, __VA_ARGS__)
#define log_debug(area, ...)                                                                       \
	do {                                                                                       \
		if (log_wants(LOG_DEBUG))                                                          \
			log_line(LOG_DEBUG, area, __VA_ARGS__);                                    \
	} while (0)
