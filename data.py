"""Puzzles as tensors: build, read, check, augment and draw them. Everything here is data; the method is in trm.py,
which knows only these members of a task (Sudoku, Maze and ARC, below):
    length, vocab, ids, train, test  cells L, vocabulary V, number of puzzle identities; Puzzles on the device
    draw(B)                          a training batch, each puzzle in a random symmetric copy: inputs, labels, ids
    views(inputs, ids, A)            A symmetric copies of each puzzle, their ids, and what maps their answers back
    parse(text), describe(puzzle)    a puzzle that the user types or names, and what is known about it
    obeys(inputs, answers, labels)   are the answers right? where there is a `rule`, this needs no labels
    groups, report(attempts, rank)   for the results: name, lowest and highest rating of a group; what else to print
    side, box, glyphs, blank         for drawing: cells in a line, shape of a box, letters of tokens, token of a blank
Tokens (section 4 of the paper, and the published code): 0 is padding; Sudoku: 1 a blank, 2..10 the digits 1..9; Maze:
1..5 wall, floor, start, goal, path; ARC: 1 end mark, 2..11 colours 0..9."""
import csv, difflib, http.client, itertools, json, math, os, sys, urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
HEADER = ["source", "question", "answer", "rating"]   # the columns of every Sudoku and Maze file
def refuse(message, word="", known=()):
    """Raise a ValueError; where it is about an unknown word, with the nearest of the known ones, or all of them."""
    match = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {match[0]}?" if match else f"; there are: {', '.join([*known][:20])}" if known else ""
    raise ValueError(message + hint)
def run(program, main):
    """Exit with the status that main() returns; a mistake of the user's becomes one line on stderr and status 2."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:                                                # nobody reads on, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        line, torchs = str(error).partition("\n")[0], isinstance(error, RuntimeError)
        if torchs and "memory" not in line and "overflow" not in line:     # no mistake of the user's: show where
            raise
        hint = "lower what is too large, or --micro_batch: " * (torchs or isinstance(error, MemoryError))
        sys.exit(print(f"{program}: {hint}{line}", file=sys.stderr) or 2)

@dataclass
class Puzzles:
    """A set of puzzles on one device: `inputs` and `labels` [N, L] uint8 tokens (0 where none is known), `rating` [N]
    (guesses that a Sudoku takes, moves of a maze, number of an ARC task), `ids` [N] int64, their puzzle identities."""
    inputs: torch.Tensor
    labels: torch.Tensor
    rating: torch.Tensor
    ids: torch.Tensor
    __len__ = lambda self: len(self.inputs)
    __getitem__ = lambda self, rows: Puzzles(*(part[rows] for part in vars(self).values()))
    to = lambda self, device: Puzzles(*(part.to(device) for part in vars(self).values()))
# ---- Sudoku: the solver and the generator ---------------------------------------------------------------------------
# Candidates are bit masks, boards the columns of a matrix [cells, boards]: each operation works on thousands of them.
def unit_cells(size, device="cpu"):
    """The cells of every row, then of every column, then of every box (9: 3x3, 6: 2x3): int64 [3 * size, size]."""
    h, w, grid = math.isqrt(size), size // math.isqrt(size), torch.arange(size * size, device=device).view(size, size)
    return torch.cat([grid, grid.T, grid.view(size // h, h, size // w, w).transpose(1, 2).reshape(size, size)])
def search(masks, limit=2, generator=None, width=4096):
    """Propagate and search on many Sudoku boards at once. masks: int32 [cells, B], bit d-1 set where digit d may be.
    Each board is searched until `limit` solutions are found or none is left. A guess takes the lowest digit of a cell
    with the fewest candidates, or with a `generator` a random one of its digits. The `width` boards on top of a stack
    are worked on together: one that moved goes back, a stuck one is split (is the digit, is not), a dead one dropped.
    Returns found [B] (solutions), guesses [B] (splits), answers [cells, B] (digits of one solution, 0 if none)."""
    (cells, B), device = masks.shape, masks.device
    full = (1 << (size := math.isqrt(cells))) - 1
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
    A clue may go if no solution has another digit there; to ask once of every cell, in random order, is enough: a clue
    needed among more is needed among fewer. Returns tokens of questions, answers [count, cells] and ratings [count]."""
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
    return questions + 1, grids + 1, search(to_masks(questions, size))[1]
