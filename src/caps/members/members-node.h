/* SPDX-License-Identifier: Apache-2.0 */
/* The acting half of the members: being in a cluster, admitting nodes, watching them, keeping
 * enough controllers, pushing the view, and the cluster's verbs. */
#pragma once
#include "caps/members/members.h"
#include "io/peers.h"

#include <schema/shepherd.pb-c.h>

struct members_node;
struct node;
struct call;
struct task_fds;

/* Who this node is: made at init or join, kept in STATE/identity. */
struct identity {
	struct id cluster;
	uint32_t number;
	char name[MEMBERS_NAME_MAX + 1];
	struct str authority, cert, key; /* PEM */
	struct str view;                 /* packed View: where the others were last seen */
};
/* 0 found, 1 there is none; errors: -EBADMSG (damaged, says which file), of the file system. */
int identity_load(const char *state_dir, struct identity *ret, struct err *err);
int identity_save(const char *state_dir, const struct identity *i, struct err *err);
/* Is there space for an identity and the start of a log? Asked before a token is spent. */
int identity_room(const char *state_dir, struct err *err);
/* Only what is known of the others. */
int identity_save_view(const char *state_dir, const struct identity *i, struct err *err);
/* Forget: this node is in no cluster any more. Keys are removed, the store is set aside. */
int identity_remove(const char *state_dir, struct err *err);
void identity_free(struct identity *i);

/* Set up before and independent of any cluster; registers the verbs. */
int members_node_new(struct members_node **ret, struct node *n, const char *name, struct err *err);
/* Become what STATE says: in a cluster or not. */
int members_node_start(struct members_node *mn, struct err *err);
void members_node_free(struct members_node *mn);

/* Events of the shepherd and the loop. */
void members_node_shepherd(struct members_node *mn, const Copia__Shepherd__Event *e);
void members_node_hello(struct members_node *mn, const Copia__Shepherd__Hello *hello);

/* Forwarding of a verb to the leader (see node_forward() in node/control-impl.h). */
int members_forward(struct members_node *mn, struct call *c, const char *words, struct span body,
		    struct err *err);

/* Addresses of a node as the cluster knows them; the first is the best. */
size_t members_addresses(const Copia__Node *n, union addr ret[PEERS_ADDRESS_MAX]);
