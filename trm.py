# SPDX-License-Identifier: MIT
"""The Tiny Recursive Model (TRM) in one file, to be read beside the paper:
"Less is More: Recursive Reasoning with Tiny Networks", Jolicoeur-Martineau 2025, arXiv:2510.04871.

    Config, PRESETS                          every number of the method      section 5
    Linear, SwiGLU, Attention, Block, TRM    the tiny network and its heads  Figure 1, 4.3 to 4.5
    latent_recursion, deep_recursion         z n times, then y; T times      Figure 3, 4.1 and 4.2
    stablemax_cross_entropy, losses          is the answer right?            sections 2.5 and 4.6
    refill, halting, update_ema, train_step  deep supervision                sections 2.4, 4.6, 4.7
    one_step_recursion, ...                  what TRM is compared with       section 2, Table 2
    think, vote, evaluate, solve             answers at test time            section 5
    load_published, train, main              checkpoints and commands

Shapes: B puzzles in a batch, L cells of a grid, S = prefix + L positions, D hidden size, V tokens.
"""

import argparse
import copy
import inspect
import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import data


# ---- Configuration: the defaults are the paper's TRM-MLP for Sudoku-Extreme ----------------------
@dataclass
class Config:
    """Every number of a run, each a flag of the command line. Raises ValueError."""

    # The puzzles, see data.py
    task: str = "sudoku"  # family of puzzles: sudoku, maze or arc
    size: int = 9  # cells on a side of the grid; ARC: of the largest grids
    data: str = ""  # folder with train.csv and test.csv or ARC's files; empty: built-in puzzles
    train_size: int = 1000  # puzzles to train on (section 5); ARC: all
    test_size: int = 0  # unseen puzzles; 0: all of the file, or 1000 built-in ones; ARC: all
    min_path: int = 110  # mazes: the shortest path has more moves than this
    sets: str = "training,concept,evaluation"  # ARC: the test pairs of the last set are unseen
    augmentations: int = 1000  # ARC: copies of each task, each an identity of its own (section 5)
    # The network (sections 4.3 to 4.5)
    D: int = 512  # hidden size
    n_layers: int = 2  # blocks in the tiny network (section 4.4)
    mixing: Literal["mlp", "attention"] = "mlp"  # what mixes the cells (section 4.5)
    heads: int = 8  # attention heads
    expansion: float = 4.0  # a SwiGLU is 2/3 of this times wider inside ...
    multiple: int = 256  # ... rounded up to a multiple of this
    prefix: int = 0  # positions for the puzzle embedding; Sudoku and mazes need none
    networks: int = 1  # 1: the same network updates z and y; 2: HRM's f_L and f_H (section 4.3)
    # The recursion (sections 4.1 and 4.2) and deep supervision (section 2.4)
    n: int = 6  # updates of z in a recursion
    T: int = 3  # recursions in a supervision step; the last one has a gradient
    N_sup: int = 16  # supervision steps on one puzzle, at most
    N_start: float = 1.0  # share of N_sup at the first step, growing to all of it; not in the paper
    explore: float = 0.1  # chance, each step, to halt only after a random 2 to N_sup (section 2.5)
    loss: Literal["stablemax", "softmax"] = "stablemax"  # as published; softmax: Figure 3
    recursion: Literal["latent", "one_step", "single_z", "multi_z"] = "latent"  # TRM; HRM; Table 2
    q_learning: bool = False  # HRM's halting, with a second forward pass (section 2.5)
    # The optimizer (section 5)
    steps: int = 65_000  # optimizer steps, 0: only tell the sizes; for eval and solve: N_eval
    batch: int = 768  # puzzles in a step
    lr: float = 1e-4  # learning rate of AdamW
    lr_final: float = 1.0  # share of lr that is left at the end; 1: constant, as published
    warmup: int = 2000  # steps of linear warm-up
    weight_decay: float = 1.0  # decoupled weight decay
    puzzle_lr: float = 1e-2  # learning rate of the puzzle embeddings
    ema: float = 0.999  # decay of the averaged weights, which are evaluated (section 4.7)
    # Evaluation
    N_eval: int = 16  # supervision steps; more than N_sup is thinking longer than trained for
    all_steps: bool = False  # go on where the halting head is sure, as the paper does
    augment: int = 1  # symmetric copies that vote; mazes have 8, ARC 1 + augmentations
    rollouts: int = 1  # tries of each copy, all alike without noise
    noise: float = 0.0  # standard deviation of what is added to z before each step
    pick: Literal["vote", "q"] = "vote"  # which copy answers: by most votes, or by the highest q
    # The machine
    seed: int = 0  # of the training puzzles, the weights and the training
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: what trains faster here
    compile: bool = True  # torch.compile the network
    log_every: int = 50  # steps from one row of log.csv to the next
    save_every: int = 500  # steps from one checkpoint and look at unseen puzzles to the next

    def __post_init__(self):
        may_be_0 = ["test_size", "min_path", "augmentations", "prefix", "steps", "seed"]
        highest = {"networks": 2, "N_start": 1, "explore": 1, "ema": 1}
        self.data = self.data and os.path.abspath(self.data)
        for name, value in vars(self).items():
            kind = Config.__annotations__[name]
            choices = data.TASKS if name == "task" else get_args(kind)
            if choices and value not in choices:
                raise ValueError(f"--{name} {value}: must be one of {', '.join(choices)}")
            low = int(kind is int and name not in may_be_0)
            high = highest.get(name, 1_000_000_000)
            if kind in (int, float) and not low <= value <= high:
                raise ValueError(f"--{name} {value}: must be from {low} to {high}")


