"""Figures of the public tools, for tests that compare with them.

    python make.py metrics FOLDER SEED   metrics.json and masks.safetensors, as in tests/golden
    python make.py repeats FOLDER SEED   repeats.json: mean, sd and t-tests of numpy and scipy

`metrics` needs numpy, scipy and surface-distance; `repeats` numpy and scipy.
"""

import json
import math
import pathlib
import sys
import warnings

import numpy as np
from scipy import ndimage, stats

warnings.simplefilter("ignore")

SPACINGS = [
    (1, 1, 1),
    (0.8594, 0.8594, 1.5),
    (0.5, 0.5, 3.0),
    (3.0, 0.4688, 0.4688),
    (0.9, 1.1, 0.7),
    (1, 1, 6.5),
    (0.1, 0.2, 0.3),
]


def blobs(rng, shape, count):
    mask = np.zeros(shape, bool)
    grid = np.indices(shape)
    for _ in range(count):
        centre = [rng.uniform(0, n) for n in shape]
        radii = rng.uniform(0.6, 5, 3)
        mask |= sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii)) <= 1
    return mask


def boxes(rng, shape, count):
    mask = np.zeros(shape, bool)
    for _ in range(count):
        low = [rng.integers(0, n) for n in shape]
        mask[tuple(slice(a, a + rng.integers(1, 6)) for a in low)] = True
    return mask


def chains(rng, shape, count):
    """Lesions that touch by faces, edges and corners."""
    mask = np.zeros(shape, bool)
    for _ in range(count):
        at = np.array([rng.integers(0, n) for n in shape])
        for _ in range(8):
            mask[tuple(at)] = True
            at = np.clip(at + rng.integers(-1, 2, 3), 0, np.array(shape) - 1)
    return mask


def masks(rng):
    shape = tuple(int(n) for n in rng.integers(2, 30, 3))
    shift = rng.integers(-2, 3, 3)
    moved = lambda mask: np.roll(mask, shift, (0, 1, 2))
    nothing, everything = np.zeros(shape, bool), np.ones(shape, bool)
    one = boxes(rng, shape, 1) & (rng.random(shape) < 0.1)
    a = blobs(rng, shape, rng.integers(1, 7))
    b, c = boxes(rng, shape, rng.integers(1, 5)), chains(rng, shape, rng.integers(1, 6))
    return [
        (a, moved(a) | blobs(rng, shape, 2)),
        (a, a ^ (rng.random(shape) < 0.02)),
        (b, moved(b)),
        (b, boxes(rng, shape, 3)),
        (c, chains(rng, shape, 4) | (c & (rng.random(shape) < 0.5))),
        (rng.random(shape) < 0.02, rng.random(shape) < 0.02),
        (rng.random(shape) < 0.4, rng.random(shape) < 0.4),
        (a, a),
        (one, moved(a)),
        (everything, a),
        (everything, everything),
        (nothing, nothing),
        (a | one, nothing),
        (nothing, b),
    ]


def finite(x):
    return float(x) if math.isfinite(x) else None


def counts(reference, prediction, rank):
    structure = ndimage.generate_binary_structure(3, rank)
    lesions, n = ndimage.label(reference, structure)
    parts, m = ndimage.label(prediction, structure)
    detected = len(np.unique(lesions[(lesions > 0) & prediction]))
    hits = len(np.unique(parts[(parts > 0) & reference]))
    return {
        "reference_lesions": n,
        "predicted_components": m,
        "detected": detected,
        "missed": n - detected,
        "false_positive": m - hits,
    }


def metrics(rng, folder):
    # surface-distance 0.1 is older than numpy 2, which no longer has these names.
    np.Inf, np.NaN = np.inf, np.nan
    import surface_distance as sd

    cases, tensors = [], {}
    for spacing in SPACINGS:
        for reference, prediction in masks(rng):
            n = len(cases)
            found = sd.compute_surface_distances(reference, prediction, spacing)
            some = reference.any() or prediction.any()
            dice = lambda mm: sd.compute_surface_dice_at_tolerance(found, mm) if some else math.nan
            average = sd.compute_average_surface_distance(found) if some else [math.nan] * 2
            cases.append(
                {
                    "case": n,
                    "shape": reference.shape,
                    "spacing_mm": spacing,
                    "connectivity": {
                        str(c): counts(reference, prediction, rank)
                        for c, rank in [(6, 1), (18, 2), (26, 3)]
                    },
                    "dice": finite(sd.compute_dice_coefficient(reference, prediction)),
                    "surface_dice_1mm": finite(dice(1)),
                    "surface_dice_2mm": finite(dice(2)),
                    "hd95_mm": finite(sd.compute_robust_hausdorff(found, 95)),
                    "hd100_mm": finite(sd.compute_robust_hausdorff(found, 100)),
                    "average_surface_distance_mm": [finite(x) for x in average],
                }
            )
            tensors[f"{n}.reference"] = reference.astype(np.uint8)
            tensors[f"{n}.prediction"] = prediction.astype(np.uint8)
            edt = np.full(reference.shape, np.inf)
            if reference.any():
                edt = ndimage.distance_transform_edt(~reference, sampling=spacing)
            tensors[f"{n}.edt_to_reference_mm"] = edt.astype("<f4")
    (folder / "metrics.json").write_text(json.dumps({"cases": cases}))
    header, data = {}, b""
    for name, tensor in tensors.items():
        kind = "U8" if tensor.dtype == np.uint8 else "F32"
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "masks.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def repeats(rng, folder):
    cases = []
    for n in range(400):
        sizes = rng.integers(1, 12, 2)
        scale, at = 10 ** rng.uniform(-6, 3, 2), rng.uniform(-2, 2, 2)
        a, b = (rng.normal(m, s, k) for m, s, k in zip(at, scale, sizes))
        if n % 10 == 0:
            a = np.full_like(a, a[0])  # no variance on one side
        if n % 40 == 0:
            b = np.full_like(b, b[0])  # nor on the other
        if n % 10 == 5:
            b = a + rng.normal(0, 1e-3)  # the same spread
        case = {"a": a.tolist(), "b": b.tolist(), "mean": float(a.mean())}
        # The deviation of equal values is 0, and what numpy makes of their sum is rounding.
        case["sd"] = float(a.std(ddof=1) if np.ptp(a) > 0 else 0) if len(a) > 1 else None
        for name, equal in [("student", True), ("welch", False)]:
            test = stats.ttest_ind(a, b, equal_var=equal)
            defined = min(len(a), len(b)) > 1 and (np.ptp(a) > 0 or np.ptp(b) > 0)
            case[name] = [float(test.statistic), float(test.df), float(test.pvalue)]
            case[name] = case[name] if defined else None
        cases.append(case)
    (folder / "repeats.json").write_text(json.dumps(cases))


what, folder, seed = sys.argv[1:]
{"metrics": metrics, "repeats": repeats}[what](np.random.default_rng(int(seed)), pathlib.Path(folder))
