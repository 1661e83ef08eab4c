# Every target makes what it needs: the environment lives in .venv, pinned by constraints.txt. Another Python has an
# environment of its own: with PYTHON=python3.12 it is .venv-python3.12.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: help train test tests types lab book book-test slides handouts dist bench endure fuzz coverage browser clean
help:
	@echo "make train   train ISD on digits and report (a few minutes on 2 cores, no download of data)"
	@echo "make test    run every notebook and every test"
	@echo "make browser install chromium for the tests of the explorer (Debian, as root)"
	@echo "make lab     open the book in JupyterLab"
	@echo "make book    build the book's website in _site/"
	@echo "make book-test  build it, a warning being an error, and test every page of it"
	@echo "make slides  build the lecture's slides in _slides/, one file that needs no network"
	@echo "make handouts  make notebooks without solutions in course/handouts/"
	@echo "make bench   measure speed against other code"
	@echo "make endure  kill runs, fill their disks and interrupt them, and compare how they end (half an hour)"
	@echo "make fuzz    give the commands 2,400 bad inputs (minutes)"
	@echo "make coverage measure which lines no notebook and no test runs (half an hour)"
	@echo "make clean   remove the environments and caches (runs/, data/ and course/handouts/ stay)"

$(VENV)/ready: settings.ini setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, as pip does not; some files are for other Pythons
	touch $@

train: $(VENV)/ready
	$(BIN)/isd_train

# Notebooks and tests leave folders behind where the system keeps temporary ones; here all of them go with the last line.
test: $(VENV)/ready
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 130' INT TERM && TMPDIR=$$folder $(MAKE) --no-print-directory tests

tests:
	$(BIN)/ruff check isd_nb tests benchmarks book course examples
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $$(($(WORKERS) + 1)) --no-loadscope-reorder tests  # one more: many tests wait

# The browser that tests/test_browser.py drives; without one these tests are skipped, with a message.
browser:
	@command -v chromium >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) \
	  || echo "chromium is missing and could not be installed with apt-get; the browser tests will be skipped"

# Types of the package, as tests/test_types.py checks them; mypy.ini says how much.
types:
	$(BIN)/mypy

lab: $(VENV)/ready
	$(BIN)/jupyter lab nbs/index.ipynb

book: $(VENV)/ready
	$(BIN)/python book/build.py

book-test: $(VENV)/ready
	$(BIN)/python book/build.py --strict
	SITE=_site OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_site.py tests/test_reference.py

slides: $(VENV)/ready
	$(BIN)/python course/slides.py

handouts: $(VENV)/ready
	$(BIN)/python course/handouts.py

# The source distribution and the wheel, checked; nothing is uploaded.
dist: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check dist/*

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

# Results in results/endure.json; fewer with: make endure ENDURE='--kills 10 --full 5 --ctrl-c 5'
endure: $(VENV)/ready
	$(BIN)/python tests/endure.py $(ENDURE)

# 2,400 bad inputs for the commands, and five faults put in on purpose; fewer with: make fuzz FUZZ='--count 200'
fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ)

# Which lines of the package no notebook and no test runs, subprocesses included; takes about twice as long as `make test`.
coverage: $(VENV)/ready
	$(BIN)/python tests/measure_coverage.py $(COVERAGE)

clean:
	rm -rf .venv .venv-* _build _site _slides build dist isd_nb.egg-info .pytest_cache .ruff_cache .mypy_cache
