/* SPDX-License-Identifier: Apache-2.0 */
/* Ways into the cluster and out of it, and new certificates while inside.
 *
 *   newcomer --JoinRequest--> any member --ForwardedJoin--> leader: JoinCommand (number), sign,
 *   CertificateCommand (fingerprint) --JoinReply--> newcomer
 *
 * A newcomer whose answer was lost asks again with the same `attempt` and gets the same number. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "io/pki.h"
#include "node/control-impl.h"
#include "wire/token.h"

#include <errno.h>
#include <openssl/sha.h>
#include <stdio.h>

enum {
	JOIN_RETRY_MS = 500,
	JOIN_SETTLE_MS = 10,
	JOIN_SETTLE_TURNS = 200,
	PROTOCOL = 1,
};

static ProtobufCBinaryData bytes_of(const struct str *s)
{
	return (ProtobufCBinaryData){ s->len, (uint8_t *)s->at };
}

static struct span span_of(const ProtobufCBinaryData *b)
{
	return (struct span){ b->data, b->len };
}

static void put_bytes(struct str *to, const ProtobufCBinaryData *from)
{
	str_clear(to);
	str_add(to, from->data, from->len);
}

/* ---------------------------------------------------------------- own addresses */

/* `given` by the person, else what the machine has; the caller frees names and array. */
static char **own_addresses(char **given, size_t given_count, size_t *ret_count)
{
	char **names = xcalloc(MEMBERS_ADDRESSES_MAX, sizeof(*names));
	size_t count = 0;
	struct addr_own *own = NULL;
	size_t own_count = 0;
	char text[ADDR_TEXT];
	for (size_t i = 0; i < given_count && count < PEERS_ADDRESS_MAX; i++)
		names[count++] = xstrdup(given[i]);
	if (count == 0)
		(void)addr_own_list(false, &own, &own_count, NULL);
	if (count == 0 && own_count == 0)
		(void)addr_own_list(true, &own, &own_count, NULL);
	for (size_t i = 0; i < own_count && count < PEERS_ADDRESS_MAX; i++)
		names[count++] = xstrdup(addr_show_host(&own[i].addr, text));
	free(own);
	*ret_count = count;
	return names;
}

static void free_names(char **names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(names[i]);
	free(names);
}

/* ---------------------------------------------------------------- init */

struct init_op {
	struct members_node *mn;
	struct call *call;
	char *cluster;
};

static void init_closed(void *ctx, struct call *c)
{
	struct init_op *op = ctx;
	op->call = NULL; /* what was begun is finished all the same */
}

/* The first view: just ourselves. The log knows better from the first command on. */
static void save_first(struct members_node *mn, struct err *err, int *ret)
{
	Copia__View *v = members_view(mn->node->members, 0);
	size_t size = copia__view__get_packed_size(v);
	str_clear(&mn->identity.view);
	str_reserve(&mn->identity.view, size);
	mn->identity.view.len = copia__view__pack(v, (uint8_t *)mn->identity.view.at);
	copia__view__free_unpacked(v, NULL);
	*ret = identity_save(mn->node->settings.state_dir, &mn->identity, err);
}

static void on_init_done(void *ctx, int code, const char *text, struct span result)
{
	struct init_op *op = ctx;
	struct members_node *mn = op->mn;
	struct err err = { 0 };
	if (code == 0)
		save_first(mn, &err, &code);
	mn->joining = false;
	if (op->call && code < 0)
		call_finish(op->call, code, "init: %s", *err.msg ? err.msg : text);
	else if (op->call) {
		char id[ID_TEXT];
		Copia__InitReply reply = COPIA__INIT_REPLY__INIT;
		reply.cluster = op->cluster;
		reply.cluster_id = id_show(&mn->identity.cluster, id);
		reply.node = mn->identity.name;
		call_reply(op->call, &reply.base);
		call_finish(op->call, 0, NULL);
	}
	if (code == 0) {
		log_info("audit", "cluster \"%s\" was made", op->cluster);
		members_node_changed(mn);
	}
	free(op->cluster);
	free(op);
}

