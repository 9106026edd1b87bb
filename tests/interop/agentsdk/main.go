// A client on spire-api-sdk and go-spiffe goes through the agent's APIs for identities of others: as a delegate on the
// admin socket, and as a broker over mutual TLS. It prints a line for each step, `name: outcome`; the test knows what
// each of them is to be.
//
//	agentsdk -admin PATH
//	agentsdk -workload PATH -broker PATH -broker-tcp HOST:PORT
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// say prints a step's outcome: the values, or the status of a call that failed.
func say(step string, err error, values ...any) {
	if err != nil {
		reason := status.Convert(err)
		fmt.Printf("%s: %s: %s\n", step, reason.Code(), reason.Message())
		return
	}
	fmt.Printf("%s:", step)
	for _, value := range values {
		fmt.Printf(" %v", value)
	}
	fmt.Println()
}

// need ends the program when a step that others rest on has failed.
func need(step string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", step, err)
	}
}

// first is the first response of a stream.
func first[T any](stream grpc.ServerStreamingClient[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

func main() {
	admin := flag.String("admin", "", "path of the admin socket")
	workload := flag.String("workload", "", "path of the Workload API's socket")
	broker := flag.String("broker", "", "path of the broker endpoint's socket")
	brokerTCP := flag.String("broker-tcp", "", "host and port of the broker endpoint")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if *admin != "" {
		conn, err := grpc.NewClient("unix:"+*admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
		need("dial", err)
		defer conn.Close()
		delegate(ctx, conn)
		return
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+*workload)))
	need("own SVID", err)
	defer source.Close()
	brokers(ctx, source, *broker, *brokerTCP)
}
