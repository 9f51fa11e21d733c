# SPDX-License-Identifier: MIT
"""The Tiny Recursive Model (TRM) in one file, to be read beside the paper:
"Less is More: Recursive Reasoning with Tiny Networks", Jolicoeur-Martineau 2025, arXiv:2510.04871.

Sections, figures and tables are the paper's. Shapes: B puzzles in a batch, L cells of a grid,
S = prefix + L positions, D hidden size, V tokens.
"""

import argparse
import copy
import inspect
import io
import math
import re
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

import data


# ---- Configuration: the defaults are the paper's TRM-MLP for Sudoku-Extreme ----------------------
@dataclass
class Config:
    """Every setting of a run, each a flag of the command line. Raises ValueError."""

    # The puzzles, see data.py; tokens count from 1, for a cell labelled 0 is not scored
    task: str = "sudoku"  # family of puzzles: sudoku, maze, arc, or table: your own, from CSV files
    size: int = 9  # cells on a side of the grid; ARC: of the largest grids; table: in a line
    data: str = ""  # folder with train.csv and test.csv; empty: generated ones. ARC: puzzles/arc
    train_size: int = 1000  # puzzles to train on (section 5); 0: all of the file, or 1000; ARC: all
    test_size: int = 0  # unseen puzzles; 0: all of the file, or 1000 generated ones; ARC: all
    min_path: int = 110  # mazes: the shortest path has more moves than this
    sets: str = "training,concept,evaluation"  # ARC: the test pairs of the last set are unseen
    augmentations: int = 1000  # ARC: copies of each task, each an identity of its own (section 5)
    # The network (sections 4.3 to 4.5)
    D: int = 512  # hidden size
    n_layers: int = 2  # blocks in the tiny network (section 4.4)
    mixing: Literal["mlp", "attention"] = "mlp"  # what mixes the cells (section 4.5)
    heads: int = 8  # attention heads
    expansion: float = 4.0  # a SwiGLU is inside 2/3 of this times as wide as its input ...
    multiple: int = 256  # ... rounded up to a multiple of this
    prefix: int = 0  # positions for the puzzle embedding; only ARC needs them
    networks: int = 1  # 1: the same network updates z and y; 2: HRM's f_L and f_H (section 4.3)
    # The recursion (sections 4.1 and 4.2) and deep supervision (section 2.4)
    n: int = 6  # updates of z in a recursion
    T: int = 3  # recursions in a supervision step; the last one has a gradient
    N_sup: int = 16  # supervision steps on one puzzle, at most
    N_start: float = 1.0  # share of N_sup at first (0: one step), growing to all; not in the paper
    explore: float = 0.1  # chance, drawn each step, not to halt before a random step, 2 to N_sup
    explore_once: bool = False  # draw this once for a puzzle, not at each step; not in the paper
    loss: Literal["stablemax", "softmax"] = "stablemax"  # as published; softmax: Figure 3
    recursion: Literal["latent", "one_step", "single_z", "multi_z"] = "latent"  # TRM; HRM; Table 2
    q_learning: bool = False  # HRM's halting, with a second forward pass (section 2.5)
    # The optimizer (the paper's appendix)
    steps: int = 65_000  # optimizer steps
    batch: int = 768  # puzzles in a step
    lr: float = 1e-4  # learning rate of AdamW
    lr_final: float = 1.0  # share of lr that is left at the end; 1: constant, as published
    warmup: int = 2000  # steps of linear warm-up
    weight_decay: float = 1.0  # decoupled weight decay
    puzzle_lr: float = 1e-2  # learning rate of the puzzle embeddings
    ema: float = 0.999  # decay of the averaged weights, which are evaluated (section 4.7)
    # Evaluation and the machine
    N_eval: int = 16  # supervision steps; more than N_sup is thinking longer than trained for
    early_exit: bool = False  # stop where p(halt) is over 1/2 and the answer has not changed
    augment: int = 1  # symmetric copies that vote; mazes have 8, ARC 1 + augmentations
    seed: int = 0  # of training puzzles, weights, training and, in eval, copies that vote
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: in training the faster one
    compile: bool = True  # torch.compile the network
    log_every: int = 50  # steps from one row of log.csv to the next; each save writes one, too
    save_every: int = 500  # steps from one checkpoint, and one look at unseen puzzles, to the next

    def __post_init__(self):
        may_be_0 = "train_size test_size min_path augmentations prefix seed".split()
        highest = {"N_start": 1, "explore": 1, "lr_final": 1, "ema": 0.999999, "networks": 2}
        self.data = self.data and str(Path(self.data).absolute())
        for name, value in vars(self).items():
            kind = type(getattr(Config, name))
            choices = data.TASKS if name == "task" else get_args(Config.__annotations__[name])
            if choices and value not in choices:
                raise ValueError(f"--{name} {value}: must be one of {', '.join(choices)}")
            low = 1 if kind is int and name not in may_be_0 else 0
            high = highest.get(name, 10**9)
            if kind in (int, float) and not low <= kind(value) <= high:
                raise ValueError(f"--{name} {value}: must be from {low} to {high}")
            setattr(self, name, kind(value))


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
    """W_down (silu(W_gate h) * W_up h) over channels (dim -1) or positions (0, once in front)."""

    def __init__(self, width, dim, cfg):
        super().__init__()
        inner = round(cfg.expansion * width * 2 / 3)
        inner = max(1, math.ceil(inner / cfg.multiple)) * cfg.multiple
        self.dim = dim
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, h):  # [B, S, D]
        if self.dim == 0:  # positions in front, [S, B, D]: so each W is one matrix product
            h = h.transpose(0, 1)
        gate, up = self.gate_up(h, self.dim).chunk(2, self.dim)
        h = self.down(F.silu(gate) * up, self.dim)
        return h.transpose(0, 1) if self.dim == 0 else h


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
        self.mixed_dim = 1 if cfg.mixing == "mlp" else -1  # of the first norm: over S, as published

    def forward(self, h):  # [B, S, D]
        h = norm(h + self.mix(h), self.mixed_dim)
        return norm(h + self.mlp(h), -1)