# ---- Maze: breadth-first search on bit masks ------------------------------------------------------------------------
# A set of cells of many mazes is an int32 tensor [rows, mazes], with a bit for each cell of a row.
def moves(cells):
    """Where one goes from a set of cells by a step up, left, right and down: four sets, which still hold walls."""
    return F.pad(cells, (0, 0, -1, 1)), cells >> 1, cells << 1, F.pad(cells, (0, 0, 1, -1))
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
    has more than `minimum` moves. That is rare: the start is a cell farthest from a random one, which finds nearly the
    longest path, the goal any cell far enough from it. Tokens [count, cells]. Raises ValueError if 200,000 had none."""
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
        for d, layer in enumerate(flood(floor, start := pick(far))):
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
    except (csv.Error, OSError) as error:
        refuse(f"{path}: {getattr(error, 'strerror', error)}; a data folder holds train.csv and test.csv")
    count = sum(len(part[0]) for part in kept)
    if count < max(take, 1):
        refuse(f"{path} has {count} puzzles, {max(take, 1)} are asked for; lower train_size or test_size")
    return Puzzles(*(torch.cat(column) for column in list(zip(*kept))[1:]), torch.zeros(count, dtype=torch.int64))
def replace_file(path, content):
    """Write `content`, bytes, beside `path` and move it there: no half file has its name. Raises ValueError."""
    part = Path(f"{path}.part{os.environ.get('RANK', '')}")                # not that of another process
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        refuse(f"{path} cannot be written, what was there is kept: {error.strerror}")
# ---- The tasks as trm.py sees them ----------------------------------------------------------------------------------
class Grids:
    """What Sudoku and Maze have in common. cfg: a trm.Config. folder: where train.csv and test.csv are; None: built-in
    puzzles. Both are read, and built, when first asked for. Raises ValueError for a size that there is not."""
    ids, report = 1, lambda self, attempts, rank: None                     # the table of results says all
    def __init__(self, cfg, folder, device, name, sizes):
        if cfg.size not in sizes:
            refuse(f"--size {cfg.size}: {cfg.task} comes in sizes {', '.join(map(str, sizes))}")
        self.cfg, self.device, self.side, self.length = cfg, device, cfg.size, cfg.size ** 2
        self.built_in, self.test_size = folder is None, cfg.test_size or 1000 * (folder is None)
        self.folder = Path(folder or f"puzzles/{name}-{cfg.train_size}+{self.test_size}-seed{cfg.seed}")
    train = cached_property(lambda self: self.read("train.csv", self.cfg.train_size))
    test = cached_property(lambda self: self.read("test.csv", self.test_size))
    def read(self, name, take):
        """One file of the folder as Puzzles on the device. Built-in ones are made where train.csv, the last, is not."""
        if self.built_in and not (self.folder / "train.csv").exists():
            print(f"building {self.folder} ...", flush=True)
            *grids, rating = (part.cpu() for part in self.generate(self.cfg.train_size + self.test_size))
            rows = [f"seed {self.cfg.seed},{self.text(question)},{self.text(answer)},{hard}\n"
                    for question, answer, hard in zip(*grids, rating.tolist())]
            self.folder.mkdir(parents=True, exist_ok=True)
            for kind, part in ("test", rows[self.cfg.train_size:]), ("train", rows[:self.cfg.train_size]):
                replace_file(self.folder / f"{kind}.csv", f"{','.join(HEADER)}\n{''.join(part)}".encode())
        return read_csv(self.folder / name, self, take, self.cfg.seed).to(self.device)
    def draw(self, B):
        """B training puzzles drawn with replacement, each in a fresh symmetric copy: inputs, labels [B, L], ids [B]."""
        rows = torch.randint(len(self.train), (B,), device=self.device)
        symmetry = self.symmetries(torch.randint(8, 16, (B,), device=self.device))
        return *(transform(grids[rows], *symmetry).long() for grids in (self.train.inputs, self.train.labels)), 0 * rows
    def views(self, inputs, ids, A):
        """A copies of each puzzle [P * A, L], the first as it is, the others symmetric; their ids; what maps back."""
        symmetry = self.symmetries(torch.arange(A, device=inputs.device).repeat(len(inputs)))
        back, ids = [part.argsort(1) for part in symmetry], ids.repeat_interleave(A)
        return transform(inputs.repeat_interleave(A, 0), *symmetry), ids, lambda answers: transform(answers, *back)
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
        """A puzzle typed as one line, as Puzzles (one, no label). Raises ValueError naming what is wrong and where."""
        cell = lambda i: f"row {i // self.side + 1}, column {i % self.side + 1}"
        if len(text) != self.length:
            refuse(f"the puzzle has {len(text)} characters, a {self.side}x{self.side} grid has {self.length}")
        if bad := [i for i, letter in enumerate(text) if letter not in self.letters]:
            refuse(f"{cell(bad[0])}: {text[bad[0]]!r} is none of {self.letters}")
        self.check(text, cell)
        return Puzzles(self.tokens([text]), torch.zeros(1, self.length).byte(), *torch.zeros(2, 1).long())
def transform(grids, cells, tokens):
    """Move the cells of grids [B, L] and rename their tokens, by the rows of cells [B, L] (the cell that each comes
    from) and of tokens [B, V] (what each becomes). The argsort of both along dim 1 is the way back."""
    return tokens.gather(1, grids.gather(1, cells).long()).to(grids.dtype)
def turns(side, device):
    """The 8 symmetries of a square as `transform` takes cells, itself first: int64 [8, side * side]."""
    grid = torch.arange(side * side, device=device).view(side, side)
    return torch.stack([g.rot90(i).flatten() for g in (grid, grid.T) for i in range(4)])

class Sudoku(Grids):
    """Sudoku, 9x9 or 6x6 (boxes of 2 rows and 3 columns), random and minimal; rated by the guesses it takes."""
    blank, groups = 1, {"0 guesses": (0, 0), "1-9": (1, 9), "10+": (10, math.inf)}
    rule = "keep the clues and have every digit once in each row, column and box"
    def __init__(self, cfg, folder=None, device="cpu"):
        super().__init__(cfg, folder, device, f"sudoku-{cfg.size}x{cfg.size}", (6, 9))
        self.vocab, self.glyphs, self.box = cfg.size + 2, "?.123456789"[:cfg.size + 2], (cfg.size // 3, 3)
        self.letters = f"{self.glyphs[1:]}0"
    generate = lambda self, count: random_sudoku(self.side, count, self.cfg.seed, self.device)
    def symmetries(self, kinds):
        """For each of kinds [B] a random symmetry, for 0 none: digits, bands, rows, stacks, columns, transposition."""
        B, device, size, (h, w) = len(kinds), kinds.device, self.side, self.box
        random = lambda *shape: torch.rand(B, *shape, device=device)       # its argsort is a random order ...
        lines = lambda block: (random(size // block, 1).argsort(1) * block   # ... of blocks, and of lines in blocks
                               + random(size // block, block).argsort(2)).flatten(1)
        cells = lines(h)[:, :, None] * size + lines(w)[:, None, :]         # [B, size, size]
        cells = torch.where((random(1, 1) < 0.5) & (h == w), cells.transpose(1, 2), cells)
        tokens = torch.cat([torch.arange(2, device=device).expand(B, 2), random(size).argsort(1) + 2], 1)
        return [torch.where(kinds[:, None] == 0, torch.arange(part.shape[1], device=device), part)
                for part in (cells.flatten(1), tokens)]                    # [B, L], [B, V]
    def obeys(self, inputs, answers, labels=None):
        """Do answers [N, L] keep the clues of inputs [N, L] and the rules? bool [N]."""
        digits = answers.int()[:, unit_cells(self.side, answers.device)]   # [N, 3 * size, size]
        once = digits.sort(-1).values == torch.arange(2, self.vocab, device=answers.device)
        return once.flatten(1).all(1) & ((inputs == 1) | (inputs == answers)).all(1)
    def check(self, text, cell):
        """Raise ValueError where two equal clues are in one row, column or box; cell(i) names a cell."""
        for unit in unit_cells(self.side).tolist():
            for i, j in itertools.combinations(unit, 2):
                if text[i] == text[j] not in ".0":
                    refuse(f"the puzzle contradicts itself: {cell(i)} and {cell(j)} hold {text[i]}")
    def describe(self, puzzle):
        """What the solver knows of a puzzle: words, and the answer [L] where there is just one, else None."""
        found, guesses, answer = search(to_masks(puzzle.inputs - 1, self.side))
        if found == 1:
            return f"a puzzle with exactly one solution, {guesses.item()} guesses", (answer[:, 0] + 1).byte()
        return "a puzzle with no solution" if found == 0 else "a puzzle with several solutions", None

class Maze(Grids):
    """Mazes of any size up to 30: mark a shortest path from S to G; rated by its moves."""
    vocab, blank, glyphs, letters, rule = 6, 2, "?# SGo", "# SG", "mark with 'o' one shortest path from the S to the G"
    groups = {"to 20 moves": (0, 20), "21-50": (21, 50), "51-110": (51, 110), "111+": (111, math.inf)}
    def __init__(self, cfg, folder=None, device="cpu"):
        super().__init__(cfg, folder, device, f"maze-{cfg.size}x{cfg.size}-over{cfg.min_path}", range(2, 31))
        self.box = cfg.size, cfg.size
    generate = lambda self, count: (mazes := random_mazes(self.side, self.cfg.min_path, count, self.cfg.seed,
                                                          self.device), *self.mark(mazes))
    def draw(self, B):
        """As for all grids; but where the answers come from `mark`, those of turned mazes do, too: turned answers would
        follow another rule each, and which of eight holds cannot be told from a maze."""
        inputs, labels, ids = super().draw(B)
        return inputs, self.mark(inputs)[0] if self.built_in else labels, ids
    def mark(self, mazes):
        """Mazes [N, L] with the cells of a `shortest_path` marked, and the number of its moves [N], -1 if none."""
        path, length = shortest_path(*(pack(cells, self.side) for cells in (mazes > 1, mazes == 3, mazes == 4)))
        return torch.where(unpack(path, self.side) & (mazes == 2), 5, mazes), length
    def symmetries(self, kinds):
        """For kinds [B] the symmetry of the square of that number (mod 8; 0: none), as `transform` takes it."""
        return turns(self.side, kinds.device)[kinds % 8], torch.arange(6, device=kinds.device).expand(len(kinds), 6)
    def obeys(self, inputs, answers, labels=None):
        """Do answers [N, L] mark on inputs [N, L] a shortest path, any of them, and change nothing else? bool [N]."""
        kept = ((inputs == answers) & (inputs != 5) | (inputs == 2) & (answers == 5)).all(1)
        ends = ((inputs == 3).sum(1) == 1) & ((inputs == 4).sum(1) == 1)
        shortest, along = (self.mark(grids)[1] for grids in (inputs, torch.where(answers == 2, 1, answers)))
        return kept & ends & ((answers == 5).sum(1) + 1 == shortest) & (along == shortest)
    def check(self, text, cell):
        """Raise ValueError unless there are one S and one G."""
        if (text.count("S"), text.count("G")) != (1, 1):
            refuse(f"the maze has {text.count('S')} S and {text.count('G')} G, not one of each")
    def describe(self, puzzle):
        """What is known of a maze: words, and the answer [L] or None."""
        answer, length = self.mark(puzzle.inputs)
        return ("a maze with no path", None) if length < 0 else (f"a maze of {length.item()} moves", answer[0])
# ---- ARC-AGI --------------------------------------------------------------------------------------------------------
# A grid of at most 30x30 lies in a frame of that size, with end marks (1) in the row below and the column right of it.
def frame(grids, shift, side):
    """Frames [N, L] with the grids [N, L] (tokens above 1, a rectangle anywhere) shift [N, 2] down and right."""
    inside, line = grids.view(-1, side, side) > 1, torch.arange(side, device=grids.device)
    r, c = (inside.any(axis).byte().argmax(1)[:, None] + line - part[:, None] for axis, part in zip((2, 1), shift.T))
    source = (r % side)[:, :, None] * side + (c % side)[:, None]           # goes around the edges: there is nothing
    grids = grids.gather(1, source.flatten(1)).view(-1, side, side)
    inside = grids > 1
    end = F.pad(inside, (0, 0, 1, -1)) | F.pad(inside, (1, -1))
    return torch.where(inside, grids, end).flatten(1)
def crop(frames, side):
    """Grids [N, L], 0 around: the largest rectangle at the top left of frames [N, L] without end mark or padding."""
    cells, line = frames.view(-1, side, side), torch.arange(1, side + 1, device=frames.device)
    whole = (cells > 1).byte().cummin(1)[0].cummin(2)[0]                   # is all from the corner to here a grid?
    best = (whole * (line[:, None] * line)).flatten(1).argmax(1)[:, None, None]
    inside = (line[:, None] <= best // side + 1) & (line <= best % side + 1) & (cells > 1)
    return torch.where(inside, cells, 0).flatten(1)
def read_json(path):
    """What is in a JSON file. Raises ValueError, naming it."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        refuse(f"{path}: {error}; `make arc` downloads the tasks, --data names another folder")
