"""Tests: `make test`. Each asserts something that could fail; those that need the reference files skip without them."""
import contextlib
import http.server
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import data
import trm
HERE = Path(__file__).parent
FIXTURES = HERE.parent / "shared" / "fixtures"
EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
EASY_ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
TINY = ["--D", "32", "--multiple", "32", "--heads", "2", "--train_size", "40", "--test_size", "20", "--batch", "8",
        "--N_sup", "4", "--no-compile", "--dtype", "float32"]

@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Every test runs in an empty folder, so that none sees or touches the reader's runs and puzzles."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

def digits(text):
    return torch.tensor([[int(c) if c != "." else 0 for c in text]])

def tiny(**changes):
    return replace(trm.Config(D=32, multiple=32, heads=2, n=2, T=2, N_sup=4, batch=8, train_size=40, test_size=20,
                              compile=False), **changes)

def tiny_task(cfg):
    """A task with random tokens for puzzles, for tests that do not care what is in them."""
    task = data.Sudoku(cfg)
    task.train = data.Puzzles(torch.randint(1, 8, (40, task.length)).byte(),
                              torch.randint(2, 8, (40, task.length)).byte(), torch.zeros(40, dtype=torch.int32))
    return task

# ---- the solver and the generator ----------------------------------------------------------------------------------
def count_by_hand(grid, size, limit):
    """Solutions of a grid (list of digits) by plain backtracking, at most `limit`: the oracle for `search`."""
    if 0 not in grid:
        return 1
    cells = data.unit_cells(size).tolist()
    i = grid.index(0)
    peers = {grid[c] for unit in cells if i in unit for c in unit}
    total = 0
    for d in range(1, size + 1):
        if d not in peers and total < limit:
            total += count_by_hand(grid[:i] + [d] + grid[i + 1:], size, limit - total)
    return total

def test_solver_counts_on_known_puzzles():
    found, guesses, answer = data.search(data.to_masks(digits(EASY), 9))
    assert found == 1 and "".join(map(str, answer[:, 0].tolist())) == EASY_ANSWER
    assert guesses == 0                                                    # singles are enough
    for text, solutions in ("55" + EASY[2:], 0), ("12345678." + "." * 8 + "9" + "." * 63, 0), ("." * 81, 2):
        assert data.search(data.to_masks(digits(text), 9), limit=2)[0].clamp(max=2) == solutions

def test_solver_counts_all_solutions_like_plain_backtracking():
    _, grids, _ = data.generate(6, 30, seed=1)
    holes = torch.rand(30, 36) < torch.linspace(0.4, 0.75, 30)[:, None]
    puzzles = grids.masked_fill(holes, 0)
    found, _, _ = data.search(data.to_masks(puzzles, 6), limit=10 ** 9, width=64)
    by_hand = [count_by_hand(p.tolist(), 6, 10 ** 9) for p in puzzles]
    assert found.tolist() == by_hand and max(by_hand) > 2 and min(by_hand) == 1

@pytest.mark.parametrize("size, count", [(6, 60), (9, 30)])
def test_generated_puzzles_are_valid_unique_minimal_and_reproducible(size, count):
    questions, answers, rating = data.generate(size, count, seed=3)
    assert data.obeys(answers + 1, size).all() and len(answers.unique(dim=0)) == count
    assert ((questions == 0) | (questions == answers)).all()
    found, guesses, solved = data.search(data.to_masks(questions, size), limit=3)
    assert (found == 1).all() and (solved.T == answers).all() and torch.equal(guesses, rating)
    puzzle, clue = questions.nonzero().T                                   # take every single clue away in turn
    fewer = questions[puzzle].scatter(1, clue[:, None], 0)
    assert (data.search(data.to_masks(fewer, size))[0] >= 2).all()
    again = data.generate(size, count, seed=3)
    assert torch.equal(questions, again[0]) and not torch.equal(questions, data.generate(size, count, seed=4)[0])

@pytest.mark.parametrize("size", [6, 9])
def test_augmented_puzzles_are_valid_and_fresh(size):
    q, a, _ = data.generate(size, 1, seed=5)
    q, a = data.augment(*[(t + 1).byte().expand(200, -1) for t in (q, a)], size)
    assert data.obeys(a, size).all() and ((q == 1) | (q == a)).all()
    found, _, answer = data.search(data.to_masks(q.int() - 1, size))
    assert (found == 1).all() and torch.equal(answer.T + 1, a.int())
    assert len(a.unique(dim=0)) == 200
    assert len((q > 1).unique(dim=0)) > 100                                # cells move, not only digits