static int make_identity(struct members_node *mn, const char *name, struct str *authority_key,
			 struct err *err)
{
	struct identity *i = &mn->identity;
	_cleanup_(str_free) struct str csr = { 0 };
	identity_free(i);
	*i = (struct identity){ .number = 1 };
	node_random(i->cluster.at, ID_SIZE);
	(void)snprintf(i->name, sizeof(i->name), "%s", name);
	int r = pki_authority_new(&i->cluster, authority_key, &i->authority, err);
	if (r == 0)
		r = pki_key_new(&i->key, err);
	if (r == 0)
		r = pki_csr_new(pki_span(&i->key), &csr, err);
	if (r == 0)
		r = pki_sign(pki_span(authority_key), pki_span(&i->authority), pki_span(&csr),
			     &i->cluster, 1, 1, &i->cert, err);
	return r;
}

static void propose_init(struct members_node *mn, struct init_op *op, const Copia__InitRequest *q,
			 const struct str *authority_key)
{
	uint8_t master[32];
	struct pki_cert cert;
	size_t count;
	char **addresses = own_addresses(q->address, q->n_address, &count);
	node_random(master, sizeof(master));
	(void)pki_cert_read(pki_span(&mn->identity.cert), &cert, NULL);
	Copia__Node first = COPIA__NODE__INIT;
	first.name = mn->identity.name;
	first.addresses = addresses;
	first.n_addresses = count;
	first.port = mn->node->settings.port;
	first.facts = mn->facts;
	first.incarnation = mn->node->incarnation;
	first.fingerprint = (ProtobufCBinaryData){ PKI_FINGERPRINT_SIZE, cert.fingerprint.at };
	Copia__InitCommand c = COPIA__INIT_COMMAND__INIT;
	c.cluster_id = (ProtobufCBinaryData){ ID_SIZE, mn->identity.cluster.at };
	c.cluster_name = op->cluster;
	c.authority = bytes_of(&mn->identity.authority);
	c.authority_key = bytes_of(authority_key);
	c.key_master = (ProtobufCBinaryData){ sizeof(master), master };
	c.first = &first;
	c.profile = *q->profile ? q->profile : "lan";
	c.root_tasks = q->root_tasks;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_INIT;
	cmd.init = &c;
	node_propose(mn->node, &cmd, on_init_done, op);
	free_names(addresses, count);
	explicit_bzero(master, sizeof(master));
}

static int check_free(struct members_node *mn, struct err *err)
{
	if (mn->node->number)
		return err_set(err, -EEXIST,
			       "this node is already in cluster \"%s\"; to move it: copia leave",
			       mn->node->members->state->cluster_name);
	if (mn->joining)
		return err_set(err, -EBUSY, "this node is joining or making a cluster just now");
	return 0;
}

static int verb_init(struct node *n, struct call *call, const ProtobufCMessage *request,
		     struct err *err)
{
	const Copia__InitRequest *q = (const Copia__InitRequest *)request;
	struct members_node *mn = n->members_node;
	_cleanup_(pki_wipe) struct str authority_key = { 0 };
	int r = check_free(mn, err);
	if (r == 0)
		r = make_identity(mn, *q->node ? q->node : mn->name, &authority_key, err);
	if (r == 0)
		r = node_enter(n, &mn->identity, true, err);
	if (r < 0)
		return r;
	static const struct call_hooks hooks = { .closed = init_closed };
	struct init_op *op = xmalloc(sizeof(*op));
	*op = (struct init_op){ mn, call, xstrdup(*q->name ? q->name : "copia") };
	mn->joining = true;
	call_keep(call, &hooks, op);
	propose_init(mn, op, q, &authority_key);
	return 0;
}

/* ---------------------------------------------------------------- token */

struct token_op {
	struct call *call;
	struct node *node;
	char text[TOKEN_TEXT];
	uint64_t expires_ms;
};

