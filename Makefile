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

train-arc: $(READY)      ## ARC-AGI-1 as in the paper where CUDA is there, a few small tasks where not
	@test -d puzzles/arc || $(MAKE) arc
	@if $(HAS_CUDA); then $(PY) trm.py train arc1 --resume; else \
	  echo "no CUDA here: training arc-small; for the paper's, 3 days of 4 H100: $(PY) trm.py train arc1"; \
	  $(PY) trm.py train arc-small --resume; \
	fi

demo: $(READY)           ## the same for 6x6 Sudoku: about two minutes on two CPU cores
	$(PY) trm.py train sudoku-6x6 --resume

test: $(READY)           ## the whole test suite
	$(PY) -m pytest -q test_trm.py

# Downloads into puzzles/, for --data: Sudoku-Extreme has 800 MB. HF_ENDPOINT and GITHUB name mirrors.
HF_ENDPOINT ?= https://huggingface.co
DATA ?= data.py
sudoku-extreme: SET = sudoku-extreme
maze-hard: SET = maze-30x30-hard-1k
sudoku-extreme maze-hard: $(READY)
	@for file in train.csv test.csv; do \
	  $(PY) $(DATA) $(HF_ENDPOINT)/datasets/sapientinc/$(SET)/resolve/main/$$file puzzles/$@/$$file || exit 1; \
	done

# Repository, folder in it, name of the set.
define ARC_SETS
fchollet/ARC-AGI data/training training
fchollet/ARC-AGI data/evaluation evaluation
arcprize/ARC-AGI-2 data/training training2
arcprize/ARC-AGI-2 data/evaluation evaluation2
victorvikram/ConceptARC corpus concept
endef
export ARC_SETS
GITHUB ?= https://github.com

arc: $(READY)            ## download the tasks of ARC-AGI-1, ARC-AGI-2 and ConceptARC into puzzles/arc
	@echo "$$ARC_SETS" | while read -r repository folder set; do \
	  zip="puzzles/arc/$$(basename $$repository).zip"; unpacked=puzzles/arc/unpacked; \
	  $(PY) $(DATA) $(GITHUB)/$$repository/archive/HEAD.zip "$$zip" && $(PY) -m zipfile -e "$$zip" $$unpacked && \
	  mkdir -p puzzles/arc/$$set && cp $$(find $$unpacked -path "*/$$folder/*.json") puzzles/arc/$$set && \
	  rm -r $$unpacked || exit 1; \
	done

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
	  grep -qs 'solved: ' "$$log" || $(PY) trm.py train sudoku-6x6 --n 2 --T 2 --ema 0.98 --expansion 2 \
	    --multiple 32 --loss stablemax --all-steps --steps $(ABLATION_STEPS) --seed $(SEED) $$flags \
	    --run "$$run" --resume > "$$log" < /dev/null || exit 1; \
	  awk -v name="$$name" -v paper="$$paper" '/^model/ {parameters = $$2} /^trained/ {seconds = $$3} \
	    /^ +[0-9]+  +[0-9.]+ +[0-9.]+ +[0-9.]+/ {right = $$3} \
	    END {printf "%-22s %8s %8s %8s %11s\n", name, paper, right, seconds, parameters}' "$$log"; \
	done

define BENCH
import time, torch, trm
from dataclasses import replace
from torch.profiler import profile, record_function
cuda, parts = trm.DEVICE.type == "cuda", ["drawing", "no gradient", "gradient", "backward", "optimizer"]
wait = torch.cuda.synchronize if cuda else lambda: None
def label(owner, attribute, name):
    function = getattr(owner, attribute)
    def labelled(*args, **kwargs):
        with record_function(name()):
            return function(*args, **kwargs)
    setattr(owner, attribute, labelled)
label(trm, "refill", lambda: "drawing")
label(trm, "latent_recursion", lambda: "gradient" if torch.is_grad_enabled() else "no gradient")
label(torch.Tensor, "backward", lambda: "backward")
label(trm.optim.AdamW, "step", lambda: "optimizer")
label(trm.optim.swa_utils.AveragedModel, "update_parameters", lambda: "optimizer")
def seconds(function):
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began
columns = ["steps/s", "TFLOP/s", "of peak", *parts, "eval/s", "all steps"]
print("preset".ljust(13), *(name.rjust(11) for name in columns))
for name in trm.PRESETS if cuda else ["sudoku", "sudoku-small", "sudoku-6x6", "maze-small"]:
    cfg = trm.PRESETS[name] if cuda or name != "sudoku" else replace(trm.PRESETS[name], batch=16)
    try:
        task, model, ema = trm.build(replace(cfg, test_size=256, train_size=100))
    except ValueError as error:
        print(name.ljust(13), str(error)[:100])
        continue
    optimizer, slots = trm.optim.AdamW(model.parameters(), cfg.lr, fused=True), None
    count = 4 if name == "sudoku" and not cuda else 30
    [net.compile(dynamic=False) for net in model.nets]
    def steps():
        global slots
        for step in range(count):
            slots, _ = trm.train_step(model, ema, optimizer, slots, task, step)
    steps()
    second = sorted(seconds(steps) for _ in range(5))[2] / count
    with profile() as profiler:
        whole = seconds(steps)
    spent = {e.key: (e.device_time_total if cuda else e.cpu_time_total) / 1e6 / whole for e in profiler.key_averages()}
    rate = trm.flops(cfg, task) / second
    row = [f"{1 / second:.3g}", f"{rate / 1e12:.3g}", f"{rate / trm.matrix_rate(model.dtype):.0%}"]
    row += [f"{spent.get(part, 0):.0%}" for part in parts]
    path = trm.Path("runs") / name / "checkpoint.pt"
    for all_steps in (False, True) if path.exists() else ():
        saved = trm.load(path)
        judged, _, average = trm.build(replace(saved["config"], all_steps=all_steps), saved["folder"], saved)
        thinking = seconds(lambda: trm.evaluate(average.module, judged, judged.test))
        row.append(f"{len(judged.test) / thinking:.3g}")
    print(name.ljust(13), *(cell.rjust(11) for cell in row), flush=True)
endef
export BENCH

bench: $(READY)          ## steps/s of the presets that fit the machine, where the time goes, puzzles/s of trained runs
	@$(PY) -c "$$BENCH" 2>&1 | grep --line-buffered -v ^USDT   # a word that torch's profiler says

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

.PHONY: train-sudoku train-maze train-arc demo test ablations bench sudoku-extreme maze-hard arc
