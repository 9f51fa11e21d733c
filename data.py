"""Puzzles as tensors: build, read, check, augment and draw them. Everything here is data; the method is in trm.py.

A *task* is a class with the members that trm.py uses, and trm.py knows nothing else about it (Sudoku is the one here):
    length, vocab, ids               grid cells L, vocabulary V, number of puzzle identities
    train, test                      Puzzles, on the device
    draw(B)                          a training batch: puzzles drawn at random, each turned into a symmetric copy
    views(inputs, A)                 A symmetric copies of each puzzle, and what maps their answers back
    parse(text), describe(inputs)    a puzzle typed by the user, and what is known about it
    obeys(inputs, answers)           do the answers follow the rules? no label is needed
    side, box, glyphs, blank         for drawing: cells in a line, shape of a box, a token's letter, token of a blank
Tokens (section 4 of the paper, and the published code): 0 is padding, 1 a blank cell, 2..10 the digits 1..9.
"""
import csv
import difflib
import http.client
import itertools
import math
import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

HEADER = ["source", "question", "answer", "rating"]   # the columns of Sudoku-Extreme, used for every Sudoku file

def refuse(message, word="", known=()):
    """Raise a ValueError; where it is about an unknown word, with the nearest of the known ones, or all of them."""
    match = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {match[0]}?" if match else f"; there are: {', '.join(known)}" if known else ""
    raise ValueError(message + hint)

@dataclass
class Puzzles:
    """A set of puzzles on one device: `inputs` and `labels` [N, L] uint8 tokens, `rating` [N] int32 (guesses)."""
    inputs: torch.Tensor
    labels: torch.Tensor
    rating: torch.Tensor

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, rows):
        return Puzzles(self.inputs[rows], self.labels[rows], self.rating[rows])

    def to(self, device):
        """The same puzzles on another device."""
        return Puzzles(self.inputs.to(device), self.labels.to(device), self.rating.to(device))

# ---- The solver, the generator and the augmentation -----------------------------------------------------------------
# Candidates are bit masks, boards the columns of a matrix [cells, boards]. Every operation below works on thousands of
# boards at once, which is what makes building puzzles quick, on a CPU and on a GPU.

def box_shape(size):
    """(rows, columns) of a box of a Sudoku with `size` digits: 9 -> (3, 3), 6 -> (2, 3)."""
    return math.isqrt(size), size // math.isqrt(size)

