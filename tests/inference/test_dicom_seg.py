"""DICOM Segmentation objects are complete, refer to their source and repeat byte for byte."""

import io
import warnings

import numpy as np
import pydicom
import pytest

from pneumothorax.inference import dicom_seg
from tests.helpers.dicoms import CR_IMAGE, write_dicom
from tests.helpers.images import noise

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
MASK = np.zeros((40, 52), np.uint8)
MASK[3:20, 5:9] = 1
MASK[39, 51] = 1

SOURCE_IMAGE = "PerFrameFunctionalGroupsSequence/DerivationImageSequence/SourceImageSequence"
# By path: type 1 of the Segmentation IOD (PS3.3 A.51), and 1C where the condition holds
REQUIRED = f"""
SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality InstanceNumber ImageType
Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions
ContentDate ContentTime ContentLabel SegmentationType LossyImageCompression
SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored PixelData
NumberOfFrames
DimensionOrganizationSequence/DimensionOrganizationUID
DimensionIndexSequence/DimensionIndexPointer DimensionIndexSequence/DimensionOrganizationUID
SegmentSequence/SegmentNumber SegmentSequence/SegmentLabel SegmentSequence/SegmentAlgorithmType
SegmentSequence/SegmentAlgorithmName
SegmentSequence/SegmentationAlgorithmIdentificationSequence/AlgorithmName
SegmentSequence/SegmentationAlgorithmIdentificationSequence/AlgorithmVersion
SegmentSequence/SegmentationAlgorithmIdentificationSequence/AlgorithmFamilyCodeSequence/CodeValue
SegmentSequence/SegmentedPropertyCategoryCodeSequence/CodeValue
SegmentSequence/SegmentedPropertyTypeCodeSequence/CodeMeaning
ReferencedSeriesSequence/SeriesInstanceUID
ReferencedSeriesSequence/ReferencedInstanceSequence/ReferencedSOPClassUID
ReferencedSeriesSequence/ReferencedInstanceSequence/ReferencedSOPInstanceUID
SharedFunctionalGroupsSequence/SegmentIdentificationSequence/ReferencedSegmentNumber
PerFrameFunctionalGroupsSequence/FrameContentSequence/DimensionIndexValues
PerFrameFunctionalGroupsSequence/DerivationImageSequence/DerivationCodeSequence/CodeValue
{SOURCE_IMAGE}/ReferencedSOPInstanceUID
{SOURCE_IMAGE}/PurposeOfReferenceCodeSequence/CodeValue
"""
# Type 2: present, but may be empty
PRESENT = """
PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
ReferringPhysicianName SeriesNumber ContentDescription ContentCreatorName PatientOrientation
"""

WHOLE = {
    "StudyInstanceUID": "1.2.276.1",
    "SeriesInstanceUID": "1.2.276.2",
    "PatientName": "Doe^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19500102",
    "StudyDate": "20190304",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "PixelSpacing": [0.2, 0.3],
    "PatientOrientation": ["L", "F"],
}
GEOMETRY = {
    "FrameOfReferenceUID": "1.2.276.9",
    "ImagePositionPatient": [1, 2, 3],
    "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
    "SliceThickness": 1,
}


def radiograph(folder, name="1.2.276.3", **tags):
    image = np.ascontiguousarray(noise(1, 52)[:40])
    return write_dicom(folder / f"{name}.dcm", image, **tags)


def encoded(path, mask=MASK, *, run="tiny", version="abc", identity="this"):
    return dicom_seg.encode(path, mask, run=run, version=version, identity=identity)


