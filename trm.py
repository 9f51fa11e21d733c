"""The Tiny Recursive Model (TRM): "Less is More: Recursive Reasoning with Tiny Networks", Jolicoeur-Martineau 2025,
arXiv:2510.04871. To be read from top to bottom beside the paper:
    Config, PRESETS                           every number of the method                   sections 4 and 5
    Block, TRM                                the tiny network, its embeddings and heads   Figure 1, section 4.2-4.5
    latent_recursion, deep_recursion          z n times, then y; T times                   Figure 3, section 4.1-4.2
    single_z, multi_scale_z, continue_target  what it is compared with: Table 2, HRM       sections 2 and 4.2
    stablemax_cross_entropy, losses           is the answer right, and does it know        sections 2.5 and 4.6
    refill, halt, train_step                  deep supervision, one optimizer step         section 2.4
    think, evaluate, train, main              evaluation, training, the three commands     section 5
Shapes: B batch, L grid cells, S = prefix + L positions, D hidden size, V vocabulary. Hidden states are [S, B, D]: with
the sequence first, mixing over it and over D are one plain matrix product each, and nothing is transposed."""
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
    networks: int = doc(1, "1: the same network updates z and y; 2: HRM's f_L and f_H (section 4.3)", 1, 3)
    mixing: str = doc("mlp", "what mixes the cells: an mlp or attention (section 4.5)", "mlp", "attention")
    heads: int = doc(8, "attention heads")
    expansion: float = doc(4.0, "inner width of a SwiGLU: 2/3 of this times its width, ...", 0.1, math.inf)
    multiple: int = doc(256, "... rounded up to a multiple of this")
    prefix: int = doc(0, "P, positions for the puzzle embedding; a single puzzle identity needs none", 0, math.inf)
    n: int = doc(6, "n, updates of the latent z in a recursion (section 4.2)")
    T: int = doc(3, "T, recursions in a supervision step, the last one with gradient (section 4.1)")
    N_sup: int = doc(16, "N_sup, most supervision steps on one puzzle (section 2.4)")
    N_eval: int = doc(16, "supervision steps at evaluation; more than N_sup is thinking longer than trained for")
    features: str = doc("yz", "what is carried: y and z, a single z, or y and n of z (Table 2)", "yz", "z", "multi")
    one_step: bool = doc(False, "HRM's gradient, through the last update of z and the last of y only (section 2.3)")
    q_learning: bool = doc(False, "HRM's halting, by Q-learning with a second forward pass (section 2.5)")
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
    compile: bool = doc(True, "torch.compile the blocks, where there is a compiler")

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type in (int, float) and not allowed[0] <= value < allowed[1]:
                raise ValueError(f"--{f.name} {value}: must be at least {allowed[0]} and below {allowed[1]}")
            if f.type is str and value not in allowed:
                raise ValueError(f"--{f.name} {value}: must be one of {', '.join(allowed)}")
        if self.mixing == "attention" and self.D % (2 * self.heads):
            raise ValueError(f"--heads {self.heads}: D {self.D} must divide into heads of even size")

# Sized for two CPU cores (tried: README). T 1: no recursion without gradient; N_sup 8: hopeless puzzles leave sooner;
# expansion 2, multiple 32: half the arithmetic, as much learned per step; lr falling to a tenth: as fast as it stays
# stable; a short EMA, since runs are short; weight decay 1: 6x6 is learned in fewer steps with it, 9x9 is not.
SMALL = Config(D=128, expansion=2.0, multiple=32, n=2, T=1, N_sup=8, batch=64, lr=4e-3, lr_final=0.1, warmup=100,
               weight_decay=0.1, ema=0.995)
