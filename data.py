# SPDX-License-Identifier: MIT
"""Sudoku, maze and ARC puzzles as tensors on the device: build or read them, augment and show them.

A task (Sudoku, Maze and ARC, below) has what trm.py asks for:

    length, vocab, identities    cells L, tokens V, puzzle identities (ARC: task times augmentation)
    train, test                  Puzzles on the device
    fingerprint, compare(other)  what a model is trained on, held against that of a checkpoint
    draw(B)                      a training batch (inputs, labels, ids) of random symmetric copies
    copies(inputs, ids, A)       A symmetric copies of each puzzle and how to undo them, for voting
    obeys(puzzles, answers)      which answers are right, by the rules where there are any
    parse(text), describe(p)     a puzzle that was typed in; words on it, and its answer
    report(attempts, ranks)      what else is to be said about the answers to the test puzzles
"""

import csv
import hashlib
import json
import os
import random
import sys
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


@dataclass
class Puzzles:
    """N puzzles on one device."""

    inputs: torch.Tensor  # [N, L] uint8 tokens
    labels: torch.Tensor  # [N, L] tokens, 0 where no answer is known
    ids: torch.Tensor  # [N] int64, puzzle identities

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, rows):
        return Puzzles(self.inputs[rows], self.labels[rows], self.ids[rows])


# ---- Solvers of many puzzles at once -------------------------------------------------------------
# A board, bool [digits, cells], tells which digits are still possible in a cell of a Sudoku.
# `units`, float32 [cells, 3 * size], is 1 where a cell lies in a row, column or box, else 0.
# In mazes, N sets of cells are bool [N, side, side].
def unit_matrix(size, device="cpu"):
    """The `units` of a Sudoku, 9x9 with boxes of 3x3 or 6x6 with boxes of 2 rows, 3 columns."""
    row = torch.arange(size, device=device).repeat_interleave(size)
    column = torch.arange(size, device=device).repeat(size)
    box = row // (size // 3) * (size // 3) + column // 3
    return torch.cat([F.one_hot(unit) for unit in (row, column, box)], dim=1).float()


def to_boards(digits, size):
    """Digits [N, cells], 0 for a blank where all digits may be, to boards [N, size, cells]."""
    clues = F.one_hot(digits.long(), size + 1)[..., 1:].bool().transpose(1, 2)
    return clues | (digits == 0)[:, None]


def propagate(boards, units):
    """One round of the two simple rules. Returns new boards, and which boards are possible [N]."""
    single = boards.sum(1, keepdim=True) == 1  # [N, 1, cells], cells with one digit left
    places = boards.float() @ units  # [N, digits, units], in how many cells it may be
    settled = (boards & single).float() @ units  # in how many it is
    possible = ((places > 0) & (settled < 2)).all((1, 2)) & boards.any(1).all(1)
    # A digit that is settled in a cell leaves the other cells of its row, column and box.
    left = boards & (single | (settled @ units.T == 0))
    # A digit that has one place left in a row, column or box goes there.
    last_place = left & ((places == 1).float() @ units.T > 0)
    return torch.where(last_place.any(1, keepdim=True), last_place, left), possible


def search(boards, limit=2, at_random=False, width=512, max_guesses=1_000_000_000):
    """Solve N Sudoku at once, depth first, each until it has `limit` solutions or `max_guesses`.

    Returns the number of solutions [N]; one of them as digits [N, cells], 0 if there is none; and
    the guesses [N], exact with limit 2 where there is one solution.
    """
    N, size, cells = boards.shape
    units = unit_matrix(size, boards.device)
    found, guesses = torch.zeros(2, N, dtype=torch.long, device=boards.device)
    answers = found[:, None].repeat(1, cells)
    stack, owner = boards, torch.arange(N, device=boards.device)  # which of the N a board is of
    while len(stack) > 0:
        top, who = stack[-width:], owner[-width:]  # only these, which bounds the memory
        stack, owner = stack[:-width], owner[:-width]
        new, alive = propagate(top, units)
        alive &= (found[who] < limit) & (guesses[who] < max_guesses)
        moved = (new != top).any((1, 2))
        solved = alive & (top.sum(1) == 1).all(1)
        found += who[solved].bincount(minlength=N)
        chosen = torch.full_like(found, -1)  # [N], the row of `top` that is the answer, -1: none
        chosen = chosen.scatter_reduce(0, who[solved], solved.nonzero()[:, 0], "amax")
        answers[chosen >= 0] = top[chosen[chosen >= 0]].int().argmax(1) + 1
        # Where nothing moves, guess: in a cell with the fewest candidates it is a digit, or not.
        guessing = alive & ~moved & ~solved
        guesses += who[guessing].bincount(minlength=N)
        stuck = new[guessing]
        candidates = stuck.sum(1)
        cell = candidates.masked_fill(candidates == 1, size + 1).argmin(1)  # none that is settled
        is_cell = F.one_hot(cell, cells).bool()[:, None]  # [stuck, 1, cells]
        preference = torch.arange(size, 0, -1, device=boards.device)  # the lowest digit
        if at_random:
            preference = torch.rand(len(stuck), size, device=boards.device)
        digit = ((stuck & is_cell).any(2) * preference).argmax(1)
        is_digit = is_cell & F.one_hot(digit, size).bool()[:, :, None]
        again = alive & moved
        stack = torch.cat([stack, stuck & ~is_digit, new[again], stuck & (is_digit | ~is_cell)])
        owner = torch.cat([owner, who[guessing], who[again], who[guessing]])
    return found.clamp(max=limit), answers, guesses


