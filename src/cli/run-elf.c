/* SPDX-License-Identifier: Apache-2.0 */
/* A look into a program's file: machine, and whether it needs an MPI library, directly or through
 * its libraries. Only tells the launcher what to offer; what cannot be read is taken as "none". */
#include "cli/run.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 6, LIBRARIES_MAX = 96, NEEDED_MAX = 64 };

/* Libraries that never lead to MPI: most programs need nothing else, and cost nothing here. */
static const char *const plain[] = { "libc.so.",     "libm.so.",       "libpthread.so.",
				     "libdl.so.",    "librt.so.",      "ld-linux",
				     "libgcc_s.so.", "libstdc++.so.",  "libtinfo.so.",
				     "libz.so.",     "libselinux.so.", "libpcre",
				     "libcap.so.",   "libacl.so.",     "libcrypt",
				     "libgmp.so." };

static const struct {
	const char *prefix;
	Copia__MpiLibrary library;
} mpi_names[] = {
	{ "libmpi.so.40", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "libmpi_", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "libpmix.so", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "libopen-rte.so", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "libopen-pal.so", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "liboshmem.so", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX },
	{ "libmpich", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1 },
	{ "libmpi.so.12", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1 }, /* ABI of MPICH and relatives */
	{ "libpmi.so", COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1 },
};

struct look {
	Copia__MpiLibrary library;
	char *seen[LIBRARIES_MAX];
	size_t seen_count;
};

struct elf_file {
	const uint8_t *at;
	size_t len;
};

static bool map_file(const char *path, struct elf_file *ret)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	if (fd < 0)
		return false;
	bool good = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= EI_NIDENT;
	void *at =
	    good ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
	(void)close(fd);
	if (at == MAP_FAILED)
		return false;
	*ret = (struct elf_file){ at, (size_t)st.st_size };
	return true;
}

static void unmap(struct elf_file *f)
{
	if (f->at)
		(void)munmap((void *)f->at, f->len);
}

static const void *part(const struct elf_file *f, uint64_t at, uint64_t len)
{
	return at <= f->len && len <= f->len - at ? f->at + at : NULL;
}

/* A NUL-terminated text inside the file, or NULL. */
static const char *text_at(const struct elf_file *f, uint64_t at)
{
	if (at >= f->len || !memchr(f->at + at, '\0', f->len - at))
		return NULL;
	return (const char *)f->at + at;
}

static const Elf64_Phdr *segment(const struct elf_file *f, const Elf64_Ehdr *e, unsigned i)
{
	if (e->e_phentsize != sizeof(Elf64_Phdr) || i >= e->e_phnum)
		return NULL;
	return part(f, e->e_phoff + (uint64_t)i * sizeof(Elf64_Phdr), sizeof(Elf64_Phdr));
}

/* File offset of a virtual address. */
static uint64_t offset_of(const struct elf_file *f, const Elf64_Ehdr *e, uint64_t address)
{
	for (unsigned i = 0; i < e->e_phnum; i++) {
		const Elf64_Phdr *p = segment(f, e, i);
		if (p && p->p_type == PT_LOAD && address - p->p_vaddr < p->p_filesz)
			return address - p->p_vaddr + p->p_offset;
	}
	return UINT64_MAX;
}

static Copia__MpiLibrary classify(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(mpi_names); i++)
		if (!strncmp(name, mpi_names[i].prefix, strlen(mpi_names[i].prefix)))
			return mpi_names[i].library;
	return COPIA__MPI_LIBRARY__MPI_LIBRARY_NONE;
}

static bool is_plain(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(plain); i++)
		if (!strncmp(name, plain[i], strlen(plain[i])))
			return true;
	return false;
}

static void look_into(struct look *l, const char *path, int depth);

static bool try_folders(struct look *l, const char *folders, const char *origin, const char *name,
			int depth)
{
	for (const char *at = folders; at && *at;) {
		const char *end = strchrnul(at, ':');
		_cleanup_(str_free) struct str path = { 0 };
		static const char token[] = "$ORIGIN";
		if (!strncmp(at, token, sizeof(token) - 1)) {
			str_puts(&path, origin);
			at += sizeof(token) - 1;
		}
		str_add(&path, at, (size_t)(end - at));
		str_printf(&path, "/%s", name);
		if (access(str_text(&path), R_OK) == 0) {
			look_into(l, str_text(&path), depth + 1);
			return true;
		}
		at = *end ? end + 1 : end;
	}
	return false;
}