class TRM(nn.Module):
    """The embeddings, the tiny network and the two heads (Figure 1). Raises ValueError."""

    def __init__(self, cfg, L, V, identities=1):  # cfg: a Config, or as much of it as is used here
        super().__init__()
        if identities > 1 and cfg.prefix == 0:
            raise ValueError("--prefix 0: puzzle embeddings need a position; arc-small has one")
        self.cfg = cfg
        self.dtype = torch.bfloat16 if cfg.dtype == "bfloat16" else torch.float32  # of x, y and z
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
        """Float32 logits: of the answer [B, L, V]; of halt and continue [B, 2]."""
        logits = self.output_head(y[:, self.cfg.prefix :]).float()
        q = self.q_head(y[:, 0].float())  # at the puzzle vector; without a prefix, the first cell
        return logits, q


# ---- The recursion (Figure 3, sections 4.1 and 4.2). x, y, z: [B, S, D]; multi_z: z [B, n, S, D] -
def latent_recursion(model, x, y, z):
    """Update the latent z n times, given question and answer; then the answer y, given z.

    One network does both: it sees x when it is to update z, and no x when it is to update y.
    """
    f_L, f_H = model.nets[0], model.nets[-1]  # in TRM they are the same
    for _ in range(model.cfg.n):
        z = f_L(z + (y + x))  # the published order; recursion amplifies how another one rounds
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


# ---- The losses (Figure 3; for halting, sections 2.5 and 4.6) ------------------------------------
def stablemax_cross_entropy(logits, labels):
    """Cross-entropy [B, L] with s(v) = v + 1, or 1 / (1 - v) for v < 0, in place of exp(v)."""
    v = logits.double()  # [B, L, V], float64 as published
    s = v.relu() + 1 / (1 - v.clamp(max=0))  # where() has a nan as gradient at v = 1
    p = s.gather(-1, labels[..., None]).squeeze(-1) / s.sum(-1)
    return -p.log()


def losses(logits, q, labels, kind):
    """Loss of the answer (where labelled), of the halting head; is the answer right? Each [B]."""
    if kind == "stablemax":
        per_cell = stablemax_cross_entropy(logits, labels)
    else:
        per_cell = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    labelled = labels != 0
    answer_loss = torch.where(labelled, per_cell, 0).sum(1) / labelled.sum(1).clamp(min=1)
    right = ((logits.argmax(-1) == labels) | ~labelled).all(1) & labelled.any(1)
    halting_loss = F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="none")
    return answer_loss, halting_loss, right


