"""What can be told of an image file without decoding it."""

from io import BytesIO

from PIL import Image

# CV_IO_MAX_IMAGE_PIXELS in modules/imgcodecs/src/loadsave.cpp; above it, OpenCV fails with an assertion.
OPENCV_MAX_PIXELS = 2**30


def is_truncated_jpeg(content: bytes) -> bool:
    """Whether the bytes are a JPEG whose image data ends without an end-of-image marker.

    Thumbnails inside of segments and whatever follows the picture do not confuse it. A JPEG
    that ends before its image data counts too. Other formats: False.
    """
    if content[:2] != b"\xff\xd8":
        return False
    at = 2
    while content[at : at + 1] == b"\xff":
        marker = content[at + 1 : at + 2]
        if marker == b"\xff":  # fill byte
            at += 1
        elif marker == b"\xda":  # start of scan: in image data, 0xff is never followed by 0xd9
            return content.find(b"\xff\xd9", at) < 0
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return True


def stored_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels that an image file states, whatever their size; None if it states none."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(content)) as image:  # reads the header alone
            return image.size
    except (OSError, SyntaxError, ValueError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def too_large_for_opencv(content: bytes) -> str:
    """Say that an image file has more pixels than OpenCV reads; empty if it has not."""
    width, height = stored_size(content) or (0, 0)
    if width * height <= OPENCV_MAX_PIXELS:
        return ""
    return (
        f"it is {width}x{height} pixels (width x height), more than the {OPENCV_MAX_PIXELS} that OpenCV "
        "reads: cut it into pieces, or scale it down"
    )