HRM = Config(mixing="attention", n_layers=4, networks=2, n=2, T=2, one_step=True, q_learning=True, ema=0.0, prefix=1)
PRESETS = {
    "sudoku": Config(),
    "sudoku-att": Config(mixing="attention"),
    "sudoku-hrm": HRM,                                                     # Table 1's first row
    "sudoku-direct": replace(HRM, n=1, T=1, N_sup=1, N_eval=1, one_step=False, q_learning=False),   # Table 4's first
    "sudoku-small": replace(SMALL, lr=3e-3, ema=0.997, N_eval=32, steps=8200),
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
        v = qkv[:, :, 2].permute(1, 2, 0, 3)                               # [B, heads, S, head]
        a, b = qkv.permute(2, 1, 3, 0, 4)[:2].float().chunk(2, -1)         # halves of q and k, turned by position
        q, k = (torch.cat([a, b], -1) * self.cos + torch.cat([-b, a], -1) * self.sin).to(h.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return F.linear(mixed.permute(2, 0, 1, 3).reshape(S, B, D), self.out.to(h.dtype))

class Block(nn.Module):
    """h = norm(h + mix(h)); h = norm(h + swiglu(h)): post-norm, [S, B, D] to [S, B, D]. The first norm is over the
    sequence where an MLP mixes, as published: checkpoints depend on it, and it learns twice as fast per step."""
    def __init__(self, S, cfg):
        super().__init__()
        self.mix = SwiGLU(S, 0, cfg) if cfg.mixing == "mlp" else Attention(S, cfg)
        self.mix_norm = 0 if cfg.mixing == "mlp" else -1
        self.mlp = SwiGLU(cfg.D, -1, cfg)

    def forward(self, h):
        h = norm(h + self.mix(h), self.mix_norm)
        return norm(h + self.mlp(h), -1)

class TRM(nn.Module):
    """Token and puzzle embedding, one network (HRM: two) in `nets`, two heads (Figure 1). The network sees x + y + z
    when it updates z and y + z when it updates y: x or no x tells it which (section 4.3)."""
    def __init__(self, cfg, length, vocab, ids=1, dtype=torch.float32):
        super().__init__()
        self.cfg, self.length, self.dtype = cfg, length, dtype             # the arithmetic's dtype; weights are float32
        self.tokens = trunc_normal(vocab, cfg.D)
        self.puzzles = nn.Parameter(torch.zeros(ids, cfg.D)) if cfg.prefix else None
        self.nets = nn.ModuleList([nn.Sequential(*[Block(cfg.prefix + length, cfg) for _ in range(cfg.n_layers)])
                                   for _ in range(cfg.networks)])
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

    def certainty(self, q):
        """The halting logit [B] of q [B, 2]; under Q-learning, by how much halting is worth more than going on."""
        return q[:, 0] - q[:, 1] if self.cfg.q_learning else q[:, 0]

    def initial(self, B):
        """y_init and z_init for B puzzles: two [S, B, D], z_init [n, S, B, D] where z is multi-scale."""
        y, z = (v.to(self.dtype).expand(self.cfg.prefix + self.length, B, -1) for v in (self.y_init, self.z_init))
        return y, z.expand(self.cfg.n, *z.shape) if self.cfg.features == "multi" else z

# ---- The recursion (Figure 3). All tensors are [S, B, D]. -----------------------------------------------------------
def latent_recursion(f_L, f_H, x, y, z, n):
    """Improve the latent z n times given question and answer, then the answer y once given z. In TRM f_L is f_H."""
    for _ in range(n):
        z = f_L(z + (y + x))                    # this order of the sum, as published: rounding is amplified
    y = f_H(y + z)
    return y, z

def deep_recursion(model, x, y, z, n, T):
    """One supervision step: T - 1 recursions without gradient, one with. Returns detached (y, z), logits, q."""
    recursion, f_L, f_H = RECURSIONS[model.cfg.features], model.nets[0], model.nets[-1]
    with torch.no_grad():
        for _ in range(T - 1):
            y, z = recursion(f_L, f_H, x, y, z, n)
        if model.cfg.one_step:                  # HRM: all but the last update of z and of y go without
            _, z = recursion(f_L, nn.Identity(), x, y, z, n - 1)
            n = 1
    y, z = recursion(f_L, f_H, x, y, z, n)
    return (y.detach(), z.detach()), model.output_head(y), model.q_head(y)

def single_z(f_L, f_H, x, y, z, n):
    """Table 2, one feature instead of two: z = net(x + z) n times, then z = net(z), which is the answer too."""
    y, _ = latent_recursion(f_L, f_H, x, torch.zeros_like(y), z, n)
    return y, y

def multi_scale_z(f_L, f_H, x, y, z, n):
    """Table 2, n + 1 features: each of the n inner updates sees all z [n, S, B, D] and renews the oldest, its own."""
    for _ in range(n):
        z = torch.cat([z[1:], f_L(z.sum(0) + (y + x))[None]])
    return f_H(y + z.sum(0)), z

RECURSIONS = {"yz": latent_recursion, "z": single_z, "multi": multi_scale_z}

def continue_target(model, x, y, z, count):
    """HRM's target [B] for the value of going on, from a second forward pass: the better value of the next supervision
    step, which can only halt if it is past the last. count: [B], supervision steps including this one (section 2.5)."""
    with torch.no_grad():
        q = deep_recursion(model, x, y, z, model.cfg.n, model.cfg.T)[2]
    return torch.where(count >= model.cfg.N_sup, q[:, 0], q.amax(1)).sigmoid()

# ---- Losses (section 4.1 and 4.6) -----------------------------------------------------------------------------------
def stablemax_cross_entropy(logits, labels):
    """-log p of each label, in float64, with p = s / sum s and s(v) = v + 1 for v >= 0, 1 / (1 - v) below.
    logits [..., V] float, labels [...] int64; returns [...] float64, 0 where the label is padding."""
    v = logits.double()
    s = torch.where(v >= 0, v + 1, 1 / (1 - v.clamp(max=0)))               # the clamp keeps 1 / 0 out of the gradient
    p = s.gather(-1, labels[..., None])[..., 0] / s.sum(-1)
    return torch.where(labels == 0, 0, -p.log())

def losses(logits, q, labels):
    """Of each puzzle, from logits [B, L, V], q [B, 2] and labels [B, L] int64: the answer loss [B] float64 (mean over
    labelled cells), are all of them right now [B] bool, and the halting loss [B], the cross-entropy of q to that."""
    labelled = labels != 0
    answer = stablemax_cross_entropy(logits, labels).sum(1) / labelled.sum(1).clamp(min=1)
    right = ((logits.argmax(-1) == labels) | ~labelled).all(1)
    halting = F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="none")
    return answer, right, halting

# ---- Deep supervision (section 2.4) ----------------------------------------------------------------------------------
# The paper loops N_sup times over one batch. Here, as in the published code, every row of the batch is a slot with its
# own puzzle, (y, z) and count of supervision steps: the same for each puzzle, and the batch stays full when some halt.
def refill(slots, model, task):
    """Give every halted slot a fresh augmented training puzzle, y_init, z_init, count 0. slots: a dict of tensors, None
    at the first step. A puzzle is drawn for every slot: the host need not wait for the number of halted ones."""
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
    """Which slots [B] move on to another puzzle, from count and halting logit [B]: all at N_sup; before, those with q >
    0 (section 4.6), unless exploration, drawn anew at each step, asks for a minimum count uniform in 2..N_sup."""
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
    answer, right, halting = losses(logits, q, slots["labels"])
    count = slots["count"] + 1
    if cfg.q_learning:
        target = continue_target(model, x.detach(), y, z, count)
        halting = halting + F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="none")
    loss = (answer + 0.5 * halting).mean()
    optimizer.zero_grad()
    loss.backward()
    fall = 1 - (1 - cfg.lr_final) * step / cfg.steps
    optimizer.param_groups[0]["lr"] = cfg.lr * min(1, (step + 1) / cfg.warmup) * fall
    optimizer.step()
    ema.update_parameters(model)
    halted = halt(count, model.certainty(q), cfg)
    slots = {**slots, "y": y, "z": z, "count": count, "halted": halted}
    return slots, torch.stack([v.detach().double().mean() for v in (loss, answer, halting, right, halted)])

