"""The Tiny Recursive Model (TRM): "Less is More: Recursive Reasoning with Tiny Networks", Jolicoeur-Martineau 2025,
arXiv:2510.04871. Read it from top to bottom beside the paper:
    Config, PRESETS                           every number of the method                   sections 4 and 5
    Block, TRM                                the tiny network, its embeddings and heads   Figure 1, section 4.2-4.5
    latent_recursion, deep_recursion          z n times, then y; T times                   Figure 3, section 4.1-4.2
    single_z, multi_scale_z, continue_target  what it is compared with: Table 2, HRM       sections 2 and 4.2
    stablemax_cross_entropy, losses           is the answer right, and does it know        sections 2.5 and 4.6
    refill, supervision_step, train_step      deep supervision, one optimizer step         section 2.4
    think, evaluate, train, main              evaluation, training, the three commands     section 5
Shapes: B batch, L grid cells, S = prefix + L positions, D hidden size, V vocabulary. Hidden states are [S, B, D]:
mixing over the sequence and over D are one plain matrix product each, and nothing is transposed."""
import argparse, csv, io, itertools, math, os, shutil, signal, statistics, sys, time, timeit, zipfile
os.environ.setdefault("GOMP_SPINCOUNT", "10000")   # before torch: its idle threads soon sleep, others need the cores
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
import torch, torch.distributed as dist, torch.nn as nn, torch.optim as optim, torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
import data
RANK, WORLD, LOCAL = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
DEVICE = torch.device("cuda", LOCAL) if torch.cuda.is_available() else torch.device("cpu")
def doc(default, text, *allowed):
    """A Config field: its default, the line that --help prints, and what is allowed: [low, high) or a set of words."""
    return field(default=default, metadata={"help": text, "allowed": allowed or (1, 10 ** 9)})

@dataclass(frozen=True)
class Config:
    """Every hyper-parameter, a flag each; by default the paper's TRM-MLP for Sudoku-Extreme. Raises ValueError."""
    task: str = doc("sudoku", "puzzle family", *data.TASKS)
    size: int = doc(9, "side of the grid")
    min_path: int = doc(110, "mazes: the shortest path from start to goal has more moves than this", 0, 900)
    sets: str = doc("training,concept,evaluation", "ARC: task sets; the test pairs of the last are unseen", "SET,...")
    variants: int = doc(1000, "ARC: most augmentations of a task, each an identity of its own (section 5)", 0, 5000)
    train_size: int = doc(1000, "training puzzles, of --data drawn by the seed (section 5); ARC: tasks a set", 1, 10**7)
    test_size: int = doc(0, "unseen puzzles to evaluate on; 0: all (1000 of the built-in ones)", 0, 10**7)
    seed: int = doc(0, "seed of the built-in puzzles, of the weights and of training", 0, 2 ** 31)
    D: int = doc(512, "hidden size (section 5)")
    n_layers: int = doc(2, "blocks in the tiny network (section 4.4: less is more)")
    networks: int = doc(1, "1: the same network updates z and y; 2: HRM's f_L and f_H (section 4.3)", 1, 3)
    mixing: str = doc("mlp", "what mixes the cells: an mlp or attention (section 4.5)", "mlp", "attention")
    heads: int = doc(8, "attention heads")
    expansion: float = doc(4.0, "inner width of a SwiGLU: 2/3 of this times its width, ...", 0.1, 10 ** 9)
    multiple: int = doc(256, "... rounded up to a multiple of this")
    prefix: int = doc(0, "P, positions for the puzzle embedding; a single puzzle identity needs none", 0, 10 ** 9)
    n: int = doc(6, "n, updates of the latent z in a recursion (section 4.2)")
    T: int = doc(3, "T, recursions in a supervision step, the last one with gradient (section 4.1)")
    N_sup: int = doc(16, "N_sup, most supervision steps on one puzzle (section 2.4)")
    N_start: float = doc(1.0, "share of N_sup at the first step, from which it grows exponentially", 1e-3, 1.001)
    N_eval: int = doc(16, "supervision steps at evaluation; more than N_sup is thinking longer than trained for")
    rollouts: int = doc(1, "K, tries of each puzzle at evaluation, told apart by noise")
    noise: float = doc(0.0, "sigma of what is added to z before each supervision step at evaluation", 0, 10 ** 9)
    pick: str = doc("q", "which rollout answers: the highest halting logit, or the most common answer", "q", "vote")
    augment: int = doc(1, "A, symmetric copies of each puzzle at evaluation, which vote")
    all_steps: bool = doc(False, "at evaluation go on with a puzzle that the halting head is sure of")
    loss: str = doc("stablemax", "the answer's: as in the published code, or as in Figure 3", "stablemax", "softmax")
    features: str = doc("yz", "what is carried: y and z, a single z, or y and n of z (Table 2)", "yz", "z", "multi")
    one_step: bool = doc(False, "HRM's gradient, through the last update of z and the last of y only (section 2.3)")
    q_learning: bool = doc(False, "HRM's halting, by Q-learning with a second forward pass (section 2.5)")
    explore: float = doc(0.1, "chance that a slot must think for 2..N_sup steps before it may halt (section 2.5)", 0, 1)
    steps: int = doc(65_000, "optimizer steps; 0 prints what would be trained and stops", 0, 10 ** 9)
    batch: int = doc(768, "puzzles in an optimizer step (section 5)")
    micro_batch: int = doc(768, "puzzles at once, whose gradients add up: fewer need less memory")
    lr: float = doc(1e-4, "learning rate of AdamW (section 5)", 0, 10 ** 9)
    lr_final: float = doc(1.0, "share of it left at the end, reached linearly; 1: constant, the paper's", 0, 10 ** 9)
    warmup: int = doc(2000, "steps of linear warm-up (section 5)")
    weight_decay: float = doc(1.0, "decoupled weight decay (section 5)", 0, 10 ** 9)
    puzzle_lr: float = doc(1e-2, "learning rate of the puzzle embeddings (section 5)", 0, 10 ** 9)
    beta1: float = doc(0.9, "AdamW's decay of the mean gradient (section 5)", 0, 1)
    beta2: float = doc(0.95, "AdamW's decay of the mean squared gradient (section 5)", 0, 1)
    ema: float = doc(0.999, "decay of the averaged weights, which are the ones evaluated (section 4.7)", 0, 1)
    dtype: str = doc("auto", "of the arithmetic, weights stay float32; auto: the faster", "auto", "float32", "bfloat16")
    compile: bool = doc(True, "torch.compile the network, where there is a compiler")
    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type is str and value not in allowed and not (f.name == "sets" and value.replace(",", "").isalnum()):
                data.refuse(f"--{f.name} {value}: must be one of {', '.join(allowed)}")
            if f.type in (int, float) and not allowed[0] <= value < allowed[1]:
                data.refuse(f"--{f.name} {value}: must be at least {allowed[0]} and below {allowed[1]}")
        if self.mixing == "attention" and self.D % (2 * self.heads):
            data.refuse(f"--heads {self.heads}: D {self.D} must divide into heads of even size")
    widths = property(lambda self: sorted({self.augment * min(k, self.rollouts) for k in (1, 4, 16, 64, 256, 10 ** 9)}))
