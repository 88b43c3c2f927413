/* WebSocket echo load: C connections, each with N messages of S bytes in flight, for T seconds.
 *
 *   wsload HOST PORT PATH CONNECTIONS IN_FLIGHT SIZE SECONDS
 *
 * Prints {"messages", "seconds", "p50_ms", "p99_ms"}. Messages are binary with a zero masking key, so that neither side spends
 * time on masking; replies that came together are answered with one write. Latency is from the write of a message to its reply.
 * Every reply's header is checked; anything unexpected ends the run with exit status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE (256 * 1024)
#define BUCKETS_PER_OCTAVE 64
#define BUCKETS (64 * BUCKETS_PER_OCTAVE)

struct connection {
    int fd;
    uint64_t to_write, written;   /* bytes of the endless run of equal frames */
    uint64_t received;            /* bytes of the endless run of equal replies */
    uint64_t sent, answered;      /* messages */
    uint64_t *sent_at;            /* ring of in_flight times, nanoseconds */
};

static size_t in_flight, size, frame, reply;
static unsigned char *frames;     /* in_flight + 1 equal frames */
static unsigned char reply_head[10];
static size_t reply_head_size;
static uint64_t histogram[BUCKETS], messages;

static void fail(const char *what)
{
    fprintf(stderr, "wsload: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Logarithmic buckets, 64 to an octave: within 1.6 % of the true value. */
static size_t bucket(uint64_t value)
{
    if (value < BUCKETS_PER_OCTAVE)
        return value;
    int octave = 63 - __builtin_clzll(value);
    return (size_t)(octave - 5) * BUCKETS_PER_OCTAVE + ((value >> (octave - 6)) & (BUCKETS_PER_OCTAVE - 1));
}

static double percentile(double share)
{
    uint64_t wanted = (uint64_t)(share * (double)messages), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted) {
            if (i < BUCKETS_PER_OCTAVE)
                return (double)i / 1e6;
            size_t octave = i / BUCKETS_PER_OCTAVE + 5;
            return (double)((BUCKETS_PER_OCTAVE + i % BUCKETS_PER_OCTAVE) << (octave - 6)) / 1e6;
        }
    }
    return 0;
}

static size_t write_length(unsigned char *at, size_t length, unsigned char mask)
{
    if (length < 126) {
        at[0] = (unsigned char)length | mask;
        return 1;
    }
    int bytes = length < 65536 ? 2 : 8;
    at[0] = (unsigned char)((bytes == 2 ? 126 : 127) | mask);
    for (int i = 0; i < bytes; i++)
        at[1 + i] = (unsigned char)(length >> (8 * (bytes - 1 - i)));
    return 1 + (size_t)bytes;
}

static void prepare(void)
{
    unsigned char head[14] = {0x82};
    size_t head_size = 1 + write_length(head + 1, size, 0x80) + 4;
    reply_head[0] = 0x82;
    reply_head_size = 1 + write_length(reply_head + 1, size, 0);
    frame = head_size + size;
    reply = reply_head_size + size;
    frames = malloc(frame * (in_flight + 1));
    for (size_t i = 0; i <= in_flight; i++) {
        memcpy(frames + i * frame, head, head_size);
        memset(frames + i * frame + head_size, 'm', size);
    }
}

static void open_connection(struct connection *c, const char *host, int port, const char *path)
{
    char text[8192];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;
    size_t got = 0;
    inet_pton(AF_INET, host, &to.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to))
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int length = snprintf(text, sizeof text,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                          path, host, port);
    if (write(c->fd, text, (size_t)length) != length)
        fail("handshake");
    do {
        ssize_t n = read(c->fd, text + got, sizeof text - 1 - got);
        if (n <= 0)
            fail("handshake");
        text[got += (size_t)n] = 0;
    } while (!strstr(text, "\r\n\r\n"));
    errno = 0;
    if (strncmp(text, "HTTP/1.1 101", 12))
        fail("no upgrade");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->sent_at = calloc(in_flight, sizeof *c->sent_at);
}

static void put(struct connection *c, size_t count, uint64_t at)
{
    for (size_t i = 0; i < count; i++)
        c->sent_at[c->sent++ % in_flight] = at;
    c->to_write += count * frame;
}

/* Write what is due; frames are all alike, so the place within the run is a place within `frames`. */
static int flush(struct connection *c)
{
    while (c->written < c->to_write) {
        size_t offset = c->written % frame, left = c->to_write - c->written, room = frame * (in_flight + 1) - offset;
        ssize_t n = write(c->fd, frames + offset, left < room ? left : room);
        if (n < 0)
            return errno == EAGAIN ? 0 : (fail("write"), 0);
        c->written += (uint64_t)n;
    }
    return 1;
}

static void check(const struct connection *c, const unsigned char *data, size_t count)
{
    size_t skip = c->received % reply;
    for (size_t at = skip ? reply - skip : 0; at < count; at += reply)
        for (size_t i = 0; i < reply_head_size && at + i < count; i++)
            if (data[at + i] != reply_head[i]) {
                errno = 0;
                fail("a reply's header");
            }
}

static void receive(struct connection *c, unsigned char *data, int counting)
{
    ssize_t n = read(c->fd, data, READ_SIZE);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        fail("closed");
    check(c, data, (size_t)n);
    c->received += (uint64_t)n;
    uint64_t complete = c->received / reply - c->answered, at = now();
    for (uint64_t i = 0; i < complete; i++) {
        uint64_t took = at - c->sent_at[c->answered++ % in_flight];
        if (counting) {
            histogram[bucket(took)]++;
            messages++;
        }
    }
    put(c, complete, at);
}

int main(int argc, char **argv)
{
    if (argc != 8)
        fail("usage: wsload HOST PORT PATH CONNECTIONS IN_FLIGHT SIZE SECONDS");
    size_t count = strtoul(argv[4], NULL, 10);
    in_flight = strtoul(argv[5], NULL, 10);
    size = strtoul(argv[6], NULL, 10);
    double seconds = strtod(argv[7], NULL);
    struct connection *connections = calloc(count, sizeof *connections);
    unsigned char *data = malloc(READ_SIZE);
    struct epoll_event events[256];
    int epoll = epoll_create1(0);
    prepare();
    for (size_t i = 0; i < count; i++)
        open_connection(&connections[i], argv[1], atoi(argv[2]), argv[3]);
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event);
        put(&connections[i], in_flight, now());
        if (!flush(&connections[i])) {
            event.events |= EPOLLOUT;
            epoll_ctl(epoll, EPOLL_CTL_MOD, connections[i].fd, &event);
        }
    }
    uint64_t warm = now() + 200000000u, start = 0, end = 0, at;
    while ((at = now()) < end || !end) {
        if (!start && at >= warm) {
            start = at;
            end = at + (uint64_t)(seconds * 1e9);
        }
        int ready = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(c, data, start != 0);
            int done = flush(c), waiting = (events[i].events & EPOLLOUT) != 0;
            if (done == waiting || !done) {
                struct epoll_event event = {.events = done ? EPOLLIN : EPOLLIN | EPOLLOUT, .data.ptr = c};
                epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
            }
        }
    }
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"p50_ms\": %.6f, \"p99_ms\": %.6f}\n", (unsigned long long)messages,
           (double)(at - start) / 1e9, percentile(0.5), percentile(0.99));
    return 0;
}
