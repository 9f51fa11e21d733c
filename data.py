# SPDX-License-Identifier: MIT
"""Puzzles as tensors on the device: build or read them, augment them, show them.

A puzzle is two rows of L tokens, question and answer; 0 is padding, and not scored in an answer. In
Sudoku 1 is a blank and 2 the digit 1: the 6x6 puzzle that begins ..3..1 has the tokens 1 1 4 1 1 2.
"""

import csv
import fcntl
import hashlib
import html
import io
import json
import random
import re
import sys
import zlib
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


# ---- What a task is ------------------------------------------------------------------------------
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


class Task:
    """A family: length L, side, vocab V, letters; train, test, copies, fingerprint: see Grids."""

    identities = 1  # puzzle vectors (ARC: tasks times augmentations)
    kind = ""  # what a model must have been made for, in words
    rule = ""  # what an answer must do, where it can be judged without knowing the right one
    box = (10**6, 10**6)  # height and width of a box that is framed in pictures
    colours = None  # of the tokens from 2 on, for pictures without letters

    def draw(self, B):
        """A training batch: inputs and labels, int64 [B, L], and puzzle identities [B]."""

    def obeys(self, puzzles, answers):
        """Which answers [N, L] are right? bool [N]. Here: those that equal the labels."""
        known = puzzles.labels > 0
        return ((answers == puzzles.labels) | ~known).all(1) & known.any(1)

    def tell_leaks(self, fingerprint):
        """Print which of the test puzzles a model with this fingerprint was trained on."""

    def report(self, best):
        """More scores, by name, of the two best answers [N, 2, L] to the test puzzles."""
        return {}

    def describe(self, puzzle):
        """Words on one puzzle."""
        return "a puzzle"

    def grid(self, tokens):
        """The cells of an answer [L] as they are shown: rows of numbers from 0 to L - 1."""
        cells = range(self.length)
        return [cells[first : first + self.side] for first in cells[:: self.side]]


# ---- Files ---------------------------------------------------------------------------------------
def lock(folder, how=fcntl.LOCK_NB):
    """Keep other processes out while this file is open; how=0 waits. Raises ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
        return file
    except BlockingIOError:
        raise ValueError(f"another process is at work in {folder}") from None


def replace_file(path, content):
    """Write text or bytes beside `path`, then rename: never half a file. Raises ValueError."""
    part = Path(f"{path}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content if isinstance(content, bytes) else content.encode())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def write_rows(path, rows):
    """Replace a CSV file by rows, dicts. Raises ValueError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, {n: 0 for row in rows for n in row}, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue())


