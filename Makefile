# PYTHON makes the environment; VENV= (empty) uses PYTHON as it is, where it has torch already.
PYTHON ?= python3
VENV ?= .venv
PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
HAS_CUDA := $(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"
READY := $(if $(VENV),$(VENV)/.ready)

train-sudoku: $(READY)   ## the main job: the paper's model where CUDA is there, one sized for a CPU where not
	@if $(HAS_CUDA); then \
	  echo "CUDA is here: training the paper's sudoku; for the CPU's: $(PY) trm.py train sudoku-small"; \
	  $(PY) trm.py train sudoku --resume; \
	else \
	  echo "no CUDA here: training sudoku-small; for the paper's, weeks on a CPU: $(PY) trm.py train sudoku"; \
	  $(PY) trm.py train sudoku-small --resume; \
	fi

train-maze: $(READY)     ## the paper's Maze-Hard where CUDA is there, mazes of 8x8 where not
	@if $(HAS_CUDA); then $(PY) trm.py train maze --resume; else \
	  echo "no CUDA here: training maze-small; for the paper's, weeks on a CPU: $(PY) trm.py train maze"; \
	  $(PY) trm.py train maze-small --resume; \
	fi

demo: $(READY)           ## the same for 6x6 Sudoku: about two minutes on two CPU cores
	$(PY) trm.py train sudoku-6x6 --resume

test: $(READY)           ## the whole test suite
	$(PY) -m pytest -q test_trm.py

sudoku-extreme: $(READY) ## download Sudoku-Extreme (800 MB) into puzzles/sudoku-extreme, for --data
	$(PY) data.py sudoku-extreme

maze-hard: $(READY)      ## download Maze-Hard into puzzles/maze-hard, for --data
	$(PY) data.py maze-hard

# A row of the paper's tables: name | its accuracy on Sudoku-Extreme | the flags that make it from the row "TRM".
define ABLATIONS
TRM|87.4|
with Q-learning ACT|86.1|--q_learning
separate f_H and f_L|82.4|--networks 2
without EMA|79.9|--ema 0
4 layers, half the n|79.5|--n_layers 4 --n 1
multi-scale z|77.6|--features multi
with self-attention|74.7|--mixing attention
T and n smaller|73.7|--T 1 --n 1
single z|71.9|--features z
1-step gradient|56.5|--one_step
HRM|55.0|--mixing attention --n_layers 4 --networks 2 --n 2 --T 2 --one_step --q_learning --ema 0
direct prediction|0.0|--mixing attention --n_layers 4 --networks 2 --n 1 --T 1 --N_sup 1 --N_eval 1
no deep supervision|-|--N_sup 1 --N_eval 1
endef
export ABLATIONS
SEED ?= 0
ABLATION_STEPS ?= 600

ablations: $(READY)      ## the paper's tables at CPU size, on 6x6 Sudoku; SEED=1 for another seed
	@mkdir -p runs; printf '%-22s %8s %8s %8s %11s\n' variant "paper %" "here %" seconds parameters; \
	echo "$$ABLATIONS" | while IFS='|' read -r name paper flags; do \
	  run="ablation-$(SEED)-$$(echo $$name | tr ' ' '-')"; log="runs/$$run.log"; \
	  grep -qs 'solved: ' "$$log" || $(PY) trm.py train sudoku-6x6 --n 2 --T 2 --ema 0.98 --all-steps \
	    --steps $(ABLATION_STEPS) --seed $(SEED) $$flags --run "$$run" --resume > "$$log" < /dev/null || exit 1; \
	  awk -v name="$$name" -v paper="$$paper" '/^model/ {parameters = $$2} /^trained/ {seconds = $$3} \
	    /^ +[0-9]+  +[0-9.]+ +[0-9.]+ +[0-9.]+/ {right = $$3} \
	    END {printf "%-22s %8s %8s %8s %11s\n", name, paper, right, seconds, parameters}' "$$log"; \
	done

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

.PHONY: train-sudoku train-maze demo test ablations sudoku-extreme maze-hard
