# Everything sets itself up: an environment under .venv, built binaries and the demo model in a cache folder
# outside the tree ($SHEAF_CACHE, else $XDG_CACHE_HOME/sheaf, else ~/.cache/sheaf).
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; exit; fi; done)
VENV := .venv
BIN := $(VENV)/bin
export UV_SYSTEM_CERTS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env lint format constraints flags crds manifests test model cluster clients bench profile-cpu soak bench-operator kernels-aot gpu-check wheelhouse clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	@.ci/setup-env "$(PYTHON)" $(VENV)

lint: env ## ruff, mypy --strict, import-linter
	@ruff check . && ruff format --check . && mypy && PYTHONPATH=e2e lint-imports --no-cache

format: env ## ruff format and autofix
	@ruff check --fix . ; ruff format .

constraints: env ## resolve constraints.txt anew (torch and Triton stay at what the GPU machines have)
	@uv pip compile pyproject.toml --quiet --all-extras --python-version 3.11 --python-platform linux --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate -c <(printf 'torch==2.11.*\ntriton==3.6.*\n') -o constraints.txt

crds: env ## write the CRD and its field reference from operator/sheaf_operator/api, and the page of reasons
	@python -m sheaf_operator.api.crd
	@python -m sheaf_operator.api.reference
	@python -m sheaf_operator.problems.reasons.page

flags: env ## write docs/flags.md from the parsers of the sheaf command
	@python -m sheaf_runtime.cli.page

manifests: crds ## write the dashboards, and the plain manifests from the Helm chart
	@PYTHONPATH=charts python -m dashboards
	@python charts/manifests.py

test: lint ## everything: linters, fast tests, then end to end on the local cluster
	@PYTHONPATH=e2e python -m sheaf_e2e.demo_model >/dev/null
	@OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile tests
	@$(if $(SHEAF_E2E_KUBECONFIG),,PYTHONPATH=e2e python -m localcluster.setup.binaries)
	@OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile e2e/tests

model: env ## fetch the demo model once, print its folder
	@PYTHONPATH=e2e python -m sheaf_e2e.demo_model

demo: env ## the whole story on this machine: cluster, model, tokens, 1 to 3 replicas and back (KEEP=1 stays up)
	@PYTHONPATH=e2e:benchmarks python -m sheaf_e2e.demo $(if $(KEEP),--keep)

cluster: env ## start the local cluster with the operator, print its kubeconfig and URLs, stay up until Ctrl-C
	@PYTHONPATH=e2e python -m sheaf_e2e.up

clients: env ## lm-eval, guidellm, LangChain and the openai JS client against our server; writes e2e/clients/results.json
	@PYTHONPATH=e2e:benchmarks python -m clients

bench: env ## our server against transformers on the demo model; writes benchmarks/results/cpu.json
	@python benchmarks/compare_cpu.py "$$(PYTHONPATH=e2e python -m sheaf_e2e.demo_model)"

profile-cpu: env ## where a step of the CPU kernels goes, by part; writes benchmarks/results/profile_cpu.json
	@python benchmarks/profile_cpu.py "$$(PYTHONPATH=e2e python -m sheaf_e2e.demo_model)" --output benchmarks/results/profile_cpu.json

soak: env ## the real server under random traffic for eight minutes, the engine's state machines to 10^6 steps
	@OMP_NUM_THREADS=1 PYTHONPATH=tests/support:benchmarks python -m soak --output benchmarks/results/soak.json

bench-operator: env ## what the operator costs with 500 models; writes benchmarks/results/operator_cost.json
	@PYTHONPATH=e2e:benchmarks python benchmarks/operator_cost.py --output benchmarks/results/operator_cost.json

kernels-aot: env ## compile every kernel for sm_80, sm_90 and sm_100 without a GPU; registers, spills, shared memory
	@python -m sheaf_kernels.aot

gpu-check: ## on a CUDA machine, without network: kernels, engine, bandwidth, tok/s; a JSON in benchmarks/results
	@"$(PYTHON)" benchmarks/gpu_check.py

wheelhouse: env ## collect the wheels that a bare GPU machine (Python 3.12 with torch) lacks, under .wheelhouse
	@python benchmarks/wheelhouse.py

clean: ## remove what the tree holds beside the sources (the cache folder stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .run .wheelhouse
