/* SPDX-License-Identifier: Apache-2.0 */
/* A brain without a will: it does what a test says over the unix socket $COPIA_TEST_SOCKET, with
 * the real link and the real stream library.
 *
 * Frames both ways: u32 length of JSON, u32 length of bytes (native order), JSON, bytes.
 * From the test:  {"request": {…Request…}, "files": [paths to pass]}
 *                 {"ack": {"task", "stream", "upto"}}       output arrived
 *                 {"input": {"task"}} + bytes               for the task's stdin
 *                 {"say": "ready"}                          Ready, with a watchdog: {"watchdog":
 * ms} To the test:    {"event": {…Event…}}, {"output": {"task", "stream", "offset", "finished"}} +
 * bytes,
 *                 {"brain": pid} first, {"terminal": {"task"}} + bytes */
#include "json-in.h"

#include "base/str.h"
#include "io/fdpass.h"
#include "io/proc.h"
#include "io/shepherd-link.h"
#include "io/streams.h"
#include "lib/json.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { TASKS = 4096, CHUNK = 256 << 10 };

struct slot {
	bool used;
	struct id id;
	struct stream_out out[2];
	struct stream_in in;
	struct str input; /* not staged yet */
	bool close_wanted;
	int terminal;
	bool told[2]; /* that an output is finished */
};

static struct slot *slots;
static struct shepherd_link *shepherd;
static struct stream_watch watch;
static struct stream_scratch scratch;
static int control = -1;
static const char *state_dir;

static void write_all(const void *at, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(control, (const char *)at + done, len - done);
		if (n <= 0)
			exit(3);
		done += (size_t)n;
	}
}