def test_built_in_puzzles_are_cached_and_disjoint():
    task = data.Sudoku(tiny(size=6, train_size=300, test_size=200))
    train, test = task.train, task.test
    assert (len(train), len(test)) == (300, 200)
    assert len(torch.cat([train.labels, test.labels]).unique(dim=0)) == 500
    before = {p: p.stat().st_mtime_ns for p in task.folder.iterdir()}
    again = data.Sudoku(tiny(size=6, train_size=300, test_size=200))
    assert torch.equal(again.train.inputs, train.inputs) and len(before) == 2
    assert before == {p: p.stat().st_mtime_ns for p in task.folder.iterdir()}

# ---- files and downloads -------------------------------------------------------------------------------------------
def row(question=EASY, answer=EASY_ANSWER, rating="3"):
    return f"here,{question},{answer},{rating}"

def csv_file(*rows, name="train.csv", head="source,question,answer,rating", end="\n", bom=b""):
    Path(name).write_bytes(bom + end.join([head, *rows, ""]).encode())
    return name

def test_read_csv_reads_and_draws_by_seed():
    q, a, r = data.generate(9, 20, seed=1)
    rows = [row(data.text_of(x + 1), data.text_of(y + 1), n.item()) for x, y, n in zip(q, a, r)]
    read = data.read_csv(csv_file(*rows, end="\r\n", bom=b"\xef\xbb\xbf"), 9)
    assert equal(vars(read), {"inputs": (q + 1).byte(), "labels": (a + 1).byte(), "rating": r.int()})
    zero, one, again = (data.read_csv("train.csv", 9, take=7, seed=s).inputs for s in (0, 1, 0))
    assert torch.equal(zero, again) and not torch.equal(zero, one)
    assert len(zero) == 7 and len(torch.cat([zero, read.inputs]).unique(dim=0)) == 20

@pytest.mark.parametrize("rows, message", [
    ([row(), row(question=EASY[:-1])], "train.csv, line 3: the question has 80 characters, not 9x9"),
    ([row(question="x" + EASY[1:])], "line 2: the question may hold only 1-9, '.' and '0'"),
    ([row(answer="." + EASY_ANSWER[1:])], "line 2: the answer may hold only 1-9"),
    ([row(answer=EASY_ANSWER[1] + EASY_ANSWER[0] + EASY_ANSWER[2:])], "line 2: the answer changes a clue"),
    ([row(), row("." * 81, "1" * 81)], "line 3: the answer breaks the rules of Sudoku"),
    ([row(rating="-1")], "line 2: the rating must be a whole number"),
    (["a,b"], "line 2: 2 columns, not 4"),
    ([], "train.csv has 0 puzzles"),
])
def test_a_bad_row_is_named(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        data.read_csv(csv_file(*rows), 9)

def test_bad_files_are_named():
    with pytest.raises(ValueError, match="line 1: the header must be source,question,answer,rating"):
        data.read_csv(csv_file(row(), head="puzzle,solution"), 9)
    with pytest.raises(ValueError, match="nowhere.csv: No such file"):
        data.read_csv("nowhere.csv", 9)
    with pytest.raises(ValueError, match="1 puzzles, 5 are asked for; lower train_size"):
        data.read_csv(csv_file(row()), 9, take=5)
    Path("train.csv").write_bytes(os.urandom(5000))
    with pytest.raises(ValueError, match="train.csv"):
        data.read_csv("train.csv", 9)

@contextlib.contextmanager
def server(files, cut=None):
    """A local mirror: serves `files` {path: bytes} with ranges; the first reply breaks off after `cut` bytes."""
    asked = []
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            nonlocal cut
            asked.append((self.path, self.headers.get("Range")))
            body = files.get(self.path)
            if body is None:
                return self.send_error(404)
            start = int(self.headers["Range"][6:-1]) if "Range" in self.headers else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:start + cut] if cut else body[start:])
            cut = None
        def log_message(self, *args):
            pass
    httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()

def test_a_cut_download_resumes_and_is_never_taken_for_whole(monkeypatch):
    root, body = "/datasets/sapientinc/sudoku-extreme/resolve/main", Path(csv_file(row())).read_bytes()
    with server({f"{root}/train.csv": body, f"{root}/test.csv": body}, cut=100) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(sys, "argv", ["data.py", "sudoku-extreme"])
        folder = Path("puzzles/sudoku-extreme")
        with pytest.raises(ValueError, match=f"cut at 100 of {len(body)} bytes; run the command again"):
            data.main()
        assert [p.name for p in folder.iterdir()] == ["train.csv.part"]
        data.main()
        assert asked[1] == (f"{root}/train.csv", "bytes=100-")
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"train.csv": body, "test.csv": body}