# Sized for two CPU cores: no recursion without gradient, narrow SwiGLUs, a short EMA for short runs; README says why.
SMALL = Config(D=128, expansion=1.5, multiple=16, n=2, T=1, N_start=0.125, loss="softmax", batch=64, lr=3e-3,
               lr_final=0.02, warmup=100, weight_decay=0.1, ema=0.995, steps=5000)
HRM = Config(mixing="attention", n_layers=4, networks=2, n=2, T=2, one_step=True, q_learning=True, ema=0.0, prefix=1)
ARC1 = Config(task="arc", size=30, prefix=16, mixing="attention", n=4, weight_decay=0.1, augment=1001, pick="vote")
PRESETS = {                                                                # sudoku-fast: for a GPU, never tried
    "sudoku": Config(), "sudoku-att": Config(mixing="attention"), "sudoku-hrm": HRM,
    "sudoku-direct": replace(HRM, n=1, T=1, N_sup=1, N_eval=1, one_step=False, q_learning=False),   # Table 4's first
    "sudoku-fast": Config(N_sup=8, N_start=0.25, N_eval=32, loss="softmax", lr=4e-4, lr_final=0.1, steps=30_000),
    "sudoku-small": replace(SMALL, N_sup=8, N_start=0.25, N_eval=32, lr_final=0.1, ema=0.997, steps=7000),
    "arc1": ARC1, "arc2": replace(ARC1, sets="training2,concept,evaluation2"),
    "arc-small": replace(SMALL, task="arc", sets="training", size=6, variants=16, prefix=1, augment=17, pick="vote"),
    "maze": Config(task="maze", size=30, mixing="attention", n=4), "maze-mlp": Config(task="maze", size=30, n=4),
    "maze-small": replace(SMALL, task="maze", size=8, min_path=10),
    "sudoku-6x6": replace(SMALL, size=6, N_sup=8, N_start=1.0, lr=4e-3, weight_decay=1.0, steps=1000),
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
        self.heads, head = cfg.heads, cfg.D // cfg.heads
        self.qkv = trunc_normal(3 * cfg.D, cfg.D)       # rows: all q heads, all k heads, all v heads
        self.out = trunc_normal(cfg.D, cfg.D)
        angle = torch.outer(torch.arange(S), 10000.0 ** (-torch.arange(0, head, 2) / head)).repeat(1, 2)
        self.register_buffer("turn", torch.stack([angle.cos(), angle.sin()]), persistent=False)   # [2, S, head]
    def forward(self, h):                                                  # [S, B, D]
        S, B, D = h.shape
        qkv = F.linear(h, self.qkv.to(h.dtype)).view(S, B, 3, self.heads, -1)
        v = qkv[:, :, 2].permute(1, 2, 0, 3)                               # [B, heads, S, head]
        a, b = qkv.permute(2, 1, 3, 0, 4)[:2].float().chunk(2, -1)         # halves of q and k, turned by position
        q, k = (torch.cat([a, b], -1) * self.turn[0] + torch.cat([-b, a], -1) * self.turn[1]).to(h.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return F.linear(mixed.permute(2, 0, 1, 3).reshape(S, B, D), self.out.to(h.dtype))

class Block(nn.Module):
    """h = norm(h + mix(h)); h = norm(h + swiglu(h)): post-norm, [S, B, D] to [S, B, D]. The first norm is over the
    sequence where an MLP mixes, as published: checkpoints depend on it, and it learns twice as fast per step."""
    def __init__(self, S, cfg):
        super().__init__()
        self.mix, self.mix_norm = (SwiGLU(S, 0, cfg), 0) if cfg.mixing == "mlp" else (Attention(S, cfg), -1)
        self.mlp = SwiGLU(cfg.D, -1, cfg)
    def forward(self, h):
        h = norm(h + self.mix(h), self.mix_norm)
        return norm(h + self.mlp(h), -1)

class TRM(nn.Module):
    """Embeddings, one network (HRM: two) in `nets`, two heads (Figure 1). With x it updates z, without y (4.3)."""
    def __init__(self, cfg, length, vocab, ids=1, dtype=torch.float32):
        super().__init__()
        self.cfg, self.length, self.dtype = cfg, length, dtype             # the arithmetic's dtype; weights are float32
        self.tokens = trunc_normal(vocab, cfg.D)
        self.register_buffer("puzzles", torch.zeros(ids, cfg.D) if cfg.prefix else None)   # see update_puzzles
        self.nets = nn.ModuleList([nn.Sequential(*[Block(cfg.prefix + length, cfg) for _ in range(cfg.n_layers)])
                                   for _ in range(cfg.networks)])
        self.register_buffer("y_init", trunc_normal(cfg.D, std=1.0).data)  # fixed, the same at every position
        self.register_buffer("z_init", trunc_normal(cfg.D, std=1.0).data)
        self.output_weight = trunc_normal(vocab, cfg.D)
        self.q_weight = nn.Parameter(torch.zeros(2, cfg.D))                # halt; the second row is HRM's "continue"
        self.q_bias = nn.Parameter(torch.full((2,), -5.0))
    def embed(self, inputs, vectors):
        """Tokens [B, L], and where there is a prefix puzzle vectors [B, D], to x [S, B, D]."""
        x = F.embedding(inputs.T.long(), self.tokens)                      # [L, B, D]
        if self.puzzles is not None:
            x = torch.cat([F.pad(vectors[None], (0, 0, 0, 0, 0, self.cfg.prefix - 1)), x])   # padded with zeros
        return (self.cfg.D ** 0.5 * x).to(self.dtype)
    def output_head(self, y):
        """Logits of every cell, [B, L, V] float32, from y [S, B, D]."""
        return F.linear(y[self.cfg.prefix:], self.output_weight.to(y.dtype)).float().transpose(0, 1)
    def q_head(self, y):
        """Logits [B, 2] float32 of y at the first position: the first > 0 says "the answer is right" (section 4.6)."""
        return F.linear(y[0].float(), self.q_weight, self.q_bias)
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
def deep_recursion(model, x, y, z):
    """T - 1 recursions without gradient, one with. Returns detached (y, z), logits, q: see output_head, q_head."""
    cfg, n, f_L, f_H = model.cfg, model.cfg.n, model.nets[0], model.nets[-1]
    recursion = {"yz": latent_recursion, "z": single_z, "multi": multi_scale_z}[cfg.features]
    with torch.no_grad():
        for _ in range(cfg.T - 1):
            y, z = recursion(f_L, f_H, x, y, z, n)
        if cfg.one_step:                        # HRM: all but the last update of z and of y go without
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
def continue_target(model, x, y, z, last):
    """HRM's target [B] for going on: the next step's better value, at the `last` that of halting (section 2.5)."""
    with torch.no_grad():
        q = deep_recursion(model, x, y, z)[2]
    return torch.where(last, q[:, 0], q.amax(1)).sigmoid()
def stablemax_cross_entropy(logits, labels):
    """-log p of each label, in float64, with p = s / sum s and s(v) = v + 1 for v >= 0, 1 / (1 - v) below.
    logits [..., V] float, labels [...] int64; returns [...] float64, 0 where the label is padding."""
    v = logits.double()
    s = torch.where(v >= 0, v + 1, 1 / (1 - v.clamp(max=0)))               # the clamp keeps 1 / 0 out of the gradient
    p = s.gather(-1, labels[..., None])[..., 0] / s.sum(-1)
    return torch.where(labels == 0, 0, -p.log())
def losses(logits, q, labels, kind="stablemax"):
    """Of each puzzle, from logits [B, L, V], q [B, 2] and labels [B, L] int64: the answer loss [B] (mean over the
    labelled cells), are all of them right now [B] bool, and the halting loss [B], the cross-entropy of q to that."""
    labelled = labels != 0
    entropy = (stablemax_cross_entropy(logits, labels) if kind == "stablemax" else   # the latter is Figure 3's
               F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=0, reduction="none"))   # [B, L]
    answer = entropy.sum(1) / labelled.sum(1).clamp(min=1)
    right = ((logits.argmax(-1) == labels) | ~labelled).all(1)
    return answer, right, F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="none")
