"""The peer of `rondo-trainer bench`: the same network and update in PyTorch, timed on request.

The trainer passes this text to a Python with `-c` and its setup as one JSON argument, writes a
request per line, and reads a JSON answer per line:

    step PRECISION COUNT         COUNT updates                      -> {"ms": 931.2, "cpu_ms": 1850.0, "peak_rss_mib": 900}
    tiles PRECISION COUNT BATCH  COUNT segments, BATCH at a time    -> the same

PRECISION is fp32 or bf16 (autocast). Setup: device, threads, batch, widths [n1, n2, n3, m], teacher
(true: distil from a frozen copy, as LWF does), network (null, or a Python file with `DeepMedic`,
`seg_loss` and, for a teacher, `kdl`, used instead of the ones below).
"""

import copy
import json
import os
import sys
import time

# Whatever a library prints must not pass for an answer.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**fields):
    try:
        print(json.dumps(fields), file=answers, flush=True)
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more


try:
    import resource

    import torch
    from torch import nn
    from torch.nn import functional
except Exception as error:
    answer(error=f"this Python cannot load PyTorch: {error}")
    sys.exit(1)


class Plain(nn.Module):
    def __init__(self, inputs, outputs, edge=3):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, edge, bias=False)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x):
        return functional.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = Plain(inputs, outputs)
        self.conv = nn.Conv3d(outputs, outputs, 3, bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        self.inputs = inputs

    def forward(self, x):
        y = self.norm(self.conv(self.first(x)))
        middle = x[:, :, 2:-2, 2:-2, 2:-2]
        if y.shape[1] == self.inputs:
            return functional.relu(y + middle)
        return functional.relu(torch.cat([y[:, : self.inputs] + middle, y[:, self.inputs :]], 1))


class DeepMedic(nn.Module):
    """x1 [n, 1, 25, 25, 25], x2 [n, 1, 19, 19, 19] -> logits [n, 2, 9, 9, 9]."""

    def __init__(self, n1, n2, n3, m):
        super().__init__()
        self.high = nn.Sequential(
            Plain(1, n1), Plain(n1, n1), Residual(n1, n2), Residual(n2, n2), Residual(n2, n3)
        )
        widths = [1, n1, n1, n2, n2, n2, n2, n3, n3]
        self.low = nn.Sequential(*[Plain(a, b) for a, b in zip(widths, widths[1:])])
        self.up = nn.Upsample(scale_factor=3, mode="trilinear", align_corners=False)
        self.head = nn.Sequential(Plain(2 * n3, m, 1), Plain(m, m, 1), nn.Conv3d(m, 2, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x1, x2):
        return self.head(torch.cat([self.high(x1), self.up(self.low(x2))], 1))


def seg_loss(logits, target):
    """Cross-entropy and VSS (alpha 0.5, any background is negative, epsilon 0.1)."""
    p = torch.softmax(logits, 1)[:, 1].flatten(1)
    y = target.flatten(1).float()
    positive, negative = y.amax(1), 1 - y.amin(1)
    sensitivity = (p * y).amax(1).sum() / (positive.sum() + 0.1)
    specificity = 1 - (negative * p.amax(1)).sum() / (negative.sum() + 0.1)
    vss = 1 - (0.5 * specificity + 0.5 * sensitivity)
    return functional.cross_entropy(logits, target) + vss


def kdl(student, teacher):
    """Distillation at T = 2, summed over classes and voxels, divided by n."""
    wanted = functional.softmax(teacher / 2, 1)
    return functional.kl_div(functional.log_softmax(student / 2, 1), wanted, reduction="batchmean")


class Work:
    def __init__(self, setup):
        code = globals()
        if setup["network"]:
            code = {"__name__": "network"}
            with open(setup["network"], encoding="utf-8") as file:
                exec(compile(file.read(), setup["network"], "exec"), code)
        torch.set_num_threads(setup["threads"])
        torch.manual_seed(1)
        self.device = torch.device(setup["device"])
        n1, n2, n3, m = setup["widths"]
        self.network = code["DeepMedic"](n1=n1, n2=n2, n3=n3, m=m).to(self.device)
        self.seg_loss = code["seg_loss"]
        self.teacher = None
        if setup["teacher"]:
            self.teacher = copy.deepcopy(self.network).eval().requires_grad_(False)
            self.kdl = code["kdl"]
        parameters = self.network.parameters()
        self.adam = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4, amsgrad=True)
        self.batch = self.segments(setup["batch"])
        self.tiles_of = (0, None)

    def segments(self, n):
        x1 = torch.randn(n, 1, 25, 25, 25, device=self.device)
        x2 = torch.randn(n, 1, 19, 19, 19, device=self.device)
        target = (torch.rand(n, 9, 9, 9, device=self.device) > 0.9).long()
        return x1, x2, target

    def autocast(self, precision):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, precision, count):
        self.network.train()
        x1, x2, target = self.batch
        for _ in range(int(count)):
            self.adam.zero_grad()
            with self.autocast(precision):
                logits = self.network(x1, x2)
            logits = logits.float()
            loss = self.seg_loss(logits, target)
            if self.teacher is not None:
                with torch.no_grad(), self.autocast(precision):
                    taught = self.teacher(x1, x2)
                loss = loss + 0.1 * self.kdl(logits, taught.float())
            loss.backward()
            self.adam.step()
            loss.item()

    def tiles(self, precision, count, batch):
        self.network.eval()
        batch = int(batch)
        if self.tiles_of[0] != batch:
            self.tiles_of = (batch, self.segments(batch))
        x1, x2, _ = self.tiles_of[1]
        with torch.inference_mode():
            for first in range(0, int(count), batch):
                n = min(batch, int(count) - first)
                with self.autocast(precision):
                    logits = self.network(x1[:n], x2[:n])
                torch.softmax(logits.float(), 1)[:, 1].cpu()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, request):
        name, *arguments = request.split()
        work = {"step": self.step, "tiles": self.tiles}[name]
        self.wait()
        begun, cpu = time.perf_counter(), time.process_time()
        work(*arguments)
        self.wait()
        return {
            "ms": (time.perf_counter() - begun) * 1e3,
            "cpu_ms": (time.process_time() - cpu) * 1e3,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


try:
    work = Work(json.loads(sys.argv[1]))
    version = torch.__version__.split("+")[0]
    answer(name=f"PyTorch {version} eager", threads=torch.get_num_threads())
    for line in sys.stdin:
        answer(**work.timed(line))
except Exception as error:
    answer(error=f"{type(error).__name__}: {error}"[:2000])
    sys.exit(1)
