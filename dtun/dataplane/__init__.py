"""The hot loop: packets between a TUN device and records on UDP sockets. Knows no config and no netlink."""