static bool read_all(void *at, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(control, (char *)at + done, len - done);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static void tell(const char *json, const void *bytes, size_t len)
{
	uint32_t head[2] = { (uint32_t)strlen(json), (uint32_t)len };
	write_all(head, sizeof(head));
	write_all(json, head[0]);
	if (len > 0)
		write_all(bytes, len);
}

static struct slot *slot_find(const void *id)
{
	for (int i = 0; i < TASKS; i++)
		if (slots[i].used && memcmp(slots[i].id.at, id, ID_SIZE) == 0)
			return &slots[i];
	return NULL;
}

static void slot_drop(struct slot *t)
{
	for (int i = 0; i < 2; i++) {
		if (t->out[i].fd >= 0)
			stream_watch_drop(&watch, t->out[i].fd);
		stream_out_deinit(&t->out[i]);
	}
	stream_in_deinit(&t->in);
	if (t->terminal >= 0)
		stream_watch_drop(&watch, t->terminal);
	close_p(&t->terminal);
	str_free(&t->input);
	t->used = false;
}

static void consume_if(struct slot *t, int i, uint64_t upto)
{
	if (t->out[i].fd >= 0 && stream_out_acked(&t->out[i], upto))
		(void)shepherd_consume(shepherd, &t->id,
				       i ? COPIA__SHEPHERD__STREAM__STREAM_STDERR
					 : COPIA__SHEPHERD__STREAM__STREAM_STDOUT,
				       t->out[i].acked);
}

static void output_read(struct slot *t, int i)
{
	static uint8_t buf[CHUNK];
	struct err err = { 0 };
	struct str line = { 0 };
	char id[ID_TEXT];
	struct stream_out *s = &t->out[i];
	size_t len;
	int r;
	while ((r = stream_out_read(s, &scratch, buf, sizeof(buf), &len, &err)) > 0) {
		str_clear(&line);
		str_printf(&line, "{\"output\":{\"task\":\"%s\",\"stream\":%d,\"offset\":%llu}}",
			   id_show(&t->id, id), i + 1, (unsigned long long)(s->sent - len));
		tell(str_text(&line), buf, len);
	}
	if (r < 0)
		fprintf(stderr, "output: %s\n", err.msg);
	if (s->fd >= 0 && s->finished && !t->told[i]) {
		t->told[i] = true;
		str_clear(&line);
		str_printf(&line,
			   "{\"output\":{\"task\":\"%s\",\"stream\":%d,\"offset\":%llu,"
			   "\"finished\":true}}",
			   id_show(&t->id, id), i + 1, (unsigned long long)s->sent);
		tell(str_text(&line), NULL, 0);
		consume_if(t, i, s->acked);
	}
	str_free(&line);
}

static void terminal_read(struct slot *t)
{
	static uint8_t buf[4096];
	char id[ID_TEXT];
	struct str line = { 0 };
	ssize_t n;
	str_printf(&line, "{\"terminal\":{\"task\":\"%s\"}}", id_show(&t->id, id));
	while ((n = read(t->terminal, buf, sizeof(buf))) > 0)
		tell(str_text(&line), buf, (size_t)n);
	str_free(&line);
}

static void input_push(struct slot *t)
{
	struct err err = { 0 };
	ssize_t n = 1;
	while (t->input.len > 0 && n > 0) {
		n = stream_in_write(&t->in, t->input.at, t->input.len, &err);
		if (n > 0)
			str_cut(&t->input, (size_t)n);
	}
	if (t->in.written > t->in.pumped)
		(void)shepherd_pump(shepherd, &t->id, t->in.written);
	if (t->close_wanted && t->input.len == 0) {
		t->close_wanted = false;
		(void)shepherd_close_stdin(shepherd, &t->id);
	}
}

static void slot_take(const ProtobufCBinaryData *id, struct task_fds *fds, uint64_t pumped,
		      uint64_t out, uint64_t errors)
{
	struct err err = { 0 };
	struct slot *t = slots;
	while (t->used)
		t++;
	assert(t < slots + TASKS);
	*t = (struct slot){ .used = true, .terminal = take_fd(&fds->terminal) };
	memcpy(t->id.at, id->data, ID_SIZE);
	stream_in_init(&t->in, take_fd(&fds->staging), pumped);
	stream_out_init(&t->out[0], take_fd(&fds->out), out);
	stream_out_init(&t->out[1], take_fd(&fds->err), errors);
	for (int i = 0; i < 2; i++)
		if (t->out[i].fd >= 0)
			(void)stream_watch_add(&watch, t->out[i].fd, t, &err);
	if (t->terminal >= 0)
		(void)stream_watch_add(&watch, t->terminal, t, &err);
	if (err.code)
		fprintf(stderr, "watch: %s\n", err.msg);
}

static void on_event(void *ctx, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	struct str line = { 0 };
	struct slot *t;
	str_puts(&line, "{\"event\":");
	json_message(&line, &e->base, false);
	str_puts(&line, "}");
	tell(str_text(&line), NULL, 0);
	str_free(&line);
	switch (e->tell_case) {
	case COPIA__SHEPHERD__EVENT__TELL_SPAWNED:
		if (e->spawned->code == 0)
			slot_take(&e->spawned->task, fds, 0, 0, 0);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_TASK:
		slot_take(&e->task->task, fds, e->task->stdin_pumped, e->task->stdout_consumed,
			  e->task->stderr_consumed);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_CONSUMED:
		t = slot_find(e->consumed->task.data);
		if (!t)
			break;
		int i = e->consumed->stream == COPIA__SHEPHERD__STREAM__STREAM_STDERR;
		stream_out_consumed(&t->out[i], e->consumed->consumed, e->consumed->ended);
		output_read(t, i);
		consume_if(t, i, t->out[i].acked);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_PUMPED:
		t = slot_find(e->pumped->task.data);
		if (!t)
			break;
		stream_in_pumped(&t->in, e->pumped->pumped, e->pumped->closed);
		if (!e->pumped->closed && t->input.len > 0)
			input_push(t);
		break;
	default:
		break;
	}
}

static void do_request(json_t *root)
{
	struct err err = { 0 };
	int fds[FDLINK_FDS_MAX];
	unsigned fd_count = 0;
	size_t at;
	json_t *file;
	json_array_foreach(json_object_get(root, "files"), at, file) fds[fd_count++] =
	    open(json_string_value(file), O_RDONLY | O_CLOEXEC);
	ProtobufCMessage *m =
	    json_in(&copia__shepherd__request__descriptor, json_object_get(root, "request"));
	const Copia__Shepherd__Request *r = (const Copia__Shepherd__Request *)m;
	if (r->ask_case == COPIA__SHEPHERD__REQUEST__ASK_RELEASE) {
		struct slot *t = slot_find(r->release->task.data);
		if (t)
			slot_drop(t);
	}
	if (shepherd_link_send(shepherd, r, fds, fd_count, &err) < 0)
		fprintf(stderr, "send: %s\n", err.msg);
	protobuf_c_message_free_unpacked(m, NULL);
	for (unsigned i = 0; i < fd_count; i++)
		close_p(&fds[i]);
}

static struct slot *slot_named(json_t *o)
{
	struct id id;
	const char *text = json_string_value(json_object_get(o, "task"));
	return text && id_parse(text, &id) ? slot_find(id.at) : NULL;
}

static bool control_ready(void)
{
	uint32_t head[2];
	if (!read_all(head, sizeof(head)))
		return false;
	char *text = xmalloc(head[0] + 1), *bytes = xmalloc(head[1] + 1);
	if (!read_all(text, head[0]) || !read_all(bytes, head[1]))
		return false;
	json_t *root = json_loadb(text, head[0], 0, NULL), *o;
	assert(root);
	struct slot *t;
	if (json_object_get(root, "request")) {
		do_request(root);
	} else if ((o = json_object_get(root, "ack")) && (t = slot_named(o))) {
		int i = (int)json_integer_value(json_object_get(o, "stream")) - 1;
		uint64_t upto = (uint64_t)json_integer_value(json_object_get(o, "upto"));
		consume_if(t, i, MIN(upto, t->out[i].sent));
	} else if ((o = json_object_get(root, "flood")) && (t = slot_named(o))) {
		json_int_t count = json_integer_value(json_object_get(o, "count"));
		for (json_int_t i = 0; i < count; i++)
			(void)shepherd_consume(shepherd, &t->id,
					       COPIA__SHEPHERD__STREAM__STREAM_STDOUT, 1 << 30);
	} else if ((o = json_object_get(root, "input")) && (t = slot_named(o))) {
		str_add(&t->input, bytes, head[1]);
		t->close_wanted |= json_is_true(json_object_get(o, "close"));
		if (t->terminal >= 0)
			(void)!write(t->terminal, bytes, head[1]);
		else
			input_push(t);
	}
	json_decref(root);
	free(text);
	free(bytes);
	return true;
}

static void streams_ready(void)
{
	void *owners[64];
	unsigned n;
	while ((n = stream_watch_next(&watch, owners, 64)) > 0)
		for (unsigned i = 0; i < n; i++) {
			struct slot *t = owners[i];
			if (!t->used)
				continue;
			output_read(t, 0);
			output_read(t, 1);
			if (t->terminal >= 0)
				terminal_read(t);
		}
}

static void control_open(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	const char *path = getenv("COPIA_TEST_SOCKET");
	assert(path && strlen(path) < sizeof(to.sun_path));
	memcpy(to.sun_path, path, strlen(path) + 1);
	control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(control, (struct sockaddr *)&to, sizeof(to)) < 0)
		exit(2);
	char line[64];
	snprintf(line, sizeof(line), "{\"brain\":%d}", (int)getpid());
	tell(line, NULL, 0);
}

