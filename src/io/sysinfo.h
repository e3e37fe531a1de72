/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine is and how busy it is, as /proc, /sys and hwloc tell it. */
#pragma once
#include "base/err.h"

#include <schema/members.pb-c.h>

/* Facts of the machine; made with protobuf-c's allocator, the caller frees them with
 * copia__node_facts__free_unpacked(). What cannot be found out stays empty. Costs some ms (hwloc):
 * call once per start. */
Copia__NodeFacts *sysinfo_facts(void);

/* Load indices, as LSF defined them: run queue lengths are exponential averages per hardware
 * thread, ut is the CPU share in use, pg pages/s, io KiB/s. Call every few seconds. */
struct sysinfo_load {
	uint64_t last_ms; /* monotonic; 0 before the first reading */
	double r15s, r1m, r15m;
	uint64_t cpu_busy, cpu_total, pages, kib; /* counters of the last reading */
	double ut, pg, io;
	unsigned threads;
};
void sysinfo_load_init(struct sysinfo_load *l, unsigned threads);
void sysinfo_load_read(struct sysinfo_load *l, uint64_t now_ms, Copia__NodeLoad *ret);
