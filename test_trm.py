"""Tests: `make test`. Each asserts something that could fail; those that need the reference files skip without them."""
import contextlib, http.server, io, json, math, os, re, shlex, signal, subprocess, sys, threading
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from torch.optim import swa_utils
import data, trm
HERE = Path(__file__).parent
refused = lambda message: pytest.raises(ValueError, match=re.escape(message))
checkpoint = lambda run: torch.load(f"runs/{run}/checkpoint.pt", weights_only=True)
EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
EASY_ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
MAZE, MAZE_ANSWER = "S  # #       # G", "Soo# #oo   o # G"                    # 4x4; from G first up, then left, ...
SIZES = dict(D=32, multiple=32, heads=2, N_sup=4, batch=8, train_size=40, test_size=20)
TINY = [*(f"--{name}={size}" for name, size in SIZES.items()), "--no-compile", "--dtype", "float32"]
@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):                                 # no test sees the reader's runs and puzzles
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
tiny = lambda **changes: replace(trm.Config(n=2, T=2, compile=False, **SIZES), **changes)
learner = lambda model: (swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(model.cfg.ema)),
                         torch.optim.AdamW(model.parameters(), model.cfg.lr))
def started(**changes):
    model = trm.TRM(tiny(size=6, **changes), 36, 8)
    return model, model.embed(torch.randint(1, 8, (4, 36)), torch.zeros(4, 32)), *model.initial(4)
def come_back(task, grids, ids, A):                                        # copies differ, and map back
    views, ids, back = task.views(grids, ids, A)
    assert torch.equal(views[::A], grids) and torch.equal(back(views), grids.repeat_interleave(A, 0))
    return len(views.unique(dim=0)), len(ids)
# ---- the solver and the generator ----------------------------------------------------------------------------------
def count_by_hand(grid, size):
    if 0 not in grid:
        return 1
    i = grid.index(0)
    peers = {grid[cell] for unit in data.unit_cells(size).tolist() if i in unit for cell in unit}
    return sum(count_by_hand(grid[:i] + [d] + grid[i + 1:], size) for d in range(1, size + 1) if d not in peers)
def test_solver_counts_all_solutions_like_plain_backtracking():
    _, grids, _ = data.random_sudoku(6, 30, seed=1)
    puzzles = (grids - 1).masked_fill(torch.rand(30, 36) < torch.linspace(0.4, 0.75, 30)[:, None], 0)
    found, _, _ = data.search(data.to_masks(puzzles, 6), limit=10 ** 9, width=64)
    assert found.tolist() == [count_by_hand(p.tolist(), 6) for p in puzzles] and found.max() > 2 and found.min() == 1
@pytest.mark.parametrize("size, count", [(6, 60), (9, 30)])
def test_generated_puzzles_are_valid_unique_minimal_and_reproducible(size, count):
    questions, answers, rating = data.random_sudoku(size, count, seed=3)
    assert data.Sudoku(tiny(size=size)).obeys(questions, answers).all() and len(answers.unique(dim=0)) == count
    found, guesses, solved = data.search(data.to_masks(questions - 1, size), limit=3)
    assert (found == 1).all() and (solved.T + 1 == answers).all() and torch.equal(guesses, rating)
    puzzle, clue = (questions - 1).nonzero().T                             # take every single clue away in turn
    assert (data.search(data.to_masks((questions - 1)[puzzle].scatter(1, clue[:, None], 0), size))[0] >= 2).all()
    assert torch.equal(questions, data.random_sudoku(size, count, seed=3)[0])
@pytest.mark.parametrize("size", [6, 9])
def test_augmented_puzzles_are_valid_and_fresh(size):
    task = data.Sudoku(tiny(size=size))
    symmetry = task.symmetries(torch.ones(200))
    q, a = (data.transform(grid.byte().expand(200, -1), *symmetry) for grid in task.generate(1)[:2])
    assert task.obeys(q, a).all()
    assert len(a.unique(dim=0)) == 200 and len((q > 1).unique(dim=0)) > 100   # cells move, not only digits
    assert come_back(task, q[:5], torch.zeros(5).long(), 8) == (40, 40)
def test_built_in_puzzles_are_cached_and_disjoint():
    task, again = (data.Sudoku(tiny(size=6, train_size=300, test_size=200)) for _ in range(2))
    grids = torch.cat([task.train.labels, task.test.labels])
    times = lambda: {path: path.stat().st_mtime_ns for path in task.folder.iterdir()}
    assert (len(task.train), len(grids.unique(dim=0)), len(before := times())) == (300, 500, 2)
    assert torch.equal(again.train.inputs, task.train.inputs) and before == times()
# ---- files and downloads -------------------------------------------------------------------------------------------
NINE = data.Sudoku(tiny())
row = lambda question=EASY, answer=EASY_ANSWER, rating="3": f"here,{question},{answer},{rating}"
def csv_file(*rows, end="\n", bom=b""):
    Path("train.csv").write_bytes(bom + end.join(["source,question,answer,rating", *rows, ""]).encode())
    return "train.csv"
def test_read_csv_reads_and_draws_by_seed():
    q, a, r = data.random_sudoku(9, 20, seed=1)
    rows = [row(NINE.text(x), NINE.text(y), n.item()) for x, y, n in zip(q, a, r)]
    read = data.read_csv(csv_file(*rows, end="\r\n", bom=b"\xef\xbb\xbf"), NINE)
    assert equal([*vars(read).values()], [q.byte(), a.byte(), r.int(), 0 * r])
    zero, one, again = (data.read_csv("train.csv", NINE, take=7, seed=s).inputs for s in (0, 1, 0))
    assert torch.equal(zero, again) and not torch.equal(zero, one) and len(zero) == 7
@pytest.mark.parametrize("rows, message", [
    ([row(), row(question=EASY[:-1])], "train.csv, line 3: must be a source, a question and an answer of 9x9 char"),
    ([row(question="x" + EASY[1:])], "line 2: the question may hold only .1234567890"),
    *[([row(), row(question, answer)], "line 3: the answer must keep the clues and have every digit once in each row")
      for question, answer in ((EASY, "." + EASY_ANSWER[1:]), ("9" + EASY[1:], EASY_ANSWER), ("." * 81, "1" * 81))],
    ([row(rating="-1")], "9x9 characters, and a rating in digits, not 'here"), (["a,b"], "line 2: must be a source, a"),
    ([], "train.csv has 0 puzzles"), ([row()], "1 puzzles, 2 are asked")])