# ---- Deep supervision (section 2.4), halting (section 4.6) and EMA (section 4.7) -----------------
# Figure 3 thinks N_sup times about one batch. As in the published code, a batch is here a row of
# slots, each with a puzzle (inputs and labels [B, L], ids [B]), its (y, z) and the count [B] of its
# supervision steps. A slot that halts gets a new puzzle at the next step: the batch is always full.
def refill(slots, model, task, limit):
    """The slots, tensors by name: those that have halted get new puzzles; at first all do."""
    inputs, labels, ids = task.draw(model.cfg.batch)  # for all: counting the halted stalls a GPU
    y, z = model.initial_state(model.cfg.batch)
    fresh = dict(inputs=inputs, labels=labels, ids=ids, y=y, z=z, count=torch.zeros_like(ids))
    if model.cfg.explore_once:
        fresh["least"] = least_steps(fresh["count"], limit, model.cfg.explore)
    if slots is None:
        check(inputs, labels, model)
        return fresh
    for name, new in fresh.items():
        halted = slots["halted"].view(-1, *[1] * (new.dim() - 1))  # [B, 1, ...], as `new` has
        fresh[name] = torch.where(halted, new, slots[name])
    return fresh


def check(inputs, labels, model):
    """Raise ValueError, saying which, where tokens are not as the model takes them."""
    shape, V = [model.cfg.batch, model.S - model.cfg.prefix], model.tokens.num_embeddings  # [B, L]
    for name, part in ("inputs", inputs), ("labels", labels):
        if part.dtype != torch.long or [*part.shape] != shape:
            raise ValueError(f"{name}: {part.dtype} {[*part.shape]} must be torch.int64 {shape}")
        if part.min() < 0 or part.max() >= V:
            raise ValueError(f"{name}: tokens must be from 0 to {V - 1}")


def least_steps(count, limit, explore):
    """The count [B] from which a sure slot halts: with chance `explore` 2 to limit, else 0."""
    least = torch.randint_like(count, 2, max(limit, 2) + 1)
    return torch.where(torch.rand(len(count), device=count.device) < explore, least, 0)


def halts(q, count, least, limit, cfg):
    """Which slots halt [B]: at the limit, or when the head is sure and `least` is reached."""
    sure = q[:, 0] > q[:, 1] if cfg.q_learning else q[:, 0] > 0  # HRM: is halting worth more?
    return (count >= limit) | (sure & (count >= least))


@torch.no_grad()
def update_ema(ema, model):
    """Move the averaged weights towards the trained ones (section 4.7)."""
    for average, weight in zip(ema.parameters(), model.parameters()):
        average.lerp_(weight, 1 - model.cfg.ema)
    ema.puzzle_vectors = model.puzzle_vectors  # shared, not averaged


def update_puzzle_vectors(model, ids, grads, lr):
    """Sign-SGD, as published, on the embeddings in the batch, with decoupled weight decay."""
    same = (ids[:, None] == ids).float()  # [B, B]: gradients of one identity add up
    kept = (1 - lr * model.cfg.weight_decay) * model.puzzle_vectors[ids]
    model.puzzle_vectors[ids] = kept - lr * (same @ grads).sign()  # equal ids write the same


def schedule(cfg, step):
    """The learning rate as a share of the highest: linear warm-up, times a linear fall."""
    warm = min(1, (step + 1) / cfg.warmup)
    return warm * (1 - (1 - cfg.lr_final) * min(1, step / cfg.steps))


def most_steps(cfg, step):
    """The limit of supervision steps: N_sup; it grows to that geometrically from N_start of it."""
    share = max(cfg.N_start, 1 / cfg.N_sup) ** max(0, 1 - step / cfg.steps)
    return round(cfg.N_sup * share)


def train_step(model, ema, optimizer, slots, task, step):
    """The body of Figure 3's loop: each slot thinks once. Returns the slots, and means by name."""
    cfg = model.cfg
    limit = most_steps(cfg, step)  # N_sup, or less at first
    slots = refill(slots, model, task, limit)
    count = slots["count"] + 1
    # A copy of the puzzles' vectors [B, D]; a leaf, so that it has a .grad of its own.
    vectors = model.puzzle_vectors[slots["ids"]].requires_grad_()
    x = model.embed(slots["inputs"], vectors)
    (y, z), logits, q = deep_recursion(model, x, slots["y"], slots["z"])
    answer_loss, halting_loss, right = losses(logits, q, slots["labels"], cfg.loss)
    if cfg.q_learning:
        halting_loss = halting_loss + continue_loss(model, x, y, z, q, count >= limit)
    loss = (answer_loss + 0.5 * halting_loss).mean()  # 0.5 as published
    loss.backward()
    share = schedule(cfg, step)
    for group in optimizer.param_groups:
        group["lr"] = cfg.lr * share
    optimizer.step()
    optimizer.zero_grad()
    if cfg.prefix:
        update_puzzle_vectors(model, slots["ids"], vectors.grad, cfg.puzzle_lr * share)
    update_ema(ema, model)
    least = slots["least"] if cfg.explore_once else least_steps(count, limit, cfg.explore)
    halted = halts(q, count, least, limit, cfg)
    slots.update(y=y, z=z, count=count, halted=halted)
    report = {"loss": loss, "answer loss": answer_loss, "halting loss": halting_loss}
    report |= {"slots right": right, "slots halted": halted}
    return slots, {name: value.detach().float().mean() for name, value in report.items()}