def read(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the ids of SIIM-ACR's stage 2
        return pydicom.dcmread(io.BytesIO(data))


def values(dataset, path):
    """All values at the path, from every item of the sequences along it."""
    first, _, rest = path.partition("/")
    if not rest:
        return [dataset.get(first)]
    return [
        value
        for item in dataset.get(first) or [None]
        for value in (values(item, rest) if item else [None])
    ]


def test_every_element_that_the_standard_requires_is_present(tmp_path):
    for tags in (WHOLE, {}):
        made = read(encoded(radiograph(tmp_path, **tags)))
        assert [
            path
            for path in REQUIRED.split()
            if any(value in (None, "", []) for value in values(made, path))
        ] == []
        assert [name for name in PRESENT.split() if name not in made] == []
        assert (
            made.SOPClassUID
            == made.file_meta.MediaStorageSOPClassUID
            == "1.2.840.10008.5.1.4.1.1.66.4"
        )
        assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
        assert (made.Modality, made.SegmentationType, made.BitsAllocated) == ("SEG", "BINARY", 1)
        for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            assert pydicom.uid.UID(made.get(name)).is_valid


def test_the_object_belongs_to_the_patient_and_the_study_and_refers_to_the_image(tmp_path):
    made = read(encoded(radiograph(tmp_path, **WHOLE)))
    for name in set(WHOLE) - {"SeriesInstanceUID", "PixelSpacing"}:
        assert made.get(name) == WHOLE[name], name
    assert made.SeriesInstanceUID != WHOLE["SeriesInstanceUID"]
    [series] = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == WHOLE["SeriesInstanceUID"]
    [image] = series.ReferencedInstanceSequence
    [derived] = (
        made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    )
    for reference in (image, derived, made.SourceImageSequence[0]):
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            CR_IMAGE,
            "1.2.276.3",
        )


def test_the_segment_is_a_pneumothorax_found_by_an_algorithm_with_its_run(tmp_path):
    [segment] = read(encoded(radiograph(tmp_path), run="mine", version="abc")).SegmentSequence
    kind, category = (
        segment.SegmentedPropertyTypeCodeSequence[0],
        segment.SegmentedPropertyCategoryCodeSequence[0],
    )
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == (
        "36118008",
        "SCT",
        "Pneumothorax",
    )
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Pneumothorax", "AUTOMATIC")
    [algorithm] = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == "abc"
    assert algorithm.AlgorithmParameters == "run=mine"


def test_the_frame_is_the_mask_at_the_pixel_spacing_of_the_source(tmp_path):
    made = read(encoded(radiograph(tmp_path, **WHOLE)))
    np.testing.assert_array_equal(made.pixel_array, MASK)
    assert (made.Rows, made.Columns, made.NumberOfFrames) == (40, 52, 1)
    [measures] = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.PixelSpacing == [0.2, 0.3]
    assert "FrameOfReferenceUID" not in made


def test_the_segmentation_takes_the_geometry_of_a_source_with_a_frame_of_reference(tmp_path):
    made = read(encoded(radiograph(tmp_path, **WHOLE, **GEOMETRY)))
    shared, frame = made.SharedFunctionalGroupsSequence[0], made.PerFrameFunctionalGroupsSequence[0]
    assert made.FrameOfReferenceUID == "1.2.276.9"
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.2, 0.3]
    assert (
        shared.PlaneOrientationSequence[0].ImageOrientationPatient
        == GEOMETRY["ImageOrientationPatient"]
    )
    position = frame.get("PlanePositionSequence", shared.get("PlanePositionSequence"))
    assert position[0].ImagePositionPatient == [1, 2, 3]
    np.testing.assert_array_equal(made.pixel_array, MASK)


@pytest.mark.parametrize("lacks", GEOMETRY)
@pytest.mark.parametrize("value", [None, ""])
def test_without_the_whole_geometry_the_pixels_are_the_reference(tmp_path, lacks, value):
    made = read(encoded(radiograph(tmp_path, **WHOLE, **{**GEOMETRY, lacks: value})))
    assert "FrameOfReferenceUID" not in made
    assert "PlanePositionSequence" not in made.PerFrameFunctionalGroupsSequence[0]
    np.testing.assert_array_equal(made.pixel_array, MASK)


def test_an_empty_mask_gives_a_frame_that_a_viewer_can_load(tmp_path):
    made = read(encoded(radiograph(tmp_path), np.zeros_like(MASK)))
    assert made.NumberOfFrames == 1
    np.testing.assert_array_equal(made.pixel_array, np.zeros_like(MASK))


def test_equal_input_gives_equal_bytes_and_other_input_other_uids(tmp_path):
    path = radiograph(tmp_path, **WHOLE)
    first = encoded(path)
    assert encoded(path) == first
    other = MASK.copy()
    other[0, 0] = 1
    objects = [read(data) for data in (first, encoded(path, other), encoded(path, identity="that"))]
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({made.get(name) for made in objects}) == 3