def test_a_download_that_is_no_puzzle_file_gets_no_name():
    with server({"/train.csv": b"<html>please log in</html>"}) as (url, _):
        with pytest.raises(ValueError, match="is not a puzzle file"):
            data.download(f"{url}/train.csv", Path("train.csv"))
        with pytest.raises(ValueError, match="404"):
            data.download(f"{url}/gone.csv", Path("gone.csv"))
    assert not list(Path(".").iterdir())

def test_what_the_user_types_as_a_puzzle():
    task = data.Sudoku(tiny())
    assert data.text_of(task.parse(EASY)[0]) == data.text_of(task.parse(EASY.replace(".", "0"))[0]) == EASY
    assert task.describe(task.parse(EASY))[0] == "exactly one solution, 0 guesses"
    assert task.describe(task.parse("." * 81)) == ("several solutions", None)
    assert task.describe(task.parse("12345678." + "." * 8 + "9" + "." * 63)) == ("no solution", None)
    for text, message in (("55" + EASY[2:], "contradicts itself: row 1, column 1 and row 1, column 2 hold 5"),
                          (EASY[1:], "has 80 characters"), ("x" + EASY[1:], "row 1, column 1: 'x' is no digit")):
        with pytest.raises(ValueError, match=re.escape(message)):
            task.parse(text)
    answer = task.parse(EASY_ANSWER)
    assert task.obeys(task.parse(EASY), answer).all() and not task.obeys(task.parse("9" + "." * 80), answer).any()

def test_a_grid_prints_in_colour_or_plainly():
    task = data.Sudoku(tiny())
    question, answer = task.parse(EASY)[0], task.parse(EASY_ANSWER)[0]
    wrong = answer.clone()
    wrong[2] = 10
    plain, coloured = task.show(question, wrong, answer), task.show(question, wrong, answer, colour=True)
    assert plain.splitlines()[0] == " 5 3 9 | 6 7 8 | 9 1 2 " and len(plain.splitlines()) == 11
    assert coloured.startswith(" \033[1m5\033[0m \033[1m3\033[0m \033[7;33m9\033[0m | \033[34m6\033[0m")
    assert re.sub("\033.*?m", "", coloured) == plain

# ---- the network, against the published implementation --------------------------------------------------------------
def fixture(kind):
    """The reference file of that kind and what its shapes do not tell, as settings of load_published."""
    if not (path := FIXTURES / f"reference_{kind}.pt").exists():
        pytest.skip("needs the reference files")
    content = torch.load(path, weights_only=True)
    c = content["config"]
    return content, dict(n=c["L_cycles"], T=c["H_cycles"], heads=c["num_heads"], prefix=c.get("puzzle_emb_len", 1))

@pytest.mark.parametrize("kind", ["mlp", "att", "hrm"])
def test_published_outputs_losses_and_gradients(kind):
    reference, settings = fixture(kind)
    model = trm.load_published(reference["state_dict"], 15 if kind != "mlp" else None, **settings)
    cfg, labels, (y, z) = model.cfg, reference["labels"].clamp(min=0), model.initial(4)   # -100 there, padding here
    assert (cfg.networks, cfg.n_layers, cfg.q_learning) == ((2, 4, True) if kind == "hrm" else (1, 2, False))
    def same(mine, theirs):
        torch.testing.assert_close(mine.detach().double(), theirs.double(), atol=2e-5, rtol=0)
    for count, step in enumerate(reference["steps"], 1):                   # each from the state that the fixture gives
        model.zero_grad()
        x = model.embed(reference["inputs"], reference["puzzle_ids"])
        (y, z), logits, q = trm.deep_recursion(model, x, y, z, cfg.n, cfg.T)
        answer, _, halting = trm.losses(logits, q, labels)
        both = halting
        if kind == "hrm":
            target = trm.continue_target(model, x, y, z, torch.full((4,), count))
            same(target, step["target_q_continue"])
            both = halting + torch.nn.functional.binary_cross_entropy_with_logits(q[:, 1], target, reduction="none")
        loss = (answer + 0.5 * both).mean()
        loss.backward()
        for mine, theirs in ((loss, "loss"), (answer.mean(), "lm_loss"), (halting.mean(), "q_halt_loss"),
                             (logits, "logits"), (q[:, 0], "q_halt_logits"), (q[:, 1], "q_continue_logits"),
                             (y.transpose(0, 1), "z_H"), (z.transpose(0, 1), "z_L")):
            same(mine, step[theirs])
        for name, parameter in model.named_parameters():
            if name != "puzzles":
                same(parameter.grad, step["grads"]["model.inner." + trm.published_name(name)])
        by_row = torch.zeros_like(model.puzzles).index_add(0, reference["puzzle_ids"], step["puzzle_grad"])
        same(model.puzzles.grad, by_row)                                   # given by batch row there, by identity here
        y, z = step["z_H"].transpose(0, 1), step["z_L"].transpose(0, 1)

