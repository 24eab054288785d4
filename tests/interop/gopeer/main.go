// gopeer speaks the protocol of the original Go dtun on pion's DTLS library, as a client and as a server,
// so that the tests can see whether dtun gets on with it. It carries real packets, by a TUN device of its own.
//
//	gopeer -role server -addr :4433 -key secret -id server
//	gopeer -role client -addr 192.0.2.1:4433 -key secret -id demo -peernet 10.0.0.0/16
//
// One line on standard output tells the test about each change (see report). Routes are the test's business.
// Exit status: 0 when the session ended or the time was up, 1 when something went wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pion/dtls/v2"
)

// What is said instead of a network when the client has none behind it.
const noNetwork = "empty"

// The server's and the client's address in 10.86.0.0/16: .1 and .2 for the first client, then .3 and .4, ...
var firstAddress = net.IPv4(10, 86, 0, 1).To4()

type options struct {
	role, addr, key, id, peernet, tun string
	mtu                               int
	handshake                         time.Duration
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	var o options
	flag.StringVar(&o.role, "role", "client", "client or server")
	flag.StringVar(&o.addr, "addr", "127.0.0.1:443", "address and port to connect to, or to listen on")
	flag.StringVar(&o.key, "key", "", "pre-shared key: the bytes of this string")
	flag.StringVar(&o.id, "id", "dtun", "client: PSK identity; server: identity hint")
	flag.StringVar(&o.peernet, "peernet", "", "client: the network behind it, none if empty; sent as it is")
	flag.StringVar(&o.tun, "tun", "gopeer%d", "name of the TUN device")
	flag.IntVar(&o.mtu, "mtu", 1500, "MTU of the TUN device")
	flag.DurationVar(&o.handshake, "handshake", 10*time.Second, "longest handshake; a server takes one at a time")
	seconds := flag.Int("seconds", 60, "end after this time, whatever happens")
	flag.Parse()

	// A forgotten peer must not outlive its test by long.
	time.AfterFunc(time.Duration(*seconds)*time.Second, func() {
		report("TIMEOUT SECONDS=%d", *seconds)
		os.Exit(0)
	})

	var err error
	switch o.role {
	case "client":
		err = runClient(o)
	case "server":
		err = runServer(o)
	default:
		err = fmt.Errorf("-role %s: client or server", o.role)
	}
	if err != nil {
		log.Fatal(err)
	}
}

var reportLock sync.Mutex

// report prints an event and its variables, such as UP TUN=gopeer0 LOCAL_IP=10.86.0.2 PEER_IP=10.86.0.1.
func report(format string, values ...interface{}) {
	reportLock.Lock()
	defer reportLock.Unlock()
	fmt.Printf(format+"\n", values...)
}

func (o options) dtlsConfig() *dtls.Config {
	return &dtls.Config{
		PSK:                  func([]byte) ([]byte, error) { return []byte(o.key), nil },
		PSKIdentityHint:      []byte(o.id),
		CipherSuites:         []dtls.CipherSuiteID{dtls.TLS_PSK_WITH_AES_128_CCM_8},
		ExtendedMasterSecret: dtls.RequireExtendedMasterSecret,
		ConnectContextMaker: func() (context.Context, func()) {
			return context.WithTimeout(context.Background(), o.handshake)
		},
	}
}

func runClient(o options) error {
	raddr, err := net.ResolveUDPAddr("udp", o.addr)
	if err != nil {
		return err
	}
	conn, err := dtls.Dial("udp", raddr, o.dtlsConfig())
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	defer conn.Close()

	// First record, from the server: our address, then its own.
	record := make([]byte, 65536)
	n, err := conn.Read(record)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	if n < 8 {
		return fmt.Errorf("addresses: a record of %d bytes, wanted 8", n)
	}
	local, peer := net.IP(record[0:4]), net.IP(record[4:8])

	tun, name, err := openTUN(o.tun, local, peer, o.mtu)
	if err != nil {
		return err
	}
	defer tun.Close()
	network := o.peernet
	if network == "" {
		network = noNetwork
	}
	if _, err := conn.Write([]byte(network)); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	report("UP TUN=%s LOCAL_IP=%s PEER_IP=%s", name, local, peer)
	err = carry(conn, tun)
	report("DOWN TUN=%s REASON=%q", name, err.Error())
	return nil
}

func runServer(o options) error {
	laddr, err := net.ResolveUDPAddr("udp", o.addr)
	if err != nil {
		return err
	}
	listener, err := dtls.Listen("udp", laddr, o.dtlsConfig())
	if err != nil {
		return err
	}
	report("LISTENING ADDR=%s", listener.Addr())
	for clients := 0; ; {
		// Shakes hands, too: a failed handshake is no reason to stop.
		conn, err := listener.Accept()
		if err != nil {
			report("REFUSED REASON=%q", err.Error())
			continue
		}
		local, peer := pair(clients)
		clients++
		go func() {
			defer conn.Close()
			if err := serve(o, conn.(*dtls.Conn), local, peer); err != nil {
				report("REFUSED REASON=%q", err.Error())
			}
		}()
	}
}

// pair returns the server's and the client's address for the nth client, counted from 0.
func pair(n int) (local, peer net.IP) {
	last := int(firstAddress[3]) + 2*n
	local = net.IPv4(10, 86, byte(last>>8), byte(last)).To4()
	peer = net.IPv4(10, 86, byte((last+1)>>8), byte(last+1)).To4()
	return local, peer
}

func serve(o options, conn *dtls.Conn, local, peer net.IP) error {
	id := string(conn.ConnectionState().IdentityHint)
	if _, err := conn.Write(append(append([]byte{}, peer...), local...)); err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	record := make([]byte, 65536)
	n, err := conn.Read(record)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	network := string(record[:n])
	if network != noNetwork {
		if _, _, err := net.ParseCIDR(network); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	tun, name, err := openTUN(o.tun, local, peer, o.mtu)
	if err != nil {
		return err
	}
	defer tun.Close()
	report("UP TUN=%s LOCAL_IP=%s PEER_IP=%s ID=%q NETWORK=%s", name, local, peer, id, network)
	err = carry(conn, tun)
	report("DOWN TUN=%s REASON=%q", name, err.Error())
	return nil
}

// carry copies packets both ways until one side ends, and says why it did. As with the original, a record
// that the TUN device does not take ends the session.
func carry(conn *dtls.Conn, tun *os.File) error {
	ended := make(chan error, 2)
	pump := func(what string, from io.Reader, to io.Writer) {
		packet := make([]byte, 65536)
		for {
			n, err := from.Read(packet)
			if err == nil {
				_, err = to.Write(packet[:n])
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by the peer")
			}
			if err != nil {
				ended <- fmt.Errorf("%s: %w", what, err)
				return
			}
		}
	}
	go pump("from the tunnel", conn, tun)
	go pump("to the tunnel", tun, conn)
	return <-ended
}
