"""Safetensors files that no library writes."""

import json
import struct
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import LENGTHS, broken_json

DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", ""]


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header: Any, data: bytes, claimed: int | None = None) -> bytes:
    """Return a safetensors file, whose header may claim another length than it has."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


@st.composite
def broken_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the file after a change of its header or data that its writer would not make."""
    header, data = parts(content)
    how = draw(st.sampled_from(["json", "length", "entry", "values", "swap", "short"]))
    names = sorted(header)
    name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    if how == "json":
        header = draw(broken_json(header))
    elif how == "length":
        return joined(header, data, draw(st.sampled_from(LENGTHS)))
    elif how == "entry":
        entry = header[name]
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "both"]))
        begin, end = entry["data_offsets"]
        if key == "dtype":
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        elif key == "shape":
            shape = entry["shape"]
            entry["shape"] = draw(
                st.sampled_from([shape[::-1], [*shape, 1], shape[1:], [2**62, 4], [-1], [0]])
            )
        elif key == "data_offsets":
            entry["data_offsets"] = draw(
                st.sampled_from(
                    [[begin, end + 4], [end, begin], [0, 2**60], [-4, end], [0, len(data)]]
                )
            )
        else:  # another type of the same width, or fewer values that fill the same bytes
            entry.update(draw(st.sampled_from([{"dtype": "I32"}, {"dtype": "U32"}])))
    elif how == "values":
        value = draw(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xbf", b"\xff"]))
        begin, end = header[name]["data_offsets"]
        data = data[:begin] + (value * (end - begin))[: end - begin] + data[end:]
    elif how == "swap":
        header[name], header[other] = header[other], header[name]
    else:
        data = data[: draw(st.integers(0, len(data)))]
    return joined(header, data)
