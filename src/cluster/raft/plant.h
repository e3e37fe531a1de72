/* SPDX-License-Identifier: Apache-2.0 */
/* Faults that can be built into the core with -DRAFT_PLANT=n, so that the bench can prove that it
 * finds them (tests/raft). Without it the compiler removes every one of them. A build with it may
 * change the fault at run time through raft_planted. */
#pragma once

enum raft_plant {
	PLANT_NONE = 0,
	PLANT_COMMIT_OLD_TERM = 1,        /* entries of old terms are committed by counting */
	PLANT_VOTE_NOT_STORED = 2,        /* the vote is not written to the disk */
	PLANT_ACK_BEFORE_DURABLE = 3,     /* a follower confirms what is not on its disk */
	PLANT_VOTE_FOR_OLD_LOG = 4,       /* a vote is given without comparing the logs */
	PLANT_NEW_MAJORITY_ONLY = 5,      /* joint configuration: only the new majority counts */
	PLANT_READ_UNCONFIRMED = 6,       /* a read is answered without confirming leadership */
	PLANT_NO_CONSISTENCY_CHECK = 7,   /* entries are taken without comparing the one before */
	PLANT_LEASE_WITHOUT_STICKING = 8, /* voters forget the leader's lease */
	PLANT_SNAPSHOT_KEEPS_LOG = 9,     /* an installed snapshot keeps a log that does not fit */
	PLANT_TERM_NOT_RAISED = 10,       /* a sole voter leads again in its old term */
	PLANT_COUNT = 11,
};

#ifdef RAFT_PLANT
extern int raft_planted; /* step.c; RAFT_PLANT at first */
#define planted(fault) (raft_planted == (fault))
#else
#define planted(fault) false
#endif
