/* The binding of libnghttp2 for transport/engine.py: one h2_connection is one HTTP/2 connection without any I/O.
 *
 * Nothing here calls into Python. What the peer did is appended to `events`, what is to be sent to `output`; Python
 * reads both after each call. An exception in a Python callback would turn into success in C, and each callback would
 * cost more than a whole frame does here.
 *
 * An event is four 32-bit words (kind, stream, value, length of the payload) and the payload. A header block, in events
 * and in arguments, is a sequence of (32-bit length of the name, 32-bit length of the value, name, value).
 */
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "requests.h"

enum { H2_HEADERS = 1, H2_DATA, H2_END, H2_CLOSED, H2_GOAWAY, H2_SENT, H2_SETTINGS, H2_PONG };
enum { H2_SLICE = 4096, H2_EVENTS_HIGH = 262144, H2_KEEP = 4096 };

typedef struct { uint8_t *bytes; size_t length, capacity; } h2_buffer;

/* What waits to be sent on a stream. Owned by the connection, from the first frame to the stream's close. */
typedef struct h2_outbound {
  struct h2_outbound *next, **link;
  h2_buffer body, trailers;
  size_t sent;
  int32_t stream;
  int ended;
} h2_outbound;

typedef struct {
  nghttp2_session *session;
  h2_buffer events, output, headers;
  h2_outbound *outbounds;
  h2_block block;
  h2_length *lengths;
  size_t header_limit, header_size;
  int server;
} h2_connection;

static int append(h2_buffer *buffer, const void *bytes, size_t length) {
  if (buffer->capacity - buffer->length < length) {
    size_t capacity = buffer->capacity ? buffer->capacity : 512;
    while (capacity - buffer->length < length) capacity *= 2;
    uint8_t *grown = realloc(buffer->bytes, capacity);
    if (!grown) return NGHTTP2_ERR_NOMEM;
    buffer->bytes = grown;
    buffer->capacity = capacity;
  }
  if (length) memcpy(buffer->bytes + buffer->length, bytes, length);
  buffer->length += length;
  return 0;
}

static void discard(h2_buffer *buffer) {
  free(buffer->bytes);
  memset(buffer, 0, sizeof *buffer);
}

/* Empties a buffer; an idle connection keeps little memory. */
static void reset(h2_buffer *buffer) {
  if (buffer->capacity > H2_KEEP) discard(buffer);
  buffer->length = 0;
}

static int emit(h2_connection *c, uint32_t kind, int32_t stream, uint32_t value, const void *payload, size_t length) {
  uint32_t head[4] = {kind, (uint32_t)stream, value, (uint32_t)length};
  if (append(&c->events, head, sizeof head) || append(&c->events, payload, length)) return NGHTTP2_ERR_CALLBACK_FAILURE;
  return 0;
}

static void forget(h2_outbound *out) {
  *out->link = out->next;
  if (out->next) out->next->link = out->link;
  discard(&out->body);
  discard(&out->trailers);
  free(out);
}

static h2_outbound *remember(h2_connection *c) {
  h2_outbound *out = calloc(1, sizeof *out);
  if (!out) return NULL;
  out->link = &c->outbounds;
  out->next = c->outbounds;
  if (out->next) out->next->link = &out->next;
  c->outbounds = out;
  return out;
}

/* Makes nghttp2's array of a header block; the strings stay where they are. The caller frees it. */
static nghttp2_nv *fields(const uint8_t *block, size_t length, size_t *count) {
  size_t at = 0, n = 0;
  uint32_t lengths[2];
  for (int pass = 0;; pass++) {
    nghttp2_nv *list = pass ? calloc(n ? n : 1, sizeof *list) : NULL;
    if (pass && !list) return NULL;
    for (at = 0, n = 0; at < length; n++) {
      if (length - at < sizeof lengths) return NULL;
      memcpy(lengths, block + at, sizeof lengths);
      at += sizeof lengths;
      if (length - at < (size_t)lengths[0] + lengths[1]) return NULL; /* seen in the first pass, before any list */
      if (pass) {
        list[n].name = (uint8_t *)block + at;
        list[n].namelen = lengths[0];
        list[n].value = (uint8_t *)block + at + lengths[0];
        list[n].valuelen = lengths[1];
      }
      at += (size_t)lengths[0] + lengths[1];
    }
    *count = n;
    if (pass) return list;
  }
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  h2_connection *c = user;
  (void)session;
  c->headers.length = 0;
  c->header_size = 0;
  c->block = (h2_block){.length = -1, .trailers = frame->headers.cat == NGHTTP2_HCAT_HEADERS};
  return 0;
}

/* A request that is malformed ends its stream only, and nobody hears of it (RFC 9113, section 8.1.1). */
static int refuse(nghttp2_session *session, int32_t stream) {
  int failed = nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream, NGHTTP2_PROTOCOL_ERROR);
  return failed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

