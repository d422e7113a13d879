# Every target sets itself up: a virtual environment in .venv with the project and nnU-Net in it.
PYTHON ?= python3
VENV ?= .venv
# Processes that run tests side by side, each on one core; one more than two cores, as some wait for SLURM.
WORKERS ?= 3

.PHONY: demo test types soak bench docs generate lint format clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(VENV)/bin/nnunet-deconver demo $(ARGS)

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python tools/check_types.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --durations=30 $(ARGS)

types: $(VENV)/installed
	$(VENV)/bin/python tools/check_types.py

soak: $(VENV)/installed
	$(VENV)/bin/python tools/soak.py $(ARGS)

bench: $(VENV)/installed
	$(VENV)/bin/python benchmarks/speed.py --out $(or $(OUT),.)/speed
	$(VENV)/bin/python benchmarks/epoch_time.py --out $(or $(OUT),.)/epoch_time

docs: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -e ".[docs]"
	$(VENV)/bin/mkdocs build --strict --site-dir build/site

generate: $(VENV)/installed
	$(VENV)/bin/python tools/generate.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output