static int shepherd_gone(void)
{
	struct err err = { 0 };
	int killed = kill_leftovers(state_dir, 0, &err);
	char line[64];
	snprintf(line, sizeof(line), "{\"leftovers\":%d}", killed);
	tell(line, NULL, 0);
	return killed < 0;
}

int main(int argc, char **argv)
{
	struct err err = { 0 };
	proc_title_init(argc, argv);
	proc_title("copiad: brain");
	for (int i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], "--state") == 0)
			state_dir = argv[i + 1];
	slots = xcalloc(TASKS, sizeof(*slots));
	control_open();
	if (stream_scratch_init(&scratch, &err) < 0 || stream_watch_init(&watch, &err) < 0)
		return 4;
	shepherd = shepherd_link_new(SHEPHERD_LINK_FD, on_event, NULL);
	(void)shepherd_ready(shepherd, 0, "fake");
	for (;;) {
		struct pollfd p[3] = {
			{ shepherd_link_fd(shepherd),
			  (short)(POLLIN | (shepherd_link_wants_write(shepherd) ? POLLOUT : 0)),
			  0 },
			{ control, POLLIN, 0 },
			{ watch.fd, POLLIN, 0 },
		};
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return 5;
		int r = p[0].revents ? 1 : 0;
		while (r == 1)
			r = shepherd_link_dispatch(shepherd, &err);
		if (r == -EPIPE)
			return shepherd_gone();
		if (r < 0)
			return 6;
		if (p[1].revents && !control_ready())
			return 0;
		if (p[2].revents)
			streams_ready();
	}
}