def published(cfg, path):
    """A checkpoint in the published layout, of a new model."""
    model = trm.TRM(cfg, 81, 11)
    torch.save({"_orig_mod.model.inner." + trm.published_name(k): v for k, v in model.state_dict().items()}, path)
    return model

@pytest.mark.parametrize("base", [trm.Config(prefix=16), trm.PRESETS["sudoku-att"], trm.HRM])
def test_a_published_checkpoint_is_evaluated_like_the_model_it_holds(base, capsys):
    cfg = replace(base, D=32, heads=4, n=2, T=1, prefix=base.prefix or 16, test_size=20, N_eval=2)
    model = published(cfg, "step_9")
    again = trm.load_published("step_9", heads=4)
    assert (again.cfg.networks, again.cfg.n_layers, again.cfg.mixing) == (cfg.networks, cfg.n_layers, cfg.mixing)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    flags = ["--heads", "4", "--n", "2", "--T", "1", "--test_size", "20", "--batch", "20", "--train_size", "40"]
    assert trm.main(["eval", "step_9", *flags, "--steps", "2"]) == 0
    assert "20 unseen puzzles" in capsys.readouterr().out
    assert trm.main(["solve", "step_9", EASY, *flags, "--steps", "1"]) == 0
    logits, q = next(trm.think(model, data.Sudoku(cfg).parse(EASY), 1))
    right = (logits.argmax(-1) == data.Sudoku(cfg).parse(EASY_ANSWER)).sum()
    assert f"probability {model.certainty(q)[0].sigmoid():.3f}, {right} of 81 cells" in capsys.readouterr().out

def test_a_published_checkpoint_that_does_not_fit_names_the_keys():
    published(trm.Config(D=32, prefix=16), "step_9")
    weights, head = torch.load("step_9", weights_only=True), "_orig_mod.model.inner.lm_head.weight"
    for change, message in (({head: None}, "1 keys are wrong: lm_head.weight is absent, not (11, 32)"),
                            ({head: torch.zeros(3, 32)}, "lm_head.weight is (3, 32), not (11, 32)"),
                            ({"more": torch.zeros(1)}, "more is (1,), not absent")):
        with pytest.raises(ValueError, match=re.escape(message)):
            trm.load_published({k: v for k, v in {**weights, **change}.items() if v is not None})
    for content in b"", b"not a checkpoint", Path("step_9").read_bytes()[:5000]:
        Path("cut").write_bytes(content)
        with pytest.raises(ValueError, match="cut is no checkpoint"):
            trm.load_published("cut")

def test_initial_weights_have_the_standard_deviation_asked_for():
    w = trm.trunc_normal(1000, 1000, std=0.02)
    assert abs(w.std().item() - 0.02) < 1e-4 and w.abs().max() <= 0.02 * 2 / 0.8796 + 1e-6
    model = trm.TRM(tiny(), 36, 8)
    assert (model.q_weight == 0).all() and (model.q_bias == -5).all()
    assert torch.equal(model.initial(3)[0][5, 2], model.y_init)