def unit_cells(size, device="cpu"):
    """The cells of every row, then of every column, then of every box: int64 [3 * size, size]."""
    h, w = box_shape(size)
    grid = torch.arange(size * size, device=device).view(size, size)
    boxes = grid.view(size // h, h, size // w, w).transpose(1, 2).reshape(size, size)
    return torch.cat([grid, grid.T, boxes])

def search(masks, limit=2, generator=None, width=4096):
    """Propagate and search on many Sudoku boards at once.

    masks: int32 [cells, B], bit d-1 set where digit d is still possible. Each board is searched until `limit` solutions
    are found or none is left. A guess takes the lowest digit of a cell with the fewest candidates, or a random one of
    its digits where `generator` is given. The `width` boards on top of a common stack are worked on together: one that
    moved goes back, a stuck one is split in two (the cell is the digit, the cell is not), a dead one is dropped.
    Returns found [B] (solutions, at least `limit` if it was reached), guesses [B] (splits) and answers [cells, B]
    (digits of one solution, 0 where there is none).
    """
    cells, B = masks.shape
    size, device = math.isqrt(cells), masks.device
    full = (1 << size) - 1
    units = unit_cells(size, device).T.contiguous()                        # [size, 3 * size]
    member = torch.stack([(units == c).any(0).nonzero()[:, 0] for c in range(cells)], 1)   # [3, cells]: units of a cell
    bits = torch.arange(size, device=device, dtype=torch.int32)[:, None]
    popcount = (torch.arange(full + 1, device=device) >> bits & 1).sum(0)
    found, guesses = torch.zeros(2, B, dtype=torch.int64, device=device)
    answers = torch.zeros_like(masks)
    stack, owner = masks, torch.arange(B, device=device)
    while len(owner):
        m, who = stack[:, -width:], owner[-width:]
        stack, owner = stack[:, :-width], owner[:-width]
        fixed = (m & (m - 1)) == 0
        packed = m | torch.where(fixed, m, 0) << 16                        # candidates below, settled digits above
        once, twice = torch.zeros(2, 3 * size, m.shape[1], dtype=torch.int32, device=device)
        for position in units:                                             # bits seen at least once, at least twice
            cell = packed[position]
            twice |= once & cell
            once |= cell
        alive = (m != 0).all(0) & ((once & full == full) & (twice <= full)).all(0) & (found[who] < limit)
        message = (once & ~full) | (once & ~twice & full)                  # settled digits | digits with one place left
        message = message[member[0]] | message[member[1]] | message[member[2]]   # [cells, boards]
        new = torch.where(fixed, m, m & ~(message >> 16))
        single = new & message
        new = torch.where(single != 0, single, new)
        moved = (new != m).any(0)

        done = alive & fixed.all(0)
        found.index_add_(0, who[done], torch.ones_like(who[done]))
        column = torch.full((B,), -1, device=device).scatter_reduce(0, who[done], done.nonzero()[:, 0], "amax")
        answers = torch.where(column < 0, answers, m[:, column])           # of one board, had an owner two at once
        stuck = alive & ~moved & ~done
        board, asks = new[:, stuck], who[stuck]
        guesses.index_add_(0, asks, torch.ones_like(asks))
        choices = popcount[board.long()]
        cell = choices.masked_fill_(choices == 1, size + 1).argmin(0, keepdim=True)
        options = board.gather(0, cell)                                    # [1, boards]
        digit = options & -options
        if generator is not None:
            noise = torch.rand(size, len(asks), device=device, generator=generator)
            digit = (1 << (noise * (options >> bits & 1)).argmax(0, keepdim=True)).int()
        again = alive & moved
        other, guess = (board.scatter(0, cell, choice) for choice in (options & ~digit, digit))
        stack = torch.cat([stack, other, new[:, again], guess], 1)         # guesses on top: depth first
        owner = torch.cat([owner, asks, who[again], asks])
    digits = (answers[None] >> bits[:, None] & 1).mul(bits[:, None] + 1).sum(0)
    return found, guesses, digits

def to_masks(digits, size):
    """Digits [..., cells] (0 = blank) to masks [cells, ...] int32: one bit for a clue, all bits for a blank."""
    full = (1 << size) - 1
    return torch.where(digits > 0, 1 << (digits.int() - 1).clamp(min=0), full).int().movedim(-1, 0)

def generate(size, count, seed=0, device="cpu"):
    """Random minimal Sudoku: `count` different solution grids, and of each as many clues as it takes for one solution.

    A clue of a solved grid may go if no solution has another digit there. Asking this once of every cell, in random
    order, leaves a minimal puzzle: a clue that was needed among more clues is needed among fewer.
    Returns questions, answers [count, cells] (digits, 0 = blank) and ratings [count] (guesses that the solver needs).
    """
    draw = torch.Generator(device).manual_seed(seed)
    grids = torch.empty(0, size * size, dtype=torch.int64, device=device)
    while len(grids) < count:
        empty = to_masks(torch.zeros(count, size * size, device=device), size)
        grids = torch.cat([grids, search(empty, limit=1, generator=draw)[2].T.long()]).unique(dim=0)
    grids = grids[torch.randperm(len(grids), generator=draw, device=device)[:count]]
    questions, rows = grids.clone(), torch.arange(count, device=device)
    order = torch.rand(count, size * size, generator=draw, device=device).argsort(1)
    for cell in order.T:
        masks = to_masks(questions, size)
        masks[cell, rows] = to_masks(torch.zeros_like(cell), size) & ~to_masks(grids[rows, cell], size)
        needed = search(masks, limit=1)[0] > 0
        questions[rows, cell] = torch.where(needed, grids[rows, cell], 0)
    return questions, grids, search(to_masks(questions, size))[1]

def symmetries(B, size, device="cpu"):
    """B random symmetries of Sudoku: digits, bands, rows in bands, stacks, columns in stacks, transposition where boxes
    are square. Returns what `transform` takes: the cell each cell comes from and the token each token becomes."""
    h, w = box_shape(size)

    def lines(block):
        """A random order [B, size] of rows or columns that keeps blocks of `block` lines together."""
        blocks = torch.rand(B, size // block, 1, device=device).argsort(1)
        inner = torch.rand(B, size // block, block, device=device).argsort(2)
        return (blocks * block + inner).flatten(1)
    cells = lines(h)[:, :, None] * size + lines(w)[:, None, :]             # [B, size, size]
    if h == w:
        cells = torch.where(torch.rand(B, 1, 1, device=device) < 0.5, cells.transpose(1, 2), cells)
    digits = torch.rand(B, size, device=device).argsort(1) + 2
    return cells.flatten(1), torch.cat([torch.arange(2, device=device).expand(B, 2), digits], 1)   # [B, L], [B, V]

def transform(grids, cells, tokens):
    """Move the cells of grids [B, L] and rename their tokens, by the rows of cells [B, L] and of tokens [B, V].
    The argsort of both along dim 1 is the way back: first the cells, then the tokens, which do not mind the order."""
    return tokens.gather(1, grids.gather(1, cells).long()).to(grids.dtype)

# ---- Files ----------------------------------------------------------------------------------------------------------
# Every set of puzzles, built here or downloaded, is a folder with train.csv and test.csv in the same format.

def read_csv(path, size, take=0, seed=0):
    """Read and check a Sudoku file (header source,question,answer,rating) in bounded memory.

    take: this many rows, drawn by `seed`; 0 = all, in their order. Returns Puzzles on the CPU.
    Raises ValueError, naming file and line, where a row is no puzzle with its answer, or the file has too few rows.
    """
    rng, cells, kept, rows = np.random.default_rng(seed), size * size, [], []

    def keep():
        """Check the rows read since the last call and keep those with the smallest random keys seen so far."""
        columns = list(zip(*rows))
        keys, lines = rng.random(len(rows)), np.array(columns[0])
        question, answer = (tokens_of(columns[k], size) for k in (1, 2))
        for wrong, what in (((question == 0).any(1), f"the question may hold only 1-{size}, '.' and '0'"),
                            ((answer < 2).any(1), f"the answer may hold only 1-{size}"),
                            (((question > 1) & (question != answer)).any(1), "the answer changes a clue"),
                            (~obeys(torch.from_numpy(answer), size).numpy(), "the answer breaks the rules of Sudoku")):
            if wrong.any():
                raise ValueError(f"{path}, line {lines[wrong.argmax()]}: {what}; correct or remove the row")
        kept.append((keys, lines, question, answer, np.array(columns[3], dtype=np.int32)))
        rows.clear()
        if take:
            merged = [np.concatenate(column) for column in zip(*kept)]
            first = np.sort(np.argsort(merged[0])[:take])
            kept[:] = [[column[first] for column in merged]]

    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file)
            if next(reader, None) != HEADER:
                raise ValueError(f"{path}, line 1: the header must be {','.join(HEADER)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if len(row) != 4:
                    raise ValueError(f"{where}: {len(row)} columns, not {len(HEADER)}")
                for name, text in zip(HEADER[1:3], row[1:3]):
                    if len(text) != cells:
                        raise ValueError(f"{where}: the {name} has {len(text)} characters, not {size}x{size}")
                if not (row[3].isdecimal() and len(row[3]) < 10):
                    raise ValueError(f"{where}: the rating must be a whole number of guesses, not {row[3][:20]!r}")
                rows.append((reader.line_num, row[1], row[2], int(row[3])))
                if len(rows) == 50_000:
                    keep()
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; a data folder holds train.csv and test.csv") from None
    if rows:
        keep()
    count = sum(len(chunk[0]) for chunk in kept)
    if count < max(take, 1):
        raise ValueError(f"{path} has {count} puzzles, {max(take, 1)} are asked for; lower train_size or test_size")
    return Puzzles(*(torch.from_numpy(np.concatenate(column)) for column in list(zip(*kept))[2:]))

def tokens_of(texts, size):
    """Grids as strings of equal length to uint8 tokens [N, cells]: '.' and '0' are blank (1), unknown characters 0."""
    table = np.zeros(256, np.uint8)
    table[[ord("."), ord("0")]] = 1
    table[ord("1"):ord("1") + size] = np.arange(2, size + 2)
    return table[np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8)].reshape(len(texts), -1)

def text_of(tokens, glyphs="?.123456789"):
    """One grid of tokens [cells] as a string, '.' for a blank, '?' for padding."""
    return "".join(glyphs[t] for t in tokens.tolist())

def obeys(answers, size):
    """Has each grid of tokens [N, cells] every digit once in every row, column and box? bool [N]."""
    digits = answers.int()[:, unit_cells(size, answers.device)]            # [N, 3 * size, size]
    return (digits.sort(-1).values == torch.arange(2, size + 2, device=answers.device)).all(-1).all(-1)

def read_lines(task, lines, count, bad):
    """Puzzles [at most count, L] from text, one a line; bad lines are named on stderr and added to `bad`."""
    puzzles = []
    for number, line in enumerate(itertools.chain(lines, [None]), 1):      # None: the end
        try:
            puzzles += [task.parse(line.strip())] if line and line.strip() else []
        except ValueError as error:
            bad.append(number)
            print(f"line {number}: {error}", file=sys.stderr)
        if puzzles and (line is None or len(puzzles) == count):
            yield torch.cat(puzzles)
            puzzles = []

def replace_file(path, write):
    """Call write(PART) for a file beside `path` and move it there: no half file has its name. Raises ValueError."""
    try:
        write(f"{path}.part")
        os.replace(f"{path}.part", path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be written, what was saved before is kept: {error}") from None

def write_csv(path, questions, answers, rating, source):
    """Write puzzles (uint8 tokens) in the format of `read_csv`."""
    rows = [f"{source},{text_of(q)},{text_of(a)},{r}\n" for q, a, r in zip(questions, answers, rating.tolist())]
    replace_file(path, lambda part: Path(part).write_text(",".join(HEADER) + "\n" + "".join(rows)))

def build(folder, size, train_size, test_size, seed, device):
    """Generate puzzles once and keep them in `folder`; no solution grid of test.csv occurs in train.csv."""
    print(f"building {train_size + test_size} random minimal {size}x{size} puzzles ...", end=" ", flush=True)
    began = time.perf_counter()
    questions, answers, rating = (t.cpu() for t in generate(size, train_size + test_size, seed, device))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in ("test.csv", slice(train_size, None)), ("train.csv", slice(train_size)):   # train.csv: all done
        write_csv(folder / name, questions[part] + 1, answers[part] + 1, rating[part], f"random minimal (seed {seed})")
    print(f"{time.perf_counter() - began:.0f} s, kept in {folder}", flush=True)

# ---- The task as trm.py sees it -------------------------------------------------------------------------------------
class Sudoku:
    """Sudoku, 9x9 or 6x6 (boxes of 2 rows and 3 columns).

    cfg: a trm.Config, of which size, train_size, test_size and seed are used. folder: where train.csv and test.csv are,
    or None for built-in puzzles. `train` and `test` are read, and built, when they are first asked for.
    Raises ValueError for another size, and for files that `read_csv` refuses.
    """

    def __init__(self, cfg, folder=None, device="cpu"):
        if cfg.size not in (6, 9):
            raise ValueError(f"--size {cfg.size}: Sudoku comes in size 6 and 9")
        self.cfg, self.device, self.size = cfg, device, cfg.size
        self.length, self.vocab, self.ids = cfg.size ** 2, cfg.size + 2, 1
        self.side, self.box, self.glyphs, self.blank = cfg.size, box_shape(cfg.size), "?.123456789", 1
        self.built_in, self.test_size = folder is None, cfg.test_size
        if self.built_in:
            self.test_size = cfg.test_size or 1000
            folder = f"puzzles/sudoku-{self.size}x{self.size}-{cfg.train_size}+{self.test_size}-seed{cfg.seed}"
        self.folder = Path(folder)

    def read(self, name, take):
        """One file of the folder as Puzzles on the device; built-in puzzles are made where they are missing."""
        if self.built_in and not (self.folder / "train.csv").exists():
            build(self.folder, self.size, self.cfg.train_size, self.test_size, self.cfg.seed, self.device)
        return read_csv(self.folder / name, self.size, take, self.cfg.seed).to(self.device)

    @cached_property
    def train(self):
        """The training puzzles."""
        return self.read("train.csv", self.cfg.train_size)

    @cached_property
    def test(self):
        """The unseen puzzles."""
        return self.read("test.csv", self.test_size)

    def draw(self, B):
        """B training puzzles drawn with replacement, each in a fresh symmetric copy: inputs, labels [B, L] int64."""
        rows, symmetry = torch.randint(len(self.train), (B,), device=self.device), symmetries(B, self.size, self.device)
        return [transform(grids[rows], *symmetry).long() for grids in (self.train.inputs, self.train.labels)]

    def views(self, inputs, A):
        """A copies of each puzzle [P * A, L], the first as it is, the others symmetric; and what maps answers back."""
        inputs = inputs.repeat_interleave(A, 0)
        symmetry = symmetries(len(inputs), self.size, inputs.device)
        for part in symmetry:
            part[::A] = torch.arange(part.shape[1], device=part.device)
        back = [part.argsort(1) for part in symmetry]
        return transform(inputs, *symmetry), lambda answers: transform(answers, *back)

    def obeys(self, inputs, answers):
        """Do answers [N, L] keep the clues of inputs [N, L] and the rules? bool [N]."""
        return obeys(answers, self.size) & ((inputs == 1) | (inputs == answers)).all(1)

    def parse(self, text):
        """A puzzle typed as one line to tokens [1, L]. Raises ValueError naming what is wrong and where."""
        if len(text) != self.length:
            raise ValueError(f"the puzzle has {len(text)} characters, a {self.size}x{self.size} grid has {self.length}")
        tokens = torch.from_numpy(tokens_of([text], self.size))
        if (bad := (tokens[0] == 0).nonzero()[:, 0].tolist()):
            raise ValueError(f"{self.cell(bad[0])}: {text[bad[0]]!r} is no digit 1-{self.size}, '.' or '0'")
        for unit in unit_cells(self.size).tolist():
            seen = {}
            for cell in (c for c in unit if text[c] not in ".0"):
                first = seen.setdefault(text[cell], cell)
                if first != cell:
                    raise ValueError(f"the puzzle contradicts itself: {self.cell(first)} and {self.cell(cell)} hold "
                                     f"{text[cell]}")
        return tokens

    def cell(self, index):
        """A cell in words."""
        return f"row {index // self.size + 1}, column {index % self.size + 1}"

    def describe(self, inputs):
        """What the solver knows of a puzzle [1, L]: words, and the answer [L] where there is just one, else None."""
        found, guesses, answer = search(to_masks(inputs.cpu() - 1, self.size))
        if found == 1:
            return f"exactly one solution, {guesses.item()} guesses", (answer[:, 0] + 1).byte()
        return "no solution" if found == 0 else "several solutions", None

TASKS = {"sudoku": Sudoku}

# ---- Drawing --------------------------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "34", "wrong": "7;33", "plain": ""}   # bold, blue, yellow reversed
FILL = {"given": "#cccccc", "right": "#8fd3f4", "wrong": "#f0a030", "plain": "#ffffff"}   # for the colour-blind too

def cells(task, inputs, answer, label=None, last=None):
    """Of each cell of one grid (tokens [L]): row, column, letter, is it given, right, wrong or (where no label tells)
    plain, and has it changed since `last`."""
    for i, (x, a) in enumerate(zip(inputs.tolist(), answer.tolist())):
        kind = "given" if x != task.blank else "plain" if label is None else "right"
        kind = "wrong" if label is not None and a != label[i] else kind
        yield *divmod(i, task.side), task.glyphs[a], kind, last is not None and bool(a != last[i])

def show(task, inputs, answer, label=None):
    """One grid (tokens [L]) as text; on a terminal, without NO_COLOR: clues bold, right cells blue, wrong yellow."""
    (h, w), lines, colour = task.box, [], sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for r, c, text, kind, _ in cells(task, inputs, answer, label):
        if c == 0 and r and r % h == 0:
            lines.append("+".join(["-" * (2 * w + 1)] * (task.side // w)))
        if c == 0:
            lines.append(" ")
        styled = f"\033[{ANSI[kind]}m{text}\033[0m" if colour and ANSI[kind] else text
        lines[-1] += ("| " if c and c % w == 0 else "") + styled + " "
    return "\n".join(lines)

def film(task, inputs, label, panels, across=8):
    """An SVG of (answer [L], caption) panels, `across` in a line: the supervision steps of one puzzle. Given cells are
    grey, right ones blue, wrong ones orange; those that have just changed are framed in black."""
    side, out, (h, w) = 20 * task.side, [], task.box
    for k, (answer, caption) in enumerate(panels):
        y, x = k // across * (side + 50) + 10, k % across * (side + 20) + 10
        out.append(f'<g class="panel" transform="translate({x} {y})">')
        for r, c, text, kind, new in cells(task, inputs, answer, label, panels[max(k - 1, 0)][0]):
            x, y = 20 * c + c // w * 2, 20 * r + r // h * 2                # a gap between boxes
            out.append(f'<rect x="{x + new}" y="{y + new}" width="{19 - 2 * new}" height="{19 - 2 * new}" '
                       f'fill="{FILL[kind]}"{new * """ stroke="black" stroke-width="2" """}/>'
                       f'<text x="{x + 9.5}" y="{y + 14.5}">{text}</text>')
        out.append(f'<text x="{side / 2}" y="{side + 25}">{caption}</text></g>')
    width, height = min(len(panels), across) * (side + 20) + 10, -(-len(panels) // across) * (side + 50)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            f'font-size="14" text-anchor="middle"><rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(out) + "\n</svg>\n")

def watch(task, inputs, steps, all_steps=False, svg=None):
    """Print how a puzzle [1, L] is solved. steps yields after each supervision step the answer [L], its halting
    probability, and what z decodes to [L], or None; without all_steps, an answer that is sure and unchanged is the
    last. Unchanged grids are not printed again. svg: a file for `film`."""
    (known, label), last, panels = task.describe(inputs), inputs[0], []
    print(f"\na puzzle with {known}:\n{show(task, last, last)}")
    for k, (answer, probability, latent) in enumerate(steps, 1):
        right = "" if label is None else f", {(answer == label).sum()} of {task.length} cells right"
        print(f"\nstep {k}: halting probability {probability:.3f}{right}")
        changed = (answer != last).any()
        if changed:
            print(show(task, inputs[0], answer, label))
        if latent is not None:
            print(f"z decodes to\n{show(task, inputs[0], latent, label)}")
        panels.append((answer, f"step {k}: {probability:.3f}"))
        last = answer
        if probability > 0.5 and not changed and not all_steps:
            break
    print("\nsolved: the rules hold" if task.obeys(inputs, last[None]) else "\nnot solved: the rules do not hold")
    if svg:
        Path(svg).write_text(film(task, inputs[0], label, panels))

def print_table(rows, path=None):
    """Print a table, its first row the names of the columns; write it to the CSV file `path` too."""
    print("\n".join("  ".join(f"{cell:>{len(name)}}" for cell, name in zip(row, rows[0])) for row in rows))
    if path:
        Path(path).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))

# ---- Downloads ------------------------------------------------------------------------------------------------------
def download(url, path):
    """Fetch `url` to `path` with progress. What has come waits in PATH.part: a cut download goes on from there; only
    a file of the size that the server announced, with a puzzle file's header, gets its name. Raises ValueError."""
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            if reply.status != 206:                                        # the server sends the whole file
                have = 0
            if "Content-Length" not in reply.headers:
                raise ValueError(f"{url}: the server does not tell the file's size; use another mirror (HF_ENDPOINT)")
            total, told = have + int(reply.headers["Content-Length"]), 0.0
            with open(part, "ab" if have else "wb") as file:
                while block := reply.read(1 << 20):
                    have += file.write(block)
                    if time.monotonic() - told > 1 or have == total:
                        told = time.monotonic()
                        print(f"\r{path.name}: {have / 1e6:.1f} of {total / 1e6:.1f} MB", end="", file=sys.stderr)
        print(file=sys.stderr)
    except urllib.error.HTTPError as error:
        if error.code == 416:                                              # there is nothing behind what is here
            part.unlink()
            raise ValueError(f"{part} did not fit the file at {url} and was removed; run the command again") from None
        raise ValueError(f"{url}: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: {error}; run the command again to go on from {have / 1e6:.1f} MB") from None
    if have != total:
        raise ValueError(f"{url}: cut at {have} of {total} bytes; run the command again to go on from there")
    with open(part, "rb") as file:
        if file.readline().strip() != ",".join(HEADER).encode():
            part.unlink()
            raise ValueError(f"{url} is not a puzzle file: it does not begin with {','.join(HEADER)}; removed")
    os.replace(part, path)

def main():
    """`python data.py sudoku-extreme`: download it into puzzles/sudoku-extreme; HF_ENDPOINT names a mirror."""
    if sys.argv[1:] != ["sudoku-extreme"]:
        raise ValueError("usage: python data.py sudoku-extreme")
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for name in "train.csv", "test.csv":
        path = Path("puzzles") / "sudoku-extreme" / name
        if path.exists():
            print(f"{path} is there already")
        else:
            download(f"{base}/datasets/sapientinc/sudoku-extreme/resolve/main/{name}", path)

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        sys.exit(2)