# ---- Evaluation: every puzzle gets all its supervision steps --------------------------------------------------------
@torch.no_grad()
def think(model, inputs, steps):
    """Supervision steps without the supervision: yields logits [B, L, V] and q [B, 2] for inputs [B, L] after each."""
    x, (y, z) = model.embed(inputs), model.initial(len(inputs))
    for _ in range(steps):
        (y, z), logits, q = deep_recursion(model, x, y, z, model.cfg.n, model.cfg.T)
        yield logits, q

def evaluate(model, puzzles, steps):
    """[3, steps, N] on the CPU: after each step, share of cells right, all of them right (0 or 1), halting logit."""
    N, B, batches = len(puzzles), min(model.cfg.batch, len(puzzles)), []
    for start in range(0, N, B):
        rows = torch.arange(start, start + B, device=puzzles.inputs.device) % N   # the last batch wraps: one shape
        labels, found = puzzles.labels[rows].long(), []
        cells = (labels != 0).sum(1)
        for logits, q in think(model, puzzles.inputs[rows], steps):
            hits = ((logits.argmax(-1) == labels) & (labels != 0)).sum(1)
            found.append(torch.stack([hits / cells, (hits == cells).float(), model.certainty(q)]))
        batches.append(torch.stack(found, 1))                              # [3, steps, B]
    return torch.cat(batches, 2)[:, :, :N].cpu()

