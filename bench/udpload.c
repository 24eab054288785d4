/* Datagrams at a steady rate, and a count of those that arrive: light enough at 64 bytes to leave the
 * processors to the tunnel.
 *
 *     udpload receive PORT                       prints how many have come so far, whenever that changed
 *     udpload send ADDRESS PORT SIZE RATE SECONDS    prints how many it sent, and the seconds it took
 *
 * SIZE is the UDP payload in bytes; RATE is in datagrams per second, 0 for as many as there can be.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

enum {
    SIZE_MAX_BYTES = 65507,
    BATCH = 64,
    SOCKET_BUFFER = 8 << 20,
    REPORT_MICROSECONDS = 20000,
    /* A sender that is ahead of its rate sleeps this long, and then sends what has become due. */
    NAP_NANOSECONDS = 100000,
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static struct sockaddr_in endpoint(const char *address, const char *port)
{
    struct sockaddr_in result = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

    if (inet_pton(AF_INET, address, &result.sin_addr) != 1)
        errx(2, "%s is not an IPv4 address", address);
    return result;
}

static void receive(const char *port)
{
    static uint8_t data[BATCH][2048];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    struct sockaddr_in here = endpoint("0.0.0.0", port);
    struct timeval report = {.tv_usec = REPORT_MICROSECONDS};
    int udp = socket(AF_INET, SOCK_DGRAM, 0), size = SOCKET_BUFFER;
    unsigned long long total = 0, reported = 0;
    double reported_at = now();

    if (udp < 0 || bind(udp, (struct sockaddr *)&here, sizeof here) < 0)
        err(1, "UDP port %s", port);
    setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &report, sizeof report);
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], sizeof data[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    for (;;) {
        int count = recvmmsg(udp, messages, BATCH, MSG_WAITFORONE, NULL);

        if (count > 0)
            total += (unsigned)count;
        if (total != reported && now() - reported_at > REPORT_MICROSECONDS * 1e-6) {
            printf("%llu\n", total);
            fflush(stdout);
            reported = total;
            reported_at = now();
        }
    }
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = NAP_NANOSECONDS}, NULL);
}

static void send_at_rate(const struct sockaddr_in *there, size_t size, double rate, double seconds)
{
    static uint8_t data[SIZE_MAX_BYTES];
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    unsigned long long sent = 0;
    double begin, elapsed;

    if (udp < 0 || connect(udp, (const struct sockaddr *)there, sizeof *there) < 0)
        err(1, "connecting");
    prctl(PR_SET_TIMERSLACK, 1UL);
    begin = now();
    while ((elapsed = now() - begin) < seconds) {
        if (rate > 0 && (double)sent >= rate * elapsed) {
            nap();
            continue;
        }
        /* A queue that is full is loss like any other: the datagram counts as sent. */
        send(udp, data, size, 0);
        sent++;
    }
    printf("%llu %.6f\n", sent, elapsed);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "receive") == 0) {
        receive(argv[2]);
    } else if (argc == 7 && strcmp(argv[1], "send") == 0) {
        struct sockaddr_in there = endpoint(argv[2], argv[3]);
        unsigned long size = strtoul(argv[4], NULL, 10);

        if (size > SIZE_MAX_BYTES)
            errx(2, "a datagram holds at most %d bytes", SIZE_MAX_BYTES);
        send_at_rate(&there, size, atof(argv[5]), atof(argv[6]));
    } else {
        errx(2, "usage: udpload receive PORT | send ADDRESS PORT SIZE RATE SECONDS");
    }
    return 0;
}
