"""A mask as a DICOM Segmentation object (PS3.3 A.51) that refers to its radiograph.

Such an object belongs to the patient's study, so this is the one output that holds
identifiers: highdicom copies the patient's and the study's, as the standard requires.
References are spelled as in the source, because viewers compare text; this includes the
`ID_...` of SIIM-ACR's stage 2, which are not legal UIDs. A study or series without a UID
gets one made from the image's. Equal input gives equal bytes: UIDs are hashes, and dates
are those of the source.
"""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DA, TM

from pneumothorax import dicom
from pneumothorax.errors import INSTALL_EXTRA
from pneumothorax.inference.overlay import COLOUR_BGR

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

NAME = "pneumothorax-segmentation"
# CID 7150; older editions of the standard say "... Altered Structure"
CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
PROPERTY = Code("36118008", "SCT", "Pneumothorax")
SERIES_NUMBER = 1000  # after those of the modalities
UTF_8 = "ISO_IR 192"
PHANTOMS = "Networks trained on phantoms: not for patients"
NO_DATE, NO_TIME = "19000101", "000000"  # the standard requires one where the source has none

# A frame of reference needs all of these (A.51.5). Most radiographs lack some: then the
# pixels are the reference.
_GEOMETRY = (
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
)
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "Modality",
)


class Refused(Exception):
    """No object can refer to this source; the message quotes no value of its header."""


def missing() -> str:
    """What to install before objects can be written, "" where nothing is missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        return f"needs highdicom ({error}): {INSTALL_EXTRA}"
    return ""


def encode(
    path: Path, mask: np.ndarray, *, run: str, version: str, identity: str, phantoms: bool = False
) -> bytes:
    """The bytes of a BINARY segmentation: one segment in one frame, which may be empty.

    Args:
        path: the radiograph.
        mask: (H, W) uint8 of 0 and 1, at the radiograph's size.
        version: of the networks and thresholds, at most 64 characters.
        identity: what the object is made from; another identity gives other UIDs.
        phantoms: whether the networks were trained on phantoms, which the object then says.

    Raises Refused.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")  # they quote odd values, names included
        source = _header(path)
        try:
            _complete(source)
            made = _segmentation(source, mask, run=run, version=version, identity=identity)
            if phantoms:
                made.SeriesDescription = made.ContentDescription = PHANTOMS
            file = io.BytesIO()
            made.save_as(file, enforce_file_format=True)
        except Exception as error:  # highdicom raises many kinds
            reason = f"{_class(source)} ({dicom.short_error(error)})"
            raise Refused(f"highdicom cannot refer to this file, {reason}") from error
    return file.getvalue()


def _header(path: Path) -> pydicom.Dataset:
    try:
        source = dicom.whole_header(path)
    except Exception as error:  # in a part that prediction does not read
        raise Refused(f"the whole header cannot be read ({dicom.short_error(error)})") from error
    if not source.get("SOPInstanceUID"):
        source.SOPInstanceUID = source.file_meta.get("MediaStorageSOPInstanceUID")
    if not source.SOPInstanceUID:
        raise Refused("the file has no SOPInstanceUID to refer to")
    if not source.get("SOPClassUID"):
        raise Refused("the file has no SOPClassUID to refer to")
    return source


def _class(source: pydicom.Dataset) -> str:
    """The class by its name in the standard, never by the text in the header."""
    uid = str(source.SOPClassUID)
    name = UID(uid).name
    return "of a class unknown to DICOM" if name == uid else f"of class {name}"


def _complete(source: pydicom.Dataset) -> None:
    """Add the elements, possibly empty, that highdicom needs; drop illegal values."""
    for keyword in _MAY_BE_EMPTY:
        if source.get(keyword) is None:
            setattr(source, keyword, "")
    for keyword, legal in (
        ("PatientBirthDate", DA),
        ("StudyDate", DA),
        ("StudyTime", TM),
        ("PatientSex", _sex),
    ):
        if not _is_legal(source.get(keyword), legal):
            setattr(source, keyword, "")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not source.get(keyword):
            setattr(
                source, keyword, generate_uid(entropy_srcs=[keyword, str(source.SOPInstanceUID)])
            )
    if re.fullmatch(r"\d{1,3}", source.get("PatientAge") or ""):
        source.PatientAge = f"{int(source.PatientAge):03}Y"  # SIIM-ACR's are bare numbers
    if any(source.get(keyword) in (None, "") for keyword in _GEOMETRY):
        source.pop("FrameOfReferenceUID", None)


def _segmentation(
    source: pydicom.Dataset, mask: np.ndarray, *, run: str, version: str, identity: str
) -> pydicom.Dataset:
    from highdicom.seg import Segmentation

    def uid(what: str) -> str:
        return generate_uid(entropy_srcs=[what, identity, np.packbits(mask).tobytes().hex()])

    date, time = _when(source)
    made = Segmentation(
        [source],
        mask,
        "BINARY",
        [_segment(run, version)],
        series_instance_uid=uid("series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid("instance"),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=version,
        device_serial_number=version,
        content_date=date,
        content_time=time,
        content_label="PNEUMOTHORAX",
        content_description="Research software, not a medical device",
        content_creator_name="",
        series_description="Predicted pneumothorax (research)",
        specific_character_set=UTF_8,
        omit_empty_frames=False,
    )
    made.PatientOrientation = source.get("PatientOrientation", "")
    # highdicom takes these from the clock or at random
    del made.InstanceCreationDate, made.InstanceCreationTime
    for equipment in made.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid("dimensions")
    return made


def _segment(run: str, version: str) -> "SegmentDescription":
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    blue, green, red = COLOUR_BGR
    algorithm = AlgorithmIdentificationSequence(
        name=NAME,
        family=codes.cid7162.ArtificialIntelligence,
        version=version,
        parameters={"run": run},
    )
    return SegmentDescription(
        segment_number=1,
        segment_label=PROPERTY.meaning,
        segmented_property_category=CATEGORY,
        segmented_property_type=PROPERTY,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_rgb(red, green, blue),
    )


def _when(source: pydicom.Dataset) -> tuple[str, str]:
    """Date and time of the source, so that repeated calls give equal bytes.

    Those of its content, else its acquisition, series or study.
    """
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = source.get(f"{kind}Date"), source.get(f"{kind}Time")
        if date and _is_legal(date, DA):
            return str(date), str(time) if time and _is_legal(time, TM) else NO_TIME
    return NO_DATE, NO_TIME


def _sex(text: str) -> str:
    if text not in ("M", "F", "O"):
        raise ValueError
    return text


def _is_legal(value: Any, convert: Callable[[Any], object]) -> bool:
    try:
        return value in (None, "") or convert(value) is not None
    except (ValueError, TypeError):
        return False
