# make demo, make test: all that a fresh clone needs. The rest is for working on luna_ext.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml \
	$(wildcard include/*.h luna_ext/*.pyx luna_ext/*.pxd luna_ext/*.h stub_lib/*.c stub_lib/*.h)

.PHONY: demo test stress check model lowest coverage asan tsan fuzz benchmark wheel clean

demo: $(VENV)/built
	$(BIN)/python -m luna_ext.demo

test: $(VENV)/built $(VENV)/with-test
	$(BIN)/pytest $(PYTEST_ARGS)

# The stress tests in their long form, a few minutes of them, with their figures.
stress: $(VENV)/built $(VENV)/with-test
	LUNA_EXT_STRESS=long $(BIN)/pytest -m stress -s tests/stress $(PYTEST_ARGS)

# The tests with the oldest version of everything that pyproject.toml says is new enough.
lowest:
	mkdir -p build/lowest
	grep -oE '[A-Za-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/>=/==/' | sort -u > build/lowest/versions.txt
	PIP_CONSTRAINT=build/lowest/versions.txt PIP_BUILD_CONSTRAINT=build/lowest/versions.txt \
		$(MAKE) test VENV=build/lowest/venv

check: model $(VENV)/built $(VENV)/with-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint luna_ext
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest luna_ext --allowlist tests/stubtest_allowlist.txt

# The rules for locks and claims of one slot, in every order of events.
model:
	$(PYTHON) tests/model/slot_model.py

# Tests that compile programs of their own, or run others: what is built for another run of the tests is
# not in them, or nothing but Python.
COMPILING := test_build stub/test_windows stub/test_storm stub/test_races
COMMANDS := --ignore=tests/commands
NOTHING_BUT_PYTHON := discovery labels pytest_plugin metrics

# The tests once more, on modules that are built to be traced, in a tree of their own. It begins before
# pytest, which loads luna_ext as a plugin.
coverage: $(VENV)/built $(VENV)/with-test
	rm -rf build/coverage
	mkdir -p build/coverage
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples build/coverage
	rm -f build/coverage/luna_ext/*.so
	cd build/coverage && LUNA_EXT_TRACE=1 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/coverage && $(abspath $(BIN))/coverage run -m pytest -q -m "not signals and not stress" \
		--ignore=tests/test_every_code.py $(COMMANDS) $(COMPILING:%=--ignore=tests/%.py)
	cd build/coverage && $(abspath $(BIN))/coverage report

# ---- the stand-in's C code under sanitizers, valgrind and a fuzzer ----

# gcc, for its sanitizers' libraries come with it; the fuzzer comes with clang.
SANITIZER_CC ?= gcc
FUZZER_CC ?= clang
FUZZ_SECONDS ?= 60
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
STRICT := -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror -O2 -g -pthread -D_GNU_SOURCE \
	-Iinclude -Istub_lib
STUB_SOURCES := $(foreach source,$(wildcard stub_lib/*.c),\
	$(if $(findstring _windows,$(source)),,$(source)))
STORM_SOURCES := $(wildcard tests/c/storm*.c) $(STUB_SOURCES)
FUZZ_SOURCES := $(wildcard tests/c/fuzz*.c) tests/c/platform_memory.c \
	$(filter-out %/platform_posix.c,$(STUB_SOURCES))
C_HEADERS := $(wildcard include/*.h stub_lib/*.h tests/c/*.h)

# $(call lacks,WHAT,PACKAGES): says so, and fails.
lacks = { echo "make $(@:-tools=): there is no $(1): apt-get install $(2)" >&2; false; }
# $(call links,COMPILER AND FLAGS,FUNCTION): can it build a program of this function?
links = echo 'int $(2)(void) { return 0; }' | $(1) -x c - -o /dev/null 2>/dev/null

# Leaks are not looked for where some are to be expected: in CPython, and in a process that was forked
# beside a thread with memory of its own. Left out is p11-kit, which does not end under AddressSanitizer,
# and a child with many threads, for it takes their stacks for those of threads that a fork left behind.
asan: asan-tools build/asan/storm build/asan/storm-plain $(VENV)/built $(VENV)/with-test
	ASAN_OPTIONS=detect_leaks=0 build/asan/storm exercise 4
	build/asan/storm kill 4
	build/asan/storm step 0
	$(VALGRIND) build/asan/storm-plain exercise 3
	$(VALGRIND) --leak-check=full build/asan/storm-plain kill 3
	rm -rf build/asan/tree
	mkdir build/asan/tree
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples build/asan/tree
	mkdir build/asan/tree/build && cp -r build/cython build/asan/tree/build
	rm -f build/asan/tree/luna_ext/*.so
	cd build/asan/tree && CC=$(SANITIZER_CC) CFLAGS="$(SANITIZE) -g" LDFLAGS="$(SANITIZE)" \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/asan/tree && LD_PRELOAD="$$($(SANITIZER_CC) -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(abspath $(BIN))/python -m pytest -q tests \
		-m "not stress" --ignore=tests/stub/test_p11_kit.py $(COMMANDS) $(COMPILING:%=--ignore=tests/%.py) \
		$(NOTHING_BUT_PYTHON:%=--ignore=tests/test_%.py) \
		--deselect=tests/test_fork.py::test_the_first_calls_of_many_threads_of_a_child_initialise_once

VALGRIND := valgrind -q --error-exitcode=9

# Where the kernel puts a program at random, it may be where ThreadSanitizer keeps its own memory. A
# report makes a process exit with 66, and is shown at the end. Left out is what has one thread, other
# clients, which are not built for it, and forked servers that are ended by signals, which
# ThreadSanitizer delivers late.
tsan: tsan-tools build/tsan/storm $(VENV)/built $(VENV)/with-test
	TSAN_OPTIONS=halt_on_error=1 $(NOT_AT_RANDOM) build/tsan/storm exercise 10
	TSAN_OPTIONS=halt_on_error=1 $(NOT_AT_RANDOM) build/tsan/storm kill 4
	rm -rf build/tsan/tree build/tsan/reports
	mkdir -p build/tsan/tree build/tsan/reports
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples build/tsan/tree
	mkdir build/tsan/tree/build && cp -r build/cython build/tsan/tree/build
	rm -f build/tsan/tree/luna_ext/*.so
	cd build/tsan/tree && CC=$(SANITIZER_CC) CFLAGS="-fsanitize=thread -g" LDFLAGS="-fsanitize=thread" \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/tsan/tree && LD_PRELOAD="$$($(SANITIZER_CC) -print-file-name=libtsan.so)" TSAN_OPTIONS="\
		die_after_fork=0 handle_segv=0 suppressions=$(abspath tests/tsan.supp) log_path=$(abspath build/tsan/reports)/of" \
		$(NOT_AT_RANDOM) $(abspath $(BIN))/python -m pytest -q $(TSAN_TESTS) --ignore=tests/stub $(COMMANDS) \
		--deselect=tests/test_processes.py::test_forked_workers_of_an_open_library_exclude_each_other \
		--ignore=tests/test_gunicorn.py $(SINGLE_THREADED:%=--ignore=tests/test_%.py); \
		status=$$?; cat $(abspath build/tsan/reports)/* 2>/dev/null && exit 66; exit $$status

TSAN_TESTS ?= tests
SINGLE_THREADED := build discovery errors every_code labels loading pytest_plugin stub_guard

NOT_AT_RANDOM = $(shell setarch -R true 2>/dev/null && echo setarch -R)

# What it learns stays in build/fuzz/corpus for the next time. build/fuzz/fuzz FILE repeats a crash. No
# number in an input is compared with anything, so what is compared (-use_cmp) tells it nothing.
fuzz: fuzz-tools build/fuzz/fuzz build/fuzz/seeds
	mkdir -p build/fuzz/corpus
	build/fuzz/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=256 -len_control=20 -use_cmp=0 -timeout=10 \
		-artifact_prefix=build/fuzz/ -verbosity=0 -print_final_stats=1 build/fuzz/corpus build/fuzz/seeds

.PHONY: asan-tools tsan-tools fuzz-tools

asan-tools:
	@$(call links,$(SANITIZER_CC) $(SANITIZE),main) || $(call lacks,gcc with AddressSanitizer,gcc)
	@command -v valgrind >/dev/null || $(call lacks,valgrind,valgrind)

tsan-tools:
	@$(call links,$(SANITIZER_CC) -fsanitize=thread,main) || $(call lacks,gcc with ThreadSanitizer,gcc)

fuzz-tools:
	@$(call links,$(FUZZER_CC) -fsanitize=fuzzer,LLVMFuzzerTestOneInput) || \
		$(call lacks,clang with libFuzzer,clang libclang-rt-dev)

# Any bytes are calls, and many calls to begin with are found out faster than one by one.
build/fuzz/seeds:
	mkdir -p $@
	$(PYTHON) -c "import random; random.seed(1); \
		[open(f'$@/{i}', 'wb').write(random.randbytes(256)) for i in range(200)]"

build/asan/storm: $(STORM_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(SANITIZER_CC) $(STRICT) $(SANITIZE) $(STORM_SOURCES) -o $@

build/asan/storm-plain: $(STORM_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(SANITIZER_CC) $(STRICT) $(STORM_SOURCES) -o $@

build/tsan/storm: $(STORM_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(SANITIZER_CC) $(STRICT) -fsanitize=thread $(STORM_SOURCES) -o $@

# A log of so few entries goes round within one run, and a run's file is made in no time.
build/fuzz/fuzz: $(FUZZ_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(FUZZER_CC) $(STRICT) -DSTATE_LOG_ENTRIES=64 -fno-omit-frame-pointer -fsanitize=fuzzer \
		$(SANITIZE) $(FUZZ_SOURCES) -o $@

benchmark: $(VENV)/built
	$(BIN)/python benchmarks/lock_pair.py
	$(BIN)/python benchmarks/large_cluster.py
	$(BIN)/python benchmarks/contention.py
	$(BIN)/python benchmarks/fleet.py

# A wheel, built from the sdist alone and without a warning, and a first use of it in an environment
# with nothing else.
wheel: $(VENV)/with-test
	rm -rf build/wheel
	$(BIN)/python setup.py -q sdist -d build/wheel
	CFLAGS=-Werror $(BIN)/pip wheel -q --no-deps -w build/wheel build/wheel/*.tar.gz
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q --no-index build/wheel/*.whl
	cd build/wheel && venv/bin/python ../../tests/smoke.py

clean:
	rm -rf build dist *.egg-info luna_ext/*.so .venv .venv-ci

# pip as of 25.1 knows dependency groups.
$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	touch $@

$(VENV)/built: $(VENV)/pip $(SOURCES)
	$(BIN)/pip install -qq --editable .
	touch $@

$(VENV)/with-%: $(VENV)/pip pyproject.toml
	$(BIN)/pip install -q --group $*
	touch $@
