/* SPDX-License-Identifier: Apache-2.0 */
/* Words of a command line become a request, by the verb's row in the table of verbs.
 *
 *   --name VALUE, --name=VALUE, -n VALUE, -nVALUE, --flag, -f; never bundled (-ab is an error)
 *   --            nothing behind it is an option
 *   positionals   in the order of the table; at most one of them takes many words
 *   rest          from its first word on everything is taken as it stands
 *
 * The last of an option given twice counts; options that may be repeated collect. Pure. */
#pragma once
#include "base/err.h"

#include "schema/verb.h"

/* What every verb understands. */
struct args_common {
	bool json, wide, no_header, help;
};

/* Options that every verb has. */
struct args_option {
	const char *name;
	char letter;
	const char *description;
	size_t offset; /* of the bool in struct args_common */
};
extern const struct args_option args_options[];
extern const size_t args_option_count;

/* Fill a new request of verb `v` from `words`. On success the caller owns *ret
 * (protobuf_c_message_free_unpacked); with --help *ret is NULL and ret_common->help true.
 * Errors: -EINVAL, -ERANGE; the message names the option, what is wrong and what is allowed. */
int args_read(const struct verb *v, char *const *words, size_t count, ProtobufCMessage **ret,
	      struct args_common *ret_common, struct err *err);

/* Set (or, when repeated, append) one field from text as typed; `at` is the row for it.
 * Errors: as args_read, without the option's name. */
int args_set(ProtobufCMessage *m, const struct verb_arg *at, const char *text, struct err *err);

/* The field `name` of a request, NULL when it has none. For code that fills in hidden fields. */
const ProtobufCFieldDescriptor *args_field(const struct verb *v, const char *name);

/* "copia drain [OPTIONS] NODE" */
struct str;
void args_usage(struct str *out, const struct verb *v);
