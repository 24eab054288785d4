package main

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// ifreq is struct ifreq of netdevice(7): a name of 16 bytes and a union of 24.
type ifreq struct {
	name  [syscall.IFNAMSIZ]byte
	union [24]byte
}

func (r *ifreq) setUint16(value uint16) { *(*uint16)(unsafe.Pointer(&r.union[0])) = value }
func (r *ifreq) setInt32(value int32)   { *(*int32)(unsafe.Pointer(&r.union[0])) = value }

// setIPv4 makes the union a sockaddr_in: family 2, port 2, address 4, zeros.
func (r *ifreq) setIPv4(address net.IP) {
	r.union = [24]byte{}
	r.setUint16(syscall.AF_INET)
	copy(r.union[4:8], address.To4())
}

func ioctl(fd int, what string, request uintptr, r *ifreq) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(r)))
	if errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// openTUN makes a TUN device and brings it up with a point-to-point address pair. A %d in the name is
// replaced by the first free number; the name that it became is returned.
func openTUN(name string, local, peer net.IP, mtu int) (*os.File, string, error) {
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("/dev/net/tun: %w", err)
	}
	var r ifreq
	copy(r.name[:len(r.name)-1], name)
	r.setUint16(syscall.IFF_TUN | syscall.IFF_NO_PI)
	if err := ioctl(fd, "TUNSETIFF", syscall.TUNSETIFF, &r); err != nil {
		syscall.Close(fd)
		return nil, "", err
	}
	if err := configure(r, local, peer, mtu); err != nil {
		syscall.Close(fd)
		return nil, "", err
	}
	// Non-blocking, so that Close ends a Read in another goroutine.
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, "", err
	}
	length := 0
	for r.name[length] != 0 {
		length++
	}
	return os.NewFile(uintptr(fd), "tun"), string(r.name[:length]), nil
}

func configure(r ifreq, local, peer net.IP, mtu int) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	for _, step := range []struct {
		what    string
		request uintptr
		fill    func()
	}{
		{"SIOCSIFMTU", syscall.SIOCSIFMTU, func() { r.setInt32(int32(mtu)) }},
		{"SIOCSIFADDR", syscall.SIOCSIFADDR, func() { r.setIPv4(local) }},
		{"SIOCSIFDSTADDR", syscall.SIOCSIFDSTADDR, func() { r.setIPv4(peer) }},
		{"SIOCSIFNETMASK", syscall.SIOCSIFNETMASK, func() { r.setIPv4(net.IPv4bcast) }},
		{"SIOCSIFFLAGS", syscall.SIOCSIFFLAGS, func() {
			r.setUint16(syscall.IFF_UP | syscall.IFF_RUNNING | syscall.IFF_POINTOPOINT | syscall.IFF_NOARP)
		}},
	} {
		step.fill()
		if err := ioctl(fd, step.what, step.request, &r); err != nil {
			return err
		}
	}
	return nil
}
