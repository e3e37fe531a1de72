/* SPDX-License-Identifier: Apache-2.0 */
/* The words of the command line: copia lab VERB [--lab NAME] … */
#include "addr.h"
#include "base/units.h"
#include "enter.h"
#include "fault.h"
#include "lab.h"
#include "life.h"
#include "status.h"
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum option { OPTION_JSON = 1, OPTION_BARE = 2, OPTION_ONE_WAY = 4, OPTION_SHARE = 8 };

enum need { NEED_CHANGE, NEED_READ, NEED_CREATE }; /* what a verb wants of the lab */

struct verb {
	const char *name;
	int (*run)(struct lab *lab, const struct lab_request *req, struct err *err);
	unsigned options;
	int least, most; /* words */
	enum need need;
	bool rest; /* the words behind the first are a command */
	const char *usage, *help;
};

static double seconds(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- verbs ---- */

static int verb_up(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint64_t count = 0;
	double begin = seconds();
	unsigned ran = 0;
	if (req->count && parse_u64(req->args[0], 1, LAB_NODES_MAX, &count, NULL) < 0)
		return err_set(err, -EINVAL, "\"%.40s\" nodes: a lab has 1 to %d", req->args[0],
			       LAB_NODES_MAX);
	int r = store_lock(lab, true, err);
	for (unsigned i = 1; i <= lab->count; i++)
		ran += lab->node[i].pid != 0;
	if (r == 0)
		r = life_up(lab, (unsigned)count, req, err);
	if (r == 0)
		printf("lab %s is up: %u node%s, %u started in %.2f s\n", lab->name, lab->count,
		       lab->count == 1 ? "" : "s", lab->count - ran, seconds() - begin);
	return r;
}

static int verb_exec(struct lab *lab, const struct lab_request *req, struct err *err)
{
	unsigned i;
	struct groups g;
	int r = addr_node(lab, req->args[0], &i, err);
	if (r == 0)
		r = groups_load(lab, &g, err);
	return r < 0 ? r : enter_run(lab, &g, i, req->args + 1, err);
}

static int verb_kill(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint64_t bits;
	int r = addr_nodes(lab, req->args[0], &bits, err);
	return r < 0 ? r : life_kill(lab, bits, err);
}

static int verb_start(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint64_t bits;
	int r = addr_nodes(lab, req->args[0], &bits, err);
	return r < 0 ? r : life_start(lab, bits, err);
}

static int verb_pause(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint64_t bits;
	int r = addr_nodes(lab, req->args[0], &bits, err);
	return r < 0 ? r : life_pause(lab, bits, true, err);
}

static int verb_resume(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint64_t bits;
	int r = addr_nodes(lab, req->args[0], &bits, err);
	return r < 0 ? r : life_pause(lab, bits, false, err);
}

static int set_faults(struct lab *lab, const struct lab_request *req, uint32_t loss,
		      struct err *err)
{
	uint64_t from, to;
	struct faults *f = xmalloc(sizeof(*f));
	int r = addr_nodes(lab, req->args[0], &from, err);
	if (r == 0)
		r = addr_nodes(lab, req->args[1], &to, err);
	if (r == 0 && from == to && (from & (from - 1)) == 0)
		r = err_set(err, -EINVAL, "%.40s reaches itself without the network", req->args[0]);
	if (r == 0)
		r = faults_load(lab, f, err);
	for (unsigned a = 1; r == 0 && a <= lab->count; a++)
		for (unsigned b = 1; b <= lab->count; b++)
			if (a != b && from >> (a - 1) & 1 && to >> (b - 1) & 1) {
				f->loss[a][b] = loss;
				if (!req->one_way)
					f->loss[b][a] = loss;
			}
	if (r == 0)
		r = faults_set(lab, f, err);
	free(f);
	return r;
}

static int verb_cut(struct lab *lab, const struct lab_request *req, struct err *err)
{
	return set_faults(lab, req, FAULT_ALL, err);
}

static int verb_loss(struct lab *lab, const struct lab_request *req, struct err *err)
{
	uint32_t loss;
	int r = faults_parse_percent(req->args[2], &loss, err);
	return r < 0 ? r : set_faults(lab, req, loss, err);
}

static int verb_heal(struct lab *lab, const struct lab_request *req, struct err *err)
{
	if (req->count == 1)
		return err_set(err, -EINVAL, "heal: two nodes, or none for all");
	if (req->count == 2)
		return set_faults(lab, req, 0, err);
	struct faults *f = xcalloc(1, sizeof(*f));
	int r = faults_set(lab, f, err);
	free(f);
	return r;
}

static int verb_status(struct lab *lab, const struct lab_request *req, struct err *err)
{
	struct groups g;
	struct faults *f = xmalloc(sizeof(*f));
	int r = groups_load(lab, &g, err);
	if (r == 0)
		r = faults_load(lab, f, err);
	if (r == 0)
		r = status_show(lab, &g, f, req->json, err);
	free(f);
	return r;
}

static int verb_down(struct lab *lab, const struct lab_request *req, struct err *err)
{
	return life_down(lab, err);
}

static const struct verb verbs[] = {
	{ "up", verb_up, OPTION_BARE | OPTION_SHARE, 0, 1, NEED_CREATE, false,
	  "[N] [--bare] [--share DIR]", "make a lab of N nodes (4), or start what is missing" },
	{ "exec", verb_exec, 0, 2, 2, NEED_READ, true, "NODE [--] CMD…",
	  "run CMD in the node; its exit code is the result" },
	{ "kill", verb_kill, 0, 1, 1, NEED_CHANGE, false, "NODES", "power loss" },
	{ "start", verb_start, 0, 1, 1, NEED_CHANGE, false, "NODES",
	  "start again what is off, with the state it had" },
	{ "pause", verb_pause, 0, 1, 1, NEED_CHANGE, false, "NODES", "stop all its processes" },
	{ "resume", verb_resume, 0, 1, 1, NEED_CHANGE, false, "NODES", "let them go on" },
	{ "cut", verb_cut, OPTION_ONE_WAY, 2, 2, NEED_CHANGE, false, "NODES NODES [--one-way]",
	  "let no packet pass between them (one way: from the first to the second)" },
	{ "loss", verb_loss, OPTION_ONE_WAY, 3, 3, NEED_CHANGE, false,
	  "NODES NODES PERCENT [--one-way]", "lose that many packets between them" },
	{ "heal", verb_heal, OPTION_ONE_WAY, 0, 2, NEED_CHANGE, false, "[NODES NODES]",
	  "no cuts and losses any more (between these)" },
	{ "status", verb_status, OPTION_JSON, 0, 0, NEED_READ, false, "[--json]",
	  "nodes, addresses, cuts" },
	{ "down", verb_down, 0, 0, 0, NEED_CHANGE, false, "", "end the lab, leave nothing behind" },
};

/* ---- the command line ---- */

static void print_usage(FILE *out, const struct verb *only)
{
	for (unsigned k = 0; k < ARRAY_LEN(verbs); k++)
		if (!only || only == &verbs[k])
			fprintf(out, "copia lab %s [--lab NAME] %s\n    %s\n", verbs[k].name,
				verbs[k].usage, verbs[k].help);
}

static int missing_value(const char *option, struct err *err)
{
	return err_set(err, -EINVAL, "%s needs a value", option);
}

/* One option at argv[*at]; steps over its value. */
static int read_option(const struct verb *verb, char **argv, int argc, int *at,
		       struct lab_request *req, struct err *err)
{
	const char *word = argv[*at], *equals = strchr(word, '=');
	static const struct {
		const char *name;
		unsigned bit; /* 0: all verbs have it */
		bool value;
	} options[] = { { "--lab", 0, true },
			{ "--json", OPTION_JSON, false },
			{ "--bare", OPTION_BARE, false },
			{ "--one-way", OPTION_ONE_WAY, false },
			{ "--share", OPTION_SHARE, true } };
	size_t len = equals ? (size_t)(equals - word) : strlen(word);
	for (unsigned k = 0; k < ARRAY_LEN(options); k++) {
		if (strlen(options[k].name) != len || strncmp(options[k].name, word, len) != 0 ||
		    (options[k].bit && !(verb->options & options[k].bit)))
			continue;
		const char *value = equals ? equals + 1 : NULL;
		if (!options[k].value && value)
			return err_set(err, -EINVAL, "%s takes no value", options[k].name);
		if (options[k].value && !value && ++*at < argc)
			value = argv[*at];
		if (options[k].value && (!value || !*value))
			return missing_value(options[k].name, err);
		if (options[k].bit == 0)
			req->lab = value;
		else if (options[k].bit == OPTION_SHARE && req->share_count == LAB_SHARES_MAX)
			return err_set(err, -E2BIG, "more than %d times --share", LAB_SHARES_MAX);
		else if (options[k].bit == OPTION_SHARE)
			req->shares[req->share_count++] = value;
		req->json |= options[k].bit == OPTION_JSON;
		req->bare |= options[k].bit == OPTION_BARE;
		req->one_way |= options[k].bit == OPTION_ONE_WAY;
		return 0;
	}
	return err_set(err, -EINVAL, "lab %s has no option %.60s", verb->name, word);
}

static int read_words(const struct verb *verb, int argc, char **argv, struct lab_request *req,
		      struct err *err)
{
	int at = 1;
	req->args = xcalloc((size_t)argc + 1, sizeof(char *));
	for (; at < argc; at++) {
		/* behind the node, exec reads no more options: they are the command's */
		if (verb->rest && req->count >= 1)
			break;
		if (argv[at][0] != '-' || argv[at][1] == '\0') {
			req->args[req->count++] = argv[at];
			continue;
		}
		if (strcmp(argv[at], "--") == 0) {
			at++;
			break;
		}
		int r = read_option(verb, argv, argc, &at, req, err);
		if (r < 0)
			return r;
	}
	if (verb->rest && at < argc && strcmp(argv[at], "--") == 0)
		at++;
	while (at < argc)
		req->args[req->count++] = argv[at++];
	if (req->count < verb->least || (req->count > verb->most && !verb->rest))
		return err_set(err, -EINVAL, "usage: copia lab %s [--lab NAME] %s", verb->name,
			       verb->usage);
	return 0;
}

/* The verb's own answer, or < 0 with *err; -EINVAL means that the words were wrong. */
static int run(const struct verb *verb, const struct lab_request *req, struct err *err)
{
	struct lab lab;
	int r = store_open(&lab, req->lab ? req->lab : "lab", err);
	if (r == 0 && verb->need == NEED_READ && lab.dir_fd < 0)
		r = err_set(err, -ESRCH, "there is no lab %s: copia lab up --lab %s", lab.name,
			    lab.name);
	if (r == 0 && verb->need == NEED_CHANGE)
		r = store_lock(&lab, false, err);
	if (r == 0)
		r = verb->run(&lab, req, err);
	store_close(&lab);
	return r;
}

int lab_main(int argc, char **argv)
{
	struct lab_request req = { 0 };
	struct err err = { 0 };
	const struct verb *verb = NULL;
	const char *name = argc > 0 ? argv[0] : "";
	for (unsigned k = 0; k < ARRAY_LEN(verbs); k++)
		if (strcmp(verbs[k].name, name) == 0)
			verb = &verbs[k];
	bool help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0;
	bool verb_help = verb && argc > 1 && strcmp(argv[1], "--help") == 0;
	if (help || verb_help) {
		print_usage(stdout, verb);
		return LAB_OK;
	}
	if (!verb) {
		fprintf(stderr, "copia: lab has no verb \"%.40s\"\n", name);
		print_usage(stderr, NULL);
		return LAB_USAGE;
	}
	int r = read_words(verb, argc, argv, &req, &err);
	if (r == 0)
		r = run(verb, &req, &err);
	free(req.args);
	if (r >= 0)
		return r;
	fprintf(stderr, "copia: %s\n", err.msg);
	return r == -EINVAL || r == -ERANGE || r == -E2BIG ? LAB_USAGE : LAB_FAILED;
}
