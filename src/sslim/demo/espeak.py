"""A voice in a process of its own: reads requests on stdin, writes samples to stdout.

Run as a script by `sslim.demo.speech`, never imported by it. espeak-ng keeps global state (the phase of
a voice's flutter, the random numbers of its noise, the locale), so a fresh process is what makes the
same requests give the same samples; and a crash in the library becomes an exit code.

    python espeak.py LIBRARY DATA < requests.json > samples

Requests: a JSON list of {"voice", "text", "rate", "pitch", "range"}. Answer: the sampling rate, then for
each request the number of samples and the samples; little-endian int32 and int16.

Only the standard library is used, so that it starts in milliseconds. The functions called are those of
espeak-ng's public header, speak_lib.h.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from typing import Any

# AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when the callback has seen everything.
SYNCHRONOUS = 2
DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a bad data path is an answer, not the end
UTF8 = 1
CHARACTER_POSITION = 1
RATE, PITCH, RANGE = 1, 3, 4

Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p
)


def main(library_path: str, data_path: str) -> None:
    """Answers the requests on stdin; exits with a line on stderr where one cannot be met."""
    library = ctypes.CDLL(library_path)
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data_path.encode(), DO_NOT_EXIT)
    if rate <= 0:
        sys.exit(f"espeak-ng cannot read its data in {data_path}")
    if hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    chunks: list[bytes] = []

    @Callback  # type: ignore[untyped-decorator]
    def collect(samples: Any, count: int, _events: object) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    output = sys.stdout.buffer
    output.write(struct.pack("<i", rate))
    for request in json.load(sys.stdin):
        chunks.clear()
        if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
            sys.exit(f"espeak-ng has no voice {request['voice']!r}")
        for parameter, name in ((RATE, "rate"), (PITCH, "pitch"), (RANGE, "range")):
            library.espeak_SetParameter(parameter, int(request[name]), 0)
        text = request["text"].encode()
        code = library.espeak_Synth(text, len(text) + 1, 0, CHARACTER_POSITION, 0, UTF8, None, None)
        library.espeak_Synchronize()
        if code != 0 or not chunks:
            sys.exit(f"espeak-ng made no sound of {request['text']!r} in {request['voice']!r}")
        samples = b"".join(chunks)
        output.write(struct.pack("<i", len(samples) // 2))
        output.write(samples)
    output.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
