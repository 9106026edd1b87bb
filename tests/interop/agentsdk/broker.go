package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func reference(message proto.Message) *broker.WorkloadReference {
	packed, err := anypb.New(message)
	need("reference", err)
	return &broker.WorkloadReference{Reference: packed}
}

func dial(target string, config *tls.Config) broker.APIClient {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	need("dial", err)
	return broker.NewAPIClient(conn)
}

func brokers(ctx context.Context, source *workloadapi.X509Source, path, address string) {
	plain := ctx
	ctx = metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
	mutual := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeAny())
	local, remote := dial("unix:"+path, mutual), dial(address, mutual)
	self := reference(&broker.WorkloadPIDReference{Pid: int32(os.Getpid())})
	object := reference(&broker.KubernetesObjectReference{Uid: "x"})

	svids := func(ctx context.Context, step string, client broker.APIClient, workload *broker.WorkloadReference) {
		response, err := first(client.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: workload}))
		say(step, err, brokerSVIDs(response)...)
	}
	svids(plain, "without the header", local, self)
	svids(metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true"), "with the header twice", local, self)
	svids(ctx, "x509 by pid", local, self)
	svids(ctx, "x509 by pid over TCP", remote, self)
	svids(ctx, "x509 without a reference", local, nil)
	svids(ctx, "x509 by an empty reference", local, &broker.WorkloadReference{Reference: &anypb.Any{}})
	svids(ctx, "x509 by an object", local, object)
	svids(ctx, "x509 by an object over TCP", remote, object)
	svids(ctx, "x509 by what is not allowed", local, reference(&broker.KubernetesObjectKey{}))

	bundles, err := first(local.SubscribeToX509Bundles(ctx, &broker.SubscribeToX509BundlesRequest{Reference: self}))
	say("x509 bundles", err, counts(bundles.GetBundles(), certificates)...)
	_, err = first(local.SubscribeToX509Bundles(ctx, &broker.SubscribeToX509BundlesRequest{}))
	say("x509 bundles without a reference", err)
	documents, err := first(local.SubscribeToJWTBundles(ctx, &broker.SubscribeToJWTBundlesRequest{Reference: self}))
	say("jwt bundles", err, counts(documents.GetBundles(), keys)...)
	_, err = first(remote.SubscribeToJWTBundles(ctx, &broker.SubscribeToJWTBundlesRequest{Reference: self}))
	say("jwt bundles over TCP", err)

	tokens := func(step string, request *broker.FetchJWTSVIDRequest) {
		response, err := local.FetchJWTSVID(ctx, request)
		var values []any
		for _, svid := range response.GetSvids() {
			values = append(values, svid.SpiffeId, svid.Hint, svid.Svid != "")
		}
		say(step, err, values...)
	}
	tokens("jwt by pid", &broker.FetchJWTSVIDRequest{Reference: self, Audience: []string{"one"}})
	tokens("jwt without audience", &broker.FetchJWTSVIDRequest{Reference: self})
	tokens("jwt without a reference", &broker.FetchJWTSVIDRequest{Audience: []string{"one"}})

	for _, target := range []string{"unix:" + path, address} {
		stranger := dial(target, tlsconfig.TLSClientConfig(source, tlsconfig.AuthorizeAny()))
		_, err = first(stranger.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: self}))
		fmt.Println("a stranger:", status.Code(err))
	}
	_, err = first(local.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{
		Reference: reference(&broker.WorkloadPIDReference{Pid: noProcess}),
	}))
	fmt.Printf("x509 of no process: %v\n", err != nil)
}

func brokerSVIDs(response *broker.SubscribeToX509SVIDResponse) []any {
	var values []any
	for _, svid := range response.GetSvids() {
		chain, err := x509.ParseCertificates(svid.X509Svid)
		need("certificate", err)
		_, err = x509.ParsePKCS8PrivateKey(svid.X509SvidKey)
		need("key", err)
		values = append(values, svid.SpiffeId, chain[0].URIs[0].String(), svid.Hint, certificates(svid.Bundle))
	}
	return append(values, counts(response.GetFederatedBundles(), certificates)...)
}