# SMALL, for a laptop: narrow, T 1 (all with gradient), a shorter average, N_sup grows from 2.
SMALL = Config(D=128, expansion=1.5, multiple=16, n=2, T=1, N_start=0.125, loss="softmax", batch=64)
SMALL = replace(SMALL, lr=3e-3, lr_final=0.02, warmup=100, weight_decay=0.1, ema=0.995)
FAST = dict(T=1, N_sup=8, N_start=0.25, N_eval=32, loss="softmax", lr_final=0.1, weight_decay=0.1)
HRM = dict(n_layers=4, networks=2, n=2, T=2, recursion="one_step", q_learning=True, ema=0.0)
MAZE = Config(task="maze", size=30, mixing="attention", n=4)
ARC = replace(MAZE, task="arc", prefix=16, weight_decay=0.1, augment=1001)
SMALL_ARC = replace(SMALL, task="arc", sets="training", size=6, prefix=1)
SIX = replace(SMALL, size=6, N_sup=8, N_start=1.0, lr=4e-3)
ATT6 = replace(SIX, mixing="attention", heads=4, N_start=0.0)  # N_sup grows from 1
PRESETS = {
    "sudoku": Config(),
    "sudoku-att": Config(mixing="attention"),
    "sudoku-hrm": Config(**HRM, mixing="attention", prefix=1),
    "sudoku-fast": Config(**FAST, batch=256, lr=7e-4, warmup=200, ema=0.998, steps=6305),
    "sudoku-small": replace(SMALL, D=96, n=4, N_eval=32, ema=0.999, steps=12_000),  # D 128: slower
    "sudoku-6x6": replace(SIX, weight_decay=1.0, steps=1000),
    "sudoku-6x6-att": replace(ATT6, N_sup=16, explore=0.5, steps=5500),  # for --all-steps
    "sudoku-6x6-hrm": replace(ATT6, **HRM, lr=2e-3, warmup=300, steps=3500),  # batch 32: worse
    "maze": MAZE,
    "maze-small": replace(SMALL, task="maze", size=8, min_path=10, weight_decay=0.3, steps=5000),
    "arc1": ARC,
    "arc2": replace(ARC, sets="training2,concept,evaluation2"),
    "arc-small": replace(SMALL_ARC, augmentations=16, augment=17, steps=5000),
}


# ---- The network (Figure 1, sections 4.3 to 4.5) -------------------------------------------------
def trunc_normal_(tensor, std=1.0):
    """Fill with a normal distribution cut at two sigma; std is the deviation after the cut."""
    sigma = std / 0.87962566103423978  # a unit normal that is cut at +-2 deviates by this
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


