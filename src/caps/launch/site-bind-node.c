/* SPDX-License-Identifier: Apache-2.0 */
/* One core for each local rank, as hwloc numbers them; more ranks than cores begin again at the
 * first. The machine is looked at once, when the first job asks. */
#include "caps/launch/launch-impl-node.h"

#include <errno.h>
#include <hwloc.h>

static hwloc_topology_t topology_get(struct err *err)
{
	static hwloc_topology_t topology; /* read-only once made; lives as long as the brain */
	if (topology)
		return topology;
	hwloc_topology_t t;
	if (hwloc_topology_init(&t) < 0 || hwloc_topology_load(t) < 0) {
		(void)err_set(err, -ENOTSUP, "hwloc cannot read this machine's topology");
		return NULL;
	}
	topology = t;
	return t;
}

int bind_cpus(uint32_t local, uint8_t *mask, size_t size, size_t *ret_len, struct err *err)
{
	hwloc_topology_t t = topology_get(err);
	if (!t)
		return -ENOTSUP;
	int cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE);
	hwloc_obj_type_t type = cores > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
	if (cores <= 0)
		cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PU);
	if (cores <= 0)
		return err_set(err, -ENOTSUP, "hwloc finds no cores");
	hwloc_obj_t o = hwloc_get_obj_by_type(t, type, local % (uint32_t)cores);
	memset(mask, 0, size);
	*ret_len = 0;
	unsigned cpu;
	hwloc_bitmap_foreach_begin(cpu, o->cpuset)
	{
		if (cpu / 8 >= size)
			return err_set(err, -ERANGE, "CPU %u is beyond what can be bound", cpu);
		mask[cpu / 8] |= (uint8_t)(1u << cpu % 8);
		*ret_len = cpu / 8 + 1;
	}
	hwloc_bitmap_foreach_end();
	return 0;
}
