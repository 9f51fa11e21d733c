# `make` lists the targets. PYTHON makes the environment; VENV= (empty) uses PYTHON as it is.
PYTHON ?= python3
VENV ?= .venv
PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY := $(if $(VENV),$(VENV)/.ready)
CUDA = $(shell $(PY) -c "import torch; print('yes' * torch.cuda.is_available())")

help:
	@grep '##' Makefile | grep -v grep | sed 's/:.*##/  /'

train-sudoku: $(READY)   ## 9x9 Sudoku: the paper's network where CUDA is there, a small one where not
	$(PY) trm.py train $(if $(CUDA),sudoku-fast,sudoku-small) --resume

train-maze: $(READY)     ## the same for mazes, 30x30 or 8x8
	$(PY) trm.py train $(if $(CUDA),maze --batch 192,maze-small) --resume

train-arc: arc $(READY)  ## the same for ARC-AGI-1, or its smallest tasks
	$(PY) trm.py train $(if $(CUDA),arc1 --batch 192,arc-small) --resume

demo: $(READY)           ## 6x6 Sudoku, from nothing to solved in a few minutes on a CPU
	$(PY) trm.py train sudoku-6x6 --resume

test: $(READY)           ## all tests
	$(PY) -m pytest -q test_trm.py

# A second try goes on with FILE.part, or begins anew where a server cannot (curl's status 22, 33).
HF_ENDPOINT ?= https://huggingface.co
GITHUB_RAW ?= https://raw.githubusercontent.com
FETCH = mkdir -p $(@D); curl -fL --retry 3 -C - -o $@.part $(URL) || \
  { case $$? in 22 | 33) curl -fL -o $@.part $(URL);; *) false;; esac; } && mv $@.part $@
SETS := training evaluation concept training2 evaluation2
ARC := $(foreach set,$(SETS),puzzles/arc/arc-agi_$(set)_challenges.json puzzles/arc/arc-agi_$(set)_solutions.json)

sudoku-extreme: puzzles/sudoku-extreme/train.csv puzzles/sudoku-extreme/test.csv  ## download, 800 MB
maze-hard: puzzles/maze-hard/train.csv puzzles/maze-hard/test.csv                ## download, 4 MB
arc: $(ARC)                                                ## download ARC-AGI-1, 2 and ConceptARC

puzzles/sudoku-extreme/%: URL = $(HF_ENDPOINT)/datasets/sapientinc/sudoku-extreme/resolve/main/$(@F)
puzzles/maze-hard/%: URL = $(HF_ENDPOINT)/datasets/sapientinc/maze-30x30-hard-1k/resolve/main/$(@F)
puzzles/arc/%: URL = $(GITHUB_RAW)/SamsungSAILMontreal/TinyRecursiveModels/main/kaggle/combined/$(@F)
puzzles/sudoku-extreme/%.csv: ; $(FETCH)
puzzles/maze-hard/%.csv: ; $(FETCH)
puzzles/arc/%.json: ; $(FETCH)

# Rows of the paper's tables: name | its accuracy on Sudoku-Extreme | the flags that change TRM.
HRM := --mixing attention --n_layers 4 --networks 2 --recursion one_step --q_learning --ema 0
define ABLATIONS
TRM | 87.4 |
Q-learning | 86.1 | --q_learning
two networks | 82.4 | --networks 2
no EMA | 79.9 | --ema 0
4 layers | 79.5 | --n_layers 4 --n 1
multi-scale z | 77.6 | --recursion multi_z
self-attention | 74.7 | --mixing attention
T, n smaller | 73.7 | --T 1 --n 1
single z | 71.9 | --recursion single_z
1-step gradient | 56.5 | --recursion one_step
HRM | 55.0 | $(HRM)
HRM, one pass | - | $(HRM) --n 1 --T 1
HRM, one supervision | - | $(HRM) --N_sup 1 --N_eval 1
TRM, one supervision | - | --N_sup 1 --N_eval 1
direct prediction | 0.0 | --mixing attention --n_layers 4 --networks 2 --n 1 --T 1 --N_sup 1 --N_eval 1
endef
export ABLATIONS
SEED ?= 0
RECIPE := --D 64 --heads 4 --n 2 --T 2 --batch 32 --lr 3.5e-3 --warmup 300 --weight_decay 0.1 \
  --ema 0.995 --N_start 0.125 --N_eval 16 --steps 3000 --save_every 1000

ablations: $(READY)      ## the paper's Table 1 and 2 in small, on 6x6 Sudoku; SEED=1 for another seed
	@mkdir -p runs; echo "variant | paper | here: exact after 1, 2, 4, ... steps | head right at the end"
	@echo "$$ABLATIONS" | while IFS='|' read -r name paper flags; do \
	  run=$$(echo $$name | tr -d , | tr ' ' '-')-seed$(SEED); \
	  grep -qs '^after step' runs/$$run.log || $(PY) trm.py train sudoku-6x6 $(RECIPE) --seed $(SEED) \
	    $$flags --run $$run --resume > runs/$$run.log || exit 1; \
	  echo "$$name |$$paper|" $$(awk '/^ +[0-9]+  +[0-9.]+  +/ {print $$2; head = $$4} END {print "|", head}' \
	    runs/$$run.log); \
	done

bench: $(READY)          ## steps/s of the presets that a laptop can run
	@for preset in sudoku-6x6 sudoku-small maze-small "sudoku --batch 16"; do \
	  $(PY) trm.py train $$preset --steps 60 --test_size 100 --run bench --overwrite | \
	    grep '^step 50' | sed "s/^/$$preset: /"; \
	done

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

.PHONY: help train-sudoku train-maze train-arc demo test sudoku-extreme maze-hard arc ablations bench