# ---- What TRM is compared with: other recursions in place of latent_recursion, and HRM's halting -
# HRM: attention, two networks of four layers, one_step_recursion, continue_loss, its rule in
# `halts`, no EMA; see the preset sudoku-hrm.
def one_step_recursion(model, x, y, z):
    """HRM's gradient (section 2.3): only through the last update of z and that of y."""
    f_L, f_H = model.nets[0], model.nets[-1]
    for _ in range(model.cfg.n):
        z = f_L(z.detach() + (y + x))
    y = f_H(y + z)
    return y, z


def single_z_recursion(model, x, y, z):
    """Table 2, one feature: z = net(z + x) n times, then z = net(z), which is the answer, too."""
    for _ in range(model.cfg.n):
        z = model.nets[0](z + x)
    z = model.nets[-1](z)
    return z, z


def multi_z_recursion(model, x, y, z):
    """Table 2, n + 1 features: y, and n latents z [B, n, S, D]; the update of each sees all."""
    for _ in range(model.cfg.n):
        new = model.nets[0](z.sum(1) + (y + x))
        z = torch.cat([z[:, 1:], new[:, None]], 1)  # in place of the oldest
    y = model.nets[-1](y + z.sum(1))
    return y, z


def continue_loss(model, x, y, z, q, last):
    """HRM's loss of "continue" [B]; target: sigmoid of the next max q (if `last`: next halt)."""
    with torch.no_grad():
        _, _, q_next = deep_recursion(model, x, y, z)
        target = torch.where(last, q_next[:, 0], q_next.amax(1)).sigmoid()
    return F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="none")


# ---- Evaluation: the same supervision steps, without supervision ---------------------------------
@torch.no_grad()
def think(model, inputs, vectors, cfg):
    """Yield each step's answers [N, L] and halting logits [N]; vectors [N, D]: see TRM.embed."""
    x = model.embed(inputs, vectors)
    y, z = model.initial_state(len(inputs))
    answers = torch.zeros_like(inputs)
    halt = torch.zeros(len(inputs), device=inputs.device)
    active = torch.arange(len(inputs), device=inputs.device)  # the puzzles that still think
    for _ in range(cfg.N_eval):
        (y, z), logits, q = deep_recursion(model, x, y, z)
        new = logits.argmax(-1)
        goes_on = (new != answers[active]).any(1) | (q[:, 0] <= 0)  # changed, or p at most 1/2
        answers[active] = new
        halt[active] = q[:, 0]
        yield answers.clone(), halt.clone()
        if cfg.early_exit:
            active, x, y, z = active[goes_on], x[goes_on], y[goes_on], z[goes_on]
            if len(active) == 0:
                return


def vote(answers, halt):
    """The two answers [2, L] that most of C copies have; the highest halting logit of the first."""
    distinct, which = answers.unique(dim=0, return_inverse=True)
    # A copy is a vote; halting probabilities, less than half a vote in all, decide among equals.
    votes = torch.zeros(len(distinct)).index_add(0, which, 1 + halt.sigmoid() / (2 * len(halt)))
    order = votes.argsort(descending=True)[:2]  # twice the same where all copies agree
    return distinct[order[[0, -1]]], halt[which == order[0]].max()


def attempt(model, task, puzzles, cfg):
    """Yield each step's two best answers [N, 2, L] by votes; halting logits [N] of the first."""
    inputs, ids, undo = task.copies(puzzles.inputs.long(), puzzles.ids, cfg.augment)
    for answers, halt in think(model, inputs, model.puzzle_vectors[ids], cfg):
        answers = undo(answers).view(len(puzzles), cfg.augment, -1)
        if cfg.augment > 1:
            copies = zip(answers.cpu(), halt.cpu().view(len(puzzles), -1))  # of each puzzle
            best = [vote(*pair) for pair in copies]
            answers, halt = (torch.stack(part).to(inputs.device) for part in zip(*best))
        yield answers.expand(-1, 2, -1), halt


