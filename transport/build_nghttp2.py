"""Compiles transport/nghttp2.c, with requests.h, against the system's libnghttp2: `python -m transport.build_nghttp2`.

Makes transport/_nghttp2*.so in place. SPIRE_ASAN=1 compiles it with AddressSanitizer, for ci/asan.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

DECLARATIONS = """
typedef struct nghttp2_session nghttp2_session;
typedef struct { int32_t settings_id; uint32_t value; } nghttp2_settings_entry;
int nghttp2_submit_settings(nghttp2_session *, uint8_t, const nghttp2_settings_entry *, size_t);
int nghttp2_session_set_local_window_size(nghttp2_session *, uint8_t, int32_t, int32_t);
int nghttp2_session_consume_stream(nghttp2_session *, int32_t, size_t);
int nghttp2_submit_rst_stream(nghttp2_session *, uint8_t, int32_t, uint32_t);
int nghttp2_submit_shutdown_notice(nghttp2_session *);
int nghttp2_submit_goaway(nghttp2_session *, uint8_t, int32_t, uint32_t, const uint8_t *, size_t);
int nghttp2_submit_ping(nghttp2_session *, uint8_t, const uint8_t *);
int nghttp2_session_terminate_session(nghttp2_session *, uint32_t);
int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *);
size_t nghttp2_session_get_outbound_queue_size(nghttp2_session *);
int nghttp2_session_want_read(nghttp2_session *);
int nghttp2_session_want_write(nghttp2_session *);
const char *nghttp2_strerror(int);

typedef struct { uint8_t *bytes; size_t length; ...; } h2_buffer;
typedef struct { nghttp2_session *session; h2_buffer events; h2_buffer output; ...; } h2_connection;
h2_connection *h2_new(int server, size_t header_limit, size_t resets, size_t resets_per_second);
void h2_free(h2_connection *);
ssize_t h2_receive(h2_connection *, const uint8_t *bytes, size_t length);
int h2_send(h2_connection *, size_t most);
void h2_clear_events(h2_connection *);
void h2_clear_output(h2_connection *);
int32_t h2_start(h2_connection *, int32_t stream, const uint8_t *headers, size_t headers_length, const uint8_t *body,
                 size_t body_length, int end, const uint8_t *trailers, size_t trailers_length);
int h2_continue(h2_connection *, int32_t stream, const uint8_t *body, size_t body_length, int end,
                const uint8_t *trailers, size_t trailers_length);
"""


def build() -> str:
    """Compiles the extension module and returns its path.

    It is made in a folder of its own, where setuptools finds no packages to wonder about, and moved into place: a
    process that runs keeps the one it has loaded.
    """
    # Without what a debugger needs, which names the scratch folder: the same sources give the same bytes.
    compile_arguments = ["-O2", "-g0", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter"]
    link_arguments: list[str] = []
    if os.environ.get("SPIRE_ASAN") == "1":
        compile_arguments += ["-g", "-fsanitize=address", "-fno-omit-frame-pointer"]
        link_arguments.append("-fsanitize=address")
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(
        "_nghttp2",
        (HERE / "nghttp2.c").read_text(),
        include_dirs=[str(HERE)],
        libraries=["nghttp2"],
        extra_compile_args=compile_arguments,
        extra_link_args=link_arguments,
    )
    with tempfile.TemporaryDirectory(dir=HERE, prefix="build") as scratch, contextlib.chdir(scratch):
        made = Path(str(ffi.compile(tmpdir=scratch)))
        return str(made.replace(HERE / made.name))


if __name__ == "__main__":
    print(build())