/* A list over the limit resets its stream only. The 32 bytes are RFC 9113's overhead of a field (section 6.5.2). */
static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
  h2_connection *c = user;
  uint32_t lengths[2] = {(uint32_t)name_length, (uint32_t)value_length};
  (void)session, (void)frame, (void)flags;
  c->header_size += name_length + value_length + 32;
  if (c->header_size > c->header_limit) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  if (c->server) {
    int found = c->block.malformed ? FIELD_MALFORMED : check_field(&c->block, name, name_length, value, value_length);
    c->block.malformed = found == FIELD_MALFORMED;
    if (found != FIELD_KEPT) return 0;
  }
  if (append(&c->headers, lengths, sizeof lengths) || append(&c->headers, name, name_length) ||
      append(&c->headers, value, value_length))
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  h2_connection *c = user;
  int32_t stream = frame->hd.stream_id;
  int end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
  switch (frame->hd.type) {
  case NGHTTP2_HEADERS:
    if (c->server) {
      if (!is_complete(&c->block, end) || !is_within_length(c->lengths, stream, 0, end)) return refuse(session, stream);
      if (c->block.length >= 0 && !end && expect_length(&c->lengths, stream, c->block.length)) return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return emit(c, H2_HEADERS, stream, (uint32_t)end, c->headers.bytes, c->headers.length);
  case NGHTTP2_DATA:
    if (end && !is_within_length(c->lengths, stream, 0, end)) return refuse(session, stream);
    return end ? emit(c, H2_END, stream, 0, NULL, 0) : 0;
  case NGHTTP2_GOAWAY:
    return emit(c, H2_GOAWAY, 0, frame->goaway.error_code, frame->goaway.opaque_data, frame->goaway.opaque_data_len);
  case NGHTTP2_SETTINGS:
    return frame->hd.flags & NGHTTP2_FLAG_ACK ? 0 : emit(c, H2_SETTINGS, 0, 0, NULL, 0);
  case NGHTTP2_PING:
    return frame->hd.flags & NGHTTP2_FLAG_ACK ? emit(c, H2_PONG, 0, 0, NULL, 0) : 0;
  }
  return 0;
}

/* The connection's window is given back at once: a handler that does not read holds up its own stream only. */
static int on_data_chunk_recv(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *bytes,
                              size_t length, void *user) {
  h2_connection *c = user;
  (void)flags;
  if (nghttp2_session_consume_connection(session, length)) return NGHTTP2_ERR_CALLBACK_FAILURE;
  if (!is_within_length(c->lengths, stream, length, 0)) return refuse(session, stream);
  return emit(c, H2_DATA, stream, 0, bytes, length);
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user) {
  h2_connection *c = user;
  h2_outbound *out = nghttp2_session_get_stream_user_data(session, stream);
  if (out) {
    nghttp2_session_set_stream_user_data(session, stream, NULL);
    forget(out);
  }
  forget_length(&c->lengths, stream);
  return emit(c, H2_CLOSED, stream, error, NULL, 0);
}

/* A server that has answered before the client's end tells it to stop sending (RFC 9113, section 8.1). */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  h2_connection *c = user;
  int32_t stream = frame->hd.stream_id;
  if (!c->server || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
  if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) return 0;
  if (nghttp2_session_get_stream_remote_close(session, stream) == 0 &&
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream, NGHTTP2_NO_ERROR))
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  return 0;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *into, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
  h2_outbound *out = source->ptr;
  size_t length = out->body.length - out->sent, count = 0;
  if (length > room) length = room;
  if (length) memcpy(into, out->body.bytes + out->sent, length);
  out->sent += length;
  if (out->sent < out->body.length) return (ssize_t)length;
  reset(&out->body);
  out->sent = 0;
  if (!out->ended) {
    if (!length) return NGHTTP2_ERR_DEFERRED;
    return emit(user, H2_SENT, stream, 0, NULL, 0) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)length;
  }
  *flags |= NGHTTP2_DATA_FLAG_EOF;
  if (out->trailers.length) { /* they can be submitted here only, when all data has been framed */
    nghttp2_nv *list = fields(out->trailers.bytes, out->trailers.length, &count);
    int failed = !list || nghttp2_submit_trailer(session, stream, list, count);
    free(list);
    if (failed) return NGHTTP2_ERR_CALLBACK_FAILURE;
    *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
  }
  return (ssize_t)length;
}

void h2_free(h2_connection *c) {
  nghttp2_session_del(c->session);
  while (c->outbounds) forget(c->outbounds);
  while (c->lengths) forget_length(&c->lengths, c->lengths->stream);
  discard(&c->events);
  discard(&c->output);
  discard(&c->headers);
  free(c);
}

