/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const names[] = { "error", "warning", "info", "debug" };

static void to_stderr(enum log_level level, const char *area, const char *line)
{
	fprintf(stderr, "%s: %s: %s\n", names[level], area, line);
}

static log_sink *current = to_stderr;
static enum log_level most_wanted = LOG_INFO;

void log_set(log_sink *sink, enum log_level most)
{
	current = sink ? sink : to_stderr;
	most_wanted = most;
}

bool log_wants(enum log_level level)
{
	return level <= most_wanted;
}

const char *log_level_name(enum log_level level)
{
	return names[level];
}

void log_line(enum log_level level, const char *area, const char *fmt, ...)
{
	if (!log_wants(level))
		return;
	char line[1024];
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	for (char *c = line; *c; c++) /* one event, one line, whatever outsiders put into it */
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	current(level, area, line);
}