static void on_token_made(void *ctx, int code, const char *text, struct span result)
{
	struct token_op *op = ctx;
	if (op->call && code < 0) {
		call_finish(op->call, code, "%s", text);
	} else if (op->call) {
		const Copia__MembersState *s = op->node->members->state;
		Copia__TokenReply reply = COPIA__TOKEN_REPLY__INIT;
		char line[TOKEN_TEXT + 128], *lines[1] = { line };
		const Copia__Node *self = members_find(op->node->members, op->node->number);
		const char *host = self && self->n_addresses ? self->addresses[0] : "HOST";
		(void)snprintf(line, sizeof(line), "copia join %s@%s", op->text, host);
		reply.token = op->text;
		reply.expires_ms = op->node->members->time_ms + op->expires_ms;
		reply.join = lines;
		reply.n_join = s->n_nodes ? 1 : 0;
		call_reply(op->call, &reply.base);
		call_finish(op->call, 0, NULL);
	}
	explicit_bzero(op, sizeof(*op));
	free(op);
}

static void token_closed(void *ctx, struct call *c)
{
	((struct token_op *)ctx)->call = NULL;
}

static int verb_token(struct node *n, struct call *call, const ProtobufCMessage *request,
		      struct err *err)
{
	const Copia__TokenRequest *q = (const Copia__TokenRequest *)request;
	struct token t;
	struct pki_cert authority;
	uint8_t hash[SHA256_DIGEST_LENGTH];
	const Copia__MembersState *s = n->members->state;
	int r = pki_cert_read(span_of(&s->authority), &authority, err);
	if (r < 0)
		return r;
	node_random(t.secret, sizeof(t.secret));
	memcpy(t.authority, authority.fingerprint.at, sizeof(t.authority));
	(void)SHA256(t.secret, sizeof(t.secret), hash);
	static const struct call_hooks hooks = { .closed = token_closed };
	struct token_op *op = xcalloc(1, sizeof(*op));
	op->call = call;
	op->node = n;
	op->expires_ms = q->expires_ms ? q->expires_ms : 3600000;
	(void)token_encode(&t, op->text);
	explicit_bzero(&t, sizeof(t));
	Copia__TokenCommand c = COPIA__TOKEN_COMMAND__INIT;
	c.hash = (ProtobufCBinaryData){ sizeof(hash), hash };
	c.lifetime_ms = op->expires_ms;
	c.by = (char *)call_user(call);
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_TOKEN;
	cmd.token = &c;
	call_keep(call, &hooks, op);
	node_propose(n, &cmd, on_token_made, op);
	return 0;
}

/* ---------------------------------------------------------------- the newcomer */

struct join_op {
	struct members_node *mn;
	struct call *call;
	struct token token;
	char host[TOKEN_HOST_TEXT];
	uint16_t port;
	struct str key, csr;
	uint8_t attempt[16];
	char *name;
	char **addresses;
	size_t address_count;
	uint64_t give_up_ms;
	unsigned settle_turns;
	struct peers_join *join;
	uv_timer_t retry;
};

static void on_retry_closed(uv_handle_t *h)
{
	struct join_op *op = h->data;
	pki_wipe(&op->key);
	str_free(&op->csr);
	free_names(op->addresses, op->address_count);
	free(op->name);
	explicit_bzero(op, sizeof(*op));
	free(op);
}

static void join_end(struct join_op *op, int code, const char *text)
{
	struct members_node *mn = op->mn;
	mn->joining = false;
	if (op->call && code < 0) {
		call_finish(op->call, code, "join: %s", text);
	} else if (op->call) {
		Copia__JoinVerbReply reply = COPIA__JOIN_VERB_REPLY__INIT;
		reply.cluster = mn->node->members->state->cluster_name;
		reply.node = mn->identity.name;
		reply.number = mn->identity.number;
		call_reply(op->call, &reply.base);
		call_finish(op->call, 0, NULL);
	}
	uv_close((uv_handle_t *)&op->retry, on_retry_closed);
}

