# PYTHON makes the environment; VENV= (empty) uses PYTHON as it is, where it has torch already.
PYTHON ?= python3
VENV ?= .venv
PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY := $(if $(VENV),$(VENV)/.ready)

train-sudoku: $(READY)   ## the main job: the paper's model where CUDA is there, one sized for a CPU where not
	@if $(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  echo "CUDA is here: training the paper's sudoku; for the CPU's: $(PY) trm.py train sudoku-small"; \
	  $(PY) trm.py train sudoku --resume; \
	else \
	  echo "no CUDA here: training sudoku-small; for the paper's, weeks on a CPU: $(PY) trm.py train sudoku"; \
	  $(PY) trm.py train sudoku-small --resume; \
	fi

demo: $(READY)           ## the same for 6x6 Sudoku: about two minutes on two CPU cores
	$(PY) trm.py train sudoku-6x6 --resume

test: $(READY)           ## the whole test suite
	$(PY) -m pytest -q test_trm.py

sudoku-extreme: $(READY) ## download Sudoku-Extreme (800 MB) into puzzles/sudoku-extreme, for --data
	$(PY) data.py sudoku-extreme

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

.PHONY: train-sudoku demo test sudoku-extreme
