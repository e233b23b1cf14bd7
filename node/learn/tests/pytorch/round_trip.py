"""DeepMedic in PyTorch, from the table of its layers: loads a model of Rondo, computes a volume with
it tile by tile, and saves it back in the ways PyTorch has. Called by pytorch.rs.

Usage: round_trip.py FOLDER, with model.safetensors and image.safetensors in it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def plain(cin, cout, edge=3):
    return nn.Sequential(
        nn.Conv3d(cin, cout, edge, bias=False), nn.BatchNorm3d(cout), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv1 = nn.Conv3d(cin, cout, 3, bias=False)
        self.bn1 = nn.BatchNorm3d(cout)
        self.conv2 = nn.Conv3d(cout, cout, 3, bias=False)
        self.bn2 = nn.BatchNorm3d(cout)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        skip = x[:, :, 2:-2, 2:-2, 2:-2]
        first = y[:, : skip.shape[1]] + skip
        return torch.relu(torch.cat([first, y[:, skip.shape[1] :]], dim=1))


class DeepMedic(nn.Module):
    def __init__(self, n1, n2, n3, m):
        super().__init__()
        self.branch1 = nn.Sequential(
            plain(1, n1), plain(n1, n1), Residual(n1, n2), Residual(n2, n2), Residual(n2, n3)
        )
        edges = [1, n1, n1, n2, n2, n2, n2, n3, n3]
        self.branch2 = nn.Sequential(*(plain(a, b) for a, b in zip(edges, edges[1:])))
        self.up = nn.Upsample(scale_factor=3, mode="trilinear", align_corners=False)
        self.fc = nn.Sequential(plain(2 * n3, m, 1), plain(m, m, 1), nn.Conv3d(m, 2, 1))

    def forward(self, x1, x2):
        return self.fc(torch.cat([self.branch1(x1), self.up(self.branch2(x2))], dim=1))


def crop(volume, centre, size, stride):
    for axis, (p, n) in enumerate(zip(centre, volume.shape)):
        places = p - size // 2 * stride + torch.arange(size) * stride
        volume = volume.index_select(axis, places.clamp(0, n - 1))
    return volume[None, None]


def probability(model, volume):
    padded = torch.empty([-(-n // 9) * 9 for n in volume.shape])
    for a in range(0, padded.shape[0], 9):
        for b in range(0, padded.shape[1], 9):
            for c in range(0, padded.shape[2], 9):
                centre = (a + 4, b + 4, c + 4)
                logits = model(crop(volume, centre, 25, 1), crop(volume, centre, 19, 3))
                padded[a : a + 9, b : b + 9, c : c + 9] = logits.softmax(dim=1)[0, 1]
    x, y, z = volume.shape
    return padded[:x, :y, :z].contiguous()


def main():
    folder = Path(sys.argv[1])
    tensors = load_file(folder / "model.safetensors")
    state = {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}
    width = {k: state[f"{k}.weight"].shape[0] for k in ("branch1.0.0", "fc.0.0")}
    n2, n3 = (state[f"branch1.{i}.conv1.weight"].shape[0] for i in (2, 4))
    model = DeepMedic(width["branch1.0.0"], n2, n3, width["fc.0.0"])
    model.load_state_dict(state, strict=True)
    step = int(tensors["optimizer.step"])
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(step)
    model.eval()
    with torch.no_grad():
        volume = load_file(folder / "image.safetensors")["image"]
        save_file({"probability": probability(model, volume)}, folder / "probability.safetensors")

    rate = round(float(tensors["optimizer.learning_rate"]), 9)
    adam = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-4, amsgrad=True)
    parts = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment", "max_exp_avg_sq": "maximum"}
    moments = {}
    for i, (name, _) in enumerate(model.named_parameters()):
        moments[i] = {"step": torch.tensor(float(step))}
        for theirs, ours in parts.items():
            moments[i][theirs] = tensors[f"optimizer.{ours}.{name}"]
    adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})

    def checkpoint():
        return {"iter": step, "state_dict": model.state_dict(), "optim_dict": adam.state_dict()}

    save_file(model.state_dict(), folder / "saved.safetensors", metadata={"format": "pt"})
    double = {k: v.double() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(double, folder / "double.safetensors")
    torch.save(checkpoint(), folder / "saved.tar")
    torch.save(checkpoint(), folder / "legacy.tar", _use_new_zipfile_serialization=False)
    # Kernels whose channels lie last: the same numbers in another order of their storages.
    model.to(memory_format=torch.channels_last_3d)
    adam.load_state_dict(adam.state_dict())
    assert not model.fc[0][0].weight.is_contiguous() or not model.branch1[1][0].weight.is_contiguous()
    torch.save(checkpoint(), folder / "turned.tar")
    print(torch.__version__)


main()
