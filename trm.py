"""The Tiny Recursive Model (TRM) in one file: "Less is More: Recursive Reasoning with Tiny Networks",
Jolicoeur-Martineau 2025, arXiv:2510.04871. Read from top to bottom beside the paper:

    Config, PRESETS                           every number of the method                   sections 4 and 5
    Block, TRM                                the tiny network, its embeddings and heads   Figure 1, section 4.2-4.5
    latent_recursion, deep_recursion          z n times, then y; T times                   Figure 3, section 4.1-4.2
    stablemax_cross_entropy, losses           is the answer right, and does it know        sections 2.5 and 4.6
    refill, halt, train_step                  deep supervision, one optimizer step         section 2.4
    think, evaluate, train, main              evaluation, training, the three commands     section 5

Shapes: B batch, L grid cells, S = prefix + L positions, D hidden size, V vocabulary. Hidden states are [S, B, D]: with
the sequence first, mixing over it and over D are one plain matrix product each, and nothing is transposed.
"""
import argparse
import difflib
import math
import os
import shutil
import signal
import sys
import time
import timeit
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import data

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

def doc(default, text, *allowed):
    """A Config field: its default, the line that --help prints, and what is allowed: [low, high) or a set of words."""
    return field(default=default, metadata={"help": text, "allowed": allowed or (1, math.inf)})


@dataclass(frozen=True)
class Config:
    """Every hyper-parameter; each is also a flag of `train`. The defaults are the paper's TRM-MLP for Sudoku-Extreme.
    Raises ValueError, naming the flag, where a value is not allowed. Sections are the paper's."""
    task: str = doc("sudoku", "puzzle family", *data.TASKS)
    size: int = doc(9, "side of the grid")
    train_size: int = doc(1000, "training puzzles; of a --data folder as many are drawn by the seed (section 5)")
    test_size: int = doc(0, "unseen puzzles to evaluate on; 0: all (1000 of the built-in ones)", 0, math.inf)
    seed: int = doc(0, "seed of the built-in puzzles, of the weights and of training", 0, 2 ** 31)

    D: int = doc(512, "hidden size (section 5)")
    n_layers: int = doc(2, "blocks in the tiny network (section 4.4: less is more)")
    mixing: str = doc("mlp", "what mixes the cells: an mlp or attention (section 4.5)", "mlp", "attention")
    heads: int = doc(8, "attention heads")
    expansion: float = doc(4.0, "inner width of a SwiGLU: 2/3 of this times its width, ...", 0.1, math.inf)
    multiple: int = doc(256, "... rounded up to a multiple of this")
    prefix: int = doc(0, "P, positions for the puzzle embedding; a single puzzle identity needs none", 0, math.inf)

    n: int = doc(6, "n, updates of the latent z in a recursion (section 4.2)")
    T: int = doc(3, "T, recursions in a supervision step, the last one with gradient (section 4.1)")
    N_sup: int = doc(16, "N_sup, most supervision steps on one puzzle (section 2.4)")
    explore: float = doc(0.1, "chance that a slot must think for 2..N_sup steps before it may halt (section 2.5)", 0, 1)

    steps: int = doc(65_000, "optimizer steps; 0 prints what would be trained and stops", 0, math.inf)
    batch: int = doc(768, "puzzles in an optimizer step (section 5)")
    lr: float = doc(1e-4, "learning rate of AdamW (section 5)", 0, math.inf)
    lr_final: float = doc(1.0, "share of it left at the end, reached linearly; 1: constant, the paper's", 0, math.inf)
    warmup: int = doc(2000, "steps of linear warm-up (section 5)")
    weight_decay: float = doc(1.0, "decoupled weight decay (section 5)", 0, math.inf)
    beta1: float = doc(0.9, "AdamW's decay of the mean gradient (section 5)", 0, 1)
    beta2: float = doc(0.95, "AdamW's decay of the mean squared gradient (section 5)", 0, 1)
    ema: float = doc(0.999, "decay of the averaged weights, which are the ones evaluated (section 4.7)", 0, 1)
    dtype: str = doc("auto", "of the arithmetic, weights stay float32; auto: the faster", "auto", "float32", "bfloat16")
    compile: bool = doc(True, "torch.compile the blocks, where there is a compiler", False, True)

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type in (int, float) and not allowed[0] <= value < allowed[1]:
                raise ValueError(f"--{f.name} {value}: must be at least {allowed[0]} and below {allowed[1]}")
            if f.type is str and value not in allowed:
                raise ValueError(f"--{f.name} {value}: must be one of {', '.join(allowed)}")
        if self.mixing == "attention" and self.D % (2 * self.heads):
            raise ValueError(f"--heads {self.heads}: D {self.D} must divide into heads of even size")