def test_a_bad_row_is_named(rows, message):
    with refused(message):
        data.read_csv(csv_file(*rows), NINE, len(rows) + 1)
def test_loaders_answer_damaged_files_in_one_line():
    draw, model = np.random.default_rng(0), started()[0]
    trm.save("good.pt", model.cfg, model)
    loaders = {csv_file(row()): lambda: data.read_csv("train.csv", NINE), f"{arc()}/training/t1.json": lambda: arc_task(
        "arc"), "good.pt": lambda: equal(trm.load("good.pt")["model"], model.state_dict())}   # damage is never loaded
    for path, load in loaders.items():
        good = np.fromfile(path, np.uint8)
        for share in [0.00002, 0.003, 0.05, 1] * 15:
            bad = np.where(draw.random(len(good)) < share, draw.integers(0, 256, len(good)), good).astype(np.uint8)
            bad[:draw.integers(2 * len(bad))].tofile(path)
            try:
                assert load() is not False
            except ValueError as error:
                assert path in str(error) and "\n" not in str(error)
@contextlib.contextmanager
def server(files, cut=None):
    asked = []                                                             # a mirror; breaks off after `cut` bytes once
    class Handler(http.server.BaseHTTPRequestHandler):
        log_message = lambda *args: None
        def do_GET(self):
            nonlocal cut
            asked.append((self.path, self.headers.get("Range")))
            start, body = int((self.headers["Range"] or "bytes=0-")[6:-1]), files.get(self.path)
            self.send_response(404 if body is None else 206 if start else 200)
            self.send_header("Content-Length", str(len(body or b"") - start))
            self.end_headers()
            self.wfile.write((body or b"")[start:][:cut])
            cut = None
    httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
def test_a_cut_download_resumes_and_is_never_taken_for_whole(monkeypatch):
    root, body = "/datasets/sapientinc/sudoku-extreme/resolve/main", Path(csv_file(row())).read_bytes()
    with server({f"{root}/train.csv": body, f"{root}/test.csv": body}, cut=100) as (url, asked):
        make = lambda: subprocess.run(
            f"make -f {HERE}/Makefile sudoku-extreme VENV= PY={sys.executable} DATA={HERE}/data.py HF_ENDPOINT={url}",
            shell=True, capture_output=True, text=True)
        assert f"cut at 100 of {len(body)} bytes; run the command again" in make().stderr
        files = lambda: {path.name: path.read_bytes() for path in Path("puzzles/sudoku-extreme").iterdir()}
        assert files() == {"train.csv.part": body[:100]} and make().returncode == 0
        assert asked[1] == (f"{root}/train.csv", "bytes=100-") and files() == {"train.csv": body, "test.csv": body}
    with server({"/a.csv": b"<html>please log in</html>"}) as (url, _):    # no puzzle file gets no name
        for name, message in ("a.csv", "is not what it should be: it does not begin with source,"), ("gone.csv", "404"):
            with refused(message):
                data.download(f"{url}/{name}", name)
    assert not list(Path(".").glob("[ag]*"))
def test_what_the_user_types_as_a_puzzle():
    assert [(task := NINE).text(task.parse(text).inputs[0]) for text in (EASY, EASY.replace(".", "0"))] == [EASY] * 2
    known, answer = task.describe(task.parse(EASY))
    assert (known, task.text(answer)) == ("a puzzle with exactly one solution, 0 guesses", EASY_ANSWER)
    assert task.describe(task.parse("." * 81)) == ("a puzzle with several solutions", None)
    assert task.describe(task.parse("12345678." + "." * 8 + "9" + "." * 63)) == ("a puzzle with no solution", None)
    for text, message in (("55" + EASY[2:], "contradicts itself: row 1, column 1 and row 1, column 2 hold 5"),
                          (EASY[1:], "80 characters"), ("x" + EASY[1:], "row 1, column 1: 'x' is none of .1234567890")):
        with refused(message):
            task.parse(text)
