// Drives a Workload API with go-spiffe, as a Go workload would, and prints one JSON line per observation.
//
//	gospiffe -socket unix:///path watch -updates 3
//	gospiffe -socket unix:///path mtls -seconds 10
//	gospiffe -socket unix:///path jwt -audience a
//	gospiffe -socket unix:///path bundles
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func emit(event string, fields map[string]any) {
	fields["event"] = event
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func main() {
	socket := flag.String("socket", "", "address of the Workload API")
	limit := flag.Duration("timeout", 2*time.Minute, "give up after this long")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if flag.NArg() == 0 {
		fail(errors.New("name one of watch, mtls, jwt, bundles"))
	}
	commands := map[string]func(context.Context, string, []string) error{
		"watch": watch, "mtls": mtls, "jwt": jwt, "bundles": bundles,
	}
	command, known := commands[flag.Arg(0)]
	if !known {
		fail(fmt.Errorf("unknown command %q", flag.Arg(0)))
	}
	if err := command(ctx, *socket, flag.Args()[1:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	emit("error", map[string]any{"message": err.Error()})
	os.Exit(1)
}

func describe(svid *x509svid.SVID) map[string]any {
	leaf := svid.Certificates[0]
	return map[string]any{
		"id":         svid.ID.String(),
		"hint":       svid.Hint,
		"serial":     hex.EncodeToString(leaf.SerialNumber.Bytes()),
		"not_before": leaf.NotBefore.Unix(),
		"not_after":  leaf.NotAfter.Unix(),
		"seen":       time.Now().UnixMilli(),
		"chain":      len(svid.Certificates),
	}
}

type watcher struct {
	left int
	done chan error
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	if w.left == 0 {
		return
	}
	svid := update.DefaultSVID()
	fields := describe(svid)
	fields["identities"] = len(update.SVIDs)
	bundle, err := update.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err == nil {
		_, _, err = x509svid.Verify(svid.Certificates, bundle)
	}
	if err != nil {
		w.left = 0
		w.done <- err
		return
	}
	emit("update", fields)
	if w.left--; w.left == 0 {
		w.done <- nil
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	emit("watch-error", map[string]any{"message": err.Error()})
}

func watch(ctx context.Context, socket string, args []string) error {
	flags := flag.NewFlagSet("watch", flag.ExitOnError)
	updates := flags.Int("updates", 1, "stop after as many updates")
	_ = flags.Parse(args)
	w := &watcher{left: *updates, done: make(chan error, 1)}
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- workloadapi.WatchX509Context(watching, w, workloadapi.WithAddr(socket)) }()
	defer stop()
	select {
	case err := <-w.done:
		return err
	case err := <-ended:
		return fmt.Errorf("the watch ended: %w", err)
	}
}

// mtls keeps a TLS server and dials it over and over, both from one X509Source, while SVIDs rotate below them.
func mtls(ctx context.Context, socket string, args []string) error {
	flags := flag.NewFlagSet("mtls", flag.ExitOnError)
	seconds := flags.Int("seconds", 5, "keep dialling for this long")
	_ = flags.Parse(args)
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	authorizer := tlsconfig.AuthorizeID(svid.ID)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0",
		spiffetls.MTLSServerWithSource(authorizer, source))
	if err != nil {
		return err
	}
	defer listener.Close()
	go serve(listener)
	handshakes, serials := 0, map[string]bool{}
	for end := time.Now().Add(time.Duration(*seconds) * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := echo(ctx, listener.Addr().String(), authorizer, source); err != nil {
			return fmt.Errorf("handshake %d: %w", handshakes, err)
		}
		current, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		serials[current.Certificates[0].SerialNumber.String()] = true
		handshakes++
	}
	emit("mtls", map[string]any{"id": svid.ID.String(), "handshakes": handshakes, "svids": len(serials)})
	return nil
}

func serve(listener net.Listener) {
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

func echo(ctx context.Context, address string, authorizer tlsconfig.Authorizer, source *workloadapi.X509Source) error {
	conn, err := spiffetls.DialWithMode(ctx, "tcp", address, spiffetls.MTLSClientWithSource(authorizer, source))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	answer := make([]byte, 4)
	_, err = io.ReadFull(conn, answer)
	return err
}

func jwt(ctx context.Context, socket string, args []string) error {
	flags := flag.NewFlagSet("jwt", flag.ExitOnError)
	audience := flags.String("audience", "audience", "audience asked for")
	_ = flags.Parse(args)
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(socket))
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: *audience})
	if err != nil {
		return err
	}
	remote, err := client.ValidateJWTSVID(ctx, svid.Marshal(), *audience)
	if err != nil {
		return err
	}
	set, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	local, err := jwtsvid.ParseAndValidate(svid.Marshal(), set, []string{*audience})
	if err != nil {
		return err
	}
	if remote.ID != svid.ID || local.ID != svid.ID {
		return fmt.Errorf("identities differ: %s, %s, %s", svid.ID, remote.ID, local.ID)
	}
	_, wrong := client.ValidateJWTSVID(ctx, svid.Marshal(), "another-audience")
	emit("jwt", map[string]any{"id": svid.ID.String(), "expiry": svid.Expiry.Unix(), "audience": svid.Audience,
		"wrong_audience": fmt.Sprint(wrong)})
	return nil
}

func bundles(ctx context.Context, socket string, _ []string) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(socket))
	if err != nil {
		return err
	}
	defer client.Close()
	x509, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	jwts, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	for _, bundle := range x509.Bundles() {
		var keys []string
		if own, has := jwts.Get(spiffeid.RequireTrustDomainFromString(bundle.TrustDomain().Name())); has {
			for id := range own.JWTAuthorities() {
				keys = append(keys, id)
			}
		}
		emit("bundle", map[string]any{"trust_domain": bundle.TrustDomain().Name(),
			"x509_authorities": len(bundle.X509Authorities()), "jwt_keys": keys})
	}
	return nil
}
