# One command each, on a machine with python3 (3.10 to 3.14), pip, make and git. `make help` lists them.
# PYTHON=... chooses an interpreter, VENV=... another place for the environment.
SHELL := /bin/bash
.DEFAULT_GOAL := setup

VENV ?= .venv
PY := $(VENV)/bin/python
# Idle OpenMP threads that spin cost up to 30 times the speed where cores are few or shared.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The stamp carries the content of what it stands for, since a checkout changes times at will, and the
# place, since an environment holds absolute paths.
STAMP := $(VENV)/installed-$(shell { pwd; cat requirements/lock.txt setup.py fastvit_dense/compat/hook.py; } | cksum | cut -d' ' -f1)

PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python3.14)
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))

.PHONY: setup demo demo-seg demo-hand test test-gpu lint format clean help

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: $(STAMP) ## create or update the environment (the others do it when needed)

demo: $(STAMP) ## train and evaluate a small detector on generated pictures
	$(PY) tools/demo.py det

demo-seg: $(STAMP) ## train and evaluate a small segmentor on generated pictures
	$(PY) tools/demo.py seg

demo-hand: $(STAMP) ## train and evaluate a small hand model on generated pictures
	$(PY) tools/demo.py hand

test: $(STAMP) ## run the tests
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-gpu: $(STAMP) ## on a GPU: correctness, speed and accuracy in 25 minutes, with a report
	$(PY) tests/rehearse_gpu.py

lint: $(STAMP) ## check style, format, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	if [ -e $(VENV)/bin/lint-imports ]; then $(VENV)/bin/lint-imports --no-logo; fi  # from Python 3.11 on

format: $(STAMP) ## put the code into the checked format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove the environment and caches
	if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build .nox .import_linter_cache *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Written last, so that an interrupted installation is taken up again.
$(STAMP):
	@set -euo pipefail; \
	if ! $(PY) -c '$(SUITABLE)' 2>/dev/null; then \
	  found=; python=; \
	  for name in $(PYTHONS); do \
	    version=$$($$name -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
	    found="$$found $$name is $$version;"; \
	    if $$name -c '$(SUITABLE)'; then python=$$name; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: Python 3.10 to 3.14 is needed. Found:$${found:- none of $(PYTHONS)}" >&2; \
	    echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.13" >&2; exit 1; \
	  fi; \
	  echo "== creating $(VENV) with $$python ($$version)"; \
	  if [ -e $(VENV) ] && [ ! -e $(VENV)/pyvenv.cfg ]; then \
	    echo "error: $(VENV) exists and is no virtual environment. Remove it or choose another VENV." >&2; exit 1; \
	  fi; \
	  rm -rf $(VENV); $$python -m venv --without-pip $(VENV); \
	fi; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  base=$$($(PY) -c 'import os, sys; print(os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2]))'); \
	  : 'Debian keeps ensurepip in python3-venv; its own pip can install one all the same'; \
	  $(PY) -m ensurepip >/dev/null 2>&1 \
	  || $$base -m pip install -q --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip \
	  || { echo "error: $$base has neither ensurepip nor pip. Install pip (Debian, Ubuntu: apt install python3-pip)." >&2; exit 1; }; \
	fi; \
	echo "== installing requirements/lock.txt into $(VENV): about 3 GB to download, 6 GB on disk, 3 to 10 minutes"; \
	: 'it would leave its files inside cv2, which opencv-python-headless owns here'; \
	$(PY) -m pip uninstall -q -y opencv-python openvino-telemetry 2>/dev/null; \
	$(PY) -m pip install -q --no-deps --only-binary :all: -r requirements/lock.txt; \
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .; \
	rm -f $(VENV)/installed-*; touch $@; \
	echo "== $(VENV) is ready; to use it in this terminal: source $(VENV)/bin/activate"