# Sized for two CPU cores (tried: README). T 1: no recursion is spent without gradient; N_sup 8: hopeless puzzles leave
# sooner; expansion 2: half the arithmetic, as much learned per step; lr 4e-3 (9x9: 3e-3) falling to a tenth: as fast as
# it stays stable; EMA 0.99: a hundred steps, since runs are short; multiple 32: small widths are not rounded up to 256;
# weight decay 1: 6x6 is learned in fewer steps with it, 9x9 is not.
SMALL = Config(D=128, expansion=2.0, multiple=32, n=2, T=1, N_sup=8, batch=64, lr=4e-3, lr_final=0.1, warmup=100,
               weight_decay=0.1, ema=0.99)
PRESETS = {
    "sudoku": Config(),
    "sudoku-att": Config(mixing="attention"),
    "sudoku-small": replace(SMALL, lr=3e-3, steps=8700),
    "sudoku-6x6": replace(SMALL, size=6, weight_decay=1.0, steps=1500),
}


# ---- The network (section 4.2-4.5) ----------------------------------------------------------------------------------

def trunc_normal(*shape, std=None):
    """A parameter from the normal distribution cut at two sigma; std (None: 1 / sqrt(fan-in)) is that after the cut."""
    sigma = (std or shape[-1] ** -0.5) / 0.87962566103423978               # which a unit normal cut at +-2 has
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=sigma, a=-2 * sigma, b=2 * sigma))


def norm(h, dim):
    """Root-mean-square norm over `dim`, in float32, without a learned scale."""
    v = h.float()
    return (v * torch.rsqrt(v.square().mean(dim, keepdim=True) + 1e-5)).to(h.dtype)


class SwiGLU(nn.Module):
    """W_down (silu(g) * u) with [g, u] = W_gate_up v, over D (`dim` -1) or over the sequence (`dim` 0); no biases."""
    def __init__(self, width, dim, cfg):
        super().__init__()
        inner = math.ceil(round(cfg.expansion * width * 2 / 3) / cfg.multiple) * cfg.multiple
        self.dim = dim
        self.gate_up = trunc_normal(2 * inner, width)
        self.down = trunc_normal(width, inner)

    def forward(self, h):                                                  # [S, B, D]
        gate_up, down = self.gate_up.to(h.dtype), self.down.to(h.dtype)
        if self.dim == 0:
            g, u = (gate_up @ h.flatten(1)).chunk(2)                       # [inner, B * D]
            return (down @ (F.silu(g) * u)).view_as(h)
        g, u = F.linear(h, gate_up).chunk(2, -1)                           # [S, B, inner]
        return F.linear(F.silu(g) * u, down)


