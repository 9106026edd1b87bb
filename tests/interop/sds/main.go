// Drives a Secret Discovery Service as a client on go-control-plane's published types would, and prints one JSON line
// per observation.
//
//	sds -socket /path watch -updates 3 default ROOTCA
//	sds -socket /path delta -updates 3 default ROOTCA
//	sds -socket /path mtls -seconds 10
//	sds -socket /path reject default
//	sds descriptors
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const typeURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

type client = secret.SecretDiscoveryServiceClient

func main() {
	socket := flag.String("socket", "", "path of the Workload API's socket")
	limit := flag.Duration("timeout", 2*time.Minute, "give up after this long")
	flag.Parse()
	if flag.NArg() == 0 {
		fail(errors.New("name one of watch, delta, mtls, reject, descriptors"))
	}
	commands := map[string]func(context.Context, client, []string) error{
		"watch": watch, "delta": delta, "mtls": mtls, "reject": reject, "descriptors": descriptors,
	}
	command, known := commands[flag.Arg(0)]
	if !known {
		fail(fmt.Errorf("unknown command %q", flag.Arg(0)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	defer conn.Close()
	if err := command(ctx, secret.NewSecretDiscoveryServiceClient(conn), flag.Args()[1:]); err != nil {
		fail(err)
	}
}

func emit(event string, fields map[string]any) {
	fields["event"] = event
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func fail(err error) {
	emit("error", map[string]any{"message": err.Error()})
	os.Exit(1)
}

func options(name string, args []string) (updates int, names []string) {
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.IntVar(&updates, "updates", 1, "stop after as many updates")
	_ = flags.Parse(args)
	return updates, flags.Args()
}

// watch takes responses in, one after the other, each with everything that was asked for.
func watch(ctx context.Context, sds client, args []string) error {
	updates, names := options("watch", args)
	return follow(ctx, sds, names, func(response *discovery.DiscoveryResponse) (bool, error) {
		held, err := take(response.GetResources())
		if err != nil {
			return false, err
		}
		fields, err := held.describe()
		if err != nil {
			return false, err
		}
		fields["version"] = response.GetVersionInfo()
		emit("update", fields)
		updates--
		return updates > 0, nil
	})
}

// follow opens a stream and acknowledges each response, until the handler says that it has enough.
func follow(ctx context.Context, sds client, names []string,
	handle func(*discovery.DiscoveryResponse) (bool, error)) error {
	stream, err := sds.StreamSecrets(ctx)
	if err != nil {
		return err
	}
	request := &discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names}
	for {
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // Recv tells why it ended
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		more, err := handle(response)
		if err != nil || !more {
			return err
		}
		request.VersionInfo, request.ResponseNonce = response.GetVersionInfo(), response.GetNonce()
	}
}

// delta takes in what changes, and keeps the rest.
func delta(ctx context.Context, sds client, args []string) error {
	updates, names := options("delta", args)
	stream, err := sds.DeltaSecrets(ctx)
	if err != nil {
		return err
	}
	request := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names}
	held := &holding{}
	for ; updates > 0; updates-- {
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // Recv tells why it ended
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		var came []string
		for _, each := range response.GetResources() {
			if err := held.put(each.GetResource()); err != nil {
				return err
			}
			came = append(came, each.GetName())
		}
		fields, err := held.describe()
		if err != nil {
			return err
		}
		fields["came"] = came
		fields["removed"] = response.GetRemovedResources()
		emit("update", fields)
		request = &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: response.GetNonce()}
	}
	return nil
}

// reject takes nothing of the first response, and all of the next, which comes when something has changed.
func reject(ctx context.Context, sds client, names []string) error {
	stream, err := sds.StreamSecrets(ctx)
	if err != nil {
		return err
	}
	request := &discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names}
	for _, outcome := range []string{"rejected", "accepted"} {
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // Recv tells why it ended
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		emit(outcome, map[string]any{"version": response.GetVersionInfo(), "seen": time.Now().UnixMilli()})
		request.ResponseNonce = response.GetNonce()
		request.ErrorDetail = &status.Status{Code: 13, Message: "not today"}
	}
	return nil
}
