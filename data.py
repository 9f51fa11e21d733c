# SPDX-License-Identifier: MIT
"""Puzzles as tensors on the device: build or read them, augment them, show them.

A puzzle is two rows of L tokens, question and answer; 0 is padding, and not scored in an answer. In
Sudoku 1 is a blank and 2 the digit 1: the 6x6 puzzle that begins ..3..1 has the tokens 1 1 4 1 1 2.
"""

import csv
import hashlib
import html
import json
import os
import random
import sys
import zlib
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None


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
    """A family of puzzles: length L, vocab V, letters [V], train, test; see Grids for the rest."""

    identities = 1  # puzzle vectors (ARC: tasks times augmentations)
    rule = ""  # what an answer must do, where it can be judged without knowing the right one
    votes = ""  # the flag with which symmetric copies vote
    colours = None  # of the tokens from 2 on; then cells are drawn without letters

    def draw(self, B):
        """A training batch: inputs and labels, int64 [B, L], and puzzle identities [B]."""

    def obeys(self, puzzles, answers):
        """Which answers [N, L] are right: bool [N]. Here those equal to the labels."""
        known = puzzles.labels > 0
        return ((answers == puzzles.labels) | ~known).all(1) & known.any(1)

    def compare(self, fingerprint):
        """Raise ValueError if a model with this fingerprint cannot take these puzzles."""

    def tell_leaks(self, fingerprint):
        """Print which of the test puzzles a model with this fingerprint was trained on."""

    def report(self, best, folder):
        """Print or write more about the two best answers [N, 2, L] to the test puzzles."""

    def grid(self, tokens):
        """The cells of an answer [L] as they are shown: rows of numbers from 0 to L - 1."""
        cells = range(self.length)
        return [cells[first : first + self.side] for first in cells[:: self.side]]