class Attention(nn.Module):
    """Self-attention over the sequence: no mask, no biases, rotary positions (base 10000, a head's halves as pairs)."""
    def __init__(self, S, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.qkv = trunc_normal(3 * cfg.D, cfg.D)       # rows: all q heads, all k heads, all v heads
        self.out = trunc_normal(cfg.D, cfg.D)
        head = cfg.D // cfg.heads
        angle = torch.outer(torch.arange(S), 10000.0 ** (-torch.arange(0, head, 2) / head)).repeat(1, 2)   # [S, head]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, h):                                                  # [S, B, D]
        S, B, D = h.shape
        qkv = F.linear(h, self.qkv.to(h.dtype)).view(S, B, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 1, 3, 0, 4)                               # [B, heads, S, head]

        def rotate(t):
            """Turn each pair of coordinates by its position."""
            a, b = t.float().chunk(2, -1)
            return (t * self.cos + torch.cat([-b, a], -1) * self.sin).to(t.dtype)
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
        return F.linear(mixed.permute(2, 0, 1, 3).reshape(S, B, D), self.out.to(h.dtype))


class Block(nn.Module):
    """h = norm(h + mix(h)); h = norm(h + swiglu(h)): post-norm, [S, B, D] to [S, B, D].
    The first norm of the attention-free block runs over the sequence, as in the published code, where it is applied to
    the transposed tensor; checkpoints depend on it, and it learns about twice as fast per step."""
    def __init__(self, S, cfg):
        super().__init__()
        self.mix = SwiGLU(S, 0, cfg) if cfg.mixing == "mlp" else Attention(S, cfg)
        self.mix_norm = 0 if cfg.mixing == "mlp" else -1
        self.mlp = SwiGLU(cfg.D, -1, cfg)

    def forward(self, h):
        h = norm(h + self.mix(h), self.mix_norm)
        return norm(h + self.mlp(h), -1)


class TRM(nn.Module):
    """The whole model: token and puzzle embedding, one network, two heads (Figure 1).
    `net` sees x + y + z when it updates z and y + z when it updates y: x or no x tells it which (section 4.2)."""
    def __init__(self, cfg, length, vocab, ids=1, dtype=torch.float32):
        super().__init__()
        self.cfg, self.length, self.dtype = cfg, length, dtype             # the arithmetic's dtype; weights are float32
        self.tokens = trunc_normal(vocab, cfg.D)
        self.puzzles = nn.Parameter(torch.zeros(ids, cfg.D)) if cfg.prefix else None
        self.net = nn.Sequential(*[Block(cfg.prefix + length, cfg) for _ in range(cfg.n_layers)])
        self.register_buffer("y_init", trunc_normal(cfg.D, std=1.0).data)  # fixed, the same at every position
        self.register_buffer("z_init", trunc_normal(cfg.D, std=1.0).data)
        self.output_weight = trunc_normal(vocab, cfg.D)
        self.q_weight = nn.Parameter(torch.zeros(2, cfg.D))                # halt; the second row is HRM's "continue"
        self.q_bias = nn.Parameter(torch.full((2,), -5.0))

    def embed(self, inputs, ids=None):
        """Tokens [B, L] (and identities [B] where there is a prefix) to x [S, B, D]."""
        x = F.embedding(inputs.T.long(), self.tokens)                      # [L, B, D]
        if self.puzzles is not None:
            vectors = self.puzzles[torch.zeros_like(inputs[:, 0]).long() if ids is None else ids][None]   # [1, B, D]
            x = torch.cat([F.pad(vectors, (0, 0, 0, 0, 0, self.cfg.prefix - 1)), x])   # the prefix is padded with zeros
        return (self.cfg.D ** 0.5 * x).to(self.dtype)

    def output_head(self, y):
        """Logits of every cell, [B, L, V] float32, from y [S, B, D]."""
        return F.linear(y[self.cfg.prefix:], self.output_weight.to(y.dtype)).float().transpose(0, 1)

    def q_head(self, y):
        """Halting logits [B, 2] float32 from y at the first position: > 0 says "the answer is right" (section 4.6)."""
        return F.linear(y[0].float(), self.q_weight, self.q_bias)

    def initial(self, B):
        """y_init and z_init for B puzzles: two [S, B, D]."""
        return [v.to(self.dtype).expand(self.cfg.prefix + self.length, B, -1) for v in (self.y_init, self.z_init)]


# ---- The recursion (Figure 3). All tensors are [S, B, D]. -----------------------------------------------------------

def latent_recursion(net, x, y, z, n):
    """Improve the latent z n times given question and answer, then the answer y once given z."""
    for _ in range(n):
        z = net(z + (y + x))                    # this order of the sum, as published: rounding is amplified
    y = net(y + z)
    return y, z


def deep_recursion(model, x, y, z, n, T):
    """One supervision step: T - 1 recursions without gradient, one with. Returns detached (y, z), logits, q."""
    with torch.no_grad():
        for _ in range(T - 1):
            y, z = latent_recursion(model.net, x, y, z, n)
    y, z = latent_recursion(model.net, x, y, z, n)
    return (y.detach(), z.detach()), model.output_head(y), model.q_head(y)


# ---- Losses (section 4.1 and 4.6) -----------------------------------------------------------------------------------

def stablemax_cross_entropy(logits, labels):
    """-log p of each label, in float64, with p = s / sum s and s(v) = v + 1 for v >= 0, 1 / (1 - v) below.
    logits [..., V] float, labels [...] int64; returns [...] float64, 0 where the label is padding."""
    v = logits.double()
    s = torch.where(v >= 0, v + 1, 1 / (1 - v.clamp(max=0)))               # the clamp keeps 1 / 0 out of the gradient
    p = s.gather(-1, labels[..., None])[..., 0] / s.sum(-1)
    return torch.where(labels == 0, 0, -p.log())


def losses(logits, q, labels):
    """Losses of each puzzle from logits [B, L, V], q [B, 2] and labels [B, L] int64, 0 where a cell does not count.
    Returns the answer loss [B] float64 (mean over labelled cells), the halting loss [B] (cross-entropy of q against
    "every labelled cell is right now") and those verdicts [B] bool."""
    labelled = labels != 0
    answer = stablemax_cross_entropy(logits, labels).sum(1) / labelled.sum(1).clamp(min=1)
    right = ((logits.argmax(-1) == labels) | ~labelled).all(1)
    halting = F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="none")
    return answer, halting, right