def evaluate(model, task, puzzles, cfg):
    """Score N puzzles: a dict of [N_eval, N], after each step; the two best answers [N, 2, L]."""
    scores = torch.zeros(3, cfg.N_eval, len(puzzles))
    best = torch.zeros(len(puzzles), 2, task.length, dtype=torch.uint8)
    size = max(1, 4 * cfg.batch // cfg.augment)  # without gradients four times as many fit
    with torch.random.fork_rng():  # training goes on as if nobody had looked
        for rows in torch.arange(len(puzzles)).split(size):
            torch.manual_seed(cfg.seed)  # the same symmetries, however many puzzles at once
            part = puzzles[rows]
            for step, (answers, halt) in enumerate(attempt(model, task, part, cfg)):
                exact = data.Task.obeys(task, part, answers[:, 0])  # equal to the labels
                found = torch.stack([exact, task.obeys(part, answers[:, 0]), exact == (halt > 0)])
                # In the later steps, too: there may be none, if all puzzles leave now.
                scores[:, step:, rows] = found[:, None].float().cpu()
            best[rows] = answers.byte().cpu()
    return dict(zip(("exact", "solved", "head right"), scores)), best


def print_evaluation(run, task, cfg, path):
    """Print the scores after 1, 2, 4, ... supervision steps; add them to eval.csv beside `path`."""
    scores, best = evaluate(run.ema, task, task.test, cfg)
    asked = {"run": path, "step": run.step, "puzzles": len(task.test), "N_eval": cfg.N_eval}
    asked |= {"early_exit": cfg.early_exit, "augment": cfg.augment, **task.report(best)}
    print("\n" + ", ".join(f"{name} {value}" for name, value in asked.items()))
    print("after step  % exact  % solved  % head right")
    rows = []
    for after in range(1, cfg.N_eval + 1):
        if after.bit_count() == 1 or after == cfg.N_eval:  # a power of 2, or the last
            means = {name: f"{100 * part[after - 1].mean():.1f}" for name, part in scores.items()}
            print("{:10}  {:>7}  {:>8}  {:>12}".format(after, *means.values()))
            rows.append({**asked, "after step": after, **means, **vars(cfg)})
    table = path.with_name("eval.csv")
    earlier = [row for _, row in data.read_rows(table)] if table.exists() else []
    data.write_rows(table, earlier + rows)


def solve(model, task, puzzle, cfg, svg=None):
    """Print the answers to a puzzle until one is sure and stays; after N_sup a few. Draw them."""
    question = replace(puzzle, labels=puzzle.labels * 0)  # so that nothing is right or wrong
    print(f"\n{task.describe(puzzle)}\n{data.show(task, question, puzzle.inputs[0])}")
    thoughts = attempt(model, task, puzzle, replace(cfg, early_exit=True))
    steps = [(answers[:, 0], halt.sigmoid().item()) for answers, halt in thoughts]
    last, _ = steps[-1]  # [1, L]
    is_solved = task.obeys(puzzle, last)
    if is_solved and not puzzle.labels.any():  # it was typed
        puzzle = replace(puzzle, labels=last)
    for step, (answer, p) in enumerate(steps, 1):
        if step <= cfg.N_sup or step.bit_count() == 1 or step == len(steps):  # later: powers of 2
            print(f"\nstep {step}: p(halt) {p:.3f}\n{data.show(task, puzzle, answer[0])}")
    if svg:
        data.replace_file(svg, data.film(task, puzzle, steps))
        print(f"\ndrawn: {svg}")
    if task.rule or puzzle.labels.any():
        print("\nsolved" if is_solved else f"\nnot solved: it must {task.rule or 'match the file'}")


# ---- Checkpoints, ours and the published ones ----------------------------------------------------
def load(path):
    """The content of a checkpoint, a dict; code in it is not run. Raises ValueError."""
    try:
        damaged = zipfile.ZipFile(path).testzip()  # torch.load does not look at the checksums
        content = torch.load(path, weights_only=True, map_location="cpu")
        if "config" in content:
            content["config"] = Config(**content["config"])
        weights = content.get("ema", content)  # our average, or a published file
        if damaged or not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("it is damaged, or has weights that are not finite")
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
    """A TRM of published weights; n, T, heads, prefix as for Sudoku, or as in `changes`."""
    for theirs, ours in PUBLISHED_NAMES.items():
        weights = {re.sub(theirs, ours, name): weight for name, weight in weights.items()}
    is_hrm = "nets.1.0.mlp.down.weight" in weights
    cfg = Config(**preset("sudoku-hrm")) if is_hrm else Config(prefix=16)
    mixing = "mlp" if "nets.0.0.mix.down.weight" in weights else "attention"
    n_layers = sum("nets.0" in name and "mlp.down" in name for name in weights)
    cfg = replace(cfg, D=len(weights["y_init"]), n_layers=n_layers, mixing=mixing)
    model = TRM(replace(cfg, **changes), L, V, len(weights["puzzle_vectors"]))
    model.load_state_dict(weights)  # raises RuntimeError where sizes differ, naming both
    return model.eval()


# ---- Training ------------------------------------------------------------------------------------
def build(cfg, task, device, saved=None):
    """A run: model, average, optimizer, slots, log; new, or as saved."""
    torch.manual_seed(cfg.seed)
    model = TRM(cfg, task.length, task.vocab, task.identities).to(device)
    run = SimpleNamespace(model=model, slots=None, step=0, rows=[])
    run.fingerprint = saved["fingerprint"] if saved else task.fingerprint
    run.ema = copy.deepcopy(model).requires_grad_(False).eval()
    run.optimizer = torch.optim.AdamW(  # lr: see train_step
        model.parameters(), betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=True
    )
    torch.manual_seed(cfg.seed)  # what is drawn does not depend on the size of the model
    if saved:
        for part in "model", "ema", "optimizer":
            getattr(run, part).load_state_dict(saved[part])
        if saved["slots"]:
            run.slots = {name: part.to(device) for name, part in saved["slots"].items()}
        run.step = saved["step"]
        run.rows = saved["rows"]
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["cuda_rng"][: torch.cuda.device_count()])
    return run