def read_rows(path, *columns):
    """The rows of a CSV file: numbers of lines and dicts of texts. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"no file {path}: --data is a folder of puzzles; plot takes names of runs")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restval="")
        try:
            if not set(columns) <= set(rows.fieldnames or ()):
                raise csv.Error(f"line 1 is {rows.fieldnames}; it must have {', '.join(columns)}")
            return [(rows.line_num, row) for row in rows]
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{path}: {error}") from None


# ---- Puzzles in CSV files ------------------------------------------------------------------------
BLOCK = 1000  # puzzles that are generated together; as many are used where nothing is said
WALL, FLOOR, START, GOAL, PATH = range(1, 6)  # tokens of a maze


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
    return [int(hashlib.blake2b(row, digest_size=7).hexdigest(), 16) for row in rows]


class Grids(Task):
    """What Sudoku, Maze and Table have in common: train.csv and test.csv, read or built."""

    def __init__(self, cfg, device, letters, suffix="", length=None):
        self.cfg, self.device = cfg, device
        self.length = length or cfg.size**2
        self.side = min(cfg.size, self.length)
        self.letters = letters  # of the tokens, as published
        self.token = {letter: token for token, letter in enumerate(letters)}
        self.clues = letters[1:]  # those that a question may have
        self.vocab = len(letters)
        self.kind = f"{self.length} cells of {self.clues!r}"
        name = f"puzzles/{cfg.task}-{cfg.size}x{cfg.size}{suffix}-seed{cfg.seed}"
        self.folder = Path(cfg.data or name)

    def generate(self, count, wanted):
        """New questions and answers, int64 [count, L]; wanted(grids [N, L]), bool [N], of each."""

    def symmetries(self, B):
        """B random symmetries for `transform`: cells [B, L], tokens [B, V]. Here: no change."""
        cells, tokens = (torch.arange(n, device=self.device) for n in (self.length, self.vocab))
        return cells.repeat(B, 1), tokens.repeat(B, 1)

    @cached_property
    def train(self):
        """train_size puzzles of train.csv: with cfg.data drawn by the seed, else the first."""
        return self.read("train", self.cfg.train_size, self.cfg.seed)

    @cached_property
    def test(self):
        """The first test_size puzzles of test.csv (0: all, or 1000), for every seed the same."""
        return self.read("test", self.cfg.test_size, 0)

    def build(self, path, split, count, seed):
        """Generate `count` puzzles or more. A hash decides whether one is for training or tests."""
        is_test = split == "test"
        lines = path.read_text().splitlines() if path.exists() else ["source,question,answer"]
        while len(lines) <= count:
            print(f"building {path}, puzzles {len(lines)} to {len(lines) + BLOCK - 1}", flush=True)
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(f"{split} {seed} {len(lines)}".encode()))
                puzzles = self.generate(BLOCK, lambda g: torch.tensor(hashes(g)) % 2 == is_test)
            for pair in zip(*(part.tolist() for part in puzzles)):
                question, answer = ("".join(self.letters[t] for t in grid) for grid in pair)
                lines.append(f"seed {seed},{question},{answer}")
            replace_file(path, "\n".join(lines) + "\n")

    def read(self, split, count, seed):
        """Puzzles of a file. Raises ValueError, naming the line that is no puzzle."""
        path = self.folder / f"{split}.csv"
        if not self.cfg.data:
            count = count or BLOCK
            with lock(path.parent, 0):  # wait: another process may build the same
                self.build(path, split, count, seed)
        rows = read_rows(path, "question", "answer")
        if len(rows) < max(count, 1):
            raise ValueError(f"{path} has {len(rows)} puzzles; --{split}_size {count} (0: all)")
        if self.cfg.data and split == "train" and count:
            rows = sorted(random.Random(seed).sample(rows, count))
        pairs = []
        for line, row in rows[: count or None]:
            try:
                if None in row:
                    raise ValueError("more columns than line 1; quote a text that has commas")
                question = self.tokens(row["question"], self.clues)
                pairs.append((question, self.tokens(row["answer"], self.letters[1:])))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
        puzzles = self.puzzles(pairs)
        for (line, _), right in zip(rows, self.obeys(puzzles, puzzles.labels).tolist()):
            if not right:
                raise ValueError(f"{path}, line {line}: the answer must {self.rule}; correct it")
        return puzzles

    def puzzles(self, rows):
        """Rows (tokens of the question, tokens of the answer) as Puzzles."""
        inputs, labels = torch.tensor(rows, dtype=torch.uint8, device=self.device).unbind(1)
        return Puzzles(inputs, labels, torch.zeros(len(rows), dtype=torch.long, device=self.device))

    def tokens(self, text, allowed):
        """A grid as a string to a list of tokens. Raises ValueError, naming the cell."""
        if len(text) != self.length:
            why = f"--size {self.side}" if self.rule else "the first question"
            raise ValueError(f"{len(text)} characters, but {self.length} by {why}")
        for cell, letter in enumerate(text):
            if letter not in allowed:
                place = f"row {cell // self.side + 1}, column {cell % self.side + 1}"
                raise ValueError(f"{place}: {letter!r} is none of {allowed!r}")
        return [self.token[letter] for letter in text]

    def parse(self, text):
        """A typed puzzle, whose answer is not known. Raises ValueError."""
        if " " not in self.clues:  # it may be typed row by row
            text = "".join(text.split())
        return self.puzzles([(self.tokens(text, self.clues), [0] * self.length)])

    def draw(self, B):
        """A batch, drawn with replacement, of random symmetric copies: see Task."""
        batch = self.train[torch.randint(len(self.train), (B,), device=self.device)]
        symmetry = self.symmetries(B)
        return transform(batch.inputs, *symmetry), transform(batch.labels, *symmetry), batch.ids

    def copies(self, inputs, ids, A):
        """A copies of each puzzle, side by side [N * A, L]; their ids; what maps answers back."""
        symmetry = self.symmetries(A)  # cells [A, L] and tokens [A, V]
        # Each after the inverse of the first: so the first copy is the puzzle itself.
        symmetry = [part[0].argsort()[part].repeat(len(inputs), 1) for part in symmetry]
        inverse = [part.argsort(1) for part in symmetry]
        inputs = transform(inputs.repeat_interleave(A, 0), *symmetry)
        return inputs, ids.repeat_interleave(A), lambda answers: transform(answers, *inverse)

    @cached_property
    def fingerprint(self):
        """What a model is made for and trained on. Answers are inverted (~), to tell them apart."""
        return [self.kind, *hashes(self.train.inputs), *hashes(~self.train.labels)]

    def tell_leaks(self, fingerprint):
        """Print which of the test puzzles a model with this fingerprint was trained on."""
        known = set(fingerprint)
        answers = ~self.test.labels if self.rule else self.test.inputs  # in tables answers repeat
        marks = zip(hashes(self.test.inputs), hashes(answers))
        rows = [row for row, numbers in enumerate(marks, 1) if known & set(numbers)]
        if rows:
            found = f"{len(rows)} of {len(self.test)} puzzles in {self.folder / 'test.csv'}"
            print(f"{found}, first number {rows[0]}, are trained on")


class Sudoku(Grids):
    """Sudoku of 9x9, or of 6x6 with boxes of 2 rows and 3 columns. Raises ValueError."""

    rule = "keep the clues and have every digit once in each row, column and box"

    def __init__(self, cfg, device):
        if cfg.size not in (6, 9):
            raise ValueError(f"--size {cfg.size}: Sudoku is 6x6 or 9x9")
        super().__init__(cfg, device, "?.123456789"[: cfg.size + 2])  # padding, blank, digits
        self.clues += "0"
        self.token["0"] = 1  # a blank, too
        self.box = (cfg.size // 3, 3)

    def generate(self, count, wanted):
        """Random puzzles with one solution and no clue too many: questions and answers."""
        empty = torch.zeros(count, self.length, dtype=torch.long, device=self.device)
        answers = empty[:0]
        while len(answers) < count:
            grids = search(to_boards(empty, self.side), at_random=True)
            answers = torch.cat([answers, grids[wanted(grids)]]).unique(dim=0)
        answers = answers[torch.randperm(len(answers))[:count]]
        # Take out each clue, in random order, if no solution has another digit in its cell. Once
        # is enough: a clue that is needed among more clues is needed among fewer.
        questions = answers.clone()
        rows = torch.arange(count, device=self.device)
        for cell in torch.rand(answers.shape, device=self.device).argsort(1).T:
            clue = answers[rows, cell]
            boards = to_boards(questions, self.side)
            boards[rows, :, cell] = True
            boards[rows, clue - 1, cell] = False  # any digit but the right one
            needed = search(boards)[:, 0] > 0
            questions[rows, cell] = torch.where(needed, clue, 0)
        return questions + 1, answers + 1

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

    def obeys(self, puzzles, answers):
        """Do answers [N, L] keep the clues, with each digit once in a row, column and box? [N]"""
        kept = (puzzles.inputs == 1) | (puzzles.inputs == answers)
        units = unit_matrix(self.side, answers.device)
        for digit in range(2, self.vocab):
            kept &= ((answers == digit).float() @ units == 1).all(1, keepdim=True)
        return kept.all(1)


class Maze(Grids):
    """Mazes: mark the cells on a shortest path from S to G."""

    rule = "mark with 'o' a shortest path from the S to the G and change nothing else"

    def __init__(self, cfg, device):
        super().__init__(cfg, device, "?# SGo", f"-over{cfg.min_path}")
        self.clues = "# SG"

    def generate(self, count, wanted):
        """Random mazes with one shortest path, of more than min_path moves. Raises ValueError."""
        mazes = torch.zeros(0, self.length, dtype=torch.long, device=self.device)
        tries = 0
        while len(mazes) < count:
            density = 0.3 + 0.2 * torch.rand(1024, 1, 1, device=self.device)
            floor = torch.rand(1024, self.side, self.side, device=self.device) > density
            distance = distances(floor, random_cell(floor))  # start far away, for long paths
            start = random_cell((distance == distance.amax((1, 2), keepdim=True)) & floor)
            distance = distances(floor, start)
            goal = random_cell(distance > self.cfg.min_path)
            new = torch.where(floor, FLOOR, WALL)
            new = torch.where(start, START, torch.where(goal, GOAL, new)).flatten(1)
            marked, moves = self.mark(new)
            # Other cells that a shortest path may use become walls: one path is left.
            on_path = (distance + distances(floor, goal)).flatten(1) == moves[:, None]
            new = torch.where(on_path & (marked == FLOOR), WALL, new)[moves > 0]
            new = new[wanted(new)]
            mazes = torch.cat([mazes, new]).unique(dim=0)
            tries += 1
            if tries > 200 + len(mazes):
                raise ValueError(f"few mazes have over {self.cfg.min_path} moves: lower --min_path")
        mazes = mazes[torch.randperm(len(mazes))[:count]]
        return mazes, self.mark(mazes)[0]

    def mark(self, mazes):
        """Mazes [N, L] with a shortest path marked, and its moves [N], -1 where there is none."""
        grids = F.pad(mazes.view(-1, self.side, self.side), (1, 1, 1, 1))  # with a margin
        distance = distances(grids > WALL, grids == START).flatten(1)
        here = (grids == GOAL).flatten(1).int().argmax(1, keepdim=True)  # [N, 1]
        moves = distance.gather(1, here)  # [N, 1]
        path = torch.zeros_like(distance, dtype=torch.bool)
        width = self.side + 2
        steps = torch.tensor([-width, -1, 1, width], device=mazes.device)  # up, left, right, down
        for far in range(int(moves.max()), 1, -1):  # back, by the first step that comes nearer
            around = here + steps * (moves > 0)  # [N, 4]; where there is no way it stays
            nearer = distance.gather(1, around) == far - 1
            step = steps[nearer.int().argmax(1, keepdim=True)]
            here = torch.where(moves >= far, here + step, here)
            path.scatter_(1, here, moves >= far)
        path = path.view_as(grids)[:, 1:-1, 1:-1].flatten(1)
        return torch.where(path & (mazes == FLOOR), PATH, mazes), moves[:, 0]

    def symmetries(self, B):
        """Random symmetries of the square; all 8 are drawn before one comes again."""
        drawn = torch.rand(B // 8 + 1, 8, device=self.device).argsort(1).flatten()[:B]
        return square_symmetries(self.side, self.device)[drawn], super().symmetries(B)[1]

    def obeys(self, puzzles, answers):
        """Do answers [N, L] mark a shortest path, any one, and change nothing else? [N]"""
        mazes = puzzles.inputs
        marked = (mazes == FLOOR) & (answers == PATH)
        kept = ((answers == mazes) | marked).all(1)
        kept &= ((mazes == START).sum(1) == 1) & ((mazes == GOAL).sum(1) == 1)
        _, shortest = self.mark(mazes)
        _, along_marks = self.mark(torch.where(answers == FLOOR, WALL, answers))
        return kept & (marked.sum(1) + 1 == shortest) & (along_marks == shortest)


class Table(Grids):
    """Any puzzle as two texts; its files tell their length and letters. Raises ValueError."""

    def __init__(self, cfg, device):
        if not cfg.data or cfg.augment > 1:
            raise ValueError("a table needs --data DIR, and has no symmetric copies: --augment 1")
        texts = []
        for split in "train", "test":
            for _, row in read_rows(Path(cfg.data, f"{split}.csv"), "question", "answer"):
                texts += row["question"], row["answer"]
        letters = sorted(set("".join(texts)))
        if not 0 < len(letters) < 256 or not "".join(letters).isprintable():
            raise ValueError(f"{cfg.data}: 1 to 255 different characters, no line breaks or tabs")
        super().__init__(cfg, device, "?" + "".join(letters), length=len(texts[0]) or 1)


# ---- ARC-AGI -------------------------------------------------------------------------------------
# A grid lies in a frame of side x side cells, with end marks (1) below and beside it.
def frame(grids, down, right, side):
    """Move grids [B, L] from anywhere to `down` and `right` of the top left. Mark their ends."""
    inside = grids.view(-1, side, side) > 1
    top = inside.any(2).int().argmax(1)
    left = inside.any(1).int().argmax(1)
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
    whole = (frames > 1).int().cummin(1).values.cummin(2).values  # 1: all from the corner is grid
    line = torch.arange(1, side + 1, device=frames.device)
    corner = (whole * line[:, None] * line).flatten(1).argmax(1)[:, None, None]  # its last cell
    inside = (line[:, None] <= corner // side + 1) & (line <= corner % side + 1) & (frames > 1)
    return torch.where(inside, frames, 0).flatten(1)


Pair = namedtuple("Pair", ["task", "input", "output"])  # number, and two grids: rows of colours


def read_set(folder, name):
    """Yield name, training and test pairs (input, output) of each task. Raises ValueError."""
    paths = [folder / f"arc-agi_{name}_{part}.json" for part in ("challenges", "solutions")]
    where = f"{paths[0]} (or its solutions; `make arc` downloads them)"
    try:
        tasks, solutions = (json.loads(path.read_text("utf-8-sig")) for path in paths)
        for key in sorted(tasks.keys() | solutions.keys()):
            where = f"{paths[0]}, task {key} (or its solution)"
            train = [(pair["input"], pair["output"]) for pair in tasks[key]["train"]]
            inputs = [pair["input"] for pair in tasks[key]["test"]]
            test = [*zip(inputs, solutions[key], strict=True)]
            if not train or not test:
                raise ValueError("no train pairs, or no test pairs")
            for grid in sum(train + test, ()):
                cells = np.array(grid)
                is_grid = cells.ndim == 2 and cells.dtype.kind == "i" and max(cells.shape) <= 30
                if not is_grid or cells.min() < 0 or cells.max() > 9:
                    raise ValueError(f"{str(grid)[:60]} is no grid of colours, at most 30x30")
            yield key, train, test
    except (LookupError, TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from None


class ARC(Task):
    """ARC-AGI: each task has a rule of its own, shown by pairs of grids. Raises ValueError."""

    vocab = 12
    letters = " |0123456789"  # padding, end mark, colours
    colours = "000000 1e93ff f93c31 4fcc30 ffdc00 999999 e53aa3 ff851b 87d8f1 921231".split()

    def __init__(self, cfg, device):
        self.cfg, self.device = cfg, device
        self.side, self.length = cfg.size, cfg.size**2
        self.per_task = 1 + cfg.augmentations  # identities of a task
        self.names = []  # of the tasks that are small enough
        sets = cfg.sets.split(",")
        first, second = {"training", "evaluation"}, {"training2", "evaluation2"}
        if len(set(sets)) < len(sets) or (first & set(sets) and second & set(sets)):
            raise ValueError(f"--sets {cfg.sets}: would train on what is to be unseen")
        shown, unseen = [], []  # all pairs to train on, and the test pairs of the last set
        for name in sets:
            for key, train, test in read_set(Path(cfg.data or "puzzles/arc"), name):
                sides = [max(np.shape(grid)) for grid in sum(train + test, ())]
                if max(sides) > self.side:
                    continue
                shown += [Pair(len(self.names), *pair) for pair in train]
                tests = unseen if name == sets[-1] else shown
                tests += [Pair(len(self.names), *pair) for pair in test]
                self.names.append(key)
        unseen_pairs = [pair[1:] for pair in unseen]
        leaks = [pair for pair in shown if pair[1:] in unseen_pairs]  # some tasks have two names
        for pair in leaks:
            print(f"left out of training: a pair of {self.names[pair.task]} that is unseen, too")
        shown = [pair for pair in shown if pair not in leaks]
        if not shown or not unseen:
            raise ValueError(f"no task of --sets {cfg.sets} fits into --size {cfg.size}")
        turns, colours, chosen = self.choose(shown)
        self.identities = len(chosen) * self.per_task
        self.chosen = torch.tensor(np.concatenate(chosen), device=device)  # [identities]
        self.turns = square_symmetries(self.side, device)[torch.tensor(turns)]  # [M, L]
        self.recoloured = torch.tensor(colours, device=device)  # [M, V]
        self.train, self.test = self.puzzles(shown), self.puzzles(unseen)
        numbers = [pair.task for pair in shown]
        self.pair_counts = torch.tensor(np.bincount(numbers), device=device)
        self.trained = torch.tensor(sorted(set(numbers)), device=device)  # tasks with pairs

    def choose(self, shown):
        """M random turns, colours [M, V]; of each task the rows that differ. Sets kind, too."""
        generator = np.random.default_rng(self.cfg.seed)
        turns = generator.integers(0, 8, 5 * self.per_task)  # some will look alike
        turns[0] = 0  # the first row changes nothing
        colours = np.tile(np.arange(12), (5 * self.per_task, 1))
        colours[1:, 3:] = generator.permuted(colours[1:, 3:], axis=1)  # 0 stays black
        chosen, crc = [], 0
        for number in range(len(self.names)):
            pairs = [pair[1:] for pair in shown if pair.task == number]
            used = sorted({c + 2 for pair in pairs for grid in pair for row in grid for c in row})
            looks = np.column_stack([turns, colours[:, used]])
            _, first = np.unique(looks, axis=0, return_index=True)
            distinct = np.sort(first)[: self.per_task]
            chosen.append(np.resize(distinct, self.per_task))  # repeated where there are too few
            crc = zlib.crc32(str(pairs).encode() + looks[distinct].tobytes(), crc)
        self.kind = f"{len(chosen)} ARC tasks in {self.per_task} augmentations ({crc:08x})"
        self.fingerprint = [self.kind]
        return turns, colours, chosen

    def puzzles(self, pairs):
        """Pairs as Puzzles, with grids at the top left."""
        grids = np.zeros((2, len(pairs), self.side, self.side), np.uint8)
        for row, pair in enumerate(pairs):
            for which, grid in enumerate(pair[1:]):
                grids[which, row, : len(grid), : len(grid[0])] = np.array(grid) + 2
        grids = torch.from_numpy(grids).flatten(2).to(self.device)
        inputs, labels = (frame(part, 0, 0, self.side) for part in grids)
        numbers = torch.tensor([pair.task for pair in pairs], device=self.device)
        return Puzzles(inputs, labels, numbers * self.per_task)

    def symmetry(self, ids):
        """The augmentations of the identities [B], as `transform` takes them."""
        return self.turns[self.chosen[ids]], self.recoloured[self.chosen[ids]]

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
        symmetry = self.symmetry(ids)
        inputs = transform(self.train.inputs[rows], *symmetry)
        labels = transform(self.train.labels[rows], *symmetry)
        first, down, right = torch.rand(3, B, device=self.device)
        is_moved = pair != (first * self.pair_counts[tasks]).long()[which]  # one of each is not
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

    def parse(self, text):
        """The first unseen puzzle of the task of this name. Raises ValueError."""
        for row, number in enumerate(self.test.ids // self.per_task):
            if self.names[number] == text:
                return self.test[[row]]
        raise ValueError(f"{text} is no unseen task of --sets {self.cfg.sets} within --size")

    def describe(self, puzzle):
        """The pairs that show the rule of a task."""
        words = [f"task {self.names[puzzle.ids // self.per_task]}"]
        pairs = self.train[self.train.ids == puzzle.ids]
        unknown = replace(puzzle, labels=puzzle.labels * 0)  # so that nothing is wrong
        for question, answer in zip(pairs.inputs, pairs.labels):
            words += [show(self, unknown, question), "becomes", show(self, unknown, answer), ""]
        return "\n".join([*words, "what becomes of this grid?"])

    def grid(self, tokens):
        """The cells of the grid in a frame [L]: rows of cell numbers."""
        inside = crop(tokens[None].cpu(), self.side).view(self.side, self.side) > 0
        numbers = torch.arange(self.length).view_as(inside)
        return [line[keep].tolist() for line, keep in zip(numbers, inside) if keep.any()]

    def report(self, best):
        """% of grids that one of two answers [N, 2, L] solves, mean over tasks: official score."""
        tasks = self.test.ids // self.per_task
        first, second = best.to(self.device).unbind(1)
        passed = self.obeys(self.test, first) | self.obeys(self.test, second)
        shares = [passed[tasks == task].double().mean() for task in tasks.unique()]
        return {"tasks": len(shares), "pass@2 at the end": f"{100 * sum(shares) / len(shares):.1f}"}


# ---- Solvers, of many puzzles at once ------------------------------------------------------------
# A board, bool [digits, cells], tells which digits are still possible in a cell of a Sudoku.
# `units`, float32 [cells, 3 * size], is 1 where a cell lies in a row, column or box, else 0.
def unit_matrix(size, device):
    """The `units` of a Sudoku, 9x9 with boxes of 3x3 or 6x6 with boxes of 2 rows, 3 columns."""
    row = torch.arange(size, device=device).repeat_interleave(size)
    column = torch.arange(size, device=device).repeat(size)
    box = row // (size // 3) * (size // 3) + column // 3
    return torch.cat([F.one_hot(unit) for unit in (row, column, box)], dim=1).float()


def to_boards(digits, size):
    """Digits [N, cells], 0 for a blank where all digits may be, to boards [N, size, cells]."""
    clues = F.one_hot(digits, size + 1)[..., 1:].bool().transpose(1, 2)
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


def guess(boards, at_random):
    """A cell with the fewest digits left, and one of these; the others: bool [N, digits, cells]."""
    N, size, cells = boards.shape
    candidates = boards.sum(1)
    cell = candidates.masked_fill(candidates == 1, size + 1).argmin(1)
    is_cell = F.one_hot(cell, cells).bool()[:, None]  # [N, 1, cells]
    preference = torch.arange(size, 0, -1, device=boards.device)  # the lowest digit
    if at_random:
        preference = torch.rand(N, size, device=boards.device)
    digit = ((boards & is_cell).any(2) * preference).argmax(1)
    is_digit = is_cell & F.one_hot(digit, size).bool()[:, :, None]
    return is_digit, is_cell & ~is_digit


def search(boards, at_random=False):
    """Search N Sudoku for a solution: digits [N, cells], 0 where there is none."""
    N, size, cells = boards.shape
    units = unit_matrix(size, boards.device)
    answers = torch.zeros(N, cells, dtype=torch.long, device=boards.device)
    stack, owner = boards, torch.arange(N, device=boards.device)  # which of the N a board is of
    while len(stack) > 0:
        top, who = stack[-512:], owner[-512:]  # only these, which bounds the memory
        stack, owner = stack[:-512], owner[:-512]
        new, alive = propagate(top, units)
        alive &= answers[who, 0] == 0
        moved = (new != top).any((1, 2))
        # `alive` tells of the rules in `top`, so it is `top` that is known to be a solution.
        solved = alive & (top.sum(1) == 1).all(1)
        # Several rows may solve the same one of the N: the last of them is the answer.
        chosen = torch.full_like(answers[:, 0], -1)  # [N], a row of `top`, -1: none
        chosen = chosen.scatter_reduce(0, who[solved], solved.nonzero()[:, 0], "amax")
        answers[chosen >= 0] = top[chosen[chosen >= 0]].int().argmax(1) + 1
        guessing = alive & ~moved & ~solved
        is_digit, others = guess(new[guessing], at_random)
        again = alive & moved
        # The end of the stack is searched first: the guessed digit, and later the board without it.
        stack = torch.cat([stack, new[guessing] & ~is_digit, new[again], new[guessing] & ~others])
        owner = torch.cat([owner, who[guessing], who[again], who[guessing]])
    return answers


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
    """One cell of each set [N, side, side], at random; none of an empty set."""
    highest = (torch.rand(cells.shape, device=cells.device) * cells).flatten(1).argmax(1)
    return cells & F.one_hot(highest, cells[0].numel()).bool().view_as(cells)


TASKS = {"sudoku": Sudoku, "maze": Maze, "table": Table, "arc": ARC}

# ---- Drawing -------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "36", "wrong": "7;33", "open": "0"}  # bold, cyan, yellow reversed
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" style="background:white" '
SVG += 'font-family="sans-serif" font-size="14"><style>.c{{text-anchor:middle}}</style>\n{}\n</svg>'
COLOURS, DASHES = "#0072b2 #d55e00 #009e73 #cc79a7".split(), ["", "8 4", "2 3", "12 3 2 3"]
FILL = {"given": "#e4e4e4", "right": "#a9def5", "wrong": "#f0a030", "open": "#ffffff"}


def kinds(task, puzzle, answer):
    """Of each cell of an answer [L]: "given", "right", "wrong" or "open" (empty, or not known)."""
    labels = answer if task.obeys(puzzle, answer[None]) else puzzle.labels[0]  # a maze has several
    result = []
    is_known = labels.any()
    for given, label, token in zip(puzzle.inputs[0], labels, answer):
        kind = "right" if is_known else "open"
        if is_known and token != label:  # in ARC a label is 0 beyond the grid
            kind = "wrong"
        elif task.rule and task.letters[token] in ". ":
            kind = "open"
        elif task.rule and token == given:
            kind = "given"
        result.append(kind)
    return result


def show(task, puzzle, answer):
    """An answer [L] as lines of text: in colours on a terminal, else a star marks wrong cells."""
    styles = kinds(task, puzzle, answer)
    h, w = task.box
    lines = []
    for number, row in enumerate(task.grid(answer)):
        cells = []
        for cell in row:
            letter, style = task.letters[answer[cell]], ANSI[styles[cell]]
            star = "*" if styles[cell] == "wrong" else " "
            cells.append(f"\033[{style}m{letter}\033[0m " if sys.stdout.isatty() else letter + star)
        if number > 0 and number % h == 0:
            lines.append("+".join(["-" * (2 * w + 1)] * (len(row) // w)))
        boxes = ["".join(cells[i : i + w]) for i in range(0, len(row), w)]
        lines.append(" " + "| ".join(boxes))
    return "\n".join(lines) or "(no grid)"


def draw_grid(task, puzzle, answer, before):
    """An answer [L] as SVG, 20 units a cell; cells that are not as `before` [L] have a frame."""
    styles = kinds(task, puzzle, answer)
    rows = task.grid(answer)
    h, w = task.box
    out = []
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            letter = html.escape(task.letters[answer[cell]]).replace(".", " " if task.rule else ".")
            fill = FILL[styles[cell]]
            if task.colours:
                fill, letter = f"#{task.colours[answer[cell] - 2]}", ""
            stroke = "#ccc" if answer[cell] == before[cell] else "#000"
            style = f'fill="{fill}" stroke="{stroke}"'
            out.append(f'<rect x="{20 * x}" y="{20 * y}" width="18" height="18" {style}/>')
            out.append(f'<text x="{20 * x + 9}" y="{20 * y + 14}" class="c">{letter}</text>')
            if x % w == 0 and y % h == 0:  # a box begins
                size = f'width="{20 * min(w, len(row) - x)}" height="{20 * min(h, len(rows) - y)}"'
                place = f'x="{20 * x - 1}" y="{20 * y - 1}"'
                out.append(f'<rect {place} {size} fill="none" stroke="#444"/>')
    return out


def film(task, puzzle, steps):
    """An SVG of a question and each step's answer [1, L] and p, while answers change; 5 a line."""
    while len(steps) > 1 and torch.equal(steps[-1][0], steps[-2][0]):
        steps = steps[:-1]  # the last step changed nothing
    width = max(20 * task.side, 150) + 20
    height = (task.length + task.side - 1) // task.side * 20 + 45
    bottom = (len(steps) + 5) // 5 * height
    legend = "" if task.colours else "grey: given, blue: right, orange: wrong, "
    out = [f'<text x="10" y="{bottom + 10}">{legend}framed: changed</text>']
    before, words = puzzle.inputs[0], "question"
    shown = replace(puzzle, labels=puzzle.labels * 0)  # nothing in the question is right or wrong
    for number, (answer, p) in enumerate([(puzzle.inputs, 0), *steps]):
        if number > 0:
            shown, words = puzzle, f"step {number}: p {p:.2f}"
        if shown.labels.any():
            words += f", {kinds(task, puzzle, answer[0]).count('wrong')} wrong"
        place = f"translate({number % 5 * width + 10},{number // 5 * height + 35})"
        out.append(f'<g transform="{place}"><text y="-10">{words}</text>')
        out += [*draw_grid(task, shown, answer[0], before), "</g>"]
        before = answer[0]
    return SVG.format(min(len(steps) + 1, 5) * width, bottom + 20, "\n".join(out))