def print_evaluation(model, task):
    """A table: accuracy on all unseen puzzles after each supervision step, by rating too, and of the halting head."""
    began, steps = time.perf_counter(), model.cfg.N_eval
    cells, exact, q = evaluate(model, task.test, steps)
    rate, rating = len(task.test) / (time.perf_counter() - began), task.test.rating.cpu()
    columns = {"cells": cells, "puzzles": exact, "halting head": ((q > 0) == (exact > 0)).float()}
    groups = {"0 guesses": rating == 0, "1-9": (rating > 0) & (rating < 10), "10+": rating > 9}
    columns.update({f"{name} ({group.sum()})": exact[:, group] for name, group in groups.items() if group.any()})
    print(f"\n{len(task.test)} unseen puzzles, {rate:.0f} per second; % right after each supervision step:")
    print("step  " + "  ".join(columns))
    for k in range(steps):
        print(f"{k + 1:4}  " + "  ".join(f"{100 * part[k].mean():{len(name)}.1f}" for name, part in columns.items()))

def print_solution(model, task, text=None):
    """Solve a puzzle, typed as `text` or an unseen one; print the grid after each supervision step that changed it."""
    row = int.from_bytes(os.urandom(4), "big")                             # another one every time, whatever the seed
    inputs = task.parse(text) if text else task.test.inputs[[row % len(task.test)]].cpu()
    known, label = task.describe(inputs)
    colour, last = sys.stdout.isatty() and not os.environ.get("NO_COLOR"), inputs
    print(f"\na puzzle with {known}:\n{task.show(inputs[0], inputs[0], None, colour)}")
    for k, (logits, q) in enumerate(think(model, inputs.to(DEVICE), model.cfg.N_eval), 1):
        answer = logits.argmax(-1).byte().cpu()
        right = "" if label is None else f", {(answer == label).sum()} of {task.length} cells right"
        print(f"\nstep {k}: halting probability {model.certainty(q)[0].sigmoid():.3f}{right}")
        if (answer != last).any():
            print(task.show(inputs[0], answer[0], None if label is None else label[0], colour))
        last = answer
    print("\nsolved: the rules hold" if task.obeys(inputs, last).item() else "\nnot solved: the rules do not hold")

# ---- Published checkpoints ------------------------------------------------------------------------------------------
def published_name(name):
    """What the published code calls the parameter or buffer `name` of a TRM."""
    for ours, theirs in (("nets.0.", "L_level.layers."), ("nets.1.", "H_level.layers."), (".mix.qkv", ".self_attn.qkv"),
                         (".mix.out", ".self_attn.o"), (".mix.", ".mlp_t."), ("output_weight", "lm_head.weight"),
                         ("q_weight", "q_head.weight"), ("q_bias", "q_head.bias"), ("y_init", "H_init"),
                         ("z_init", "L_init"), ("tokens", "embed_tokens.embedding_weight"),
                         ("puzzles", "puzzle_emb.weights")):
        name = name.replace(ours, theirs)
    return name + "_proj.weight" * ("layers" in name)