def save(path, cfg, run):
    """Write log.csv, then the checkpoint: so log.csv has every row that the checkpoint has."""
    data.write_rows(path.with_name("log.csv"), run.rows)
    content = {**vars(run), "config": vars(cfg), "rng": torch.get_rng_state()}
    for part in "model", "ema", "optimizer":
        content[part] = content[part].state_dict()
    content["cuda_rng"] = torch.cuda.get_rng_state_all()
    buffer = io.BytesIO()  # torch.save itself tells of a full disk in other words than OSError
    torch.save(content, buffer)
    data.replace_file(path, buffer.getvalue())


def train(cfg, task, run, path):
    """Train; each save_every steps look at unseen puzzles, save at `path`. Raises ValueError."""
    if cfg.compile:
        torch._dynamo.config.suppress_errors = True  # without a compiler it goes on uncompiled
        for net in run.model.nets:
            net.compile(dynamic=False)
    save(path, cfg, run)  # what cannot be written shows now
    if run.step == 0:
        path.with_name("eval.csv").unlink(missing_ok=True)  # of a run that is replaced
    reports, began = [], None
    while run.step < cfg.steps:
        run.slots, report = train_step(run.model, run.ema, run.optimizer, run.slots, task, run.step)
        run.step += 1
        reports.append(torch.stack(list(report.values())))
        if began is None:  # the first step compiles, which says nothing about the others
            began, first = time.perf_counter(), run.step
        saves = run.step % cfg.save_every == 0 or run.step == cfg.steps
        if not saves and run.step % cfg.log_every > 0:
            continue
        means = dict(zip(report, torch.stack(reports).mean(0).tolist()))  # waits for the device
        if not math.isfinite(means["loss"]):
            raise ValueError(f"loss {means['loss']} at step {run.step}: train with a lower --lr")
        rate = (run.step - first) / (time.perf_counter() - began)  # 0: not known yet
        row = {"step": run.step, **means}
        if rate:
            row |= {"steps/s": rate, "minutes left": (cfg.steps - run.step) / rate / 60}
        run.rows.append(row)
        if saves:
            look = replace(cfg, augment=1, early_exit=False, N_eval=cfg.N_sup)  # as in the paper
            scores, _ = evaluate(run.ema, task, task.test[:256], look)
            row["unseen"] = 100 * scores["exact"][-1].mean().item()
            save(path, cfg, run)
        told = [f"{name} {value:.3g}" for name, value in row.items()]
        print(f"step {run.step} of {cfg.steps}", *told[1:], sep="  ", flush=True)
        reports = []


