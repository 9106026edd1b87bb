/* What makes a request of HTTP/2 well-formed (RFC 9113, section 8), in the place of libnghttp2's own checks.
 *
 * libnghttp2 refuses an :authority that is no host. On a Unix socket there is none to name, and gRPC clients put what
 * they like: grpc-java the socket's path. gRPC servers take any, and so does this one; nothing here looks at it. All
 * other rules are kept.
 */
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { REQUEST_METHOD = 1, REQUEST_SCHEME = 2, REQUEST_PATH = 4, REQUEST_AUTHORITY = 8 };
enum { FIELD_KEPT, FIELD_IGNORED, FIELD_MALFORMED };

/* A request that has said how long its body is; most do not. */
typedef struct h2_length {
  struct h2_length *next;
  int64_t left;
  int32_t stream;
} h2_length;

/* The header block that is being read: of a request, or its trailers. */
typedef struct {
  int pseudo, regular, trailers, malformed;
  int64_t length;
} h2_block;

static int is(const uint8_t *text, size_t length, const char *word) {
  return length == strlen(word) && memcmp(text, word, length) == 0;
}

static int is_connections(const uint8_t *name, size_t length) {
  return is(name, length, "connection") || is(name, length, "keep-alive") || is(name, length, "proxy-connection") ||
         is(name, length, "transfer-encoding") || is(name, length, "upgrade");
}

/* Section 8.3.1. Each comes once, and before all regular fields. */
static int check_pseudo(h2_block *block, const uint8_t *name, size_t name_length, const uint8_t *value, size_t length) {
  int found = 0, fine = 0;
  if (is(name, name_length, ":method")) {
    found = REQUEST_METHOD;
    fine = nghttp2_check_method(value, length);
  } else if (is(name, name_length, ":scheme")) {
    found = REQUEST_SCHEME;
    fine = length > 0;
  } else if (is(name, name_length, ":path")) {
    found = REQUEST_PATH;
    fine = length > 0 && nghttp2_check_path(value, length);
  } else if (is(name, name_length, ":authority")) {
    found = REQUEST_AUTHORITY;
    fine = nghttp2_check_header_value_rfc9113(value, length);
  }
  if (!found || !fine || block->trailers || block->regular || (block->pseudo & found)) return FIELD_MALFORMED;
  block->pseudo |= found;
  return FIELD_KEPT;
}

static int read_length(h2_block *block, const uint8_t *value, size_t length) {
  int64_t number = 0;
  if (length == 0 || length > 18 || block->length >= 0) return FIELD_MALFORMED;
  for (size_t at = 0; at < length; at++) {
    if (value[at] < '0' || value[at] > '9') return FIELD_MALFORMED;
    number = number * 10 + (value[at] - '0');
  }
  block->length = number;
  return FIELD_KEPT;
}

/* Section 8.2. Names with letters that no field has are malformed only when in upper case: others are passed over. */
static int check_field(h2_block *block, const uint8_t *name, size_t name_length, const uint8_t *value, size_t length) {
  if (name_length > 0 && name[0] == ':') return check_pseudo(block, name, name_length, value, length);
  block->regular = 1;
  if (!nghttp2_check_header_name(name, name_length)) {
    for (size_t at = 0; at < name_length; at++)
      if (name[at] >= 'A' && name[at] <= 'Z') return FIELD_MALFORMED;
    return FIELD_IGNORED;
  }
  if (!nghttp2_check_header_value_rfc9113(value, length)) return FIELD_IGNORED;
  if (is_connections(name, name_length)) return FIELD_MALFORMED;
  if (is(name, name_length, "te") && !(length == 8 && strncasecmp((const char *)value, "trailers", 8) == 0)) return FIELD_MALFORMED;
  if (is(name, name_length, "content-length") && !block->trailers) return read_length(block, value, length);
  return FIELD_KEPT;
}

/* Once the whole block is read. `end` says that nothing follows it: trailers must be the last. */
static int is_complete(const h2_block *block, int end) {
  const int needed = REQUEST_METHOD | REQUEST_SCHEME | REQUEST_PATH;
  if (block->malformed) return 0;
  if (block->trailers) return end;
  return (block->pseudo & needed) == needed && !(end && block->length > 0);
}

static int expect_length(h2_length **lengths, int32_t stream, int64_t length) {
  h2_length *one = malloc(sizeof *one);
  if (!one) return NGHTTP2_ERR_CALLBACK_FAILURE;
  one->stream = stream;
  one->left = length;
  one->next = *lengths;
  *lengths = one;
  return 0;
}

/* Whether the body may have these bytes more, and, at its `end`, has all that were announced (section 8.1.1). */
static int is_within_length(h2_length *lengths, int32_t stream, size_t more, int end) {
  for (h2_length *one = lengths; one; one = one->next)
    if (one->stream == stream) {
      one->left -= (int64_t)more;
      return one->left >= 0 && !(end && one->left > 0);
    }
  return 1;
}

static void forget_length(h2_length **lengths, int32_t stream) {
  for (h2_length **link = lengths; *link; link = &(*link)->next)
    if ((*link)->stream == stream) {
      h2_length *one = *link;
      *link = one->next;
      free(one);
      return;
    }
}
