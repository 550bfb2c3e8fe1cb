# `make` alone lists what can be done here. Settings go behind: make train MODEL=git DATA=shop.zip FLAGS="--mode lp-ft"
PYTHON = python3.11
VENV = .venv
MODEL = blip
DATA = sample
PRESET = demo
PORT = 5000
FLAGS =

RUN = $(VENV)/bin/python -m
# Prints pins from pyproject.toml, their one place, for pip to read.
PINS = import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
       print(*(project["optional-dependencies"]["dev"] if "dev" in sys.argv else project["dependencies"]), sep="\n")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup prepare train pretrain tune study bench demo dashboard ui serve test lint types format clean

help:  ## list what can be done (this)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Settings: MODEL=$(MODEL) DATA=$(DATA) PRESET=$(PRESET) PORT=$(PORT) FLAGS="--epochs 3 ...", as in: make train MODEL=clip DATA=shop.zip'
	@echo 'No GPU? Name the index of the CPU wheels, as the PyTorch site gives it, for the first run:'
	@echo '  PIP_EXTRA_INDEX_URL=<address> make setup'

setup: $(VENV)/.ready  ## install what training needs into .venv (the others do it when needed)

prepare: $(VENV)/.ready  ## read, clean and decode a catalogue once: DATA=folder, zip, CSV, kaggle or hf
	$(RUN) experiments.prepare --data $(DATA) $(FLAGS)

train: $(VENV)/.ready  ## train BLIP on the sample catalogue, or MODEL on DATA, with the settings of PRESET
	$(RUN) experiments.train --preset $(PRESET) --model $(MODEL) --data $(DATA) $(FLAGS)

pretrain: $(VENV)/.ready  ## pretrain MODEL on the pictures, titles and attributes of DATA, and write its weights
	$(RUN) experiments.pretrain --model $(MODEL) --data $(DATA) $(FLAGS)

tune: $(VENV)/.ready  ## search MODEL's settings on DATA with Optuna, and retrain the winner
	$(RUN) experiments.tune --model $(MODEL) --data $(DATA) $(FLAGS)

study: $(VENV)/.ready  ## carry out the comparative study on DATA with PRESET, and write its report
	$(RUN) experiments.study --preset $(PRESET) --data $(DATA) --workers 2 $(FLAGS)

bench: $(VENV)/.ready  ## measure every mode next to naive fine-tuning, for an hour or more: docs/performance.md
	$(RUN) experiments.benchmark --data $(DATA) --families blip --sizes 384 --kinds "naive,full,full beside naive,one block" $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --sizes 160 --kinds "one block,one block int8" $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --families clip --kinds Trainer $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --output docs/performance.md $(FLAGS)

demo: $(VENV)/.ready  ## train all three families small on the sample and compare them, in minutes
	$(RUN) experiments.demo $(FLAGS)

dashboard: $(VENV)/.ready  ## compare runs and categorise pictures on http://127.0.0.1:8050
	$(RUN) dashboard $(FLAGS)

ui: $(VENV)/.ready  ## show the runs in MLflow's page on PORT
	$(RUN) mlflow ui --port $(PORT)

serve: $(VENV)/.ready  ## serve the champion of MODEL's family over HTTP on PORT
	. $(VENV)/bin/activate && exec mlflow models serve -m models:/categoriser-$(firstword $(subst -, ,$(MODEL)))@champion --env-manager local --port $(PORT)

test: $(VENV)/.ready-dev  ## run the tests, on up to four cores
	$(RUN) pytest -n logical --maxprocesses 4 --dist worksteal $(FLAGS)

lint: $(VENV)/.ready-dev  ## check style and layout
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.ready-dev  ## check types
	$(RUN) mypy

format: $(VENV)/.ready-dev  ## mend style and layout where a tool can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## remove tools' caches; runs, data and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vlm_core experiments dashboard tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The two files below say that the pins are installed; a changed pyproject.toml makes both out of date.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 is needed: install it (Debian: python3.11 and python3.11-venv) so that python3.11 starts it, or run make again with PYTHON=<path of a Python 3.11>." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python 3.11 cannot make virtual environments: install its venv module (Debian: python3.11-venv) and run make again." >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -c '$(PINS)' > $(VENV)/pins.txt
	$(RUN) pip install --disable-pip-version-check -r $(VENV)/pins.txt
	@command -v pyenv >/dev/null || { printf '%s\n' "$$PYENV_STAND_IN" > $(VENV)/bin/pyenv && chmod +x $(VENV)/bin/pyenv; }
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.ready
	@$(VENV)/bin/python -c '$(PINS)' dev > $(VENV)/pins-dev.txt
	$(RUN) pip install --disable-pip-version-check -r $(VENV)/pins-dev.txt
	@touch $@

# MLflow asks pyenv, and nothing else, for the Python of an environment it builds (`mlflow run .`, `mlflow models serve`).
# Where pyenv is missing, this answers in its place with the Python 3.11 that is here.
define PYENV_STAND_IN
#!/bin/sh
# Stands in for pyenv, which is not installed: MLflow asks it for a Python, and gets the one of this environment.
environment=$$(cd "$$(dirname "$$0")/.." && pwd)
for version; do :; done
case "$$1 $$version" in
"install 3.11"*)
    folder=$$environment/pyenv/versions/$$version/bin
    mkdir -p "$$folder"
    printf '#!/bin/sh\nexec "%s/bin/python" "$$@"\n' "$$environment" > "$$folder/python"
    chmod +x "$$folder/python"
    ;;
"root "*) echo "$$environment/pyenv" ;;
*)
    echo "pyenv is not installed: its stand-in $$0 can only give MLflow a Python 3.11, not '$$*'." >&2
    exit 1
    ;;
esac
endef
export PYENV_STAND_IN