def read_grid(rows):
    """A grid of a JSON file as an array of tokens, empty for None. Raises ValueError for what is no grid."""
    grid = np.array(np.zeros((0, 1), int) if rows is None else rows)
    if grid.ndim != 2 or grid.dtype.kind != "i" or max(grid.shape) > 30 or ((grid < 0) | (grid > 9)).any():
        refuse(f"{str(rows)[:60]} is no grid")
    return (grid + 2).astype(np.uint8)

class ARC:
    """ARC-AGI: each task has a rule of its own, shown by a few pairs of grids. All pairs of the tasks of cfg.sets are
    trained on, but for the test pairs of the last set: they are the unseen puzzles. A task in one of its augmentations
    (a symmetry and a permutation of colours 1..9; at most cfg.variants of them, and itself) is a puzzle identity.
    folder (puzzles/arc) has arc-agi_SET_challenges.json and _solutions.json, or SET/*.json, a task each. cfg.size < 30
    leaves out tasks with larger grids, cfg.train_size is the most tasks a set. Raises ValueError, naming the file."""
    vocab, blank, glyphs, groups, rule = 12, 0, " |0123456789", {}, None
    def __init__(self, cfg, folder=None, device="cpu"):
        self.cfg, self.device, self.side, self.length = cfg, device, cfg.size, cfg.size ** 2
        self.folder, self.box, sets = Path(folder or "puzzles/arc"), (cfg.size, cfg.size), cfg.sets.split(",")
        if {"training2", "evaluation2"} & set(sets) and {"training", "evaluation"} & set(sets):
            refuse("--sets: ARC-AGI-1 and 2 are not for training together: 2's training set holds 1's evaluation tasks")
        self.names, pairs = [], ([], [])                                   # (task, input, output): known, unseen
        for name in sets:
            for key, task in itertools.islice(self.read(name, name == sets[-1]), cfg.train_size):
                pairs[0].extend((len(self.names), *pair) for pair in task["train"])
                pairs[name == sets[-1]].extend((len(self.names), *pair) for pair in task["test"])
                self.names.append(key)
        if not self.names:
            refuse(f"{self.folder} has no tasks for --sets {cfg.sets} with all grids within {cfg.size}x{cfg.size}")
        self.augment(pairs[0] + pairs[1])
        self.train, self.test = (self.puzzles(*zip(*part)) for part in pairs)
        self.count = torch.bincount(self.train.rating)                     # training pairs of each task
    def read(self, name, last):
        """Yields of the tasks of a set, in order, name and {"train" and "test": [(input, output)]}, arrays of tokens;
        outputs that are not told are empty, which may be so with the test pairs of the `last` set."""
        whole, told = (self.folder / f"arc-agi_{name}_{kind}.json" for kind in ("challenges", "solutions"))
        files = [] if whole.exists() else sorted((self.folder / name).glob("*.json"))
        tasks = {path.stem: read_json(path) for path in files} if files else read_json(whole)
        solutions = read_json(told) if not files and told.exists() else {}
        for key, task in sorted(tasks.items()):
            where = f"{self.folder / name / key}.json" if files else f"{whole}, task {key}"
            try:
                for pair, output in zip(task["test"], solutions.get(key, [])):
                    pair["output"] = output
                for pair in task["test"] if last else ():
                    pair.setdefault("output", None)
                task = {kind: [[read_grid(pair[side]) for side in ("input", "output")] for pair in task[kind]]
                        for kind in ("train", "test")}
                task["train"][0], task["test"][0]
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                refuse(f"{where}: must hold train and test, lists of pairs of input and output (or {told.name} them), "
                       f"grids of 1 to 30 equal rows of 1 to 30 numbers 0 to 9; {type(error).__name__}: {error}")
            if max(max(grid.shape) for pairs in task.values() for pair in pairs for grid in pair) <= self.side:
                yield key, task
    def augment(self, pairs):
        """The table of identities: `kinds` [ids] of `turns`, `colours` [ids, V]; `first` [tasks], the identity that is
        the task itself, and `variants` [tasks], their number. Of 5000 drawn ones a task takes the first that differ."""
        draw, used = np.random.default_rng(self.cfg.seed), [set() for _ in self.names]
        for task, *grids in pairs:
            used[task].update(token for grid in grids for token in np.unique(grid).tolist())
        kinds, colours = draw.integers(0, 8, 5000), np.tile(np.arange(12), (5000, 1))
        colours[1:, 3:], kinds[0] = draw.permuted(colours[1:, 3:], axis=1), 0   # 0 stays black
        keys = (colours[:, sorted(tokens)] @ 12 ** np.arange(len(tokens)) * 8 + kinds for tokens in used)
        rows = [np.sort(np.unique(key, return_index=True)[1])[:1 + self.cfg.variants] for key in keys]
        self.kinds, self.colours = (torch.from_numpy(table[np.concatenate(rows)]).to(self.device)
                                    for table in (kinds, colours.astype(np.uint8)))
        self.variants = torch.tensor([len(row) for row in rows], device=self.device)
        self.first, self.ids = self.variants.cumsum(0) - self.variants, len(self.kinds)
    def puzzles(self, tasks, inputs, outputs):
        """Puzzles of pairs; `rating` is the number of the task."""
        grids, tasks = np.zeros((2 * len(tasks), self.side, self.side), np.uint8), torch.tensor(tasks)
        for corner, grid in zip(grids, [*inputs, *outputs]):
            corner[:len(grid), :grid.shape[1]] = grid
        grids = frame(torch.from_numpy(grids).flatten(1), torch.zeros(len(grids), 2).long(), self.side)
        return Puzzles(*grids.chunk(2), tasks, self.first.cpu()[tasks]).to(self.device)
    symmetries = lambda self, ids: (turns(self.side, ids.device)[self.kinds[ids]], self.colours[ids])
    def draw(self, B):
        """A batch packed from tasks in random order: of each all pairs in one identity, but one shifted at random."""
        random, N = (lambda *shape: torch.rand(shape, device=self.device)), len(self.names)
        tasks, slot = random(N).argsort().repeat(B // N + 1)[:B], torch.arange(B, device=self.device)
        ends = self.count[tasks].cumsum(0)
        which = torch.searchsorted(ends, slot, right=True)                 # [B], of the drawn tasks
        variant, unmoved = ((random(B) * size[tasks]).long()[which] for size in (self.variants, self.count))
        within, tasks = slot - (ends - self.count[tasks])[which], tasks[which]
        ids, rows = self.first[tasks] + variant, (self.count.cumsum(0) - self.count)[tasks] + within
        grids = [transform(part[rows], *self.symmetries(ids)) for part in (self.train.inputs, self.train.labels)]
        inside = torch.stack(grids).view(2, B, self.side, self.side) > 1
        size = torch.stack([inside.any(3).sum(2), inside.any(2).sum(2)], 2).amax(0)   # [B, 2], rows and columns
        shift = (random(B, 2) * (self.side + 1 - size)).long() * (within != unmoved)[:, None]
        return *(frame(part, shift, self.side).long() for part in grids), ids
    def views(self, inputs, ids, A):
        """Each puzzle in the first A identities of its task, where there are fewer from the first again; see Grids."""
        tasks = torch.searchsorted(self.first, ids, right=True) - 1
        ids = (ids[:, None] + torch.arange(A, device=ids.device) % self.variants[tasks, None]).flatten()
        symmetry, shift = self.symmetries(ids), torch.zeros(len(ids), 2).to(ids)
        back = [part.argsort(1) for part in symmetry]
        return (frame(transform(inputs.repeat_interleave(A, 0), *symmetry), shift, self.side), ids,
                lambda answers: frame(transform(crop(answers, self.side), *back), shift, self.side))
    obeys = lambda self, inputs, answers, labels: ((answers == labels) | (labels == 0)).all(1) & labels.any(1)
    def parse(self, text):
        """An unseen puzzle of a task, the first or the k-th, by name: NAME or NAME:k. Raises ValueError."""
        groups = itertools.groupby(self.test.rating.tolist())
        names = [f"{self.names[task]}:{k}" for task, group in groups for k, _ in enumerate(group, 1)]   # of all unseen
        name = text if ":" in text else f"{text}:1"
        row = names.index(name) if name in names else refuse(f"there is no unseen puzzle {name}", name, names)
        return self.test[[row]].to("cpu")
    def text(self, tokens):
        """The grid in a frame [L] as JSON."""
        rows = crop(tokens[None].cpu(), self.side).view(self.side, -1).tolist()
        return json.dumps([[token - 2 for token in row if token] for row in rows if row[0]] or [[0]])
    def describe(self, puzzle):
        """The demonstration pairs of a puzzle, drawn, and its answer [L], None where it is not told."""
        known = self.train[self.train.ids == puzzle.ids.to(self.device)].to("cpu")
        pairs = (f"{show(self, x, x)}\nbecomes\n{show(self, y, y)}\n" for x, y in zip(known.inputs, known.labels))
        label = puzzle.labels[0] if puzzle.labels.any() else None
        return "\n".join([f"task {self.names[puzzle.rating]}:", *pairs, "what becomes of"]), label
    def report(self, attempts, rank):
        """Print pass@K, the share of test inputs with the truth among the first K answers (mean over each task's, then
        over tasks), and write the competition's submission.json with attempts [N, 2, L]."""
        task, submission = self.test.rating.cpu(), {}
        weight = 1 / task.bincount()[task] / len(task.unique())
        if self.test.labels.any():
            passed = (f"pass@{K} {100 * weight[rank < K].sum():.1f} %" for K in (1, 2, 5, 10, 100, 1000))
            copied = weight[(self.test.inputs == self.test.labels).all(1).cpu()].sum()
            print(f"{len(task.unique())} tasks: {', '.join(passed)}; copying the input {100 * copied:.1f} %")
        for number, pair in zip(task.tolist(), attempts):
            grids = {f"attempt_{k}": json.loads(self.text(grid)) for k, grid in enumerate(pair, 1)}
            submission.setdefault(self.names[number], []).append(grids)
        replace_file("submission.json", json.dumps(submission).encode())
        print("wrote submission.json")

TASKS = {"sudoku": Sudoku, "maze": Maze, "arc": ARC}
# ---- Drawing --------------------------------------------------------------------------------------------------------
ANSI = {"given": "1", "right": "34", "wrong": "7;33", "plain": ""}   # bold, blue, yellow reversed
FILL = {"given": "#cccccc", "right": "#8fd3f4", "wrong": "#f0a030", "plain": "#ffffff"}   # for the colour-blind too
SQUARES = {str(c): f"48;5;{n};38;5;{n}" for c, n in enumerate((0, 27, 9, 34, 11, 245, 201, 208, 45, 88))}   # of ARC
def cells(task, inputs, answer, label=None, last=None):
    """Of each cell of one grid (tokens [L]): row, column, letter, is it given, right, wrong or (a blank that stays one,
    or no label tells) plain, and has it changed since `last`."""
    for i, (x, a) in enumerate(zip(inputs.tolist(), answer.tolist())):
        kind = "given" if x != task.blank else "plain" if label is None or a == x else "right"
        kind = "wrong" if label is not None and a != label[i] else kind
        yield *divmod(i, task.side), task.glyphs[a], kind, last is not None and bool(a != last[i])
def show(task, inputs, answer, label=None):
    """One grid (tokens [L]) as text; on a terminal, without NO_COLOR: clues bold, right cells blue, wrong yellow."""
    (h, w), lines, colour = task.box, [], sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for r, c, text, kind, _ in cells(task, inputs, answer, label):
        if c == 0:
            lines += ["+".join(["-" * (2 * w + 1)] * (task.side // w))] * (r > 0 == r % h) + [" "]
        style, text = (ANSI[kind], text) if task.rule else (SQUARES.get(text), 2 * text)
        styled = f"\033[{style}m{text}\033[0m" if colour and style else text
        lines[-1] += ("| " if c and c % w == 0 else "") + styled + " " * bool(task.rule)
    return "\n".join(line for line in lines if task.blank or line.strip())   # below the end marks of ARC is nothing
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
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" text-anchor="middle" '
                      'font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="white"/>',
                      *out, "</svg>\n"])
def watch(task, puzzle, steps, all_steps=False, svg=None):
    """Print how a puzzle is solved. steps yields after each supervision step the best two answers [1, 2, L], a halting
    logit [1], and what z decodes to [L] or None; an answer that is sure and unchanged is the last. svg: a file."""
    (known, label), inputs, last, panels = task.describe(puzzle), puzzle.inputs[0], puzzle.inputs[0], []
    print(f"\n{known}:\n{show(task, last, last)}")
    for k, (best, logit, latent) in enumerate(steps, 1):
        (answer, second), probability = best[0].cpu(), logit.sigmoid().item()
        right = "" if label is None else f", {(answer == label).sum()} of {task.length} cells right"
        print(f"\nstep {k}: halting probability {probability:.3f}{right}")
        if changed := (answer != last).any():
            print(show(task, inputs, answer, label))
        if latent is not None:
            print(f"z decodes to\n{show(task, inputs, latent, label)}")
        panels.append((answer, f"step {k}: {probability:.3f}"))
        last = answer
        if probability > 0.5 and not changed and not all_steps:
            break
    if task.rule:
        print("\nsolved: the rules hold" if task.obeys(puzzle.inputs, last[None]) else "\nnot solved: a rule is broken")
    for name, grid in () if task.rule else (("attempt 1", last), ("attempt 2", second), ("the truth", label)):
        print(f"\n{name}\n{'is not told' if grid is None else show(task, grid, grid)}")
    if svg:
        replace_file(svg, film(task, inputs, label, panels).encode())
def print_table(rows, path=None):
    """Print a table, its first row the names of the columns; write it to the CSV file `path` too."""
    print("\n".join("  ".join(f"{cell:>{len(name)}}" for cell, name in zip(row, rows[0])) for row in rows))
    if path:
        replace_file(path, "".join(",".join(map(str, row)) + "\n" for row in rows).encode())
# ---- Downloads ------------------------------------------------------------------------------------------------------
def download(url, path):
    """Fetch `url` to `path`, unless it is there, with progress. What has come waits in PATH.part: a cut download goes
    on from there; only a whole file, that begins as its kind must, gets its name. Raises ValueError."""
    if (path := Path(path)).exists():
        return print(f"{path} is there already")
    (part := Path(f"{path}.part")).parent.mkdir(parents=True, exist_ok=True)
    have, begins = part.stat().st_size if part.exists() else 0, b"PK" if path.suffix == ".zip" else b"source,"
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            size = reply.headers["Content-Length"] or reply.chunked or (   # of chunks the last one is marked
                refuse(f"{url}: the server does not tell the size; use a mirror"))
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
    if size is not True and have != total:
        refuse(f"{url}: cut at {have} of {total} bytes; run the command again to go on from there")
    if open(part, "rb").read(len(begins)) != begins:
        part.unlink()
        refuse(f"{url} is not what it should be: it does not begin with {begins.decode()}; removed")
    os.replace(part, path)

if __name__ == "__main__":                                                 # python data.py URL FILE, see the Makefile
    run("data.py", lambda: download(*sys.argv[1:]) if len(sys.argv) == 3 else refuse("usage: python data.py URL FILE"))