static void join_closed(void *ctx, struct call *c)
{
	struct join_op *op = ctx;
	op->call = NULL;
}

static void join_try(struct join_op *op);

static void on_retry(uv_timer_t *t)
{
	join_try(t->data);
}

/* Inside; but what the person types next shall find the leader. The sessions are being made. */
static void on_settling(uv_timer_t *t)
{
	struct join_op *op = t->data;
	const struct node *n = op->mn->node;
	uint32_t leader = n->members->leader;
	bool reached = leader && n->peers && peers_up(n->peers, leader);
	if (reached || !n->peers || op->settle_turns++ >= JOIN_SETTLE_TURNS)
		join_end(op, 0, NULL);
	else
		(void)uv_timer_start(&op->retry, on_settling, JOIN_SETTLE_MS, 0);
}

static int take_admission(struct join_op *op, const Copia__JoinReply *reply, const char *authority,
			  struct err *err)
{
	struct members_node *mn = op->mn;
	struct identity *i = &mn->identity;
	struct pki_cert cert;
	if (!reply->view)
		return err_set(err, -EBADMSG, "the member's answer is malformed");
	identity_free(i);
	*i = (struct identity){ 0 };
	str_puts(&i->authority, authority);
	put_bytes(&i->cert, &reply->certificate);
	str_add(&i->key, op->key.at, op->key.len);
	size_t size = copia__view__get_packed_size(reply->view);
	str_reserve(&i->view, size);
	i->view.len = copia__view__pack(reply->view, (uint8_t *)i->view.at);
	int r = pki_verify(pki_span(&i->authority), pki_span(&i->cert), &cert, err);
	if (r == 0)
		r = pki_pair_check(pki_span(&i->key), pki_span(&i->cert), err);
	if (r < 0)
		return err_wrap(err, r, "certificate from the cluster");
	i->cluster = cert.cluster;
	i->number = cert.node;
	(void)snprintf(i->name, sizeof(i->name), "%s", op->name);
	r = identity_save(mn->node->settings.state_dir, i, err);
	if (r < 0)
		return r;
	members_reset(mn->node->from_view);
	r = members_merge(mn->node->from_view, reply->view, err);
	if (r >= 0 && reply->view->key.len == 32)
		members_set_bytes(&mn->own_key, &reply->view->key);
	if (r >= 0)
		r = node_enter(mn->node, i, false, err);
	return r;
}

static void on_joined(void *ctx, int result, const struct peers_joined *joined,
		      const struct err *why)
{
	struct join_op *op = ctx;
	struct err err = { 0 };
	op->join = NULL;
	Copia__JoinReply *reply = NULL;
	int r = result;
	if (r < 0)
		(void)err_set(&err, r, "%s", why->msg);
	else if (!(reply = copia__join_reply__unpack(NULL, joined->reply.len, joined->reply.at)))
		r = err_set(&err, -EBADMSG, "the answer of %s is malformed", joined->remote);
	else if (reply->code < 0)
		r = err_set(&err, reply->code, "%s", reply->error);
	else
		r = take_admission(op, reply, joined->authority_pem, &err);
	if (reply)
		copia__join_reply__free_unpacked(reply, NULL);
	bool passing = r == -ECONNRESET || r == -EAGAIN || r == -EHOSTUNREACH || r == -ETIMEDOUT;
	if (passing && op->call && node_now_ms(op->mn->node) < op->give_up_ms)
		(void)uv_timer_start(&op->retry, on_retry, JOIN_RETRY_MS, 0);
	else if (r < 0)
		join_end(op, r, err.msg);
	else
		on_settling(&op->retry);
}

