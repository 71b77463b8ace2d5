# make demo, make test: all that a fresh clone needs. The rest is for working on luna_ext.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml \
	$(wildcard include/*.h luna_ext/*.pyx luna_ext/*.pxd luna_ext/*.h stub_lib/*.c stub_lib/*.h)

.PHONY: demo test check coverage benchmark wheel clean

demo: $(VENV)/built
	$(BIN)/python examples/demo.py

test: $(VENV)/built $(VENV)/with-test
	$(BIN)/pytest $(PYTEST_ARGS)

check: $(VENV)/built $(VENV)/with-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint luna_ext
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest luna_ext --allowlist tests/stubtest_allowlist.txt

# The tests once more, on modules that are built to be traced, in a tree of their own.
coverage: $(VENV)/with-test
	rm -rf build/coverage
	mkdir -p build/coverage
	cp -r README.md LICENSE setup.py pyproject.toml include luna_ext stub_lib tests build/coverage
	rm -f build/coverage/luna_ext/*.so
	cd build/coverage && LUNA_EXT_TRACE=1 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/coverage && $(abspath $(BIN))/python -m pytest -q --ignore=tests/test_build.py -m "not signals" \
		--cov=luna_ext --cov-report=term

benchmark: $(VENV)/built
	$(BIN)/python benchmarks/lock_pair.py

# A wheel, built from the sdist alone, and a first use of it in an environment with nothing else.
wheel: $(VENV)/with-test
	rm -rf build/wheel
	$(BIN)/python setup.py -q sdist -d build/wheel
	$(BIN)/pip wheel -q --no-deps -w build/wheel build/wheel/*.tar.gz
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