def load_published(source, length=None, **settings):
    """A TRM from a checkpoint of the published code (TRM-MLP, TRM-Att, HRM), a path or the state dict itself.
    length: L, which attention's weights do not tell (None: 81). settings: fields of Config that are no shapes (n, T,
    heads) and prefix; else the paper's, prefix 16 (HRM 1). Raises ValueError, naming the keys that do not fit."""
    try:
        weights = source if isinstance(source, dict) else torch.load(source, weights_only=True, map_location=DEVICE)
        weights = {key.removeprefix("_orig_mod.").removeprefix("model.inner."): w for key, w in weights.items()}
        shapes = {key: tuple(w.shape) for key, w in weights.items()}
    except Exception as error:
        raise ValueError(f"{source} is no checkpoint ({type(error).__name__})") from None
    mixer = shapes.get("L_level.layers.0.mlp_t.down_proj.weight")          # [S, inner]
    base = HRM if any(key.startswith("H_level.") for key in shapes) else Config(prefix=16)
    vocab, D = shapes.get("embed_tokens.embedding_weight", (11, 512))
    layers = sum(key.startswith("L_level") and key.endswith("mlp.down_proj.weight") for key in shapes)
    found = {"D": D, "n_layers": max(layers, 1), "mixing": "mlp" if mixer else "attention"}
    cfg, ids = replace(base, **{**found, **settings}), shapes.get("puzzle_emb.weights", (1,))[0]
    model = TRM(cfg, length or (mixer[0] - cfg.prefix if mixer else 81), vocab, ids)
    expected = {published_name(name): tuple(w.shape) for name, w in model.state_dict().items()}
    wrong = [f"{key} is {shapes.get(key, 'absent')}, not {expected.get(key, 'absent')}"
             for key in sorted(shapes | expected) if shapes.get(key) != expected.get(key)]
    if wrong:
        raise ValueError(f"no published checkpoint, {len(wrong)} keys are wrong: {'; '.join(wrong[:4])}")
    model.load_state_dict({name: weights[published_name(name)] for name in model.state_dict()})
    return model.to(DEVICE)

# ---- Training (section 5) -------------------------------------------------------------------------------------------
def pick_dtype(name):
    """The dtype of that name; auto: bfloat16 on CUDA, and on a CPU that multiplies clearly faster in it (timed)."""
    if name == "auto":
        squares = torch.ones(1024, 1024), torch.ones(1024, 1024, dtype=torch.bfloat16)
        wide, narrow = (min(timeit.repeat(lambda: a @ a, number=1, repeat=5)) for a in squares)   # seconds
        name = "bfloat16" if DEVICE.type == "cuda" or narrow < 0.75 * wide else "float32"
    return getattr(torch, name)

def build(cfg, folder=None, saved=None):
    """The task, the model and its moving average (section 4.7), new or from the checkpoint `saved`."""
    task = data.TASKS[cfg.task](cfg, folder, DEVICE)
    torch.manual_seed(cfg.seed)
    model = TRM(cfg, task.length, task.vocab, task.ids, pick_dtype(saved["dtype"] if saved else cfg.dtype)).to(DEVICE)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema))
    if saved:
        try:
            model.load_state_dict(saved["model"])
            ema.load_state_dict(saved["ema"])
        except RuntimeError:
            raise ValueError("the run has weights of other shapes than these flags ask for") from None
    return task, model, ema