static void join_try(struct join_op *op)
{
	struct members_node *mn = op->mn;
	struct err err = { 0 };
	uint64_t now = node_now_ms(mn->node);
	Copia__JoinRequest q = COPIA__JOIN_REQUEST__INIT;
	q.token_secret = (ProtobufCBinaryData){ sizeof(op->token.secret), op->token.secret };
	q.name = op->name;
	q.request = bytes_of(&op->csr);
	q.addresses = op->addresses;
	q.n_addresses = op->address_count;
	q.port = mn->node->settings.port;
	q.facts = mn->facts;
	q.incarnation = mn->node->incarnation;
	q.protocol = PROTOCOL;
	q.attempt = (ProtobufCBinaryData){ sizeof(op->attempt), op->attempt };
	size_t size = copia__join_request__get_packed_size(&q);
	uint8_t *packed = xmalloc(size);
	(void)copia__join_request__pack(&q, packed);
	struct peers_join_settings s = {
		.host = op->host,
		.port = op->port,
		.request = { packed, size },
		.timeout_ms = (unsigned)MAX(op->give_up_ms - MIN(now, op->give_up_ms), 1000U),
	};
	memcpy(s.authority, op->token.authority, sizeof(s.authority));
	int r = peers_join(mn->node->loop, &s, on_joined, op, &op->join, &err);
	explicit_bzero(packed, size);
	free(packed);
	if (r < 0)
		join_end(op, r, err.msg);
}

static int verb_join(struct node *n, struct call *call, const ProtobufCMessage *request,
		     struct err *err)
{
	const Copia__JoinVerbRequest *q = (const Copia__JoinVerbRequest *)request;
	struct members_node *mn = n->members_node;
	struct join_op *op = xcalloc(1, sizeof(*op));
	(void)uv_timer_init(n->loop, &op->retry);
	op->retry.data = op;
	op->mn = mn;
	int r = check_free(mn, err);
	/* What would fail here afterwards fails now: the token is still good, the name still free.
	 */
	if (r == 0)
		r = identity_room(n->settings.state_dir, err);
	if (r == 0)
		r = peers_port_check(n->settings.port, err);
	if (r == 0)
		r = token_target_parse(q->token, 26742, &op->token, op->host, &op->port, err);
	if (r == 0)
		r = pki_key_new(&op->key, err);
	if (r == 0)
		r = pki_csr_new(pki_span(&op->key), &op->csr, err);
	if (r < 0) {
		uv_close((uv_handle_t *)&op->retry, on_retry_closed);
		return r;
	}
	static const struct call_hooks hooks = { .closed = join_closed };
	op->call = call;
	op->name = xstrdup(*q->node ? q->node : mn->name);
	op->addresses = own_addresses(q->address, q->n_address, &op->address_count);
	op->give_up_ms = node_now_ms(n) + (q->timeout_ms ? q->timeout_ms : 30000);
	node_random(op->attempt, sizeof(op->attempt));
	mn->joining = true;
	call_keep(call, &hooks, op);
	join_try(op);
	return 0;
}

/* ---------------------------------------------------------------- the member that is asked */

static void send_join_reply(struct members_node *mn, uint64_t ticket, const Copia__JoinReply *r)
{
	size_t size = copia__join_reply__get_packed_size(r);
	_cleanup_(free_p) uint8_t *bytes = xmalloc(size);
	(void)copia__join_reply__pack(r, bytes);
	(void)peers_join_reply(mn->node->peers, ticket, bytes, size);
}

/* One admission at the leader, on its way through the log. */
struct admission {
	struct members_node *mn;
	uint64_t ticket; /* the newcomer is connected here … */
	uint32_t from;   /* … or at this node, */
	uint64_t call;   /* whose number for it is this */
	uint32_t number;
	struct str csr, cert;
	char name[MEMBERS_NAME_MAX + 1];
};

