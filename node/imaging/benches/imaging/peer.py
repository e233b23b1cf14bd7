"""The peers of `make bench` for images: SimpleITK and surface-distance, timed on request.

The bench passes this text to a Python with `-c`, writes a JSON request per line, and reads a JSON
answer per line: `{"ms": 931.2, "cpu_ms": 1850.0, "peak_rss_mib": 900, "result": ...}`, or
`{"error": "..."}`. The first answer, without a request, names what this Python has.

    {"do": "whole" | "case", "shape": [i, j, k], "spacing_mm": [...], "reference": FILE,
     "prediction": FILE, "tolerance_mm": 1.0}     masks as raw bytes in C order
    {"do": "dicom", "folder": FOLDER, "output": FILE}
    {"do": "n4", "image": FILE, "mask": FILE, "settings": {...}, "output": FILE}

Reading the masks, and the input and output of N4, is not timed; reading and writing of `dicom` is.
"""

import json
import os
import resource
import sys
import time
import warnings

# Whatever a library prints must not pass for an answer.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")


def answer(**fields):
    try:
        print(json.dumps(fields), file=answers, flush=True)
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more


have = {}
try:
    import numpy as np
    import scipy
    from scipy import ndimage

    # surface-distance 0.1 is older than numpy 2, which no longer has this name.
    if not hasattr(np, "Inf"):
        np.Inf = np.inf
    import surface_distance as sd

    have["surface-distance"] = f"surface-distance, numpy {np.__version__}, scipy {scipy.__version__}"
except Exception as error:
    print(f"this Python has no surface-distance: {error}", file=sys.stderr)
try:
    import SimpleITK as sitk

    have["SimpleITK"] = f"SimpleITK {sitk.Version.VersionString()}"
except Exception as error:
    print(f"this Python has no SimpleITK: {error}", file=sys.stderr)

kept = {}


def mask(path, shape):
    if path not in kept:
        kept[path] = np.fromfile(path, np.uint8).reshape(shape) > 0
    return kept[path]


def volume(path, kind):
    if (path, kind) not in kept:
        kept[path, kind] = sitk.ReadImage(path, kind)
    return kept[path, kind]


def figures(reference, prediction, spacing, tolerance):
    distances = sd.compute_surface_distances(reference, prediction, spacing)
    return {
        "dice": float(sd.compute_dice_coefficient(reference, prediction)),
        "surface_dice": float(sd.compute_surface_dice_at_tolerance(distances, tolerance)),
        "hd95_mm": float(sd.compute_robust_hausdorff(distances, 95)),
        "hd_mm": float(sd.compute_robust_hausdorff(distances, 100)),
    }


def box(slices):
    """The smallest box around boxes."""
    return tuple(
        slice(min(s[a].start for s in slices), max(s[a].stop for s in slices)) for a in range(3)
    )


def case(reference, prediction, spacing, tolerance):
    """What `evaluate_case` gives, by the means a careful user of the packages has: every lesion is
    cut out before anything is computed for it, and overlaps are counted in one pass."""
    whole = figures(reference, prediction, spacing, tolerance)
    structure = np.ones((3, 3, 3), bool)
    lesions, n = ndimage.label(reference, structure)
    parts, m = ndimage.label(prediction, structure)
    lesion_box, part_box = ndimage.find_objects(lesions), ndimage.find_objects(parts)
    both = reference & prediction
    pairs = np.unique(np.stack([lesions[both], parts[both]]), axis=1).T.tolist()
    of_part = {p: [l for l, q in pairs if q == p] for _, p in pairs}
    sizes = np.bincount(lesions.ravel(), minlength=n + 1)
    found = []
    for lesion in range(1, n + 1):
        touching = [p for l, p in pairs if l == lesion]
        entry = {"voxels": int(sizes[lesion]), "detected": bool(touching)}
        if touching:
            around = [lesion_box[lesion - 1]] + [part_box[p - 1] for p in touching]
            others = {l for p in touching for l in of_part[p]}
            at = box(around + [lesion_box[l - 1] for l in others])
            near = np.isin(parts[at], touching)
            if len(others) > 1:
                # A component over several lesions: every voxel goes to the nearest of them.
                seeds = np.where(np.isin(lesions[at], list(others)), lesions[at], 0)
                nearest = ndimage.distance_transform_edt(
                    seeds == 0, sampling=spacing, return_distances=False, return_indices=True
                )
                near &= seeds[tuple(nearest)] == lesion
            entry.update(figures(lesions[at] == lesion, near, spacing, tolerance))
        found.append(entry)
    return {
        "whole_mask": whole,
        "lesions": found,
        "predicted_components": m,
        "false_positives": m - len(of_part),
    }


def corrected(image, mask, settings):
    """N4 on a thinned image, and its logarithmic field on the whole grid."""
    thin = [settings["shrink"]] * 3
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(settings["iterations"])
    n4.SetConvergenceThreshold(settings["convergence"])
    n4.SetBiasFieldFullWidthAtHalfMaximum(settings["fwhm"])
    n4.SetWienerFilterNoise(settings["wiener_noise"])
    n4.SetNumberOfHistogramBins(settings["histogram_bins"])
    n4.SetNumberOfControlPoints(settings["control_points"])
    n4.SetSplineOrder(settings["spline_order"])
    n4.Execute(sitk.Shrink(image, thin), sitk.Shrink(mask, thin))
    return n4.GetLogBiasFieldAsImage(image)


def prepare(request):
    """Reads what is not timed; returns the work that is, and what becomes of its result."""
    what = request["do"]
    if what in ("whole", "case"):
        work = {"whole": figures, "case": case}[what]
        masks = [mask(request[name], request["shape"]) for name in ("reference", "prediction")]
        arguments = *masks, request["spacing_mm"], request["tolerance_mm"]
        return (lambda: work(*arguments)), (lambda result: result)
    if what == "dicom":

        def convert():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(request["folder"]))
            sitk.WriteImage(reader.Execute(), request["output"])

        return convert, (lambda nothing: None)
    if what == "n4":
        image = volume(request["image"], sitk.sitkFloat32)
        inside = volume(request["mask"], sitk.sitkUInt8)
        write = lambda field: sitk.WriteImage(field, request["output"])
        return (lambda: corrected(image, inside, request["settings"])), write
    raise ValueError(f"this peer cannot do {what}")


try:
    if not have:
        raise RuntimeError("this Python has neither SimpleITK nor surface-distance")
    threads = int(sys.argv[1])
    if "SimpleITK" in have:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    answer(have=have)
    for line in sys.stdin:
        work, finish = prepare(json.loads(line))
        begun, cpu = time.perf_counter(), time.process_time()
        result = work()
        took = {
            "ms": (time.perf_counter() - begun) * 1e3,
            "cpu_ms": (time.process_time() - cpu) * 1e3,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        answer(**took, result=finish(result))
except Exception as error:
    answer(error=f"{type(error).__name__}: {error}"[:2000])
    sys.exit(1)