@pytest.mark.parametrize("mixing", ["mlp", "attention"])
def test_gradient_flows_through_exactly_the_last_recursion(mixing):
    cfg = tiny(mixing=mixing, n=2, T=3)
    model = trm.TRM(cfg, 36, 8)
    calls = []
    model.nets[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x = model.embed(torch.randint(1, 8, (4, 36)))
    y, z = (v.clone().requires_grad_() for v in model.initial(4))
    (y1, z1), logits, q = trm.deep_recursion(model, x, y, z, cfg.n, cfg.T)
    assert calls == [False] * 6 + [True] * 3
    assert not y1.requires_grad and not z1.requires_grad                   # none into an earlier supervision step
    gradients = torch.autograd.grad(logits.sum(), [y, z, model.nets[0][0].mlp.down], allow_unused=True)
    assert gradients[0] is None and gradients[1] is None
    net = model.nets[0]
    with torch.no_grad():                                                  # the same gradient, by hand
        for _ in range(2):
            y, z = trm.latent_recursion(net, net, x, y, z, 2)
    z = net(z + (y + x))
    z = net(z + (y + x))
    y = net(y + z)
    by_hand, = torch.autograd.grad(model.output_head(y).sum(), [net[0].mlp.down])
    assert torch.equal(by_hand, gradients[2])

def test_stablemax_by_hand_and_at_extreme_logits():
    logits = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)          # s = 1, 2, 1/2
    assert trm.stablemax_cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(-np.log(2 / 3.5), abs=1e-12)
    assert trm.stablemax_cross_entropy(logits, torch.tensor([2])).item() == pytest.approx(-np.log(0.5 / 3.5), abs=1e-12)
    assert trm.stablemax_cross_entropy(logits, torch.tensor([0])).item() == 0   # padding does not count
    extreme = torch.tensor([[1e30, -1e30, 1.0]], requires_grad=True)
    loss = trm.stablemax_cross_entropy(extreme, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(60 * np.log(10), rel=1e-6) and extreme.grad.isfinite().all()

def test_losses_average_over_labelled_cells_of_each_puzzle():
    logits = torch.zeros(2, 3, 4)
    logits[0, :, 1] = 1.0
    labels = torch.tensor([[1, 1, 0], [1, 2, 3]])
    answer, right, halting = trm.losses(logits, torch.tensor([[2.0, 0], [2.0, 0]]), labels)
    assert right.tolist() == [True, False]
    assert answer.tolist() == pytest.approx([-np.log(2 / 5), -np.log(1 / 4)])
    assert halting.tolist() == pytest.approx([np.log(1 + np.exp(-2)), 2 + np.log(1 + np.exp(-2))])

# ---- deep supervision ----------------------------------------------------------------------------------------------
def test_slots_refill_only_when_halted():
    cfg = tiny(size=6)
    task, model = tiny_task(cfg), trm.TRM(cfg, 36, 8)
    first = trm.refill(None, model, task)
    assert (first["inputs"] > 0).all() and (first["count"] == 0).all() and torch.equal(first["y"], model.initial(8)[0])
    halted = torch.tensor([True, False] * 4)
    old = {**first, "y": first["y"] + 1, "z": first["z"] + 1, "count": torch.full((8,), 3), "halted": halted}
    new = trm.refill(old, model, task)
    assert new["count"].tolist() == [0, 3] * 4
    for name in "inputs", "labels":
        assert torch.equal(new[name][~halted], old[name][~halted])
        assert (new[name][halted] != old[name][halted]).any(1).all()
    for name, start in zip("yz", model.initial(8)):
        assert torch.equal(new[name][:, ~halted], old[name][:, ~halted])
        assert torch.equal(new[name][:, halted], start[:, halted])

def test_halting_counts_and_exploration():
    cfg, B = tiny(N_sup=16, explore=0.1), 100_000
    count, sure, unsure = (lambda c: torch.full((B,), c)), torch.ones(B), -torch.ones(B)
    assert trm.halt(count(16), unsure, cfg).all() and not trm.halt(count(15), unsure, cfg).any()
    assert trm.halt(count(1), sure, replace(cfg, explore=0.0)).all()
    for c in 1, 2, 9, 15:                                                  # stays with 0.1 P(minimum > c)
        stays = 1 - trm.halt(count(c), sure, cfg).float().mean().item()
        assert stays == pytest.approx(0.1 * (16 - max(c, 1)) / 15, abs=0.005)

def test_a_training_step_is_one_supervision_step():
    cfg = tiny(size=6, warmup=4, lr=1e-2, steps=10, lr_final=0.5, ema=0.9)
    task, model = tiny_task(cfg), trm.TRM(cfg, 36, 8)
    ema = trm.AveragedModel(model, multi_avg_fn=trm.get_ema_multi_avg_fn(cfg.ema))
    optimizer = torch.optim.AdamW(model.parameters())
    slots, average, weights = None, None, []
    for step in range(5):
        slots, means = trm.train_step(model, ema, optimizer, slots, task, step)
        weights.append(model.output_weight.detach().clone())
        average = weights[0] if average is None else 0.9 * average + 0.1 * weights[-1]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * min(1, (step + 1) / 4) * (1 - 0.05 * step))
        assert slots["count"].tolist() == [step % 4 + 1] * 8               # q starts at -5: all stay until N_sup
        assert slots["halted"].all() == (step == 3) and means.isfinite().all()
    torch.testing.assert_close(ema.module.output_weight.detach(), average)

