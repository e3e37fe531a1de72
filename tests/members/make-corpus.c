/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the fuzzers' first inputs: make-corpus FOLDER makes FOLDER/apply and FOLDER/view. */
#include "world.h"

#include <stdio.h>
#include <sys/stat.h>

static void save(const char *folder, const char *kind, const char *name, const void *at, size_t len)
{
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/%s", folder, kind);
	(void)mkdir(path, 0755);
	(void)snprintf(path, sizeof(path), "%s/%s/%s", folder, kind, name);
	FILE *f = fopen(path, "wb");
	if (!f || fwrite(at, 1, len, f) != len || fclose(f))
		perror(path);
}

static void everything(struct world *w)
{
	(void)world_certificate(w, 2, 'A');
	(void)world_state(w, 3, COPIA__NODE_STATE__DOWN);
	(void)world_role(w, 2, COPIA__NODE_ROLE__LEARNER);
	(void)world_role(w, 2, COPIA__NODE_ROLE__CONTROLLER);
	(void)world_drain(w, 2, true);
	(void)world_drain(w, 2, false);
	(void)world_key(w, 2);
	(void)world_set(w, "controllers", "5");
	(void)world_update(w, 3, 77);
	(void)world_resource(w, "clock", true, false, 0);
	(void)world_resource(w, "clock", false, true, 3);
	(void)world_resource(w, "clock", false, true, 0);
	(void)world_leave(w, 2);
	(void)world_leave(w, 3);
	(void)world_resource(w, "clock", false, false, 0);
}

int main(int argc, char **argv)
{
	struct str record = { 0 };
	struct world w;
	if (argc < 2)
		return 2;
	world_open(&w);
	w.record = &record;
	(void)world_init(&w, "lab", "n1");
	for (char i = 2; i <= 4; i++) {
		char name[] = { 'n', (char)('0' + i), 0 };
		(void)world_token(&w, i, 60000);
		(void)world_join(&w, i, name, 'x');
	}
	save(argv[1], "apply", "grow", record.at, record.len);
	Copia__View *v = members_view(w.m, 0);
	uint8_t bytes[8192];
	save(argv[1], "view", "complete", bytes, copia__view__pack(v, bytes));
	copia__view__free_unpacked(v, NULL);
	everything(&w);
	save(argv[1], "apply", "everything", record.at, record.len);
	v = members_view(w.m, 5);
	save(argv[1], "view", "changes", bytes, copia__view__pack(v, bytes));
	copia__view__free_unpacked(v, NULL);
	world_close(&w);
	str_free(&record);
	return 0;
}
