# `make` alone lists what can be done here. Settings go behind: make train MODEL=git DATA=shop.zip FLAGS="--mode lp-ft"
PYTHON =
VENV = .venv
EXTRAS =
MODEL = blip
DATA = sample
PRESET = demo
PORT = 5000
FLAGS =

RUN = $(VENV)/bin/python -m
# What works on the lock file, in an environment of its own: none of it is needed to train, predict or serve.
TOOLS = $(VENV)/tools
# Compiling what is never imported would take a minute and half a gigabyte. What is imported is compiled then, and kept:
# in a shell that forbids that (as many images do), every command would compile everything again, for half a minute.
INSTALL = $(RUN) pip install --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
TESTS = pytest -n logical --maxprocesses 4 --dist worksteal
# Where the catalogue is fetched, what fetches it.
FETCHER = $(if $(filter kaggle hf,$(DATA)),$(VENV)/.ready-data)
# 3.11 comes first: the documents' figures were measured with it, and python_env.yaml names it.
PYTHONS = $(or $(PYTHON),$(foreach name,python3.11 python3.12 python3.13 python3,$(name) /usr/bin/$(name)))
# A shim that starts nothing, and a Python without its venv module, do not fit.
FITS = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
MAKE_VENV = test -x $(VENV)/bin/pip || { \
	  for python in $(PYTHONS); do \
	    if "$$python" -c '$(FITS)' 2>/dev/null; then "$$python" -m venv $(VENV) && exit; fi; \
	  done; \
	  echo "Python 3.11, 3.12 or 3.13 with its venv module is needed: install it (Debian: python3 and python3-venv), or run make again with PYTHON=<path of one>." >&2; exit 1; }
# Prints what pyproject.toml asks for, the core or an extra, for pip to read.
ASKED = import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        print(*(project["optional-dependencies"][sys.argv[1]] if sys.argv[1:] else project["dependencies"]), sep="\n")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup prepare train pretrain tune study bench demo dashboard ui serve check test lint types format lock verify audit sbom clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Settings: MODEL=$(MODEL) DATA=$(DATA) PRESET=$(PRESET) PORT=$(PORT) FLAGS="--epochs 3 ...", as in: make train MODEL=clip DATA=shop.zip'
	@echo 'No GPU? Name the index of the CPU wheels, as the PyTorch site gives it, for the first run:'
	@echo '  PIP_EXTRA_INDEX_URL=<address> make setup'

setup: $(VENV)/.ready $(EXTRAS:%=$(VENV)/.ready-%)  ## install what training needs into .venv, plus EXTRAS (other targets install what they need)

prepare: $(VENV)/.ready $(FETCHER)  ## read, clean and decode a catalogue once: DATA=folder, zip, CSV, kaggle or hf
	$(RUN) experiments.prepare --data $(DATA) $(FLAGS)

train: $(VENV)/.ready $(FETCHER)  ## train BLIP on the sample catalogue, or MODEL on DATA, with the settings of PRESET
	$(RUN) experiments.train --preset $(PRESET) --model $(MODEL) --data $(DATA) $(FLAGS)

pretrain: $(VENV)/.ready $(FETCHER)  ## pretrain MODEL on the pictures, titles and attributes of DATA, and write its weights
	$(RUN) experiments.pretrain --model $(MODEL) --data $(DATA) $(FLAGS)

tune: $(VENV)/.ready-search $(FETCHER)  ## search MODEL's settings on DATA with Optuna, and retrain the winner
	$(RUN) experiments.tune --model $(MODEL) --data $(DATA) $(FLAGS)

study: $(VENV)/.ready-study $(FETCHER)  ## run the comparative study on DATA with PRESET and write its report
	$(RUN) experiments.study --preset $(PRESET) --data $(DATA) --workers 2 $(FLAGS)

bench: $(VENV)/.ready-study $(VENV)/.ready-export $(FETCHER)  ## benchmark every mode against naive fine-tuning (an hour or more): docs/performance.md
	$(RUN) experiments.benchmark --data $(DATA) --families blip --sizes 384 --kinds "naive,full,full beside naive,one block" $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --sizes 160 --kinds "one block,one block int8" $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --families clip --kinds Trainer $(FLAGS)
	$(RUN) experiments.benchmark --data $(DATA) --output docs/performance.md $(FLAGS)

demo: $(VENV)/.ready  ## train a small model of each family on the sample and compare them, in minutes
	$(RUN) experiments.demo $(FLAGS)

dashboard: $(VENV)/.ready-dashboard  ## compare runs and categorise pictures on http://127.0.0.1:8050
	$(RUN) dashboard $(FLAGS)

ui: $(VENV)/.ready  ## show the runs in MLflow's page on PORT
	$(RUN) mlflow ui --port $(PORT)

serve: $(VENV)/.ready  ## serve the champion of MODEL's family over HTTP on PORT
	. $(VENV)/bin/activate && exec mlflow models serve -m models:/categoriser-$(firstword $(subst -, ,$(MODEL)))@champion --env-manager local --port $(PORT)