PAPER = [("", 42, 1, "4.9"), ("--q_learning", 42, 2, "4.9"), ("--networks 2", 42, 1, "9.7"), ("--ema 0", 42, 1, "4.9"),
         ("--n_layers 4 --n 3", 48, 1, "9.7"), ("--mixing attention", 42, 1, "6.8"), ("--T 2 --n 2", 12, 1, "4.9"),
         ("--one_step", 42, 1, "4.9"), ("--features z", 42, 1, "4.9"), ("--features multi", 42, 1, "4.9"),
         ("--N_sup 1", 42, 1, "4.9"), ("--n 2 --T 1", 6, 1, "4.9"), ("hrm", 24, 2, "27"), ("direct", 8, 1, "27")]

def test_headers_state_the_papers_columns(capsys):
    for flags, depth, passes, millions in PAPER:
        preset = f"sudoku-{flags}" if flags in ("hrm", "direct") else f"sudoku {flags}"
        assert trm.main(["train", *preset.split(), "--test_size", "20", "--train_size", "20", "--steps", "0"]) == 0
        out = capsys.readouterr().out
        parameters = int(re.search(r"([\d,]+) parameters", out)[1].replace(",", "")) / 1e6
        assert f"T(n+1)layers = {depth}," in out and f"forward passes in each: {passes}\n" in out, flags
        assert f"{parameters:.2g}" == millions and not Path("runs").exists(), flags
        assert flags or " 24 TFLOP per step of 768" in out

def before_and_after(features):
    """A model with these features, x, the initial y and z, and what T = 2 recursions of n = 3 make of them."""
    model = trm.TRM(tiny(features=features, n=3), 36, 8)
    x, (y, z) = model.embed(torch.randint(1, 8, (4, 36))), model.initial(4)
    return model.nets[0], x, y, z, trm.deep_recursion(model, x, y, z, 3, 2)[0]

def test_a_single_feature():
    net, x, _, z, after = before_and_after("z")
    for _ in range(2):
        z = net(net(x + net(x + net(x + z))))
    torch.testing.assert_close(after, (z, z), atol=1e-4, rtol=0)

def test_one_latent_per_inner_step():
    net, x, y, z, after = before_and_after("multi")
    z = list(z)
    for _ in range(2):
        for i in range(3):
            z[i] = net(x + y + sum(z))
        y = net(y + sum(z))
    torch.testing.assert_close(after, (y, torch.stack(z)), atol=1e-4, rtol=0)

def test_the_one_step_gradient_passes_the_last_call_of_each_network_only():
    cfg = tiny(n=3, T=2, networks=2, one_step=True)
    model, calls = trm.TRM(cfg, 36, 8), []
    for name, net in zip("LH", model.nets):
        net.register_forward_hook(lambda *_, name=name: calls.append(name * (1 + torch.is_grad_enabled())))
    x, (y, z) = model.embed(torch.randint(1, 8, (4, 36))), model.initial(4)
    (y1, z1), *_ = trm.deep_recursion(model, x, y, z, 3, 2)
    assert calls == ["L", "L", "L", "H", "L", "L", "LL", "HH"]             # doubled: with gradient
    model.cfg = replace(cfg, one_step=False)
    assert torch.equal(trm.deep_recursion(model, x, y, z, 3, 2)[0][0], y1)   # only the gradient differs

def test_q_learning_aims_at_the_next_step_and_halts_where_halting_is_worth_more():
    cfg = tiny(q_learning=True, N_sup=4)
    model = trm.TRM(cfg, 36, 8)
    torch.nn.init.normal_(model.q_weight)
    x, (y, z) = model.embed(torch.randint(1, 8, (4, 36))), model.initial(4)
    q = trm.deep_recursion(model, x, y, z, cfg.n, cfg.T)[2]
    target = trm.continue_target(model, x, y, z, torch.tensor([1, 4, 3, 4]))
    expected = torch.stack([q[0].max(), q[1, 0], q[2].max(), q[3, 0]]).sigmoid()
    assert torch.equal(target, expected) and not target.requires_grad
    assert model.certainty(torch.tensor([[-1.0, -2.0], [1.0, 2.0]])).tolist() == [1.0, -1.0]

def test_flops_are_counted_from_the_matrix_products():
    cfg = tiny(size=6, T=3, n=2, D=32)
    inner, per_block = 96, 3 * 36 * 96 * 32 + 3 * 32 * 96 * 36             # multiply-adds of a block for one puzzle
    heads = 3 * (36 * 8 * 32 + 2 * 32) * 8                                 # forward and backward
    assert inner == trm.SwiGLU(32, -1, cfg).down.shape[1] == trm.SwiGLU(36, 0, cfg).down.shape[1]
    network = 2 * per_block * 8 * (9 + 2 * 3)                              # 9 forward, 3 backward at twice the cost
    assert trm.flops(cfg, data.Sudoku(cfg)) == pytest.approx(2 * (network + heads), rel=0.01)

