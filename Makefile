# make demo, make test: all that a fresh clone needs. The rest is for working on luna_ext.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Not the bytecode that Python writes: modules would be built anew, and replaced, under a running test.
SOURCES := setup.py pyproject.toml \
	$(wildcard include/*.h luna_ext/_*.pyx luna_ext/_*.pxd luna_ext/_[a-z]*/*.* stub_lib/*.c stub_lib/*.h)

.PHONY: demo test backend stress check model mutate lowest coverage freethreaded benchmark wheel wheels docs pins \
	windows windows-tools arm64 chroot-test sbom clean

demo: $(VENV)/built
	$(BIN)/python -m luna_ext.commands.demo

# Tests mostly wait: several run at a time. PYTEST_ARGS takes the place of this, for some of the tests.
PYTEST_ARGS ?= $(AT_A_TIME)
AT_A_TIME ?= -n 4 --dist worksteal

test: $(VENV)/built $(VENV)/with-test
	$(BIN)/pytest $(PYTEST_ARGS)

# Tests that say nothing of keys once more, on the stand-in over another module.
BACKEND ?= /usr/lib/softhsm/libsofthsm2.so
BACKEND_TESTS ?= $(patsubst %,tests/test_%.py,lock claim fork processes) \
	$(patsubst %,tests/stub/test_%.py,cluster_functions pins faults log)

backend: $(VENV)/built $(VENV)/with-test
	LUNA_STUB_BACKEND=$(BACKEND) $(BIN)/pytest $(BACKEND_TESTS) $(PYTEST_ARGS)

# One at a time: what they measure, or Wine, takes all that there is.
stress windows: PYTEST_ARGS :=

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
	$(BIN)/interrogate luna_ext
	$(BIN)/python tests/mutate.py --look
	PATH="$(abspath $(BIN)):$$PATH" cython-lint luna_ext
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest luna_ext --allowlist tests/stubtest_allowlist.txt \
		--mypy-config-file pyproject.toml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor -q --offline --pedantic .github

# From the table by which errors are raised.
docs/errors.md: luna_ext/errors.py luna_ext/explanations.py luna_ext/vendor_codes.py docs/make_errors.py \
		| $(VENV)/built
	$(BIN)/python docs/make_errors.py

# The pages, in build/docs, to be opened by a browser.
docs: docs/errors.md $(VENV)/built $(VENV)/with-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

# What the commands on the page print.
docs/command.md: docs/make_command_output.py $(wildcard luna_ext/commands/*.py) | $(VENV)/built $(VENV)/with-test
	$(BIN)/python docs/make_command_output.py

# The rules for locks and claims of one slot, in every order of events.
model:
	$(PYTHON) tests/model/slot_model.py

# Do the tests find a fault? Those of tests/mutations.toml are put into a copy of the tree, one at a time: a
# minute for one that is found, many for one that is not. MUTATE_ARGS='--only NAME' chooses some.
mutate: $(VENV)/built $(VENV)/with-test
	$(BIN)/python tests/mutate.py $(MUTATE_ARGS)

# Tests that compile programs of their own, or run other programs: modules that are built for tracing or
# for a sanitizer are not used there. And tests of Python code alone.
COMPILING := test_build test_benchmarks stub/test_windows stub/test_storm stub/test_races
APART := --ignore=tests/commands --ignore=tests/docs --ignore=tests/model
# A test takes many times as long in some of these builds before it can be said to hang.
PATIENT := -o faulthandler_timeout=600
NOTHING_BUT_PYTHON := configuration discovery labels pytest_plugin metrics

# The tests once more, in a tree of their own, on modules and a stand-in that count which of their lines run, in
# all processes. It begins before pytest, which loads luna_ext as a plugin. A process that is killed tells nothing.
coverage: $(VENV)/built $(VENV)/with-test
	rm -rf build/coverage
	mkdir -p build/coverage
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests examples docs build/coverage
	rm -f build/coverage/luna_ext/*.so
	cd build/coverage && LUNA_EXT_COVERAGE=1 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/coverage && $(abspath $(BIN))/coverage run -m pytest -q $(AT_A_TIME) $(PATIENT) \
		--ignore=tests/docs --ignore=tests/model --ignore=tests/test_instructions.py \
		$(COMPILING:%=--ignore=tests/%.py) || touch failed
	cd build/coverage && $(abspath $(BIN))/coverage combine -q && $(abspath $(BIN))/coverage report
	cd build/coverage && find build -name '*.gcda' | sort | while read -r counts; do \
		gcov -n -b -o "$$(dirname "$$counts")" "$$counts" 2>/dev/null; done | \
		grep -A3 -E "^File '(luna_ext|stub_lib)/.*(pyx|c)'"
	[ ! -e build/coverage/failed ]

# make asan, tsan and fuzz.
include tests/c/sanitizers.mk

# The tests on a CPython without the GIL, which is built for it if there is none; FREETHREADED_TESTS
# chooses some. In an environment of its own, for which the modules are built a second time.
FREETHREADED := build/freethreaded/venv
FREETHREADED_PYTHON ?= $$(tests/python-freethreaded)
FREETHREADED_TESTS ?= tests

freethreaded:
	$(MAKE) $(FREETHREADED)/pip PYTHON="$(FREETHREADED_PYTHON)" VENV=$(FREETHREADED)
	$(MAKE) $(FREETHREADED)/built $(FREETHREADED)/with-test-freethreaded VENV=$(FREETHREADED)
	PYTHON_GIL=0 $(FREETHREADED)/bin/pytest $(FREETHREADED_TESTS) $(PYTEST_ARGS)

# Measures, on an otherwise idle machine for some minutes, and writes docs/performance.md with its pictures
# and the figures of README.md. Without the GIL where `make freethreaded` has made an environment.
BENCHMARKS := lock_pair instructions memory main_thread threads contention handover tasks polling fleet \
	claims_beside_locks import_time large_cluster

benchmark: $(VENV)/built $(VENV)/with-benchmark
	rm -f build/benchmarks/*.json
	[ ! -e $(FREETHREADED)/bin/python ] || $(MAKE) $(FREETHREADED)/built VENV=$(FREETHREADED)
	set -e; for bench in $(BENCHMARKS); do \
		echo; echo "benchmarks/$$bench.py"; $(BIN)/python benchmarks/$$bench.py; \
	done
	$(BIN)/python benchmarks/report.py

# A wheel is built from the sdist alone, without a warning, twice with the same bytes. It and the sources are
# examined (there is no author's mailbox to find: SECURITY.md says where to write), and it is used once in an
# environment with nothing else.
wheel: $(VENV)/with-test $(VENV)/with-wheel
	rm -rf build/wheel
	$(BIN)/python setup.py -q sdist -d build/wheel
	CPPFLAGS=-Werror $(BIN)/pip wheel -q --no-deps -w build/wheel build/wheel/*.tar.gz
	$(BIN)/pip wheel -q --no-deps -w build/wheel/again build/wheel/*.tar.gz
	cmp build/wheel/*.whl build/wheel/again/*.whl
	$(BIN)/python tests/check_wheel.py build/wheel/*.whl
	$(BIN)/check-wheel-contents build/wheel/*.whl
	$(BIN)/twine check --strict build/wheel/*.whl build/wheel/*.tar.gz
	$(BIN)/pyroma -n 10 --skip-tests AuthorEmail build/wheel/*.tar.gz
	[ ! -e .git ] || $(BIN)/check-manifest --no-build-isolation
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q --no-index build/wheel/*.whl
	cd build/wheel && venv/bin/python ../../tests/smoke.py

# A wheel for each CPython from 3.11 on that is found: on the PATH, in pyenv, and without the GIL where `make
# freethreaded` has built one. The workflow "Wheels" builds those of a release.
wheels: $(VENV)/with-test $(VENV)/with-wheel
	rm -rf build/wheels
	$(BIN)/python setup.py -q sdist -d build/wheels
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/make_wheels.py build/wheels
	$(BIN)/check-wheel-contents build/wheels/wheels
	$(BIN)/twine check --strict build/wheels/wheels/*.whl build/wheels/*.tar.gz

# The stand-in for Windows: cross-compiled, and used by two programs that Wine runs. The modules are compiled
# alone, for there is no Python for Windows to link them to.
windows: windows-tools $(VENV)/built $(VENV)/with-test
	$(BIN)/python tests/compile_for_windows.py build/windows
	$(BIN)/pytest tests/stub/test_windows.py $(PYTEST_ARGS)

windows-tools:
	@command -v x86_64-w64-mingw32-gcc >/dev/null || $(call lacks,compiler for Windows,gcc-mingw-w64-x86-64)
	@command -v wine >/dev/null || $(call lacks,Wine,wine wine64)

# Built for arm64 by a cross compiler, and tested with qemu as the processor, on which a test takes many times
# as long; ARM64_TESTS chooses some.
ARM64_TESTS ?= tests

arm64:
	tests/arm64 build/arm64 $(ARM64_TESTS)

# The tests on CPython 3.14 and 3.15, in a chroot of Debian's unstable suite; CHROOT_TESTS chooses some.
CHROOT_TESTS ?= tests

chroot-test:
	tests/chroot build/chroot $(CHROOT_TESTS)

# What a release is made with: versions and hashes of everything, at their newest.
PINNING := pip-compile -q --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

pins: $(VENV)/with-pins
	$(BIN)/$(PINNING) --only-build-deps --all-build-deps -o requirements/build.txt pyproject.toml
	$(BIN)/$(PINNING) -o requirements/wheels.txt requirements/wheels.in
	$(BIN)/$(PINNING) -o requirements/sbom.txt requirements/sbom.in

# The parts of a release, in CycloneDX's form: nothing at run time, and what it is built with, for Cython puts
# code of its own into the modules.
sbom:
	$(PYTHON) -m venv build/sbom/venv
	build/sbom/venv/bin/pip install -q --require-hashes -r requirements/sbom.txt
	version=$$(sed -n 's/^__version__ = //p' luna_ext/__init__.py) && \
		sed "s/^dynamic = .*/version = $$version/" pyproject.toml >build/sbom/pyproject.toml
	build/sbom/venv/bin/python -W ignore -m cyclonedx_py requirements --pyproject build/sbom/pyproject.toml \
		--mc-type library --output-reproducible -o build/sbom/luna_ext.cdx.json requirements/build.txt

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
