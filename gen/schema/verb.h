/* SPDX-License-Identifier: Apache-2.0 */
/* What people can type, and how it is shown: one row per verb, made of the services in schema/.
 *
 * The command fills `request` from the words typed by `args`, the daemon answers with one
 * `reply` (or a stream of them), and the command shows it by `view` and `columns`. Neither side
 * has code per verb for that. All rows are constant; strings are never NULL unless said so. */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One option or positional argument: one field of the request. */
struct verb_arg {
	unsigned field;          /* index in request->fields */
	const char *name;        /* long option without dashes, or placeholder of a positional */
	const char *value;       /* what stands for the value in help: "N", "NODE"; "" for a flag */
	const char *description; /* paragraphs separated by '\n' */
	const char *unit;        /* "", "ms" (reads 3s, 5m) or "bytes" (reads 64K) */
	const char *complete;    /* "", node, nodes, job, file, folder, host */
	const char *fallback;    /* what counts when it is not given, as typed; "" for none */
	const char *allowed;     /* "a|b|c" or "" for any */
	uint64_t least, most;    /* of a number; most 0: no limit but the type's */
	char letter;             /* short option, 0 for none */
	bool positional;
	bool rest;     /* takes all that follows, options too */
	bool required; /* an empty value is refused */
	bool hidden;   /* never typed: the command fills it in */
	bool dash;     /* also typed as -VALUE: kill -9 */
};

/* One column of a table or line of a list: one field of the reply or of its rows. */
struct verb_column {
	unsigned field; /* index in the row's descriptor->fields */
	int inner;      /* index in that field's own message, or -1 */
	const char *title;
	const char *as; /* "", size, duration, percent, time, id */
	bool wide;      /* only with --wide */
};

enum verb_view {
	VERB_OWN,    /* own code shows it */
	VERB_TABLE,  /* the rows of field `view_field` */
	VERB_FIELDS, /* one line per field */
	VERB_TEXT,   /* the text of field `view_field` */
	VERB_LINES,  /* a stream: one line per message */
};

struct verb {
	const char *words;       /* "nodes", "lab up" */
	const char *help;        /* one line */
	const char *group;       /* name in verb_groups */
	const char *description; /* paragraphs separated by '\n' */
	const char *example;
	bool local;      /* done by the command itself */
	bool leader;     /* answered by the leader */
	bool root;       /* only root and the daemon's own user */
	bool stream_in;  /* the client may send more messages */
	bool stream_out; /* the daemon sends any number of replies */
	enum verb_view view;
	unsigned view_field; /* index in reply->fields */
	const ProtobufCMessageDescriptor *request, *reply;
	const struct verb_arg *args; /* as declared; positionals in the order typed */
	size_t arg_count;
	const struct verb_column *columns;
	size_t column_count;
};

struct verb_group {
	const char *name, *title;
};

/* Exit codes of the command. */
struct verb_exit {
	int code;
	const char *text;
};
extern const struct verb_exit verb_exits[];
extern const size_t verb_exit_count;

/* Sorted by group, within a group as declared. */
extern const struct verb verbs[];
extern const size_t verb_count;
extern const struct verb_group verb_groups[];
extern const size_t verb_group_count;

/* The verb with exactly these words, or NULL. */
const struct verb *verb_find(const char *words);
