"""What can be told of a JPEG without decoding it."""


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