# ---- Deep supervision (section 2.4) ----------------------------------------------------------------------------------
# The paper loops N_sup times over one batch. Here, as in the published code, every row of the batch is a slot with its
# own puzzle, (y, z) and count of supervision steps: the same for each puzzle, and the batch stays full when some halt.

def refill(slots, model, task):
    """Give every halted slot a fresh augmented training puzzle, y_init, z_init and count 0, and leave the others alone.
    slots: a dict of tensors, a batch row (of y and z a column) per slot, or None at the first step. A puzzle is drawn
    for every slot and dropped where none is needed, so that the host need not wait for a count of halted ones."""
    rows = torch.randint(len(task.train), (model.cfg.batch,), device=DEVICE)
    inputs, labels = task.augment(task.train.inputs[rows], task.train.labels[rows])
    y, z = model.initial(len(rows))
    fresh = {"inputs": inputs.long(), "labels": labels.long(),             # [B, L]
             "y": y, "z": z,                                               # [S, B, D]
             "count": torch.zeros_like(rows), "halted": torch.zeros_like(rows).bool()}   # [B]
    if slots is None:
        return fresh
    new = slots["halted"]
    return {name: torch.where(new if v.dim() == 1 else new[:, None], v, slots[name]) for name, v in fresh.items()}


def halt(count, q, cfg):
    """Which slots move on to another puzzle [B] bool, from their counts of supervision steps and halting logits, [B].
    At N_sup every slot does; before, one with q > 0 (section 4.6), unless exploration, drawn anew at each step, asks
    for a minimum count uniform in 2..N_sup."""
    minimum = torch.randint(2, max(cfg.N_sup, 2) + 1, count.shape, device=count.device)
    explores = torch.rand(count.shape, device=count.device) < cfg.explore
    return (count >= cfg.N_sup) | ((q > 0) & (~explores | (count >= minimum)))