def test_the_objects_dates_are_those_of_the_source_and_never_of_today(tmp_path):
    made = read(encoded(radiograph(tmp_path, **WHOLE)))
    assert (made.ContentDate, made.ContentTime) == ("20190304", "101112")
    dates = {
        str(e.value)[:8]
        for e in made.iterall()
        if e.VR in ("DA", "DT") and e.keyword != "PatientBirthDate"
    }
    assert dates == {"20190304"}
    made = read(
        encoded(
            radiograph(tmp_path, **WHOLE, AcquisitionDate="20190305", AcquisitionTime="nonsense")
        )
    )
    assert (made.ContentDate, made.ContentTime) == ("20190305", "000000")
    made = read(encoded(radiograph(tmp_path)))
    assert (made.ContentDate, made.ContentTime) == ("19000101", "000000")


def test_stage_2_ids_are_kept_and_a_study_without_uid_gets_a_legal_one(tmp_path):
    path = radiograph(
        tmp_path, "ID_00b0e5a9f", StudyInstanceUID="", SeriesInstanceUID="", PatientID=""
    )
    made = read(encoded(path))
    [series] = made.ReferencedSeriesSequence
    with pydicom.config.disable_value_validation():
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == "ID_00b0e5a9f"
    assert made.StudyInstanceUID.is_valid
    assert series.SeriesInstanceUID.is_valid
    assert (
        len(
            {
                made.StudyInstanceUID,
                made.SeriesInstanceUID,
                series.SeriesInstanceUID,
                made.SOPInstanceUID,
            }
        )
        == 4
    )
    other = read(
        encoded(
            radiograph(
                tmp_path, "ID_052daf675", StudyInstanceUID="", SeriesInstanceUID="", PatientID=""
            )
        )
    )
    # Two radiographs without a study do not share one
    assert other.StudyInstanceUID != made.StudyInstanceUID


@pytest.mark.parametrize(
    "tags",
    [
        {
            "PatientSex": "U",
            "PatientBirthDate": "unknown",
            "StudyDate": "2020",
            "StudyTime": "noon",
        },
        {"FrameOfReferenceUID": ""},
        {"SOPClassUID": DIGITAL_X_RAY, "ImagerPixelSpacing": [0.1, 0.1]},
        # SIIM-ACR's, longer than is legal
        {"PixelSpacing": ["0.14300000000000002", "0.14300000000000002"]},
        {"NumberOfFrames": 1},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_odd_headers_do_not_prevent_an_object(tmp_path, tags):
    made = read(encoded(radiograph(tmp_path, **tags)))
    np.testing.assert_array_equal(made.pixel_array, MASK)
    assert (
        made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        == "1.2.276.3"
    )
    if "PixelSpacing" in tags:
        spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        assert spacing == pytest.approx([0.143, 0.143])


@pytest.mark.parametrize("age, legal", [("51", "051Y"), ("007M", "007M"), ("", "")])
def test_ages_without_a_unit_are_years(tmp_path, age, legal):
    assert read(encoded(radiograph(tmp_path, PatientAge=age))).PatientAge == legal


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Νίκος^Άννα"),
    ],
)
def test_names_in_any_character_set_are_preserved(tmp_path, charset, name):
    made = read(encoded(radiograph(tmp_path, SpecificCharacterSet=charset, PatientName=name)))
    assert str(made.PatientName) == name


@pytest.mark.parametrize(
    "tags, reason",
    [
        ({"SOPClassUID": None}, "no SOPClassUID"),
        ({"SOPClassUID": "1.2.3"}, "of a class unknown to DICOM"),
        ({"SOPClassUID": "Doe^Jane"}, "of a class unknown to DICOM"),
        ({"SOPClassUID": [CR_IMAGE, "Doe^Jane"]}, "of a class unknown to DICOM"),
    ],
)
def test_a_source_that_cannot_be_referred_to_is_refused_with_the_reason(tmp_path, tags, reason):
    with pytest.raises(dicom_seg.Refused, match=reason) as caught:
        encoded(radiograph(tmp_path, **{**WHOLE, **tags}))
    assert "Doe" not in str(caught.value)


def test_the_library_prints_nothing_about_odd_names_and_empty_masks(tmp_path, caplog, recwarn):
    path = radiograph(tmp_path, PatientName="Madonna", PatientBirthDate="in-1958")
    recwarn.clear()
    encoded(path, np.zeros_like(MASK))
    assert caplog.text == ""
    assert recwarn.list == []
