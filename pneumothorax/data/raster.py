"""One PNG or JPEG file: whether we can use it, and its grey image.

Pillow judges the header before memory is taken for pixels, OpenCV decodes. libpng checks
sums and lengths of a PNG; libjpeg only warns of damage, which simplejpeg makes an error. A
file is what its content says, whatever its suffix. Values are grey as stored: no colour
profile or gamma is applied, transparency is ignored.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pneumothorax import dicom, frames, greyscale, pixels
from pneumothorax.dicom import Rejected

PNG, JPEG = "libpng", "libjpeg-turbo"  # the decoders
SUFFIXES = (".png", ".jpg", ".jpeg")

_DECODERS = {b"\x89PNG\r\n\x1a\n": PNG, b"\xff\xd8\xff": JPEG}  # by the first bytes
# Turned as EXIF says, palettes looked up, at the file's own depth, without alpha.
_AS_SHOWN = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH


def read(path: Path | str, *, image_id: str | None = None) -> dicom.Radiograph:
    """Read and decode one PNG or JPEG file; its id is the name without the suffix.

    Colour becomes grey; a constant image becomes zeros. Raises Rejected.

    Args:
        image_id: the id, where a table names the image that the file shows.
    """
    path = Path(path)
    name = _image_id(path) if image_id is None else image_id
    values, decoder = read_values(path)
    grey, colour = _grey(values)
    del values  # up to 400 MB
    image, grey_range = pixels.zeros_if_constant(greyscale.to_8_bits(grey, 8 * grey.itemsize))
    height, width = image.shape
    header = dicom.Header(name, patient_id="", view="", sex="", age="", height=height, width=width)
    return dicom.Radiograph(header, image, decoder, colour, grey_range)


def image_id(path: Path) -> str:
    """The id of a file whose header is usable. Raises Rejected."""
    name = _image_id(path)
    _open(path)
    return name


def read_values(path: Path) -> tuple[np.ndarray, str]:
    """What a file stores, and its decoder: PNG or JPEG. Raises Rejected.

    Returns (H, W), or (H, W, 3) in BGR order for colour, palettes and alpha; uint8 or
    uint16. Values of 1, 2 and 4 bits are scaled to 0..255.
    """
    data, decoder = _open(path)
    if decoder == JPEG:
        _check_jpeg(data)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_SHOWN)
    except cv2.error as error:
        raise Rejected("TOO_LARGE", "the image does not fit into memory") from error
    if values is None:
        raise Rejected("TRUNCATED", "the image is cut short or damaged")
    return values, decoder


def _image_id(path: Path) -> str:
    if not dicom.is_image_id(path.stem):
        found = f"a file name of {len(path.stem)} characters that cannot be an image id"
        raise Rejected("BAD_ID", f"{found}: use {dicom.ID_RULE}")
    return path.stem


def _open(path: Path) -> tuple[bytes, str]:
    """The bytes of a file with a usable header, and its decoder."""
    data = dicom.read_regular_file(path)
    decoder = next((name for start, name in _DECODERS.items() if data.startswith(start)), None)
    if decoder is None:
        found = "the content is neither a PNG nor a JPEG image" if data else "the file is empty"
        raise Rejected("NOT_AN_IMAGE", found)
    _check_header(data)
    return data, decoder


def _check_header(data: bytes) -> None:
    """Refuse what must not, or cannot, be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are refused below
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                (width, height), mode = image.size, image.mode
                # Only of a PNG: a JPEG with several images (MPO) is a photo and its preview.
                frames = getattr(image, "n_frames", 1) if image.format == "PNG" else 1
    except Image.DecompressionBombError as error:
        message = f"more than {dicom.MAX_PIXELS} pixels, the most that are decoded"
        raise Rejected("TOO_LARGE", message) from error
    except Exception as error:  # a broken file can make the library raise anything
        raise Rejected("TRUNCATED", "the header is cut short or damaged") from error
    if width * height > dicom.MAX_PIXELS:
        raise Rejected(
            "TOO_LARGE", f"{width} x {height} pixels; at most {dicom.MAX_PIXELS} are decoded"
        )
    if mode == "CMYK":
        raise Rejected("NOT_AN_IMAGE", "colours for print (CMYK): not a radiograph")
    if frames > 1:
        raise Rejected("NOT_AN_IMAGE", f"an animation of {frames} frames: not a radiograph")


def _check_jpeg(data: bytes) -> None:
    """Refuse a JPEG that libjpeg would complete with grey or noise, and only warn."""
    if not frames.is_whole_jpeg(data):
        raise Rejected("TRUNCATED", "the JPEG has no end-of-image marker: cut short")
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        if "extraneous bytes before marker 0xd9" not in str(error):  # behind the image: harmless
            message = f"the JPEG is damaged ({dicom.short_error(error)})"
            raise Rejected("TRUNCATED", message) from error


def _grey(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """((H, W) grey values, whether they had colour) of the array of `read_values`."""
    if values.ndim == 2:
        return values, False
    grey = cv2.extractChannel(values, 0)
    if all(
        cv2.norm(grey, cv2.extractChannel(values, channel), cv2.NORM_INF) == 0 for channel in (1, 2)
    ):
        return grey, False
    return cv2.cvtColor(values, cv2.COLOR_BGR2GRAY), True