class Linear(nn.Linear):
    """A linear map, without bias, of the last dimension (-1) or of the first one (0)."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out, bias=False)
        trunc_normal_(self.weight, std=d_in**-0.5)

    def forward(self, h, dim=-1):  # [..., d_in], or [d_in, ...] for dim 0
        weight = self.weight.to(h.dtype)  # the stored one stays float32
        return torch.tensordot(weight, h, 1) if dim == 0 else h @ weight.T


def norm(h, dim):
    """Root-mean-square norm over one dimension, in float32, without a learned scale."""
    v = h.float()
    return (v * torch.rsqrt(v.square().mean(dim, keepdim=True) + 1e-5)).to(h.dtype)


class SwiGLU(nn.Module):
    """W_down (silu(W_gate h) * W_up h) over the last dimension (-1) or over the first one (0)."""

    def __init__(self, width, dim, cfg):
        super().__init__()
        inner = round(cfg.expansion * width * 2 / 3)
        inner = max(1, math.ceil(inner / cfg.multiple)) * cfg.multiple
        self.dim = dim
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, h):  # [B, S, D], or [S, B, D] for dim 0
        gate, up = self.gate_up(h, self.dim).chunk(2, self.dim)
        return self.down(F.silu(gate) * up, self.dim)


class Attention(nn.Module):
    """Self-attention over all positions, with rotary position embeddings. Raises ValueError."""

    def __init__(self, S, cfg):
        super().__init__()
        self.head_dim = cfg.D // cfg.heads
        if cfg.D % (2 * cfg.heads):
            raise ValueError(f"--heads {cfg.heads}: D {cfg.D} must divide into heads of even size")
        self.qkv = Linear(cfg.D, 3 * cfg.D)
        self.o = Linear(cfg.D, cfg.D)
        frequency = 10000.0 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)  # [head_dim/2]
        angle = torch.outer(torch.arange(S), frequency).repeat(1, 2)  # [S, head_dim]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, q):  # q or k, [B, heads, S, head_dim]
        """Turn each pair (q[i], q[i + head_dim / 2]) by an angle that grows with the position."""
        a, b = q.chunk(2, -1)
        return (q * self.cos + torch.cat([-b, a], -1) * self.sin).to(q.dtype)

    def forward(self, h):  # [B, S, D]
        qkv = self.qkv(h).unflatten(-1, (3, -1, self.head_dim))  # [B, S, 3, heads, head_dim]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, S, head_dim]
        q, k = self.rotate(q), self.rotate(k)
        if h.is_cuda:
            h = F.scaled_dot_product_attention(q, k, v)
        else:  # the same; the library's is several times slower on a CPU in bfloat16
            scores = (q @ k.mT).float() / self.head_dim**0.5  # [B, heads, S, S]
            h = scores.softmax(-1).to(v) @ v
        return self.o(h.transpose(1, 2).flatten(2))  # the heads side by side


class Block(nn.Module):
    """Mix the positions, then the channels; each with a residual connection and a norm after it."""

    def __init__(self, S, cfg):
        super().__init__()
        self.mix = SwiGLU(S, 0, cfg) if cfg.mixing == "mlp" else Attention(S, cfg)
        self.mlp = SwiGLU(cfg.D, -1, cfg)

    def forward(self, h):  # [B, S, D]
        if isinstance(self.mix, Attention):
            h = norm(h + self.mix(h), -1)
        else:  # over the positions; so is, as published, the norm
            h = norm(h + self.mix(h.transpose(0, 1)).transpose(0, 1), 1)
        return norm(h + self.mlp(h), -1)


class TRM(nn.Module):
    """The embeddings, the tiny network and the two heads (Figure 1); cfg: see Config."""

    def __init__(self, cfg, L, V, identities=1):
        super().__init__()
        self.cfg = cfg
        self.dtype = torch.bfloat16 if cfg.dtype == "bfloat16" else torch.float32  # of y and z
        self.recursion = globals()[f"{cfg.recursion}_recursion"]  # latent_recursion, or another
        self.S = cfg.prefix + L
        self.tokens = nn.Embedding(V, cfg.D)
        trunc_normal_(self.tokens.weight, std=cfg.D**-0.5)
        self.nets = nn.ModuleList()  # one network; HRM has two
        for _ in range(cfg.networks):
            self.nets.append(nn.Sequential(*[Block(self.S, cfg) for _ in range(cfg.n_layers)]))
        self.output_head = Linear(cfg.D, V)
        self.q_head = nn.Linear(cfg.D, 2)  # halt; the second is HRM's "continue"
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)  # at first no answer seems right
        self.register_buffer("y_init", trunc_normal_(torch.empty(cfg.D)))  # where y starts: fixed
        self.register_buffer("z_init", trunc_normal_(torch.empty(cfg.D)))
        self.register_buffer("puzzle_vectors", torch.zeros(identities, cfg.D))  # see train_step

    def embed(self, inputs, vectors):
        """The question x [B, S, D] from tokens [B, L] and, for a prefix, puzzle vectors [B, D]."""
        x = self.tokens(inputs)
        if self.cfg.prefix:
            padding = x.new_zeros(len(x), self.cfg.prefix - 1, self.cfg.D)
            x = torch.cat([vectors[:, None], padding, x], 1)
        return (self.cfg.D**0.5 * x).to(self.dtype)

    def initial_state(self, B):
        """y and z [B, S, D] of puzzles that have not been thought about."""
        y = self.y_init.to(self.dtype).expand(B, self.S, -1)
        z = self.z_init.to(self.dtype).expand_as(y)
        if self.cfg.recursion == "multi_z":
            z = z[:, None].expand(-1, self.cfg.n, -1, -1)  # [B, n, S, D]
        return y, z

    def predict(self, y):
        """Float32 logits of the answer [B, L, V]; of halt, continue [B, 2] at position 0."""
        return self.output_head(y[:, self.cfg.prefix :]).float(), self.q_head(y[:, 0].float())


# ---- The recursion (Figure 3, sections 4.1 and 4.2). x, y and z are [B, S, D]. -------------------
def latent_recursion(model, x, y, z):
    """Update the latent z n times, given question and answer; then the answer y, given z.

    One network does both: it sees x when it is to update z, and no x when it is to update y.
    """
    f_L, f_H = model.nets[0], model.nets[-1]  # in TRM they are the same
    for _ in range(model.cfg.n):
        z = f_L(z + (y + x))  # in this order, as published: rounding is amplified
    y = f_H(y + z)
    return y, z


def deep_recursion(model, x, y, z):
    """T recursions, the last one with gradient. Returns (y, z), answer and halting logits."""
    with torch.no_grad():  # the gradient is cut: all recursions but the last
        for _ in range(model.cfg.T - 1):
            y, z = model.recursion(model, x, y, z)  # in TRM the latent_recursion
    y, z = model.recursion(model, x, y, z)
    logits, q = model.predict(y)
    return (y.detach(), z.detach()), logits, q  # cut again: the next step starts from here


# ---- The losses (sections 2.5 and 4.6) -----------------------------------------------------------
def stablemax_cross_entropy(logits, labels):
    """Cross-entropy [B, L] with s(v) = v + 1, or 1 / (1 - v) for v < 0, in place of exp(v)."""
    v = logits.double()  # [B, L, V], float64 as published
    s = torch.where(v >= 0, v + 1, 1 / (1 - v.clamp(max=0)))  # clamp: no 1 / 0, its gradient is nan
    p = s.gather(-1, labels[..., None]).squeeze(-1) / s.sum(-1)
    return -p.log()


def is_right(answers, labels):
    """Are the answers [..., L] the labels? Cells labelled 0 do not count; all 0 is wrong."""
    labelled = labels != 0
    return ((answers == labels) | ~labelled).all(-1) & labelled.any(-1)


def losses(logits, q, labels, kind):
    """The loss of the answer, the loss of the halting head, and is the answer right? Each [B]."""
    if kind == "stablemax":
        per_cell = stablemax_cross_entropy(logits, labels)
    else:
        per_cell = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    labelled = labels != 0
    answer_loss = torch.where(labelled, per_cell, 0).sum(1) / labelled.sum(1).clamp(min=1)
    right = is_right(logits.argmax(-1), labels)
    halting_loss = F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="none")
    return answer_loss, halting_loss, right


# ---- Deep supervision (section 2.4), halting (section 4.6) and EMA (section 4.7) -----------------
# Figure 3 thinks N_sup times about one batch. As in the published code, a batch is here a row of
# slots, each with a puzzle, its (y, z) and the number of supervision steps it has had. A slot that
# halts gets a new puzzle at the next step, so that the batch is always full.
def refill(slots, model, task):
    """Give slots that have halted, at first all, new puzzles: inputs, labels [B, L], ids [B]."""
    inputs, labels, ids = task.draw(model.cfg.batch)  # for all: counting the halted stalls a GPU
    y, z = model.initial_state(model.cfg.batch)
    fresh = dict(inputs=inputs, labels=labels, ids=ids, y=y, z=z, count=torch.zeros_like(ids))
    if not slots:
        return fresh
    for name, new in fresh.items():
        halted = slots["halted"].view(-1, *[1] * (new.dim() - 1))  # to the dimensions of `new`
        fresh[name] = torch.where(halted, new, slots[name])
    return fresh


def halting(logit, count, N_sup, explore):
    """Which slots halt [B]: at N_sup, or when sure; with chance `explore` not before a minimum."""
    minimum = torch.randint_like(count, 2, max(N_sup, 2) + 1)  # 2 to N_sup
    minimum = torch.where(torch.rand_like(logit) < explore, minimum, 0)
    return (count >= N_sup) | ((logit > 0) & (count >= minimum))


@torch.no_grad()
def update_ema(ema, model):
    """Move the averaged weights towards the trained ones (section 4.7)."""
    for average, weight in zip(ema.parameters(), model.parameters()):
        average.lerp_(weight, 1 - model.cfg.ema)
    ema.puzzle_vectors = model.puzzle_vectors  # the puzzle embeddings are shared, not averaged


def schedule(cfg, step):
    """The learning rate as a share of the highest: linear warm-up times linear fall."""
    return min(1, (step + 1) / cfg.warmup) * (1 - (1 - cfg.lr_final) * step / cfg.steps)


def gather(rows):
    """The rows [B, ...] of all processes that torchrun started, or of the only one."""
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def train_step(model, ema, optimizer, slots, task, step):
    """One supervision step of every slot, one of the optimizer. Returns slots and batch means."""
    cfg = model.cfg
    share = max(cfg.N_start, 1 / cfg.N_sup) ** (1 - step / cfg.steps)  # growing to 1
    N_sup = round(cfg.N_sup * share)
    slots = refill(slots, model, task)
    count = slots["count"] + 1
    vectors = model.puzzle_vectors[slots["ids"]].requires_grad_()  # [B, D]
    x = model.embed(slots["inputs"], vectors)
    (y, z), logits, q = deep_recursion(model, x, slots["y"], slots["z"])
    answer_loss, halting_loss, right = losses(logits, q, slots["labels"], cfg.loss)
    if cfg.q_learning:
        target = continue_target(model, x, y, z, count >= N_sup)
        halting_loss += F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="none")
    loss = (answer_loss + 0.5 * halting_loss).mean()  # 0.5 as published
    loss.backward()
    if dist.is_initialized():
        for weight in model.parameters():  # each process saw its part of the batch
            dist.all_reduce(weight.grad, dist.ReduceOp.AVG)
    optimizer.param_groups[0]["lr"] = cfg.lr * schedule(cfg, step)
    optimizer.step()
    optimizer.zero_grad()
    if cfg.prefix:  # sign-SGD on the puzzle embeddings in the batch
        lr = cfg.puzzle_lr * schedule(cfg, step)
        ids, grads = gather(slots["ids"]), gather(vectors.grad)
        same = (ids[:, None] == ids).float()  # [B, B]: gradients of one identity add up
        kept = (1 - lr * cfg.weight_decay) * model.puzzle_vectors[ids]
        model.puzzle_vectors[ids] = kept - lr * (same @ grads).sign()
    update_ema(ema, model)
    logit = q[:, 0] - q[:, 1] if cfg.q_learning else q[:, 0]  # HRM: is halting worth more?
    halted = halting(logit, count, N_sup, cfg.explore)
    slots.update(y=y, z=z, count=count, halted=halted)
    names = ["loss", "answer loss", "halting loss", "exact", "halted"]
    values = [loss, answer_loss, halting_loss, right, halted]
    return slots, {name: value.detach().float().mean() for name, value in zip(names, values)}


# ---- What TRM is compared with: other recursions in place of latent_recursion, and HRM's halting -
def one_step_recursion(model, x, y, z):
    """HRM's gradient (section 2.3): only through the last update of z and that of y."""
    for _ in range(model.cfg.n):
        z = model.nets[0](z.detach() + (y + x))  # f_L
    y = model.nets[-1](y + z)  # f_H
    return y, z


