# The stand-in's C code, and the tests on it, under sanitizers, valgrind and a fuzzer. A part of the
# Makefile, whose directory all paths begin at.

.PHONY: asan tsan tsan-freethreaded fuzz

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
	$(VALGRIND) build/asan/storm-plain exercise 3
	$(VALGRIND) --leak-check=full build/asan/storm-plain kill 3
	rm -rf build/asan/tree
	mkdir build/asan/tree
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples build/asan/tree
	mkdir build/asan/tree/build && cp -r build/cython build/asan/tree/build
	rm -f build/asan/tree/luna_ext/*.so
	cd build/asan/tree && CC=$(SANITIZER_CC) CFLAGS="$(SANITIZE) -g -UNDEBUG" LDFLAGS="$(SANITIZE)" \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/asan/tree && LD_PRELOAD="$$($(SANITIZER_CC) -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(abspath $(BIN))/python -m pytest -q $(AT_A_TIME) $(PATIENT) $(ASAN_TESTS) \
		-m "not stress" --ignore=tests/stub/test_p11_kit.py $(APART) $(COMPILING:%=--ignore=tests/%.py) \
		$(NOTHING_BUT_PYTHON:%=--ignore=tests/test_%.py) \
		--deselect=tests/test_claim.py::test_no_copy_of_a_pin \
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
	cd build/tsan/tree && CC=$(SANITIZER_CC) CFLAGS="-fsanitize=thread -g -UNDEBUG" LDFLAGS="-fsanitize=thread" \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/tsan/tree && LD_PRELOAD="$$($(SANITIZER_CC) -print-file-name=libtsan.so)" TSAN_OPTIONS="\
		die_after_fork=0 handle_segv=0 suppressions=$(abspath tests/c/tsan.supp) log_path=$(abspath build/tsan/reports)/of" \
		$(NOT_AT_RANDOM) $(abspath $(BIN))/python -m pytest -q $(AT_A_TIME) $(PATIENT) $(TSAN_TESTS) --ignore=tests/stub $(APART) \
		--deselect=tests/test_claim.py::test_no_copy_of_a_pin \
		--deselect=tests/test_processes.py::test_forked_workers_of_an_open_library_exclude_each_other \
		--ignore=tests/test_gunicorn.py $(SINGLE_THREADED:%=--ignore=tests/test_%.py); \
		status=$$?; cat $(abspath build/tsan/reports)/* 2>/dev/null && exit 66; exit $$status

# The same without the GIL, on a CPython that is built for ThreadSanitizer as well. CPython's own list says
# which of its races are known. Left out is the search of the heap for a PIN, for ThreadSanitizer has a heap
# of its own.
tsan-freethreaded: tsan-tools $(VENV)/built
	$(NOT_AT_RANDOM) $(MAKE) $(WATCHED)/venv/pip $(WATCHED)/venv/with-test-freethreaded \
		PYTHON="$$(tests/python-freethreaded --with-thread-sanitizer)" VENV=$(WATCHED)/venv
	rm -rf $(WATCHED)/tree $(WATCHED)/reports
	mkdir -p $(WATCHED)/tree $(WATCHED)/reports
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples $(WATCHED)/tree
	mkdir $(WATCHED)/tree/build && cp -r build/cython $(WATCHED)/tree/build
	rm -f $(WATCHED)/tree/luna_ext/*.so
	cat $$(dirname $$(tests/python-freethreaded --with-thread-sanitizer))/../tsan.supp tests/c/tsan.supp \
		>$(WATCHED)/tsan.supp
	cd $(WATCHED)/tree && CC=$(SANITIZER_CC) CFLAGS="-fsanitize=thread -g -UNDEBUG" LDFLAGS="-fsanitize=thread" \
		$(NOT_AT_RANDOM) $(abspath $(WATCHED))/venv/bin/python setup.py -q build_ext --inplace
	cd $(WATCHED)/tree && PYTHON_GIL=0 TSAN_OPTIONS="die_after_fork=0 handle_segv=0 \
		suppressions=$(abspath $(WATCHED))/tsan.supp log_path=$(abspath $(WATCHED))/reports/of" \
		$(NOT_AT_RANDOM) $(abspath $(WATCHED))/venv/bin/python -m pytest -q $(AT_A_TIME) $(PATIENT) \
		-p luna_ext.pytest_plugin $(TSAN_FREETHREADED_TESTS) \
		--deselect=tests/test_claim.py::test_no_copy_of_a_pin; \
		status=$$?; cat $(abspath $(WATCHED))/reports/* 2>/dev/null && exit 66; exit $$status

WATCHED := build/tsan-freethreaded
TSAN_FREETHREADED_TESTS ?= tests/test_free_threading.py tests/test_lock.py tests/test_timed_lock.py \
	tests/test_async_lock.py tests/test_claim.py tests/test_timed_claim.py tests/test_stats.py

TSAN_TESTS ?= tests
ASAN_TESTS ?= tests
SINGLE_THREADED := build discovery errors every_code import labels loading pytest_plugin stub_guard

NOT_AT_RANDOM = $(shell setarch -R true 2>/dev/null && echo setarch -R)

# First a process is stopped after each of its instructions: what would the next one find? What the fuzzer
# learns stays in build/fuzz/corpus for the next time. build/fuzz/fuzz FILE repeats a crash. No number in an
# input is compared with anything, so what is compared (-use_cmp) tells it nothing.
fuzz: fuzz-tools build/asan/storm build/fuzz/fuzz build/fuzz/seeds
	build/asan/storm step 0
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
	$(SANITIZER_CC) $(STRICT) $(SANITIZE) $(STORM_SOURCES) -ldl -o $@

build/asan/storm-plain: $(STORM_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(SANITIZER_CC) $(STRICT) $(STORM_SOURCES) -ldl -o $@

build/tsan/storm: $(STORM_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(SANITIZER_CC) $(STRICT) -fsanitize=thread $(STORM_SOURCES) -ldl -o $@

# A log of so few entries goes round within one run, and a run's file is made in no time.
build/fuzz/fuzz: $(FUZZ_SOURCES) $(C_HEADERS)
	mkdir -p $(@D)
	$(FUZZER_CC) $(STRICT) -DSTATE_LOG_ENTRIES=64 -fno-omit-frame-pointer -fsanitize=fuzzer \
		$(SANITIZE) $(FUZZ_SOURCES) -ldl -o $@
