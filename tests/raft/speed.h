/* SPDX-License-Identifier: Apache-2.0 */
/* How fast the core is when nothing else is in the way. */
#pragma once
#include "sim.h"

/* Prints committed entries per second for several batch sizes; 0. */
int speed_run(const struct options *o);