def train_step(model, ema, optimizer, slots, task, step):
    """One optimizer step, which is one supervision step of every slot.
    Returns the slots and the batch means of loss, answer loss, halting loss, right and halted: [5] float64."""
    cfg = model.cfg
    slots = refill(slots, model, task)
    x = model.embed(slots["inputs"])
    (y, z), logits, q = deep_recursion(model, x, slots["y"], slots["z"], cfg.n, cfg.T)
    answer, halting, right = losses(logits, q, slots["labels"])
    loss = (answer + 0.5 * halting).mean()
    optimizer.zero_grad()
    loss.backward()
    rate = cfg.lr * min(1, (step + 1) / cfg.warmup) * (1 - (1 - cfg.lr_final) * step / cfg.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    ema.update_parameters(model)
    count = slots["count"] + 1
    halted = halt(count, q[:, 0], cfg)
    slots = {**slots, "y": y, "z": z, "count": count, "halted": halted}
    return slots, torch.stack([v.detach().double().mean() for v in (loss, answer, halting, right, halted)])


# ---- Evaluation: every puzzle gets all its supervision steps --------------------------------------------------------

@torch.no_grad()
def think(model, inputs, steps):
    """Supervision steps without the supervision: yields logits [B, L, V] and q [B, 2] for inputs [B, L] after each."""
    x = model.embed(inputs)
    y, z = model.initial(len(inputs))
    for _ in range(steps):
        (y, z), logits, q = deep_recursion(model, x, y, z, model.cfg.n, model.cfg.T)
        yield logits, q


def evaluate(model, puzzles, steps):
    """After each supervision step, for every puzzle: share of cells right, all of them right (0 or 1), halting logit.
    Returns [3, steps, N] float32 on the CPU."""
    N, B, batches = len(puzzles), min(model.cfg.batch, len(puzzles)), []
    for start in range(0, N, B):
        rows = torch.arange(start, start + B, device=puzzles.inputs.device) % N   # the last batch wraps: one shape
        labels, found = puzzles.labels[rows].long(), []
        cells = (labels != 0).sum(1)
        for logits, q in think(model, puzzles.inputs[rows], steps):
            hits = ((logits.argmax(-1) == labels) & (labels != 0)).sum(1)
            found.append(torch.stack([hits / cells, (hits == cells).float(), q[:, 0]]))
        batches.append(torch.stack(found, 1))                              # [3, steps, B]
    return torch.cat(batches, 2)[:, :, :N].cpu()


def print_evaluation(model, task, steps):
    """A table: accuracy on all unseen puzzles after each supervision step, by rating too, and of the halting head."""
    began = time.perf_counter()
    cells, exact, q = evaluate(model, task.test, steps)
    rate, rating = len(task.test) / (time.perf_counter() - began), task.test.rating.cpu()
    columns = {"cells": cells, "puzzles": exact, "halting head": ((q > 0) == (exact > 0)).float()}
    for name, low, high in ("0 guesses", 0, 0), ("1-9", 1, 9), ("10+", 10, math.inf):
        group = (rating >= low) & (rating <= high)
        if group.any():
            columns[f"{name} ({group.sum()})"] = exact[:, group]
    print(f"\n{len(task.test)} unseen puzzles, {rate:.0f} per second; % right after each supervision step:")
    print("step  " + "  ".join(columns))
    for k in range(steps):
        print(f"{k + 1:4}  " + "  ".join(f"{100 * part[k].mean():{len(name)}.1f}" for name, part in columns.items()))


def print_solution(model, task, text, steps):
    """Solve a puzzle, typed as `text` or drawn from the unseen ones; print the grid after each supervision step."""
    row = int.from_bytes(os.urandom(4), "big")                             # another one every time, whatever the seed
    inputs = task.parse(text) if text else task.test.inputs[[row % len(task.test)]].cpu()
    known, label = task.describe(inputs)
    colour, last = sys.stdout.isatty() and not os.environ.get("NO_COLOR"), inputs
    print(f"\na puzzle with {known}:\n{task.show(inputs[0], inputs[0], None, colour)}")
    for k, (logits, q) in enumerate(think(model, inputs.to(DEVICE), steps), 1):
        answer = logits.argmax(-1).byte().cpu()
        right = "" if label is None else f", {(answer == label).sum()} of {task.length} cells right"
        print(f"\nstep {k}: halting probability {q[0, 0].sigmoid():.3f}{right}")
        if (answer != last).any():                                         # a grid that stayed is not shown again
            print(task.show(inputs[0], answer[0], None if label is None else label[0], colour))
        last = answer
    print("\nsolved: the rules hold" if task.obeys(inputs, last).item() else "\nnot solved: the rules do not hold")


# ---- Training (section 5) -------------------------------------------------------------------------------------------

def pick_dtype(name):
    """The dtype of that name; auto: bfloat16 on CUDA, and on a CPU that multiplies clearly faster in it (timed, 0.1 s):
    not every CPU with bfloat16 instructions does."""
    if name == "auto":
        wide, narrow = (torch.ones(1024, 1024, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        seconds = [min(timeit.repeat(lambda: a @ a, number=1, repeat=5)) for a in (wide, narrow)]
        name = "bfloat16" if DEVICE.type == "cuda" or seconds[1] < 0.75 * seconds[0] else "float32"
    return getattr(torch, name)


def build(cfg, folder=None, saved=None):
    """The task, the model and its moving average (section 4.7), new or from the checkpoint `saved`."""
    task = data.TASKS[cfg.task](cfg, folder, DEVICE)
    torch.manual_seed(cfg.seed)
    dtype = pick_dtype(saved["dtype"] if saved else cfg.dtype)
    model = TRM(cfg, task.length, task.vocab, task.ids, dtype).to(DEVICE)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema))
    if saved:
        model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
    return task, model, ema


def flops(cfg, task):
    """Floating-point operations of the matrix products in one optimizer step, forward and backward, counted by running
    it on tensors without storage."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = TRM(cfg, task.length, task.vocab, task.ids)
        x = model.embed(torch.zeros(cfg.batch, task.length, dtype=torch.long))
        _, logits, q = deep_recursion(model, x, *model.initial(cfg.batch), cfg.n, cfg.T)
        (logits.sum() + q.sum()).backward()
    return counter.get_total_flops()


def print_header(model, task):
    """What is about to be trained, in five lines."""
    cfg, parameters = model.cfg, sum(p.numel() for p in model.parameters())
    sizes = f"{len(task.train)} training and {len(task.test)} unseen puzzles"   # built here, if they have to be
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"model    {parameters:,} parameters: {cfg.mixing} mixing, D {cfg.D}, {cfg.n_layers} layers")
    print(f"thinks   n {cfg.n}, T {cfg.T}: effective depth T(n+1)layers = {cfg.T * (cfg.n + 1) * cfg.n_layers}, "
          f"for up to N_sup = {cfg.N_sup} supervision steps")
    print(f"costs    {flops(cfg, task) / 1e12:.3g} TFLOP per step of {cfg.batch} puzzles, {cfg.steps} steps")
    print(f"device   {device}, {str(model.dtype)[6:]}")
    print(f"data     {sizes}, {task.folder}", flush=True)


def compile_blocks(*models):
    """torch.compile the blocks, which are alike and share the work, and run them as training will. Where that fails,
    mostly for want of a C++ compiler, they stay as they are."""
    began, (y, z) = time.perf_counter(), models[0].initial(models[0].cfg.batch)
    for block in (block for model in models for block in model.net):
        block.compile(dynamic=False)
    try:
        with torch.no_grad():
            [model.net(y + z) for model in models]
        models[0].net(y + z).sum().backward()
        print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    except Exception as error:
        torch.compiler.set_stance("force_eager")
        print(f"not compiled ({type(error).__name__}), goes on without; --no-compile skips the attempt", flush=True)


def load(run):
    """The checkpoint of a run, its "config" made a Config. Raises ValueError where there is none that can be read."""
    path = Path("runs") / run / "checkpoint.pt"
    if not path.is_file():
        others = [other.parent.name for other in Path("runs").glob("*/checkpoint.pt")]
        raise ValueError(f"there is no run {run}" + nearest(run, others))
    try:
        content = torch.load(path, weights_only=True, map_location=DEVICE)
        return {**content, "config": Config(**content["config"])}
    except Exception as error:
        raise ValueError(f"{path} is damaged or not from this program ({type(error).__name__})") from None


def save(path, cfg, model, **state):
    """Write a checkpoint beside `path` and move it into place, so that `path` is always whole. Raises ValueError."""
    state = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in state.items()}
    state.update(config=asdict(cfg), dtype=str(model.dtype)[6:], model=model.state_dict(),
                 rng=[torch.get_rng_state(), *torch.cuda.get_rng_state_all()])
    try:
        torch.save(state, f"{path}.part")
        os.replace(f"{path}.part", path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be written, what was saved before is kept: {error}") from None


def train(cfg, run, folder=None, saved=None):
    """Train a model and keep it in runs/RUN: checkpoint.pt about every minute, log.csv with all that is printed.
    saved: the checkpoint to go on from. Returns the exit status: 0, or 130 / 143 when stopped by Ctrl-C / SIGTERM."""
    task, model, ema = build(cfg, folder, saved)
    print_header(model, task)
    if cfg.steps == 0:
        return 0
    optimizer = torch.optim.AdamW(model.parameters(), betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay,
                                  fused=True)
    if cfg.compile:
        compile_blocks(model, ema.module)
    path, tty = Path("runs") / run / "checkpoint.pt", sys.stdout.isatty()
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path.with_name("log.csv"), "a" if saved else "w")
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        slots, step, seconds = saved["slots"], saved["step"], saved["seconds"]
        log.truncate(saved["log_size"])                                    # rows after the checkpoint come once more
        rng, *cuda_rng = (state.cpu() for state in saved["rng"])
        torch.set_rng_state(rng)
        torch.cuda.set_rng_state_all(cuda_rng)                             # none without CUDA
    else:
        slots, step, seconds = None, 0, 0.0

    signals, sums, reported, saved_at, looking, unseen = [], 0, (step, seconds), seconds, 0.0, "-"
    handlers = {s: signal.signal(s, lambda number, _: signals.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    while step < cfg.steps and not signals:
        began = time.perf_counter()
        slots, means = train_step(model, ema, optimizer, slots, task, step)
        step, sums = step + 1, sums + means
        report = time.perf_counter() - began + seconds - reported[1] > (1 if tty else 30) or step == cfg.steps
        if report:
            means = (sums / (step - reported[0])).tolist()                 # waits for the device
        seconds += time.perf_counter() - began
        if report:
            if not math.isfinite(means[0]):
                raise ValueError(f"the loss is {means[0]} at step {step}; lower --lr (the last checkpoint is kept)")
            if seconds > 30 and looking < 0.05 * seconds:                  # a look at unseen puzzles, now and then
                began = time.perf_counter()
                unseen = f"{evaluate(ema.module, task.test[:2 * cfg.batch], cfg.N_sup)[1, -1].mean():.3f}"
                looking += time.perf_counter() - began
            rate = (step - reported[0]) / (seconds - reported[1])
            row = {"step": step, "seconds": f"{seconds:.1f}", "steps/s": f"{rate:.2f}",
                   "min left": f"{(cfg.steps - step) / rate / 60:.1f}",
                   **dict(zip(("loss", "answer", "halting", "solved", "halted"), (f"{mean:.3f}" for mean in means))),
                   "lr": f"{optimizer.param_groups[0]['lr']:.2g}", "unseen": unseen}
            if not log.tell():
                print(*row, sep=",", file=log)
            print(*row.values(), sep=",", file=log, flush=True)
            line = "  ".join(f"{name} {value}" for name, value in {**row, "step": f"{step} of {cfg.steps}"}.items())
            print("\r" + line[:shutil.get_terminal_size().columns - 1] + "\033[K" if tty else line,
                  end="" if tty else "\n", flush=True)
            sums, reported = 0, (step, seconds)
        if seconds - saved_at > 60 or step == cfg.steps or signals:
            save(path, cfg, model, ema=ema, optimizer=optimizer, slots=slots, step=step, seconds=seconds, folder=folder,
                 log_size=log.tell())
            saved_at = seconds
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if signals:
        print("\n" * tty + f"stopped and saved at step {step}; the same command with --resume goes on")
        return 128 + signals[0]
    print("\n" * tty + f"trained for {seconds:.0f} s, saved {path}", flush=True)
    print_evaluation(ema.module, task, cfg.N_sup)
    print_solution(ema.module, task, None, cfg.N_sup)
    return 0


# ---- Command line ---------------------------------------------------------------------------------------------------

def nearest(word, known):
    """For an unknown word: "; did you mean X?", or all the known ones where none is near."""
    match = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {match[0]}?" if match else f"; there are: {', '.join(known)}" if known else ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ValueErrors, so that every mistake is reported in one place."""
    def error(self, message):
        """Raise instead of exiting."""
        raise ValueError(message)


def parse(argv=None):
    """The command line as a namespace, with the hyper-parameters that were given in its `given`. Raises ValueError."""
    parser = Parser(prog="trm.py", description="The Tiny Recursive Model: train it, evaluate it, watch it solve.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
            ("train", "Train a preset and keep it in runs/NAME."), ("eval", "Evaluate a run on unseen puzzles."),
            ("solve", "Watch a run solve one puzzle, step by step.")):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--data", metavar="DIR", help="folder with train.csv and test.csv (built-in puzzles)")
        if name != "train":
            command.add_argument("run", help="name of the run")
            command.add_argument("--steps", type=int, help="supervision steps (the run's N_sup)")
    command.add_argument("puzzle", nargs="?", help="the grid in one line, '.' or 0 for a blank (an unseen puzzle)")
    train = commands.choices["train"]
    train.add_argument("preset", help=", ".join(PRESETS))
    train.add_argument("--run", metavar="NAME", help="name of the run (the preset's)")
    train.add_argument("--resume", action="store_true", help="go on with the run where there is one")
    train.add_argument("--overwrite", action="store_true", help="replace the run where there is one")
    hyper = train.add_argument_group("hyper-parameters", "In brackets the paper's value, of the preset sudoku.")
    for f in fields(Config):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type, "metavar": "VALUE"}
        hyper.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=f"{f.metadata['help']} [{f.default}]", **kind)
    args, unknown = parser.parse_known_args(argv)
    names = [f.name for f in fields(Config)] if args.command == "train" else []
    if unknown:
        known = [f"--{name}" for name in [*names, *vars(args)]]
        raise ValueError(f"unknown argument {unknown[0]}" + nearest(unknown[0], known))
    args.given = {name: getattr(args, name) for name in names if name in args}
    return args