def single_z_recursion(model, x, y, z):
    """Table 2, one feature: z = net(z + x) n times, then z = net(z), which is the answer, too."""
    for _ in range(model.cfg.n):
        z = model.nets[0](z + x)
    z = model.nets[-1](z)
    return z, z


def multi_z_recursion(model, x, y, z):
    """Table 2, n + 1 features: each update sees all z [B, n, S, D] and renews the oldest."""
    for _ in range(model.cfg.n):
        new = model.nets[0](z.sum(1) + (y + x))
        z = torch.cat([z[:, 1:], new[:, None]], 1)
    y = model.nets[-1](y + z.sum(1))
    return y, z


@torch.no_grad()
def continue_target(model, x, y, z, last):
    """HRM's target for "continue" [B]: the next step's higher q, or its "halt" where `last`."""
    _, _, q = deep_recursion(model, x, y, z)
    return torch.where(last, q[:, 0], q.amax(1)).sigmoid()


# ---- Evaluation: the same supervision steps, without supervision ---------------------------------
@torch.no_grad()
def think(model, task, puzzles):
    """Yield for P puzzles each step's answers by C copies [P, C, L], best first, and q [P, C]."""
    cfg = model.cfg
    P, L = puzzles.inputs.shape
    tries = puzzles[torch.arange(P).repeat_interleave(cfg.rollouts)]
    inputs, ids, undo = task.copies(tries.inputs, tries.ids, cfg.augment)
    x = model.embed(inputs, model.puzzle_vectors[ids])
    y, z = model.initial_state(len(inputs))
    rows = torch.arange(len(inputs), device=inputs.device)  # of the copies that still think
    answers = torch.zeros_like(inputs)  # [P * C, L], C = augment x rollouts
    halt = torch.zeros_like(ids, dtype=torch.float32)  # [P * C]
    for _ in range(cfg.N_eval):
        if cfg.noise:
            z = torch.normal(z, cfg.noise)
        (y, z), logits, q = deep_recursion(model, x, y, z)
        before = answers[rows]
        answers[rows] = logits.argmax(-1)
        halt[rows] = q[:, 0]
        found, logit = undo(answers).view(P, -1, L), halt.view(P, -1).clone()
        if found.shape[1] > 1:
            ranked = [vote(*copies, cfg.pick) for copies in zip(found.cpu(), logit.cpu())]
            found, logit = (torch.stack(parts).to(inputs.device) for parts in zip(*ranked))
        yield found, logit
        if not cfg.all_steps:  # a copy leaves at halt > 0, in HRM too, if nothing changed
            stay = (answers[rows] != before).any(1) | (q[:, 0] <= 0)
            rows, x, y, z = rows[stay], x[stay], y[stay], z[stay]
        if not len(rows):
            break