# ---- Files ---------------------------------------------------------------------------------------
@contextmanager
def locked(folder, wait=False):
    """Keep other processes out of a folder. If one is in, wait, or raise ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}") from None
        yield


def replace_file(path, content):
    """Write text or bytes beside `path`, then rename: never half a file. Raises ValueError."""
    part = Path(f"{path}.part")
    try:
        part.write_bytes(content if isinstance(content, bytes) else content.encode())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


# ---- Puzzles in CSV files ------------------------------------------------------------------------
BLOCK = 1000  # puzzles that are generated together
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
    return [int.from_bytes(hashlib.blake2b(row, digest_size=7).digest(), "big") for row in rows]


class Grids(Task):
    """What Sudoku and Maze have in common: train.csv and test.csv, read or built."""

    def __init__(self, cfg, device, letters, suffix=""):
        self.cfg, self.device = cfg, device
        self.side, self.length = cfg.size, cfg.size**2
        self.letters = letters  # of the tokens, as published
        self.clues = letters[1:]  # those that a question may have
        self.vocab = len(letters)
        self.box = (cfg.size, cfg.size)  # rows and columns between two lines, when it is shown
        name = f"puzzles/{cfg.task}-{cfg.size}x{cfg.size}{suffix}-seed{cfg.seed}"
        self.folder = Path(cfg.data or name)

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

        lines = path.read_text().splitlines() if path.exists() else ["source,question,answer"]
        while len(lines) <= count:
            print(f"building {path}, puzzles {len(lines)} to {len(lines) + BLOCK - 1}", flush=True)
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(f"{split} {seed} {len(lines)}".encode()))
                puzzles = self.generate(BLOCK, wanted)
            for pair in zip(*(part.tolist() for part in puzzles)):
                texts = ("".join(self.letters[t] for t in grid) for grid in pair)
                lines.append(",".join([f"seed {seed}", *texts]))
            replace_file(path, "\n".join([*lines, ""]))

    def rows(self, path):
        """Yield line number, question and answer of each row of a file. Raises ValueError."""
        if not path.is_file():
            raise ValueError(f"there is no {path}; --data is a folder with train.csv and test.csv")
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file, restval="")
            if not {"question", "answer"} <= set(rows.fieldnames or ()):
                columns = ",".join(rows.fieldnames or ())[:60]
                raise ValueError(f"{path}, line 1: {columns!r} lacks the columns question, answer")
            for row in rows:
                yield rows.line_num, row["question"], row["answer"]

    def read(self, split, count, seed):
        """Puzzles of a file. Raises ValueError, naming the line that is no puzzle."""
        path = self.folder / f"{split}.csv"
        if not self.cfg.data:
            count = count or BLOCK
            with locked(path.parent, wait=True):  # another process may build the same
                self.build(path, split, count, seed)
        try:
            rows = list(self.rows(path))
        except csv.Error as error:
            raise ValueError(f"{path}: {error}") from None
        if len(rows) < max(count, 1):
            raise ValueError(f"{path} has {len(rows)} puzzles; --{split}_size is {max(count, 1)}")
        if self.cfg.data and split == "train" and count:
            rows = sorted(random.Random(seed).sample(rows, count))
        pairs = []
        for line, question, answer in rows[: count or None]:
            try:
                pairs.append((self.tokens(question, self.clues), self.tokens(answer)))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
        puzzles = self.puzzles(pairs)
        for (line, *_), right in zip(rows, self.obeys(puzzles, puzzles.labels).tolist()):
            if not right:
                raise ValueError(f"{path}, line {line}: the answer must {self.rule}; correct it")
        return puzzles

    def puzzles(self, rows):
        """Rows (tokens of the question, tokens of the answer) as Puzzles."""
        inputs, labels = torch.tensor(rows, dtype=torch.uint8, device=self.device).unbind(1)
        return Puzzles(inputs, labels, torch.zeros(len(rows), dtype=torch.long, device=self.device))

    def tokens(self, text, allowed=None):
        """A grid as a string to a list of tokens. Raises ValueError, naming the cell."""
        allowed = allowed or self.letters[1:]
        if len(text) != self.length:
            raise ValueError(f"{len(text)} characters, not {self.length} (--size {self.side})")
        for cell, letter in enumerate(text):
            if letter not in allowed:
                place = f"row {cell // self.side + 1}, column {cell % self.side + 1}"
                raise ValueError(f"{place}: {letter!r} is none of {allowed!r}")
        return [self.letters.index(letter) for letter in text.replace("0", ".")]

    def parse(self, text):
        """A puzzle typed in one line, labelled where it has one answer. Raises ValueError."""
        puzzle = self.puzzles([[self.tokens(text, self.clues)] * 2])
        puzzle.labels = self.answer(puzzle)
        return puzzle

    def draw(self, B):
        """A batch, drawn with replacement, of random symmetric copies: see Task."""
        batch = self.train[torch.randint(len(self.train), (B,), device=self.device)]
        symmetry = self.symmetries(B)
        return transform(batch.inputs, *symmetry), transform(batch.labels, *symmetry), batch.ids

    def copies(self, inputs, ids, A):
        """A copies of each puzzle, side by side [P * A, L]; their ids; what maps answers back."""
        symmetry = self.symmetries(A)  # cells [A, L] and tokens [A, V]
        for part in symmetry:
            part[0] = torch.arange(part.shape[1], device=self.device)
        symmetry = [part.repeat(len(inputs), 1) for part in symmetry]
        inverse = [part.argsort(1) for part in symmetry]
        inputs = transform(inputs.repeat_interleave(A, 0), *symmetry)
        return inputs, ids.repeat_interleave(A), lambda answers: transform(answers, *inverse)

    @cached_property
    def fingerprint(self):
        """What a model is trained on, to be kept with it: a list of numbers."""
        return hashes(self.train.inputs) + hashes(self.train.labels)

    def tell_leaks(self, fingerprint):
        """Print which of the test puzzles a model with this fingerprint was trained on."""
        known = set(fingerprint)
        both = zip(hashes(self.test.inputs), hashes(self.test.labels))
        rows = [row for row, numbers in enumerate(both, 1) if known & set(numbers)]
        if rows:
            found = f"{len(rows)} of {len(self.test)} puzzles in {self.folder / 'test.csv'}"
            print(f"{found}, first number {rows[0]}, are trained on (same question or answer)")

    def describe(self, puzzle):
        """Words on one puzzle."""
        return "a puzzle" if puzzle.labels.any() else "a puzzle with several answers, or none"


class Sudoku(Grids):
    """Sudoku of 9x9, or of 6x6 with boxes of 2 rows and 3 columns. Raises ValueError."""

    votes = " --augment 8"
    rule = "keep the clues and have every digit once in each row, column and box"

    def __init__(self, cfg, device):
        if cfg.size not in (6, 9):
            raise ValueError(f"--size {cfg.size}: Sudoku is 6x6 or 9x9")
        super().__init__(cfg, device, "?.123456789"[: cfg.size + 2])  # padding, blank, digits
        self.clues += "0"  # a blank, too
        self.box = (cfg.size // 3, 3)

    def generate(self, count, wanted):
        """Random puzzles with one solution and no clue too many: questions and answers."""
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

    def answer(self, puzzle):
        """The solution [1, L], 0 if there are none or several."""
        found, answer = search(to_boards(puzzle.inputs.long() - 1, self.side), width=128)
        return (answer + 1) * (found == 1)


class Maze(Grids):
    """Mazes: mark the cells on a shortest path from S to G."""

    votes = " --augment 8"
    rule = "mark with 'o' a shortest path from the S to the G and change nothing else"

    def __init__(self, cfg, device):
        super().__init__(cfg, device, "?# SGo", f"-over{cfg.min_path}")
        self.clues = "# SG"

    def generate(self, count, wanted):
        """Random mazes, paths over min_path: questions, answers. Raises ValueError."""
        mazes = torch.zeros(0, self.length, dtype=torch.long, device=self.device)
        tries = 0
        while len(mazes) < count:
            density = 0.3 + 0.2 * torch.rand(1024, 1, 1, device=self.device)
            floor = torch.rand(1024, self.side, self.side, device=self.device) > density
            # For long paths start far away: at a cell farthest from a random one.
            distance = distances(floor, random_cell(floor))
            start = random_cell((distance == distance.amax((1, 2), keepdim=True)) & floor)
            goal = random_cell(distances(floor, start) > self.cfg.min_path)
            new = torch.where(floor, FLOOR, WALL)
            new = torch.where(start, START, torch.where(goal, GOAL, new))
            new = new[goal.any((1, 2))].flatten(1)
            mazes = torch.cat([mazes, new[wanted(new)]]).unique(dim=0)
            tries += 1
            if tries > 200 + len(mazes):
                raise ValueError(
                    f"too few mazes have over {self.cfg.min_path} moves; lower --min_path"
                )
        mazes = mazes[torch.randperm(len(mazes), device=self.device)[:count]]
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
        # From the goal back, by the first of the steps that comes nearer to the start.
        for far in range(int(moves.max()), 1, -1):
            around = here + steps * (moves > 0)  # [N, 4]; where there is no way it stays
            nearer = distance.gather(1, around) == far - 1
            step = steps[nearer.int().argmax(1, keepdim=True)]
            here = torch.where(moves >= far, here + step, here)
            path.scatter_(1, here, moves >= far)
        path = path.view_as(grids)[:, 1:-1, 1:-1].flatten(1)
        return torch.where(path & (mazes == FLOOR), PATH, mazes), moves[:, 0]

    def symmetries(self, A):
        """The 8 symmetries of the square, again and again."""
        cells = square_symmetries(self.side, self.device)[torch.arange(A, device=self.device) % 8]
        return cells, torch.arange(self.vocab, device=self.device).repeat(A, 1)

    @cached_property
    def turned(self):
        """The training mazes in all their 8 symmetric copies: inputs and labels [8 * N, L]."""
        symmetries = square_symmetries(self.side, self.device)
        inputs, labels = self.train.inputs, self.train.labels
        inputs, labels = (part[:, symmetries].flatten(0, 1) for part in (inputs, labels))
        # Ours are marked anew: of several paths `mark` prefers one, turned marks would another.
        return inputs, labels if self.cfg.data else self.mark(inputs)[0]

    def draw(self, B):
        """A batch, drawn with replacement: see Task."""
        inputs, labels = self.turned
        rows = torch.randint(len(inputs), (B,), device=self.device)
        return inputs[rows].long(), labels[rows].long(), torch.zeros_like(rows)

    def obeys(self, puzzles, answers):
        """Do answers [N, L] mark a shortest path, any one, and change nothing else? [N]"""
        mazes = puzzles.inputs
        marked = (mazes == FLOOR) & (answers == PATH)
        kept = ((answers == mazes) | marked).all(1)
        has_ends = ((mazes == START).sum(1) == 1) & ((mazes == GOAL).sum(1) == 1)
        _, shortest = self.mark(mazes)
        _, along_marks = self.mark(torch.where(answers == FLOOR, WALL, answers))
        return kept & has_ends & (marked.sum(1) + 1 == shortest) & (along_marks == shortest)

    def answer(self, puzzle):
        """The maze with a shortest path marked [1, L], 0 if there is no way. Raises ValueError."""
        if (puzzle.inputs == START).sum() != 1 or (puzzle.inputs == GOAL).sum() != 1:
            raise ValueError("a maze has one S and one G")
        answer, moves = self.mark(puzzle.inputs)
        return answer * (moves >= 0)


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


Pair = namedtuple("Pair", ["task", "input", "output"])  # number, rows of colours, these or None


def read_json(path):
    """The object in a JSON file as a dict. Raises ValueError, naming the file."""

    def unique(pairs):  # json itself takes the last of equal names
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a name is there twice: {[name for name, _ in pairs]!s:.60}")
        return dict(pairs)

    try:
        content = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique)
        if not isinstance(content, dict):
            raise ValueError("not an object of tasks")
        return content
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; `make arc` downloads the tasks") from None


def check(grid):
    """Raise ValueError unless this is a grid of an ARC task: a list of rows of colours."""
    sizes = {len(row) for row in grid}
    cells = [cell for row in grid for cell in row]
    if len(sizes) != 1 or not 1 <= max(sizes) <= 30 or len(grid) > 30:
        raise ValueError(f"{str(grid)[:60]} is not a rectangle of 1 to 30x30 cells")
    if not all(type(cell) is int and 0 <= cell <= 9 for cell in cells):
        raise ValueError(f"{str(grid)[:60]} has cells that are no numbers from 0 to 9")


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
            for grid in [*sum(train, ()), *inputs, *told]:
                check(grid)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            where = f"{path}, task {key} (or its solution)"
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from None
        yield key, train, [*zip(inputs, outputs)]


class ARC(Task):
    """ARC-AGI: each task has a rule of its own, shown by pairs of grids. Raises ValueError."""

    vocab = 12
    letters = " |0123456789"  # padding, end mark, colours
    colours = "000000 1e93ff f93c31 4fcc30 ffdc00 999999 e53aa3 ff851b 87d8f1 921231".split()

    def __init__(self, cfg, device):
        self.cfg, self.device = cfg, device
        self.side, self.length = cfg.size, cfg.size**2
        self.box = (cfg.size, cfg.size)
        self.per_task = 1 + cfg.augmentations  # identities of a task
        self.names = []  # of the tasks that are small enough
        sets = cfg.sets.split(",")
        first, second = {"training", "evaluation"}, {"training2", "evaluation2"}
        if len(set(sets)) < len(sets) or (first & set(sets) and second & set(sets)):
            raise ValueError(f"--sets {cfg.sets}: would train on what is to be unseen")
        shown, unseen = self.read(sets)
        unseen_pairs = [pair[1:] for pair in unseen]
        leaks = [pair for pair in shown if pair[1:] in unseen_pairs]  # some tasks have two names
        if leaks:
            names = ", ".join(sorted({self.names[pair.task] for pair in leaks}))
            print(f"left out of training: {len(leaks)} pairs of {names} that are unseen ones, too")
            shown = [pair for pair in shown if pair not in leaks]
        if not shown or not unseen:
            raise ValueError(f"no task of --sets {cfg.sets} fits into --size {cfg.size}")
        turns, colours, chosen = self.choose(shown)
        self.identities = len(chosen) * self.per_task
        self.chosen = torch.tensor(np.concatenate(chosen), device=device)
        self.turned = square_symmetries(self.side, device)[torch.tensor(turns)]
        self.recoloured = torch.tensor(colours, device=device)
        self.train, self.test = self.puzzles(shown), self.puzzles(unseen)
        numbers = [pair.task for pair in shown]
        self.pair_counts = torch.tensor(np.bincount(numbers), device=device)
        self.trained = torch.tensor(sorted(set(numbers)), device=device)  # tasks with pairs

    def read(self, sets):
        """Pairs to train on, and test pairs of the last set. Raises ValueError."""
        shown, unseen = [], []
        for name in sets:
            is_last = name == sets[-1]
            for key, train, test in read_set(Path(self.cfg.data or "puzzles/arc"), name, is_last):
                grids = [grid for pair in train + test for grid in pair if grid]
                if max(max(np.shape(grid)) for grid in grids) > self.side:
                    continue
                number = len(self.names)
                shown += [Pair(number, *pair) for pair in train]
                tests = unseen if is_last else shown
                tests += [Pair(number, *pair) for pair in test]
                self.names.append(key)
        return shown, unseen

    def choose(self, shown):
        """Random turns [M], colours [M, V], and the distinct ones of these that each task has."""
        generator = np.random.default_rng(self.cfg.seed)
        turns = generator.integers(0, 8, 5 * self.per_task)  # some will look alike
        turns[0] = 0  # the first row changes nothing
        colours = np.tile(np.arange(12), (5 * self.per_task, 1))
        colours[1:, 3:] = generator.permuted(colours[1:, 3:], axis=1)  # 0 stays black
        chosen, self.fingerprint = [], []
        for number, name in enumerate(self.names):
            pairs = [pair[1:] for pair in shown if pair.task == number]
            used = sorted({c + 2 for pair in pairs for grid in pair for row in grid for c in row})
            looks = np.column_stack([turns, colours[:, used]])
            _, first = np.unique(looks, axis=0, return_index=True)
            distinct = np.sort(first)[: self.per_task]
            chosen.append(np.resize(distinct, self.per_task))  # repeated where there are too few
            crc = zlib.crc32(str(pairs).encode() + looks[distinct].tobytes())
            self.fingerprint.append(f"{name} in {len(distinct)} augmentations ({crc:08x})")
        return turns, colours, chosen

    def compare(self, fingerprint):
        """Raise ValueError unless a checkpoint with this fingerprint has the same identities."""
        if self.fingerprint != fingerprint:
            line = min(set(fingerprint) ^ set(self.fingerprint), key=str, default="their order")
            raise ValueError(f"puzzle vectors of other tasks or augmentations: {line} differs")

    def puzzles(self, pairs):
        """Pairs as Puzzles, with grids at the top left."""
        grids = np.zeros((2, len(pairs), self.side, self.side), np.uint8)
        for row, pair in enumerate(pairs):
            for which, grid in enumerate(pair[1:]):
                if grid is not None:
                    grids[which, row, : len(grid), : len(grid[0])] = np.array(grid) + 2
        grids = torch.from_numpy(grids).flatten(2).to(self.device)
        inputs, labels = (frame(part, 0, 0, self.side) for part in grids)
        numbers = torch.tensor([pair.task for pair in pairs], device=self.device)
        return Puzzles(inputs, labels, numbers * self.per_task)

    def symmetry(self, ids):
        """The augmentations of the identities [B], as `transform` takes them."""
        return self.turned[self.chosen[ids]], self.recoloured[self.chosen[ids]]

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

    def parse(self, text):
        """The first unseen puzzle of a task, or the k-th: NAME or NAME:k. Raises ValueError."""
        name, k = f"{text}:1".split(":")[:2]  # the first where no number is named
        rows = [
            row for row, id in enumerate(self.test.ids) if self.names[id // self.per_task] == name
        ]
        if k not in [str(number) for number in range(1, len(rows) + 1)]:
            raise ValueError(f"{text} is no unseen puzzle of --sets {self.cfg.sets} within --size")
        return self.test[[rows[int(k) - 1]]]

    def describe(self, puzzle):
        """The pairs that show the rule of a task."""
        words = [f"task {self.names[puzzle.ids // self.per_task]}"]
        pairs = self.train[self.train.ids == puzzle.ids]
        unknown = Puzzles(puzzle.inputs, puzzle.labels * 0, puzzle.ids)  # so that nothing is wrong
        for question, answer in zip(pairs.inputs, pairs.labels):
            words += [show(self, unknown, question), "becomes", show(self, unknown, answer), ""]
        return "\n".join([*words, "what becomes of this grid?"])

    def grid(self, tokens):
        """The cells of the grid in a frame [L]: rows of cell numbers."""
        inside = crop(tokens[None], self.side).view(self.side, self.side) > 0
        numbers = torch.arange(self.length, device=tokens.device).view_as(inside)
        return [line[keep].tolist() for line, keep in zip(numbers, inside) if keep.any()]

    def numbers(self, tokens):
        """The grid in a frame [L] as lists of colours; a single 0 where there is none."""
        return [[tokens[cell].item() - 2 for cell in row] for row in self.grid(tokens)] or [[0]]

    def report(self, best, folder):
        """Print pass@1 and pass@2 of the two best answers; write them to submission.json."""
        tasks = self.test.ids.cpu() // self.per_task
        known = (self.test.labels > 0).any(1).cpu()
        right = torch.stack([self.obeys(self.test, best[:, k].to(self.device)) for k in (0, 1)], 1)
        for K in (1, 2) if known.any() else ():  # mean over a task, then over the tasks
            passed = right[:, :K].any(1).cpu().double()
            shares = [passed[known & (tasks == task)].mean() for task in tasks[known].unique()]
            print(f"{len(shares)} tasks: pass@{K} {100 * sum(shares) / len(shares):.1f} %")
        submission = {}
        for task, (first, second) in zip(tasks.tolist(), best):
            pair = {"attempt_1": self.numbers(first), "attempt_2": self.numbers(second)}
            submission.setdefault(self.names[task], []).append(pair)
        replace_file(folder / "submission.json", json.dumps(submission, sort_keys=True))
        print(f"wrote {folder}/submission.json, without tasks that are larger than --size")


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


def search(boards, limit=2, at_random=False, width=512):
    """Search N Sudoku for `limit` solutions: their number [N], and one as digits [N, cells]."""
    N, size, cells = boards.shape
    units = unit_matrix(size, boards.device)
    found = torch.zeros(N, dtype=torch.long, device=boards.device)
    answers = found[:, None].repeat(1, cells)
    stack, owner = boards, torch.arange(N, device=boards.device)  # which of the N a board is of
    while len(stack) > 0:
        top, who = stack[-width:], owner[-width:]  # only these, which bounds the memory
        stack, owner = stack[:-width], owner[:-width]
        new, alive = propagate(top, units)
        alive &= found[who] < limit
        moved = (new != top).any((1, 2))
        # `alive` tells of the rules in `top`, so it is `top` that is known to be a solution.
        solved = alive & (top.sum(1) == 1).all(1)
        found += who[solved].bincount(minlength=N)
        # Several rows may solve the same one of the N: the last of them is the answer.
        chosen = torch.full_like(found, -1)  # [N], a row of `top`, -1: none
        chosen = chosen.scatter_reduce(0, who[solved], solved.nonzero()[:, 0], "amax")
        answers[chosen >= 0] = top[chosen[chosen >= 0]].int().argmax(1) + 1
        guessing = alive & ~moved & ~solved  # where nothing moves, it is the digit, or it is not
        is_digit, others = guess(new[guessing], at_random)
        again = alive & moved
        stack = torch.cat([stack, new[guessing] & ~is_digit, new[again], new[guessing] & ~others])
        owner = torch.cat([owner, who[guessing], who[again], who[guessing]])
    return found.clamp(max=limit), answers


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


TASKS = {"sudoku": Sudoku, "maze": Maze, "arc": ARC}

# ---- Drawing -------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "36", "wrong": "7;33", "open": "0"}  # bold, cyan, yellow reversed
FILL = {"given": "#e4e4e4", "right": "#a9def5", "wrong": "#f0a030", "open": "#ffffff"}


def kinds(task, puzzle, answer):
    """Of each cell of an answer [L]: "given", "right", "wrong" or "open" (empty, or not known)."""
    labels = answer if task.obeys(puzzle, answer[None]) else puzzle.labels[0]  # mazes have several
    result = []
    for given, label, token in zip(puzzle.inputs[0], labels, answer):
        is_empty = task.letters[token] in ". "
        kind = "open" if label == 0 or is_empty else "right"
        if label != 0 and token != label:
            kind = "wrong"
        elif token == given and not is_empty:
            kind = "given"
        result.append(kind)
    return result


def show(task, puzzle, answer):
    """An answer [L] as lines of text: in colours on a terminal, else a star marks wrong cells."""
    in_colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    styles = kinds(task, puzzle, answer)
    h, w = task.box
    lines = []
    for number, row in enumerate(task.grid(answer)):
        cells = []
        for cell in row:
            letter, style = task.letters[answer[cell]], ANSI[styles[cell]]
            if task.colours:
                style = "48;2;{};{};{}".format(*bytes.fromhex(task.colours[answer[cell] - 2]))
            star = "*" if styles[cell] == "wrong" else " "
            cells.append(f"\033[{style}m{letter}\033[0m " if in_colours else letter + star)
        if number > 0 and number % h == 0:
            lines.append("+".join(["-" * (2 * w + 1)] * (len(row) // w)))
        lines.append(" " + "| ".join("".join(cells[i : i + w]) for i in range(0, len(row), w)))
    return "\n".join(lines) or "(no grid)"


def film(task, panels):
    """An SVG of panels (puzzle, answer [L], words), 5 in a line; changed cells have a frame."""
    width, height = max(20 * task.side, 160) + 20, 20 * task.side + 40  # room for the words
    out = []
    for number, (panel, before) in enumerate(zip(panels, [panels[0], *panels])):
        puzzle, answer, words = panel
        left, top = number % 5 * width + 10, number // 5 * height + 10
        styles = kinds(task, puzzle, answer)
        out.append(f'<text x="{left}" y="{top}">{words.format(styles.count("wrong"))}</text>')
        for y, row in enumerate(task.grid(answer)):
            for x, cell in enumerate(row):
                token = answer[cell]
                fill = f"#{task.colours[token - 2]}" if task.colours else FILL[styles[cell]]
                place = f'x="{left + 20 * x}" y="{top + 20 * y + 10}"'
                style = f'fill="{fill}" stroke="{"#ccc" if token == before[1][cell] else "#000"}"'
                out.append(f'<rect {place} width="18" height="18" {style}/>')
                letter = html.escape(task.letters[token].replace(".", " "))
                out.append(f'<text {place} dx="5" dy="14">{letter}</text>')
    box = f"0 -5 {min(len(panels), 5) * width} {(len(panels) + 4) // 5 * height}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" style="background:white"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="14">', *out, "</svg>\n"])
