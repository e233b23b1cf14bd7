"""Writes NIfTI files of every kind with nibabel, and what nibabel reads from them.

nibabel_files.py write FOLDER    files and FOLDER/expected.json
nibabel_files.py read FILE...    affine, type and voxels of each file as JSON
"""

import gzip
import json
import pathlib
import sys

import nibabel
import numpy
from nibabel.nifti1 import Nifti1Extension

SHAPE = (5, 4, 3)
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.7) @ numpy.diag([0.8, 1.1, 2.5]), [-31.5, 12.25, 7.75]
)
OTHER = nibabel.affines.from_matvec(numpy.diag([0.8, 1.1, 2.5]), [1.0, 2.0, 3.0])
MIRRORED = OBLIQUE @ numpy.diag([1, 1, -1, 1])


def values(dtype):
    return (numpy.arange(60).reshape(SHAPE, order="F") * 2 % 127).astype(dtype)


def build(two, order, dtype, data=None):
    data = values(dtype) if data is None else data
    header_class = nibabel.Nifti2Header if two else nibabel.Nifti1Header
    image_class = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    header = header_class(endianness=order)
    header.set_data_dtype(numpy.dtype(dtype).newbyteorder(order))
    image = image_class(data, OBLIQUE, header)
    return image


def raw(image, change):
    """Bytes of a file whose header fields were changed behind nibabel's back."""
    header = image.header.copy()
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    change(header)
    data = numpy.asarray(image.dataobj).astype(header.get_data_dtype())
    return header.binaryblock + b"\0" * 4 + data.tobytes(order="F")


def spoil(field, value):
    def change(header):
        header[field] = value

    return change


def files():
    for two in (False, True):
        for order in "<>":
            for dtype in TYPES:
                name = f"v{1 + two}-{'big' if order == '>' else 'little'}-{dtype}"
                yield f"{name}.nii", raw(build(two, order, dtype), lambda h: None), None
        v = f"v{1 + two}"
        image = build(two, "<", "int16")

        def scaled(slope, inter):
            def change(header):
                header["scl_slope"], header["scl_inter"] = slope, inter

            return change

        for name, slope, inter in [
            ("slope", 0.25, -7),
            ("slope-zero", 0, 5),
            ("slope-nan", numpy.nan, numpy.nan),
            ("slope-negative", -2, 1),
        ]:
            yield f"{v}-{name}.nii", raw(image, scaled(slope, inter)), None

        def forms(sform, qform):
            made = build(two, "<", "int16")
            made.set_sform(*sform)
            made.set_qform(*qform)
            return made

        both = forms((OBLIQUE, 1), (OBLIQUE, 1))
        yield f"{v}-both.nii", both.to_bytes(), None
        yield f"{v}-sform-only.nii", forms((OBLIQUE, 2), (None, 0)).to_bytes(), None
        yield f"{v}-qform-only.nii", forms((None, 0), (OBLIQUE, 3)).to_bytes(), None
        yield f"{v}-qform-mirrored.nii", forms((None, 0), (MIRRORED, 1)).to_bytes(), None
        yield f"{v}-forms-disagree.nii", forms((OBLIQUE, 1), (OTHER, 1)).to_bytes(), "disagree"
        yield f"{v}-talairach.nii", forms((OBLIQUE, 3), (OBLIQUE, 4)).to_bytes(), None
        unoriented = raw(forms((None, 0), (None, 0)), lambda h: None)
        yield f"{v}-pixdim-only.nii", unoriented, "no orientation"
        qform = forms((None, 0), (OBLIQUE, 1))
        yield f"{v}-qfac-zero.nii", raw(qform, lambda h: h["pixdim"].__setitem__(0, 0)), None

        def negative(header):
            header["pixdim"][2] = -header["pixdim"][2]

        yield f"{v}-pixdim-negative-sform.nii", raw(both, negative), "not positive"
        yield f"{v}-pixdim-negative-qform.nii", raw(qform, negative), "refused: not positive"
        yield f"{v}-quatern-broken-sform.nii", raw(both, spoil("quatern_b", 3)), "no rotation"
        yield f"{v}-quatern-broken-qform.nii", raw(qform, spoil("quatern_b", 3)), "refused: quatern"

        trailing = values("int16")[..., None, None]
        yield f"{v}-trailing-axes.nii", build(two, "<", "int16", trailing).to_bytes(), None
        yield f"{v}-one-slice.nii", build(two, "<", "int16", values("int16")[..., 0]).to_bytes(), None
        frames = numpy.stack([values("int16")] * 4, axis=3)
        yield f"{v}-frames.nii", build(two, "<", "int16", frames).to_bytes(), "refused: 4 frames"
        vectors = frames[..., None, :3]
        yield f"{v}-vectors.nii", build(two, "<", "int16", vectors).to_bytes(), "refused: 3 frames"
        for dtype, words in [("complex64", "complex64"), ("complex128", "complex128")]:
            yield f"{v}-{dtype}.nii", build(two, "<", dtype).to_bytes(), f"refused: {words}"
        rgb = numpy.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        yield f"{v}-rgb.nii", build(two, "<", rgb, numpy.zeros(SHAPE, rgb)).to_bytes(), "refused: RGB"
        bits = bytearray(build(two, "<", "uint8").to_bytes())
        bits[12 if two else 70] = 1
        yield f"{v}-bit.nii", bytes(bits), "refused: one bit"

        told = build(two, "<", "int16")
        told.header.set_intent("z score", (), "a map")
        told.header["descrip"] = b"made by a test"
        for text in (b"first extension", b"second " * 40):
            told.header.extensions.append(Nifti1Extension("comment", text))
        yield f"{v}-extensions.nii", told.to_bytes(), None
        whole = told.to_bytes()
        yield f"{v}-packed.nii.gz", gzip.compress(whole), None
        cuts = [0, 100, 400, len(whole) - 30, len(whole)]
        members = [gzip.compress(whole[a:b]) for a, b in zip(cuts, cuts[1:])]
        yield f"{v}-members.nii.gz", b"".join(members), None
        yield f"{v}-no-name.nii", gzip.compress(whole), None


def read(path):
    image = nibabel.load(path)
    data = numpy.asarray(image.dataobj, dtype=numpy.float64)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    data = data.reshape(data.shape + (1,) * (3 - data.ndim))
    return {
        "affine": image.affine.tolist(),
        "shape": list(data.shape),
        "dtype": image.header.get_data_dtype().name,
        "voxels": data.ravel(order="C").tolist(),
    }


def forms(path):
    header = nibabel.load(path).header
    form = header.get_qform(coded=True)[0]
    return {"sform": header.get_sform().tolist(), "qform": None if form is None else form.tolist()}


def main():
    if sys.argv[1] == "read":
        print(json.dumps([read(path) | forms(path) for path in sys.argv[2:]]))
        return
    folder = pathlib.Path(sys.argv[2])
    expected = []
    for name, content, words in files():
        path = folder / name
        path.write_bytes(content)
        entry = {"name": name, "words": words}
        if not (words or "").startswith("refused"):
            # nibabel tells a packed file by its name.
            plain = path
            if content[:2] == b"\x1f\x8b" and not name.endswith(".gz"):
                plain = folder / f"{name}.gz"
                plain.write_bytes(content)
            entry.update(read(plain))
        expected.append(entry)
    (folder / "expected.json").write_text(json.dumps(expected))


main()