# ---- Deep supervision (section 2.4) ----------------------------------------------------------------------------------
# The paper loops N_sup times over a batch. Here, as published, a row is a slot with its own puzzle, (y, z) and count.
def refill(slots, model, task):
    """Give every halted slot (at first, slots None, all) a fresh augmented puzzle, y_init, z_init, count 0. One is
    drawn for every slot, to not wait for the device; so is the `minimum` of steps, if it explores (section 2.5)."""
    inputs, labels, ids = task.draw(B := model.cfg.batch)                  # [B, L], [B, L], [B]
    (y, z), count = model.initial(B), torch.zeros_like(ids)                # [S, B, D], [B]
    minimum = torch.randint(2, max(model.cfg.N_sup, 2) + 1, (B,), device=ids.device)
    minimum = minimum * (torch.rand(B, device=ids.device) < model.cfg.explore)
    fresh = {"inputs": inputs, "labels": labels, "ids": ids, "y": y, "z": z, "count": count, "halted": count.bool()}
    new, old = (slots or fresh)["halted"], slots or fresh
    kept = {name: torch.where(new if v.dim() == 1 else new[:, None], v, old[name]) for name, v in fresh.items()}
    means, grads = torch.zeros(B, 5, device=y.device), torch.zeros(B, y.shape[-1], device=y.device)
    return {**kept, "minimum": minimum, "means": means, "grads": grads}    # the last two: see below
