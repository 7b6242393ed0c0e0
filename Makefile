# make            set up .venv, then run the demo (train a model, compress it by one command)
# make stages     the demo stage by stage (prune in two stages, finetune, translate, report)
# make setup      set up only
# make test       run the tests
# make test-fast  those that train nothing and start no other program
# make check      style, which room imports which, types of the libraries: seconds
# make bench      time training steps against fairseq's own Transformer
# make study      train and compare the models of a grid; what is done is not repeated
# make study-report   its tables and pictures
# make report     table and picture of the demo's models
# make clean      remove what the demo and the tests made
# make distclean  remove the environment as well, if make setup made it
# make help       this list
#
# GRID=FILE       the grid of make study (default benchmarks/study/demo.yaml); the data that it names
#                 must be there, those of demo.yaml after make or bash scripts/demo_preprocess.sh
# JOBS=N          models that make study makes at a time (default 1)
# VENV=DIR        environment to use or make (default .venv); one with torch >= 2.10 keeps it
# PYTHON=PATH     Python 3.11, 3.12 or 3.13 to make it with
# DATA=multi30k   make, make stages and make report with Multi30k and its recipes instead of the demo;
#                 RAW_DIR=DIR where its files lie (otherwise downloaded)
# DEPTH=1         stage by stage, make prunes the demo's model to one decoder layer of two, beside the model with both

SHELL := bash
VENV ?= .venv
PYTHON ?=
DATA ?= demo
RAW_DIR ?=
DEPTH ?=
GRID ?= benchmarks/study/demo.yaml
JOBS ?= 1
# scripts change folders, so they get the whole path (not abspath, which takes a space for two paths)
PY = $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/bin/python

.PHONY: all demo stages setup test test-fast check bench report study study-report clean distclean help
.NOTPARALLEL:

all: demo

demo stages: setup
	@PYTHON="$(PY)" bash scripts/demo.sh --data "$(DATA)" $(if $(RAW_DIR),--raw-dir "$(RAW_DIR)") \
		$(if $(filter stages,$@),--stages) $(if $(DEPTH),--keep-decoder-layers "$(DEPTH)")

setup:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash scripts/setup.sh

test: setup
	@"$(PY)" -m pytest -q -n logical --maxprocesses 8 --dist loadfile tests

test-fast: setup
	@"$(PY)" -m pytest -q -n logical --maxprocesses 8 --dist loadfile -m "not training and not slow" tests

# the tools stand beside the environment's Python
check: setup
	@"$(dir $(PY))ruff" check .
	@"$(dir $(PY))ruff" format --check .
	@"$(dir $(PY))lint-imports"
	@"$(PY)" -m pytest -q tests/test_structure.py
	@"$(dir $(PY))mypy"

bench: setup
	@"$(PY)" benchmarks/step_time.py

report: setup
	@"$(PY)" src/report.py checkpoints/$(DATA)

clean:
	rm -rf checkpoints/demo* data-bin/demo* .pytest_cache .hypothesis
	find src scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

study: setup
	@"$(PY)" benchmarks/study/run.py "$(GRID)" --jobs "$(JOBS)"

study-report: setup
	@"$(PY)" benchmarks/study/tables.py "$(GRID)"

# only an environment that the set-up made; one that you brought stays
distclean: clean
	@if [ -e "$(VENV)/.srp-created" ]; then echo rm -rf "$(VENV)"; rm -rf "$(VENV)"; fi

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile
