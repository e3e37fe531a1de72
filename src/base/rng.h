/* SPDX-License-Identifier: Apache-2.0 */
/* Deterministic random numbers from a seed (xoshiro256**, Blackman and Vigna 2018, seeded by
 * splitmix64). For simulation, jitter and choices; never for secrets. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct rng {
	uint64_t s[4];
};

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_next(struct rng *r);
/* Uniform in [0, bound); 0 when bound is 0. */
uint64_t rng_below(struct rng *r, uint64_t bound);
/* True with probability `per_mille`/1000. */
bool rng_chance(struct rng *r, unsigned per_mille);
