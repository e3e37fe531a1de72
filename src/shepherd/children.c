/* SPDX-License-Identifier: Apache-2.0 */
/* Whoever ended: a task, the brain, the probe of an upgrade, or an orphan that became ours. */
#include "shepherd/task.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

void children_ended(struct shepherd *s)
{
	siginfo_t info;
	for (;;) {
		info.si_pid = 0;
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
			return;
		pid_t pid = info.si_pid;
		struct task *t = task_by_pid(s, pid);
		/* The group goes before its leader is reaped: until then its number is not reused.
		 */
		if (t && !t->keep_children)
			(void)kill(-pid, SIGKILL);
		int status = 0;
		struct rusage usage = { 0 };
		if (wait4(pid, &status, WNOHANG, &usage) != pid)
			return;
		if (t)
			task_ended(s, t, status, &usage);
		else if (pid == s->brain.pid)
			brain_ended(s, status);
		else if (pid == s->upgrade_probe)
			upgrade_probed(s, status);
	}
}