def test_a_grid_in_the_terminal_and_as_a_film(monkeypatch):
    question, answer, wrong = (task := NINE).tokens([EASY, EASY_ANSWER, "539" + EASY_ANSWER[3:]])
    plain = data.show(task, question, wrong, answer)
    assert plain.splitlines()[0] == " 5 3 9 | 6 7 8 | 9 1 2 " and len(plain.splitlines()) == 11
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = data.show(task, question, wrong, answer)
    assert coloured.startswith(" \033[1m5\033[0m \033[1m3\033[0m \033[7;33m9\033[0m | \033[34m6\033[0m")
    assert re.sub("\033.*?m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert data.show(task, question, wrong, answer) == plain
    film = xml.fromstring(data.film(task, question, answer, [(wrong, "1: 0.2"), (answer, "2: 0.9")]))
    first, second = (group for group in film.iter() if group.get("class") == "panel")
    assert (second[-1].text, first[4].get("fill"), second[4].get("stroke")) == ("2: 0.9", data.FILL["wrong"], "black")
# ---- mazes ---------------------------------------------------------------------------------------------------------
def moves_by_hand(maze, side):
    walled = "#" * (side + 1) + "#".join(maze[i:i + side] for i in range(0, side ** 2, side)) + "#" * (side + 1)
    layer, seen, moves = {walled.index("S")}, set(), 0
    while layer and walled.index("G") not in layer:
        seen, moves = seen | layer, moves + 1
        layer = {c + step for c in layer for step in (1, -1, side + 1, -side - 1) if walled[c + step] != "#"} - seen
    return moves if layer else -1
@pytest.mark.parametrize("side, minimum, count", [(6, 7, 200), (30, 60, 40)])
def test_mazes_keep_the_generators_promises(side, minimum, count):
    task = data.Maze(tiny(task="maze", size=side, min_path=minimum))
    q, a, moves = task.generate(count)
    assert [moves_by_hand(task.text(maze), side) for maze in q] == moves.tolist() and moves.min() > minimum
    assert task.obeys(q, a).all() and not task.obeys(q, q).any()
    assert torch.equal(q, data.random_mazes(side, minimum, count)) and len(q.unique(dim=0)) == count
    assert come_back(task, q[:5], torch.zeros(5).long(), 8) == (40, 40)
    task.train = data.Puzzles(q, a, moves, 0 * moves)
    inputs, labels, _ = task.draw(50)
    assert torch.equal(task.mark(inputs)[0], labels) and len(inputs.unique(dim=0)) > 30   # turned first, then marked
    grids = (torch.rand(300, side * side) > 0.4).byte() + 1                 # any maze, with a path or without
    grids[:, 3], grids[:, -5] = 3, 4
    assert task.mark(grids)[1].tolist() == [moves_by_hand(task.text(grid), side) for grid in grids]
def test_solved_is_any_shortest_path_and_nothing_else():
    task = data.Maze(tiny(size=4))
    assert task.text(task.describe(task.parse(MAZE))[1]) == MAZE_ANSWER
    for text, solved in ((MAZE_ANSWER, True), ("S  #o#  oooo # G", True), ("S o#o#  o oo # G", False),   # broken
                         ("Soo#o#oo   o # G", False), ("So # oo    o # G", False), ("Soo# #oo  #o # G", False),
                         ("Soo# #oo   G # o", False), (MAZE, False)):      # longer, through a wall, walls or G changed
        assert task.obeys(task.parse(MAZE).inputs, task.tokens([text])).item() == solved, text
    assert task.describe(task.parse("S##G" + "#" * 12)) == ("a maze with no path", None)
    for text, message in ((MAZE[1:], "15 characters"), ("S" + MAZE[1:-1] + "S", "2 S and 0 G"),
                          (MAZE_ANSWER, "row 1, column 2: 'o' is none of # SG")):
        with refused(message):
            task.parse(text)
    assert task.text(data.read_csv(csv_file(row(MAZE, MAZE_ANSWER)), task).labels[0]) == MAZE_ANSWER
    with refused("line 3: the answer must mark with 'o' one shortest path"):
        data.read_csv(csv_file(row(MAZE, MAZE_ANSWER), row(MAZE_ANSWER, MAZE_ANSWER)), task)
# ---- ARC -----------------------------------------------------------------------------------------------------------
PAIR = {"input": [[1, 2, 3]], "output": [[0, 0], [9, 8], [5, 5]]}
def arc(task={"train": [PAIR, PAIR], "test": [PAIR]}, **files):
    for path, content in {"training/t1": task, **files}.items():
        Path("arc", path).parent.mkdir(parents=True, exist_ok=True)
        Path("arc", f"{path}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return "arc"
def arc_task(folder, **changes):
    return data.ARC(replace(trm.Config(task="arc", size=30, sets="training"), **changes), folder)
@pytest.mark.parametrize("folder", [None, HERE.parent / "shared" / "data" / "arc"])
def test_arc_grids_come_back_from_every_symmetry(folder):
    if folder and not folder.exists():
        pytest.skip("needs the real tasks")
    task = arc_task(folder or arc(), sets="training,concept,evaluation" if folder else "training", variants=28)
    text = [task.text(part[0]) for part in (task.train.inputs, task.train.labels)]
    assert folder or text == ["[[1, 2, 3]]", "[[0, 0], [9, 8], [5, 5]]"] and len(task.kinds[:29].unique()) == 8
    for rows in torch.arange(len(task.train)).split(500):
        for frames in task.train.inputs[rows], task.train.labels[rows]:
            come_back(task, frames, task.train.ids[rows], 16 if folder else 29)
def test_grids_go_to_every_corner_and_back():
    small, shift = torch.tensor([[2, 3] + [0] * 898]).expand(4, -1), torch.tensor([[0, 0], [29, 0], [0, 28], [29, 28]])
    moved = data.frame(small, shift, 30).view(4, 30, 30)
    assert [moved[i, r, c].item() for i, (r, c) in enumerate(shift.tolist())] == [2] * 4 and (moved > 1).sum() == 8
    assert (moved == 1).sum((1, 2)).tolist() == [3, 1, 2, 0]               # end marks, where there is room for them
    assert torch.equal(data.frame(moved.flatten(1), 0 * shift, 30), data.frame(small, 0 * shift, 30))
    junk = torch.tensor([[5, 6, 0, 4, 7, 0, 1, 1, 4]])                     # the largest rectangle: 56 over 47
    assert data.crop(junk.view(1, 3, 3).flatten(1), 3).tolist() == [[5, 6, 0, 4, 7, 0, 0, 0, 0]]
def test_a_thousand_augmentations_are_distinct_and_batches_are_packed():
    task = arc_task(arc({"train": [{"input": [[*range(10)], [1] * 10], "output": [[1]]}] * 3, "test": [PAIR]}))
    views, ids, _ = task.views(task.train.inputs[:1], task.train.ids[:1], 1001)
    assert task.ids == 1001 == len(views.unique(dim=0)) == len(ids.unique())
    inputs, _, ids = task.draw(30)                                         # all pairs of an identity, one not shifted
    assert all(len(three.unique()) == 1 for three in ids.split(3)) and len(ids.unique()) > 7
    corner = (inputs.view(10, 3, 30, 30)[..., 0] > 1).any(2) & (inputs.view(10, 3, 30, 30)[..., 0, :] > 1).any(2)
    assert corner.any(1).all() and not corner.all()
def test_sign_sgd_touches_the_rows_of_the_batch_only():
    before, grads = torch.randn(5, 3), torch.tensor([[1.0, -1, 0], [-3, 2, 0], [0, 0, 5]])
    trm.update_puzzles(puzzles := before.clone(), torch.tensor([1, 1, 4]), grads, 0.1, 0.5)
    assert torch.equal(puzzles[[0, 2, 3]], before[[0, 2, 3]])
    torch.testing.assert_close(puzzles[[1, 4]], before[[1, 4]] * 0.95 - 0.1 * torch.tensor([[-1.0, 1, 0], [0, 0, 1]]))
@pytest.mark.parametrize("task, message", [
    ("{", "t1.json: Expecting property name"), ([], "t1.json: must hold train and test"), ({"train": [PAIR]}, "KeyErr"),
    ({"train": [PAIR], "test": []}, "t1.json: must hold train and test"),
    *[({"train": [{**PAIR, "output": grid}], "test": [PAIR]}, "arc/training/t1.json: must hold train and test, lists")
      for grid in ([[1] * 31], [[1, 2], [3]], [[10]], [], [[]], 7, [[0.5]], "x")]])
def test_a_bad_arc_file_is_named(task, message):
    with refused(message):
        arc_task(arc(task))
def test_arc_runs_vote_and_submit(capsys):
    hidden = {"train": [PAIR, PAIR], "test": [{"input": [[4]]}, {"input": [[5, 5]]}]}
    folder = arc(**{"arc-agi_evaluation_challenges": {"h2": hidden, "h1": hidden}})
    command = ["train", "arc-small", *TINY, "--data", folder, "--steps", "2", "--size", "6"]
    assert not trm.main([*command, "--sets", "training"])
    assert re.search(r"1 tasks: pass@1 .*pass@1000 .*copying the input 0.0 %", capsys.readouterr().out)
    assert not trm.main([*command, "--sets", "training,evaluation", "--run", "hidden"])
    assert "pass@" not in capsys.readouterr().out                          # no solutions: only the submission
    submission = json.loads(Path("submission.json").read_text())
    assert {name: len(pairs) for name, pairs in submission.items()} == {"h1": 2, "h2": 2}
    [data.read_grid(pair[f"attempt_{k}"]) for pairs in submission.values() for pair in pairs for k in (1, 2)]
    assert not trm.main(["solve", "hidden", "h2:2", "--votes", "3", "--steps", "2"])
    assert re.search("task h2:.*becomes.*attempt 1.*attempt 2.*truth\nis not told", capsys.readouterr().out, re.S)
    for flags, message in (("--sets training,training2", "ARC-AGI-1 and 2 are not"), ("--sets ../x", "../x: must be"),
                           ("--sets evaluation,training", "evaluation_challenges.json, task h1: must hold"),
                           ("--sets concept", "arc-agi_concept_challenges.json"), ("--size 1", "no tasks for --sets")):
        with refused(message):
            trm.main([*command, "--run", "bad", *flags.split()])
    with refused("there is no unseen puzzle h2:3"):
        trm.main(["solve", "hidden", "h2:3"])
# ---- the network, against the published implementation --------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mlp", "att", "hrm"])
def test_published_outputs_losses_and_gradients(kind):
    if not (path := HERE.parent / "shared" / "fixtures" / f"reference_{kind}.pt").exists():
        pytest.skip("needs the reference files")
    c = (reference := torch.load(path, weights_only=True))["config"]
    model = trm.load_published(reference["state_dict"], 15 if kind != "mlp" else None, n=c["L_cycles"], T=c["H_cycles"],
                               heads=c["num_heads"], prefix=c.get("puzzle_emb_len", 1))
    cfg, labels, (y, z) = model.cfg, reference["labels"].clamp(min=0), model.initial(4)   # -100 there, padding here
    same = lambda mine, theirs: torch.testing.assert_close(mine.double(), theirs.double(), atol=2e-5, rtol=0)
    for count, step in enumerate(reference["steps"], 1):                   # each from the state that the fixture gives
        model.zero_grad()
        vectors = model.puzzles[reference["puzzle_ids"]].requires_grad_()
        x = model.embed(reference["inputs"], vectors)
        (y, z), logits, q = trm.deep_recursion(model, x, y, z)
        answer, _, halting = trm.losses(logits, q, labels)
        loss = (answer + 0.5 * halting).mean()
        if kind == "hrm":
            target = trm.continue_target(model, x, y, z, torch.full((4,), count >= cfg.N_sup))
            same(target, step["target_q_continue"])
            loss = loss + 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(q[:, 1], target)
        loss.backward()
        for mine, theirs in ((loss, "loss"), (answer.mean(), "lm_loss"), (halting.mean(), "q_halt_loss"),
                             (logits, "logits"), (q[:, 0], "q_halt_logits"), (q[:, 1], "q_continue_logits"),
                             (y.transpose(0, 1), "z_H"), (z.transpose(0, 1), "z_L")):
            same(mine, step[theirs])
        for name, parameter in model.named_parameters():
            same(parameter.grad, step["grads"]["model.inner." + trm.published_name(name)])
        same(vectors.grad, step["puzzle_grad"])
        y, z = step["z_H"].transpose(0, 1), step["z_L"].transpose(0, 1)
def published(cfg, path):                                                  # a new model in the published layout
    weights = (model := trm.TRM(cfg, 81, 11)).state_dict()
    torch.save({"_orig_mod.model.inner." + trm.published_name(name): w for name, w in weights.items()}, path)
    return model
@pytest.mark.parametrize("base", [trm.Config(prefix=16), trm.PRESETS["sudoku-att"], trm.HRM])
def test_a_published_checkpoint_is_evaluated_like_the_model_it_holds(base, capsys):
    cfg = replace(base, D=32, heads=4, n=2, T=1, prefix=base.prefix or 16, test_size=20, N_eval=2)
    model, again = published(cfg, "step_9"), trm.load_published(trm.load("step_9"), heads=4)
    assert (again.cfg.networks, again.cfg.n_layers, again.cfg.mixing) == (cfg.networks, cfg.n_layers, cfg.mixing)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    flags = "--heads 4 --n 2 --T 1 --test_size 20 --batch 20 --train_size 40".split()
    assert not trm.main(["eval", "step_9", *flags, "--steps", "2"]) and "20 unseen puzzles" in capsys.readouterr().out
    assert not trm.main(["solve", "step_9", EASY, *flags, "--steps", "1"])
    answers, q, _ = next(trm.think(model, data.Sudoku(cfg).parse(EASY).inputs, 1))
    right = (answers == data.Sudoku(cfg).parse(EASY_ANSWER).inputs).sum()
    assert f"probability {q[0, 0].sigmoid():.3f}, {right} of 81 cells" in capsys.readouterr().out
def test_a_published_checkpoint_that_does_not_fit_names_the_keys():
    published(trm.Config(D=32, prefix=16), "step_9")
    head = "_orig_mod.model.inner.lm_head.weight"
    for key, value, message in ((head, [], "the checkpoint does not fit: While copying the parameter named"),
                                (head, torch.zeros(3, 32), "mismatch for output_weight: copying a param with shape"),
                                ("more", torch.zeros(1), 'Unexpected key(s) in state_dict: "more"')):
        with refused(message):
            trm.load_published({**torch.load("step_9", weights_only=True), key: value})
def test_initial_weights_flops_and_the_standard_deviation_asked_for():
    assert abs(trm.trunc_normal(1000, 1000, std=0.02).std().item() - 0.02) < 1e-4
    model, _, y, _ = started()
    assert (model.q_weight == 0).all() and (model.q_bias == -5).all() and torch.equal(y[5, 2], model.y_init)
    cfg = tiny(size=6, T=3, n=2, D=32)
    per_block, heads = 3 * 36 * 96 * 32 + 3 * 32 * 96 * 36, 3 * (36 * 8 * 32 + 2 * 32) * 8   # multiply-adds
    network = 2 * per_block * 8 * (9 + 2 * 3)                              # 9 forward, 3 backward at twice the cost
    assert trm.flops(cfg, data.Sudoku(cfg)) == pytest.approx(2 * (network + heads), rel=0.01)
@pytest.mark.parametrize("mixing", ["mlp", "attention"])
def test_gradient_flows_through_exactly_the_last_recursion(mixing):
    (model, x, y, z), calls = started(mixing=mixing, T=3), []
    model.nets[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    y, z = y.clone().requires_grad_(), z.clone().requires_grad_()
    (y1, z1), logits, _ = trm.deep_recursion(model, x, y, z)
    assert calls == [False] * 6 + [True] * 3
    assert not y1.requires_grad and not z1.requires_grad                   # none into an earlier supervision step
    assert torch.autograd.grad(logits.sum(), [y, z], allow_unused=True) == (None, None)
def test_the_losses_by_hand_and_at_extreme_logits():
    for label, p in (1, 2 / 3.5), (2, 0.5 / 3.5), (0, 1):                  # s = 1, 2, 1/2; 0, padding, does not count
        loss = trm.stablemax_cross_entropy(torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([label]))
        assert loss.item() == pytest.approx(-np.log(p), abs=1e-12)
    extreme = torch.tensor([[1e30, -1e30, 1.0]], requires_grad=True)
    (loss := trm.stablemax_cross_entropy(extreme, torch.tensor([1])).sum()).backward()
    assert loss.item() == pytest.approx(60 * np.log(10), rel=1e-6) and extreme.grad.isfinite().all()
    logits = torch.zeros(2, 3, 4)                                          # the mean over labelled cells of each puzzle
    logits[0, :, 1] = 1.0
    labels = torch.tensor([[1, 1, 0], [1, 2, 3]])
    answer, right, halting = trm.losses(logits, torch.tensor([[2.0, 0], [2.0, 0]]), labels)
    assert right.tolist() == [True, False] and answer.tolist() == pytest.approx([-np.log(2 / 5), -np.log(1 / 4)])
    assert halting.tolist() == pytest.approx([np.log(1 + np.exp(-2)), 2 + np.log(1 + np.exp(-2))])
    softmax, *_ = trm.losses(logits, torch.zeros(2, 2), labels, "softmax")
    assert softmax.tolist() == pytest.approx([np.log(1 + 3 / np.e), np.log(4)])
# ---- deep supervision ----------------------------------------------------------------------------------------------
def test_slots_refill_only_when_halted():
    (model, _, y0, _), halted = started(), torch.tensor([True, False] * 4)
    first = trm.refill(None, model, data.Sudoku(model.cfg))
    assert (first["inputs"] > 0).all() and (first["count"] == 0).all() and torch.equal(first["y"][:, :4], y0)
    old = {name: part + 1 for name, part in first.items() if name not in ("halted", "minimum", "means", "grads")}
    new = trm.refill({**old, "halted": halted}, model, data.Sudoku(model.cfg))
    for name, part in old.items():
        axis = 1 if name in "yz" else 0                                    # of the slots
        assert torch.equal(new[name].movedim(axis, 0)[~halted], part.movedim(axis, 0)[~halted])
        assert name[-1] in "s" or torch.equal(*(v[name].movedim(axis, 0)[halted] for v in (new, first)))
def test_halting_and_exploration(monkeypatch):
    model = trm.TRM(tiny(size=6, batch=40_000, N_sup=5, D=2, mixing="attention", heads=1), 36, 8)
    minimum = trm.refill(None, model, data.Sudoku(model.cfg))["minimum"]
    assert (minimum.bincount(minlength=7) / 4e4).tolist() == pytest.approx([0.9, 0, *[0.025] * 4, 0], abs=0.005)
    slots = trm.refill(None, started()[0], task := data.Sudoku(tiny(size=6)))
    slots.update(count=torch.tensor([0, 1, 1, 1, 2, 2, 2, 3]), minimum=torch.tensor([0, 0, 2, 3, 3, 4, 0, 4]))
    monkeypatch.setattr(trm, "refill", lambda *_: {name: part.clone() for name, part in slots.items()})
    for sure, halted in (9, [1, 1, 1, 0, 1, 0, 1, 1]), (-9, [0, 0, 0, 0, 0, 0, 0, 1]):   # all at N_sup = 4
        (model := started()[0]).q_bias.data[:] = sure
        assert trm.train_step(model, *learner(model), None, task, 0)[0]["halted"].tolist() == [bool(h) for h in halted]
def test_a_training_step_is_one_supervision_step():
    model = started(warmup=4, lr=1e-2, steps=10, lr_final=0.5, ema=0.9)[0]
    task, (ema, optimizer), slots, average = data.Sudoku(model.cfg), learner(model), None, None
    for step in range(5):
        slots, _ = trm.train_step(model, ema, optimizer, slots, task, step)
        weight = model.output_weight.detach().clone()
        average = weight if average is None else 0.9 * average + 0.1 * weight
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * min(1, (step + 1) / 4) * (1 - 0.05 * step))
        assert slots["count"].tolist() == [step % 4 + 1] * 8 and slots["halted"].all() == (step == 3)   # q is below 0
    torch.testing.assert_close(ema.module.output_weight.detach(), average)
    model.cfg, counts = replace(model.cfg, N_sup=8, N_start=0.25), []      # N_sup grows: 2, 2.3, 2.6, 3.0, ... 7, 8
    for step in range(10):
        slots, _ = trm.train_step(model, ema, optimizer, slots, task, step)
        counts.append(slots["count"][0].item())
    assert counts == [2, 1, 2, 3, 1, 2, 3, 4, 5, 6]
def test_a_training_step_never_waits_for_the_device():                     # from meta tensors no value can be had
    model, task, slots = started(prefix=2, q_learning=1, micro_batch=3)[0].to("meta"), data.Sudoku(tiny(size=6)), None
    task.train, task.device = task.train.to("meta"), torch.device("meta")
    for step in range(2):
        slots, means = trm.train_step(model, *learner(model), slots, task, step)
    assert means.is_meta
PAPER = [(f, 42, 1, "4.9") for f in ("", "--ema 0", "--one_step", "--features z", "--features multi", "--N_sup 1")] + [
    ("--q_learning", 42, 2, "4.9"), ("--networks 2", 42, 1, "9.7"), ("--n_layers 4 --n 3", 48, 1, "9.7"),
    ("--mixing attention", 42, 1, "6.8"), ("--T 2 --n 2", 12, 1, "4.9"), ("hrm", 24, 2, "27"), ("direct", 8, 1, "27")]
def test_headers_state_the_papers_columns(capsys):
    for flags, depth, passes, millions in PAPER:
        preset = f"sudoku-{flags}" if flags in ("hrm", "direct") else f"sudoku {flags}"
        assert not trm.main(["train", *preset.split(), "--test_size", "20", "--train_size", "20", "--steps", "0"])
        out = capsys.readouterr().out
        parameters = int(re.search(r"([\d,]+) parameters", out)[1].replace(",", "")) / 1e6
        assert f"T(n+1)layers = {depth}," in out and f"forward passes in each: {passes}\n" in out, flags
        assert f"{parameters:.2g}" == millions and (flags or " 24 TFLOP per step of 768" in out), flags
def test_one_feature_and_one_for_each_inner_step():
    model, x, y, z = started(features="z", n=3)
    (net,), after = model.nets, trm.deep_recursion(model, x, y, z)[0]
    for _ in range(2):
        z = net(net(x + net(x + net(x + z))))
    torch.testing.assert_close(after, (z, z), atol=1e-4, rtol=0)
    model, x, y, z = started(features="multi", n=3)
    (net,), after, z = model.nets, trm.deep_recursion(model, x, y, z)[0], list(z)
    for _ in range(2):
        for i in range(3):
            z[i] = net(x + y + sum(z))
        y = net(y + sum(z))
    torch.testing.assert_close(after, (y, torch.stack(z)), atol=1e-4, rtol=0)
def test_hrm_the_one_step_gradient_and_halting_where_it_is_worth_more():
    (model, x, y, z), calls = started(networks=2, one_step=True, q_learning=True, n=3), []
    for name, net in zip("LH", model.nets):
        net.register_forward_hook(lambda *_, name=name: calls.append(name * (1 + torch.is_grad_enabled())))
    trm.deep_recursion(model, x, y, z)
    assert calls == ["L", "L", "L", "H", "L", "L", "LL", "HH"]             # doubled: with gradient
    for values, sure in ((-1.0, -2.0), True), ((1.0, 2.0), False):         # what counts is which of the two is larger
        model.q_bias.data = torch.tensor(values)
        target = trm.continue_target(model, x, y, z, torch.tensor([True, False] * 2))
        assert torch.equal(target, torch.tensor([values[0], max(values)] * 2).sigmoid())
        assert (next(trm.think(model, torch.ones(1, 36), 1))[1] > 0) == sure
# ---- runs ----------------------------------------------------------------------------------------------------------
def equal(a, b):
    if isinstance(a, (dict, list, tuple)):
        a, b = (part.items() if isinstance(part, dict) else part for part in (a, b))
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(monkeypatch, capsys):
    command = ["train", "sudoku-6x6", *TINY, "--steps", "14"]
    assert not trm.main([*command, "--run", "whole"])
    kill, step = (lambda step: step == 6 and os.kill(os.getpid(), signal.SIGTERM)), trm.train_step
    monkeypatch.setattr(trm, "train_step", lambda *args: (kill(args[-1]), step(*args))[1])
    assert trm.main([*command, "--run", "cut"]) == 128 + signal.SIGTERM and checkpoint("cut")["step"] == 7
    monkeypatch.setattr(trm, "train_step", step)
    assert not trm.main(["train", "sudoku-6x6", "--run", "cut", "--resume"])
    assert equal(*({**checkpoint(run), "seconds": 0, "log_size": 0} for run in ("whole", "cut")))
    assert re.fullmatch(r"step,of,seconds,.*,halted,unseen\n(.*\n)*14,.*\n", Path("runs/cut/log.csv").read_text())
def test_runs_are_evaluated_solved_and_not_overwritten(capsys, monkeypatch):
    train = ["train", "sudoku-6x6", *TINY, "--steps", "3"]
    assert not trm.main(train)
    assert re.search("20 unseen.*step 1: halting probability 0.0.*a rule is broken", capsys.readouterr().out, re.S)
    before = Path("runs/sudoku-6x6/checkpoint.pt").read_bytes()
    for more, message in ([], "run sudoku-6x6 exists: --resume"), (["--resume", "--D", "64"], "--D cannot change in a"):
        with refused(message):
            trm.main([*train, *more])
    assert Path("runs/sudoku-6x6/checkpoint.pt").read_bytes() == before
    puzzle = next(Path("puzzles").glob("*/test.csv")).read_text().splitlines()[1].split(",")[1]
    assert not trm.main(["solve", "sudoku-6x6", puzzle, *"--show z --svg film.svg --steps 3".split()])
    assert capsys.readouterr().out.count("z decodes to") == Path("film.svg").read_text().count("panel") == 3
    lines = io.BytesIO(f"\ufeff{puzzle}\n\n{puzzle[1:]}\n{'.' * 36}\r\n{puzzle}".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    assert trm.main(["solve", "sudoku-6x6", "-"]) == 1                     # good, empty, bad, good, good
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["puzzle", puzzle, "." * 36, puzzle]
    assert re.fullmatch("line 3: the puzzle has 35 characters.*\n", err)
    assert not trm.main(["eval", "sudoku-6x6", *"--rollouts 5 --noise 0.3 --steps 8 --csv table.csv".split()])
    table = [line.split(",") for line in Path("table.csv").read_text().splitlines()]
    assert table[0][-2:] == ["exact of 1", "exact of 4"] and [row[0] for row in table[1:]] == list("12348")
    assert not trm.main([*train, "--overwrite", "--seed", "1"]) and checkpoint("sudoku-6x6")["config"]["seed"] == 1
def thinker(**changes):                                                    # a random model, sure of some puzzles
    model = started(T=8, **changes)[0]
    [weight.data.mul_(0.1) for weight in model.nets.parameters()]          # weak layers: its answers come to rest
    model.output_weight.data[2:], model.q_bias.data[:] = 0, 0
    torch.nn.init.normal_(model.q_weight, std=0.3)
    return model, data.Sudoku(model.cfg)
def thoughts(model, task, steps, **changes):
    model.cfg = replace(model.cfg, **changes)
    return [(answers.clone(), q.clone()) for answers, q, _ in trm.think(model, task.train.inputs, steps, task)]
def test_evaluation_equals_a_plain_loop_whatever_the_batch():
    model, task = thinker(batch=2, all_steps=True, N_eval=3)
    cells, exact, _, q, _ = trm.evaluate(model, task, task.train[:19])[0][:, 0]   # the last batch is not full
    x, (y, z) = model.embed(task.train.inputs[:19], None), model.initial(19)
    for k in range(3):
        (y, z), logits, head = trm.deep_recursion(model, x, y, z)
        right = (logits.argmax(-1) == task.train.labels[:19]).float()
        assert equal([cells[k], exact[k]], [right.mean(1), right.amin(1)])
        torch.testing.assert_close(q[k], head[:, 0], atol=1e-4, rtol=0)
def test_who_is_chosen():
    answers = torch.tensor([[1, 2, 2, 3], [1, 2, 3, 3], [1, 1, 2, 2]])[:, :, None]   # of three puzzles
    q = torch.tensor([[-1.0, -3, -2, 5], [-1, 9, -4, -3], [2, -2, 1, 1]])
    for pick, expected in ("q", [3, 2, 1]), ("vote", [2, 3, 2]):           # in a tie probabilities .88, .12 lose to .73
        assert trm.choose(answers, q, pick)[0][:, 0, 0].tolist() == expected
    assert trm.choose(answers[:, :2], q[:, :2], "vote")[1].tolist() == [-1, 9, 2]
    best, _, rank = trm.choose(answers, q, "vote", torch.tensor([[3], [2], [4]]))
    assert best[:, 1, 0].tolist() == [3, 2, 1] and rank.tolist() == [1, 1, math.inf]
    assert trm.choose(answers[:, :1], q[:, :1], "q")[0][:, :, 0].tolist() == [[1, 1]] * 3   # there is no second
def test_early_exit_drops_exactly_the_sure_ones_and_keeps_the_order():
    model, task = thinker()
    full, sizes = thoughts(model, task, 4, all_steps=True), []
    with model.nets[0].register_forward_hook(lambda net, args, out: sizes.append(out.shape[1])):
        early = thoughts(model, task, 4, all_steps=False)
    sure = [(full[k][1] > 0)[:, 0] & (full[k][0] == full[k - 1][0]).all(2)[:, 0] for k in (1, 2)]
    ends = torch.where(sure[0], 1, torch.where(sure[1], 2, 3)).tolist()
    assert set(ends) == {1, 2, 3}                                          # else this would test nothing
    for k, (answers, q) in enumerate(early):
        assert sizes[24 * k] == sum(end >= k for end in ends)
        for p, end in enumerate(ends):
            torch.testing.assert_close([answers[p], q[p]], [v[p] for v in full[min(k, end)]], atol=1e-4, rtol=0)
    model.q_bias.data -= 99                                                # nobody exits: the same, bit for bit
    assert equal(thoughts(model, task, 4, all_steps=True), thoughts(model, task, 4, all_steps=False))
def test_rollouts_are_plain_without_noise_repeat_with_it_and_leave_with_the_first_sure_one():
    model, task = thinker(N_eval=3)
    plain = trm.evaluate(model, task, task.train)[0]
    model.cfg = replace(model.cfg, rollouts=6)
    many, state = trm.evaluate(model, task, task.train)[0], torch.get_rng_state()
    torch.testing.assert_close(many, plain.expand(5, 3, 3, 40), atol=1e-4, rtol=0)   # of 1, 4 and 6 copies
    model.cfg = replace(model.cfg, noise=0.5)
    noisy, again = (trm.evaluate(model, task, task.train)[0] for _ in range(2))
    assert equal(noisy, again) and torch.equal(state, torch.get_rng_state())
    assert (noisy[3, 0] != noisy[3, 2]).any() and (noisy[3, 2] >= noisy[3, 0]).all()   # the best q of more is higher
    def gone(**changes):
        (first, _), (second, before), (_, after) = thoughts(model, task, 3, **changes)
        return before == after, (before > 0) & (first == second).all(2)
    left, sure = gone()
    with_whom = torch.cat([sure[:, :w].any(1, True).expand(-1, more) for w, more in ((1, 1), (4, 3), (6, 2))], 1)
    assert sure.any() and not with_whom.all() and torch.equal(left, with_whom)   # with one counted in the same width
    assert torch.equal(*gone(pick="vote", augment=2)) and model.cfg.widths == [2, 8, 12]   # here each for itself
def test_micro_batches_and_two_processes_equal_one_batch():
    run = lambda name, *flags, n=1: subprocess.run(
        [sys.executable, *f"-m torch.distributed.run --standalone --nproc-per-node={n} -- {HERE}/trm.py train".split(),
         "sudoku-6x6", *TINY, *"--steps 6 --prefix 1 --explore 0.5 --lr 1e-3 --run".split(), name, *flags],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for done in run("one"), run("micro", "--micro_batch", "3"), run("two", n=2):
        assert done.returncode == 0 and done.stdout.count("unseen puzzles,") == 2, done.stderr
    one, *others = (checkpoint(name)["model"] for name in ("one", "micro", "two"))
    [torch.testing.assert_close(one, other, atol=1e-5, rtol=0) for other in others]
def test_from_the_shell_with_a_compiler_without_one_and_with_a_mistake():
    shell = lambda *args, **env: subprocess.run([sys.executable, str(HERE / "trm.py"), "train", *args],
                                                capture_output=True, text=True, env={**os.environ, **env})
    for cache, change in ("compiled", {}), ("not-compiled", {"CXX": "no-such-compiler"}):
        run = shell("sudoku-6x6", *TINY[:-3], "--steps", "2", "--overwrite", **change,   # 3.13.0: guards
                    TORCHINDUCTOR_CACHE_DIR=str(Path(cache).absolute()), PYTHONWARNINGS="ignore:Guards may run slower")
        assert run.returncode == 0 and "20 unseen puzzles" in run.stdout and not run.stderr, run.stderr
        assert any(Path(cache).rglob("*.so")) == (not change)
    for args, line in (["soduku"], "unknown preset soduku; did you mean sudoku?"), (
            ["sudoku", "--prefix=999999999"], "lower what is too large, or --micro_batch: Storage size calculation"):
        run = shell(*args)
        assert (run.returncode, run.stdout) == (2, "") and re.fullmatch(f"trm.py: {re.escape(line)}.*\n", run.stderr)
def test_every_variant_trains_saves_loads_and_evaluates(capsys):
    for flags in [flags for flags, *_ in PAPER[1:]] + ["--dtype bfloat16"]:
        preset = f"sudoku-{flags}" if flags in ("hrm", "direct") else f"sudoku-6x6 {flags}"
        assert not trm.main(["train", *TINY, *f"{preset} --size 6 --prefix 2 --steps 2 --run it --overwrite".split()])
        assert checkpoint("it")["slots"]["y"].dtype == (torch.bfloat16 if "bfloat16" in flags else torch.float32)
        assert not trm.main(["eval", "it", "--steps", "3"]) and "20 unseen puzzles" in capsys.readouterr().out
def test_a_small_network_learns_puzzles_it_has_not_seen():
    assert not trm.main(["train", "sudoku-6x6", "--steps", "650", "--ema", "0.99", "--test_size", "256"])
    task, _, ema = trm.build((saved := trm.load("runs/sudoku-6x6/checkpoint.pt"))["config"], None, saved)
    assert trm.evaluate(ema.module, task, task.test)[0][1, -1, -1].mean() > 0.6
@pytest.mark.parametrize("command, message", [
    ("train sudoku-smal", "unknown preset sudoku-smal; did you mean sudoku-small?"),
    ("train sudoku --stpes 3", "unknown argument --stpes; did you mean --steps?"),
    ("train sudoku --steps many", "invalid int value: 'many'"), ("train sudoku --lr nan", "--lr nan: must be at leas"),
    ("train sudoku --T 0", "--T 0: must be at least 1"), ("train sudoku-att --heads 7", "--heads 7: D 512 must divide"),
    ("train sudoku --mixing conv", "must be one of mlp, attention"), ("train sudoku --size 8 --steps 0", "sizes 6, 9"),
    ("train sudoku --data nowhere --steps 0", "nowhere/train.csv: No such file or directory"),
    ("eval sudoku", "there is no run sudoku"), ("solve brokn", "there is no run brokn; did you mean broken?"),
    ("eval broken", "runs/broken/checkpoint.pt is damaged or no checkpoint"),
    ("eval fits --steps 0", "--N_eval 0: must be at least 1"), ("eval fits --D 64", "not fit: size mismatch for token"),
    ("eval sudoku 53", "puzzle is for solve, not for eval"), ("solve sudoku --csv x", "csv is for eval, not for solve"),
    ("train sudoku --resume --overwrite --steps 0", "not allowed with argument"), ("eval x --csv no/x", "no/x cannot"),
    ("fly", "argument command: invalid choice: 'fly'"), ("", "the following arguments are required: command")])
def test_a_mistake_ends_in_one_line(command, message):
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/checkpoint.pt").write_bytes(b"not a checkpoint")
    if "fits" in command:
        assert not trm.main(["train", "sudoku-6x6", *TINY, "--steps", "1", "--run", "fits"])
    with refused(message):
        trm.main(shlex.split(command))
def test_a_checkpoint_with_code_is_refused_and_one_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    evil = type("Evil", (), {"__reduce__": lambda self: (os.mkdir, ("made by a checkpoint",))})
    torch.save({"config": evil()}, "evil.pt")
    with refused("damaged or no checkpoint"):
        trm.load("evil.pt")
    assert not Path("made by a checkpoint").exists()
    trm.save("checkpoint.pt", (model := started()[0]).cfg, model, step=1)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with refused("what was there is kept: No space left"):
        trm.save("checkpoint.pt", model.cfg, model, step=2)
    assert torch.load("checkpoint.pt", weights_only=True)["step"] == 1
def test_the_commands_of_the_readme_exist():
    readme, makefile = (HERE / "README.md").read_text(), (HERE / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    assert (named := set(re.findall(r"\bmake ([a-z][\w-]*)", readme))) and named <= targets
    commands = re.findall(r"python trm\.py ([^\n#`|<]*)", readme.replace("--seed S", "--seed 0"))
    commands += re.findall(r"trm\.py (train [^$\n;\"\\]*)[\n;\"\\]", makefile)
    commands += [f"train sudoku-6x6 {flags}" for flags in re.findall(r"^\w.*\|.*\|(.*)$", makefile, re.M)]
    for command in commands:
        args = trm.parse(shlex.split(command))
        assert args.command != "train" or args.name in trm.PRESETS
    Path("my_puzzle.py").write_text(re.search(r"```python\n(.*?)```", readme, re.S)[1])
    run = subprocess.run([sys.executable, *"my_puzzle.py train maze-small --task flood --steps 2".split(), *TINY],
                         capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert run.returncode == 0 and "a cave" in run.stdout, run.stderr
    for module, name in re.findall(r"`(trm|data)\.(?!py`)(\w+)`", readme):
        assert hasattr({"trm": trm, "data": data}[module], name), name
