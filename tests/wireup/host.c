/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
	const char *name;
	int flag;
} spaces[] = {
	{ "net", CLONE_NEWNET },
	{ "ipc", CLONE_NEWIPC },
	{ "uts", CLONE_NEWUTS },
	{ "mnt", CLONE_NEWNS },
};

static void hold(const char *name, int ready, int gone)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int flags = 0, code = 0;
	for (size_t i = 0; i < ARRAY_LEN(spaces); i++)
		flags |= spaces[i].flag;
	if (unshare(flags) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777") < 0 ||
	    mount("sys", "/sys", "sysfs", 0, NULL) < 0 || /* UCX looks for interfaces there */
	    sethostname(name, strlen(name)) < 0)
		code = errno;
	char byte;
	if (write(ready, &code, sizeof(code)) == sizeof(code) && !code)
		(void)!read(gone, &byte, 1); /* until the maker closes its end */
	_exit(0);
}

/* Run "ip ARGS…" inside the host, or outside when `host` is NULL. */
static int ip(const struct host *host, const char *line, struct err *err)
{
	char copy[256], *argv[32] = { "ip" };
	int count = 1, status;
	snprintf(copy, sizeof(copy), "%s", line);
	char *rest = copy, *word;
	while ((word = strsep(&rest, " ")) && count < 31)
		argv[count++] = word;
	pid_t pid = fork();
	if (pid == 0) {
		if (host && host_enter(host) < 0)
			_exit(126);
		setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
		execvp("ip", argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return err_set(err, -errno, "ip %s: %s", line, strerror(errno));
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return err_set(err,
			       WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -ENOENT : -EIO,
			       "ip %s failed", line);
	return 0;
}

static int host_wire(const struct host *first, const struct host *host, unsigned at, bool bridge,
		     struct err *err)
{
	char line[256];
	const char *name = bridge ? "net0" : "switch";
	int r = ip(host, "link set lo up", err);
	snprintf(line, sizeof(line), "link add %s type bridge", name);
	if (at == 0 && r == 0)
		r = ip(host, line, err);
	snprintf(line, sizeof(line), "link set %s up", name);
	if (at == 0 && r == 0)
		r = ip(host, line, err);
	snprintf(line, sizeof(line), "link add to%u netns %d type veth peer name net0 netns %d", at,
		 (int)first->pid, (int)host->pid);
	if (r == 0 && (at || !bridge))
		r = ip(NULL, line, err);
	snprintf(line, sizeof(line), "link set to%u master %s up", at, name);
	if (r == 0 && (at || !bridge))
		r = ip(first, line, err);
	snprintf(line, sizeof(line), "addr add 10.77.0.%u/24 dev net0", at + 1);
	if (r == 0)
		r = ip(host, line, err);
	return r == 0 ? ip(host, "link set net0 up", err) : r;
}

static int host_make(struct host *host, struct err *err)
{
	int ready[2], gone[2], code = 0;
	if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(gone, O_CLOEXEC) < 0)
		return err_set(err, -errno, "host %s: %s", host->name, strerror(errno));
	host->pid = fork();
	if (host->pid == 0) {
		close(gone[1]);
		hold(host->name, ready[1], gone[0]);
	}
	close(ready[1]);
	close(gone[0]);
	if (host->pid < 0 || read(ready[0], &code, sizeof(code)) != sizeof(code))
		code = EIO;
	close(ready[0]); /* gone[1] stays open as long as this process lives */
	return code ? err_set(err, -code, "host %s: namespaces: %s", host->name, strerror(code))
		    : 0;
}

int hosts_make(struct host *hosts, unsigned count, bool bridge, struct err *err)
{
	int r = 0;
	for (unsigned i = 0; i < count && r == 0; i++) {
		snprintf(hosts[i].name, sizeof(hosts[i].name), "h%u", i);
		r = host_make(&hosts[i], err);
		if (r == 0)
			r = host_wire(&hosts[0], &hosts[i], i, bridge, err);
	}
	return r;
}

int hosts_mislead(struct host *hosts, unsigned count, struct err *err)
{
	int r = 0;
	for (unsigned i = 0; i < count && r == 0; i++) {
		r = ip(&hosts[i], "link add aaa0 type veth peer name aaa1", err);
		if (r == 0)
			r = ip(&hosts[i], "addr add 10.99.0.1/24 dev aaa0", err);
		if (r == 0)
			r = ip(&hosts[i], "link set aaa0 up", err);
		if (r == 0)
			r = ip(&hosts[i], "link set aaa1 up", err);
	}
	return r;
}

void hosts_end(struct host *hosts, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		if (hosts[i].pid <= 0)
			continue;
		kill(hosts[i].pid, SIGKILL);
		waitpid(hosts[i].pid, NULL, 0);
		hosts[i].pid = 0;
	}
}

int host_enter(const struct host *host)
{
	char path[64];
	if (host->pid <= 0)
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(spaces); i++) {
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)host->pid, spaces[i].name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, spaces[i].flag) < 0)
			return -errno;
		close(fd);
	}
	return 0;
}
