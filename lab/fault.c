/* SPDX-License-Identifier: Apache-2.0 */
#include "fault.h"
#include "space.h"
#include "store.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int faults_parse_percent(const char *text, uint32_t *ret, struct err *err)
{
	unsigned whole, used = 0;
	char digits[4] = "000";
	const char *dot = strchr(text, '.');
	size_t count = dot ? strlen(dot + 1) : 0;
	if (sscanf(text, "%3u%n", &whole, (int *)&used) != 1 || text[0] < '0' || text[0] > '9' ||
	    (dot ? text + used != dot : text[used] != '\0') || (dot && !count) || count > 3 ||
	    (dot && strspn(dot + 1, "0123456789") != count))
		return err_set(err, -EINVAL,
			       "\"%.40s\" is no percentage: 0 to 100, at most three digits behind "
			       "the point",
			       text);
	memcpy(digits, dot ? dot + 1 : "", count);
	uint32_t value = whole * 1000 + (uint32_t)strtoul(digits, NULL, 10);
	if (value > FAULT_ALL)
		return err_set(err, -ERANGE, "%.40s %% is more than all", text);
	*ret = value;
	return 0;
}

int faults_load(struct lab *lab, struct faults *ret, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	memset(ret, 0, sizeof(*ret));
	int r = store_get(lab, "faults", &text, err);
	char *rest = text.at, *line;
	while (r == 0 && rest && (line = strsep(&rest, "\n"))) {
		unsigned from, to, loss;
		if (sscanf(line, "%u %u %u", &from, &to, &loss) == 3 && from >= 1 && to >= 1 &&
		    from <= LAB_NODES_MAX && to <= LAB_NODES_MAX && loss <= FAULT_ALL)
			ret->loss[from][to] = loss;
	}
	return r;
}

/* Elements of a set of directed links. */
static void add_link(struct str *out, unsigned from, unsigned to)
{
	str_printf(out, "%s\"n%u\" . \"n%u\"", out->len ? ", " : "", from, to);
}

/* A whole table each time: nft replaces it in one transaction. */
static void write_rules(const struct faults *f, struct str *out)
{
	_cleanup_(str_free) struct str cuts = { 0 };
	_cleanup_(str_free) struct str one_way = { 0 };
	_cleanup_(str_free) struct str losses = { 0 };
	for (unsigned from = 1; from <= LAB_NODES_MAX; from++)
		for (unsigned to = 1; to <= LAB_NODES_MAX; to++) {
			uint32_t loss = f->loss[from][to];
			if (loss == FAULT_ALL)
				add_link(&cuts, from, to);
			if (loss == FAULT_ALL && f->loss[to][from] != FAULT_ALL)
				add_link(&one_way, from, to);
			if (loss && loss != FAULT_ALL)
				str_printf(&losses,
					   "\t\tiifname \"n%u\" oifname \"n%u\" numgen random mod "
					   "100000 < %u drop\n",
					   from, to, loss);
		}
	str_puts(out, "table bridge copia-lab\ndelete table bridge copia-lab\n");
	if (!cuts.len && !losses.len)
		return;
	str_puts(out, "table bridge copia-lab {\n\tchain forward {\n"
		      "\t\ttype filter hook forward priority 0;\n");
	/* Where one way is to stay open, answers to "who has this address" must pass the cut one:
	 * without them the open one would fail as well. */
	if (one_way.len)
		str_printf(out,
			   "\t\tiifname . oifname { %s } ether type arp accept\n"
			   "\t\tiifname . oifname { %s } icmpv6 type { nd-neighbor-solicit, "
			   "nd-neighbor-advert } accept\n",
			   one_way.at, one_way.at);
	if (cuts.len)
		str_printf(out, "\t\tiifname . oifname { %s } drop\n", cuts.at);
	str_puts(out, str_text(&losses));
	str_puts(out, "\t}\n}\n");
}

/* Feed the rules to nft; what it says on failure comes back in the message. */
static int run_nft(const struct lab *lab, void *arg, struct err *err)
{
	const struct str *rules = arg;
	int in[2], out[2];
	(void)lab;
	if (pipe(in) < 0 || pipe(out) < 0)
		return err_set(err, -errno, "make pipes: %s", strerror(errno));
	pid_t pid = fork();
	if (pid < 0)
		return err_set(err, -errno, "fork: %s", strerror(errno));
	if (pid == 0) {
		(void)dup2(in[0], 0);
		(void)dup2(out[1], 1);
		(void)dup2(out[1], 2);
		(void)close_range(3, ~0u, 0);
		(void)setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin", 1);
		(void)execlp("nft", "nft", "-f", "-", (char *)NULL);
		_exit(errno == ENOENT ? 127 : 126);
	}
	(void)close(in[0]);
	(void)close(out[1]);
	(void)signal(SIGPIPE, SIG_IGN);
	/* nft reads all before it says anything */
	ssize_t put = write(in[1], rules->at, rules->len);
	(void)close(in[1]);
	char said[400];
	size_t len = 0;
	ssize_t got;
	while ((got = read(out[0], said + len, sizeof(said) - 1 - len)) > 0 &&
	       (len += (size_t)got) < sizeof(said) - 1)
		;
	said[len] = '\0';
	(void)close(out[0]);
	int status = 0;
	(void)waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return err_set(err, -ENOENT,
			       "cuts and losses need the program nft: apt install nftables");
	if (status != 0 || put != (ssize_t)rules->len)
		return err_set(err, -EIO, "nft refused the rules: %s",
			       said[0] ? said : "no reason given");
	return 0;
}

static int enforce(const struct lab *lab, const struct faults *f, struct err *err)
{
	_cleanup_(str_free) struct str rules = { 0 };
	write_rules(f, &rules);
	return space_in_hub(lab, run_nft, &rules, err);
}

int faults_set(struct lab *lab, const struct faults *f, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	int r = lab->hub.pid ? enforce(lab, f, err) : 0;
	if (r < 0)
		return r;
	for (unsigned from = 1; from <= LAB_NODES_MAX; from++)
		for (unsigned to = 1; to <= LAB_NODES_MAX; to++)
			if (f->loss[from][to])
				str_printf(&text, "%u %u %u\n", from, to, f->loss[from][to]);
	return store_put(lab, "faults", str_text(&text), err);
}

int faults_renew(struct lab *lab, struct err *err)
{
	struct faults f;
	int r = faults_load(lab, &f, err);
	for (unsigned from = 1; r == 0 && from <= LAB_NODES_MAX; from++)
		for (unsigned to = 1; to <= LAB_NODES_MAX; to++)
			if (f.loss[from][to])
				return enforce(lab, &f, err);
	return r;
}
