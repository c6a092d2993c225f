# make test, demo, lint, bench: each from a fresh clone, with Python 3.10 or later and nothing else installed.
# Where a virtual environment is active, it is used; otherwise .venv is made. What is installed there stays until
# setup.py or constraints.txt change.

PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.torchtrt_bridge-installed

.PHONY: test demo lint bench

test: $(INSTALLED)
	$(RUN) -m pytest -q -m "not gpu"

demo: $(INSTALLED)
	$(RUN) examples/minilm_demo.py

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# What is measured is an NVIDIA GPU, so one is needed.
bench: $(INSTALLED)
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make bench needs an NVIDIA GPU")'
	$(RUN) benchmarks/overhead.py
	$(RUN) benchmarks/load.py
	$(RUN) benchmarks/memory.py fp32
	$(RUN) benchmarks/memory.py fp16
	mkdir -p build
	$(RUN) benchmarks/table.py --out build/table.json

# tensorrt-stubs gives mypy the types of the full TensorRT; it asks for TensorRT itself, which types do not need.
$(INSTALLED): setup.py constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip --version > /dev/null || $(RUN) -m ensurepip
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[rtx,notebook,dev]'
	$(RUN) -m pip install --quiet -c constraints.txt --no-deps tensorrt-stubs
	touch $@