static void admission_end(struct admission *a, int code, const char *text)
{
	struct members_node *mn = a->mn;
	Copia__JoinReply r = COPIA__JOIN_REPLY__INIT;
	r.code = code;
	r.error = (char *)text;
	if (code == 0) {
		r.number = a->number;
		r.certificate = bytes_of(&a->cert);
		r.view = members_view(mn->node->members, 0);
		uint8_t key[32];
		members_node_key(mn->node->members->state, false, a->number, 0, key);
		ProtobufCBinaryData bytes = { sizeof(key), key };
		members_set_bytes(&r.view->key, &bytes);
	} else {
		log_warning("audit", "a machine that wanted to join as \"%s\" was refused: %s",
			    a->name, text);
	}
	if (a->from) {
		Copia__ForwardedJoinReply f = COPIA__FORWARDED_JOIN_REPLY__INIT;
		f.call = a->call;
		f.reply = &r;
		Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
		m.body_case = COPIA__MEMBERS_MESSAGE__BODY_JOIN_REPLY;
		m.join_reply = &f;
		(void)members_send(mn, a->from, &m);
	} else if (mn->node->peers) {
		send_join_reply(mn, a->ticket, &r);
	}
	if (r.view)
		copia__view__free_unpacked(r.view, NULL);
	str_free(&a->csr);
	str_free(&a->cert);
	free(a);
}

static void on_certificate_recorded(void *ctx, int code, const char *text, struct span result)
{
	admission_end(ctx, code, text);
}

static void propose_certificate(struct members_node *mn, uint32_t number, const struct str *cert,
				const ProtobufCBinaryData *held, node_done *done, void *ctx)
{
	struct pki_cert read;
	(void)pki_cert_read(pki_span(cert), &read, NULL);
	Copia__CertificateCommand c = COPIA__CERTIFICATE_COMMAND__INIT;
	c.number = number;
	c.fingerprint = (ProtobufCBinaryData){ PKI_FINGERPRINT_SIZE, read.fingerprint.at };
	if (held)
		c.held = *held;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_CERTIFICATE;
	cmd.certificate = &c;
	node_propose(mn->node, &cmd, done, ctx);
}

static int sign_for(struct members_node *mn, struct span csr, uint32_t number, struct str *ret,
		    struct err *err)
{
	const Copia__MembersState *s = mn->node->members->state;
	return pki_sign(span_of(&s->authority_key), span_of(&s->authority), csr,
			&mn->identity.cluster, number, 0, ret, err);
}

static void on_number(void *ctx, int code, const char *text, struct span result)
{
	struct admission *a = ctx;
	struct err err = { 0 };
	char number[16] = "";
	if (code < 0) {
		admission_end(a, code, text);
		return;
	}
	memcpy(number, result.at, MIN(result.len, sizeof(number) - 1));
	a->number = (uint32_t)strtoul(number, NULL, 10);
	int r = sign_for(a->mn, pki_span(&a->csr), a->number, &a->cert, &err);
	if (r < 0)
		admission_end(a, r, err.msg);
	else
		propose_certificate(a->mn, a->number, &a->cert, NULL, on_certificate_recorded, a);
}

static void admit(struct members_node *mn, struct admission *a, const Copia__JoinRequest *q,
		  const char *remote)
{
	uint8_t hash[SHA256_DIGEST_LENGTH];
	(void)snprintf(a->name, sizeof(a->name), "%s", q->name);
	if (q->protocol != PROTOCOL) {
		admission_end(a, -EPROTONOSUPPORT,
			      "the versions differ: this cluster runs Copia " COPIA_VERSION
			      "; install the same version");
		return;
	}
	put_bytes(&a->csr, &q->request);
	(void)SHA256(q->token_secret.data, q->token_secret.len, hash);
	Copia__Node n = COPIA__NODE__INIT;
	n.name = q->name;
	n.addresses = q->addresses;
	n.n_addresses = q->n_addresses;
	n.port = q->port;
	n.incarnation = q->incarnation;
	n.facts = q->facts;
	Copia__JoinCommand c = COPIA__JOIN_COMMAND__INIT;
	c.token_hash = (ProtobufCBinaryData){ sizeof(hash), hash };
	c.node = &n;
	c.attempt = q->attempt;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_JOIN;
	cmd.join = &c;
	log_info("audit", "a machine at %s asks to join as \"%s\"", remote, q->name);
	node_propose(mn->node, &cmd, on_number, a);
}