# ---- The command line: python trm.py train sudoku-small --lr 1e-3 --------------------------------
def parse(argv):
    """The command line, and what it sets of Config: every field is a flag. Raises ValueError."""
    settings = inspect.getsource(Config).split("    def ")[0]
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False, epilog=settings)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["train", "eval", "solve", "plot"])
    parser.add_argument("name", help=f"train: a run or {', '.join(PRESETS)}; else a run or a file")
    parser.add_argument("more", nargs="*", help="solve: a puzzle; plot: more runs")
    parser.add_argument("--run", help="name of the run in runs/, in place of the preset's")
    parser.add_argument("--resume", action="store_true", help="train: go on with a run")
    parser.add_argument("--overwrite", action="store_true", help="train: replace the run")
    parser.add_argument("--svg", metavar="FILE", help="solve: draw the steps; plot: curves.svg")
    for name, default in vars(Config()).items():
        is_bool = type(default) is bool
        options = {"action": argparse.BooleanOptionalAction} if is_bool else {"type": type(default)}
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **options)
    args = parser.parse_intermixed_args(argv)
    args.is_training = args.command == "train"
    if args.command in ("train", "eval") and (args.more or args.svg):
        raise ValueError(f"{args.command} takes no more words and no --svg; solve and plot do")
    if args.svg and not args.svg.endswith(".svg"):  # a slip must not replace a checkpoint
        raise ValueError(f"--svg {args.svg}: the name of a picture must end in .svg")
    return args, {k: v for k, v in vars(args).items() if hasattr(Config, k) and v is not None}


def preset(name):
    """What a preset sets of Config. Raises ValueError."""
    if name not in PRESETS:
        raise ValueError(f"{name} is no preset ({', '.join(PRESETS)}); a run goes on by --resume")
    return parse(["train", name, *PRESETS[name].split()])[1]


def configure(args, changes, saved):
    """A preset's or a run's Config with changes; those of a run are told. Raises ValueError."""
    if saved is None:
        return Config(**{**preset(args.name), **changes})
    old = saved.get("config", Config(**changes))  # a published file has none
    if args.is_training and args.run:  # then `name` is a preset, and the run must be of it
        changes = {**preset(args.name), "steps": old.steps, **changes}
    cfg = replace(old, **changes)
    free = "N_eval early_exit augment batch dtype compile data test_size seed n T"  # may differ
    if args.is_training:
        free = "steps data compile log_every save_every N_eval early_exit augment"
    for name in changes:
        if getattr(old, name) != getattr(cfg, name):
            told = f"--{name} {getattr(cfg, name)}; the run has {getattr(old, name)}"
            if name not in free.split():
                raise ValueError(f"{told} and keeps it: --run NEW trains another")
            print("with", told)
    return cfg


def open_run(args, changes, path, device):
    """Config, task and run: of a preset, a checkpoint or a published file. Raises ValueError."""
    if path.exists() and args.is_training and not (args.resume or args.overwrite):
        raise ValueError(f"{path} exists: --resume, --overwrite or --run ANOTHER_NAME")
    saved = load(path) if path.exists() and (args.resume or not args.is_training) else None
    cfg = configure(args, changes, saved)
    if cfg.dtype == "auto" and args.is_training:
        is_fast = torch.cpu._is_avx512_bf16_supported()
        if device.type == "cuda":
            is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        cfg = replace(cfg, dtype="bfloat16" if is_fast else "float32")
    task = data.TASKS[cfg.task](cfg, device)
    if saved is None:
        return cfg, task, build(cfg, task, device)
    try:
        if "config" not in saved:
            if args.is_training or task.identities > 1:
                raise ValueError("a published file can be evaluated (not for ARC), not trained")
            model = load_published(saved, task.length, task.vocab, **changes)
            run = SimpleNamespace(ema=model.to(device), step="unknown", fingerprint=[])
            return model.cfg, task, run
        if args.is_training and cfg.steps < saved["step"]:
            raise ValueError(f"--steps {cfg.steps}: the run has had {saved['step']}")
        if saved["fingerprint"][0] != task.kind:
            raise ValueError(f"the run is for {saved['fingerprint'][0]}; these are {task.kind}")
        if args.is_training and saved["fingerprint"] != task.fingerprint:
            raise ValueError("the training puzzles are not those that the run began with")
        return cfg, task, build(cfg, task, device, saved)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__} {error!s:.300}"
        raise ValueError(f"{path} cannot be used: {why}") from None


