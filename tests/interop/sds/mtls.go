package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// party is somebody with a stream of its own, who always has what came last.
type party struct {
	held  atomic.Pointer[holding]
	ready chan struct{}
	ended chan error
}

func join(ctx context.Context, sds client) *party {
	who := &party{ready: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		who.ended <- follow(ctx, sds, []string{"default", "ALL"}, func(response *discovery.DiscoveryResponse) (bool, error) {
			held, err := take(response.GetResources())
			if err != nil {
				return false, err
			}
			if who.held.Swap(held) == nil {
				close(who.ready)
			}
			return true, nil
		})
	}()
	return who
}

func (who *party) config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // by names of hosts; what counts follows
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			var chain []*x509.Certificate
			for _, each := range raw {
				certificate, err := x509.ParseCertificate(each)
				if err != nil {
					return err
				}
				chain = append(chain, certificate)
			}
			return who.held.Load().verify(chain[0], chain[1:])
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return who.held.Load().certificate, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return who.held.Load().certificate, nil
		},
	}
}

// mtls has two parties dial each other over and over, while what they hold rotates below them.
func mtls(ctx context.Context, sds client, args []string) error {
	flags := flag.NewFlagSet("mtls", flag.ExitOnError)
	seconds := flags.Int("seconds", 5, "keep dialling for this long")
	_ = flags.Parse(args)
	server, caller := join(ctx, sds), join(ctx, sds)
	for _, who := range []*party{server, caller} {
		select {
		case <-who.ready:
		case err := <-who.ended:
			return err
		}
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server.config())
	if err != nil {
		return err
	}
	defer listener.Close()
	go echo(listener)
	handshakes, serials, authorities := 0, map[string]bool{}, map[string]bool{}
	end := time.Now().Add(time.Duration(*seconds) * time.Second)
	for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		peer, err := dial(listener.Addr().String(), caller.config())
		if err != nil {
			return fmt.Errorf("handshake %d: %w", handshakes, err)
		}
		serials[peer.SerialNumber.Text(16)] = true
		authorities[fmt.Sprintf("%x", peer.AuthorityKeyId)] = true
		handshakes++
	}
	emit("mtls", map[string]any{"handshakes": handshakes, "svids": len(serials), "authorities": len(authorities)})
	return nil
}

func echo(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.CopyN(conn, conn, 4)
		}()
	}
}

// dial returns the certificate that the other end showed, once it has answered.
func dial(address string, config *tls.Config) (*x509.Certificate, error) {
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		return nil, err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}