def vote(answers, q, pick):
    """The distinct answers of [C, L], best first, and the highest q of each; padded to C."""
    distinct, which = answers.unique(dim=0, return_inverse=True)
    groups = [q[which == k] for k in range(len(distinct))]  # the logits of equal answers
    keys = [group.max() for group in groups]
    if pick == "vote":
        keys = [(len(group), group.sigmoid().mean()) for group in groups]
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
    order += order[:1] * (len(answers) - len(order))
    return distinct[order], torch.stack([groups[k].max() for k in order])


def evaluate(model, task, puzzles):
    """Scores [4, N_eval, N]: exact, solved, q right, rank (from 0); the best answers [N, 2, L]."""
    cfg = model.cfg
    scores = torch.zeros(4, cfg.N_eval, len(puzzles))
    attempts = torch.zeros(len(puzzles), 2, task.length, dtype=torch.uint8)
    size = max(1, 4 * cfg.batch // (cfg.augment * cfg.rollouts))  # without gradient more fit in
    with torch.random.fork_rng():  # training goes on as if nobody had looked
        torch.manual_seed(cfg.seed)
        for rows in torch.arange(len(puzzles)).split(size):
            part = puzzles[rows]
            for step, (answers, q) in enumerate(think(model, task, part)):
                right = is_right(answers, part.labels[:, None])  # [P, C]
                solved = task.obeys(part, answers[:, 0])
                rank = torch.where(right.any(1), right.int().argmax(1), math.inf)
                results = torch.stack([right[:, 0], solved, right[:, 0] == (q[:, 0] > 0), rank])
                scores[:, step:, rows] = results[:, None].cpu()  # later, too: all may leave now
            attempts[rows] = answers[:, :2].byte().cpu()
    return scores, attempts


def print_evaluation(model, task):
    """Print what is right after 1, 2, 4, ... steps. With ARC, write submission.json, too."""
    known = (task.test.labels > 0).any(1).cpu()
    began = time.perf_counter()
    scores, attempts = evaluate(model, task, task.test)
    speed = len(task.test) / (time.perf_counter() - began)
    print(f"\n{known.sum()} of {len(known)} unseen puzzles have a known answer; {speed:,.1f}/s")
    print("% right after step  exact  solved  head right")
    for step in range(1, model.cfg.N_eval + 1):
        if known.any() and (step.bit_count() == 1 or step == model.cfg.N_eval):
            exact, solved, head = 100 * scores[:3, step - 1, known].mean(1)
            print(f"{step:18}  {exact:5.1f}  {solved:6.1f}  {head:10.1f}")
    task.report(attempts, scores[3, -1])


def solve(model, task, puzzle, svg=None):
    """Print the answer to a puzzle after each step, until all copies have left; draw a film."""
    question = replace(puzzle, labels=torch.zeros_like(puzzle.labels))  # nothing is right or wrong
    print(f"\n{task.describe(puzzle)[0]}\n{data.show(task, question, puzzle.inputs[0])}")
    panels = []
    for step, (answers, q) in enumerate(think(model, task, puzzle), 1):
        caption = f"step {step}: halting probability {q[0, 0].sigmoid():.3f}"
        print(f"\n{caption}\n{data.show(task, puzzle, answers[0, 0])}")
        panels.append((answers[0, 0], caption))
    if not isinstance(task, data.ARC) or puzzle.labels.any():
        print("\nsolved" if task.obeys(puzzle, answers[:, 0]) else "\nnot solved")
    if svg:
        data.replace_file(Path(svg), data.film(task, puzzle, panels))


# ---- Checkpoints, ours and the published ones ----------------------------------------------------
def load(path):
    """The content of a checkpoint; code in it is not run. Raises ValueError."""
    try:
        content = dict(**torch.load(path, weights_only=True, map_location="cpu"))
        if "config" in content:
            content["config"] = Config(**content["config"])
        return content
    except Exception as error:  # files are damaged in many ways
        raise ValueError(f"{path} is not readable as a checkpoint: {error!s:.90}") from None


PUBLISHED_NAMES = {  # regular expressions
    ".*inner[.]|_proj": "",
    "L_level.layers": "nets.0",
    "H_level.layers": "nets.1",
    "mlp_t|self_attn": "mix",
    "embed_tokens.embedding_weight": "tokens.weight",
    "puzzle_emb.weights": "puzzle_vectors",
    "lm_head": "output_head",
    "H_init": "y_init",
    "L_init": "z_init",
}


def load_published(weights, L=81, V=11, **changes):
    """A TRM of published weights; n, T, heads, prefix: Sudoku's or `changes`. Raises ValueError."""
    for theirs, ours in PUBLISHED_NAMES.items():
        weights = {re.sub(theirs, ours, name): weight for name, weight in weights.items()}
    if not {"y_init", "puzzle_vectors", "nets.0.0.mlp.down.weight"} <= weights.keys():
        raise ValueError("neither a checkpoint of trm.py nor one of the published code")
    cfg = PRESETS["sudoku-hrm"] if "nets.1.0.mlp.down.weight" in weights else Config(prefix=16)
    mixing = "mlp" if "nets.0.0.mix.down.weight" in weights else "attention"
    n_layers = sum("nets.0" in name and "mlp.down" in name for name in weights)
    cfg = replace(cfg, D=len(weights["y_init"]), n_layers=n_layers, mixing=mixing)
    model = TRM(replace(cfg, **changes), L, V, len(weights["puzzle_vectors"]))
    model.load_state_dict(weights)  # raises RuntimeError where sizes differ, naming both
    return model


# ---- Training ------------------------------------------------------------------------------------
def build(cfg, device, saved=None):
    """Task and state of a run, new or from a checkpoint, as `train` takes it. Raises ValueError."""
    task = data.TASKS[cfg.task](cfg, device)
    task.compare(saved["fingerprint"] if saved else task.fingerprint)  # tells of leaks
    torch.manual_seed(cfg.seed)
    model = TRM(cfg, task.length, task.vocab, task.identities).to(device)
    ema = copy.deepcopy(model).requires_grad_(False)
    settings = {"betas": (0.9, 0.95), "weight_decay": cfg.weight_decay, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    torch.manual_seed(cfg.seed)  # the draws do not depend on the size of the model
    run = {"model": model, "ema": ema, "optimizer": optimizer, "slots": {}, "step": 0, "rows": []}
    if saved:
        for name in "model", "ema", "optimizer":
            run[name].load_state_dict(saved[name])
        run.update(step=saved["step"], rows=saved["rows"])
        run["slots"] = {name: part.to(device) for name, part in saved["slots"].items()}
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["cuda_rng"][: torch.cuda.device_count()])
    if dist.is_initialized():  # each process has slots of its own, new ones where a run goes on
        run["slots"] = {}
        world = dist.get_world_size()
        if cfg.batch % world:
            raise ValueError(f"--batch {cfg.batch}: {world} processes cannot share it evenly")
        model.cfg = replace(cfg, batch=cfg.batch // world)
        torch.manual_seed(cfg.seed + 1000 * run["step"] + dist.get_rank())
    return task, run


def save(path, **content):
    """Write a checkpoint: what `build` returns of a run, and more."""
    content.update(rng=torch.get_rng_state(), cuda_rng=torch.cuda.get_rng_state_all())
    for name in "model", "ema", "optimizer":
        content[name] = content[name].state_dict()
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def handle_signals(handler):
    """Let a function take SIGINT and SIGTERM; not in a thread, nor in one of many processes."""
    if threading.current_thread() is threading.main_thread() and not dist.is_initialized():
        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGTERM, handler)


def train(cfg, path, task, run, signals):
    """Train until the end or a signal; save path and log.csv each save_every. Raises ValueError."""
    model, ema, optimizer, slots, step, rows = run.values()
    is_first = not dist.is_initialized() or dist.get_rank() == 0  # of several processes
    if cfg.compile:
        torch._dynamo.config.suppress_errors = True  # without a compiler it goes on uncompiled
        for net in model.nets:
            net.compile(dynamic=False)
    watched = copy.copy(ema)  # shares its weights; a look at unseen puzzles takes one try
    watched.cfg = replace(cfg, augment=1, rollouts=1)
    puzzles = task.test[(task.test.labels > 0).any(1)][:256]
    stop = False
    unseen = rows[-1]["unseen"] if rows else math.nan
    recent, began = [], time.perf_counter()
    while step < cfg.steps and not stop:
        slots, report = train_step(model, ema, optimizer, slots, task, step)
        step += 1
        recent.append(torch.stack(list(report.values())))
        stop = bool(signals)
        saves = stop or step == cfg.steps or step % cfg.save_every == 0
        if not saves and step % cfg.log_every:
            continue
        means = dict(zip(report, torch.stack(recent).mean(0).tolist()))  # waits for the device
        if not math.isfinite(means["loss"]):
            raise ValueError(f"the loss is {means['loss']} at step {step}: lower --lr")
        rate = len(recent) / (time.perf_counter() - began)
        if step % cfg.save_every == 0 and len(puzzles):
            scores, _ = evaluate(watched, task, puzzles)
            unseen = scores[0, -1].mean().item()  # exact, after the last step
        left = (cfg.steps - step) / rate / 60
        row = {"step": step, "unseen": unseen, "steps/s": rate, "minutes left": left, **means}
        rows.append(row)
        values = [f"{name} {value:.3g}" for name, value in row.items() if name != "step"]
        line = "  ".join([f"step {step} of {cfg.steps}", *values])
        if sys.stdout.isatty():  # one line, which the next one replaces
            line = f"\033[K{line}  "[: os.get_terminal_size().columns].rpartition("  ")[0]
        print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
        if is_first and saves:
            run.update(slots={} if dist.is_initialized() else slots, step=step)
            save(path, **run, config=asdict(cfg), fingerprint=task.fingerprint)
            table = [row, *[old.values() for old in rows]]  # the names, then the values
            content = "\n".join(",".join(map(str, cells)) for cells in table)
            data.replace_file(path.with_name("log.csv"), f"{content}\n")
        recent, began = [], time.perf_counter()


# ---- The command line: python trm.py train sudoku-small --lr 1e-3 --------------------------------
def parse(argv):
    """The command line; every field of Config is a flag, its comment the help text."""
    usage = "trm.py {train,eval,solve} NAME [PUZZLE] [--FLAG VALUE ...]; in [ ]: of preset sudoku"
    parser = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    parser.add_argument("command", choices=["train", "eval", "solve"])
    parser.add_argument("name", help=f"train: {', '.join(PRESETS)}; else a run or a file")
    parser.add_argument("puzzle", nargs="?", help="solve: one line, `.` is a blank; an ARC task")
    parser.add_argument("--run", help="name of the run in runs/, in place of the preset's")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="train: go on where there is a run")
    either.add_argument("--overwrite", action="store_true", help="train: replace the run")
    parser.add_argument("--svg", metavar="FILE", help="solve: draw the answers after each step")
    source = inspect.getsource(Config)
    for title, name, comment in re.findall(r" {4}(?:# (.+)|(\w+): .+?  # (.+))\n", source):
        if title:
            group = parser.add_argument_group(title)
            continue
        default = getattr(Config, name)
        choices = "|".join(get_args(Config.__annotations__[name]))
        options = {"type": type(default), "metavar": choices or "value"}
        if type(default) is bool:
            options = {"action": argparse.BooleanOptionalAction}
        group.add_argument(f"--{name}", help=f"{comment} [{default}]", **options)
        if "_" in name:
            parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS, **options)
    return parser.parse_intermixed_args(argv)