def run_command(args, changes, device):
    """Train, evaluate, solve or plot. Raises ValueError."""
    if args.command == "plot":
        svg = args.svg or "curves.svg"
        data.replace_file(svg, data.curves([args.name, *args.more]))
        print(f"drawn: {svg}")
        return
    name = args.run or args.name
    path = Path("runs", name, "checkpoint.pt")
    if args.is_training:
        if not path.exists():
            preset(args.name)  # raises where there is none, before a folder is made
        held = data.lock(path.parent)  # until this function ends
    elif not path.exists():
        path = Path(name)  # a run's folder or a file, ours or a published one
        path = path / "checkpoint.pt" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"no run in runs/, and no file, is named {name!r}: train it first")
    cfg, task, run = open_run(args, changes, path, device)
    if args.command != "solve":
        task.tell_leaks(run.fingerprint)
    if args.is_training:
        told = f"{cfg.task}: {len(task.train)} training and {len(task.test)} unseen puzzles"
        print(f"{told}; {device}, {cfg.dtype}; step {run.step} of {cfg.steps}")
        train(cfg, task, run, path)
    if args.command != "eval":
        if args.more:
            puzzle = task.parse(" ".join(args.more))
        else:  # a random one; after training the first
            puzzle = task.test[[0 if args.is_training else torch.seed() % len(task.test)]]
        solve(run.ema, task, puzzle, cfg, args.svg)
    if args.command != "solve":
        print_evaluation(run, task, cfg, path)


def main(argv=None):
    """Run a command. Returns its exit status, None for 0; a user's mistake is one line, and 2."""
    try:
        args, changes = parse(argv)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return run_command(args, changes, device)
    except KeyboardInterrupt:
        print("\nstopped; train --resume, or make, goes on from the last save", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"trm.py: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        return 2


# ---- Presets: flags; given twice, the last counts. The paper's but for small, fast and 6x6 -------
HRM = " --n_layers 4 --networks 2 --n 2 --T 2 --recursion one_step --q_learning --ema 0"
MAZE = "--task maze --size 30 --mixing attention --n 4"
ARC = MAZE + " --task arc --prefix 16 --weight_decay 0.1 --augment 1001"
# For a laptop: narrow, with a high learning rate that falls and an N_sup that grows.
SMALL = "--D 64 --expansion 1.5 --multiple 16 --n 2 --T 2 --N_start 0.125 --loss softmax"
SMALL += " --batch 64 --lr 4e-3 --lr_final 0.02 --warmup 100 --weight_decay 0.1 --ema 0.995"
ATT6 = SMALL + " --size 6 --D 128 --T 1 --mixing attention --heads 4 --N_start 0"  # 0: from 1
PRESETS = {
    "sudoku": "",  # the defaults
    "sudoku-att": "--mixing attention",
    "sudoku-hrm": "--mixing attention --prefix 1" + HRM,
    "sudoku-fast": "--T 1 --N_sup 8 --N_start 0.25 --N_eval 32 --loss softmax --batch 256 --lr 7e-4"
    " --lr_final 0.1 --warmup 200 --weight_decay 0.1 --ema 0.998 --steps 6305",
    "sudoku-small": SMALL + " --D 128 --n 4 --T 1 --batch 32 --lr 2e-3 --ema 0.999 --N_eval 128"
    " --steps 9000 --save_every 1000",
    "sudoku-6x6": SMALL + " --size 6 --N_sup 8 --N_start 0.25 --lr 8e-3 --ema 0.99"
    " --weight_decay 1 --steps 800 --save_every 100",
    "sudoku-6x6-att": ATT6 + " --explore 0.5 --explore_once --steps 5500",
    "sudoku-6x6-hrm": ATT6 + HRM + " --N_sup 8 --lr 2e-3 --warmup 300 --steps 3500",
    "table-small": SMALL + " --task table --size 99 --train_size 0 --D 128 --T 1 --multiple 32"
    " --batch 128 --lr 3e-3 --explore 0.5 --explore_once --steps 2000",
    "maze": MAZE,
    "maze-small": SMALL + " --task maze --size 8 --min_path 10 --weight_decay 0.3"
    " --explore 0.5 --explore_once --steps 4000",
    "arc1": ARC,
    "arc2": ARC + " --sets training2,concept,evaluation2",
    "arc-small": SMALL + " --task arc --sets training --size 6 --prefix 1 --D 128 --T 1 --lr 3e-3"
    " --explore 0.5 --explore_once --augmentations 16 --augment 17 --steps 10000",
}


if __name__ == "__main__":
    sys.exit(main())
