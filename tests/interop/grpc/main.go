// One end of gRPC's published interoperability cases, as grpc-go has them: `client` runs cases against a server,
// `server` is the server that the cases are made for. TLS without a look at the certificates is all that is asked
// for here; who may talk to whom is tested elsewhere.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testing "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// No case takes longer than this.
const patience = 20 * time.Second

// The largest message that a server takes is its prefix and four MiB; one byte more is refused.
const largest = 4 << 20

type clientCase func(context.Context, *grpc.ClientConn, testing.TestServiceClient)

// A case that fails ends the process: that is how grpc-go's own are written.
var cases = map[string]clientCase{
	"empty_unary":                 plain(interop.DoEmptyUnaryCall),
	"large_unary":                 plain(interop.DoLargeUnaryCall),
	"client_streaming":            plain(interop.DoClientStreaming),
	"server_streaming":            plain(interop.DoServerStreaming),
	"ping_pong":                   plain(interop.DoPingPong),
	"empty_stream":                plain(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  plain(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          plain(interop.DoCancelAfterBegin),
	"cancel_after_first_response": plain(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     plain(interop.DoStatusCodeAndMessage),
	"special_status_message":      plain(interop.DoSpecialStatusMessage),
	"custom_metadata":             plain(interop.DoCustomMetadata),
	"unimplemented_method": func(ctx context.Context, connection *grpc.ClientConn, _ testing.TestServiceClient) {
		interop.DoUnimplementedMethod(ctx, connection)
	},
	"unimplemented_service": func(ctx context.Context, connection *grpc.ClientConn, _ testing.TestServiceClient) {
		interop.DoUnimplementedService(ctx, testing.NewUnimplementedServiceClient(connection))
	},
	"largest_message": largestMessage,
}

func plain(run func(context.Context, testing.TestServiceClient, ...grpc.CallOption)) clientCase {
	return func(ctx context.Context, _ *grpc.ClientConn, client testing.TestServiceClient) { run(ctx, client) }
}

// A message of the largest size passes, one that is larger is refused, and the connection is good for more.
func largestMessage(ctx context.Context, _ *grpc.ClientConn, client testing.TestServiceClient) {
	// The field and the payload within it each have a tag and a length.
	const around = 10
	fits := &testing.SimpleRequest{Payload: &testing.Payload{Body: make([]byte, largest-around)}}
	if _, err := client.UnaryCall(ctx, fits); err != nil {
		log.Fatalf("a message of the largest size: %v", err)
	}
	over := &testing.SimpleRequest{Payload: &testing.Payload{Body: make([]byte, largest)}}
	if _, err := client.UnaryCall(ctx, over); status.Code(err) != codes.ResourceExhausted {
		log.Fatalf("a message that is too large: %v", err)
	}
	interop.DoEmptyUnaryCall(ctx, client)
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("client or server?")
	}
	switch os.Args[1] {
	case "client":
		client(os.Args[2:])
	case "server":
		server(os.Args[2:])
	default:
		log.Fatalf("client or server, not %q", os.Args[1])
	}
}

// client prints the name of each case that has passed.
func client(arguments []string) {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	target := flags.String("target", "", "unix:/path or host:port")
	secure := flags.Bool("tls", false, "over TLS")
	names := flags.String("cases", "", "which ones, with commas between them")
	_ = flags.Parse(arguments)
	transport := insecure.NewCredentials()
	if *secure {
		transport = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	connection, err := grpc.NewClient(*target, grpc.WithTransportCredentials(transport))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	for _, name := range strings.Split(*names, ",") {
		run, known := cases[name]
		if !known {
			log.Fatalf("there is no case %q", name)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		run(ctx, connection, testing.NewTestServiceClient(connection))
		cancel()
		fmt.Println(name)
	}
}

// server prints the port that it has for TLS, and ends with its standard input.
func server(arguments []string) {
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	path := flags.String("socket", "", "where to listen without TLS")
	certificate := flags.String("certificate", "", "PEM")
	key := flags.String("key", "", "PEM")
	_ = flags.Parse(arguments)
	local, err := net.Listen("unix", *path)
	if err != nil {
		log.Fatal(err)
	}
	remote, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	secure, err := credentials.NewServerTLSFromFile(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	serve(local)
	serve(remote, grpc.Creds(secure))
	fmt.Println(remote.Addr().(*net.TCPAddr).Port)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func serve(listener net.Listener, options ...grpc.ServerOption) {
	made := grpc.NewServer(options...)
	testing.RegisterTestServiceServer(made, interop.NewTestServer())
	go func() { log.Fatal(made.Serve(listener)) }()
}