def run_training(args, path, changes, device):
    """Train a preset, or go on with a run; evaluate it. Returns None, or 128 + a signal."""
    if args.name not in PRESETS:
        raise ValueError(f"unknown preset {args.name}; there are {', '.join(PRESETS)}")
    cfg, saved = replace(PRESETS[args.name], **changes), None
    parameters = sum(p.numel() for p in TRM(cfg, cfg.size**2, 1).nets.parameters())
    depth = cfg.T * (cfg.n + 1) * cfg.n_layers
    print(f"depth {depth}, {1 + cfg.q_learning} forward passes, {parameters:,} parameters")
    if cfg.steps == 0:
        print("preset:", PRESETS[args.name])
        return
    if cfg.dtype == "auto":
        is_fast = torch.cpu._is_avx512_bf16_supported()
        if device.type == "cuda":
            is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        cfg = replace(cfg, dtype="bfloat16" if is_fast else "float32")
    if path.exists() and not args.overwrite:
        if not args.resume:
            raise ValueError(f"{path} exists: --resume, --overwrite or --run ANOTHER_NAME")
        saved = load(path)
        for name, old in asdict(saved["config"]).items():
            new = getattr(cfg, name)
            if old != new and (name != "steps" or new < saved["step"]):
                raise ValueError(f"--{name} {new}: the run has {old}; give that, or another --run")
    task, run = build(cfg, device, saved)
    if saved and saved["fingerprint"] != task.fingerprint:
        raise ValueError("the training puzzles are not those that the run began with")
    print(f"{len(task.train)} training and {len(task.test)} unseen puzzles; {device}, {cfg.dtype}")
    print(f"from step {run['step']}, learning rate {cfg.lr * schedule(cfg, run['step']):.2g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    signals = []
    handle_signals(lambda number, frame: signals.append(number))
    train(cfg, path, task, run, signals)
    handle_signals(signal.default_int_handler)
    if signals:
        print(f"\nstopped and saved {path}; --resume, without --overwrite, goes on")
        return 128 + max(signals)
    print_evaluation(run["ema"], task)
    solve(run["ema"], task, task.test[:1])


def run_model(args, path, changes, device):
    """Evaluate a model, or let it solve a puzzle."""
    if "steps" in changes:
        changes["N_eval"] = changes.pop("steps")
    saved = load(Path(args.name) if Path(args.name).is_file() else path)
    cfg = replace(saved.get("config", Config()), **changes)
    if "config" in saved:
        task, run = build(cfg, device, saved)
        model = run["ema"]
    else:
        task = data.TASKS[cfg.task](cfg, device)
        if task.identities > 1:
            raise ValueError("published ARC vectors are numbered by the published data builder")
        model = load_published(saved, task.length, task.vocab, **changes).to(device)
    if args.command == "eval":
        print_evaluation(model, task)
    else:
        puzzle = task.test[[torch.seed() % len(task.test)]]  # another one each time
        if args.puzzle is not None:
            puzzle = task.parse(args.puzzle)
        solve(model, task, puzzle, args.svg)


def main(argv=None):
    """Run a command. Returns its exit status, None for 0; a user's mistake is one line, and 2."""
    try:
        args = parse(argv)
        changes = {k: v for k, v in vars(args).items() if hasattr(Config, k) and v is not None}
        cuda = f"cuda:{dist.get_node_local_rank(0)}"  # under torchrun each process has its own
        device = torch.device(cuda if torch.cuda.is_available() else "cpu")
        if dist.is_torchelastic_launched():
            dist.init_process_group()
        path = Path("runs", args.run or args.name, "checkpoint.pt")
        if (args.puzzle or args.svg) and args.command != "solve":
            raise ValueError(f"{args.puzzle or args.svg!r}: only solve takes a puzzle or --svg")
        command = run_training if args.command == "train" else run_model
        return command(args, path, changes, device)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        expected = "state_dict|(out of|allocate) memory|overflowed|inline_container|device ordinal"
        if isinstance(error, RuntimeError) and not re.search(expected, str(error)):
            raise
        words = f"trm.py: {' '.join(str(error).split())[:400]}"
        print("\033[K" * sys.stderr.isatty() + words, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
