"""Puzzles as tensors: build, read, check, augment and draw them. Everything here is data; the method is in trm.py,
which knows only these members of a task (Sudoku and Maze, below):
    length, vocab, ids               grid cells L, vocabulary V, number of puzzle identities
    train, test                      Puzzles, on the device
    draw(B)                          a training batch, puzzles drawn at random, each turned into a symmetric copy
    views(inputs, A)                 A symmetric copies of each puzzle, and what maps their answers back
    parse(text), describe(inputs)    a puzzle typed by the user, and what is known about it
    obeys(inputs, answers)           do the answers follow the rules? no label is needed
    groups                           for the table of results: name of a group of puzzles, lowest and highest rating
    side, box, glyphs, blank         for drawing: cells in a line, shape of a box, letters of tokens, token of a blank
Tokens (section 4 of the paper, and the published code): 0 is padding; Sudoku has 1 for a blank cell and 2..10 for the
digits 1..9, Maze 1..5 for wall, floor, start, goal and path."""
import csv, difflib, http.client, itertools, math, os, sys, time, urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import numpy as np, torch
HEADER = ["source", "question", "answer", "rating"]   # the columns of every Sudoku and Maze file

def refuse(message, word="", known=()):
    """Raise a ValueError; where it is about an unknown word, with the nearest of the known ones, or all of them."""
    match = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {match[0]}?" if match else f"; there are: {', '.join(known)}" if known else ""
    raise ValueError(message + hint)

@dataclass
class Puzzles:
    """A set of puzzles on one device: `inputs` and `labels` [N, L] uint8 tokens, `rating` [N] int32 (guesses that a
    Sudoku takes, moves of a maze)."""
    inputs: torch.Tensor
    labels: torch.Tensor
    rating: torch.Tensor
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, rows):
        return Puzzles(*(part[rows] for part in vars(self).values()))

# ---- Sudoku: the solver and the generator ---------------------------------------------------------------------------
# Candidates are bit masks, boards the columns of a matrix [cells, boards]. Every operation below works on thousands of
# boards at once, which is what makes building puzzles quick, on a CPU and on a GPU.
def box_shape(size):
    """(rows, columns) of a box of a Sudoku with `size` digits: 9 -> (3, 3), 6 -> (2, 3)."""
    return math.isqrt(size), size // math.isqrt(size)

