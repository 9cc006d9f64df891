# Two commands on a fresh machine do all: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,atari,mujoco,box2d,games,referees,video,robotics
STAMP := .venv/.installed
# One thread for each of the two test processes: two processes that both use every core are slower than one, and code compiled in one piece is ready sooner.
ONE_THREAD := --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 --xla_cpu_parallel_codegen_split_count=1

.PHONY: help install demo test lint format bench docs-tables peers clean

help:
	@echo "make demo         install, train PPO on CartPole, evaluate it, draw its curve (minutes)"
	@echo "make test         install and run all tests"
	@echo "make install      a virtual environment in .venv with the tested versions"
	@echo "make lint         ruff and pyright"
	@echo "make format       ruff format, imports sorted"
	@echo "make bench        every benchmark again (hours); results go to benchmarks/results"
	@echo "make docs-tables  write the benchmark results into README.md and docs/"
	@echo "make clean        remove build products (never runs/)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Flatirons needs Python 3.11 or newer; call make PYTHON=python3.11'"
	@echo "Installing into .venv (minutes, the first time) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $(STAMP)

demo: install
	$(BIN)/flatirons train ppo CartPole-v1 --seed 0 --eval-every 20_000 --out runs/demo --overwrite
	$(BIN)/flatirons eval runs/demo --episodes 100 --seed 7
	$(BIN)/flatirons plot runs/demo --out runs/demo/curve.png
	@echo
	@echo "The learning curve: runs/demo/curve.png"
	@echo "Watch the policy:   $(BIN)/flatirons play runs/demo"
	@echo "Read how it works:  src/flatirons/systems/ppo.py and docs/ppo.md"
	@echo "Try another:        $(BIN)/flatirons list"

test: install
	XLA_FLAGS="$(ONE_THREAD) $$XLA_FLAGS" $(BIN)/python -m pytest -n 2 --dist worksteal -q $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix --select I,UP,SIM .
	$(BIN)/ruff format .

bench: install
	bash benchmarks/run_all.sh

peers:
	bash benchmarks/peers/install.sh

docs-tables: install
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