def update_puzzles(puzzles, ids, grads, lr, decay):
    """Sign-SGD, decoupled decay, on rows ids [B] of puzzles [identities, D]; a row's grads [B, D] add (section 5)."""
    puzzles[ids] = (1 - lr * decay) * puzzles[ids] - lr * ((ids[:, None] == ids).to(grads.dtype) @ grads).sign()
def supervision_step(model, slots, rows, N_sup):
    """Forward and backward of the slots in `rows`, a slice: gradients add up in the parameters; into the slots go y, z,
    `means` (loss, answer loss, halting loss, right, halted) and the `grads` of the puzzle vectors."""
    cfg, part = model.cfg, {name: v[..., rows, :] if name in "yz" else v[rows] for name, v in slots.items()}   # views
    vectors = model.puzzles[part["ids"]].requires_grad_() if cfg.prefix else None   # [rows, D]
    x = model.embed(part["inputs"], vectors)
    (y, z), logits, q = deep_recursion(model, x, part["y"], part["z"])
    answer, right, halting = losses(logits, q, part["labels"], cfg.loss)
    if cfg.q_learning:
        target = continue_target(model, x.detach(), y, z, part["count"] >= N_sup)
        halting = halting + F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="none")
    loss = answer + 0.5 * halting                                          # [rows]
    (loss.sum() / cfg.batch).backward()
    halted = (part["count"] >= N_sup) | (part["count"] >= part["minimum"]) & (q[:, 0] > cfg.q_learning * q[:, 1])
    means = torch.stack([v.detach().float() for v in (loss, answer, halting, right, halted)], 1)
    for name, v in ("y", y), ("z", z), ("means", means), ("grads", vectors.grad if cfg.prefix else part["grads"]):
        part[name].copy_(v)
