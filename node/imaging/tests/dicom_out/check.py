"""Reads what python.rs wrote with pydicom and highdicom: FOLDER MASK SEG RTSTRUCT OUT.

MASK is an .npy of uint8 [slice, row, column] in the order of positions along the normal. Writes the
mask with highdicom as a segmentation of two overlapping segments to OUT. Ends with a line that
begins with "checked"; anything wrong is an exception.
"""
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom

folder, mask, seg_path, rt_path, out_path = map(Path, sys.argv[1:])
mask = np.load(mask)
images = [pydicom.dcmread(p) for p in folder.glob("*.dcm")]
orientation = np.array(images[0].ImageOrientationPatient, float)
row, column = orientation[:3], orientation[3:]
normal = np.cross(row, column)
images.sort(key=lambda d: float(np.dot(normal, np.array(d.ImagePositionPatient, float))))
uids = [d.SOPInstanceUID for d in images]


def same_study(made):
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
                 "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
                 "FrameOfReferenceUID"):
        assert getattr(made, name) == getattr(images[0], name), name
    assert made.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert made.SOPInstanceUID not in uids
    assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
    assert made.SOPClassUID == made.file_meta.MediaStorageSOPClassUID
    for name in ("SeriesNumber", "Manufacturer", "SoftwareVersions", "SeriesDescription"):
        assert getattr(made, name), name


seg = highdicom.seg.segread(seg_path)
same_study(seg)
assert seg.segmentation_type.value == "BINARY"
referenced = {i[2] for i in seg.get_source_image_uids()}
assert referenced <= set(uids), "a frame derives from an image that is not there"
series = seg.ReferencedSeriesSequence[0]
assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
assert [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence] == uids
pixels = seg.get_pixels_by_source_instance(
    uids, combine_segments=False, assert_missing_frames_are_empty=True
)
assert pixels.shape == (*mask.shape, len(seg.SegmentSequence)), pixels.shape
assert pixels.sum(axis=-1).max() == 1, "segments overlap"
assert np.array_equal(pixels.any(axis=-1), mask > 0)
volume = seg.get_volume(combine_segments=True, relabel=False)
for n in seg.segment_numbers:
    description = seg.get_segment_description(n)
    assert description.segmented_property_category.value == "49755003"
    assert description.segmented_property_type.value == "14799000"
    assert description.algorithm_type.value == "AUTOMATIC"
    assert description.algorithm_identification[0].AlgorithmVersion
frames = seg.NumberOfFrames
assert len(seg.PixelData) == -(-frames * seg.Rows * seg.Columns // 16) * 2

rt = pydicom.dcmread(rt_path)
same_study(rt)
assert rt.Modality == "RTSTRUCT" and rt.ApprovalStatus == "UNAPPROVED"
assert rt.StructureSetLabel and rt.StructureSetDate and rt.StructureSetTime
frame = rt.ReferencedFrameOfReferenceSequence[0]
assert frame.FrameOfReferenceUID == images[0].FrameOfReferenceUID
study = frame.RTReferencedStudySequence[0]
assert study.ReferencedSOPInstanceUID == images[0].StudyInstanceUID
series = study.RTReferencedSeriesSequence[0]
assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
assert [i.ReferencedSOPInstanceUID for i in series.ContourImageSequence] == uids
numbers = [r.ROINumber for r in rt.StructureSetROISequence]
assert numbers == [r.ReferencedROINumber for r in rt.ROIContourSequence]
assert numbers == [r.ReferencedROINumber for r in rt.RTROIObservationsSequence]
assert len({r.ROIName for r in rt.StructureSetROISequence}) == len(numbers)


def inside(polygon, shape):
    """Even-odd rule at voxel centres; polygon [point, (column, row)]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    odd = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        crosses = (y0 <= rows) != (y1 <= rows)
        if crosses.any():
            odd ^= crosses & (x0 + (rows - y0) / (y1 - y0) * (x1 - x0) <= columns)
    return odd


drawn = np.zeros_like(mask, dtype=bool)
for region in rt.ROIContourSequence:
    for contour in region.get("ContourSequence", []):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        k = uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
        spacing = np.array(images[k].PixelSpacing, float)
        from_corner = points - np.array(images[k].ImagePositionPatient, float)
        assert np.abs(from_corner @ normal).max() < 1e-3, "a contour leaves its slice"
        grid = np.stack([from_corner @ row / spacing[1], from_corner @ column / spacing[0]], axis=1)
        drawn[k] ^= inside(grid, mask.shape[1:])
assert np.array_equal(drawn, mask > 0)
described = [
    highdicom.seg.SegmentDescription(
        segment_number=n,
        segment_label=f"part {n}",
        segmented_property_category=highdicom.sr.CodedConcept(
            "49755003", "SCT", "Morphologically Abnormal Structure"
        ),
        segmented_property_type=highdicom.sr.CodedConcept("14799000", "SCT", "Neoplasm, Secondary"),
        algorithm_type="MANUAL",
    )
    for n in (1, 2)
]
half = mask.copy()
half[:, :, : mask.shape[2] // 2] = 0
highdicom.seg.Segmentation(
    source_images=images,
    pixel_array=np.stack([mask, half], axis=-1),
    segmentation_type="BINARY",
    segment_descriptions=described,
    series_instance_uid=highdicom.UID(),
    series_number=7,
    sop_instance_uid=highdicom.UID(),
    instance_number=1,
    manufacturer="Test",
    manufacturer_model_name="Test",
    software_versions="1",
    device_serial_number="1",
    omit_empty_frames=False,
).save_as(out_path)
print(f"checked {frames} frames of {len(seg.segment_numbers)} segments and {len(numbers)} regions")
