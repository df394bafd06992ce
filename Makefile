# demo    run the whole chain on the embedded world (no download, no GPU needed)
# test    the fast tests, on all cores
# fuzz    look for inputs that break a law, for MINUTES (make fuzz MINUTES=30)
# check   linter, formatter in check mode, type checker
# format  rewrite the code in house format
# bench   measure speed and memory, here and against pair-by-pair training
# gpu     on one card, in nine minutes: GPU tests, steps of 0.5B and 7B, against TRL; a JSON file and a table in outputs/gpu
# compat  the model and chain tests with the oldest and newest versions allowed; a table in outputs/compat
# benchmarks-env  an environment with lmms-eval in .venv-benchmarks, for benchmarks that are its tasks
#
# The first word makes .venv; it is made again when pyproject.toml or constraints.txt change.
# Use another interpreter with `make PYTHON=python3.12 demo`, or an environment of your own with `make VENV=/path/to/venv demo`.

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5
INSTALLED := $(VENV)/.installed
.DEFAULT_GOAL := demo
# a process that may not keep compiled files compiles them all again, and the tests start many processes
unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo test fuzz check format bench gpu compat benchmarks-env

demo: $(INSTALLED)
	$(VENV)/bin/python run.py

test: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONUTF8=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONUTF8=1 $(VENV)/bin/python tests/fuzz/explore.py --minutes $(MINUTES)

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks

# without a network TRL may not be had: its part then says so, and the others run
gpu: $(INSTALLED)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	$(VENV)/bin/python -m benchmarks.gpu --out outputs/gpu

compat: $(INSTALLED)
	PYTHONPATH=. $(VENV)/bin/python tests/compat/columns.py

# the new environment sees this one's packages, so that nothing is installed twice and no pin moves
benchmarks-env: $(INSTALLED)
	test -x .venv-benchmarks/bin/python || $(VENV)/bin/python -m venv .venv-benchmarks
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .venv-benchmarks/shared.txt
	.venv-benchmarks/bin/python -c 'import shutil, sysconfig; shutil.move(".venv-benchmarks/shared.txt", sysconfig.get_path("purelib") + "/zz_shared.pth")'
	.venv-benchmarks/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
	.venv-benchmarks/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-benchmarks.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