def main(argv=None):
    """Run one command and return the exit status. Raises ValueError for a mistake of the user's."""
    args = parse(argv)
    if args.command != "train":
        if args.steps is not None and args.steps < 1:
            raise ValueError(f"--steps {args.steps}: at least 1 supervision step is needed")
        saved = load(args.run)
        task, _, ema = build(saved["config"], args.data or saved["folder"], saved)
        steps = args.steps or saved["config"].N_sup
        if args.command == "solve":
            print_solution(ema.module, task, args.puzzle, steps)
        else:
            print_evaluation(ema.module, task, steps)
        return 0
    if args.preset not in PRESETS:
        raise ValueError(f"unknown preset {args.preset}" + nearest(args.preset, list(PRESETS)))
    cfg, run, saved = PRESETS[args.preset], args.run or args.preset, None
    if (Path("runs") / run / "checkpoint.pt").exists() and not args.overwrite and args.given.get("steps") != 0:
        if not args.resume:
            raise ValueError(f"run {run} exists: --resume goes on, --overwrite replaces it, --run NAME starts another")
        if fixed := sorted(args.given.keys() - {"steps"}):
            raise ValueError(f"--{fixed[0]} cannot change in a resumed run; leave it out or start another (--run NAME)")
        saved = load(run)
        cfg, args.data = saved["config"], args.data or saved["folder"]
    return train(replace(cfg, **args.given), run, args.data, saved)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:                                              # while it trains, train() saves first
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"trm.py: {error}", file=sys.stderr)
        sys.exit(2)