static void look_for(struct look *l, const char *name, const char *run_path, const char *origin,
		     int depth)
{
	static const char usual[] =
#if defined(__x86_64__)
	    "/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:"
#elif defined(__aarch64__)
	    "/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu:"
#endif
	    "/usr/local/lib:/lib64:/usr/lib64:/lib:/usr/lib";
	if (l->library == COPIA__MPI_LIBRARY__MPI_LIBRARY_NONE)
		l->library = classify(name);
	if (l->library != COPIA__MPI_LIBRARY__MPI_LIBRARY_NONE || is_plain(name))
		return;
	for (size_t i = 0; i < l->seen_count; i++)
		if (!strcmp(l->seen[i], name))
			return;
	if (l->seen_count == LIBRARIES_MAX || depth >= DEPTH_MAX)
		return;
	l->seen[l->seen_count++] = xstrdup(name);
	if (!try_folders(l, getenv("LD_LIBRARY_PATH"), origin, name, depth) &&
	    !try_folders(l, run_path, origin, name, depth))
		(void)try_folders(l, usual, origin, name, depth);
}

static void look_dynamic(struct look *l, const struct elf_file *f, const Elf64_Ehdr *e,
			 const Elf64_Phdr *p, const char *path, int depth)
{
	const Elf64_Dyn *d = part(f, p->p_offset, p->p_filesz);
	size_t count = d ? p->p_filesz / sizeof(*d) : 0, needed_count = 0;
	uint64_t strings = UINT64_MAX, run_path_at = UINT64_MAX, needed[NEEDED_MAX];
	for (size_t i = 0; i < count && d[i].d_tag != DT_NULL; i++) {
		if (d[i].d_tag == DT_STRTAB)
			strings = offset_of(f, e, d[i].d_un.d_ptr);
		else if (d[i].d_tag == DT_RUNPATH || d[i].d_tag == DT_RPATH)
			run_path_at = d[i].d_un.d_val;
		else if (d[i].d_tag == DT_NEEDED && needed_count < NEEDED_MAX)
			needed[needed_count++] = d[i].d_un.d_val;
	}
	if (strings == UINT64_MAX)
		return;
	const char *run_path = run_path_at < f->len ? text_at(f, strings + run_path_at) : NULL;
	const char *slash = strrchr(path, '/');
	_cleanup_(free_p) char *origin = xstrndup(path, slash ? (size_t)(slash - path) : 0);
	for (size_t i = 0; i < needed_count; i++) {
		const char *name = needed[i] < f->len ? text_at(f, strings + needed[i]) : NULL;
		if (name && *name)
			look_for(l, name, run_path, origin, depth);
	}
}

static void look_into(struct look *l, const char *path, int depth)
{
	_cleanup_(unmap) struct elf_file f = { 0 };
	if (!map_file(path, &f))
		return;
	const Elf64_Ehdr *e = part(&f, 0, sizeof(*e));
	if (!e || memcmp(e->e_ident, ELFMAG, SELFMAG) != 0 || e->e_ident[EI_CLASS] != ELFCLASS64)
		return;
	for (unsigned i = 0; i < e->e_phnum; i++) {
		const Elf64_Phdr *p = segment(&f, e, i);
		if (p && p->p_type == PT_DYNAMIC)
			look_dynamic(l, &f, e, p, path, depth);
	}
}

void run_inspect(const char *path, Copia__LaunchProgram *p)
{
	_cleanup_(unmap) struct elf_file f = { 0 };
	if (!map_file(path, &f))
		return;
	if (f.at[0] == '#' && f.at[1] == '!') {
		p->library = COPIA__MPI_LIBRARY__MPI_LIBRARY_UNKNOWN;
		return;
	}
	const Elf32_Ehdr *e = part(&f, 0, sizeof(*e)); /* begins like Elf64_Ehdr */
	if (!e || memcmp(e->e_ident, ELFMAG, SELFMAG) != 0)
		return;
	bool swapped =
	    (e->e_ident[EI_DATA] == ELFDATA2MSB) != (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
	p->machine = swapped ? __builtin_bswap16(e->e_machine) : e->e_machine;
	if (swapped || e->e_ident[EI_CLASS] != ELFCLASS64)
		return;
	struct look l = { 0 };
	look_into(&l, path, 0);
	p->library = l.library;
	for (size_t i = 0; i < l.seen_count; i++)
		free(l.seen[i]);
}