def train_step(model, ema, optimizer, slots, task, step):
    """One optimizer step, which is one supervision step of every slot. Returns the slots and the batch means of loss,
    answer loss, halting loss, right and halted: [5]. Of several processes each works on a share of the slots."""
    cfg, slots = model.cfg, refill(slots, model, task)
    N_sup = max(1, round(cfg.N_sup * cfg.N_start ** (1 - step / cfg.steps)))
    slots["count"] += 1
    optimizer.zero_grad()
    mine = range(RANK * cfg.batch // WORLD, (RANK + 1) * cfg.batch // WORLD)
    for first in mine[::cfg.micro_batch]:
        supervision_step(model, slots, slice(first, min(first + cfg.micro_batch, mine.stop)), N_sup)
    for v in [p.grad for p in model.parameters()] + [slots["means"], slots["grads"]] if WORLD > 1 else ():
        dist.all_reduce(v)                                                 # rows of other processes were 0
    slots["halted"] = slots["means"][:, 4] > 0
    rise, fall = min(1, (step + 1) / cfg.warmup), 1 - (1 - cfg.lr_final) * step / cfg.steps
    optimizer.param_groups[0]["lr"] = cfg.lr * rise * fall
    optimizer.step()
    ema.update_parameters(model)
    if cfg.prefix:
        update_puzzles(model.puzzles, slots["ids"], slots["grads"], cfg.puzzle_lr * rise * fall, cfg.weight_decay)
    return slots, slots["means"].double().mean(0)
# ---- Evaluation: more thinking, no more training --------------------------------------------------------------------
@torch.no_grad()
def think(model, inputs, steps, task=None, ids=None):
    """Supervision steps without supervision, of C = cfg.widths[-1] copies of each puzzle; inputs [P, L], ids [P].
    Yields after each step answers [P, C, L], halting logits [P, C] and z, overwritten at the next. A copy that is sure,
    its logit > 0 and its answer unchanged, leaves, and if the highest logit wins those that compete with it do, too."""
    cfg, (P, L), C = model.cfg, inputs.shape, model.cfg.widths[-1]
    ids = torch.zeros_like(inputs[:, 0]).long() if ids is None else ids
    inputs, ids, undo = (task.views(inputs, ids, C) if cfg.augment > 1 else
                         (inputs.repeat_interleave(C, 0), ids.repeat_interleave(C), lambda grids: grids))
    x = model.embed(inputs, model.puzzles[ids] if cfg.prefix else None)
    (y, z), rows = model.initial(P * C), torch.arange(P * C, device=inputs.device)
    answers, q = inputs.clone(), torch.full((P, C), -math.inf, device=inputs.device)
    sure, last = torch.zeros_like(q).bool(), [next(w for w in cfg.widths if c < w) - 1 for c in range(C)]
    for _ in range(steps):                      # copy c competes with those up to last[c], at least
        if len(rows):
            z = z + cfg.noise * torch.randn_like(z) if cfg.noise else z
            (y, z), logits, q_now = deep_recursion(model, x, y, z)
            found, certainty = logits.argmax(-1).to(answers.dtype), q_now[:, 0] - cfg.q_learning * q_now[:, 1]
            sure.view(-1)[rows] = (certainty > 0) & (found == answers[rows]).all(1)
            answers[rows], q.view(-1)[rows] = found, certainty
        yield undo(answers).view(P, C, L), q, z
        if not cfg.all_steps:
            stay = ~(sure.cummax(1).values[:, last] if cfg.pick == "q" else sure).flatten()[rows]
            rows, x, y, z = rows[stay], x[:, stay], y[:, stay], z[..., stay, :]
def choose(answers, q, pick, labels=None):
    """Of C answers [P, C, L] with halting logits q [P, C] the best two that differ [P, 2, L], by the logit or by votes
    and then mean halting probability; the best's logit [P]; how many distinct answers precede labels [P, L]: [P]."""
    which = answers.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view_as(q)
    same = which[:, :, None] == which[:, None]                             # [P, C, C]
    votes, rows = same.sum(2), torch.arange(len(q), device=q.device)
    score = votes + 0.99 * (same * q.sigmoid()[:, None]).sum(2) / votes if pick == "vote" else q
    best = score.argmax(1)
    second = answers[rows, score.masked_fill(same[rows, best], -math.inf).argmax(1)]
    right = ((answers == labels[:, None]) | (labels == 0)[:, None]).all(2) if labels is not None else same[:, 0]
    ahead = score > score.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    rank = torch.where(right.any(1), (ahead / votes).sum(1).round(), math.inf)   # a distinct answer counts 1 in all
    return torch.stack([answers[rows, best], second], 1), q[rows, best], rank
def evaluate(model, task, puzzles):
    """Of each of N puzzles: share of cells right, exact (all are), solved (the rules hold), halting logit, rank of the
    truth: [5, widths, N_eval, N] on the CPU, of the first w copies, w in cfg.widths; the best two answers [N, 2, L]."""
    cfg, batches, attempts = model.cfg, [], []
    with torch.random.fork_rng():                                          # training goes on as if nobody had looked
        torch.manual_seed(cfg.seed)
        for rows in torch.arange(len(puzzles)).split(4 * min(cfg.batch, cfg.micro_batch) // cfg.widths[-1] + 1):
            part, found = puzzles[rows.to(puzzles.ids.device)], []         # without gradient four times as many fit
            for answers, q, _ in think(model, part.inputs, cfg.N_eval, task, part.ids):
                for w in cfg.widths:
                    best, sure, rank = choose(answers[:, :w], q[:, :w], cfg.pick, part.labels)
                    right = ((best[:, 0] == part.labels) & (part.labels != 0)).sum(1) / (part.labels != 0).sum(1)
                    solved = task.obeys(part.inputs, best[:, 0], part.labels)
                    found.append(torch.stack([right, right == 1, solved, sure, rank]))
            batches.append(torch.stack(found, 1).unflatten(1, (cfg.N_eval, -1)).transpose(1, 2).cpu())
            attempts.append(best.cpu())
            sys.stderr.isatty() and print(f"\r{rows[-1] + 1} of {len(puzzles)} puzzles", end="\r", file=sys.stderr)
    return torch.cat(batches, 3), torch.cat(attempts)
def print_evaluation(model, task, path=None):
    """A table, in the CSV file `path` too: accuracy, of the halting head, by rating, by copies; the task's report."""
    began, cfg, N, rating = time.perf_counter(), model.cfg, len(task.test), task.test.rating.cpu()
    found, attempts = evaluate(model, task, task.test)
    rate, (cells, exact, solved, q, rank) = N / (time.perf_counter() - began), found[:, -1]
    columns = {"cells": cells, "exact": exact, "solved": solved, "halting head": ((q > 0) == (exact > 0)).float(),
               "sure but wrong": ((q > 0) & (solved == 0)).float()}
    groups = {name: (low <= rating) & (rating <= high) for name, (low, high) in task.groups.items()}
    columns.update({f"{name} ({group.sum()})": exact[:, group] for name, group in groups.items() if group.any()})
    columns.update({f"exact of {w}": part for w, part in zip(cfg.widths[:-1], found[1])})
    shown = [k for k in range(1, cfg.N_eval + 1) if k <= cfg.N_sup or k & k - 1 == 0 or k == cfg.N_eval]
    table = [["step", *columns], *([k, *(f"{100 * v[k - 1].mean():.1f}" for v in columns.values())] for k in shown)]
    print(f"\n{N} unseen puzzles, {rate:.3g} per second; %, after each supervision step:")
    if task.test.labels.any():
        data.print_table(table, path)
    task.report(attempts, rank[-1])
def print_solution(model, task, text=None, latent=False, svg=None):
    """Solve a puzzle, `text` or an unseen one, until the halting head is sure, and show how (data.watch)."""
    puzzle = task.parse(text) if text else task.test[[time.time_ns() % len(task.test)]].to("cpu")
    thoughts = think(model, puzzle.inputs.to(DEVICE), model.cfg.N_eval, task, puzzle.ids.to(DEVICE))
    decode = lambda z: model.output_head(z if z.dim() == 3 else z[-1])[0].argmax(-1).cpu() if z.numel() else None
    steps = ((*choose(answers, q, model.cfg.pick)[:2], decode(z) if latent else None) for answers, q, z in thoughts)
    data.watch(task, puzzle, steps, model.cfg.all_steps, svg)
def solve_lines(model, task, lines):
    """Solve puzzles, one a line; print a line of CSV each. Returns the exit status: 1 if there were bad lines."""
    numbered, out, status = enumerate(lines, 1), csv.writer(sys.stdout, lineterminator="\n"), 0
    out.writerow(["puzzle", "answer", "probability", "solved"])
    while chunk := [*itertools.islice(numbered, 1000)]:
        puzzles = []
        for number, line in chunk:
            try:
                puzzles += [vars(task.parse(line.rstrip("\r\n"))).values()] if line.strip() else []
            except ValueError as error:
                status = print(f"line {number}: {error}", file=sys.stderr) or 1
        if puzzles:
            part = data.Puzzles(*map(torch.cat, zip(*puzzles)))
            found, answers = evaluate(model, task, part.to(DEVICE))
            for x, y, ok, q in zip(part.inputs, answers[:, 0], *found[2:4, -1, -1]):
                out.writerow([task.text(x), task.text(y), f"{q.sigmoid():.3f}", int(ok)])
    return status
# ---- Checkpoints, ours and the published ones -----------------------------------------------------------------------
def published_name(name):
    """What the published code calls the parameter or buffer `name` of a TRM."""
    for ours, theirs in {"nets.0.": "L_level.layers.", "nets.1.": "H_level.layers.", ".mix.qkv": ".self_attn.qkv",
                         ".mix.out": ".self_attn.o", ".mix.": ".mlp_t.", "output_weight": "lm_head.weight",
                         "q_weight": "q_head.weight", "q_bias": "q_head.bias", "y_init": "H_init", "z_init": "L_init",
                         "tokens": "embed_tokens.embedding_weight", "puzzles": "puzzle_emb.weights"}.items():
        name = name.replace(ours, theirs)
    return name + "_proj.weight" * ("layers" in name)
def save(path, cfg, model, **state):
    """Write a checkpoint (data.replace_file); what has a state_dict is written as that. Raises ValueError."""
    state.update(config=asdict(cfg), dtype=str(model.dtype)[6:], model=model,
                 rng=[torch.get_rng_state(), *torch.cuda.get_rng_state_all()])
    torch.save({name: getattr(v, "state_dict", lambda: v)() for name, v in state.items()}, file := io.BytesIO())
    data.replace_file(path, file.getbuffer())
def load(path):
    """The dict in a checkpoint file, of a run or published; code in it is not run. Raises ValueError."""
    try:
        whole = zipfile.ZipFile(path).testzip() is None                    # all checksums are right
        content = dict(torch.load(path, weights_only=True, map_location=DEVICE) if whole else None)
        return {**content, "config": Config(**content["config"])} if "config" in content else content
    except Exception as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from None
def restore(model, weights):
    """Give a model its weights, a state dict. Raises ValueError, naming those that do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        data.refuse(f"the checkpoint does not fit: {' '.join(str(error).split()[6:])[:300]}")
def load_published(weights, length=None, **settings):
    """A TRM from the state dict of a checkpoint of the published code (TRM-MLP, TRM-Att or HRM; see `load`).
    length: L, if its weights do not tell it (81). settings: n, T, heads, prefix; else the paper's, prefix 16."""
    weights = {str(key).removeprefix("_orig_mod.").removeprefix("model.inner."): w for key, w in weights.items()}
    shapes = {key: tuple(getattr(w, "shape", [])) for key, w in weights.items()}
    mixer = shapes.get("L_level.layers.0.mlp_t.down_proj.weight")          # [S, inner]
    base = HRM if any(key.startswith("H_level.") for key in shapes) else Config(prefix=16)
    vocab, D = shapes.get("embed_tokens.embedding_weight", (11, 512))
    layers = sum(key.startswith("L_level") and key.endswith("mlp.down_proj.weight") for key in shapes)
    cfg = replace(base, **{"D": D, "n_layers": max(layers, 1), "mixing": "mlp" if mixer else "attention", **settings})
    length, ids = length or (mixer[0] - cfg.prefix if mixer else 81), shapes.get("puzzle_emb.weights", [1])[0]
    model = TRM(cfg, length, vocab, ids)
    names = {published_name(name): name for name in model.state_dict()}
    restore(model, {names.get(key, key): w for key, w in weights.items()})
    return model.to(DEVICE)
# ---- Training (section 5) -------------------------------------------------------------------------------------------
def matrix_rate(dtype):
    """FLOP/s of this device in products of large square matrices, the median of 25: what there is to be had."""
    size = 8192 if DEVICE.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=DEVICE)
    return 2 * size ** 3 / statistics.median(timeit.repeat(lambda: (a @ a)[0, 0].item(), number=1, repeat=25))   # waits
def build(cfg, folder=None, saved=None):
    """The task, the model and its moving average (section 4.7), new or from the checkpoint `saved`."""
    task, dtype = data.TASKS[cfg.task](cfg, folder, DEVICE), saved["dtype"] if saved else cfg.dtype
    if dtype == "auto":                                                    # bfloat16 where it is clearly faster
        fast = DEVICE.type == "cuda" or matrix_rate(torch.bfloat16) > 1.33 * matrix_rate(torch.float)
        dtype = "bfloat16" if fast else "float32"
    torch.manual_seed(cfg.seed)
    model = TRM(cfg, task.length, task.vocab, task.ids, getattr(torch, dtype)).to(DEVICE)
    ema = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(cfg.ema))
    ema.module.puzzles = model.puzzles                                     # one table for both: it is not averaged
    for part, name in ((model, "model"), (ema, "ema")) if saved else ():
        restore(part, saved[name])
    return task, model, ema