# ---- runs ----------------------------------------------------------------------------------------------------------
def checkpoint(run):
    return torch.load(f"runs/{run}/checkpoint.pt", weights_only=True)

def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(monkeypatch, capsys):
    command = ["train", "sudoku-6x6", *TINY, "--steps", "14"]
    assert trm.main([*command, "--run", "whole"]) == 0
    step = trm.train_step
    def and_then_a_signal(*args):
        if args[-1] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)
    monkeypatch.setattr(trm, "train_step", and_then_a_signal)
    assert trm.main([*command, "--run", "cut"]) == 128 + signal.SIGTERM
    assert checkpoint("cut")["step"] == 7
    monkeypatch.setattr(trm, "train_step", step)
    assert trm.main(["train", "sudoku-6x6", "--run", "cut", "--resume"]) == 0
    whole, cut = checkpoint("whole"), checkpoint("cut")
    for name in whole.keys() - {"seconds", "log_size"}:
        assert equal(whole[name], cut[name]), name
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    rows = Path("runs/cut/log.csv").read_text().splitlines()
    assert rows[0] == "step,of,seconds,steps/s,min left,loss,answer,halting,solved,halted,lr,unseen"
    assert rows[-1].startswith("14,")

def test_runs_are_evaluated_solved_and_not_overwritten(capsys):
    train = ["train", "sudoku-6x6", *TINY, "--steps", "3"]
    assert trm.main(train) == 0
    out = capsys.readouterr().out
    assert "20 unseen puzzles" in out and "step 1: halting probability 0.0" in out and "the rules do not hold" in out
    before = Path("runs/sudoku-6x6/checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="run sudoku-6x6 exists: --resume goes on, --overwrite"):
        trm.main(train)
    with pytest.raises(ValueError, match="--D cannot change in a resumed run"):
        trm.main([*train, "--resume", "--D", "64"])
    assert Path("runs/sudoku-6x6/checkpoint.pt").read_bytes() == before
    assert trm.main(["eval", "sudoku-6x6", "--steps", "6"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 9 and out.splitlines()[-1].split()[0] == "6"
    puzzle = data.text_of(data.read_csv(next(Path("puzzles").glob("*/test.csv")), 6).inputs[0])
    assert trm.main(["solve", "sudoku-6x6", puzzle]) == 0
    assert "a puzzle with exactly one solution" in capsys.readouterr().out
    assert trm.main([*train, "--overwrite", "--seed", "1"]) == 0 and checkpoint("sudoku-6x6")["config"]["seed"] == 1

def test_evaluation_equals_a_plain_loop_whatever_the_batch():
    cfg = tiny(size=6, batch=8)
    model, task = trm.TRM(cfg, 36, 8), tiny_task(cfg)
    puzzles = task.train[:19]                                              # the last batch is not full
    cells, exact, q = trm.evaluate(model, puzzles, 3)
    for i in 0, 7, 18:
        for k, (logits, head) in enumerate(trm.think(model, puzzles.inputs[[i]], 3)):
            right = logits.argmax(-1)[0] == puzzles.labels[i]
            assert cells[k, i] == right.float().mean() and exact[k, i] == right.all()
            assert q[k, i].item() == pytest.approx(head[0, 0].item(), abs=1e-5)

def test_training_without_a_compiler_and_with_one():
    """Blocks compile, or training goes on without where there is no C++ compiler; both as a user would see it."""
    for said, change in ("compiled", {}), ("not compiled", {"CXX": "no-such-compiler"}):
        cache = str(Path(said.replace(" ", "-")).absolute())
        run = subprocess.run([sys.executable, str(HERE / "trm.py"), "train", "sudoku-6x6", *TINY[:-3], "--steps", "2",
                              "--overwrite"], capture_output=True, text=True,
                             env={**os.environ, **change, "TORCHINDUCTOR_CACHE_DIR": cache})
        assert run.returncode == 0 and "20 unseen puzzles" in run.stdout, run.stderr
        assert re.search(f"^{said}", run.stdout, re.M), run.stdout

def test_every_variant_trains_saves_loads_and_evaluates(capsys):
    for flags in [flags for flags, *_ in PAPER[1:]] + ["--dtype bfloat16"]:
        preset = f"sudoku-{flags}" if flags in ("hrm", "direct") else f"sudoku-6x6 {flags}"
        command = ["train", *TINY, *preset.split(), *"--size 6 --prefix 2 --steps 2 --run it --overwrite".split()]
        assert trm.main(command) == 0
        assert checkpoint("it")["slots"]["y"].dtype == (torch.bfloat16 if "bfloat16" in flags else torch.float32)
        assert trm.main(["eval", "it", "--steps", "3"]) == 0 and "20 unseen puzzles" in capsys.readouterr().out

def test_a_small_network_learns_puzzles_it_has_not_seen():
    """A third of the preset's steps, to 60% of unseen puzzles whole; the preset itself is measured in the README."""
    assert trm.main(["train", "sudoku-6x6", "--steps", "500", "--ema", "0.99", "--test_size", "256"]) == 0
    saved = trm.load("sudoku-6x6")
    task, _, ema = trm.build(saved["config"], None, saved)
    assert trm.evaluate(ema.module, task.test, 8)[1, -1].mean() > 0.6

@pytest.mark.parametrize("command, message", [
    ("train sudoku-smal", "unknown preset sudoku-smal; did you mean sudoku-small?"),
    ("train sudoku --stpes 3", "unknown argument --stpes; did you mean --steps?"),
    ("train sudoku --steps many", "argument --steps: invalid int value: 'many'"),
    ("train sudoku --lr nan", "--lr nan: must be at least 0 and below inf"),
    ("train sudoku --T 0", "--T 0: must be at least 1"),
    ("train sudoku --mixing conv", "--mixing conv: must be one of mlp, attention"),
    ("train sudoku-att --heads 7", "--heads 7: D 512 must divide"),
    ("train sudoku --size 8 --steps 0", "--size 8: Sudoku comes in size 6 and 9"),
    ("train sudoku --data nowhere --steps 0", "nowhere/train.csv: No such file or directory"),
    ("eval sudoku", "there is no run sudoku"),
    ("eval broken", "runs/broken/checkpoint.pt is damaged or not from this program"),
    ("solve brokn", "there is no run brokn; did you mean broken?"),
    ("eval fits --steps 0", "--N_eval 0: must be at least 1"),
    ("eval fits --D 64", "other shapes than these flags ask for"),
    ("eval sudoku 53", "unknown argument 53"),
    ("fly", "argument command: invalid choice: 'fly'"),
    ("", "the following arguments are required: command"),
])
def test_a_mistake_ends_in_one_line(command, message):
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/checkpoint.pt").write_bytes(b"not a checkpoint")
    if "fits" in command:
        assert trm.main(["train", "sudoku-6x6", *TINY, "--steps", "1", "--run", "fits"]) == 0
    with pytest.raises(ValueError, match=re.escape(message)):
        trm.main(shlex.split(command))

def test_a_mistake_on_the_command_line_exits_with_2_and_no_traceback():
    run = subprocess.run([sys.executable, str(HERE / "trm.py"), "train", "soduku"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "trm.py: unknown preset soduku; did you mean sudoku?\n"

def test_a_checkpoint_with_code_in_it_is_refused():
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("made by a checkpoint",)
    Path("runs/evil").mkdir(parents=True)
    torch.save({"config": Evil()}, "runs/evil/checkpoint.pt")
    with pytest.raises(ValueError, match="damaged or not from this program"):
        trm.load("evil")
    assert not Path("made by a checkpoint").exists()

def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    model = trm.TRM(tiny(), 36, 8)
    trm.save(Path("checkpoint.pt"), tiny(), model, step=1)
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match="what was saved before is kept: .*No space left"):
        trm.save(Path("checkpoint.pt"), tiny(), model, step=2)
    assert torch.load("checkpoint.pt", weights_only=True)["step"] == 1

def test_the_commands_of_the_readme_exist():
    readme, makefile = (HERE / "README.md").read_text(), (HERE / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", readme))
    assert named and named <= targets
    commands = re.findall(r"python trm\.py ([^\n#`|]*)", readme.replace("--seed S", "--seed 0"))
    commands += re.findall(r"trm\.py (train [^$\n;\"]*)[\n;\"]", makefile)
    commands += [f"train sudoku-6x6 {flags}" for flags in re.findall(r"^\w.*\|.*\|(.*)$", makefile, re.M)]
    assert len(commands) > 5
    for command in commands:
        args = trm.parse(shlex.split(command))
        assert args.command != "train" or args.name in trm.PRESETS
    for module, name in re.findall(r"`(trm|data)\.(?!py`)(\w+)`", readme):
        assert hasattr({"trm": trm, "data": data}[module], name), name