def distances(floor, start):
    """Moves from the start to each cell, breadth first. int64 [N, side, side], -1: no way."""
    distance = torch.where(start, 0, -1)
    layer, moves = start, 0
    while layer.any():
        moves += 1
        around = F.pad(layer, (1, 1, 1, 1))
        vertical = around[:, :-2, 1:-1] | around[:, 2:, 1:-1]
        horizontal = around[:, 1:-1, :-2] | around[:, 1:-1, 2:]
        layer = (vertical | horizontal) & floor & (distance < 0)
        distance[layer] = moves
    return distance


def random_cell(cells):
    """One cell of each set, at random; none of an empty set."""
    noise = torch.rand(cells.shape, device=cells.device) * cells
    highest = noise.flatten(1).argmax(1)
    return cells & F.one_hot(highest, cells[0].numel()).bool().view_as(cells)


# ---- What the tasks share ------------------------------------------------------------------------
COLUMNS = "source,question,answer,rating"  # of the public data sets, and of ours
BLOCK = 1000  # puzzles that are generated together


def transform(grids, cells, tokens):
    """Grids [B, L] with cell i taken from cells[:, i] and token t turned into tokens[:, t]."""
    return tokens.gather(1, grids.gather(1, cells).long())


def square_symmetries(side, device):
    """The 8 symmetries of a square, itself first, as `transform` takes cells: [8, L]."""
    grid = torch.arange(side * side, device=device).view(side, side)
    return torch.stack([g.rot90(turns).flatten() for g in (grid, grid.T) for turns in range(4)])


def hashes(grids):
    """A number for each grid [N, L], the same on every machine: a list of N ints."""
    rows = [row.tobytes() for row in grids.byte().cpu().numpy()]
    return [int.from_bytes(hashlib.blake2b(row, digest_size=7).digest(), "big") for row in rows]


def replace_file(path, content):
    """Write text beside `path`, then rename it: a crash never leaves half a file at `path`."""
    part = Path(f"{path}.{os.getpid()}.part")  # another process may do the same
    part.write_text(content)
    part.replace(path)


