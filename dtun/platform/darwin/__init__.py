"""macOS: TUN devices by utun, addresses by ioctl, routes by routing sockets. No commands, nothing to install."""