void members_node_join_asked(struct members_node *mn, uint64_t ticket, struct span body,
			     const char *remote)
{
	Copia__JoinRequest *q = copia__join_request__unpack(NULL, body.len, body.at);
	uint32_t leader = mn->node->members->leader;
	if (!q) {
		(void)peers_join_refuse(mn->node->peers, ticket, "the request is malformed");
		return;
	}
	if (members_is_leader(mn)) {
		struct admission *a = xcalloc(1, sizeof(*a));
		*a = (struct admission){ .mn = mn, .ticket = ticket };
		admit(mn, a, q, remote);
	} else if (!leader || leader == mn->node->number) {
		Copia__JoinReply r = COPIA__JOIN_REPLY__INIT;
		r.code = -EAGAIN;
		r.error = "the cluster has no leader just now; try again";
		send_join_reply(mn, ticket, &r);
	} else {
		struct waiting *w = members_wait(mn);
		w->ticket = ticket;
		Copia__ForwardedJoin f = COPIA__FORWARDED_JOIN__INIT;
		f.call = w->number;
		f.request = q;
		f.from = (char *)remote;
		Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
		m.body_case = COPIA__MEMBERS_MESSAGE__BODY_JOIN;
		m.join = &f;
		(void)members_send(mn, leader, &m);
	}
	explicit_bzero(q->token_secret.data, q->token_secret.len);
	copia__join_request__free_unpacked(q, NULL);
}

void members_take_join(struct members_node *mn, uint32_t from, const Copia__ForwardedJoin *j)
{
	if (!j->request)
		return;
	struct admission *a = xcalloc(1, sizeof(*a));
	*a = (struct admission){ .mn = mn, .from = from, .call = j->call };
	if (members_is_leader(mn))
		admit(mn, a, j->request, j->from);
	else
		admission_end(a, -EAGAIN, "the leader changed; try again");
}

void members_take_join_reply(struct members_node *mn, const Copia__ForwardedJoinReply *r)
{
	struct waiting *w = members_waiting(mn, r->call);
	if (!w || !w->ticket || !r->reply)
		return;
	uint64_t ticket = w->ticket;
	members_wait_done(mn, w);
	send_join_reply(mn, ticket, r->reply);
}

/* ---------------------------------------------------------------- new certificates */

void members_ask_certificate(struct members_node *mn)
{
	struct err err = { 0 };
	_cleanup_(str_free) struct str csr = { 0 };
	pki_wipe(&mn->pending_key);
	int r = pki_key_new(&mn->pending_key, &err);
	if (r == 0)
		r = pki_csr_new(pki_span(&mn->pending_key), &csr, &err);
	if (r < 0) {
		log_error("members", "new certificate: %s", err.msg);
		return;
	}
	Copia__CertificateAsk ask = COPIA__CERTIFICATE_ASK__INIT;
	ask.request = bytes_of(&csr);
	struct pki_cert now;
	if (pki_cert_read(pki_span(&mn->identity.cert), &now, &err) == 0)
		ask.held = (ProtobufCBinaryData){ PKI_FINGERPRINT_SIZE, now.fingerprint.at };
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_CERTIFICATE_ASK;
	m.certificate_ask = &ask;
	(void)members_send(mn, mn->node->members->leader, &m);
}

struct renewal {
	struct members_node *mn;
	uint32_t to;
	struct str cert;
};

static void renewal_end(struct renewal *w, int code, const char *text)
{
	Copia__CertificateGrant g = COPIA__CERTIFICATE_GRANT__INIT;
	g.code = code;
	g.error = (char *)text;
	g.certificate = bytes_of(&w->cert);
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_CERTIFICATE_GRANT;
	m.certificate_grant = &g;
	(void)members_send(w->mn, w->to, &m);
	str_free(&w->cert);
	free(w);
}

static void on_renewed(void *ctx, int code, const char *text, struct span result)
{
	renewal_end(ctx, code, text);
}

