# SPDX-License-Identifier: Apache-2.0
# A thin front: each target is one or two calls of Meson or a script. Programs land in build/.
MESON := meson
BUILD := build
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all deps check demo bench asan tsan valgrind fuzz format install deb clean
# Meson and Ninja use all processors by themselves; two targets at once would meet in apt and build/.
.NOTPARALLEL:

all: $(BUILD)/build.ninja
	@$(MESON) compile -C $(BUILD)

# Installs what is missing, when the list of it is newer than the build.
$(BUILD)/build.ninja: debian/control
	@tools/install-deps
	$(MESON) setup $(if $(wildcard $(BUILD)/build.ninja),--reconfigure) $(BUILD)
	@touch $@

deps:
	@tools/install-deps

# Everything that must hold; ends with the line "N passed, N failed".
check: deps all
	@tools/check $(BUILD)

demo: deps all
	@tools/demo $(BUILD)

bench:
	@tools/install-deps bench
	@$(MAKE) all
	@bench/run $(BUILD)

asan: deps
	@tools/check-sanitized address,undefined build-asan

tsan: deps
	@tools/check-sanitized thread build-tsan

# The unit tests, and a whole cluster of one node, under memcheck.
valgrind:
	@tools/install-deps valgrind
	@$(MAKE) all
	@tools/check-valgrind $(BUILD)

# FUZZ_SECONDS for each target.
fuzz:
	@tools/install-deps fuzz
	@tools/fuzz build-fuzz $(or $(FUZZ_SECONDS),60)

format:
	@tools/install-deps lint
	@tools/format

install: all
	$(MESON) install -C $(BUILD) --no-rebuild

# The package lands one folder up, as Debian's tools have it.
deb: deps
	dpkg-buildpackage -us -uc -b
	@ls ../copia_*.deb

clean:
	rm -rf $(BUILD) build-asan build-tsan build-fuzz
