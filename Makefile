# SPDX-License-Identifier: Apache-2.0
# A thin front: each target is one or two calls of Meson or a script. Programs land in build/.
MESON := meson
BUILD := build
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all deps check demo bench asan tsan fuzz format install deb clean

all: $(BUILD)/build.ninja
	$(MESON) compile -C $(BUILD)

$(BUILD)/build.ninja:
	@tools/install-deps
	$(MESON) setup $(BUILD)

deps:
	@tools/install-deps

# Everything that must hold; ends with the line "N passed, N failed".
check: deps all
	@tools/check $(BUILD)

demo: deps all
	@tools/demo $(BUILD)

bench:
	@tools/install-deps --bench
	@$(MAKE) all
	@bench/run $(BUILD)

asan: deps
	@tools/check-sanitized address,undefined build-asan

tsan: deps
	@tools/check-sanitized thread build-tsan

# FUZZ_SECONDS for each target.
fuzz: deps
	@tools/fuzz build-fuzz $(or $(FUZZ_SECONDS),60)

format:
	@tools/format

install: all
	$(MESON) install -C $(BUILD)

deb: deps
	dpkg-buildpackage -us -uc -b

clean:
	rm -rf $(BUILD) build-asan build-tsan build-fuzz