void members_take_certificate_ask(struct members_node *mn, uint32_t from,
				  const Copia__CertificateAsk *a)
{
	struct err err = { 0 };
	struct renewal *w = xcalloc(1, sizeof(*w));
	*w = (struct renewal){ .mn = mn, .to = from };
	int r = members_is_leader(mn) ? sign_for(mn, span_of(&a->request), from, &w->cert, &err)
				      : err_set(&err, -EAGAIN, "the leader changed; try again");
	if (r < 0)
		renewal_end(w, r, err.msg);
	else
		propose_certificate(mn, from, &w->cert, &a->held, on_renewed, w);
}

void members_take_certificate(struct members_node *mn, const Copia__CertificateGrant *g)
{
	struct err err = { 0 };
	if (g->code < 0 || !mn->pending_key.len) {
		log_warning("members", "no new certificate: %s", g->error);
		return;
	}
	struct str cert = { 0 };
	str_add(&cert, g->certificate.data, g->certificate.len);
	int r = peers_set_identity(mn->node->peers, pki_span(&cert), pki_span(&mn->pending_key),
				   pki_span(&mn->identity.authority), &err);
	if (r == 0) {
		pki_wipe(&mn->identity.key);
		str_free(&mn->identity.cert);
		mn->identity.key = mn->pending_key;
		mn->identity.cert = cert;
		mn->pending_key = (struct str){ 0 };
		cert = (struct str){ 0 };
		r = identity_save(mn->node->settings.state_dir, &mn->identity, &err);
	}
	if (r < 0)
		log_error("members", "new certificate: %s", err.msg);
	else
		log_info("members", "this node has a new certificate");
	str_free(&cert);
}

/* ---------------------------------------------------------------- leaving */

/* What this node knew of others, and what its shepherd does for the cluster. */
static void forget_cluster(struct members_node *mn)
{
	struct err err = { 0 };
	struct known *k, *next;
	HASH_ITER(hh, mn->known, k, next)
	{
		HASH_DEL(mn->known, k);
		free(k->missed_by);
		free(k);
	}
	members_end_own(mn);
	Copia__Shepherd__Heartbeats none = COPIA__SHEPHERD__HEARTBEATS__INIT;
	Copia__Shepherd__Request r = COPIA__SHEPHERD__REQUEST__INIT;
	r.ask_case = COPIA__SHEPHERD__REQUEST__ASK_HEARTBEATS;
	r.heartbeats = &none;
	if (shepherd_link_send(mn->node->shepherd, &r, NULL, 0, &err) < 0)
		log_error("members", "heartbeats: %s", err.msg);
	ProtobufCBinaryData no_key = { 0 };
	members_set_bytes(&mn->own_key, &no_key);
	members_set_bytes(&mn->own_old_key, &no_key);
	mn->table_revision = mn->saved_revision = mn->announced_term = 0;
	mn->ready = false;
}

static void on_leave_loop(uv_timer_t *t)
{
	struct members_node *mn = t->data;
	struct err err = { 0 };
	(void)uv_timer_stop(t);
	forget_cluster(mn);
	node_leave(mn->node);
	if (identity_remove(mn->node->settings.state_dir, &err) < 0)
		log_error("members", "%s", err.msg);
	identity_free(&mn->identity);
	mn->identity = (struct identity){ 0 };
	mn->leaving = false;
}

void members_was_removed(struct members_node *mn, const char *why)
{
	if (mn->leaving || !mn->node->number)
		return;
	mn->leaving = true;
	log_warning("members", "this node is not in the cluster any more: %s", why);
	(void)uv_timer_stop(&mn->load_timer);
	/* Sessions and log cannot be closed from inside their own callbacks. */
	(void)uv_timer_start(&mn->keep_timer, on_leave_loop, 0, 0);
}

void members_join_register(struct members_node *mn)
{
	control_on(mn->node->control, "init", verb_init);
	control_on(mn->node->control, "token", verb_token);
	control_on(mn->node->control, "join", verb_join);
}