def curves(names):
    """An SVG of the log.csv of runs: % of unseen puzzles right, and loss. Raises ValueError.

    NAME-seed0, NAME-seed1, ... are thin lines, and their mean, where all have a value, a thick one.
    """
    runs = {n: read_rows(Path("runs", n, "log.csv"), "step", "loss", "unseen") for n in names}
    last = max([float(row["step"]) for rows in runs.values() for _, row in rows], default=1)
    out = []
    parts = (25, "unseen", "% of unseen puzzles right", 100), (270, "loss", "loss", 0.1)
    for top, column, title, highest in parts:  # highest: at least so high
        out.append(f'<text x="50" y="{top - 10}">{title}, over steps</text>')
        lines = {}  # by name: for each seed the values by step
        for run, rows in runs.items():
            line = {float(row["step"]): float(row[column]) for _, row in rows if row[column]}
            lines.setdefault(re.sub(r"-seed\d+$", "", run), []).append(line)
            highest = max([highest, *line.values()])
        for share in 0, 0.5, 1:
            x, y = 50 + 500 * share, top + 190 * (1 - share)
            out.append(f'<path d="M50 {y}h500" stroke="#ccc"/>')
            out.append(f'<text x="45" y="{y + 5}" text-anchor="end">{share * highest:.3g}</text>')
            out.append(f'<text x="{x}" y="{top + 210}" class="c">{share * last:.0f}</text>')
        for number, (name, seeds) in enumerate(lines.items()):
            colour, dash = COLOURS[number % 4], DASHES[(number + number // 4) % 4]  # 16 pairs
            style = f'fill="none" stroke="{colour}" stroke-dasharray="{dash}" stroke-width='
            steps = [step for step in seeds[0] if all(step in line for line in seeds)]
            mean = {step: np.mean([line[step] for line in seeds]) for step in steps}
            for width, line in [*((0.5, line) for line in seeds), (2, mean)]:
                points = [
                    f"{50 + 500 * step / last:.1f},{top + 190 * (1 - value / highest):.1f}"
                    for step, value in line.items()
                ]
                out.append(f'<polyline points="{" ".join(points)}" {style}"{width}"/>')
            y = top + 10 + 20 * number
            out.append(f'<path d="M560 {y}h25" {style}"2"/>')
            out.append(f'<text x="590" y="{y + 5}">{html.escape(name)}</text>')
    return SVG.format(740, 500, "\n".join(out))
