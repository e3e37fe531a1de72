/* SPDX-License-Identifier: Apache-2.0 */
/* copia-labinit: the first process of a lab's hub and of each of its nodes.
 *
 *   copia-labinit hub LAB
 *   copia-labinit node NAME STATE-FD [COPIAD]
 *
 * Collects the dead. In a node it starts copiad, once, and writes into STATE-FD what became of
 * it: "running PID", "exited CODE", "killed SIGNAL". SIGUSR1: start it again if it does not run.
 * SIGTERM: end it in order, then the node. Nothing is restarted by itself: a lab is there to show
 * what a cluster does when something is gone. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { END_S = 10 };

struct init {
	const char *copiad; /* NULL: none */
	int state_fd;
	pid_t daemon; /* 0: does not run */
	bool ending;
	sigset_t before; /* the mask that children get */
};

static void note(const struct init *init, const char *word, int value)
{
	char line[64];
	int len = snprintf(line, sizeof(line), "%s %d\n", word, value);
	if (init->state_fd < 0)
		return;
	/* a reader may see the old tail for a moment, never a wrong first line */
	if (pwrite(init->state_fd, line, (size_t)len, 0) != len ||
	    ftruncate(init->state_fd, len) < 0)
		fprintf(stderr, "copia-labinit: cannot write the state: %s\n", strerror(errno));
}

static void start_daemon(struct init *init)
{
	if (!init->copiad || init->daemon || init->ending)
		return;
	pid_t pid = fork();
	if (pid == 0) {
		(void)setsid();
		(void)sigprocmask(SIG_SETMASK, &init->before, NULL);
		(void)execl(init->copiad, "copiad", (char *)NULL);
		fprintf(stderr, "copia-labinit: start %s: %s\n", init->copiad, strerror(errno));
		_exit(127);
	}
	if (pid < 0) {
		fprintf(stderr, "copia-labinit: fork: %s\n", strerror(errno));
		note(init, "exited", 127);
		return;
	}
	init->daemon = pid;
	note(init, "running", pid);
}

static void collect(struct init *init)
{
	pid_t pid;
	int status;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != init->daemon)
			continue;
		init->daemon = 0;
		if (WIFEXITED(status))
			note(init, "exited", WEXITSTATUS(status));
		else
			note(init, "killed", WTERMSIG(status));
	}
}

static void end(struct init *init, timer_t timer)
{
	if (init->ending)
		return;
	init->ending = true;
	if (init->daemon)
		(void)kill(init->daemon, SIGTERM);
	struct itimerspec after = { .it_value = { .tv_sec = END_S } };
	(void)timer_settime(timer, 0, &after, NULL);
}

static _Noreturn void run(struct init *init)
{
	sigset_t set;
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	(void)sigemptyset(&set);
	static const int signals[] = { SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGALRM };
	for (unsigned k = 0; k < sizeof(signals) / sizeof(signals[0]); k++)
		(void)sigaddset(&set, signals[k]);
	(void)sigprocmask(SIG_BLOCK, &set, &init->before);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
		exit(1);
	start_daemon(init);
	for (;;) {
		int number = sigwaitinfo(&set, NULL);
		if (number == SIGCHLD)
			collect(init);
		else if (number == SIGUSR1)
			start_daemon(init);
		else if (number == SIGTERM || number == SIGINT)
			end(init, timer);
		if (number == SIGALRM || (init->ending && !init->daemon))
			exit(0); /* and the kernel ends all that is left in the namespace */
	}
}

int main(int argc, char **argv)
{
	struct init init = { .state_fd = -1 };
	bool node = argc >= 4 && argc <= 5 && strcmp(argv[1], "node") == 0;
	bool hub = argc == 3 && strcmp(argv[1], "hub") == 0;
	if (!node && !hub) {
		fprintf(stderr, "copia-labinit: started by \"copia lab up\", not by hand\n");
		return 2;
	}
	if (getpid() != 1) {
		fprintf(stderr, "copia-labinit: not the first process of a pid namespace\n");
		return 1;
	}
	(void)prctl(PR_SET_NAME, hub ? "copia-labhub" : "copia-labinit");
	(void)umask(022);
	if (chdir("/") < 0)
		return 1;
	if (node) {
		init.state_fd = atoi(argv[3]);
		(void)fcntl(init.state_fd, F_SETFD, FD_CLOEXEC);
		init.copiad = argc == 5 ? argv[4] : NULL;
		if (!init.copiad)
			note(&init, "none", 0);
	}
	run(&init);
}