def unit_cells(size, device="cpu"):
    """The cells of every row, then of every column, then of every box: int64 [3 * size, size]."""
    (h, w), grid = box_shape(size), torch.arange(size * size, device=device).view(size, size)
    return torch.cat([grid, grid.T, grid.view(size // h, h, size // w, w).transpose(1, 2).reshape(size, size)])

def search(masks, limit=2, generator=None, width=4096):
    """Propagate and search on many Sudoku boards at once. masks: int32 [cells, B], bit d-1 set where digit d may be.
    Each board is searched until `limit` solutions are found or none is left. A guess takes the lowest digit of a cell
    with the fewest candidates, or a random one of its digits where `generator` is given. The `width` boards on top of a
    common stack are worked on together: one that moved goes back, a stuck one is split in two (the cell is the digit,
    the cell is not), a dead one is dropped. Returns found [B] (solutions, at least `limit` if it was reached), guesses
    [B] (splits) and answers [cells, B] (digits of one solution, 0 where there is none)."""
    (cells, B), device = masks.shape, masks.device
    size = math.isqrt(cells)
    full = (1 << size) - 1
    units = unit_cells(size, device).T.contiguous()                        # [size, 3 * size]
    member = torch.stack([(units == c).any(0).nonzero()[:, 0] for c in range(cells)], 1)   # [3, cells]: units of a cell
    bits = torch.arange(size, device=device, dtype=torch.int32)[:, None]
    popcount = (torch.arange(full + 1, device=device) >> bits & 1).sum(0)
    (found, guesses), answers = torch.zeros(2, B, dtype=torch.int64, device=device), torch.zeros_like(masks)
    stack, owner = masks, torch.arange(B, device=device)
    while len(owner):
        m, who = stack[:, -width:], owner[-width:]
        stack, owner = stack[:, :-width], owner[:-width]
        fixed = (m & (m - 1)) == 0
        packed = m | torch.where(fixed, m, 0) << 16                        # candidates below, settled digits above
        once, twice = torch.zeros(2, 3 * size, m.shape[1], dtype=torch.int32, device=device)
        for position in units:                                             # bits seen at least once, at least twice
            cell = packed[position]
            once, twice = once | cell, twice | once & cell
        alive = (m != 0).all(0) & ((once & full == full) & (twice <= full)).all(0) & (found[who] < limit)
        message = (once & ~full) | (once & ~twice & full)                  # settled digits | digits with one place left
        message = message[member[0]] | message[member[1]] | message[member[2]]   # [cells, boards]
        new = torch.where(fixed, m, m & ~(message >> 16))
        new = torch.where(new & message != 0, new & message, new)          # a digit's only place
        moved, done = (new != m).any(0), alive & fixed.all(0)
        found.index_add_(0, who[done], torch.ones_like(who[done]))
        column = torch.full((B,), -1, device=device).scatter_reduce(0, who[done], done.nonzero()[:, 0], "amax")
        answers = torch.where(column < 0, answers, m[:, column])           # of one board, had an owner two at once
        stuck, again = alive & ~moved & ~done, alive & moved
        board, asks = new[:, stuck], who[stuck]
        guesses.index_add_(0, asks, torch.ones_like(asks))
        choices = popcount[board.long()]
        cell = choices.masked_fill_(choices == 1, size + 1).argmin(0, keepdim=True)
        options = board.gather(0, cell)                                    # [1, boards]
        digit = options & -options
        if generator is not None:
            noise = torch.rand(size, len(asks), device=device, generator=generator)
            digit = (1 << (noise * (options >> bits & 1)).argmax(0, keepdim=True)).int()
        other, guess = (board.scatter(0, cell, choice) for choice in (options & ~digit, digit))
        stack = torch.cat([stack, other, new[:, again], guess], 1)         # guesses on top: depth first
        owner = torch.cat([owner, asks, who[again], asks])
    return found, guesses, (answers[None] >> bits[:, None] & 1).mul(bits[:, None] + 1).sum(0)

def to_masks(digits, size):
    """Digits [..., cells] (0 = blank) to masks [cells, ...] int32: one bit for a clue, all bits for a blank."""
    return torch.where(digits > 0, 1 << (digits.int() - 1).clamp(min=0), (1 << size) - 1).int().movedim(-1, 0)

def random_sudoku(size, count, seed=0, device="cpu"):
    """Random minimal Sudoku: `count` different solution grids, and of each as many clues as it takes for one solution.
    A clue of a solved grid may go if no solution has another digit there. Asking this once of every cell, in random
    order, leaves a minimal puzzle: a clue that was needed among more clues is needed among fewer.
    Returns questions, answers [count, cells] (digits, 0 = blank) and ratings [count] (guesses the solver needs)."""
    draw = torch.Generator(device).manual_seed(seed)
    grids = torch.empty(0, size * size, dtype=torch.int64, device=device)
    while len(grids) < count:
        empty = to_masks(torch.zeros(count, size * size, device=device), size)
        grids = torch.cat([grids, search(empty, limit=1, generator=draw)[2].T.long()]).unique(dim=0)
    grids = grids[torch.randperm(len(grids), generator=draw, device=device)[:count]]
    questions, rows = grids.clone(), torch.arange(count, device=device)
    for cell in torch.rand(count, size * size, generator=draw, device=device).argsort(1).T:
        masks = to_masks(questions, size)
        masks[cell, rows] = ~to_masks(grids[rows, cell], size) & ((1 << size) - 1)
        questions[rows, cell] = torch.where(search(masks, limit=1)[0] > 0, grids[rows, cell], 0)
    return questions, grids, search(to_masks(questions, size))[1]

# ---- Maze: breadth-first search on bit masks ------------------------------------------------------------------------
# A set of cells of many mazes is an int32 tensor [rows, mazes], with a bit for each cell of a row.
def moves(cells):
    """Where one goes from a set of cells by a step up, left, right and down: four sets, which still hold walls."""
    edge = torch.zeros_like(cells[:1])
    return torch.cat([cells[1:], edge]), cells >> 1, cells << 1, torch.cat([edge, cells[:-1]])

def flood(floor, start):
    """Breadth-first search in all mazes at once: yields the cells of floor at distance 0, 1, 2, ... from start."""
    seen, layer = start, start
    while layer.any():
        yield layer
        up, left, right, down = moves(layer)
        layer = (up | left | right | down) & floor & ~seen
        seen = seen | layer

def shortest_path(floor, start, goal):
    """The cells of one shortest path, both ends included: walked back from the goal, by the first of a step up, left,
    right and down that comes nearer to the start; and the number of its moves [mazes], -1 where there is none."""
    path, here = torch.zeros(2, *floor.shape, dtype=floor.dtype, device=floor.device)
    length = torch.full(floor.shape[1:], -1, device=floor.device)
    for layer in reversed(list(flood(floor, start))):
        steps, here = moves(here), layer & goal
        for step in steps:
            here = torch.where(here.any(0), here, step & layer)
        path, length = path | here, length + here.any(0)
    return path, length

def pack(cells, side):
    """bool [N, side * side] to a set of cells, int32 [side, N]."""
    return (cells.view(-1, side, side).int() << torch.arange(side, device=cells.device)).sum(-1).int().T

def unpack(cells, side):
    """The way back from `pack`."""
    return (cells.T[:, :, None] >> torch.arange(side, device=cells.device) & 1).bool().flatten(1)

def random_mazes(side, minimum, count, seed=0, device="cpu"):
    """`count` mazes with walls at random (density uniform in 0.3..0.5), of which the shortest path from start to goal
    has more than `minimum` moves. One that long is rare, so the start is a cell farthest from a random one, by which
    nearly the longest path of the maze is found, and the goal is any cell far enough from it.
    Returns their tokens [count, cells]. Raises ValueError if none is found among 200,000."""
    draw, found, tried = torch.Generator(device).manual_seed(seed), torch.empty(0, side * side, device=device).byte(), 0
    def pick(cells):
        """One cell of each set, at random: a set with a single cell, or none where there is none."""
        noise = torch.rand(cells.shape[1], side * side, generator=draw, device=device) * unpack(cells, side)
        return pack((noise == noise.amax(1, keepdim=True)) & (noise > 0), side)
    while len(found) < count:
        if tried > 200_000 and not len(found):
            refuse(f"no {side}x{side} maze has a shortest path over {minimum} moves: lower --min_path")
        density = torch.rand(4096, 1, generator=draw, device=device) * 0.2 + 0.3
        floor = pack(torch.rand(4096, side * side, generator=draw, device=device) > density, side)
        far, beyond = torch.zeros(2, *floor.shape, dtype=floor.dtype, device=device)
        for layer in flood(floor, pick(floor)):
            far = torch.where(layer.any(0), layer, far)
        start = pick(far)
        for d, layer in enumerate(flood(floor, start)):
            beyond = beyond | layer * (d > minimum)
        floor, start, goal = (unpack(cells[:, beyond.any(0)], side) for cells in (floor, start, pick(beyond)))
        found, tried = torch.cat([found, 1 + floor.byte() + start + 2 * goal]).unique(dim=0), tried + 4096
    return found[torch.randperm(len(found), generator=draw, device=device)[:count]]

# ---- Files ----------------------------------------------------------------------------------------------------------
# Every set of Sudoku and mazes, built here or downloaded, is a folder with train.csv and test.csv in the same format.
def read_csv(path, task, take=0, seed=0):
    """Read and check a file of puzzles (header source,question,answer,rating) in bounded memory.
    take: this many rows, drawn by `seed`; 0: all, in their order. Returns Puzzles on the CPU.
    Raises ValueError, naming file and line, where a row is no puzzle with its answer, or the file has too few rows."""
    draw, kept = torch.Generator().manual_seed(seed), []                   # chunks of random keys and Puzzles
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file)
            if next(reader, None) != HEADER:
                refuse(f"{path}, line 1: the header must be {','.join(HEADER)}")
            while rows := [(reader.line_num, *row) for row in itertools.islice(reader, 50_000)]:
                for line, *row in rows:
                    if len(row) != 4 or {len(row[1]), len(row[2])} != {task.length} or not row[3].isdecimal():
                        refuse(f"{path}, line {line}: must be a source, a question and an answer of {task.side}x"
                               f"{task.side} characters, and a rating in digits, not {','.join(row)[:200]!r}")
                lines, _, questions, answers, ratings = zip(*rows)
                question, answer = task.tokens(questions), task.tokens(answers)
                for wrong, what in (((question == 0).any(1), f"the question may hold only {task.letters}"),
                                    (~task.obeys(question, answer), f"the answer must {task.rule}")):
                    if wrong.any():
                        refuse(f"{path}, line {lines[wrong.int().argmax()]}: {what}; correct or remove the row")
                rating = torch.tensor([int(rating[:9]) for rating in ratings], dtype=torch.int32)
                kept.append((torch.rand(len(rows), generator=draw), question, answer, rating))
                if take:                                                   # those with the smallest random keys so far
                    merged = [torch.cat(column) for column in zip(*kept)]
                    kept = [[column[merged[0].argsort()[:take].sort()[0]] for column in merged]]
    except csv.Error as error:
        refuse(f"{path} is not a CSV file: {error}")
    except OSError as error:
        refuse(f"{path}: {error.strerror}; a data folder holds train.csv and test.csv")
    count = sum(len(part[0]) for part in kept)
    if count < max(take, 1):
        refuse(f"{path} has {count} puzzles, {max(take, 1)} are asked for; lower train_size or test_size")
    return Puzzles(*(torch.cat(column) for column in list(zip(*kept))[1:]))

def read_lines(task, lines, count, bad):
    """Puzzles [at most count, L] from text, one a line; bad lines are named on stderr and added to `bad`."""
    puzzles = []
    for number, line in enumerate(itertools.chain(lines, [None]), 1):      # None: the end
        try:
            puzzles += [task.parse(line.rstrip("\r\n"))] if line and line.strip() else []
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

# ---- The tasks as trm.py sees them ----------------------------------------------------------------------------------
class Grids:
    """What Sudoku and Maze have in common. cfg: a trm.Config, of which size, train_size, test_size, seed and min_path
    are used. folder: where train.csv and test.csv are; None: built-in puzzles. `train` and `test` are read, and built,
    when they are first asked for. Raises ValueError for a size that is not allowed, and what `read_csv` raises."""
    ids = 1
    def __init__(self, cfg, folder, device, name):
        self.cfg, self.device, self.side, self.length = cfg, device, cfg.size, cfg.size ** 2
        self.built_in, self.test_size = folder is None, cfg.test_size or 1000 * (folder is None)
        self.folder = Path(folder or f"puzzles/{name}-{cfg.train_size}+{self.test_size}-seed{cfg.seed}")
    train = cached_property(lambda self: self.read("train.csv", self.cfg.train_size))
    test = cached_property(lambda self: self.read("test.csv", self.test_size))
    def read(self, name, take):
        """One file of the folder as Puzzles on the device; built-in puzzles are made once, where they are missing."""
        if self.built_in and not (self.folder / "train.csv").exists():
            count, began = self.cfg.train_size + self.test_size, time.perf_counter()
            print(f"building {count} puzzles for {self.folder} ...", end=" ", flush=True)
            *grids, rating = (part.cpu() for part in self.generate(count))
            rows = [f"seed {self.cfg.seed},{self.text(question)},{self.text(answer)},{hard}\n"
                    for question, answer, hard in zip(*grids, rating.tolist())]
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, part in ("test.csv", rows[self.cfg.train_size:]), ("train.csv", rows[:self.cfg.train_size]):
                content = "".join([",".join(HEADER) + "\n", *part])        # train.csv is the last: all is done
                replace_file(self.folder / file, lambda path: Path(path).write_text(content))
            print(f"{time.perf_counter() - began:.0f} s", flush=True)
        puzzles = read_csv(self.folder / name, self, take, self.cfg.seed)
        return Puzzles(*(part.to(self.device) for part in vars(puzzles).values()))
    def draw(self, B):
        """B training puzzles drawn with replacement, each in a fresh symmetric copy: inputs, labels [B, L] int64."""
        rows = torch.randint(len(self.train), (B,), device=self.device)
        symmetry = self.symmetries(torch.randint(8, 16, (B,), device=self.device))
        return [transform(grids[rows], *symmetry).long() for grids in (self.train.inputs, self.train.labels)]
    def views(self, inputs, A):
        """A copies of each puzzle [P * A, L], the first as it is, the others symmetric; and what maps answers back."""
        symmetry = self.symmetries(torch.arange(A, device=inputs.device).repeat(len(inputs)))
        back = [part.argsort(1) for part in symmetry]
        return transform(inputs.repeat_interleave(A, 0), *symmetry), lambda answers: transform(answers, *back)
    def tokens(self, texts):
        """Grids as strings of L characters to uint8 tokens [N, L]; unknown characters become 0."""
        table = np.zeros(256, np.uint8)
        table[[ord(letter) for letter in self.glyphs[1:] + "0"]] = [*range(1, len(self.glyphs)), self.blank]
        letters = np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8)
        return torch.from_numpy(table[letters]).view(-1, self.length)
    def text(self, tokens):
        """One grid of tokens [L] as a string."""
        return "".join(self.glyphs[t] for t in tokens.tolist())
    def parse(self, text):
        """A puzzle typed as one line to tokens [1, L]. Raises ValueError naming what is wrong and where."""
        cell = lambda i: f"row {i // self.side + 1}, column {i % self.side + 1}"
        if len(text) != self.length:
            refuse(f"the puzzle has {len(text)} characters, a {self.side}x{self.side} grid has {self.length}")
        if bad := [i for i, letter in enumerate(text) if letter not in self.letters]:
            refuse(f"{cell(bad[0])}: {text[bad[0]]!r} is none of {self.letters}")
        self.check(text, cell)
        return self.tokens([text])

def transform(grids, cells, tokens):
    """Move the cells of grids [B, L] and rename their tokens, by the rows of cells [B, L] (the cell that each comes
    from) and of tokens [B, V] (what each becomes). The argsort of both along dim 1 is the way back: first the cells,
    then the tokens, which do not mind the order."""
    return tokens.gather(1, grids.gather(1, cells).long()).to(grids.dtype)

class Sudoku(Grids):
    """Sudoku, 9x9 or 6x6 (boxes of 2 rows and 3 columns), random and minimal; rated by the guesses it takes."""
    blank, groups = 1, {"0 guesses": (0, 0), "1-9": (1, 9), "10+": (10, math.inf)}
    rule = "keep the clues and have every digit once in each row, column and box"
    def __init__(self, cfg, folder=None, device="cpu"):
        if cfg.size not in (6, 9):
            refuse(f"--size {cfg.size}: Sudoku comes in size 6 and 9")
        super().__init__(cfg, folder, device, f"sudoku-{cfg.size}x{cfg.size}")
        self.vocab, self.glyphs, self.box = cfg.size + 2, "?.123456789"[:cfg.size + 2], box_shape(cfg.size)
        self.letters = f"{self.glyphs[1:]}0"
    def generate(self, count):
        """Puzzles, answers (tokens) and ratings, see `random_sudoku`."""
        questions, answers, rating = random_sudoku(self.side, count, self.cfg.seed, self.device)
        return questions + 1, answers + 1, rating
    def symmetries(self, kinds):
        """For each of kinds [B] a random symmetry, or none for kind 0, as `transform` takes it: digits, bands, rows in
        bands, stacks, columns in stacks, transposition where boxes are square."""
        B, device, size, (h, w) = len(kinds), kinds.device, self.side, self.box
        def lines(block):
            """A random order [B, size] of rows or columns that keeps blocks of `block` lines together."""
            blocks = torch.rand(B, size // block, 1, device=device).argsort(1)
            return (blocks * block + torch.rand(B, size // block, block, device=device).argsort(2)).flatten(1)
        cells = lines(h)[:, :, None] * size + lines(w)[:, None, :]         # [B, size, size]
        if h == w:
            cells = torch.where(torch.rand(B, 1, 1, device=device) < 0.5, cells.transpose(1, 2), cells)
        digits = torch.rand(B, size, device=device).argsort(1) + 2
        tokens = torch.cat([torch.arange(2, device=device).expand(B, 2), digits], 1)
        return [torch.where(kinds[:, None] == 0, torch.arange(part.shape[1], device=device), part)
                for part in (cells.flatten(1), tokens)]                    # [B, L], [B, V]
    def obeys(self, inputs, answers):
        """Do answers [N, L] keep the clues of inputs [N, L] and the rules? bool [N]."""
        digits = answers.int()[:, unit_cells(self.side, answers.device)]   # [N, 3 * size, size]
        once = digits.sort(-1).values == torch.arange(2, self.vocab, device=answers.device)
        return once.flatten(1).all(1) & ((inputs == 1) | (inputs == answers)).all(1)
    def check(self, text, cell):
        """Raise ValueError where two equal clues are in one row, column or box; cell(i) names a cell."""
        for unit in unit_cells(self.side).tolist():
            seen = {}
            for i in (c for c in unit if text[c] not in ".0"):
                if seen.setdefault(text[i], i) != i:
                    refuse(f"the puzzle contradicts itself: {cell(seen[text[i]])} and {cell(i)} hold {text[i]}")
    def describe(self, inputs):
        """What the solver knows of a puzzle [1, L]: words, and the answer [L] where there is just one, else None."""
        found, guesses, answer = search(to_masks(inputs.cpu() - 1, self.side))
        if found == 1:
            return f"a puzzle with exactly one solution, {guesses.item()} guesses", (answer[:, 0] + 1).byte()
        return "a puzzle with no solution" if found == 0 else "a puzzle with several solutions", None

class Maze(Grids):
    """Mazes of any size up to 30: mark a shortest path from S to G; rated by its moves."""
    vocab, blank, glyphs, letters, rule = 6, 2, "?# SGo", "# SG", "mark with 'o' one shortest path from the S to the G"
    groups = {"to 20 moves": (0, 20), "21-50": (21, 50), "51-110": (51, 110), "111+": (111, math.inf)}
    def __init__(self, cfg, folder=None, device="cpu"):
        if cfg.size > 30:
            refuse(f"--size {cfg.size}: mazes are at most 30x30")
        super().__init__(cfg, folder, device, f"maze-{cfg.size}x{cfg.size}-over{cfg.min_path}")
        self.box = cfg.size, cfg.size
    def generate(self, count):
        """Mazes, answers (tokens) and lengths, see `random_mazes`."""
        mazes = random_mazes(self.side, self.cfg.min_path, count, self.cfg.seed, self.device)
        return mazes, *self.mark(mazes)
    def draw(self, B):
        """As for all grids; but where the answers come from `mark`, those of turned mazes do, too: turned answers would
        follow another rule each, and which of eight holds cannot be told from a maze."""
        inputs, labels = super().draw(B)
        return inputs, self.mark(inputs)[0] if self.built_in else labels
    def mark(self, mazes):
        """Mazes [N, L] with the cells of a `shortest_path` marked, and the number of its moves [N], -1 if none."""
        path, length = shortest_path(*(pack(cells, self.side) for cells in (mazes > 1, mazes == 3, mazes == 4)))
        return torch.where(unpack(path, self.side) & (mazes == 2), 5, mazes), length
    def symmetries(self, kinds):
        """For kinds [B] the symmetry of the square of that number (mod 8; 0: none), as `transform` takes it."""
        grid = torch.arange(self.length, device=kinds.device).view(self.side, -1)
        turns = torch.stack([g.rot90(i).flatten() for g in (grid, grid.T) for i in range(4)])
        return turns[kinds % 8], torch.arange(6, device=kinds.device).expand(len(kinds), 6)
    def obeys(self, inputs, answers):
        """Do answers [N, L] mark on inputs [N, L] a shortest path, any of them, and change nothing else? bool [N]."""
        kept = ((inputs == answers) & (inputs != 5) | (inputs == 2) & (answers == 5)).all(1)
        ends = ((inputs == 3).sum(1) == 1) & ((inputs == 4).sum(1) == 1)
        shortest, along = (self.mark(grids)[1] for grids in (inputs, torch.where(answers == 2, 1, answers)))
        return kept & ends & ((answers == 5).sum(1) + 1 == shortest) & (along == shortest)
    def check(self, text, cell):
        """Raise ValueError unless there are one S and one G."""
        if (text.count("S"), text.count("G")) != (1, 1):
            refuse(f"the maze has {text.count('S')} S and {text.count('G')} G, not one of each")
    def describe(self, inputs):
        """What is known of a maze [1, L]: words, and the answer [L] or None."""
        answer, length = self.mark(inputs)
        return ("a maze with no path", None) if length < 0 else (f"a maze of {length.item()} moves", answer[0])

TASKS = {"sudoku": Sudoku, "maze": Maze}

# ---- Drawing --------------------------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "34", "wrong": "7;33", "plain": ""}   # bold, blue, yellow reversed
FILL = {"given": "#cccccc", "right": "#8fd3f4", "wrong": "#f0a030", "plain": "#ffffff"}   # for the colour-blind too

def cells(task, inputs, answer, label=None, last=None):
    """Of each cell of one grid (tokens [L]): row, column, letter, is it given, right, wrong or (a blank that stays one,
    or no label tells) plain, and has it changed since `last`."""
    for i, (x, a) in enumerate(zip(inputs.tolist(), answer.tolist())):
        kind = "given" if x != task.blank else "plain" if label is None or a == label[i] == x else "right"
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
    print(f"\n{known}:\n{show(task, last, last)}")
    for k, (answer, probability, latent) in enumerate(steps, 1):
        right = "" if label is None else f", {(answer == label).sum()} of {task.length} cells right"
        print(f"\nstep {k}: halting probability {probability:.3f}{right}")
        if changed := (answer != last).any():
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
def download(url, path, begins):
    """Fetch `url` to `path` with progress. What has come waits in PATH.part: a cut download goes on from there; only
    a file of the size that the server announced, that begins as it must, gets its name. Raises ValueError."""
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            size = reply.headers["Content-Length"] or refuse(f"{url}: the server does not tell the size; use a mirror")
            with open(part, "ab" if reply.status == 206 else "wb") as file:   # 206: the rest; else the whole file
                have, total = file.tell(), file.tell() + int(size)
                while block := reply.read(1 << 20):
                    have += file.write(block)
                    print(f"\r{path.name}: {have / 1e6:.1f} of {total / 1e6:.1f} MB", end="", file=sys.stderr)
        print(file=sys.stderr)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "code", 0) == 416:                               # there is nothing behind what is here
            part.unlink()
        refuse(f"{url}: {error}; run the command again to go on from {have / 1e6:.1f} MB")
    if have != total:
        refuse(f"{url}: cut at {have} of {total} bytes; run the command again to go on from there")
    with open(part, "rb") as file:
        if file.read(len(begins)) != begins:
            part.unlink()
            refuse(f"{url} is not what it should be: it does not begin with {begins.decode()}; removed")
    os.replace(part, path)

def main():
    """`python data.py sudoku-extreme` (or maze-hard): download it into puzzles/; HF_ENDPOINT names a mirror."""
    sets = {"sudoku-extreme": "sapientinc/sudoku-extreme", "maze-hard": "sapientinc/maze-30x30-hard-1k"}
    if len(sys.argv) != 2 or sys.argv[1] not in sets:
        refuse(f"usage: python data.py {' | '.join(sets)}")
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for name in "train.csv", "test.csv":
        path = Path("puzzles") / sys.argv[1] / name
        if path.exists():
            print(f"{path} is there already")
        else:
            download(f"{base}/datasets/{sets[sys.argv[1]]}/resolve/main/{name}", path, ",".join(HEADER).encode())

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        sys.exit(2)
