"""The constants of Darwin's kernel that dtun uses, to be compared with Apple's headers (xnu, bsd/sys and bsd/net).

Those that Python's modules have are here, too: on Linux, where the tests run, they have other values.
"""

from typing import Final

# sys/socket.h
AF_INET: Final = 2
AF_ROUTE: Final = 17
AF_LINK: Final = 18
AF_INET6: Final = 30
AF_SYSTEM: Final = 32
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
SOL_SOCKET: Final = 0xFFFF
SO_USELOOPBACK: Final = 0x40
SO_RCVBUF: Final = 0x1002
SO_SNDBUF: Final = 0x1001

FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
VERSIONS: Final = {AF_INET: 4, AF_INET6: 6}

# sys/kern_control.h, sys/sys_domain.h, net/if_utun.h
SYSPROTO_CONTROL: Final = 2
UTUN_CONTROL_NAME: Final = "com.apple.net.utun_control"
UTUN_OPT_IFNAME: Final = 2
UTUN_OPT_MAX_PENDING_PACKETS: Final = 16

# net/if.h, sys/sockio.h, netinet6/in6_var.h: direction, size of the argument, group letter, number.
CTLIOCGINFO: Final = 0xC0644E03
SIOCSIFFLAGS: Final = 0x80206910
SIOCGIFFLAGS: Final = 0xC0206911
SIOCSIFMTU: Final = 0x80206934
SIOCGIFMTU: Final = 0xC0206933
SIOCAIFADDR: Final = 0x8040691A
SIOCDIFADDR: Final = 0x80206919
SIOCAIFADDR_IN6: Final = 0x8080691A
SIOCDIFADDR_IN6: Final = 0x81206919

IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_POINTOPOINT: Final = 0x10
IFF_RUNNING: Final = 0x40
IN6_IFF_NODAD: Final = 0x20
ND6_INFINITE_LIFETIME: Final = 0xFFFFFFFF

# net/route.h
RTM_VERSION: Final = 5
RTM_ADD: Final = 1
RTM_DELETE: Final = 2
RTM_CHANGE: Final = 3
RTM_GET: Final = 4
RTM_MISS: Final = 7
RTM_NEWADDR: Final = 0xC
RTM_DELADDR: Final = 0xD
RTM_IFINFO: Final = 0xE

RTA_DST: Final = 0x1
RTA_GATEWAY: Final = 0x2
RTA_NETMASK: Final = 0x4
RTA_GENMASK: Final = 0x8
RTA_IFP: Final = 0x10
RTA_IFA: Final = 0x20
RTA_AUTHOR: Final = 0x40
RTA_BRD: Final = 0x80
RTA_ORDER: Final = (
    RTA_DST,
    RTA_GATEWAY,
    RTA_NETMASK,
    RTA_GENMASK,
    RTA_IFP,
    RTA_IFA,
    RTA_AUTHOR,
    RTA_BRD,
)

RTF_UP: Final = 0x1
RTF_GATEWAY: Final = 0x2
RTF_HOST: Final = 0x4
RTF_REJECT: Final = 0x8
RTF_DONE: Final = 0x40
RTF_STATIC: Final = 0x800
RTF_BLACKHOLE: Final = 0x1000
RTF_PROTO1: Final = 0x8000
RTF_WASCLONED: Final = 0x20000
RTF_IFSCOPE: Final = 0x1000000

RTF_OURS: Final = RTF_PROTO1
"""The flag of dtun's own routes; netstat(1) shows it as "1".

The other two have a meaning: RTF_PROTO2 is RTF_ANNOUNCE, and RTF_PROTO3 is RTPRF_OURS, the kernel's mark of cached
routes that expire. A look-up clears that one, and in_rtqkill deletes the routes that still have it.
"""

# sys/sysctl.h
CTL_NET: Final = 4
NET_RT_DUMP: Final = 1
NET_RT_IFLIST: Final = 3

# time.h: the first goes on while the computer sleeps, the second stands still.
CLOCK_MONOTONIC_RAW: Final = 4
CLOCK_UPTIME_RAW: Final = 8
