/* SPDX-License-Identifier: Apache-2.0 */
/* Shared inside the acting half of the members, and with the glue that hands it events.
 *
 *   members-node.c     life, entering a cluster, the view, load
 *   members-join.c     init, join on both sides, leave, certificates
 *   members-forward.c  verbs that the leader answers for other nodes
 *   members-watch.c    heartbeats, suspicion, verdicts, keys
 *   members-keep.c     enough controllers; test resources in at most one place
 *   members-verbs.c    what people ask */
#pragma once
#include "caps/members/members-impl.h"
#include "caps/members/members-node.h"
#include "caps/members/members-plan.h"
#include "io/pki.h"
#include "io/shepherd-link.h"
#include "io/sysinfo.h"
#include "node/brain.h"

#include <uthash.h>
#include <uv.h>

/* What this node keeps of another, beside the replicated state. */
struct known {
	uint32_t number;
	uint64_t revision_sent;    /* leader: of the view it has; 0: none */
	bool missing;              /* own shepherd: silent for the profile's time */
	bool heard;                /* own shepherd: heard at least once */
	uint64_t lease_end_us;     /* what this node's shepherd granted it ends no later */
	uint64_t grant_stopped_us; /* answer to GrantStop; 0: not asked or not answered */
	bool grant_stop_asked, grant_stop_answered;
	Copia__NodeLoad load;
	uint32_t *missed_by; /* leader: controllers that miss it */
	size_t missed_count;
	bool verdict_pending;
	bool goodbye_said, goodbye_due; /* it left: told so, and to be forgotten */
	uint32_t rtt_us;
	/* Certificates that sessions may have been told apart by: the two on record, and two that
	 * were until a moment ago. */
	struct pki_fingerprint welcome[4];
	size_t welcome_count, on_record;
	uint64_t superseded_ms;
	bool idle;        /* leader: it was told that it has to do nothing */
	uint64_t left_us; /* leader: first seen as left; 0: not */
	UT_hash_handle hh;
};

/* A placement that this node carries out. `placed` never comes back, so each placement is told
 * from all others; a brain started again finds its task by it. */
struct own_resource {
	uint64_t placed;
	struct id task;
	uint64_t start_at_ms;
	bool running;  /* its task is there, or was asked for */
	bool stopping; /* TERM was sent */
	UT_hash_handle hh;
};

struct members_node {
	struct node *node;
	struct identity identity; /* while in a cluster */
	char *name;               /* wanted; host name otherwise */
	Copia__NodeFacts *facts;
	struct known *known; /* by number */
	uv_timer_t push_timer, load_timer, keep_timer;
	uv_timer_t lease_timer; /* runs while this node leads and leases are needed */
	bool push_armed;
	struct sysinfo_load load;
	bool ready;            /* this node leads and its state is current */
	uint64_t led_since_us; /* boot time clock */
	uint64_t announced_term;
	struct waiting *waiting; /* forwarded calls, joins, certificates: by call number */
	uint64_t next_call;
	uint64_t table_revision; /* of what the shepherd's heartbeat table was made of */
	bool told_leader;
	uint64_t quorum_until_us;
	Copia__Shepherd__Hello *hello;
	uint64_t hb_bad; /* refused heartbeats, as last told */
	bool updated;    /* our facts were told to the cluster since this start */
	bool update_pending;
	bool viewed;             /* the leader's view came since we have a session with it */
	bool whole;              /* a complete view came since this start */
	bool fresh;              /* what we know is what the leader knows */
	uint64_t in_touch_ms;    /* with the leader, last */
	uint64_t saved_revision; /* newest node in the saved view */
	ProtobufCBinaryData own_key, own_old_key; /* agents: heartbeat keys, from the leader */
	struct own_resource *own;                 /* by placed */
	uint64_t orders_revision;                 /* newest orders taken */
	struct follower *followers;
	struct str pending_key; /* of a certificate that was asked for */
	bool joining, leaving;
};

struct known *members_known(struct members_node *mn, uint32_t number);

/* Events from the glue. */
/* Make the nodes that we know of known to the sessions. */
void members_tell_peers(struct members_node *mn);
void members_node_entered(struct members_node *mn);
void members_node_changed(struct members_node *mn);
void members_node_leader(struct members_node *mn, bool ready);
void members_node_session(struct members_node *mn, uint32_t node, bool up);
void members_node_join_asked(struct members_node *mn, uint64_t ticket, struct span body,
			     const char *remote);

bool members_is_leader(const struct members_node *mn);
bool members_is_controller(const struct members_node *mn);
const Copia__Node *members_self(const struct members_node *mn);
/* To the leader, when it is known. */
int members_send(struct members_node *mn, uint32_t to, const Copia__MembersMessage *m);

/* members-join.c */
void members_join_register(struct members_node *mn);
void members_take_join(struct members_node *mn, uint32_t from, const Copia__ForwardedJoin *j);
void members_take_join_reply(struct members_node *mn, const Copia__ForwardedJoinReply *r);
void members_take_certificate_ask(struct members_node *mn, uint32_t from,
				  const Copia__CertificateAsk *a);
void members_take_certificate(struct members_node *mn, const Copia__CertificateGrant *g);
void members_ask_certificate(struct members_node *mn);
void members_was_removed(struct members_node *mn, const char *why);

/* members-forward.c */
struct waiting {
	uint64_t number;
	struct call *call; /* a verb */
	uint64_t ticket;   /* a join */
	uint32_t leader;
	UT_hash_handle hh;
};
struct waiting *members_wait(struct members_node *mn);
struct waiting *members_waiting(struct members_node *mn, uint64_t number);
void members_wait_done(struct members_node *mn, struct waiting *w);
void members_take_call(struct members_node *mn, uint32_t from, const Copia__ForwardedCall *c);
void members_take_reply(struct members_node *mn, const Copia__ForwardedReply *r);
/* The leader changed or its session broke: what waits for it fails. */
void members_forward_lost(struct members_node *mn, uint32_t leader);

/* members-watch.c */
void members_watch_update(struct members_node *mn);
void members_watch_report(struct members_node *mn, const Copia__Shepherd__HeartbeatReport *r);
void members_watch_suspect(struct members_node *mn, const Copia__Shepherd__Suspect *s);
void members_take_suspicion(struct members_node *mn, uint32_t from, const Copia__Suspicion *s);
void members_node_key(const Copia__MembersState *s, bool old, uint32_t a, uint32_t b,
		      uint8_t ret[32]);

/* members-keep.c */
void members_keep(struct members_node *mn);
void members_take_orders(struct members_node *mn, const Copia__Orders *o);
void members_take_orders_done(struct members_node *mn, uint32_t from, const Copia__OrdersDone *d);
/* This node leaves: nothing of it may go on. */
void members_end_own(struct members_node *mn);
void members_grant_stopped(struct members_node *mn, const Copia__Shepherd__GrantStopped *g);
bool members_task_event(struct members_node *mn, const Copia__Shepherd__Event *e);

/* members-verbs.c */
void members_verbs_register(struct members_node *mn);
/* New events: those who follow get them. */
void members_followers_news(struct members_node *mn);