# Threads that spin while they wait take the cores from other processes. OpenMP reads this before Python starts.
check test: export OMP_WAIT_POLICY = PASSIVE
check test: export GOMP_SPINCOUNT = 0

check: $(VENV)/.ready-dev  ## run the tests that are not slow, on up to four cores
	$(RUN) $(TESTS) -m "not slow" $(FLAGS)

test: $(VENV)/.ready-dev  ## run all tests, on up to four cores
	$(RUN) $(TESTS) $(FLAGS)

lint: $(VENV)/.ready-dev  ## check style and layout
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.ready-dev  ## check types
	$(RUN) mypy

format: $(VENV)/.ready-dev  ## fix style and layout automatically
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

lock: $(TOOLS)/.ready  ## update requirements.lock after a change of pyproject.toml (FLAGS=--upgrade: everything)
	@# What was locked stays while it fits.
	@test -s requirements-hashed.lock || cp requirements.lock requirements-hashed.lock
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-strip-extras \
	  --generate-hashes --custom-compile-command "make lock" --output-file requirements-hashed.lock $(FLAGS) pyproject.toml
	@# PyTorch's CUDA build names its own CUDA packages, nearly all exactly. Without them here, a CPU build brings none.
	@# Hashes in a file of constraints would oblige all that is installed beside it to have one; extras are refused there.
	sed -E '/^ +--hash=/d; s/^([^ ]+)\[[a-z0-9, ]+\]/\1/; s/ +\\$$//; /^(cuda-|nvidia-[^m]|triton)/d' requirements-hashed.lock > requirements.lock

verify: $(VENV)/.ready  ## compare every installed file with its package's, and that with its hash in the lock file
	$(RUN) experiments.verify $(FLAGS)

audit: $(TOOLS)/.ready  ## look up known weaknesses of the locked packages
	@# strict: a package that could not be looked up is no package without weaknesses
	@$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements-hashed.lock \
	  --progress-spinner off $(FLAGS) 2> $(TOOLS)/audit.txt && cat $(TOOLS)/audit.txt || { \
	  grep '^Found' $(TOOLS)/audit.txt >&2 || \
	    echo "Nothing is known of the locked packages' weaknesses, because they could not be looked up: run make audit where pypi.org can be reached, or with FLAGS='-s osv' where api.osv.dev can. The reason: $$(tail -n 1 $(TOOLS)/audit.txt)" >&2; \
	  exit 1; }

sbom: $(VENV)/.ready $(TOOLS)/.ready  ## write sbom.json: what is installed, in CycloneDX's format
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(FLAGS) \
	  $(VENV)/bin/python

clean:  ## remove tools' caches; runs, data and .venv stay (what killed commands left: python -m experiments.clean)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vlm_core experiments dashboard tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below say what is installed: the core, an extra beside it, or all that the tests need. A changed
# pyproject.toml or requirements.lock makes them out of date.
$(VENV)/.ready: pyproject.toml requirements.lock
	@$(MAKE_VENV)
	@$(VENV)/bin/python -c '$(ASKED)' > $(VENV)/core.txt
	$(INSTALL) -c requirements.lock -r $(VENV)/core.txt
	@command -v pyenv >/dev/null || { printf '%s\n' "$$PYENV_STAND_IN" > $(VENV)/bin/pyenv && chmod +x $(VENV)/bin/pyenv; }
	@touch $@

$(TOOLS)/.ready: Makefile
	@$(MAKE_VENV)
	$(VENV)/bin/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(INSTALL) -r requirements.lock
	@touch $@

$(VENV)/.ready-all: $(patsubst %,$(VENV)/.ready-%,data export search study dashboard excel postgres ray s3)
	@touch $@

$(VENV)/.ready-%: $(VENV)/.ready
	@$(VENV)/bin/python -c '$(ASKED)' $* > $(VENV)/$*.txt
	$(INSTALL) -c requirements.lock -r $(VENV)/$*.txt
	@touch $@

# MLflow asks pyenv, and nothing else, for the Python of an environment it builds (`mlflow run .`, `mlflow models serve`).
# Where pyenv is missing, this answers in its place with the Python that is here: all that fit are as good.
define PYENV_STAND_IN
#!/bin/sh
# Stands in for pyenv, which is not installed: MLflow asks it for a Python, and gets the one of this environment.
environment=$$(cd "$$(dirname "$$0")/.." && pwd)
for version; do :; done
case "$$1 $$version" in
"install 3.11"* | "install 3.12"* | "install 3.13"*)
    folder=$$environment/pyenv/versions/$$version/bin
    mkdir -p "$$folder"
    printf '#!/bin/sh\nexec "%s/bin/python" "$$@"\n' "$$environment" > "$$folder/python"
    chmod +x "$$folder/python"
    ;;
"root "*) echo "$$environment/pyenv" ;;
*)
    echo "pyenv is not installed: its stand-in $$0 can only give MLflow a Python 3.11 to 3.13, not '$$*'." >&2
    exit 1
    ;;
esac
endef
export PYENV_STAND_IN