def flops(cfg, task):
    """FLOPs of the matrix products in one optimizer step, counted by running it on tensors without storage."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = TRM(cfg, task.length, task.vocab, task.ids)
        x, (y, z) = model.embed(torch.zeros(cfg.batch, task.length, dtype=torch.long)), model.initial(cfg.batch)
        _, logits, q = deep_recursion(model, x, y, z, cfg.n, cfg.T)
        (logits.sum() + q.sum()).backward()
        if cfg.q_learning:
            continue_target(model, x, y, z, torch.zeros(cfg.batch))
    return counter.get_total_flops()

def print_header(model, task):
    """What is about to be trained, in five lines."""
    cfg, parameters = model.cfg, sum(p.numel() for p in model.parameters())
    sizes = f"{len(task.train)} training and {len(task.test)} unseen puzzles"   # built here, if they have to be
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"model    {parameters:,} parameters: {cfg.mixing} mixing, D {cfg.D}, {cfg.n_layers} layers")
    print(f"thinks   n {cfg.n}, T {cfg.T}: effective depth T(n+1)layers = {cfg.T * (cfg.n + 1) * cfg.n_layers}, "
          f"N_sup {cfg.N_sup} supervision steps, forward passes in each: {1 + cfg.q_learning}")
    print(f"costs    {flops(cfg, task) / 1e12:.3g} TFLOP per step of {cfg.batch} puzzles, {cfg.steps} steps")
    print(f"device   {device}, {str(model.dtype)[6:]}\ndata     {sizes}, {task.folder}", flush=True)

def compile_blocks(model, ema):
    """torch.compile the blocks; where that fails, mostly for want of a C++ compiler, they stay as they are."""
    try:
        for block in (block for net in (*model.nets, *ema.nets) for block in net):
            block.compile(dynamic=False)
        model.nets[0](model.initial(model.cfg.batch)[0].contiguous()).sum().backward()
        print("compiled", flush=True)
    except Exception as error:
        torch.compiler.set_stance("force_eager")
        print(f"not compiled ({type(error).__name__}), goes on without; --no-compile skips the attempt", flush=True)

def load(run):
    """The checkpoint of a run, its "config" made a Config. Raises ValueError where there is none that can be read."""
    path = Path("runs") / run / "checkpoint.pt"
    if not path.is_file():
        refuse(f"there is no run {run}", run, [other.parent.name for other in Path("runs").glob("*/checkpoint.pt")])
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

def report(log, row, tty):
    """Append a row (a dict of texts) to log.csv and print it; on a terminal it is one line that changes."""
    if not log.tell():
        print(*row, sep=",", file=log)
    print(*row.values(), sep=",", file=log, flush=True)
    line = "  ".join(f"{name} {value}" for name, value in row.items())
    print("\r" + line[:shutil.get_terminal_size().columns - 1] + "\033[K" if tty else line,
          end="" if tty else "\n", flush=True)

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
    slots, step, seconds = (saved[name] for name in ("slots", "step", "seconds")) if saved else (None, 0, 0.0)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        log.truncate(saved["log_size"])                                    # rows after the checkpoint come once more
        torch.set_rng_state(saved["rng"][0].cpu())
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["rng"][1:]])   # none without CUDA

    signals, sums, reported, saved_at, looking, unseen = [], 0, (step, seconds), seconds, 0.0, "-"
    handlers = {s: signal.signal(s, lambda number, _: signals.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    clock = time.perf_counter() - seconds                                  # seconds of training, looks left out
    while step < cfg.steps and not signals:
        slots, means = train_step(model, ema, optimizer, slots, task, step)
        step, sums, seconds = step + 1, sums + means, time.perf_counter() - clock
        if seconds - reported[1] > (1 if tty else 30) or step == cfg.steps:
            means = (sums / (step - reported[0])).tolist()                 # waits for the device
            if not math.isfinite(means[0]):
                raise ValueError(f"the loss is {means[0]} at step {step}; lower --lr (the last checkpoint is kept)")
            seconds = time.perf_counter() - clock
            if seconds > 30 and looking < 0.05 * seconds:                  # a look at unseen puzzles, now and then
                unseen = f"{evaluate(ema.module, task.test[:2 * cfg.batch], cfg.N_sup)[1, -1].mean():.3f}"
                looking, clock = looking + time.perf_counter() - clock - seconds, time.perf_counter() - seconds
            rate = (step - reported[0]) / (seconds - reported[1])
            report(log, {"step": f"{step}", "of": f"{cfg.steps}", "seconds": f"{seconds:.1f}", "steps/s": f"{rate:.2f}",
                         "min left": f"{(cfg.steps - step) / rate / 60:.1f}",
                         **dict(zip(("loss", "answer", "halting", "solved", "halted"), (f"{v:.3f}" for v in means))),
                         "lr": f"{optimizer.param_groups[0]['lr']:.2g}", "unseen": unseen}, tty)
            sums, reported = 0, (step, seconds)
        if seconds - saved_at > 60 or step == cfg.steps or signals:
            save(path, cfg, model, ema=ema, optimizer=optimizer, slots=slots, step=step, seconds=seconds, folder=folder,
                 log_size=log.tell())
            saved_at = seconds
    [signal.signal(number, handler) for number, handler in handlers.items()]
    if signals:
        print("\n" * tty + f"stopped and saved at step {step}; the same command with --resume goes on")
        return 128 + signals[0]
    print("\n" * tty + f"trained for {seconds:.0f} s, saved {path}", flush=True)
    print_evaluation(ema.module, task)
    print_solution(ema.module, task)
    return 0

# ---- Command line ---------------------------------------------------------------------------------------------------
def refuse(message, word="", known=()):
    """Raise a ValueError; where it is about an unknown word, with the nearest of the known ones, or all of them."""
    match = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {match[0]}?" if match else f"; there are: {', '.join(known)}" if known else ""
    raise ValueError(message + hint)

def parse(argv=None):
    """The command line as a namespace, with the hyper-parameters that were given in its `given`. Raises ValueError."""
    parser = argparse.ArgumentParser(prog="trm.py", allow_abbrev=False, description="""The Tiny Recursive Model. train:
        train a preset and keep it in runs/NAME; eval: evaluate a run on unseen puzzles; solve: watch it solve one.""")
    parser.error = refuse                                                  # every mistake is reported in one place
    parser.add_argument("command", choices=["train", "eval", "solve"])
    parser.add_argument("name", help=f"train: a preset ({', '.join(PRESETS)}); else a run or a published checkpoint")
    parser.add_argument("puzzle", nargs="?", help="solve: the grid in one line, '.' or 0 for a blank (an unseen one)")
    parser.add_argument("--data", metavar="DIR", help="folder with train.csv and test.csv (built-in puzzles)")
    parser.add_argument("--run", metavar="NAME", help="train: name of the run (the preset's)")
    parser.add_argument("--resume", action="store_true", help="train: go on with the run where there is one")
    parser.add_argument("--overwrite", action="store_true", help="train: replace the run where there is one")
    hyper = parser.add_argument_group("hyper-parameters", """In brackets the paper's value, of the preset sudoku.
        eval and solve take those that leave the weights' shapes as they are; there --steps is N_eval.""")
    for f in fields(Config):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type, "metavar": "X"}
        hyper.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=f"{f.metadata['help']} [{f.default}]", **kind)
    args, unknown = parser.parse_known_intermixed_args(argv)
    args.given = {f.name: getattr(args, f.name) for f in fields(Config) if f.name in args}
    if unknown or args.puzzle and args.command != "solve":
        word = (unknown or [args.puzzle])[0]
        refuse(f"unknown argument {word}", word, [f"--{n}" for n in ("data", "run", "resume", *Config.__annotations__)])
    return args

