# Everything runs in .venv, which is made with the first target and again when the pins or pyproject.toml change.
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/
# One process a core, each with whole files.
SIDE_BY_SIDE := --numprocesses=logical --dist=loadgroup

.PHONY: help demo test test-fast lint docs pictures dashboards bench soak clean

help:
	@echo 'make demo | test | test-fast | lint | docs | pictures | dashboards | bench | soak | clean'

demo: $(READY)
	$(RUN)streambatch demo

test: $(READY)
	$(RUN)python -m pytest $(SIDE_BY_SIDE)

test-fast: $(READY)
	$(RUN)python -m pytest $(SIDE_BY_SIDE) -m 'not slow'

lint: $(READY)
	$(RUN)ruff check
	$(RUN)ruff format --check
	$(RUN)mypy

docs: $(READY)
	$(RUN)python docs/generate.py

pictures: $(READY)
	$(RUN)python -m docs.pictures

dashboards: $(READY)
	$(RUN)python -m grafana.generate

bench: $(READY)
	$(RUN)python -m benchmarks

soak: $(READY)
	$(RUN)python -m tests.faults.soak --cycles $(or $(CYCLES),1000) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Debian python3 without python3-venv lacks ensurepip, but its own pip can fill the environment.
$(READY): pyproject.toml .ci/constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo 'streambatch needs Python 3.11 or later as python3; or say make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
		f"streambatch needs Python 3.11 or later; $(PYTHON) is {v}: say make PYTHON=...")'
	@test -x $(RUN)pip || $(PYTHON) -m venv --clear $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(RUN)python install --quiet pip; } || \
		{ echo '$(PYTHON) makes no virtual environments; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(RUN)pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[test,lint]'
	@touch $@
