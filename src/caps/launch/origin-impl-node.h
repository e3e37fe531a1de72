/* SPDX-License-Identifier: Apache-2.0 */
/* A job at its origin. It lives from the command's request until the command knows its end, or has
 * gone and all ranks are ended. */
#pragma once
#include "caps/launch/launch-impl-node.h"

struct origin_site {
	Copia__LaunchPlace place; /* name borrowed from `name` */
	char *name;
	bool answered, asked_before, lost;
	uint64_t asked_ms;
	uint64_t given; /* input that reached its ranks; UINT64_MAX: none of them reads any more */
	Copia__LaunchSite *report;
};

struct origin_job {
	struct launch *l;
	struct id id;
	char name[96];
	struct call *call; /* NULL: the command has gone */
	Copia__LaunchSpec *spec;
	struct origin_site *sites;
	size_t site_count;
	uint32_t size;
	struct job job;
	bool wants_hashes, started, attached;
	uint8_t *streams; /* by rank: bit 0 stdout, bit 1 stderr have ended */
	uint32_t streams_ended;
	uint64_t over_ms;    /* all ranks have ended since */
	uint64_t started_ms; /* wall clock */
	struct str input;    /* [input_base, …) not known to have reached the ranks */
	uint64_t input_base;
	bool input_ended;
	uint64_t user_us, system_us, max_rss_bytes;
	uint32_t failure_lines;
	bool seen_ucx; /* a rank that hangs does so in UCX */
	uint64_t input_told;
	bool ending_told;
	UT_hash_handle hh;
};

struct origin_job *origin_find(struct launch *l, const struct id *id);
struct origin_site *origin_site_of(struct origin_job *j, uint32_t node);
struct origin_site *origin_site_of_rank(struct origin_job *j, uint32_t rank);
/* Frames of the command behind its request. */
void origin_frame(void *ctx, struct call *c, const uint8_t *body, size_t len, bool last);
void origin_note(struct origin_job *j, const char *fmt, ...) _printf_(2, 3);
void origin_update(struct origin_job *j, Copia__RunUpdate *u);
/* Act on what the state of the job says; may free it. */
void origin_step(struct origin_job *j);
void origin_start_sites(struct origin_job *j);
void origin_send_start(struct origin_job *j, struct origin_site *s, bool again);
void origin_input_send(struct origin_job *j, const struct origin_site *only, uint64_t from);
void origin_given(struct origin_job *j, struct origin_site *s, uint64_t offset);
/* A rank has ended; `tell` passes it on to the command. */
void origin_exit(struct origin_job *j, const Copia__LaunchRankExit *x, bool tell);
void origin_stream_ended(struct origin_job *j, uint32_t rank, uint32_t stream);
/* origin-finalize-node.c */
void origin_look(struct origin_job *j);
void origin_seen(struct origin_job *j, const struct origin_site *s, const Copia__LaunchSeen *seen);
void origin_finalize_note(struct origin_job *j);
void origin_tell_hung(struct origin_job *j);
struct origin_job *origin_free(struct origin_job *j);