class Grids:
    """What Sudoku and Maze have in common: they read train.csv and test.csv, or build them."""

    def __init__(self, cfg, device, letters, suffix=""):
        self.cfg, self.device = cfg, device
        self.side, self.length = cfg.size, cfg.size**2
        self.letters = letters  # of the tokens, as published
        self.vocab, self.identities = len(letters), 1
        self.shape = f"{cfg.size}x{cfg.size}"
        self.folder = Path(cfg.data or f"puzzles/{cfg.task}-{self.shape}{suffix}-seed{cfg.seed}")

    @cached_property
    def train(self):
        """train_size puzzles of train.csv: with cfg.data drawn by the seed, else the first."""
        return self.read("train", self.cfg.train_size, self.cfg.seed)

    @cached_property
    def test(self):
        """The first test_size puzzles of test.csv (0: all, or 1000), whatever the seed."""
        return self.read("test", self.cfg.test_size, seed=0)

    def build(self, path, split, count, seed):
        """Generate puzzles, block by block, until the file has `count` of them."""

        def wanted(grids):  # a hash of the answer or maze decides: no puzzle is in both
            parity = torch.tensor(hashes(grids), device=grids.device) % 2
            return parity == (split == "test")

        lines = path.read_text().splitlines() if path.exists() else [COLUMNS]  # with the header
        path.parent.mkdir(parents=True, exist_ok=True)
        while len(lines) <= count:
            print(f"building {path}, puzzles {len(lines)} to {len(lines) + BLOCK - 1}", flush=True)
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(f"{split} {seed} {len(lines)}".encode()))
                puzzles = self.generate(BLOCK, wanted)
            for *grids, rating in zip(*(part.tolist() for part in puzzles)):
                question, answer = ("".join(self.letters[t] for t in grid) for grid in grids)
                lines.append(f"seed {seed},{question},{answer},{rating}")
            replace_file(path, "\n".join([*lines, ""]))

    def read(self, split, count, seed):
        """Puzzles of a file. Raises ValueError, naming the line that is no puzzle."""
        path = self.folder / f"{split}.csv"
        if not self.cfg.data:
            count = count or BLOCK
            self.build(path, split, count, seed)
        if not path.exists():
            raise ValueError(f"there is no '{path}'; a data folder holds train.csv and test.csv")
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            header = next(csv.reader([file.readline(1000)]))
            lines = [(number, line) for number, line in enumerate(file, 2) if line.strip()]
        if not {"question", "answer"} <= set(header):
            raise ValueError(f"{path}, line 1: the header is {','.join(header)!r}, not {COLUMNS!r}")
        if len(lines) < max(count, 1):
            enough = f"--{split}_size {max(count, 1)}"
            raise ValueError(f"{path} has {len(lines)} puzzles, fewer than {enough}")
        if self.cfg.data and split == "train":
            lines = sorted(random.Random(seed).sample(lines, count))
        rows = []
        for number, line in lines[: count or None]:
            try:
                row = next(csv.DictReader([line], header, restval=""))
                question = self.tokens(row["question"], self.clues)
                answer = self.tokens(row["answer"], self.letters[1:])
                rows.append((question, answer))
            except (ValueError, csv.Error) as error:
                raise ValueError(f"{path}, line {number}: {error}; correct or remove it") from None
        puzzles = self.puzzles(rows)
        right = self.obeys(puzzles, puzzles.labels).tolist()
        if not all(right):
            number, _ = lines[right.index(False)]
            raise ValueError(f"{path}, line {number}: the answer must {self.rule}; correct it")
        return puzzles

    def puzzles(self, rows):
        """Rows (tokens of the question, tokens of the answer) as Puzzles."""
        inputs, labels = torch.tensor(rows, dtype=torch.uint8, device=self.device).unbind(1)
        ids = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        return Puzzles(inputs, labels, ids)

    def tokens(self, text, allowed):
        """A grid as a string to a list of tokens. Raises ValueError, naming the cell."""
        if len(text) != self.length:
            raise ValueError(f"a {self.shape} grid has {self.length} characters, not {len(text)}")
        for cell, letter in enumerate(text):
            if letter not in allowed:
                place = f"row {cell // self.side + 1}, column {cell % self.side + 1}"
                raise ValueError(f"{place}: {letter!r} is none of {allowed!r}")
        return [self.letters.find(letter) for letter in text.replace("0", ".")]

    def parse(self, text):
        """A puzzle typed in one line, labelled where it has one answer. Raises ValueError."""
        tokens = self.tokens(text, self.clues)
        puzzle = self.puzzles([(tokens, tokens)])
        _, puzzle.labels = self.describe(puzzle)
        return puzzle

    @cached_property
    def fingerprint(self):
        """Hashes of the training questions and of their answers, a list of 2 * N ints."""
        return hashes(self.train.inputs) + hashes(self.train.labels)

    def compare(self, fingerprint):
        """Say how many of the test puzzles a model with this fingerprint was trained on."""
        known = set(fingerprint)
        both = zip(hashes(self.test.inputs), hashes(self.test.labels))
        rows = [row for row, numbers in enumerate(both, 1) if known & set(numbers)]
        if rows:
            found = f"{len(rows)} of {len(self.test)} puzzles in {self.folder / 'test.csv'}"
            print(f"{found}, first number {rows[0]}, are trained on (same question or answer)")

    def copies(self, inputs, ids, A):
        """A copies of each puzzle, side by side [P * A, L]; their ids; what maps answers back."""
        symmetry = self.symmetries(A)  # cells [A, L] and tokens [A, V], the same for all puzzles
        for part in symmetry:  # the first copy is the puzzle itself
            part[0] = torch.arange(part.shape[1], device=self.device)
        symmetry = [part.repeat(len(inputs), 1) for part in symmetry]
        inverse = [part.argsort(1) for part in symmetry]
        inputs = transform(inputs.repeat_interleave(A, 0), *symmetry)
        return inputs, ids.repeat_interleave(A), lambda answers: transform(answers, *inverse)

    def report(self, attempts, ranks):
        """Nothing: the table of results has it all."""