def main(argv=None):
    """Run one command and return the exit status. Raises ValueError for a mistake of the user's."""
    args = parse(argv)
    if args.command != "train":
        if "steps" in args.given:
            args.given["N_eval"] = args.given.pop("steps")
        if Path(args.name).is_file():
            model = load_published(args.name, **args.given)
            task = data.TASKS[model.cfg.task](model.cfg, args.data, DEVICE)
        else:
            saved = load(args.name)
            task, _, ema = build(replace(saved["config"], **args.given), args.data or saved["folder"], saved)
            model = ema.module
        print_solution(model, task, args.puzzle) if args.command == "solve" else print_evaluation(model, task)
        return 0
    if args.name not in PRESETS:
        refuse(f"unknown preset {args.name}", args.name, list(PRESETS))
    cfg, run, saved = PRESETS[args.name], args.run or args.name, None
    if (Path("runs") / run / "checkpoint.pt").exists() and not args.overwrite and args.given.get("steps") != 0:
        if not args.resume:
            raise ValueError(f"run {run} exists: --resume goes on, --overwrite replaces it, --run NAME starts another")
        saved = load(run)
        cfg, args.data = saved["config"], args.data or saved["folder"]
        if fixed := sorted(name for name in args.given.keys() - {"steps"} if args.given[name] != getattr(cfg, name)):
            raise ValueError(f"--{fixed[0]} cannot change in a resumed run; leave it out or start another (--run NAME)")
    return train(replace(cfg, **args.given), run, args.data, saved)

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:                                              # while it trains, train() saves first
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"trm.py: {error}", file=sys.stderr)
        sys.exit(2)
