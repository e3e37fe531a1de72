/* SPDX-License-Identifier: Apache-2.0 */
/* Replies as text for people, by the verb's view and columns. Pure but for local time.
 *
 * What came from elsewhere is shown harmlessly: control characters and what is not UTF-8 become
 * '?', so that no node can send commands to the terminal of whoever looks at it. */
#pragma once
#include "base/str.h"

#include "schema/verb.h"

struct show_style {
	bool colour;
	unsigned columns; /* of the terminal; 0: never cut anything */
	bool wide, no_header;
	bool names; /* only the first column, without heading */
};

/* Add the whole reply of a verb with view table, fields or text; others add nothing. */
void show_reply(struct str *out, const struct verb *v, const ProtobufCMessage *reply,
		const struct show_style *s);

enum { SHOW_COLUMNS_MAX = 48 };

/* Widths of the lines shown so far, so that a stream's columns stand below each other. */
struct show_widths {
	unsigned at[SHOW_COLUMNS_MAX];
};

/* Add one message of a stream as one line. */
void show_line(struct str *out, const struct verb *v, const ProtobufCMessage *m,
	       struct show_widths *w, const struct show_style *s);

/* Add `text` harmlessly; with `lines` line breaks and tabs stay. */
void show_text(struct str *out, const char *text, bool lines);
/* Characters of UTF-8 text, each counted as one column. */
unsigned show_width(const char *text);