/* `header_limit` is the most bytes of one header list; `continuations` the most CONTINUATION frames after a HEADERS. */
h2_connection *h2_new(int server, size_t header_limit, size_t resets, size_t resets_per_second) {
  h2_connection *c = calloc(1, sizeof *c);
  nghttp2_session_callbacks *callbacks = NULL;
  nghttp2_option *option = NULL;
  if (!c) return NULL;
  c->server = server;
  c->header_limit = header_limit;
  if (!nghttp2_session_callbacks_new(&callbacks) && !nghttp2_option_new(&option)) {
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_http_messaging(option, server); /* requests.h has the rules */
    nghttp2_option_set_max_settings(option, 32);
    nghttp2_option_set_max_outbound_ack(option, 1000);
    nghttp2_option_set_stream_reset_rate_limit(option, resets, resets_per_second);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk_recv);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    if (server)
      nghttp2_session_server_new2(&c->session, callbacks, c, option);
    else
      nghttp2_session_client_new2(&c->session, callbacks, c, option);
  }
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_option_del(option);
  if (!c->session) {
    free(c);
    return NULL;
  }
  return c;
}

/* Takes bytes from the peer; returns how many were taken, or an error of nghttp2. Fewer than given are taken when
 * events pile up: small frames can unfold to large header lists, and the caller looks at those first. */
ssize_t h2_receive(h2_connection *c, const uint8_t *bytes, size_t length) {
  size_t taken = 0;
  while (taken < length && c->events.length < H2_EVENTS_HIGH) {
    size_t slice = length - taken < H2_SLICE ? length - taken : H2_SLICE;
    ssize_t n = nghttp2_session_mem_recv(c->session, bytes + taken, slice);
    if (n < 0) return n;
    taken += (size_t)n;
  }
  return (ssize_t)taken;
}

/* Frames what waits into `output`, up to about `most` bytes; returns 0 or an error of nghttp2. */
int h2_send(h2_connection *c, size_t most) {
  const uint8_t *frame;
  while (c->output.length < most) {
    ssize_t n = nghttp2_session_mem_send(c->session, &frame);
    if (n < 0) return (int)n;
    if (!n) break;
    if (append(&c->output, frame, (size_t)n)) return NGHTTP2_ERR_NOMEM;
  }
  return 0;
}

void h2_clear_events(h2_connection *c) { reset(&c->events); }
void h2_clear_output(h2_connection *c) { reset(&c->output); }

static int fill(h2_outbound *out, const uint8_t *body, size_t body_length, int end, const uint8_t *trailers,
                size_t trailers_length) {
  if (append(&out->body, body, body_length) || append(&out->trailers, trailers, trailers_length)) return NGHTTP2_ERR_NOMEM;
  out->ended = end;
  return 0;
}

/* Starts a response (server, `stream` from a H2_HEADERS event) or a request (client, `stream` 0). The arguments are
 * copied. Returns the stream, or an error of nghttp2; NGHTTP2_ERR_STREAM_CLOSED when there is no such stream. */
int32_t h2_start(h2_connection *c, int32_t stream, const uint8_t *headers, size_t headers_length, const uint8_t *body,
                 size_t body_length, int end, const uint8_t *trailers, size_t trailers_length) {
  nghttp2_data_provider provider = {.read_callback = read_body};
  h2_outbound *out = NULL;
  size_t count;
  int32_t result = NGHTTP2_ERR_NOMEM;
  if (stream && nghttp2_session_get_stream_local_close(c->session, stream)) return NGHTTP2_ERR_STREAM_CLOSED;
  nghttp2_nv *list = fields(headers, headers_length, &count);
  if (!list) return NGHTTP2_ERR_INVALID_ARGUMENT;
  if (!end || body_length || trailers_length) {
    out = remember(c);
    if (!out) goto done;
    if (fill(out, body, body_length, end, trailers, trailers_length)) goto failed;
  }
  provider.source.ptr = out;
  if (stream) {
    result = nghttp2_submit_response(c->session, stream, list, count, out ? &provider : NULL);
    if (result == 0) {
      result = stream;
      nghttp2_session_set_stream_user_data(c->session, stream, out);
    }
  } else {
    result = nghttp2_submit_request(c->session, NULL, list, count, out ? &provider : NULL, out);
  }
failed:
  if (out) {
    out->stream = result;
    if (result < 0) forget(out);
  }
done:
  free(list);
  return result;
}

/* Adds to the body of a stream that was started without an end. Returns 0, or NGHTTP2_ERR_STREAM_CLOSED. */
int h2_continue(h2_connection *c, int32_t stream, const uint8_t *body, size_t body_length, int end,
                const uint8_t *trailers, size_t trailers_length) {
  h2_outbound *out = nghttp2_session_get_stream_user_data(c->session, stream);
  if (!out) /* a request whose headers wait to be sent is no stream of nghttp2's yet */
    for (out = c->outbounds; out && out->stream != stream;) out = out->next;
  if (!out || out->ended) return NGHTTP2_ERR_STREAM_CLOSED;
  if (fill(out, body, body_length, end, trailers, trailers_length)) return NGHTTP2_ERR_NOMEM;
  nghttp2_session_resume_data(c->session, stream); /* an error: it was not waiting, so it will come by itself */
  return 0;
}