class Sudoku(Grids):
    """Sudoku of 9x9, or of 6x6 with boxes of 2 rows and 3 columns. Raises ValueError."""

    rule = "keep the clues and have every digit once in each row, column and box"

    def __init__(self, cfg, device):
        if cfg.size not in (6, 9):
            raise ValueError(f"--size {cfg.size}: Sudoku is 6x6 or 9x9")
        letters = "?.123456789"[: cfg.size + 2]  # padding, blank, digits
        super().__init__(cfg, device, letters)
        self.clues = f"{letters[1:]}0"
        self.box = (cfg.size // 3, 3)

    def generate(self, count, wanted):
        """Random puzzles with one solution and no clue too many: questions, answers and guesses."""
        empty = torch.zeros(count, self.length, dtype=torch.long, device=self.device)
        answers = empty[:0]
        while len(answers) < count:
            grids = search(to_boards(empty, self.side), limit=1, at_random=True)[1]
            answers = torch.cat([answers, grids[wanted(grids)]]).unique(dim=0)
        answers = answers[torch.randperm(len(answers), device=self.device)[:count]]
        # Take out each clue, in random order, if no solution has another digit in its cell. Once
        # is enough: a clue that is needed among more clues is needed among fewer.
        questions = answers.clone()
        rows = torch.arange(count, device=self.device)
        for cell in torch.rand(answers.shape, device=self.device).argsort(1).T:
            clue = answers[rows, cell]
            boards = to_boards(questions, self.side)
            boards[rows, :, cell] = True
            boards[rows, clue - 1, cell] = False  # any digit but the right one
            needed = search(boards, limit=1)[0] > 0
            questions[rows, cell] = torch.where(needed, clue, 0)
        _, _, guesses = search(to_boards(questions, self.side))
        return questions + 1, answers + 1, guesses

    def symmetries(self, B):
        """Random symmetries: of digits, bands, rows, stacks, columns; half of 9x9 is transposed."""

        def shuffled(*shape):  # random permutations along the last dimension
            return torch.rand(B, *shape, device=self.device).argsort(-1)

        def lines(block):  # a random order of the blocks of lines, and of the lines in each block
            blocks = shuffled(self.side // block)[:, :, None]
            return (blocks * block + shuffled(self.side // block, block)).flatten(1)

        h, w = self.box
        cells = lines(h)[:, :, None] * self.side + lines(w)[:, None, :]  # [B, side, side]
        if h == w:
            transposed = torch.rand(B, 1, 1, device=self.device) < 0.5
            cells = torch.where(transposed, cells.transpose(1, 2), cells)
        fixed = torch.arange(2, device=self.device).expand(B, 2)  # padding and blank
        return cells.flatten(1), torch.cat([fixed, shuffled(self.side) + 2], dim=1)

    def draw(self, B):
        """A batch, drawn with replacement: inputs, labels [B, L] int64, ids [B]."""
        batch = self.train[torch.randint(len(self.train), (B,), device=self.device)]
        symmetry = self.symmetries(B)
        return transform(batch.inputs, *symmetry), transform(batch.labels, *symmetry), batch.ids

    def counts(self, grids):
        """In grids [N, L], how often a row, column or box has a digit: [N, digits, 3 * size]."""
        units = unit_matrix(self.side, grids.device)
        return torch.stack([(grids == digit).float() @ units for digit in range(2, self.vocab)], 1)

    def obeys(self, puzzles, answers):
        """Do answers [N, L] keep the clues, with each digit once in a row, column and box? [N]"""
        kept = (puzzles.inputs == 1) | (puzzles.inputs == answers)
        return kept.all(1) & (self.counts(answers) == 1).all((1, 2))

    def describe(self, puzzle):
        """Words on a puzzle, and its answer [1, L], 0 if it has not just one. Raises ValueError."""
        for _, digit, unit in (self.counts(puzzle.inputs) > 1).nonzero().tolist():
            where = f"{['row', 'column', 'box'][unit // self.side]} {unit % self.side + 1}"
            raise ValueError(f"two equal clues, {digit + 1}, in {where}")
        board = to_boards(puzzle.inputs.long() - 1, self.side)
        found, answer, guesses = search(board, width=128, max_guesses=20_000)  # most take < 2000
        if found < 2 and guesses >= 20_000:
            return "a puzzle that takes over 20,000 guesses", torch.zeros_like(answer)
        one = f"one solution, {guesses.item()} guesses"
        number = ["no solution", one, "several solutions"][found]
        return f"a puzzle with {number}", (answer + 1) * (found == 1)


class Maze(Grids):
    """Mazes: mark the cells on a shortest path from S to G."""

    rule = "mark with 'o' a shortest path from the S to the G and change nothing else"
    clues = "# SG"

    def __init__(self, cfg, device):
        # The letters are of padding, wall, floor, start, goal and path.
        super().__init__(cfg, device, "?# SGo", f"-over{cfg.min_path}")
        self.box = (cfg.size, cfg.size)

    def generate(self, count, wanted):
        """Random mazes, paths over min_path: questions, answers, moves. Raises ValueError."""
        mazes = torch.zeros(0, self.length, dtype=torch.long, device=self.device)
        tries = 0
        while len(mazes) < count:
            density = 0.3 + 0.2 * torch.rand(1024, 1, 1, device=self.device)
            floor = torch.rand(1024, self.side, self.side, device=self.device) > density
            # For long paths start far away: at a cell farthest from a random one.
            distance = distances(floor, random_cell(floor))
            start = random_cell((distance == distance.amax((1, 2), keepdim=True)) & floor)
            goal = random_cell(distances(floor, start) > self.cfg.min_path)
            new = (1 + floor.long() + start + 2 * goal)[goal.any((1, 2))].flatten(1)
            mazes = torch.cat([mazes, new[wanted(new)]]).unique(dim=0)
            tries += 1
            if tries > 200 + len(mazes):
                raise ValueError(f"too few {self.shape} mazes have over {self.cfg.min_path} moves")
        mazes = mazes[torch.randperm(len(mazes), device=self.device)[:count]]
        return mazes, *self.mark(mazes)

    def mark(self, mazes):
        """Mazes [N, L] with a shortest path marked, and its moves [N], -1 where there is none."""
        grids = F.pad(mazes.view(-1, self.side, self.side), (1, 1, 1, 1))  # with a margin
        distance = distances(grids > 1, grids == 3).flatten(1)
        here = (grids == 4).flatten(1).int().argmax(1, keepdim=True)  # [N, 1]
        moves = distance.gather(1, here)  # [N, 1]
        path = torch.zeros_like(distance, dtype=torch.bool)
        width = self.side + 2
        steps = torch.tensor([-width, -1, 1, width], device=mazes.device)  # up, left, right, down
        # From the goal back, by the first of the steps that comes nearer to the start.
        for far in range(int(moves.max()), 1, -1):
            around = here + steps * (moves > 0)  # [N, 4]; where there is no way it stays
            nearer = distance.gather(1, around) == far - 1
            step = steps[nearer.int().argmax(1, keepdim=True)]
            here = torch.where(moves >= far, here + step, here)
            path.scatter_(1, here, moves >= far)
        path = path.view_as(grids)[:, 1:-1, 1:-1].flatten(1)
        return torch.where(path & (mazes == 2), 5, mazes), moves[:, 0]

    def symmetries(self, A):
        """The 8 symmetries of the square, again and again."""
        cells = square_symmetries(self.side, self.device)[torch.arange(A, device=self.device) % 8]
        return cells, torch.arange(self.vocab, device=self.device).repeat(A, 1)

    @cached_property
    def turned(self):
        """The training mazes in all their 8 symmetric copies: inputs and labels [8 * N, L]."""
        symmetries = square_symmetries(self.side, self.device)
        inputs = self.train.inputs[:, symmetries].flatten(0, 1)
        if self.cfg.data:
            return inputs, self.train.labels[:, symmetries].flatten(0, 1)
        # Ours are marked anew: of several paths `mark` prefers one, turned marks would another.
        return inputs, self.mark(inputs)[0]

    def draw(self, B):
        """A batch, drawn with replacement: inputs, labels [B, L] int64, ids [B]."""
        inputs, labels = self.turned
        rows = torch.randint(len(inputs), (B,), device=self.device)
        return inputs[rows].long(), labels[rows].long(), torch.zeros_like(rows)

    def obeys(self, puzzles, answers):
        """Do answers [N, L] mark a shortest path, any one, and change nothing else? [N]"""
        mazes = puzzles.inputs
        marked = (mazes == 2) & (answers == 5)
        kept = ((answers == mazes) | marked).all(1)
        has_ends = ((mazes == 3).sum(1) == 1) & ((mazes == 4).sum(1) == 1)
        _, shortest = self.mark(mazes)
        _, along_marks = self.mark(torch.where(answers == 2, 1, answers))
        return kept & has_ends & (marked.sum(1) + 1 == shortest) & (along_marks == shortest)

    def describe(self, puzzle):
        """Words on one maze, and its answer [1, L], 0 if it has none. Raises ValueError."""
        if (puzzle.inputs == 3).sum() != 1 or (puzzle.inputs == 4).sum() != 1:
            raise ValueError("a maze has one S and one G")
        answer, moves = self.mark(puzzle.inputs)
        words = f"a maze of {moves.item()} moves" if moves >= 0 else "a maze with no way"
        return words, answer * (moves >= 0)


# ---- ARC-AGI -------------------------------------------------------------------------------------
# A grid lies in a frame of side x side cells, with end marks (1) below and beside it.
def frame(grids, down, right, side):
    """Move grids [B, L] from anywhere to `down` and `right` of the top left. Mark their ends."""
    inside = grids.view(-1, side, side) > 1
    top, left = inside.any(2).int().argmax(1), inside.any(1).int().argmax(1)
    line = torch.arange(side, device=grids.device)
    rows = (line + (top - down)[:, None]) % side  # [B, side], where each row comes from
    columns = (line + (left - right)[:, None]) % side
    cells = rows[:, :, None] * side + columns[:, None, :]  # [B, side, side]
    grids = grids.gather(1, cells.flatten(1)).view(-1, side, side)
    inside = grids > 1
    ends = F.pad(inside, (0, 0, 1, -1)) | F.pad(inside, (1, -1))  # below and beside
    return torch.where(inside, grids, ends.to(grids.dtype)).flatten(1)


def crop(frames, side):
    """The grids [B, L], 0 around: the largest rectangle at the top left without mark or padding."""
    frames = frames.view(-1, side, side)
    whole = (frames > 1).int().cummin(1).values.cummin(2).values  # is all from the corner a grid?
    line = torch.arange(1, side + 1, device=frames.device)
    corner = (whole * line[:, None] * line).flatten(1).argmax(1)[:, None, None]  # its last cell
    inside = (line[:, None] <= corner // side + 1) & (line <= corner % side + 1) & (frames > 1)
    return torch.where(inside, frames, 0).flatten(1)


def read_json(path):
    """The dict in a JSON file. Raises ValueError, naming the file."""
    try:
        return dict(json.loads(path.read_text("utf-8-sig")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: {error}; `make arc` downloads the tasks") from None


def check(grids):
    """Raise ValueError unless all are grids of an ARC task: lists of rows of colours."""
    for rows in grids:
        grid = np.array(rows)
        if grid.ndim != 2 or grid.dtype.kind != "i" or max(grid.shape) > 30 or (grid // 10).any():
            raise ValueError(f"{str(rows)[:60]} is not a rectangle of 1 to 30x30 numbers 0 to 9")


def read_set(folder, name, is_last):
    """Yield name, training and test pairs (input, output) of each task. Raises ValueError."""
    path = folder / f"arc-agi_{name}_challenges.json"
    solutions_path = folder / f"arc-agi_{name}_solutions.json"
    tasks = read_json(path)
    solutions = read_json(solutions_path) if solutions_path.exists() else tasks
    for key in sorted(tasks.keys() | solutions.keys()):
        try:
            train = [(pair["input"], pair["output"]) for pair in tasks[key]["train"]]
            inputs = [pair["input"] for pair in tasks[key]["test"]]
            if not train or not inputs:
                raise ValueError("no train pairs, or no test pairs")
            outputs = solutions[key]
            if solutions is tasks:
                outputs = [pair.get("output") for pair in tasks[key]["test"]]
            if len(outputs) != len(inputs):
                raise ValueError(f"{len(inputs)} test inputs, but {len(outputs)} solutions")
            # An output may be None, not known, among the unseen ones only.
            told = [output for output in outputs if output is not None or not is_last]
            check([*sum(train, ()), *inputs, *told])
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            where = f"{path}, task {key} (or its solution)"
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from None
        yield key, train, [*zip(inputs, outputs)]


class ARC:
    """ARC-AGI: each task has a rule of its own, shown by pairs of grids. Raises ValueError."""

    vocab = 12
    letters = " |0123456789"  # padding, end mark, colours

    def __init__(self, cfg, device):
        self.cfg, self.device = cfg, device
        self.side, self.length = cfg.size, cfg.size**2
        self.per_task = 1 + cfg.augmentations  # identities of a task
        self.names = []  # of the tasks that are small enough
        self.entries = {}  # of submission.json: the tasks of the last set, their test inputs
        sets = cfg.sets.split(",")
        if len(set(sets)) < len(sets):
            raise ValueError(f"--sets {cfg.sets}: a set that is there twice would be trained on")
        if {"training2", "evaluation2"} & set(sets) and {"training", "evaluation"} & set(sets):
            raise ValueError(f"--sets {cfg.sets}: ARC-AGI-2 trains on what ARC-AGI-1 evaluates")
        shown, unseen = self.read(sets)
        unseen_pairs = [row[1:] for row in unseen]
        leaks = [row for row in shown if row[1:] in unseen_pairs]  # some tasks have two names
        if leaks:
            names = ", ".join(sorted({self.names[number] for number, _, _ in leaks}))
            print(f"left out of training: {len(leaks)} pairs of {names} that are unseen ones, too")
            shown = [row for row in shown if row not in leaks]
        if not shown or not unseen:
            raise ValueError(f"no task of --sets {cfg.sets} fits into --size {cfg.size}")
        self.make_identities(shown)
        self.train = self.puzzles(shown)
        self.test = self.puzzles(unseen)
        self.pair_counts = torch.tensor(np.bincount([row[0] for row in shown]), device=device)
        self.trained = torch.tensor(sorted({row[0] for row in shown}), device=device)  # with pairs

    def read(self, sets):
        """Rows (number of the task, input, output): to train on, and test pairs of the last set."""
        shown, unseen = [], []
        for name in sets:
            is_last = name == sets[-1]
            for key, train, test in read_set(Path(self.cfg.data or "puzzles/arc"), name, is_last):
                if is_last:
                    self.entries[key] = len(test)
                grids = [grid for pair in train + test for grid in pair if grid]
                if max(max(np.shape(grid)) for grid in grids) > self.side:
                    continue
                shown += [(len(self.names), *pair) for pair in train]
                tests = unseen if is_last else shown
                tests += [(len(self.names), *pair) for pair in test]
                self.names.append(key)
        return shown, unseen

    def make_identities(self, shown):
        """Choose random augmentations for each task, distinct on its colours where enough are."""
        # A row of the table is a symmetry of the square and a permutation of the colours 1 to 9.
        generator = np.random.default_rng(self.cfg.seed)
        turns = generator.integers(0, 8, 5 * self.per_task)  # some will look alike
        turns[0] = 0  # the first row changes nothing
        colours = np.tile(np.arange(12), (5 * self.per_task, 1))
        colours[1:, 3:] = generator.permuted(colours[1:, 3:], axis=1)  # 0 stays black
        chosen = []  # the row of each identity; repeated where there are too few
        self.fingerprint = []  # what the vectors belong to
        for number, name in enumerate(self.names):
            text = "".join(str(pair) for task, *pair in shown if task == number)
            used = [colour + 2 for colour in range(10) if str(colour) in text]
            looks = np.column_stack([turns, colours[:, used]])
            _, first = np.unique(looks, axis=0, return_index=True)
            distinct = np.sort(first)[: self.per_task]
            chosen.append(np.resize(distinct, self.per_task))
            crc = zlib.crc32(text.encode() + looks[distinct].tobytes())
            self.fingerprint.append(f"{name} in {len(distinct)} augmentations ({crc:08x})")
        self.identities = len(chosen) * self.per_task
        self.chosen = torch.tensor(np.concatenate(chosen), device=self.device)
        self.cells = square_symmetries(self.side, self.device)[torch.tensor(turns)]
        self.colours = torch.tensor(colours, device=self.device)

    def compare(self, fingerprint):
        """Raise ValueError unless a checkpoint with this fingerprint has the same identities."""
        if self.fingerprint != fingerprint:
            line = min(set(fingerprint) ^ set(self.fingerprint), key=str, default="their order")
            raise ValueError(f"puzzle vectors of other tasks or augmentations: {line} differs")

    def puzzles(self, rows):
        """Rows (number of the task, input, output) as Puzzles, with grids at the top left."""
        grids = np.zeros((2, len(rows), self.side, self.side), np.uint8)
        for row, (_, *pair) in enumerate(rows):
            for which, grid in enumerate(pair):
                if grid is not None:
                    grids[which, row, : len(grid), : len(grid[0])] = np.array(grid) + 2
        grids = torch.from_numpy(grids).flatten(2).to(self.device)
        inputs, labels = (frame(part, 0, 0, self.side) for part in grids)
        numbers = torch.tensor([number for number, *_ in rows], device=self.device)
        return Puzzles(inputs, labels, numbers * self.per_task)

    def task_of(self, ids):
        """The numbers of the tasks that these identities belong to."""
        return ids // self.per_task

    def symmetry(self, ids):
        """The augmentations of the identities [B], as `transform` takes them."""
        return self.cells[self.chosen[ids]], self.colours[self.chosen[ids]]

    def draw(self, B):
        """A batch: tasks in random order, all pairs of each as one identity; the last is cut."""
        tasks = self.trained[torch.rand(len(self.trained), device=self.device).argsort()]
        tasks = tasks.repeat(B // len(tasks) + 1)[:B]  # B are enough: each has a pair
        stops = self.pair_counts[tasks].cumsum(0)  # the slot after the last pair of each
        slot = torch.arange(B, device=self.device)
        which = torch.searchsorted(stops, slot, right=True)  # [B], the drawn task of each slot
        pair = slot - (stops - self.pair_counts[tasks])[which]  # [B], which pair of its task
        rows = (self.pair_counts.cumsum(0) - self.pair_counts)[tasks[which]] + pair
        ids = (tasks * self.per_task + torch.randint_like(tasks, self.per_task))[which]
        inputs = transform(self.train.inputs[rows], *self.symmetry(ids))
        labels = transform(self.train.labels[rows], *self.symmetry(ids))
        # One pair of each task lies at the top left, the others are moved somewhere in the frame.
        corner, down, right = torch.rand(3, B, device=self.device)
        is_moved = pair != (corner * self.pair_counts[tasks]).long()[which]
        inside = ((inputs > 1) | (labels > 1)).view(B, self.side, self.side)
        down = (down * (self.side + 1 - inside.any(2).sum(1))).long() * is_moved
        right = (right * (self.side + 1 - inside.any(1).sum(1))).long() * is_moved
        return frame(inputs, down, right, self.side), frame(labels, down, right, self.side), ids

    def copies(self, inputs, ids, A):
        """Each puzzle as the first A identities of its task; their ids; what maps answers back."""
        ids = (ids[:, None] + torch.arange(A, device=self.device) % self.per_task).flatten()
        symmetry = self.symmetry(ids)
        inverse = [part.argsort(1) for part in symmetry]

        def undo(answers):
            return frame(transform(crop(answers, self.side), *inverse), 0, 0, self.side)

        inputs = transform(inputs.repeat_interleave(A, 0), *symmetry)
        return frame(inputs, 0, 0, self.side), ids, undo

    def obeys(self, puzzles, answers):
        """Are the answers [N, L] the labels, where these are known? [N]"""
        known = puzzles.labels > 0
        return ((answers == puzzles.labels) | ~known).all(1) & known.any(1)

    def parse(self, text):
        """The first unseen puzzle of a task, or the k-th: NAME or NAME:k. Raises ValueError."""
        name, k = f"{text}:1".split(":")[:2]  # the first where no number is named
        rows = [row for row, id in enumerate(self.test.ids) if self.names[self.task_of(id)] == name]
        if k not in [str(number) for number in range(1, len(rows) + 1)]:
            raise ValueError(f"{text} is no unseen puzzle of --sets {self.cfg.sets} within --size")
        return self.test[[rows[int(k) - 1]]]

    def describe(self, puzzle):
        """The pairs that show the rule of a task, and the answer [1, L]."""
        pairs = self.train[self.train.ids == puzzle.ids]
        words = [f"task {self.names[self.task_of(puzzle.ids)]}"]
        for question, answer in zip(pairs.inputs, pairs.labels):
            words += [self.picture(question), "becomes", self.picture(answer), ""]
        return "\n".join([*words, "what becomes of this grid?"]), puzzle.labels

    def grid(self, tokens):
        """The grid in a frame [L] as lists of colours; a single 0 where there is none."""
        rows = crop(tokens[None], self.side).view(self.side, self.side).tolist()
        return [[token - 2 for token in row if token] for row in rows if row[0]] or [[0]]

    def picture(self, tokens):
        """The grid in a frame [L] as text, a cell in two characters."""
        rows = self.grid(tokens)
        return "\n".join("".join(paint(2 * str(c), SQUARES[c]) for c in row) for row in rows)

    def report(self, attempts, ranks):
        """Print pass@K for ranks of the truth [N]; write attempts [N, 2, L] to submission.json."""
        numbers = self.task_of(self.test.ids).cpu()
        known = (self.test.labels > 0).any(1).cpu()
        tasks = numbers[known]
        if len(tasks) > 0:  # the mean over the inputs of a task, then over the tasks
            weights = 1 / tasks.bincount()[tasks] / len(tasks.unique())
            shares = {K: 100 * weights[ranks[known] < K].sum() for K in (1, 2, 5, 10, 100, 1000)}
            passed = ", ".join(f"pass@{K} {share:.1f} %" for K, share in shares.items())
            print(f"{len(tasks.unique())} tasks: {passed}")
        submission = {}
        for number, (first, second) in zip(numbers.tolist(), attempts):
            pair = {"attempt_1": self.grid(first), "attempt_2": self.grid(second)}
            submission.setdefault(self.names[number], []).append(pair)
        missing = self.entries.keys() - submission.keys()
        for name in missing:
            submission[name] = [{"attempt_1": [[0]], "attempt_2": [[0]]}] * self.entries[name]
        replace_file("submission.json", json.dumps(submission, sort_keys=True))
        print(f"wrote submission.json; {len(missing)} tasks are larger than --size and have [[0]]")


TASKS = {"sudoku": Sudoku, "maze": Maze, "arc": ARC}

# ---- Drawing -------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "34", "wrong": "7;33", "open": "0"}  # bold, blue, yellow reversed
FILL = {"given": "#cccccc", "right": "#8fd3f4", "wrong": "#f0a030", "open": "#ffffff"}
SQUARES = [f"48;5;{n};38;5;{n}" for n in (0, 27, 9, 34, 11, 245, 201, 208, 45, 88)]  # ARC's colours


def paint(text, style):
    """The text in a style, on a terminal and without NO_COLOR; elsewhere as it is."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return f"\033[{style}m{text}\033[0m"
    return text


def kinds(task, puzzle, answer):
    """Of each cell of an answer [L]: "given", "right", "wrong" or "open" (empty, or not known)."""
    result = []
    labels = answer if task.obeys(puzzle, answer[None]) else puzzle.labels[0]  # mazes have several
    for given, label, token in zip(puzzle.inputs[0], labels, answer):
        if label != 0 and token != label:
            result.append("wrong")
        elif token == given and not isinstance(task, ARC) and task.letters[given] not in ". ":
            result.append("given")
        elif label == 0 or task.letters[token] in ". ":
            result.append("open")
        else:
            result.append("right")
    return result


def show(task, puzzle, answer):
    """An answer [L] as lines of text, in colours on a terminal."""
    if isinstance(task, ARC):
        return task.picture(answer)
    h, w = task.box
    styles = [ANSI[kind] for kind in kinds(task, puzzle, answer)]
    cells = [paint(task.letters[token], style) for token, style in zip(answer, styles)]
    lines = []
    for row in range(task.side):
        if row > 0 and row % h == 0:
            lines.append("+".join(["-" * (2 * w + 1)] * (task.side // w)))
        firsts = range(row * task.side, (row + 1) * task.side, w)
        lines.append("|".join(f" {' '.join(cells[first : first + w])} " for first in firsts))
    return "\n".join(lines)


def film(task, puzzle, panels):
    """An SVG of panels (answer [L], words), 8 in a line. Cells that have changed are framed."""
    width, height = max(20 * task.side, 250) + 20, 20 * task.side + 40  # room for the words
    out, last = [], panels[0][0]
    for number, (answer, words) in enumerate(panels):
        left, top = number % 8 * width, number // 8 * height
        for cell, kind in enumerate(kinds(task, puzzle, answer)):
            place = f'x="{left + 20 * (cell % task.side)}" y="{top + 20 * (cell // task.side)}"'
            border = "black" if answer[cell] != last[cell] else "white"
            style = f'width="18" height="18" fill="{FILL[kind]}" stroke="{border}"'
            text = f'<text {place} dx="9" dy="14">{task.letters[answer[cell]]}</text>'
            out.append(f"<rect {place} {style}/>{text}")
        out.append(f'<text x="{left}" y="{top + height - 20}" text-anchor="start">{words}</text>')
        last = answer
    box = f"-10 -10 {min(len(panels), 8) * width} {(len(panels) + 7) // 8 * height + 10}"
    font = 'style="background: white" font-family="sans-serif" font-size="14" text-anchor="middle"'
    out.insert(0, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {font}>')
    return "\n".join([*out, "</svg>\n"])
