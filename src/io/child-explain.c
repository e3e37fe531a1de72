/* SPDX-License-Identifier: Apache-2.0 */
/* Why a file cannot be run, told by the file itself. Async-signal-safe but for snprintf() with
 * plain formats, which glibc keeps free of locks and allocation. */
#include "io/child-run.h"

#include <elf.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { HEADERS_MAX = 64 };

static const struct machine {
	uint16_t number;
	const char *name;
} machines[] = {
	{ EM_X86_64, "x86_64" },   { EM_AARCH64, "aarch64" }, { EM_386, "32-bit x86" },
	{ EM_ARM, "32-bit arm" },  { EM_RISCV, "riscv" },     { EM_PPC64, "ppc64" },
	{ EM_S390, "s390x" },      { EM_MIPS, "mips" },       { EM_LOONGARCH, "loongarch" },
	{ EM_SPARCV9, "sparc64" },
};

#if defined(__x86_64__)
enum { OWN_MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { OWN_MACHINE = EM_AARCH64 };
#else
enum { OWN_MACHINE = EM_NONE };
#endif

static const char *machine_name(uint16_t number)
{
	for (size_t i = 0; i < ARRAY_LEN(machines); i++)
		if (machines[i].number == number)
			return machines[i].name;
	return "another machine";
}

/* The program loader that an ELF file of our word size asks for; "" when none. */
static void elf_loader(int fd, const Elf64_Ehdr *head, char *ret, size_t size)
{
	ret[0] = '\0';
	unsigned count = MIN((unsigned)head->e_phnum, (unsigned)HEADERS_MAX);
	for (unsigned i = 0; i < count; i++) {
		Elf64_Phdr part;
		off_t at = (off_t)(head->e_phoff + i * sizeof(part));
		if (pread(fd, &part, sizeof(part), at) != sizeof(part))
			return;
		if (part.p_type != PT_INTERP)
			continue;
		ssize_t n =
		    pread(fd, ret, MIN((size_t)part.p_filesz, size - 1), (off_t)part.p_offset);
		ret[n > 0 ? n : 0] = '\0';
		return;
	}
}

static void explain_missing(int fd, char *ret, size_t size)
{
	char text[96];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	if (n < 3)
		return;
	text[n] = '\0';
	if (text[0] == '#' && text[1] == '!') {
		char *name = text + 2 + strspn(text + 2, " \t");
		name[strcspn(name, " \t\r\n")] = '\0';
		snprintf(ret, size, "its interpreter %.80s does not exist on this node", name);
		return;
	}
	Elf64_Ehdr head;
	if (pread(fd, &head, sizeof(head), 0) != sizeof(head) ||
	    memcmp(head.e_ident, ELFMAG, SELFMAG) != 0)
		return;
	elf_loader(fd, &head, text, sizeof(text));
	if (text[0])
		snprintf(ret, size, "its program loader %.80s does not exist on this node", text);
}

static void explain_format(int fd, char *ret, size_t size)
{
	Elf64_Ehdr head = { 0 };
	ssize_t n = pread(fd, &head, sizeof(head), 0);
	if (n == 0) {
		snprintf(ret, size, "the file is empty");
		return;
	}
	if (n < 20 || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) {
		snprintf(ret, size, "neither a program nor a script that begins with #!");
		return;
	}
	uint16_t number = head.e_ident[EI_DATA] == ELFDATA2MSB ? be16toh(head.e_machine)
							       : le16toh(head.e_machine);
	if (number != OWN_MACHINE)
		snprintf(ret, size, "wrong architecture: built for %s, this node is %s",
			 machine_name(number), machine_name(OWN_MACHINE));
	else
		snprintf(ret, size, "damaged program: the kernel does not understand it");
}

static void explain_denied(const char *path, char *ret, size_t size)
{
	struct stat st;
	if (stat(path, &st) < 0)
		snprintf(ret, size, "permission denied for a folder on the way to it");
	else if (S_ISDIR(st.st_mode))
		snprintf(ret, size, "is a folder");
	else if (!S_ISREG(st.st_mode))
		snprintf(ret, size, "is not an ordinary file");
	else if (!(st.st_mode & 0111))
		snprintf(ret, size, "not executable; try chmod +x");
	else if (access(path, X_OK) < 0)
		snprintf(ret, size,
			 "this user may not run it, or its file system is mounted noexec");
}

void child_explain(const char *path, int fd, int code, char *ret, size_t size)
{
	ret[0] = '\0';
	int own = fd;
	if (fd < 0) {
		own = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (code == EACCES)
			explain_denied(path, ret, size);
	}
	if (own >= 0 && code == ENOENT)
		explain_missing(own, ret, size);
	else if (own >= 0 && code == ENOEXEC)
		explain_format(own, ret, size);
	else if (own < 0 && code == ENOENT && !strchr(path, '/'))
		snprintf(ret, size, "no such program in PATH on this node");
	else if (code == E2BIG)
		snprintf(ret, size, "arguments and environment are too long together");
	if (fd < 0 && own >= 0)
		(void)close(own);
}
