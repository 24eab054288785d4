/* The plainest tunnel there is: packets go between a TUN device and a UDP socket one at a time, as they
 * are. What it carries is what any tunnel with one system call per packet and direction could carry at
 * best, if encryption cost nothing.
 *
 *     forwarder DEVICE LOCAL REMOTE PORT
 *
 * DEVICE exists already (`ip tuntap add`); both ends use the same UDP port.
 */

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PACKET_MAX = 65536,
    /* Packets that one direction may have in a row while the other waits. */
    TURN = 32,
    SOCKET_BUFFER = 4 << 20,
};

static int open_tun(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (tun < 0)
        err(1, "/dev/net/tun");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(tun, TUNSETIFF, &request) < 0)
        err(1, "%s", name);
    return tun;
}

static struct sockaddr_in endpoint(const char *address, const char *port)
{
    struct sockaddr_in result = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

    if (inet_pton(AF_INET, address, &result.sin_addr) != 1)
        errx(1, "%s is not an IPv4 address", address);
    return result;
}

static int open_udp(const char *local, const char *remote, const char *port)
{
    struct sockaddr_in here = endpoint(local, port), there = endpoint(remote, port);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), size = SOCKET_BUFFER;

    if (udp < 0 || bind(udp, (struct sockaddr *)&here, sizeof here) < 0 ||
        connect(udp, (struct sockaddr *)&there, sizeof there) < 0)
        err(1, "UDP %s to %s", local, remote);
    setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(udp, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    return udp;
}

/* Move one packet out of the device; false if there was none. A send waits for room in the socket. */
static bool tun_to_udp(int tun, int udp, void *packet)
{
    ssize_t size = read(tun, packet, PACKET_MAX);

    if (size > 0)
        send(udp, packet, (size_t)size, 0);
    else if (size < 0 && errno != EAGAIN)
        err(1, "reading the device");
    return size > 0;
}

/* Move one packet into the device; false if there was none. */
static bool udp_to_tun(int udp, int tun, void *packet)
{
    ssize_t size = recv(udp, packet, PACKET_MAX, MSG_DONTWAIT);

    /* An ICMP error (the other end is not there yet) is reported here, and a packet that the kernel
     * does not like below: neither is a reason to stop. */
    return size > 0 && write(tun, packet, (size_t)size) != 0;
}

int main(int argc, char **argv)
{
    static uint8_t packet[PACKET_MAX];

    if (argc != 5)
        errx(2, "usage: forwarder DEVICE LOCAL REMOTE PORT");
    struct pollfd ready[] = {
        {.fd = open_tun(argv[1]), .events = POLLIN},
        {.fd = open_udp(argv[2], argv[3], argv[4]), .events = POLLIN},
    };
    const int tun = ready[0].fd, udp = ready[1].fd;

    for (;;) {
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            err(1, "poll");
        for (int count = 0; count < TURN && tun_to_udp(tun, udp, packet); count++)
            ;
        for (int count = 0; count < TURN && udp_to_tun(udp, tun, packet); count++)
            ;
    }
}
