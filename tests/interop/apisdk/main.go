// A client on spire-api-sdk goes through the server's APIs as an operator on the admin socket and as an agent over
// mutual TLS. It prints a line for each step, `name: outcome`; the test knows what each of them is to be.
//
//	apisdk -socket PATH -address HOST:PORT
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const trustDomain = "example.org"

type client struct {
	ctx     context.Context
	admin   grpc.ClientConnInterface
	address string
}

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

func main() {
	socket := flag.String("socket", "", "path of the admin socket")
	address := flag.String("address", "", "host and port of the server")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	admin, err := grpc.NewClient("unix:"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	need("dial", err)
	defer admin.Close()
	c := &client{ctx: ctx, admin: admin, address: *address}
	c.entries()
	c.mint()
	c.bundles()
	c.relationships()
	c.agents()
	c.logger()
	c.authorities()
}