def flops(cfg, task):
    """FLOPs of the matrix products in one optimizer step, counted by running it on tensors without storage."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model, B = TRM(cfg, task.length, task.vocab, task.ids), cfg.batch
        x, (y, z) = model.embed(torch.zeros(B, task.length).long(), torch.zeros(B, cfg.D)), model.initial(B)
        sum(output.sum() for output in deep_recursion(model, x, y, z)[1:]).backward()
        if cfg.q_learning:
            continue_target(model, x, y, z, torch.zeros(B).bool())
    return counter.get_total_flops()
def print_header(model, task):
    """What is about to be trained, in five lines. Returns the FLOPs of a step and the matrix_rate of the device."""
    cfg, parameters, rate = model.cfg, sum(p.numel() for p in model.parameters()), matrix_rate(model.dtype)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"model    {parameters:,} parameters{f', {task.ids:,} puzzle embeddings' * (cfg.prefix > 0)}: {cfg.mixing} "
          f"mixing, D {cfg.D}, {cfg.n_layers} layers\n"
          f"thinks   n {cfg.n}, T {cfg.T}: effective depth T(n+1)layers = {cfg.T * (cfg.n + 1) * cfg.n_layers}, "
          f"N_sup {cfg.N_sup} supervision steps, forward passes in each: {1 + cfg.q_learning}\n"
          f"costs    {(cost := flops(cfg, task)) / 1e12:.3g} TFLOP per step of {cfg.batch} puzzles, {cfg.steps} steps\n"
          f"device   {device}, {str(model.dtype)[6:]}, {rate / 1e12:.3g} TFLOP/s in large matrix products\n"
          f"data     {len(task.train)} training and {len(task.test)} unseen puzzles, {task.folder}", flush=True)
    return cost, rate
def train(cfg, run, folder=None, saved=None):
    """Train a model, kept in runs/RUN: checkpoint.pt every minute, log.csv. saved: the checkpoint to go on from.
    Returns the exit status if it is stopped: by Ctrl-C 130, by SIGTERM 143."""
    (task, model, ema), tty = build(cfg, folder, saved), sys.stdout.isatty()
    cost, most = print_header(model, task)
    if cfg.steps == 0:
        return
    optimizer = optim.AdamW(model.parameters(), cfg.lr, (cfg.beta1, cfg.beta2), 1e-8, cfg.weight_decay, fused=True)
    for net in model.nets if cfg.compile else ():                          # once, for the T(n+1) times it is called
        net.compile(dynamic=False)
    (path := Path("runs") / run / "checkpoint.pt").parent.mkdir(parents=True, exist_ok=True)
    slots, step, seconds = (saved[name] for name in ("slots", "step", "seconds")) if saved else (None, 0, 0.0)
    log = open(os.devnull if RANK else path.with_name("log.csv"), "a" if saved else "w")
    if saved:
        RANK or log.truncate(min(saved["log_size"], log.tell()))           # rows after the checkpoint come once more
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"][0].cpu())
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["rng"][1:]])   # none without CUDA
    recent, reported, saved_at, looking, unseen = [], seconds, seconds, 0, "-"   # recent: means not yet reported
    signals, old, stop, clock = [], {}, 0, time.perf_counter() - seconds   # the clock leaves out the looks
    ema.module.cfg = replace(cfg, augment=1, rollouts=1)                   # a look takes one try, the end all
    while step < cfg.steps and not stop:
        slots, means = train_step(model, ema, optimizer, slots, task, step)   # the first compiles, nothing to save yet
        old = old or {s: signal.signal(s, lambda n, _: signals.append(n)) for s in (signal.SIGINT, signal.SIGTERM)}
        step, recent, seconds = step + 1, recent + [means], time.perf_counter() - clock
        stop = torch.tensor(max(signals, default=0))                       # in all processes at the same step
        if WORLD > 1:
            dist.all_reduce(stop, dist.ReduceOp.MAX)
        over, keep = step == cfg.steps or stop, seconds - saved_at > 60
        if over or keep or seconds - reported > (1 if tty else 30):
            means = torch.stack(recent).mean(0).tolist()                   # waits for the device
            if not math.isfinite(means[0]):
                data.refuse(f"the loss is {means[0]} at step {step}: lower --lr; {path}, if there, is from before")
            seconds = time.perf_counter() - clock
            if seconds > 30 and looking < 0.05 * seconds:                  # a look at unseen puzzles, now and then
                unseen = f"{evaluate(ema.module, task, task.test[:4 * cfg.batch])[0][1, -1, -1].mean():.3f}"
                looking, clock = looking + time.perf_counter() - clock - seconds, time.perf_counter() - seconds
            rate = len(recent) / (seconds - reported)
            row = {"step": f"{step}", "of": f"{cfg.steps}", "seconds": f"{seconds:.1f}", "steps/s": f"{rate:.2f}",
                   "TFLOP/s": f"{rate * cost / 1e12:.3f}", "of peak": f"{rate * cost / most:.0%}",
                   "min left": f"{(cfg.steps - step) / rate / 60:.1f}", "lr": f"{optimizer.param_groups[0]['lr']:.2g}"}
            row |= zip("loss answer halting solved halted unseen".split(), [*map("{:.3f}".format, means), unseen])
            print(*map(",".join, [row.values()] if log.tell() else [row, row.values()]), sep="\n", file=log, flush=True)
            line = "  ".join(map(" ".join, row.items()))[:shutil.get_terminal_size().columns - 1 if tty else None]
            print(f"\r{line}\033[K" if tty else f"{line}\n", end="", flush=True)
            recent, reported = [], seconds
        if not RANK and (over or keep):                                    # each process has slots of its own
            save(path, cfg, model, ema=ema, optimizer=optimizer, slots=slots if WORLD == 1 else None, step=step,
                 seconds=seconds, folder=folder, log_size=log.tell())
            saved_at = seconds
    for s, handler in old.items():
        signal.signal(s, handler)
    ema.module.cfg = cfg
    print("\n" * tty + (f"stopped and saved at step {step}; the same command with --resume goes on" if stop else
                        f"trained for {seconds:.0f} s, saved {path}"), flush=True)
    if stop:
        return 128 + int(stop)
    print_evaluation(ema.module, task)
    print_solution(ema.module, task)
# ---- Command line ---------------------------------------------------------------------------------------------------
def parse(argv=None):
    """The command line as a namespace, with the hyper-parameters that were given in its `given`. Raises ValueError."""
    parser = argparse.ArgumentParser(prog="trm.py", allow_abbrev=False, description="Train, evaluate or watch a TRM.")
    parser.error = data.refuse                                             # every mistake is reported in one place
    add, either = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("command", choices=["train", "eval", "solve"], help="train a preset, evaluate a run, watch it solve a puzzle")
    add("name", help=f"train: a preset ({', '.join(PRESETS)}); else a run or a published checkpoint")
    add("--data", metavar="DIR", help="folder with train.csv and test.csv, or ARC's files (built-in puzzles)")
    own = [add("puzzle", nargs="?", help="solve: a grid in a line, '.' or 0 for a blank; ARC task; - reads lines"),
           add("--show", choices=["z"], help="solve: print what the latent z decodes to, too (Figure 6)"),
           add("--svg", metavar="FILE", help="solve: draw the grid after each supervision step"),
           add("--csv", metavar="FILE", help="eval: write the table there, too"),
           add("--run", metavar="NAME", help="train: name of the run (the preset's)"),
           either("--resume", action="store_true", help="train: go on with the run where there is one"),
           either("--overwrite", action="store_true", help="train: replace the run where there is one")]
    hyper = parser.add_argument_group("hyper-parameters", "In brackets the paper's value, of the preset sudoku. eval "
                                      "and solve take what leaves the shapes of weights; there --steps is N_eval.")
    for f in fields(Config):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type, "metavar": "X"}
        names = dict.fromkeys([f"--{f.name}", "--votes" if f.name == "augment" else f"--{f.name.replace('_', '-')}"])
        hyper.add_argument(*names, default=argparse.SUPPRESS, help=f"{f.metadata['help']} [{f.default}]", **kind)
    args, unknown = parser.parse_known_intermixed_args(argv)
    args.given = {f.name: getattr(args, f.name) for f in fields(Config) if f.name in args}
    if unknown:
        data.refuse(f"unknown argument {unknown[0]}", unknown[0], [f"--{n}" for n in (*vars(args), *asdict(Config()))])
    for action in own:
        if getattr(args, action.dest) and not action.help.startswith(args.command):
            data.refuse(f"{action.dest} is for {action.help.split(':')[0]}, not for {args.command}")
    for path in map(Path, filter(None, (args.csv, args.svg))):             # before hours of work
        if not path.is_file() and (path.exists() or not path.absolute().parent.is_dir()):
            data.refuse(f"{path} cannot be written: it is no file, or its folder is not there")
    return args
def main(argv=None):
    """Run one command and return the exit status, None for 0. Raises ValueError for a mistake of the user's."""
    args = parse(argv)
    if args.given.get("augment", 1) > 1:
        args.given.setdefault("pick", "vote")
    path = Path("runs") / (run := args.run or args.name) / "checkpoint.pt"
    if WORLD > 1:                                                          # started by torchrun
        DEVICE.type == "cuda" and torch.cuda.set_device(DEVICE)
        dist.init_process_group("cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo")
        sys.stdout = open(os.devnull, "w") if RANK else sys.stdout
    if args.command == "train":
        cfg, saved = PRESETS.get(args.name) or data.refuse(f"unknown preset {args.name}", args.name, PRESETS), None
        if path.exists() and not args.overwrite and args.given.get("steps") != 0:
            if not args.resume:
                data.refuse(f"run {run} exists: --resume goes on, --overwrite replaces it, --run NAME starts another")
            saved = load(path)
            cfg, args.data = saved["config"], args.data or saved["folder"]
            for name in args.given.keys() - {"steps"}:
                if args.given[name] != getattr(cfg, name):
                    data.refuse(f"--{name} cannot change in a resumed run; leave it out or start another (--run NAME)")
        torch._dynamo.config.suppress_errors = True                        # without a compiler it runs as it is,
        torch._logging.set_logs(all=40)                                    # and no word of it but errors
        return train(replace(cfg, **args.given), run, args.data, saved)
    args.given = {"N_eval" if name == "steps" else name: value for name, value in args.given.items()}
    path = Path(args.name) if Path(args.name).is_file() else path
    if not path.is_file():
        data.refuse(f"there is no run {run}", run, [p.parent.name for p in Path("runs").glob("*/checkpoint.pt")])
    saved = load(path)
    if "config" in saved:
        task, _, ema = build(replace(saved["config"], **args.given), args.data or saved["folder"], saved)
        model = ema.module
    else:
        model = load_published(saved, **args.given)
        task = data.TASKS[model.cfg.task](model.cfg, args.data, DEVICE)
    if args.puzzle == "-":
        return solve_lines(model, task, (line.decode("utf-8-sig", "replace") for line in sys.stdin.buffer))
    if args.command == "solve":
        return print_solution(model, task, args.puzzle, args.show, args.svg)
    return print_evaluation(model, task, args.csv)

if __name__ == "__main__":
    data.run("trm.py", main)
