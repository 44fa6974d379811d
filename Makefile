# DAEDALUS. Every target sets up .venv by itself; `make PYTHON=python3.12 test` chooses the Python.

PYTHON ?= python3
# Notebooks at a time: empty, one for each core, at most four. The results are the same with any number.
JOBS ?=
BIN := .venv/bin
REPRODUCE = $(BIN)/daedalus reproduce $(if $(JOBS),--jobs $(JOBS))
READY := .venv/.ready
# What `make quick` and `make docs` need is part of what all others need.
PLAYS := $(if $(wildcard $(READY)),$(READY),.venv/.plays)
READS := $(if $(wildcard $(READY)),$(READY),.venv/.reads)
TREE := $(BIN)/python -c 'from daedalus.pipeline.reproduce import tree_hash; print(tree_hash())'
SHIPPED := $(BIN)/python -c 'from daedalus.training.train import SHIPPED; print(SHIPPED)'

.PHONY: help quick reproduce figures verify test train pretrained rivals teacher search ablations grpo leaderboard docs serve space harnesses export bench clean

help: ## list the targets (the default)
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-10s %s\n", $$1, $$2}'

quick: $(PLAYS) ## the published comparison and the paper again, from what is committed, in minutes
	@echo "Playing the published comparison (a minute or two), then compiling the paper."
	@$(BIN)/daedalus reproduce --profile quick

reproduce: $(READY) ## run every notebook at full size; remake results, figures and README.md
	$(REPRODUCE) --profile paper --keep-outputs

figures: $(READY) ## draw every figure of the paper again from the committed results, in a minute
	$(BIN)/daedalus figures --output paper/figures

verify: $(READY) ## recompute every committed number at full size and compare; a few: daedalus verify
	$(BIN)/daedalus verify $(if $(JOBS),--jobs $(JOBS)) --profile paper

test: $(READY) export ## everything CI checks: export, style, types, every notebook at smoke size, a few paper numbers, pytest
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then \
	  git diff --exit-code --stat nbs daedalus README.md \
	  || { echo "Exporting changed these files: stage or commit them."; exit 1; }; \
	else echo "Not a git checkout: whether the export changed committed files is not checked."; fi
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(REPRODUCE) --profile smoke
	$(BIN)/daedalus verify
	@if [ "$$($(TREE))" = "$$(cat build/tests.passed 2>/dev/null)" ]; then \
	  echo "Nothing changed since all tests passed; remove build/tests.passed to run them again."; \
	else OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests \
	  && $(TREE) > build/tests.passed; fi

train: $(READY) ## train the small designer from scratch into data/designer; resumes when interrupted
	name=$$($(SHIPPED)) && \
	$(BIN)/daedalus train --profile $${name%-*} --seed $${name##*-} --output data/designer --record data/training/$$name.json

pretrained: $(READY) ## fetch the pretrained language model, 93 MB, and convert it in the user's cache, once
	$(BIN)/python -c 'from daedalus.designers.models import find_model; print(find_model("smollm2"))'

rivals: $(READY) ## learn the rivals without language from scratch into data/rivals, in a quarter of an hour; resumes
	$(BIN)/daedalus rivals --workers 2 --output data/rivals

teacher: $(READY) ## learn the designer without a menu from scratch into data/teacher, in minutes; resumes
	$(BIN)/python -c 'from daedalus.designers.levers import learn_levers; learn_levers("data/teacher", "build/teacher")'

search: $(READY) ## search for the best fixed mechanisms and the oracles, into data/search, in minutes; resumes
	$(BIN)/daedalus search --workers 2 --output data/search/record.json

ablations: $(READY) ## train the variants of a small recipe, three seeds each, in an hour; resumes when interrupted
	$(BIN)/daedalus ablate --record data/ablations/records.json

grpo: $(READY) ## train the rows of the study of GRPO at equal cost, in hours; resumes when interrupted
	$(BIN)/daedalus ablate --plan data/grpo.json --record data/grpo/records.json

leaderboard: $(READY) ## make the committed table of models again: asks the trained designer, and whoever else has no replies yet
	rm -f data/leaderboard/replies/trained.jsonl
	$(BIN)/daedalus leaderboard --output data/leaderboard
	$(BIN)/daedalus reproduce --profile paper --keep-outputs --only 94_leaderboard --force

docs: $(READS) ## the documentation as pages, from the committed outputs and the docstrings, into build/site, in minutes
	@$(BIN)/python -c 'from daedalus.pipeline.site import build_site; print(build_site())'

serve: $(READY) ## the market, the designer and the arena at http://127.0.0.1:7860; Ctrl-C ends it
	$(BIN)/daedalus serve

space: $(READY) ## build the wheel and its pins into space/, the folder that `openenv push space` uploads
	rm -rf space/wheels
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w space/wheels .
	cp constraints.txt space/wheels/constraints.txt

harnesses: $(READY) ## environments for Inspect and verifiers, which need other libraries, in build/harnesses; then their tests
	$(PYTHON) -m venv build/harnesses/inspect
	build/harnesses/inspect/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-inspect.txt -e '.[inspect]'
	$(PYTHON) -m venv build/harnesses/verifiers
	build/harnesses/verifiers/bin/python -m pip install --quiet --disable-pip-version-check 'verifiers[openenv]==0.4.0' uv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_harnesses.py

export: $(READY) ## write daedalus/*.py and README.md from the notebooks
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python -c "from daedalus.pipeline.reproduce import make_readme; make_readme()"

bench: $(READY) ## measure the speed of the market engine
	$(BIN)/daedalus reproduce --profile paper --only 75_speed --force --show

clean: ## remove what was built, .venv included
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find daedalus tests nbs -name __pycache__ -prune -exec rm -rf {} +

$(READY): EXTRAS := search,data,train,serve,notebooks,docs,dev
.venv/.plays: EXTRAS := designer,notebooks
.venv/.reads: EXTRAS := docs
$(READY) .venv/.plays .venv/.reads: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "DAEDALUS needs Python 3.11 or newer: try make PYTHON=python3.11"; exit 1; }
	@echo "Setting up .venv: this downloads the packages, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
