# make test, demo, lint, bench: each from a fresh clone, with Python 3.10 or later and nothing else installed.
# Where a virtual environment is active, it is used; otherwise .venv is made. What is installed there stays until
# setup.py or constraints.txt change.

PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.torchtrt_bridge-installed
TYPES := $(VENV)/tensorrt-types

.PHONY: test demo lint bench sweep

# A process for each of up to four cores; the tests of one file stay in one, which makes their models once.
test: $(INSTALLED)
	$(RUN) -m pytest -q -m "not gpu" -n logical --maxprocesses 4 --dist loadfile

demo: $(INSTALLED)
	$(RUN) examples/minilm_demo.py

lint: $(INSTALLED) $(TYPES)
	$(RUN) -m ruff check .
	MYPYPATH=$(TYPES) $(RUN) -m mypy

# What is measured is an NVIDIA GPU, so one is needed.
bench: $(INSTALLED)
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make bench needs an NVIDIA GPU")'
	$(RUN) benchmarks/overhead.py
	$(RUN) benchmarks/load.py
	$(RUN) benchmarks/memory.py fp32
	$(RUN) benchmarks/memory.py fp16
	mkdir -p build
	$(RUN) benchmarks/table.py --out build/table.json

# Every case of the sweep of operators: on an NVIDIA GPU where there is one, else on the CPU (an hour); then the table.
sweep: $(INSTALLED)
	$(RUN) tests/sweep/run.py --out build/sweep
	$(RUN) tests/sweep/table.py build/sweep

$(INSTALLED): setup.py constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip --version > /dev/null || $(RUN) -m ensurepip
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[rtx,notebook,dev]'
	touch $@

# The types of the full TensorRT. They stay out of the environment, where a folder named tensorrt would look like
# TensorRT itself, and come without what they ask for (TensorRT). What is no Python in them is put right.
$(TYPES): $(INSTALLED)
	rm -rf $@
	$(RUN) -m pip install --quiet -c constraints.txt --no-deps --target $@ tensorrt-stubs
	sed -i -e '1i # mypy: ignore-errors' -e 's/, in: list/, inputs: list/' -e 's/channel_axis: int)/channel_axis: int = ...)/' \
		$@/tensorrt_bindings/tensorrt.pyi
	touch $@
